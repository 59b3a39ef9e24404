//! Simulated attackers around any transport, to test robust strategies with.
//!
//! An attacker trains like everybody else and then replaces the weights that it sends; number of examples, running
//! statistics, side information and metrics stay its own. With label flipping it trains on wrong labels instead and
//! sends what comes of that.
//!
//! ```text
//! sign_flip       x_k' = x_t - c (x_k - x_t)
//! gaussian        x_k' = x_t + N(0, sigma^2 I)
//! alie            x_k' = mu - z sd                       z_max = Phi^-1((m - f - s) / (m - f)), s = floor(m/2 + 1) - f
//! inner_product   x_k' = x_t - epsilon (mu - x_t)
//! label_flip      y'   = C - 1 - y on the attacker's own examples
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `x_t`, `x_k` | the round's global vector; what client k would send honestly |
//! | `mu`, `sd` | coordinate by coordinate: mean and standard deviation (divisor n) of the honest clients' vectors, each counting the same |
//! | `m`, `f` | vectors sent in the round; attackers among them |
//! | `s` | honest clients that the attackers need beside themselves for a majority |
//! | `c`, `sigma`, `z`, `epsilon` | strength: `scale`, `std`, `z`, `epsilon` in configs; `Phi` is the normal distribution function |
//! | `C`, `y` | number of classes, label |
//!
//! Sign flipping: L. Li, W. Xu, T. Chen, G. B. Giannakis, Q. Ling: "RSA: Byzantine-Robust Stochastic Aggregation Methods
//! for Distributed Learning from Heterogeneous Datasets", AAAI 2019, arXiv 1811.03761. Gaussian noise: P. Blanchard,
//! E. M. El Mhamdi, R. Guerraoui, J. Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
//! NeurIPS 2017, arXiv 1703.02757. ALIE: M. Baruch, G. Baruch, Y. Goldberg: "A Little Is Enough: Circumventing Defenses
//! For Distributed Learning", NeurIPS 2019, arXiv 1902.06156. Inner-product manipulation: C. Xie, O. Koyejo, I. Gupta:
//! "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019, arXiv 1903.03936. Label
//! flipping: M. Fang, X. Cao, J. Jia, N. Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
//! USENIX Security 2020, arXiv 1911.11815.
//!
//! Departures: the papers attack gradients, here the vectors after local training are attacked, which is the same for
//! one step. `alie` and `inner_product` know every honest vector of the round, the papers' omniscient case; where no
//! honest client answered, the attackers' own vectors stand in. `z_max` is kept at 0 or above: with few attackers in a
//! small cohort the formula turns negative, which would attack the other way.
//!
//! Memory: the two colluding attacks hold the round's vectors and two sums of a vector's length; the others nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, ClientInfo, LocalUpdate, Outcome, ParamVector, Purpose, Reply, Request, RoundIndex,
    SchemaError, Seed, ServerTransport, TransportError,
};
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which attack a run simulates, the `[attack]` table of a config file; none by default.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, ClientInfo, Seed};
/// use fedburn_runtime::AttackConfig;
///
/// let clients: Vec<_> = (0..10).map(|id| ClientInfo { id: ClientId(id), num_examples: 60 }).collect();
/// let config: AttackConfig = serde_json::from_str(r#"{ "kind": "sign_flip", "attackers": { "share": 0.2 } }"#)?;
/// assert_eq!(config.build(&clients, Seed::new(7))?.attackers().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum AttackConfig {
    /// Everybody is honest. Braces, so that a stray field in a config is refused here too.
    None {},
    /// Deltas turned round.
    SignFlip {
        /// Who attacks.
        attackers: AttackersConfig,
        /// `c`, above 0: factor of the turned delta.
        #[serde(default = "one")]
        scale: f64,
    },
    /// Noise instead of a delta.
    Gaussian {
        /// Who attacks.
        attackers: AttackersConfig,
        /// `sigma`, above 0: the noise's standard deviation in each coordinate; 200 in the paper.
        #[serde(default = "paper_std")]
        std: f64,
    },
    /// "A little is enough": as far from the honest mean as hides among honest vectors.
    Alie {
        /// Who attacks.
        attackers: AttackersConfig,
        /// `z`, at least 0: distance from the mean in standard deviations; `z_max` of the round where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        z: Option<f64>,
    },
    /// The honest mean delta turned round.
    InnerProduct {
        /// Who attacks.
        attackers: AttackersConfig,
        /// `epsilon`, above 0: large ones turn a mean, small ones pass for honest with rules that look at distances.
        #[serde(default = "one")]
        epsilon: f64,
    },
    /// Training on turned labels; the client half does it, see [`Attack::flips_labels`].
    LabelFlip {
        /// Who attacks.
        attackers: AttackersConfig,
    },
}

