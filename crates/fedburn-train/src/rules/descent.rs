//! The training loop.

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Mean, Mode};
use fedburn_data::Batch;

use super::TrainModel;
use crate::{Diverged, Sgd};

/// How the gradient of one step is made.
///
/// A rule may compute more than one gradient (and move the model to and fro for it), add to the loss, or wrap another
/// rule and change the gradients that it gives. It returns the model as the step should find it.
///
/// # Examples
///
/// A rule around another:
///
/// ```
/// use burn::tensor::backend::Backend;
/// use fedburn_data::Batch;
/// use fedburn_train::{BatchGradients, CrossEntropy, GradientRule, TrainModel};
///
/// /// Plain gradients, but each batch only half as large.
/// struct FirstHalf;
///
/// impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for FirstHalf {
///     fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
///         let half = batch.labels.dims()[0].div_ceil(2);
///         let batch = Batch { inputs: batch.inputs.narrow(0, 0, half), labels: batch.labels.narrow(0, 0, half) };
///         CrossEntropy.gradients(model, batch)
///     }
/// }
/// ```
pub trait GradientRule<B: Backend, M: TrainModel<B>> {
    /// The gradients of `batch` at `model`, and the loss there.
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M>;
}

impl<B: Backend, M: TrainModel<B>, G: GradientRule<B, M> + ?Sized> GradientRule<B, M> for &mut G {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        (**self).gradients(model, batch)
    }
}

/// What a [`GradientRule`] makes of a batch.
#[derive(Debug)]
pub struct BatchGradients<B: Backend, M> {
    /// The model that the gradients belong to.
    pub model: M,
    /// Gradients by parameter id, on the inner backend.
    pub gradients: GradientsParams,
    /// Mean loss over the batch, `[1]`; left on the device.
    pub loss: Tensor<B, 1>,
}

/// The plain rule: the gradient of the batch's mean cross-entropy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropy;

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for CrossEntropy {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let loss = cross_entropy(&model, batch);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// Mean cross-entropy of a batch in nats, `[1]`, ready for `backward`.
pub fn cross_entropy<B: Backend, M: TrainModel<B>>(model: &M, batch: Batch<B>) -> Tensor<Autodiff<B>, 1> {
    let device = batch.inputs.device();
    let logits = model.forward(Tensor::from_inner(batch.inputs), Mode::Train);
    CrossEntropyLoss::new(None, &device).forward(logits, Tensor::from_inner(batch.labels))
}

/// The outcome of [`descend`].
#[derive(Debug)]
pub struct Descent<M> {
    /// The model after the last step.
    pub model: M,
    /// Mean loss over the examples seen, each measured before its step; the weight is their number.
    pub loss: Mean,
    /// Steps taken.
    pub steps: usize,
}

/// Takes one step of `optimiser` for each batch, with the gradients that `rule` makes of it. The only training loop.
///
/// Losses stay on the device and are read a few hundred at a time, so that a step does not wait for the device.
///
/// # Errors
/// [`Diverged`] with the first step whose loss was NaN or infinite. Parameters that the *last* step spoilt have no loss
/// yet: whoever flattens the model checks them.
pub fn descend<B: Backend, M: TrainModel<B>>(
    mut model: M,
    batches: impl Iterator<Item = Batch<B>>,
    rule: &mut impl GradientRule<B, M>,
    optimiser: &mut Sgd,
    lr: f64,
) -> Result<Descent<M>, Diverged> {
    let mut losses = Losses::new();
    for batch in batches {
        let [examples] = batch.labels.dims();
        let step = rule.gradients(model, batch);
        losses.push(step.loss, examples)?;
        model = optimiser.step::<B, M>(step.model, step.gradients, lr);
    }
    losses.read()?;
    Ok(Descent { model, loss: losses.total, steps: losses.steps })
}

/// Losses of past steps.
struct Losses<B: Backend> {
    /// Not read yet: mean loss, number of examples.
    pending: Vec<(Tensor<B, 1>, usize)>,
    total: Mean,
    /// Steps read.
    steps: usize,
}

impl<B: Backend> Losses<B> {
    /// Large enough that waiting for the device does not matter, small enough to stop a diverged run soon.
    const BLOCK: usize = 256;

    fn new() -> Self {
        Self { pending: Vec::new(), total: Mean::default(), steps: 0 }
    }

    fn push(&mut self, loss: Tensor<B, 1>, examples: usize) -> Result<(), Diverged> {
        self.pending.push((loss, examples));
        if self.pending.len() < Self::BLOCK { Ok(()) } else { self.read() }
    }

    fn read(&mut self) -> Result<(), Diverged> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (losses, counts): (Vec<_>, Vec<_>) = self.pending.drain(..).unzip();
        for (loss, examples) in Tensor::cat(losses, 0).into_data().iter::<f64>().zip(counts) {
            if !loss.is_finite() {
                return Err(Diverged { step: self.steps });
            }
            self.total.merge(Mean::new(loss, examples as f64));
            self.steps += 1;
        }
        Ok(())
    }
}
