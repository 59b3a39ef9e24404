//! What a training step needs of memory.

use std::ops::Range;

use fedburn_core::{ParamSchema, Stage, Stages};

use super::Bytes;
use crate::LocalTraining;

/// What a step of training needs when a range of a model's blocks is trained and the rest is frozen:
///
/// ```text
/// u [ P_frozen + (2 + s) P_trained + b max(A, W) ]
/// A = the most, over the trained blocks k, of what blocks up to k, stem and head leave, and W_k in hand
/// W = the most, over the stem and what is frozen before them, of W_k in hand
/// ```
///
/// | symbol | meaning |
/// |---|---|
/// | `P_trained` | parameters of the blocks, of the head, and of the stem where it is trained too; each has a gradient |
/// | `P_frozen` | all others: the model stays in memory |
/// | `W_k` | numbers of an example in hand while block `k` is at work: three times what it leaves last, for a gradient that comes, one that goes, and one in between, or three maps on the way |
/// | `b` | examples in a batch |
/// | `s` | vectors that the optimiser keeps for what is trained: momentum, and the weights that a sharpness-aware step left |
/// | `u` | bytes of a number |
///
/// Received and sent vectors, the batch and what kernels pack for themselves are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepMemory {
    pub(super) stem: Size,
    pub(super) blocks: Vec<Size>,
    pub(super) head: Size,
    pub(super) batch: u64,
    /// `s`.
    pub(super) slots: u64,
    /// `u`.
    pub(super) number: u64,
}

/// One part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub parameters: u64,
    pub activations: u64,
    /// `W_k`.
    pub in_hand: u64,
    pub keeps_shape: bool,
}

impl Size {
    fn of(stage: &Stage, schema: &ParamSchema) -> Self {
        let last = stage.kept.last().map_or(0, |shape| shape.iter().product::<usize>());
        Self {
            parameters: stage.parameters(schema) as u64,
            activations: stage.activations() as u64,
            in_hand: 3 * last as u64,
            keeps_shape: stage.keeps_shape,
        }
    }
}

impl StepMemory {
    /// For a model of these parts and this schema, the batches and the optimiser of `training`, and numbers of so many
    /// bytes.
    pub fn new(stages: &Stages, schema: &ParamSchema, training: &LocalTraining, bytes_per_number: usize) -> Self {
        let config = training.config();
        Self {
            stem: Size::of(&stages.stem, schema),
            blocks: stages.blocks.iter().map(|stage| Size::of(stage, schema)).collect(),
            head: Size::of(&stages.head, schema),
            batch: config.batch_size as u64,
            slots: u64::from(config.momentum > 0.0) + u64::from(config.sharpness.is_some()),
            number: bytes_per_number as u64,
        }
    }

    /// Number of the model's blocks.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Number of the model's parameters.
    pub fn parameters(&self) -> u64 {
        self.all().map(|size| size.parameters).sum()
    }

    /// What a step takes that trains `blocks`, the head, and the stem where `stem`.
    pub fn step(&self, blocks: Range<usize>, stem: bool) -> Bytes {
        // Where the stem is trained, inputs go past all blocks before these.
        let before = if stem { 0..0 } else { 0..blocks.start };
        let before = self.blocks[before].iter().chain([&self.stem]).map(|size| size.in_hand);
        let ends = self.head.activations + if stem { self.stem.activations } else { 0 };
        let left = self.blocks[blocks.clone()].iter().scan(ends, |left, size| {
            *left += size.activations;
            Some(*left + size.in_hand)
        });
        self.bytes(blocks.clone(), stem, before.chain(left).max().unwrap_or(ends))
    }

    /// The part of [`StepMemory::step`] that lasts from the forward to the backward pass.
    pub fn lasting(&self, blocks: Range<usize>, stem: bool) -> Bytes {
        let activations = self.trained(blocks.clone(), stem).map(|size| size.activations).sum();
        self.bytes(blocks, stem, activations)
    }

    /// So many numbers for each example, and those of parameters and optimiser.
    fn bytes(&self, blocks: Range<usize>, stem: bool, each: u64) -> Bytes {
        let trained: u64 = self.trained(blocks, stem).map(|size| size.parameters).sum();
        let numbers = self.parameters() + (1 + self.slots) * trained + self.batch.saturating_mul(each);
        Bytes(numbers.saturating_mul(self.number))
    }

    fn trained(&self, blocks: Range<usize>, stem: bool) -> impl Iterator<Item = &Size> {
        self.blocks[blocks].iter().chain([&self.head]).chain(stem.then_some(&self.stem))
    }

    /// What a step takes that trains the whole model.
    pub fn whole(&self) -> Bytes {
        self.step(0..self.blocks.len(), true)
    }

    fn all(&self) -> impl Iterator<Item = &Size> {
        self.blocks.iter().chain([&self.stem, &self.head])
    }
}
