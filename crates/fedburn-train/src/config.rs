//! The `[client]` table of a run.

use burn::tensor::backend::Backend;
use fedburn_core::{GeneratorFamily, RoundIndex, Seed};
use fedburn_data::{Batches, ClientData};
use serde::{Deserialize, Serialize};

use crate::rules::WithoutGenerator;
use crate::{
    DepthFlConfig, DepthwiseConfig, FedDynRuleConfig, FedGenRuleConfig, HeteroFlConfig, InclusiveFlRuleConfig,
    LocalDepthFl, LocalDepthwise, LocalFedDyn, LocalFedGen, LocalHeteroFl, LocalInclusiveFl, LocalMoon, LocalNtd,
    LocalProximal, LocalRule, LocalScaffold, LocalSgd, LocalSplitMix, MemoryConfig, MoonConfig, NtdConfig,
    PersonalConfig, ProximalConfig, ScaffoldRuleConfig, ScheduleConfig, Sgd, SgdConfig, Sharpened,
    SharpnessAwareConfig, SplitMixConfig, TrainModel, TrainingConfigError,
};

/// How a client trains. [`LocalTrainingConfig::build`] checks it.
///
/// # Examples
///
/// ```
/// use fedburn_core::RoundIndex;
/// use fedburn_train::LocalTrainingConfig;
///
/// let config: LocalTrainingConfig = toml::from_str(r#"
///     rule = "sgd"
///     epochs = 1
///     batch_size = 32
///     lr = 0.05
///     momentum = 0.9
///     schedule = { kind = "exponential", decay = 0.99 }
/// "#)?;
/// let training = config.build()?;
/// assert_eq!(training.learning_rate(RoundIndex(2)), 0.05 * 0.99);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalTrainingConfig {
    /// The local rule.
    #[serde(default)]
    pub rule: RuleConfig,
    /// Sharpness-aware steps, with any rule; plain ones where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharpness: Option<SharpnessAwareConfig>,
    /// What the client keeps for itself; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<PersonalConfig>,
    /// Passes over the client's data, at least 1. Either this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Mini-batch steps, at least 1, over as many passes as that takes. Either this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Examples in a mini-batch, at least 1; more than the client has makes one batch of all.
    pub batch_size: usize,
    /// Learning rate before the schedule, above 0.
    pub lr: f64,
    /// Momentum, in `[0, 1)`. The velocity starts at zero in every local run.
    #[serde(default)]
    pub momentum: f64,
    /// Nesterov's form of momentum; needs `momentum` above 0.
    #[serde(default)]
    pub nesterov: bool,
    /// Factor of the weight added to its gradient, at least 0.
    #[serde(default)]
    pub weight_decay: f64,
    /// Largest norm of the whole gradient, above 0; no clipping where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Rounds of linear warm-up: round `t` of the first `w` has its rate multiplied by `t / w` (Goyal et al.,
    /// "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677). The schedule's clock runs meanwhile.
    #[serde(default)]
    pub warmup_rounds: u64,
    /// The learning rate over rounds.
    #[serde(default)]
    pub schedule: ScheduleConfig,
}

/// Which local rule a client follows: `"sgd"`, or a table such as `{ proximal = { mu = 0.1 } }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RuleConfig {
    /// Plain stochastic gradient descent, [`LocalSgd`].
    #[default]
    Sgd,
    /// FedProx, [`LocalProximal`].
    Proximal(ProximalConfig),
    /// SCAFFOLD's client half, [`LocalScaffold`].
    Scaffold(ScaffoldRuleConfig),
    /// FedDyn's client half, [`LocalFedDyn`].
    #[serde(rename = "feddyn")]
    FedDyn(FedDynRuleConfig),
    /// FedGen's client half, [`LocalFedGen`].
    #[serde(rename = "fedgen")]
    FedGen(FedGenRuleConfig),
    /// FedNTD, [`LocalNtd`].
    Ntd(NtdConfig),
    /// MOON, [`LocalMoon`].
    Moon(MoonConfig),
    /// FeDepth, [`LocalDepthwise`].
    Depthwise(DepthwiseConfig),
    /// HeteroFL, [`LocalHeteroFl`].
    #[serde(rename = "heterofl")]
    HeteroFl(HeteroFlConfig),
    /// SplitMix, [`LocalSplitMix`].
    SplitMix(SplitMixConfig),
    /// DepthFL, [`LocalDepthFl`].
    DepthFl(DepthFlConfig),
    /// InclusiveFL's client half, [`LocalInclusiveFl`].
    InclusiveFl(InclusiveFlRuleConfig),
}

