//! What a training step needs of memory.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::backend::Backend;
use fedburn_core::{Classifier, ParamSchema, SchemaError, Stage, Stages, schema_of};

use super::Bytes;
use crate::{Heads, LocalTraining, RuleConfig};

/// What a step of training needs at most when a range of a model's blocks is trained and the rest is frozen:
///
/// ```text
/// u [ P + s P_trained + K + b X + max(F, T, P) ] + 4096 (N + N_trained) bytes
/// F = b max over the stem and what is frozen before the trained blocks of W_k; nothing where the stem is trained
/// T = max over the trained parts k, in order, of b (A_1 + ... + A_k + W_k) + G_k
/// ```
///
/// | symbol | meaning |
/// |---|---|
/// | `P`, `P_trained` | parameters of the model; of the trained blocks, the head, and the stem where it is trained too |
/// | `A_k` | numbers that one example leaves in part `k` for the backward pass |
/// | `W_k` | numbers of one example in hand besides, while part `k` is at work |
/// | `G_k` | parameters of part `k` and the trained ones after it: when the backward pass is there, these have gradients |
/// | `X` | numbers of an example's input |
/// | `K` | numbers that kernels work on for themselves |
/// | `N`, `N_trained` | tensors of parameters, each of which needs some memory to be kept account of |
/// | `b` | examples in a batch |
/// | `s` | vectors that the optimiser keeps for what is trained: momentum, and the weights that a sharpness-aware step left |
/// | `u` | bytes of a number |
///
/// At the end, the vector that is sent takes `P` besides the model. The received one comes on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepMemory {
    pub(super) stem: Size,
    pub(super) blocks: Vec<Size>,
    pub(super) head: Size,
    /// Blocks' own classifiers, where the model has them.
    pub(super) exits: Vec<Size>,
    /// Whether parts of the model train these instead of the head.
    pub(super) own_heads: bool,
    pub(super) batch: u64,
    /// `X`.
    pub(super) input: u64,
    /// `K`.
    pub(super) workspace: u64,
    /// `s`.
    pub(super) slots: u64,
    /// `u`.
    pub(super) number: u64,
}

/// One part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub parameters: u64,
    pub tensors: u64,
    /// `A_k`.
    pub activations: u64,
    /// `W_k`.
    pub in_hand: u64,
    pub keeps_shape: bool,
}

impl Size {
    fn of(stage: &Stage, schema: &ParamSchema) -> Self {
        Self {
            parameters: stage.parameters(schema) as u64,
            tensors: schema.entries().iter().filter(|entry| stage.holds(&entry.path)).count() as u64,
            activations: stage.activations() as u64,
            in_hand: stage.in_hand() as u64,
            keeps_shape: stage.keeps_shape,
        }
    }
}

impl StepMemory {
    /// Bytes for the place of a tensor of parameters in the module, and as many for its steps in the graph and its
    /// gradient's place in a table: what burn 0.21 takes for the layers of this workspace's models.
    const TENSOR: u64 = 4096;

    /// For a model of these parts and this schema, inputs of shape `inputs` ([`LocalTraining::inputs`]), the optimiser of
    /// `training`, and numbers of so many bytes.
    pub fn new(
        stages: &Stages,
        schema: &ParamSchema,
        [batch, channels, height, width]: [usize; 4],
        training: &LocalTraining,
        bytes_per_number: usize,
    ) -> Self {
        let config = training.config();
        Self {
            stem: Size::of(&stages.stem, schema),
            blocks: stages.blocks.iter().map(|stage| Size::of(stage, schema)).collect(),
            head: Size::of(&stages.head, schema),
            exits: stages.exits.iter().map(|stage| Size::of(stage, schema)).collect(),
            own_heads: matches!(&config.rule, RuleConfig::Depthwise(rule) if rule.heads == Heads::Own),
            batch: batch as u64,
            input: (channels * height * width) as u64,
            workspace: stages.workspace as u64,
            slots: u64::from(config.momentum > 0.0) + u64::from(config.sharpness.is_some()),
            number: bytes_per_number as u64,
        }
    }