/// Who attacks, the same clients in every round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttackersConfig {
    /// So many clients with data, drawn from the run's seed.
    Number(usize),
    /// This share, in `[0, 1]`, of the clients with data, to the nearest whole number, drawn from the run's seed.
    Share(f64),
    /// These clients.
    Clients(Vec<ClientId>),
}

/// An attack that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum AttackError {
    /// A number out of its range.
    #[error("`{field}` is {value}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// Its range.
        expected: &'static str,
    },
    /// More attackers than clients.
    #[error("`attackers` asks for {number} clients, expected at most {clients}, the number of clients with data")]
    TooMany {
        /// How many are asked for.
        number: usize,
        /// Clients with data.
        clients: usize,
    },
    /// A listed attacker does not exist or has no data.
    #[error("`attackers` lists client {client}, which is none of the {clients} clients with data")]
    Unknown {
        /// The client.
        client: ClientId,
        /// Clients with data.
        clients: usize,
    },
}

/// A checked attack of one run.
#[derive(Clone, Debug)]
pub struct Attack {
    method: Option<Method>,
    attackers: BTreeSet<ClientId>,
    seed: Seed,
}

#[derive(Clone, Copy, Debug)]
enum Method {
    SignFlip { scale: f64 },
    Gaussian { std: f64 },
    Alie { z: Option<f64> },
    InnerProduct { epsilon: f64 },
    LabelFlip,
}

impl AttackConfig {
    /// Checks the attack and draws its attackers among `clients`; `run` is the root of the run's seed tree.
    ///
    /// # Errors
    /// [`AttackError`].
    pub fn build(&self, clients: &[ClientInfo], run: Seed) -> Result<Attack, AttackError> {
        let (method, attackers) = match self {
            Self::None {} => (None, None),
            Self::SignFlip { attackers, scale } => {
                (Some(Method::SignFlip { scale: positive("scale", *scale)? }), Some(attackers))
            }
            Self::Gaussian { attackers, std } => {
                (Some(Method::Gaussian { std: positive("std", *std)? }), Some(attackers))
            }
            Self::Alie { attackers, z: None } => (Some(Method::Alie { z: None }), Some(attackers)),
            Self::Alie { attackers, z: Some(z) } => {
                check("z", *z, *z >= 0.0 && z.is_finite(), "a number of at least 0")?;
                (Some(Method::Alie { z: Some(*z) }), Some(attackers))
            }
            Self::InnerProduct { attackers, epsilon } => {
                (Some(Method::InnerProduct { epsilon: positive("epsilon", *epsilon)? }), Some(attackers))
            }
            Self::LabelFlip { attackers } => (Some(Method::LabelFlip), Some(attackers)),
        };
        let seed = run.purpose(Purpose::Attack);
        let attackers = attackers.map(|attackers| attackers.choose(clients, seed)).transpose()?.unwrap_or_default();
        Ok(Attack { method, attackers, seed })
    }

    /// Whether everybody is honest.
    pub fn is_none(&self) -> bool {
        *self == Self::None {}
    }
}

impl Default for AttackConfig {
    fn default() -> Self {
        Self::None {}
    }
}

impl AttackersConfig {
    fn choose(&self, clients: &[ClientInfo], seed: Seed) -> Result<BTreeSet<ClientId>, AttackError> {
        let mut able: Vec<ClientId> = clients.iter().filter(|c| c.num_examples > 0).map(|c| c.id).collect();
        let number = match self {
            Self::Number(number) => *number,
            Self::Share(share) => {
                check("attackers.share", *share, (0.0..=1.0).contains(share), "a share in [0, 1]")?;
                (share * able.len() as f64).round() as usize
            }
            Self::Clients(listed) => {
                return match listed.iter().find(|client| !able.contains(client)) {
                    Some(&client) => Err(AttackError::Unknown { client, clients: able.len() }),
                    None => Ok(listed.iter().copied().collect()),
                };
            }
        };
        if number > able.len() {
            return Err(AttackError::TooMany { number, clients: able.len() });
        }
        able.shuffle(&mut seed.rng());
        Ok(able.into_iter().take(number).collect())
    }
}

impl Attack {
    /// Who attacks.
    pub fn attackers(&self) -> &BTreeSet<ClientId> {
        &self.attackers
    }

    /// Whether attackers train on turned labels. Whoever makes the clients' data turns them; the transport changes
    /// nothing then.
    pub fn flips_labels(&self) -> bool {
        matches!(self.method, Some(Method::LabelFlip))
    }
}

impl Method {
    /// Whether attackers wait for the honest answers.
    fn colludes(self) -> bool {
        matches!(self, Self::Alie { .. } | Self::InnerProduct { .. })
    }
}

