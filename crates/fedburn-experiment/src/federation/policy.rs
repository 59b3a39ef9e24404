//! What the owner of the data permits. It is checked where the data are, before they are read.

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use fedburn::core::{
    Asked, ClientFailure, ClientId, ClientTransport, Reply, Reports, Request, RoundIndex, TransportError,
};
use fedburn::strategies::StrategyConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::config::ExperimentConfig;

/// A policy file. Of each list, what is not in it is refused; a list that is absent permits everything.
///
/// # Examples
///
/// ```
/// use fedburn_experiment::federation::Policy;
///
/// let policy: Policy = toml::from_str(r#"
///     strategies = ["fedavg", "fednova"]
///     datasets = ["digits"]
///     reports = ["steps", "accumulation"]
/// "#)?;
/// policy.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Experiments, each by its name (`suite/name`, which the server chooses) or by its hash (`config_hash` in
    /// `run.json`, which covers every setting that can change a result).
    pub experiments: Option<Vec<String>>,
    /// Strategies by their kind; a wrapper and what it wraps must both be there.
    pub strategies: Option<Vec<String>>,
    /// Local rules, and what clients keep for themselves (`personal`), by name.
    pub rules: Option<Vec<String>>,
    /// Data sets by their kind.
    pub datasets: Option<Vec<String>>,
    /// What clients may tell besides parameters.
    pub reports: Option<Vec<Report>>,
    /// Whether models may be measured on the clients' own examples; yes where absent.
    pub evaluation: Option<bool>,
}

/// Something that a strategy may ask clients to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Number of training examples of each class.
    ClassCounts,
    /// How much the steps add up to.
    Accumulation,
    /// Number of local steps.
    Steps,
}

/// What a policy does not permit, in words for the owner and for the server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the data's owner does not permit {0}")]
pub struct Violation(String);

