//! What the server tells nodes of the run: enough to assemble the same parts from their own data.

use std::path::{Component, Path};

use fedburn::transport::quic::Plan;
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::assemble::Run;
use crate::backend::{BackendError, BackendName};
use crate::config::{ConfigError, ExperimentConfig, TransportConfig};

/// A plan that cannot be followed. It comes from another machine, so it is checked like everything from there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It is no experiment of this version.
    #[error("{source}; server and clients must be of versions that know the same settings")]
    Config {
        /// What is wrong.
        #[from]
        source: ConfigError,
    },
    /// It is no TOML.
    #[error("not a config: {reason}")]
    Toml {
        /// What is wrong.
        reason: String,
    },
    /// It wants to read data outside the folder of data sets.
    #[error("the data set's path `{path}` leads out of the folder of data sets")]
    Path {
        /// The path.
        path: String,
    },
    /// Its parts contradict each other.
    #[error("its hash is not that of its settings")]
    Hash,
    /// There is no such backend.
    #[error("{source}")]
    Backend {
        /// Which.
        #[from]
        source: BackendError,
    },
}

/// The run that a plan describes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    /// The experiment's name, `suite/name`.
    pub name: String,
    /// Its settings.
    pub config: ExperimentConfig,
    /// The seed of the run.
    pub seed: u64,
    /// The backend of the server; clients that shall give the same bits use it too.
    pub backend: BackendName,
    /// Identifies the run, as in its `run.json`.
    pub hash: String,
}

/// The plan of a run, the same whenever and wherever the server is started.
pub fn plan_of(run: &Run, name: &str, backend: BackendName) -> Plan {
    let mut config = ExperimentConfig { transport: TransportConfig::default(), ..run.experiment().config().clone() };
    // Where things lie on the server is no matter of others.
    config.initial_model = config.initial_model.map(|initial| initial.without_place());
    Plan {
        name: name.to_owned(),
        text: config.resolved(run.seed()),
        seed: run.seed(),
        backend: backend.to_string(),
        hash: widened(&config.run_hash(backend.as_str(), run.seed())),
    }
}

impl PlannedRun {
    /// Reads and checks a server's plan.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn read(plan: &Plan) -> Result<Self, PlanError> {
        // Not by the reader of files, which would follow `extends` to other files of this machine.
        let table: toml::Table = toml::from_str(&plan.text).map_err(|e| PlanError::Toml { reason: e.to_string() })?;
        let config = ExperimentConfig::of_table(Path::new(&plan.name), table, &[])?;
        if let Ok(Value::String(path)) = serde_json::to_value(&config.data).map(|data| data["path"].clone())
            && !Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(PlanError::Path { path });
        }
        let backend: BackendName = plan.backend.parse()?;
        let hash = config.run_hash(backend.as_str(), plan.seed);
        if widened(&hash) != plan.hash {
            return Err(PlanError::Hash);
        }
        Ok(Self { name: plan.name.clone(), config, seed: plan.seed, backend, hash })
    }
}

/// The run's hash as the protocol carries it.
fn widened(run_hash: &str) -> [u8; 32] {
    Sha256::digest(format!("fedburn plan 1\n{run_hash}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::Experiment;

    const TEXT: &str = r#"
        title = "a"
        seeds = [7, 8]
        data = { kind = "digits" }
        partition = { kind = "dirichlet", clients = 4, alpha = 0.3 }
        model = { kind = "softmax" }
        client = { rule = "sgd", epochs = 1, batch_size = 16, lr = 0.1, momentum = 0.30000000000000004 }
        sampler = { kind = "all" }
        server = { rounds = 3 }
        transport = { kind = "in_process", workers = 3 }
    "#;

    fn plan(text: &str) -> Plan {
        let config = ExperimentConfig::parse(Path::new("a.toml"), text, &[]).unwrap();
        let run = Experiment::new(Path::new("a.toml"), config, Path::new("data")).unwrap().run(7).unwrap();
        plan_of(&run, "suite/a", BackendName::Ndarray)
    }

    #[test]
    fn a_plan_says_all_that_a_run_depends_on() {
        let read = PlannedRun::read(&plan(TEXT)).unwrap();
        let file = ExperimentConfig::parse(Path::new("a.toml"), TEXT, &[]).unwrap();
        assert_eq!(read.hash, file.run_hash("ndarray", 7));
        assert_eq!((read.config.client.clone(), read.config.seeds.clone()), (file.client, vec![7]));
        assert_eq!((read.name.as_str(), read.backend), ("suite/a", BackendName::Ndarray));
    }

    #[test]
    fn the_carrier_is_no_part_of_a_plan() {
        assert_eq!(plan(TEXT).text, plan(&TEXT.replace("workers = 3", "workers = 1")).text);
        assert_eq!(plan(TEXT).hash, plan(&TEXT.replace("workers = 3", "workers = 1")).hash);
        assert_ne!(plan(TEXT).hash, plan(&TEXT.replace("lr = 0.1", "lr = 0.2")).hash);
    }

    #[test]
    fn a_plan_says_what_the_model_begins_with_and_not_where_that_lies() {
        let folder = tempfile::tempdir().unwrap();
        let plan = |name: &str, content: &str| {
            std::fs::write(folder.path().join(name), content).unwrap();
            let text = format!("{TEXT}\ninitial_model = {{ file = \"{name}\" }}");
            let path = folder.path().join("a.toml");
            let config = ExperimentConfig::parse(&path, &text, &[]).unwrap();
            plan_of(&Experiment::new(&path, config, Path::new("data")).unwrap().run(7).unwrap(), "a", BackendName::Flex)
        };
        let here = plan("here.safetensors", "abc");
        assert!(!here.text.contains("here.safetensors") && here.text.contains("ba7816bf"), "{}", here.text);
        let there = plan("there.safetensors", "abc");
        assert_eq!((&here.text, here.hash), (&there.text, there.hash));
        assert_ne!(here.hash, plan("here.safetensors", "abd").hash);
        assert!(PlannedRun::read(&here).unwrap().config.initial_model.is_some());
    }

    #[test]
    fn contradictions_and_ways_out_are_refused() {
        let refused = |change: &dyn Fn(&mut Plan), word: &str| {
            let mut changed = plan(TEXT);
            change(&mut changed);
            let error = PlannedRun::read(&changed).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(&|plan| plan.seed = 8, "hash");
        refused(&|plan| plan.hash[31] ^= 1, "hash");
        refused(&|plan| plan.backend = "abacus".to_owned(), "abacus");
        refused(&|plan| plan.text.push_str("\nextends = 3"), "extends");
        refused(&|plan| plan.text = format!("extends = \"/etc/passwd\"\n{}", plan.text), "extends");
        refused(&|plan| plan.text = "]".to_owned(), "not a config");
        for path in ["/etc", "../up", "a/../../up"] {
            let csv = |plan: &mut Plan| {
                plan.text = plan.text.replace("kind = \"digits\"", &format!("kind = \"csv\"\npath = \"{path}\""));
            };
            refused(&csv, "leads out");
        }
    }
}
