//! A classifier that can be trained a few layers at a time.

use burn::tensor::{Tensor, backend::Backend};

use crate::{Mode, ParamEntry, ParamSchema, is_below};

/// A classifier that is a stem, blocks one after another, and a head that can read what any block makes.
///
/// What goes from block to block has four dimensions, the first of which is the batch: maps
/// `[batch, channels, height, width]`, or tokens `[batch, 1, tokens, width]`.
///
/// # Laws
/// `logits` after every `block` in order after `stem` is [`Classifier::forward`](crate::Classifier::forward), bit for
/// bit. [`Stages`] hold every parameter once. What `logits` must change of the output of a block before the last, it
/// changes by a rule without parameters.
pub trait Staged<B: Backend> {
    /// The parts, for inputs `[batch, channels, height, width]`.
    fn stages(&self, inputs: [usize; 4]) -> Stages;

    /// What the first block sees of `inputs` `[batch, channels, height, width]`.
    fn stem(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4>;

    /// What the block `index`, from 0, makes of what comes before it.
    ///
    /// # Panics
    /// Where there is no such block or `hidden` is not of the shape that it sees.
    fn block(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4>;

    /// Class scores (logits) `[batch, classes]` of what any block makes.
    fn logits(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2>;

    /// Class scores `[batch, classes]` of what the block `index` makes, by a classifier of that block's own; `None`, the
    /// default, where it has none.
    fn exit(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Option<Tensor<B, 2>> {
        let _ = (index, hidden, mode);
        None
    }
}

/// The parts of a [`Staged`] model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    /// Before the first block.
    pub stem: Stage,
    /// From input to output, at least one.
    pub blocks: Vec<Stage>,
    /// After any block.
    pub head: Stage,
    /// Each block's own classifier; none where blocks have none.
    pub exits: Vec<Stage>,
    /// Numbers that the backend works on for itself while a batch is trained on, and may keep from step to step: what
    /// kernels pack. As far as is known.
    pub workspace: usize,
}

/// One part of a [`Staged`] model: what it holds, and what training it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Paths of its layers, each with all that is below it.
    pub paths: Vec<String>,
    /// Shapes of what one example leaves for the backward pass, in the order in which it is made.
    pub kept: Vec<Vec<usize>>,
    /// Shapes of what is in hand of one example at most while this part is at work, forward or backward, besides what it
    /// and those before it leave.
    pub in_hand: Vec<Vec<usize>>,
    /// Whether what goes out has the shape of what comes in, so that inputs can go past it.
    pub keeps_shape: bool,
}

impl Stage {
    /// Whether the parameter at `path` is one of its own.
    pub fn holds(&self, path: &str) -> bool {
        is_below(path, &self.paths)
    }

    /// Number of its values in a model of `schema`.
    pub fn parameters(&self, schema: &ParamSchema) -> usize {
        schema.entries().iter().filter(|entry| self.holds(&entry.path)).map(ParamEntry::len).sum()
    }

    /// Numbers that one example leaves for the backward pass.
    pub fn activations(&self) -> usize {
        numbers(&self.kept)
    }

    /// Numbers of one example in hand besides.
    pub fn in_hand(&self) -> usize {
        numbers(&self.in_hand)
    }
}

fn numbers(shapes: &[Vec<usize>]) -> usize {
    shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()
}