/// Replaces what attackers send.
///
/// # Determinism
/// What an attacker sends is a function of the run's seed, the round, and the honest clients' answers; their order of
/// arrival does not show.
pub struct Attacked<T> {
    transport: T,
    attack: Attack,
}

impl<T> Attacked<T> {
    /// Lets the attackers of `attack` among the clients of `transport` attack.
    pub fn new(transport: T, attack: Attack) -> Self {
        Self { transport, attack }
    }
}

impl<B: Backend, T: ServerTransport<B>> ServerTransport<B> for Attacked<T> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.transport.clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.transport.wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        let method = self.attack.method.filter(|method| !matches!(method, Method::LabelFlip));
        let tasks = requests.iter().filter_map(|(client, request)| match request {
            Request::Train(task) if self.attack.attackers.contains(client) => {
                Some((*client, Task { round: task.round, global: task.global.clone() }))
            }
            _ => None,
        });
        let tasks: BTreeMap<_, _> = tasks.collect();
        let outcomes = self.transport.exchange(requests, timeout);
        match method {
            Some(method) if !tasks.is_empty() => Box::new(Exchange {
                outcomes,
                method,
                seed: self.attack.seed,
                tasks,
                honest: Vec::new(),
                held: Vec::new(),
                forged: None,
            }),
            _ => outcomes,
        }
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.transport.close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.transport.checkpointed(round, oldest)
    }
}

/// What an attacker was asked.
struct Task<B: Backend> {
    round: RoundIndex,
    global: ParamVector<B>,
}

struct Exchange<'a, B: Backend> {
    outcomes: Box<dyn Iterator<Item = Outcome<B>> + 'a>,
    method: Method,
    seed: Seed,
    /// By attacker.
    tasks: BTreeMap<ClientId, Task<B>>,
    /// Usable honest vectors, for colluding attackers.
    honest: Vec<(ClientId, ParamVector<B>)>,
    /// Colluding attackers' honest answers, until the last honest client has answered.
    held: Vec<(ClientId, LocalUpdate<B>)>,
    /// What colluding attackers send.
    forged: Option<Vec<f32>>,
}

impl<B: Backend> Iterator for Exchange<'_, B> {
    type Item = Outcome<B>;

    fn next(&mut self) -> Option<Outcome<B>> {
        loop {
            let Some(Outcome { client, reply }) = self.outcomes.next() else { return self.next_held() };
            match (reply, self.tasks.get(&client)) {
                (Ok(Reply::Trained(update)), Some(_)) if self.method.colludes() => self.held.push((client, update)),
                (Ok(Reply::Trained(update)), Some(task)) => {
                    let values = alone(self.method, task, &update, self.seed.round(task.round).client(client));
                    return Some(send(client, update, values));
                }
                (Ok(Reply::Trained(update)), None) if self.method.colludes() => {
                    self.honest.push((client, update.params.clone()));
                    return Some(Outcome { client, reply: Ok(Reply::Trained(update)) });
                }
                (reply, _) => return Some(Outcome { client, reply }),
            }
        }
    }
}

impl<B: Backend> Exchange<'_, B> {
    fn next_held(&mut self) -> Option<Outcome<B>> {
        let (client, update) = self.held.pop()?;
        let task = self.tasks.get(&client)?;
        let forged = self.forged.take().unwrap_or_else(|| {
            let attackers = self.held.len() + 1;
            let own = self.held.iter().map(|(client, update)| (*client, update.params.clone()));
            let own = own.chain([(client, update.params.clone())]);
            let usable =
                |known: &(ClientId, ParamVector<B>)| known.1.schema() == task.global.schema() && known.1.is_finite();
            let mut known: Vec<_> = self.honest.drain(..).filter(usable).collect();
            let sent = known.len() + attackers;
            if known.is_empty() {
                known.extend(own.filter(usable));
            }
            known.sort_by_key(|(client, _)| *client);
            together(self.method, &task.global, known.iter().map(|(_, params)| params), sent, attackers)
        });
        let outcome = send(client, update, Ok(forged.clone()));
        self.forged = Some(forged);
        Some(outcome)
    }
}

/// What an attacker sends by itself.
fn alone<B: Backend>(
    method: Method,
    task: &Task<B>,
    update: &LocalUpdate<B>,
    seed: Seed,
) -> Result<Vec<f32>, SchemaError> {
    task.global.schema().ensure_same(update.params.schema())?;
    let global = task.global.to_host();
    Ok(match method {
        Method::Gaussian { std } => {
            let mut rng = seed.rng();
            let noise = |x: f32| {
                let draw: f64 = StandardNormal.sample(&mut rng);
                (f64::from(x) + std * draw) as f32
            };
            global.into_iter().map(noise).collect()
        }
        Method::SignFlip { scale } => {
            let turn = |(x, k): (f32, f32)| (f64::from(x) - scale * (f64::from(k) - f64::from(x))) as f32;
            global.into_iter().zip(update.params.to_host()).map(turn).collect()
        }
        _ => update.params.to_host(),
    })
}