    /// The same for a model as it is.
    ///
    /// # Errors
    /// [`SchemaError`] where the model makes no schema; `None` where it is not made of blocks.
    pub fn of<B: Backend, M: Module<B> + Classifier<B>>(
        model: &M,
        input: [usize; 3],
        training: &LocalTraining,
    ) -> Result<Option<Self>, SchemaError> {
        let (inputs, schema) = (training.inputs(input), schema_of::<B, M>(model)?);
        let stages = model.staged().map(|staged| staged.stages(inputs));
        Ok(stages.map(|stages| Self::new(&stages, &schema, inputs, training, size_of::<B::FloatElem>())))
    }

    /// Number of the model's blocks.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Number of the model's parameters.
    pub fn parameters(&self) -> u64 {
        self.all().map(|size| size.parameters).sum()
    }

    /// What a step takes at most that trains `blocks`, the head, and the stem where `stem`.
    pub fn step(&self, blocks: Range<usize>, stem: bool) -> Bytes {
        // Where the stem is trained, inputs go past all blocks before these.
        let frozen = if stem { &[] } else { &self.blocks[..blocks.start] };
        let frozen = (!stem).then_some(&self.stem).into_iter().chain(frozen);
        let frozen = frozen.map(|size| self.batch.saturating_mul(size.in_hand)).max().unwrap_or(0);
        let sum = |f: fn(&Size) -> u64| self.trained(blocks.clone(), stem).map(f).sum::<u64>();
        let trained = sum(|size| size.parameters);
        let tensors = self.all().map(|size| size.tensors).sum::<u64>() + sum(|size| size.tensors);
        // At the end there is the model and the vector that is sent.
        let (mut left, mut gradients, mut most) = (0, trained, frozen.max(self.parameters()));
        for size in self.trained(blocks.clone(), stem) {
            left += size.activations;
            most = most.max(self.batch.saturating_mul(left + size.in_hand).saturating_add(gradients));
            gradients -= size.parameters;
        }
        let lasting = self.parameters() + self.slots * trained + self.workspace + self.batch * self.input;
        let bytes = lasting.saturating_add(most).saturating_mul(self.number);
        Bytes(bytes.saturating_add(Self::TENSOR * tensors))
    }

    /// What lasts from the forward to the backward pass, with gradients: `u [P + (1 + s) P_trained + b A]` with `A` what one
    /// example leaves in all trained parts.
    pub fn lasting(&self, blocks: Range<usize>, stem: bool) -> Bytes {
        let sum = |f: fn(&Size) -> u64| self.trained(blocks.clone(), stem).map(f).sum::<u64>();
        let (trained, activations) = (sum(|size| size.parameters), sum(|size| size.activations));
        let numbers = self.parameters() + (1 + self.slots) * trained + self.batch.saturating_mul(activations);
        Bytes(numbers.saturating_mul(self.number))
    }

    /// The block whose own classifier is trained where `blocks` are, and the stem where `stem`; `None` for the model's.
    pub(super) fn exit(&self, blocks: &Range<usize>, stem: bool) -> Option<usize> {
        let last = blocks.end.checked_sub(1).filter(|last| self.own_heads && *last < self.exits.len());
        last.filter(|_| !stem || *blocks != (0..self.num_blocks()))
    }

    /// The trained parts in the order in which inputs meet them.
    fn trained(&self, blocks: Range<usize>, stem: bool) -> impl Iterator<Item = &Size> {
        let head = self.exit(&blocks, stem).map_or(&self.head, |block| &self.exits[block]);
        stem.then_some(&self.stem).into_iter().chain(&self.blocks[blocks]).chain([head])
    }

    /// What a step takes that trains the whole model.
    pub fn whole(&self) -> Bytes {
        self.step(0..self.blocks.len(), true)
    }

    fn all(&self) -> impl Iterator<Item = &Size> {
        self.blocks.iter().chain([&self.stem, &self.head]).chain(&self.exits)
    }
}