impl RuleConfig {
    /// The numbers of FedDyn's client half, where the rule has it.
    pub fn feddyn(&self) -> Option<&FedDynRuleConfig> {
        match self {
            Self::FedDyn(config) => Some(config),
            Self::DepthFl(config) => config.feddyn.as_ref(),
            _ => None,
        }
    }
}

/// Checked settings of local training, shared by all clients of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalTraining {
    config: LocalTrainingConfig,
    length: Length,
    clients: usize,
}

/// How long a local run lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Epochs(usize),
    Steps(usize),
}

impl LocalTrainingConfig {
    /// Plain SGD: `epochs` passes in batches of `batch_size` at learning rate `lr`, everything else off.
    pub fn sgd(epochs: usize, batch_size: usize, lr: f64) -> Self {
        Self {
            rule: RuleConfig::Sgd,
            sharpness: None,
            personal: None,
            epochs: Some(epochs),
            steps: None,
            batch_size,
            lr,
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            clip_norm: None,
            warmup_rounds: 0,
            schedule: ScheduleConfig::default(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`TrainingConfigError::Invalid`] with the first field that cannot be used.
    pub fn build(self) -> Result<LocalTraining, TrainingConfigError> {
        let length = match (self.epochs, self.steps) {
            (Some(epochs), None) => Length::Epochs(epochs),
            (None, Some(steps)) => Length::Steps(steps),
            (Some(_), Some(steps)) => return Err(invalid("steps", steps, "nothing where `epochs` is set")),
            (None, None) => return Err(invalid("epochs", "missing", "a number, or `steps` instead")),
        };
        check("epochs", self.epochs.unwrap_or(1), |v| v >= 1, "at least 1")?;
        check("steps", self.steps.unwrap_or(1), |v| v >= 1, "at least 1")?;
        check("batch_size", self.batch_size, |v| v >= 1, "at least 1")?;
        check("lr", self.lr, |v| v > 0.0 && v.is_finite(), "a number above 0")?;
        check("momentum", self.momentum, |v| (0.0..1.0).contains(&v), "a number in [0, 1)")?;
        check("nesterov", self.nesterov, |v| !v || self.momentum > 0.0, "false where `momentum` is 0")?;
        check("weight_decay", self.weight_decay, |v| v >= 0.0 && v.is_finite(), "a number of at least 0")?;
        check("clip_norm", self.clip_norm.unwrap_or(1.0), |v| v > 0.0 && v.is_finite(), "a number above 0")?;
        self.check_rule()?;
        self.personal.as_ref().map_or(Ok(()), |personal| personal.check(&self))?;
        match self.schedule {
            ScheduleConfig::Constant {} => {}
            ScheduleConfig::Exponential { decay } => check_decay(decay)?,
            ScheduleConfig::Step { decay, every } => {
                check_decay(decay)?;
                check("schedule.every", every, |v| v >= 1, "at least 1")?;
            }
            ScheduleConfig::Cosine { rounds, floor } => {
                check("schedule.rounds", rounds, |v| v >= 1, "at least 1")?;
                check("schedule.floor", floor, |v| (0.0..=1.0).contains(&v), "a number in [0, 1]")?;
            }
        }
        Ok(LocalTraining { config: self, length, clients: 1 })
    }

    fn check_rule(&self) -> Result<(), TrainingConfigError> {
        let at_least_0 =
            |field, value: f64| check(field, value, |v| v >= 0.0 && v.is_finite(), "a number of at least 0");
        let above_0 = |field, value: f64| check(field, value, |v| v > 0.0 && v.is_finite(), "a number above 0");
        let overshoots = "a number below 1 / `lr`, beyond which steps overshoot";
        match &self.rule {
            RuleConfig::Sgd => {}
            &RuleConfig::Proximal(ProximalConfig { mu }) => {
                at_least_0("rule.proximal.mu", mu)?;
                check("rule.proximal.mu", mu, |mu| mu * self.lr < 1.0, overshoots)?;
            }
            RuleConfig::Scaffold(_) => {
                let expected = "0 with the rule `scaffold`, whose control variates are those of plain steps";
                check("momentum", self.momentum, |momentum| momentum == 0.0, expected)?;
            }
            &RuleConfig::FedDyn(FedDynRuleConfig { alpha }) => {
                above_0("rule.feddyn.alpha", alpha)?;
                check("rule.feddyn.alpha", alpha, |alpha| alpha * self.lr < 1.0, overshoots)?;
            }
            &RuleConfig::FedGen(FedGenRuleConfig { alpha, beta, decay, generated, .. }) => {
                at_least_0("rule.fedgen.alpha", alpha)?;
                at_least_0("rule.fedgen.beta", beta)?;
                check("rule.fedgen.decay", decay, |v| v > 0.0 && v <= 1.0, "a number above 0, at most 1")?;
                check("rule.fedgen.generated", generated, |v| (1..=MOST_GENERATED).contains(&v), "1 to 65,536")?;
            }
            &RuleConfig::Ntd(NtdConfig { beta, tau }) => {
                at_least_0("rule.ntd.beta", beta)?;
                above_0("rule.ntd.tau", tau)?;
            }
            &RuleConfig::Moon(MoonConfig { mu, temperature }) => {
                at_least_0("rule.moon.mu", mu)?;
                above_0("rule.moon.temperature", temperature)?;
            }
            RuleConfig::Depthwise(DepthwiseConfig { memory, mutual, trained_only, resource_weight, .. }) => {
                let expected = "at least one group of clients, each with a number above 0";
                check("rule.depthwise.memory", memory.groups(), |_| memory.is_possible(), expected)?;
                let expected = "false where `memory` is \"machine\", which the server does not know";
                check(
                    "rule.depthwise.trained_only",
                    *trained_only,
                    |v| !v || *memory != MemoryConfig::Machine,
                    expected,
                )?;
                let groups = memory.groups() > 1;
                let expected = "false where `memory` is that of one group, whose clients count the same; or a list of \
                                budgets, or { shares = [0.25, 0.5, 1.0] }";
                check("rule.depthwise.resource_weight", *resource_weight, |v| !v || groups, expected)?;
                above_0("rule.depthwise.mutual", mutual.unwrap_or(1.0))?;
                let both = mutual.is_some() && self.sharpness.is_some();
                let expected = "absent with `sharpness`, which would take two steps of the client's own model for one";
                check("rule.depthwise.mutual", mutual.unwrap_or(0.0), |_| !both, expected)?;
            }
            RuleConfig::HeteroFl(HeteroFlConfig { shares, .. }) => {
                let expected = "at least one share of the channels, each a number above 0, at most 1";
                let possible = !shares.is_empty() && shares.iter().all(|share| *share > 0.0 && *share <= 1.0);
                check("rule.heterofl.shares", shares.len(), |_| possible, expected)?;
            }
            RuleConfig::SplitMix(SplitMixConfig { nets }) => check_counts("rule.split_mix.nets", nets)?,
            RuleConfig::InclusiveFl(InclusiveFlRuleConfig { sizes }) => check_counts("rule.inclusive_fl.sizes", sizes)?,
            RuleConfig::DepthFl(DepthFlConfig { classifiers, ramp, feddyn, .. }) => {
                check_counts("rule.depth_fl.classifiers", classifiers)?;
                check("rule.depth_fl.ramp", *ramp, |v| v >= 1, "at least 1")?;
                if let Some(FedDynRuleConfig { alpha }) = *feddyn {
                    above_0("rule.depth_fl.feddyn.alpha", alpha)?;
                    check("rule.depth_fl.feddyn.alpha", alpha, |alpha| alpha * self.lr < 1.0, overshoots)?;
                }
            }
        }
        match self.sharpness {
            None => Ok(()),
            Some(SharpnessAwareConfig::Sam { rho }) => at_least_0("sharpness.rho", rho),
            Some(SharpnessAwareConfig::Asam { rho, eta }) => {
                at_least_0("sharpness.rho", rho)?;
                at_least_0("sharpness.eta", eta)
            }
        }
    }
}

impl LocalTraining {
    /// The settings that were checked.
    pub fn config(&self) -> &LocalTrainingConfig {
        &self.config
    }

    /// The same settings for one of so many clients: what is shared out among them is shared out by that.
    #[must_use]
    pub fn among(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// Number of clients of the federation; 1 unless [`LocalTraining::among`] says otherwise.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// Shape of a whole batch of inputs `[channels, height, width]`.
    pub fn inputs(&self, [channels, height, width]: [usize; 3]) -> [usize; 4] {
        [self.config.batch_size, channels, height, width]
    }

    /// The mini-batches of one local run. The order of the examples is drawn from `seed`.
    pub fn batches<'a, B: Backend>(&self, data: &'a ClientData, seed: Seed, device: &'a B::Device) -> Batches<'a, B> {
        match self.length {
            Length::Epochs(epochs) => Batches::epochs(data, self.config.batch_size, epochs, seed, device),
            Length::Steps(steps) => Batches::steps(data, self.config.batch_size, steps, seed, device),
        }
    }

    /// Number of batches in an epoch over `data` or, where the run is counted in steps, in a step.
    pub fn batches_per_unit(&self, data: &ClientData) -> usize {
        match self.length {
            Length::Epochs(_) => data.len().div_ceil(self.config.batch_size),
            Length::Steps(_) => 1,
        }
    }

    /// The learning rate of `round`, warm-up and schedule included.
    pub fn learning_rate(&self, round: RoundIndex) -> f64 {
        let warm_up = match self.config.warmup_rounds {
            0 => 1.0,
            rounds => (round.0.max(1) as f64 / rounds as f64).min(1.0),
        };
        self.config.lr * warm_up * self.config.schedule.factor(round)
    }

    /// An optimiser at the start of a run: no velocity.
    pub fn optimiser(&self) -> Sgd {
        let LocalTrainingConfig { momentum, nesterov, weight_decay, clip_norm, .. } = self.config;
        Sgd::new(SgdConfig { momentum, nesterov, weight_decay, clip_norm })
    }

    /// Gradients that a step takes.
    pub(crate) fn passes(&self) -> usize {
        if self.config.sharpness.is_some_and(|sharpness| sharpness.looks()) { 2 } else { 1 }
    }

    /// The configured rule, without state. That of FedGen needs [`LocalTraining::rule_with`], and fails without.
    pub fn rule<B: Backend, M: TrainModel<B> + 'static>(&self) -> Box<dyn LocalRule<B, M>> {
        self.around(match &self.config.rule {
            RuleConfig::Sgd => Box::new(LocalSgd),
            RuleConfig::Proximal(config) => Box::new(LocalProximal::new(*config)),
            RuleConfig::Scaffold(config) => Box::new(LocalScaffold::new(*config)),
            RuleConfig::FedDyn(config) => Box::new(LocalFedDyn::new(*config)),
            RuleConfig::FedGen(_) => Box::new(WithoutGenerator),
            RuleConfig::Ntd(config) => Box::new(LocalNtd::new(*config)),
            RuleConfig::Moon(config) => Box::new(LocalMoon::new(*config)),
            RuleConfig::Depthwise(config) => Box::new(LocalDepthwise::new(config.clone())),
            RuleConfig::HeteroFl(config) => Box::new(LocalHeteroFl::new(config.clone())),
            RuleConfig::SplitMix(_) => Box::new(LocalSplitMix),
            RuleConfig::DepthFl(config) => Box::new(LocalDepthFl::new(config.clone())),
            RuleConfig::InclusiveFl(_) => Box::new(LocalInclusiveFl),
        })
    }

    /// As [`LocalTraining::rule`], with the family of the generator that the server sends.
    pub fn rule_with<B: Backend, M: TrainModel<B> + 'static>(
        &self,
        generator: impl GeneratorFamily<B>,
    ) -> Box<dyn LocalRule<B, M>> {
        match &self.config.rule {
            RuleConfig::FedGen(config) => self.around(Box::new(LocalFedGen::new(*config, generator))),
            _ => self.rule(),
        }
    }

    fn around<B: Backend, M: TrainModel<B> + 'static>(
        &self,
        rule: Box<dyn LocalRule<B, M>>,
    ) -> Box<dyn LocalRule<B, M>> {
        match &self.config.personal {
            Some(personal) => personal.around(rule),
            None => rule,
        }
    }