/// What all colluding attackers of a round send; `sent` vectors come in all, `attackers` of them theirs.
fn together<'a, B: Backend>(
    method: Method,
    global: &ParamVector<B>,
    known: impl Iterator<Item = &'a ParamVector<B>>,
    sent: usize,
    attackers: usize,
) -> Vec<f32> {
    let global = global.to_host();
    let (mut mean, mut squares, mut count) = (vec![0.0f64; global.len()], vec![0.0f64; global.len()], 0.0);
    // B. P. Welford: "Note on a Method for Calculating Corrected Sums of Squares and Products", Technometrics 1962.
    for params in known {
        count += 1.0;
        for ((mean, squares), value) in mean.iter_mut().zip(&mut squares).zip(params.to_host()) {
            let before = f64::from(value) - *mean;
            *mean += before / count;
            *squares += before * (f64::from(value) - *mean);
        }
    }
    if count == 0.0 {
        return global;
    }
    match method {
        Method::Alie { z } => {
            let z = z.unwrap_or_else(|| z_max(sent, attackers));
            mean.iter().zip(squares).map(|(mean, squares)| (mean - z * (squares / count).sqrt()) as f32).collect()
        }
        Method::InnerProduct { epsilon } => {
            mean.iter().zip(global).map(|(mean, x)| (f64::from(x) - epsilon * (mean - f64::from(x))) as f32).collect()
        }
        _ => global,
    }
}

/// The attacker's answer with other weights; a vector of another model is left for the server to refuse.
fn send<B: Backend>(client: ClientId, mut update: LocalUpdate<B>, values: Result<Vec<f32>, SchemaError>) -> Outcome<B> {
    let replaced = values.and_then(|values| {
        let (schema, device) = (update.params.schema().clone(), update.params.device());
        ParamVector::from_host(values, schema, &device)?.with_buffers_of(&update.params)
    });
    let reply = match replaced {
        Ok(params) => {
            update.params = params;
            Ok(Reply::Trained(update))
        }
        Err(source) => Err(ClientFailure::Malformed { reason: source.to_string() }),
    };
    Outcome { client, reply }
}

/// How far ALIE's attackers may go: the largest `z` at which, if coordinates are normal, enough honest clients lie
/// farther from the mean that attackers and they are a majority. At least 0.
fn z_max(sent: usize, attackers: usize) -> f64 {
    let honest = sent.saturating_sub(attackers);
    let supporters = (sent / 2 + 1).saturating_sub(attackers).max(1);
    if honest <= supporters {
        return 0.0;
    }
    normal_quantile((honest - supporters) as f64 / honest as f64).max(0.0)
}

/// The `z` with `Phi(z) = p`, `p` in `(0, 1)`, by bisection of the series of G. Marsaglia: "Evaluating the Normal
/// Distribution", Journal of Statistical Software 11(4), 2004.
fn normal_quantile(p: f64) -> f64 {
    let cumulative = |z: f64| {
        let (mut sum, mut term, mut k) = (z, z, 1.0);
        while sum + term != sum {
            k += 2.0;
            term *= z * z / k;
            sum += term;
        }
        0.5 + sum * (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt()
    };
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if cumulative(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

fn positive(field: &'static str, value: f64) -> Result<f64, AttackError> {
    check(field, value, value > 0.0 && value.is_finite(), "a number above 0").map(|()| value)
}

fn check(field: &'static str, value: f64, valid: bool, expected: &'static str) -> Result<(), AttackError> {
    if valid { Ok(()) } else { Err(AttackError::Value { field, value, expected }) }
}

fn one() -> f64 {
    1.0
}

fn paper_std() -> f64 {
    200.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, z) in [(0.5, 0.0), (0.841_344_746, 1.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306)] {
            assert!((normal_quantile(p) - z).abs() < 1e-8, "{p}: {}", normal_quantile(p));
        }
    }

    #[test]
    fn z_max_follows_the_paper_and_is_never_negative() {
        // 50 workers, 12 corrupted: s = 14, Phi^-1(24/38).
        assert!((z_max(50, 12) - 0.336_038_14).abs() < 1e-6, "{}", z_max(50, 12));
        assert_eq!(z_max(10, 1), 0.0);
        for (sent, attackers) in [(1, 1), (2, 1), (2, 2), (5, 4), (0, 0)] {
            assert!(z_max(sent, attackers) >= 0.0 && z_max(sent, attackers).is_finite());
        }
    }
}
