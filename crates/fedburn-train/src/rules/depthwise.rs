//! FeDepth: a model trained part by part, each as large as the client's memory allows.
//!
//! Kai Zhang, Yutong Dai, Hongyi Wang, Eric Xing, Xun Chen, Lichao Sun, "Memory-adaptive Depth-wise Heterogenous
//! Federated Learning", 2023, arXiv:2303.04887; published code taokz/FeDepth.
//!
//! ```text
//! receive x_t
//! for each part j of the cut, from input to output:
//!     trained: the blocks of part j, the head, the stem too if j is the first; everything else is frozen
//!     the run's epochs of SGD on CE(head(skip_j(z_j)), y)          z_j: output of part j, behind it nothing is evaluated
//! send the whole model
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `skip_j` | what [`Staged::logits`](fedburn_core::Staged::logits) does to fit the output of an early block to the head |
//! | cut | [`crate::Cut`] of the model for the client's budget |
//!
//! **Too little memory for the first blocks**: where inputs can go past them they do, and the stem is trained with the
//! first part; they are sent as received. Too little for any block: the client cannot train and says so.
//!
//! **Memory for two models** and [`DepthwiseConfig::mutual`] `lambda`: the client trains the whole model beside one of its
//! own, each a teacher of the other (Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv:1706.00384),
//!
//! ```text
//! loss_0 = CE(f_0(x), y) + lambda KL(softmax f_1(x) || softmax f_0(x))        f_0: global, sent; f_1 as it is
//! loss_1 = CE(f_1(x), y) + lambda KL(softmax f_0(x) || softmax f_1(x))        f_1: own, kept;    f_0 as it is
//! ```
//!
//! and both take a step for each batch. State: the own model, where there is one; a client without begins with the
//! received one. The server averages, as for plain SGD.
//!
//! **m-FeDepth** ([`Heads::Own`]): a part is trained with a classifier of its last block's own, the model's head by clients
//! alone whose memory is enough for the whole model. With [`DepthwiseConfig::trained_only`] each tensor is the mean over
//! the clients that hold it, weights `n_k`; what nobody holds keeps its value.
//!
//! With [`DepthwiseConfig::resource_weight`] a client of budget group `g`, from 0, has the weight `n_k (g + 1)`.
//!
//! What is frozen is evaluated outside of automatic differentiation, leaves nothing behind and is not stepped. Departures
//! from the published code: momentum begins at zero in each part, where the code's one optimiser goes on to move, by
//! momentum and weight decay, what was trained before; the stem of a transformer is trained in the first part alone, as a
//! gradient through frozen blocks would need what they do not leave.

use std::num::NonZeroU64;

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{
    Classifier, ClientId, Mean, Mode, RoundIndex, SideInfo, SliceName, Staged, Stages, StateDict, StateError,
    SubModels, TrainError, flatten, load_to_train, schema_of,
};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::flat::only;
use super::ntd::divergence;
use super::{BatchGradients, GradientRule, Kept, LocalRule, LocalRun, TrainModel, Trained, descend};
use crate::{Bytes, Diverged, MemoryConfig, Part, PlannedMemory, Sgd, StepMemory};

/// The numbers of [`LocalDepthwise`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthwiseConfig {
    /// How much memory each client has.
    pub memory: MemoryConfig,
    /// Weight `lambda`, above 0, of what two models in training teach each other, at clients with memory for both; where
    /// absent, such clients train one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual: Option<f64>,
    /// Which classifier a part of the model is trained with.
    #[serde(default)]
    pub heads: Heads,
    /// Whether clients hold, and the server averages, only what they train and what inputs go through on the way: neither
    /// blocks that inputs go past nor classifiers of other clients.
    #[serde(default)]
    pub trained_only: bool,
    /// Whether a client counts more the more memory its group has: once in the first of the groups as they are written,
    /// twice in the second, and so on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resource_weight: bool,
}

/// The classifier behind a part of the model while that is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heads {
    /// The model's head, which the part's output is fitted to: FeDepth.
    #[default]
    Shared,
    /// One of the last block's own: m-FeDepth. The model's head is trained by clients with memory for the whole model.
    Own,
}

impl DepthwiseConfig {
    /// Clients with so much memory, the rest as by default.
    pub fn new(memory: MemoryConfig) -> Self {
        Self { memory, mutual: None, heads: Heads::Shared, trained_only: false, resource_weight: false }
    }