    /// `rule` with the configured sharpness-aware steps around it, if any. A local rule takes its gradients so, that
    /// every one goes with them.
    pub fn sharpened<G>(&self, rule: G) -> Sharpened<G> {
        Sharpened::new(rule, self.config.sharpness)
    }
}

/// Generated examples of a step.
const MOST_GENERATED: usize = 1 << 16;

/// How many members of an ensemble each group of clients trains.
fn check_counts(field: &'static str, counts: &[usize]) -> Result<(), TrainingConfigError> {
    let possible = !counts.is_empty() && !counts.contains(&0);
    check(field, counts.len(), |_| possible, "at least one number for a group of clients, each at least 1")
}

fn check_decay(decay: f64) -> Result<(), TrainingConfigError> {
    check("schedule.decay", decay, |v| v > 0.0 && v <= 1.0, "a number in (0, 1]")
}

pub(crate) fn check<V: Copy + ToString>(
    field: &'static str,
    value: V,
    is_valid: impl Fn(V) -> bool,
    expected: &'static str,
) -> Result<(), TrainingConfigError> {
    if is_valid(value) { Ok(()) } else { Err(invalid(field, value, expected)) }
}

fn invalid(field: &'static str, value: impl ToString, expected: &'static str) -> TrainingConfigError {
    TrainingConfigError::Invalid { field, value: value.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::{Absent, Bytes, ControlOption, Heads};

    fn by_resources(memory: MemoryConfig) -> RuleConfig {
        RuleConfig::Depthwise(DepthwiseConfig { resource_weight: true, ..DepthwiseConfig::new(memory) })
    }

    fn depthwise(memory: MemoryConfig, mutual: Option<f64>) -> RuleConfig {
        RuleConfig::Depthwise(DepthwiseConfig { mutual, ..DepthwiseConfig::new(memory) })
    }

    fn heterofl(shares: &[f64]) -> RuleConfig {
        RuleConfig::HeteroFl(HeteroFlConfig { shares: shares.to_vec(), masked: true, absent: Absent::LeftOut })
    }

    fn split_mix(nets: &[usize]) -> RuleConfig {
        RuleConfig::SplitMix(SplitMixConfig { nets: nets.to_vec() })
    }

    fn inclusive_fl(sizes: &[usize]) -> RuleConfig {
        RuleConfig::InclusiveFl(InclusiveFlRuleConfig { sizes: sizes.to_vec() })
    }

    fn depth_fl(classifiers: &[usize], ramp: u64) -> RuleConfig {
        RuleConfig::DepthFl(DepthFlConfig { classifiers: classifiers.to_vec(), ramp, distillation: true, feddyn: None })
    }

    fn depth_fl_with_feddyn(alpha: f64) -> RuleConfig {
        let feddyn = Some(FedDynRuleConfig { alpha });
        RuleConfig::DepthFl(DepthFlConfig { classifiers: vec![1], ramp: 1, distillation: true, feddyn })
    }

    fn fedgen(change: impl FnOnce(&mut FedGenRuleConfig)) -> RuleConfig {
        let mut config = FedGenRuleConfig::default();
        change(&mut config);
        RuleConfig::FedGen(config)
    }

    fn valid() -> LocalTrainingConfig {
        LocalTrainingConfig::sgd(1, 10, 0.1)
    }

    #[test]
    fn every_impossible_value_is_refused_by_name() {
        type Change = fn(&mut LocalTrainingConfig);
        let cases: [(&str, Change); 56] = [
            ("epochs", |c| c.epochs = None),
            ("epochs", |c| c.epochs = Some(0)),
            ("steps", |c| c.steps = Some(3)),
            ("steps", |c| (c.epochs, c.steps) = (None, Some(0))),
            ("batch_size", |c| c.batch_size = 0),
            ("lr", |c| c.lr = 0.0),
            ("lr", |c| c.lr = f64::NAN),
            ("lr", |c| c.lr = f64::INFINITY),
            ("momentum", |c| c.momentum = 1.0),
            ("momentum", |c| c.momentum = -0.1),
            ("nesterov", |c| c.nesterov = true),
            ("weight_decay", |c| c.weight_decay = -1.0),
            ("weight_decay", |c| c.weight_decay = f64::NAN),
            ("clip_norm", |c| c.clip_norm = Some(0.0)),
            ("clip_norm", |c| c.clip_norm = Some(f64::INFINITY)),
            ("schedule.decay", |c| c.schedule = ScheduleConfig::Exponential { decay: 0.0 }),
            ("schedule.decay", |c| c.schedule = ScheduleConfig::Exponential { decay: 1.1 }),
            ("schedule.decay", |c| c.schedule = ScheduleConfig::Step { decay: f64::NAN, every: 1 }),
            ("schedule.every", |c| c.schedule = ScheduleConfig::Step { decay: 0.5, every: 0 }),
            ("schedule.rounds", |c| c.schedule = ScheduleConfig::Cosine { rounds: 0, floor: 0.0 }),
            ("schedule.floor", |c| c.schedule = ScheduleConfig::Cosine { rounds: 9, floor: -0.1 }),
            ("rule.proximal.mu", |c| c.rule = RuleConfig::Proximal(ProximalConfig { mu: -0.1 })),
            ("rule.proximal.mu", |c| c.rule = RuleConfig::Proximal(ProximalConfig { mu: 10.0 })),
            ("rule.feddyn.alpha", |c| c.rule = RuleConfig::FedDyn(FedDynRuleConfig { alpha: 0.0 })),
            ("rule.feddyn.alpha", |c| c.rule = RuleConfig::FedDyn(FedDynRuleConfig { alpha: 11.0 })),
            ("rule.depth_fl.feddyn.alpha", |c| c.rule = depth_fl_with_feddyn(0.0)),
            ("rule.depth_fl.feddyn.alpha", |c| c.rule = depth_fl_with_feddyn(11.0)),
            ("rule.fedgen.alpha", |c| c.rule = fedgen(|f| f.alpha = -1.0)),
            ("rule.fedgen.beta", |c| c.rule = fedgen(|f| f.beta = f64::NAN)),
            ("rule.fedgen.decay", |c| c.rule = fedgen(|f| f.decay = 0.0)),
            ("rule.fedgen.generated", |c| c.rule = fedgen(|f| f.generated = 0)),
            ("rule.fedgen.generated", |c| c.rule = fedgen(|f| f.generated = usize::MAX)),
            ("rule.ntd.beta", |c| c.rule = RuleConfig::Ntd(NtdConfig { beta: f64::NAN, tau: 1.0 })),
            ("rule.ntd.tau", |c| c.rule = RuleConfig::Ntd(NtdConfig { beta: 1.0, tau: 0.0 })),
            ("rule.moon.mu", |c| c.rule = RuleConfig::Moon(MoonConfig { mu: -1.0, temperature: 1.0 })),
            ("rule.moon.temperature", |c| c.rule = RuleConfig::Moon(MoonConfig { mu: 1.0, temperature: 0.0 })),
            ("rule.depthwise.memory", |c| c.rule = depthwise(MemoryConfig::Groups(vec![]), None)),
            ("rule.depthwise.memory", |c| c.rule = depthwise(MemoryConfig::Shares(vec![0.5, -1.0]), None)),
            ("rule.heterofl.shares", |c| c.rule = heterofl(&[])),
            ("rule.heterofl.shares", |c| c.rule = heterofl(&[0.5, 1.5])),
            ("rule.split_mix.nets", |c| c.rule = split_mix(&[])),
            ("rule.split_mix.nets", |c| c.rule = split_mix(&[1, 0])),
            ("rule.depth_fl.classifiers", |c| c.rule = depth_fl(&[], 300)),
            ("rule.inclusive_fl.sizes", |c| c.rule = inclusive_fl(&[0])),
            ("rule.depth_fl.ramp", |c| c.rule = depth_fl(&[1], 0)),
            ("rule.depthwise.trained_only", |c| {
                let config = DepthwiseConfig::new(MemoryConfig::Machine);
                c.rule = RuleConfig::Depthwise(DepthwiseConfig { trained_only: true, ..config });
            }),
            ("rule.depthwise.resource_weight", |c| c.rule = by_resources(MemoryConfig::Machine)),
            ("rule.depthwise.resource_weight", |c| c.rule = by_resources(MemoryConfig::Same(Bytes(9)))),
            ("rule.depthwise.resource_weight", |c| c.rule = by_resources(MemoryConfig::Shares(vec![1.0]))),
            ("rule.depthwise.mutual", |c| c.rule = depthwise(MemoryConfig::Same(Bytes(9)), Some(0.0))),
            ("rule.depthwise.mutual", |c| {
                c.rule = depthwise(MemoryConfig::Same(Bytes(9)), Some(1.0));
                c.sharpness = Some(SharpnessAwareConfig::Sam { rho: 0.1 });
            }),
            ("rule", |c| {
                c.rule = depthwise(MemoryConfig::Same(Bytes(9)), None);
                c.personal = Some(PersonalConfig::FedBn(crate::FedBnConfig::default()));
            }),
            ("momentum", |c| (c.rule, c.momentum) = (RuleConfig::Scaffold(ScaffoldRuleConfig::default()), 0.9)),
            ("sharpness.rho", |c| c.sharpness = Some(SharpnessAwareConfig::Sam { rho: -1.0 })),
            ("sharpness.rho", |c| c.sharpness = Some(SharpnessAwareConfig::Asam { rho: f64::NAN, eta: 0.0 })),
            ("sharpness.eta", |c| c.sharpness = Some(SharpnessAwareConfig::Asam { rho: 0.1, eta: -0.1 })),
        ];
        assert!(valid().build().is_ok());
        for (name, change) in cases {
            let mut config = valid();
            change(&mut config);
            let message = config.build().unwrap_err().to_string();
            assert!(message.starts_with(&format!("`{name}` is ")) && message.contains("expected"), "{name}: {message}");
        }
    }

    #[test]
    fn toml_tables_round_trip_and_unknown_fields_are_refused() {
        let text = "steps = 5\nbatch_size = 8\nlr = 0.1\nschedule = { kind = \"cosine\", rounds = 10 }";
        let config: LocalTrainingConfig = toml::from_str(text).unwrap();
        assert_eq!((config.rule.clone(), config.steps, config.epochs), (RuleConfig::Sgd, Some(5), None));
        assert_eq!(config.schedule, ScheduleConfig::Cosine { rounds: 10, floor: 0.0 });
        assert_eq!(toml::from_str::<LocalTrainingConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        for wrong in [
            "epochs = 1\nbatch_size = 8\nlr = 0.1\nmomentums = 0.9",
            "epochs = 1\nbatch_size = 8\nlr = 0.1\nrule = \"sdg\"",
            "epochs = 1\nbatch_size = 8\nlr = 0.1\nschedule = { kind = \"constant\", decay = 0.9 }",
            "epochs = 1\nbatch_size = 8\nlr = 0.1\nschedule = { kind = \"exponential\", decay = 0.9, every = 2 }",
            "epochs = 1\nlr = 0.1",
        ] {
            assert!(toml::from_str::<LocalTrainingConfig>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_rule_has_its_form_in_toml() {
        let parse = |text: &str| {
            toml::from_str::<LocalTrainingConfig>(&format!("epochs = 1\nbatch_size = 8\nlr = 0.1\n{text}"))
        };
        let scaffold = |option| RuleConfig::Scaffold(ScaffoldRuleConfig { option });
        let depthwise = |mutual| depthwise(MemoryConfig::Same(Bytes(64 << 20)), mutual);
        for (text, rule) in [
            ("\"sgd\"", RuleConfig::Sgd),
            ("{ proximal = { mu = 0.1 } }", RuleConfig::Proximal(ProximalConfig { mu: 0.1 })),
            ("{ scaffold = {} }", scaffold(ControlOption::Two)),
            ("{ scaffold = { option = \"one\" } }", scaffold(ControlOption::One)),
            ("{ feddyn = {} }", RuleConfig::FedDyn(FedDynRuleConfig { alpha: 0.01 })),
            ("{ fedgen = { epochs = 2 } }", fedgen(|f| f.epochs = 2)),
            ("{ ntd = { tau = 3.0 } }", RuleConfig::Ntd(NtdConfig { beta: 1.0, tau: 3.0 })),
            ("{ moon = { mu = 1.0 } }", RuleConfig::Moon(MoonConfig { mu: 1.0, temperature: 0.5 })),
            ("{ heterofl = { shares = [0.25, 1.0] } }", heterofl(&[0.25, 1.0])),
            ("{ split_mix = { nets = [1, 4] } }", split_mix(&[1, 4])),
            ("{ inclusive_fl = { sizes = [1, 4] } }", inclusive_fl(&[1, 4])),
            ("{ depth_fl = { classifiers = [1, 4] } }", depth_fl(&[1, 4], 300)),
            ("{ depthwise = { memory = \"64 MiB\" } }", depthwise(None)),
            ("{ depthwise = { memory = \"64 MiB\", mutual = 1.0 } }", depthwise(Some(1.0))),
            (
                "{ depthwise = { memory = { shares = [0.5, 1.0] }, resource_weight = true } }",
                by_resources(MemoryConfig::Shares(vec![0.5, 1.0])),
            ),
            (
                "{ depthwise = { memory = \"64 MiB\", heads = \"own\", trained_only = true } }",
                RuleConfig::Depthwise(DepthwiseConfig {
                    heads: Heads::Own,
                    trained_only: true,
                    ..DepthwiseConfig::new(MemoryConfig::Same(Bytes(64 << 20)))
                }),
            ),
        ] {
            let config = parse(&format!("rule = {text}")).unwrap();
            assert_eq!(config.rule, rule);
            assert_eq!(toml::from_str::<LocalTrainingConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        let config = parse("sharpness = { kind = \"asam\" }").unwrap();
        assert_eq!(config.sharpness, Some(SharpnessAwareConfig::Asam { rho: 0.7, eta: 0.2 }));
        for wrong in
            ["rule = \"proximal\"", "rule = { ntd = { mu = 1.0 } }", "sharpness = { kind = \"sam\", eta = 0.1 }"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn warm_up_rises_in_a_line_and_multiplies_the_schedule() {
        let schedule = ScheduleConfig::Exponential { decay: 0.5 };
        let training = LocalTrainingConfig { lr: 8.0, warmup_rounds: 4, schedule, ..valid() }.build().unwrap();
        let rates = [1, 2, 3, 4, 5].map(|round| training.learning_rate(RoundIndex(round)));
        assert_eq!(rates, [2.0, 2.0, 1.5, 1.0, 0.5]);
    }
}