/// A policy file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a policy.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name that nothing has; it would permit nothing.
    #[error("strategies: there is no strategy `{name}`, expected one of {}", StrategyConfig::KINDS.join(", "))]
    UnknownStrategy {
        /// The name.
        name: String,
    },
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        let refuse = |reason: String| PolicyError::Parse { path: path.to_owned(), reason };
        let policy: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        policy.check().map_err(|e| refuse(e.to_string()))?;
        Ok(policy)
    }

    /// Checks that the strategies have their right names.
    ///
    /// # Errors
    /// [`PolicyError::UnknownStrategy`].
    pub fn check(&self) -> Result<(), PolicyError> {
        match self.strategies.iter().flatten().find(|name| !StrategyConfig::KINDS.contains(&name.as_str())) {
            Some(name) => Err(PolicyError::UnknownStrategy { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Whether clients may take part in the experiment `name` with this config and hash.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn permits_experiment(&self, name: &str, hash: &str, config: &ExperimentConfig) -> Result<(), Violation> {
        if self.experiments.as_ref().is_some_and(|known| !known.iter().any(|known| known == name || known == hash)) {
            return Err(Violation(format!("the experiment `{name}` ({hash})")));
        }
        for layer in config.strategy.layers() {
            permits(&self.strategies, "the strategy", &kind(layer))?;
        }
        permits(&self.rules, "the local rule", &rule(config))?;
        if let Some(personal) = &config.client.personal {
            permits(&self.rules, "the local rule", &kind(personal))?;
        }
        permits(&self.datasets, "the use of the data set", &kind(&config.data))
    }

    /// Whether a client may do what is asked.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn permits_request<B: Backend>(&self, request: &Request<B>) -> Result<(), Violation> {
        match request {
            Request::Train(task) => self.permits_reports(task.reports),
            Request::Evaluate { .. } if self.evaluation == Some(false) => {
                Err(Violation("measuring models on the clients' examples".to_owned()))
            }
            Request::Evaluate { .. } => Ok(()),
        }
    }

    /// The request without what a client may keep to itself and the owner does not permit: class counts.
    fn withhold<B: Backend>(&self, mut request: Request<B>) -> Request<B> {
        if let (Request::Train(task), Some(permitted)) = (&mut request, &self.reports) {
            task.reports.class_counts &= permitted.contains(&Report::ClassCounts);
        }
        request
    }

    fn permits_reports(&self, asked: Reports) -> Result<(), Violation> {
        let Some(permitted) = &self.reports else { return Ok(()) };
        let asked = [
            (asked.accumulation, Report::Accumulation, "how much local steps add up to"),
            (asked.steps, Report::Steps, "the number of local steps"),
        ];
        match asked.iter().find(|(asked, report, _)| *asked && !permitted.contains(report)) {
            Some((_, _, what)) => Err(Violation(format!("telling {what}"))),
            None => Ok(()),
        }
    }
}

fn permits(list: &Option<Vec<String>>, what: &str, name: &str) -> Result<(), Violation> {
    match list {
        Some(permitted) if !permitted.iter().any(|p| p == name) => Err(Violation(format!("{what} `{name}`"))),
        _ => Ok(()),
    }
}

/// The `kind` by which a config chooses.
fn kind(choice: &impl Serialize) -> String {
    serde_json::to_value(choice)
        .ok()
        .and_then(|value| Some(value.get("kind")?.as_str()?.to_owned()))
        .unwrap_or_default()
}

/// The local rule's name, with or without settings.
fn rule(config: &ExperimentConfig) -> String {
    match serde_json::to_value(&config.client.rule) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(table)) => table.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// Passes on only what the policy permits and refuses the rest with the reason.
pub struct Guarded<'a, T> {
    transport: T,
    policy: &'a Policy,
}

impl<'a, T> Guarded<'a, T> {
    /// Puts `policy` in front of clients.
    pub fn new(transport: T, policy: &'a Policy) -> Self {
        Self { transport, policy }
    }
}

impl<B: Backend, T: ClientTransport<B>> ClientTransport<B> for Guarded<'_, T> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        while let Some(asked) = self.transport.next()? {
            match self.policy.permits_request(&asked.request) {
                Ok(()) => return Ok(Some(Asked { request: self.policy.withhold(asked.request), ..asked })),
                Err(violation) => {
                    let refused = ClientFailure::Refused { reason: violation.to_string() };
                    self.transport.reply(asked.client, asked.request.round(), Err(refused))?;
                }
            }
        }
        Ok(None)
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        self.transport.reply(client, round, reply)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use burn_flex::{Flex, FlexDevice};
    use fedburn::core::{Seed, ServerTransport, SideInfo, TrainTask};
    use fedburn_testkit::{MemoryLink, schema, vector};

    use super::*;

    fn policy(text: &str) -> Policy {
        toml::from_str(text).unwrap()
    }

    fn config(strategy: &str, client: &str) -> ExperimentConfig {
        let text = format!(
            r#"
            title = "a"
            seeds = [0]
            data = {{ kind = "digits" }}
            partition = {{ kind = "iid", clients = 4 }}
            model = {{ kind = "softmax" }}
            client = {{ {client}, epochs = 1, batch_size = 16, lr = 0.1 }}
            strategy = {strategy}
            sampler = {{ kind = "all" }}
            server = {{ rounds = 3 }}
            "#
        );
        ExperimentConfig::parse(Path::new("a.toml"), &text, &[]).unwrap()
    }

    fn verdict(policy_text: &str, strategy: &str, client: &str) -> Result<(), String> {
        policy(policy_text)
            .permits_experiment("suite/a", "5f0c", &config(strategy, client))
            .map_err(|violation| violation.to_string())
    }

    const FEDAVG: &str = r#"{ kind = "fedavg" }"#;
    const SGD: &str = r#"rule = "sgd""#;

    #[test]
    fn an_empty_policy_permits_everything() {
        let ditto = r#"rule = { proximal = { mu = 0.1 } }, personal = { kind = "ditto" }"#;
        assert_eq!(verdict("", r#"{ kind = "ewwa" }"#, ditto), Ok(()));
    }

    #[test]
    fn each_list_refuses_what_it_lacks_and_says_what() {
        let refused = |policy: &str, strategy: &str, client: &str, word: &str| {
            let violation = verdict(policy, strategy, client).unwrap_err();
            assert!(violation.contains(word), "{violation}");
        };
        refused(r#"experiments = ["suite/b"]"#, FEDAVG, SGD, "experiment `suite/a` (5f0c)");
        refused(r#"strategies = ["ewwa"]"#, FEDAVG, SGD, "strategy `fedavg`");
        refused(r#"rules = ["sgd"]"#, FEDAVG, "rule = { proximal = { mu = 0.1 } }", "rule `proximal`");
        refused(r#"rules = ["sgd"]"#, FEDAVG, r#"rule = "sgd", personal = { kind = "ditto" }"#, "rule `ditto`");
        refused("datasets = []", FEDAVG, SGD, "data set `digits`");
        let clipped = r#"{ kind = "norm_clipping", threshold = 1.0, base = { kind = "krum" } }"#;
        refused(r#"strategies = ["norm_clipping"]"#, clipped, SGD, "strategy `krum`");
    }

    #[test]
    fn what_is_listed_is_permitted() {
        let lists = r#"
            experiments = ["5f0c"]
            strategies = ["fedavg"]
            rules = ["sgd"]
            datasets = ["digits"]
        "#;
        assert_eq!(verdict(lists, FEDAVG, SGD), Ok(()));
        assert_eq!(verdict(r#"experiments = ["suite/a"]"#, FEDAVG, SGD), Ok(()));
    }

    #[test]
    fn a_name_that_nothing_has_is_refused_with_the_known_ones() {
        let error = policy(r#"strategies = ["fed_avg"]"#).check().unwrap_err().to_string();
        assert!(error.contains("`fed_avg`") && error.contains("fedavg"), "{error}");
        assert!(toml::from_str::<Policy>(r#"reports = ["names"]"#).is_err());
        assert!(toml::from_str::<Policy>(r#"strategy = ["fedavg"]"#).is_err());
    }

    fn task(reports: Reports) -> Request<Flex> {
        Request::Train(TrainTask {
            round: RoundIndex(1),
            global: vector(&[1.0], &schema(&[1]), &FlexDevice),
            slice: Vec::new(),
            seed: Seed::new(0),
            side: SideInfo::default(),
            reports,
            compression: Default::default(),
        })
    }

    #[test]
    fn reports_are_given_only_as_far_as_they_are_permitted() {
        let steps = Reports { steps: true, ..Reports::default() };
        let counts = Reports { class_counts: true, ..steps };
        let some = policy(r#"reports = ["steps"]"#);
        assert_eq!(some.permits_request(&task(steps)), Ok(()));
        assert_eq!(some.permits_request(&task(counts)), Ok(()));
        let told = |policy: &Policy| match policy.withhold(task(counts)) {
            Request::Train(task) => task.reports,
            Request::Evaluate { .. } => unreachable!(),
        };
        assert_eq!((told(&some), told(&policy(""))), (steps, counts), "class counts can be done without");
        assert_eq!(policy("").permits_request(&task(counts)), Ok(()));
        assert!(policy("reports = []").permits_request(&task(steps)).is_err());
        assert_eq!(policy("reports = []").permits_request(&task(Reports::default())), Ok(()));
    }

    #[test]
    fn what_is_refused_never_reaches_a_client() {
        let link = MemoryLink::<Flex>::new(
            [4, 5].map(|k| fedburn::core::ClientInfo { id: ClientId(k), num_examples: 1 }).into(),
        );
        let (mut server, client) = (link.server(RoundIndex(0)), link.client());
        let passed = thread::spawn(move || {
            let policy = policy("evaluation = false");
            Guarded::new(client, &policy).next().unwrap().unwrap().client
        });
        let evaluate = Request::Evaluate { round: RoundIndex(1), global: vector(&[1.0], &schema(&[1]), &FlexDevice) };
        let requests = vec![(ClientId(4), evaluate), (ClientId(5), task(Reports::default()))];
        let mut outcomes = server.exchange(requests, Duration::from_secs(60));
        let outcome = outcomes.next().unwrap();
        assert_eq!(outcome.client, ClientId(4));
        let failure = outcome.reply.unwrap_err().to_string();
        assert!(failure.starts_with("refused: the data's owner does not permit measuring"), "{failure}");
        assert_eq!(passed.join().unwrap(), ClientId(5));
    }
}