    /// The paths of what `group` holds of a model of these stages; `None` for all of it.
    pub(crate) fn held(&self, group: usize, stages: &Stages, memory: &StepMemory) -> Option<Vec<String>> {
        let budget = self.memory.budget(group, memory.whole());
        let cut = memory.cut(budget).ok().filter(|_| self.trained_only)?;
        let blocks = cut.route.iter().map(|&block| &stages.blocks[block]);
        let heads = cut.parts.iter().map(|part| part.exit.map_or(&stages.head, |block| &stages.exits[block]));
        let held = [&stages.stem].into_iter().chain(blocks).chain(heads);
        Some(held.flat_map(|stage| stage.paths.iter().cloned()).collect())
    }

    /// What a group's part of the model is called.
    pub(crate) fn part(group: usize) -> SliceName {
        format!("memory {group}").into()
    }
}

/// The server's half where it knows of budgets: each client holds what its memory can train, or counts by its group.
#[derive(Clone, Debug)]
pub(crate) struct Budgets {
    pub(crate) config: DepthwiseConfig,
    pub(crate) clients: usize,
    /// The parts that there are; clients of other groups hold the whole model.
    pub(crate) parts: Vec<SliceName>,
}

impl SubModels for Budgets {
    fn held(&self, _round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        let name = DepthwiseConfig::part(self.config.memory.group(client, self.clients));
        self.parts.iter().filter(|part| **part == name).cloned().collect()
    }

    fn times(&self, _round: RoundIndex, client: ClientId) -> NonZeroU64 {
        let group = if self.config.resource_weight { self.config.memory.group(client, self.clients) } else { 0 };
        NonZeroU64::MIN.saturating_add(group as u64)
    }
}

/// Local SGD part by part.
#[derive(Clone, Debug)]
pub struct LocalDepthwise<B: Backend> {
    config: DepthwiseConfig,
    /// `f_1`.
    own: Kept<B>,
}

impl<B: Backend> LocalDepthwise<B> {
    /// The rule of a client that has not taken part yet, with the numbers of `config`, which a
    /// [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: DepthwiseConfig) -> Self {
        Self { config, own: Kept::new("own") }
    }

    /// Trains the model beside the client's own.
    fn train_both<M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        weight: f64,
    ) -> Result<Trained<B, M>, TrainError> {
        let start = self.own.recall_or(&run.task.global).map_err(|e| run.state_error(e))?;
        let own = load_to_train(M::from_inner(model.valid()), &start).map_err(|e| run.schema_error(e))?;
        drop(start);
        let mut rule = Mutual { weight, own: Some(own), optimiser: run.training.optimiser(), lr: run.learning_rate() };
        let trained = run.descend(model, &mut rule)?;
        if let Some(own) = rule.own {
            let own = flatten(&own.valid()).map_err(|e| run.schema_error(e))?;
            if !own.is_finite() {
                return Err(run.diverged(Diverged { step: trained.steps.saturating_sub(1) }));
            }
            self.own.keep(own);
        }
        Ok(trained)
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalDepthwise<B> {
    fn train(&mut self, mut model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let unusable = |reason| TrainError::Unusable { client: run.client, reason };
        let inputs = run.training.inputs(run.data.examples().shape());
        let Some(stages) = model.staged().map(|staged| staged.stages(inputs)) else {
            let reason = "the rule `depthwise` trains block by block, and the model is not made of blocks";
            return Err(unusable(reason.to_owned()));
        };
        let schema = schema_of(&model).map_err(|e| run.schema_error(e))?;
        if self.config.heads == Heads::Own && stages.exits.is_empty() {
            let reason = "`heads` is own, and blocks of the model have none; expected [model] kind = \"with_exits\"";
            return Err(unusable(reason.to_owned()));
        }
        let memory = StepMemory::new(&stages, &schema, inputs, run.training, size_of::<B::FloatElem>());
        let whole = memory.whole();
        let budget = self.config.memory.budget(self.config.memory.group(run.client, run.training.clients()), whole);
        if let Some(weight) = self.config.mutual.filter(|_| budget >= Bytes(whole.0.saturating_mul(2))) {
            let trained = self.train_both(model, run, weight)?;
            if let Some(measured) = run.memory {
                let (bytes, blocks) = (Bytes(2 * whole.0), 0..memory.num_blocks());
                measured.part(Some(PlannedMemory { budget, bytes, blocks }), trained.steps);
            }
            return Ok(trained);
        }
        let cut = memory.cut(budget).map_err(|e| unusable(e.to_string()))?;

        let (mut loss, mut steps, mut accumulation) = (Mean::default(), 0, 0.0);
        for (index, part) in cut.parts.iter().enumerate() {
            let mut rule = run.training.sharpened(PartLoss { route: &cut.route, part });
            let batches = run.training.batches(run.data, run.task.seed.index(index as u64), run.device);
            let (model_of_part, mut optimiser) =
                (only(model, |path| part.trains(&stages, path)), run.training.optimiser());
            let trained = descend(model_of_part, batches, &mut rule, &mut optimiser, run.learning_rate())
                .map_err(|e| run.diverged(Diverged { step: steps + e.step }))?;
            model = trained.model;
            loss.merge(trained.loss);
            steps += trained.steps;
            accumulation += run.accumulation(trained.steps, 0.0);
            if let Some(memory) = run.memory {
                let plan = PlannedMemory { budget, bytes: part.bytes, blocks: part.blocks.clone() };
                memory.part(Some(plan), trained.steps);
            }
        }
        Ok(Trained { model, loss, steps, accumulation, side: SideInfo::default() })
    }

    fn state(&self) -> StateDict {
        self.own.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.own.restore(state)
    }
}

impl Part {
    /// Whether the parameter at `path` is trained with this part.
    fn trains(&self, stages: &Stages, path: &str) -> bool {
        let blocks = &stages.blocks[self.blocks.clone()];
        let head = self.exit.map_or(&stages.head, |block| &stages.exits[block]);
        blocks.iter().chain([head]).chain(self.stem.then_some(&stages.stem)).any(|stage| stage.holds(path))
    }
}

/// Cross-entropy of what the head makes of a part's output.
#[derive(Clone, Copy, Debug)]
struct PartLoss<'a> {
    /// The blocks that inputs go through.
    route: &'a [usize],
    part: &'a Part,
}

