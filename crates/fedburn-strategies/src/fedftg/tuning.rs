//! A round's fine-tuning: the generator and the student in turn.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{ElementConversion, Tensor, backend::Backend};
use fedburn_core::{
    Classifier, Generator, GeneratorFamily, Mean, Metrics, Mode, ModelFamily, ParamVector, Round, SchemaError, Seed,
    UpdateSet, flat_gradients, flatten, load_frozen, load_to_train,
};

use super::{Ensemble, FedFtg, FedFtgConfig, FedFtgForm, LabelSampling};
use crate::adam::Adam;
use crate::class_counts::ClassCounts;
use crate::generated::{Batch, Made};
use crate::network::blank;
use crate::teachers::{Taught, Teachers};

/// What fine-tuning makes of a round.
pub(super) struct Tuned<B: Backend> {
    pub global: ParamVector<B>,
    pub made: Made<B>,
}

/// The slope of the generator's loss, `[num_values]`, and the loss, `[1]`, against the clients of `group`. `student` is
/// frozen, `network` the generator.
///
/// The scores' own slopes come first; each network is then followed back alone, so that one pass at a time is in memory.
fn slope<B: Backend, F: ModelFamily<B>, N: Generator<Autodiff<B>> + AutodiffModule<Autodiff<B>>>(
    config: &FedFtgConfig,
    teachers: &mut Teachers<'_, B, F>,
    student: &F::TrainModel,
    network: &N,
    batch: &Batch<B>,
    group: Range<usize>,
) -> Result<(Tensor<B, 1>, Tensor<B, 1>), SchemaError> {
    let lift = |t: &Tensor<B, 2>| Tensor::<Autodiff<B>, 2>::from_inner(t.clone());
    let (z, y) = (lift(&batch.z), lift(&batch.y));
    let made = network.forward(z.clone(), y.clone(), Mode::Train);
    let x = made.clone().inner();
    let unfollowed = || Tensor::from_inner(x.clone());
    let leaf = |scores: Tensor<Autodiff<B>, 2>| Tensor::from_inner(scores.inner()).require_grad();

    let s = leaf(student.forward(unfollowed(), Mode::Evaluate));
    let taught = teachers.taught(group.clone(), &batch.weights, &x)?.into_iter();
    let taught: Vec<_> = taught.map(|t| Taught { scores: leaf(t.scores), ..t }).collect();
    let pictures = unfollowed().require_grad();
    let share = match config.form {
        FedFtgForm::Paper => 1.0,
        FedFtgForm::Code => 1.0 / teachers.len() as f64,
    };
    let loss = config.generator_loss(&s, &taught, &y, &pictures, &z, share);
    let value = loss.clone().inner();
    let slopes = loss.backward();

    let mut total = pictures.grad(&slopes).unwrap_or_else(|| x.zeros_like());
    let mut follow = |scores: Tensor<Autodiff<B>, 2>, slope: Tensor<B, 2>, x: &Tensor<Autodiff<B>, 4>| {
        let slopes = (scores * Tensor::from_inner(slope)).sum().backward();
        if let Some(slope) = x.grad(&slopes) {
            total = total.clone() + slope;
        }
    };
    if let Some(slope) = s.grad(&slopes) {
        let x = unfollowed().require_grad();
        follow(student.forward(x.clone(), Mode::Evaluate), slope, &x);
    }
    for (k, taught) in group.zip(&taught) {
        if let Some(slope) = taught.scores.grad(&slopes) {
            let x = unfollowed().require_grad();
            follow(teachers.scores(k, x.clone())?, slope, &x);
        }
    }
    let gradients = (made * Tensor::from_inner(total)).sum().backward();
    Ok((flat_gradients(network, &GradientsParams::from_grads(gradients, network)), value))
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedFtg<B, F, G> {
    /// The fine-tuned vector and what outlives the round; adds figures to `metrics`. `None` where there is nothing to
    /// learn from or a number stopped being finite.
    pub(super) fn tune(
        &self,
        round: &Round<'_, B>,
        start: &ParamVector<B>,
        updates: &UpdateSet<B>,
        metrics: &mut Metrics,
    ) -> Result<Option<Tuned<B>>, SchemaError> {
        let (config, device) = (&self.config, start.device());
        let counts = ClassCounts::of(updates.iter(), self.generator.classes());
        metrics.add("fedftg_silent", Mean::new(counts.silent() as f64, 1.0));
        let examples = config.iterations * config.batch_size;
        let labels = match config.label_sampling {
            LabelSampling::Customised => counts.labels(examples, round.seed.index(LABELS)),
            LabelSampling::Uniform => counts.uniform_labels(examples, round.seed.index(LABELS)),
        };
        let Some(labels) = labels else { return Ok(None) };
        let classes = self.generator.classes();
        let models: Vec<&ParamVector<B>> = counts.told().map(|k| &updates.iter().as_slice()[k].local.params).collect();
        let weights = match config.ensemble {
            Ensemble::ClassLevel => counts.ensemble_weights(),
            Ensemble::Uniform => vec![vec![1.0 / models.len() as f32; classes]; models.len()],
        };
        let (mut generator, adam) = match &self.made {
            Some(made) => (made.generator.clone(), made.adam.clone()),
            None => (flatten(&self.generator.init(round.seed.index(GENERATOR), &device))?, None),
        };
        let mut adam = adam.unwrap_or_else(|| Adam::new(&generator));
        let (student_lr, generator_lr) =
            (config.student_lr * config.decay(round.index), config.generator_lr * config.decay(round.index));
        let mut teachers = Teachers::new(&self.family, models, config.teachers_resident, device.clone());
        let mut student = load_to_train(blank(&self.family, &device), start)?;
        let mut asked = blank(&self.family, &device);
        let mut network = G::TrainModel::from_inner(self.generator.init(Seed::new(0), &device));
        let mut losses = [Tensor::<B, 1>::zeros([1], &device), Tensor::zeros([1], &device)];
        // The clients of one step of the generator.
        let group = match config.form {
            FedFtgForm::Paper => teachers.len(),
            FedFtgForm::Code => 1,
        };
        let groups: Vec<Range<usize>> = (0..teachers.len()).step_by(group).map(|k| k..k + group).collect();
        for (iteration, labels) in labels.chunks_exact(config.batch_size).enumerate() {
            let seed = round.seed.index(NOISE).index(iteration as u64);
            let batch = Batch::new(labels, classes, &weights, self.generator.noise(), seed, &device);
            asked = load_frozen(asked, &flatten(&student.valid())?)?;
            for group in (0..config.generator_steps).flat_map(|_| groups.clone()) {
                network = load_to_train(network, &generator)?;
                let (gradient, loss) = slope::<B, F, _>(config, &mut teachers, &asked, &network, &batch, group)?;
                // With the running statistics that this pass has moved.
                let now = flatten(&network.valid())?;
                generator = adam.step(&now, gradient, generator_lr)?;
                losses[0] = losses[0].clone() + loss;
            }
            network = load_to_train(network, &generator)?;
            let x = network.valid().forward(batch.z, batch.y, Mode::Evaluate);
            let taught = teachers.taught(0..teachers.len(), &batch.weights, &x)?;
            for _ in 0..config.student_steps {
                let loss = config.student_loss(&student.forward(Tensor::from_inner(x.clone()), Mode::Train), &taught);
                losses[1] = losses[1].clone() + loss.clone().inner();
                let gradients = GradientsParams::from_grads(loss.backward(), &student);
                student = student.map(&mut Descent { gradients, lr: student_lr, weight_decay: config.weight_decay });
            }
        }
        let tuned = flatten(&student.valid())?;
        let steps = [config.generator_steps * groups.len(), config.student_steps].map(|n| n * config.iterations);
        for ((name, loss), steps) in ["fedftg_generator_loss", "fedftg_student_loss"].into_iter().zip(losses).zip(steps)
        {
            let sum: f64 = loss.into_scalar().elem();
            if !sum.is_finite() {
                return Ok(None);
            }
            metrics.add(name, Mean::from_sum(sum, steps as f64));
        }
        let finite = tuned.is_finite() && generator.is_finite();
        let made = Made { generator, adam: config.keep_moments.then_some(adam) };
        Ok(finite.then_some(Tuned { global: tuned, made }))
    }
}

/// Where a round's random numbers come from, each below the round's own seed.
const LABELS: u64 = 0;
const GENERATOR: u64 = 1;
const NOISE: u64 = 2;

/// A step of plain gradient descent, `w <- w - lr (g + d w)`; what has no gradient is left alone.
struct Descent {
    gradients: GradientsParams,
    lr: f64,
    /// `d`.
    weight_decay: f64,
}

impl<B: Backend> ModuleMapper<Autodiff<B>> for Descent {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        let Some(gradient) = self.gradients.remove::<B, D>(param.id) else { return param };
        param.map(|weight| {
            let weight = weight.inner();
            let change = gradient + weight.clone() * self.weight_decay;
            Tensor::from_inner(weight - change * self.lr).require_grad()
        })
    }
}
