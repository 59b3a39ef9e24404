//! What a training step needs of memory.

use std::ops::Range;

use fedburn_core::{ParamSchema, Stage, Stages};

use super::Bytes;
use crate::LocalTraining;

/// What a step of training needs when a range of a model's blocks is trained and the rest is frozen:
///
/// ```text
/// u [ P_frozen + (2 + s) P_trained + b A_trained ]
/// ```
///
/// | symbol | meaning |
/// |---|---|
/// | `P_trained` | parameters of the blocks, of the head, and of the stem where it is trained too; each has a gradient |
/// | `P_frozen` | all others: the model stays in memory |
/// | `A_trained` | numbers that one example leaves for the backward pass in what is trained |
/// | `b` | examples in a batch |
/// | `s` | vectors that the optimiser keeps for what is trained: momentum, and the weights that a sharpness-aware step left |
/// | `u` | bytes of a number |
///
/// What is frozen before the blocks leaves nothing: of its maps two are there at a time, and not when the trained ones
/// are. Received and sent vectors, the batch and buffers inside kernels are left out.
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
    pub keeps_shape: bool,
}

impl Size {
    fn of(stage: &Stage, schema: &ParamSchema) -> Self {
        let (parameters, activations) = (stage.parameters(schema) as u64, stage.activations() as u64);
        Self { parameters, activations, keeps_shape: stage.keeps_shape }
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
        let trained = self.blocks[blocks].iter().chain([&self.head]).chain(stem.then_some(&self.stem));
        let (parameters, activations) =
            trained.fold((0, 0), |(p, a), size| (p + size.parameters, a + size.activations));
        let frozen = self.parameters() - parameters;
        let numbers = frozen + (2 + self.slots) * parameters + self.batch.saturating_mul(activations);
        Bytes(numbers.saturating_mul(self.number))
    }

    /// What a step takes that trains the whole model.
    pub fn whole(&self) -> Bytes {
        self.step(0..self.blocks.len(), true)
    }

    fn all(&self) -> impl Iterator<Item = &Size> {
        self.blocks.iter().chain([&self.stem, &self.head])
    }
}