impl PartLoss<'_> {
    /// What the part sees, where its stem is not trained: no trace is left.
    fn before<B: Backend>(&self, frozen: &dyn Staged<B>, inputs: Tensor<B, 4>) -> Tensor<B, 4> {
        let earlier = self.route.iter().filter(|block| **block < self.part.blocks.start);
        earlier.fold(frozen.stem(inputs, Mode::Evaluate), |hidden, block| frozen.block(*block, hidden, Mode::Evaluate))
    }

    fn logits<B: Backend, M: TrainModel<B>>(&self, model: &M, inputs: Tensor<B, 4>) -> Tensor<Autodiff<B>, 2> {
        let Some(trained) = model.staged() else { return model.forward(Tensor::from_inner(inputs), Mode::Train) };
        let frozen = (!self.part.stem).then(|| model.valid());
        let hidden = match frozen.as_ref().and_then(|frozen| frozen.staged()) {
            Some(frozen) => Tensor::from_inner(self.before(frozen, inputs)),
            None => trained.stem(Tensor::from_inner(inputs), Mode::Train),
        };
        let made = self.part.blocks.clone().fold(hidden, |hidden, block| trained.block(block, hidden, Mode::Train));
        let exit = self.part.exit.and_then(|block| trained.exit(block, made.clone(), Mode::Train));
        exit.unwrap_or_else(|| trained.logits(made, Mode::Train))
    }
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for PartLoss<'_> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let logits = self.logits(&model, batch.inputs);
        let labels = Tensor::from_inner(batch.labels);
        let loss = CrossEntropyLoss::new(None, &logits.device()).forward(logits, labels);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// A model and the client's own, each taught by labels and by the other; the own one takes its steps here.
struct Mutual<M> {
    weight: f64,
    /// Absent only while a step is taken.
    own: Option<M>,
    optimiser: Sgd,
    lr: f64,
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for Mutual<M> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let logits = |model: &M| model.forward(Tensor::from_inner(batch.inputs.clone()), Mode::Train);
        let (sent, weight) = (logits(&model), self.weight);
        let loss = |student: Tensor<Autodiff<B>, 2>, teacher: Option<Tensor<B, 2>>| {
            let labels = Tensor::from_inner(batch.labels.clone());
            let loss = CrossEntropyLoss::new(None, &student.device()).forward(student.clone(), labels);
            match teacher {
                Some(teacher) => loss + divergence(student, teacher, 1.0).mul_scalar(weight),
                None => loss,
            }
        };
        let mut teacher = None;
        if let Some(own) = self.own.take() {
            let kept = logits(&own);
            teacher = Some(kept.clone().inner());
            let gradients = GradientsParams::from_grads(loss(kept, Some(sent.clone().inner())).backward(), &own);
            self.own = Some(self.optimiser.step::<B, M>(own, gradients, self.lr));
        }
        let loss = loss(sent, teacher);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}
