//! FedFTG: the global model of any strategy, fine-tuned on the server without data.
//!
//! Lin Zhang, Li Shen, Liang Ding, Dacheng Tao, Ling-Yu Duan: "Fine-tuning Global Model via Data-Free Knowledge
//! Distillation for Non-IID Federated Learning", CVPR 2022, arXiv 2203.09249; published code ZhangLin-PKU/FedFTG.
//!
//! ```text
//! x      the base strategy's own aggregate
//! p(y) = SUM_k n_k^y / SUM_{k,c} n_k^c         customised label sampling
//! a_k^y = n_k^y / SUM_i n_i^y                  class-level ensemble
//! D <- x;  I Q labels in proportion of p, shuffled
//! I times: y the next Q labels, z ~ N(0, 1)
//!     I_g times: the generator G one step towards   max  L_md - lambda_cls L_cls - lambda_dis L_dis
//!     I_d times: the student D one step towards     min  L_md            on G(z, y)
//! the next global vector is D
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `D`, `D_k` | the global model, which learns; the clients' models, which teach | `student`, `Teachers` |
//! | `G` | the conditional generator; its weights outlive the round | `Generator` |
//! | `n_k^y` | number of examples of class `y` that client `k` trained on; clients report them | `ClassCounts` |
//! | `L_md` | model discrepancy; the generator's part of it is what mines hard samples | `losses` |
//! | `L_cls`, `L_dis` | fidelity to the class asked for; diversity | `losses` |
//! | `I`, `I_g`, `I_d`, `Q` | iterations, steps of either network in each, examples of a batch | [`FedFtgConfig`] |
//!
//! State between rounds: the base's, the generator, Adam's moments. Memory: the updates, the student, the generator
//! and `teachers_resident` networks; a teacher's pass is followed back before the next one's begins, so that neither
//! networks nor passes add up over clients. Passes of a batch: each generator step asks every teacher twice (for the
//! scores, then for their slopes), each iteration once more for the student.
//!
//! Departures. The published code gives each client its own step of the generator and its own losses
//! ([`FedFtgForm::Code`]); the paper one for all ([`FedFtgForm::Paper`], the default). The paper's equations could not
//! be read again when this was written: they are as remembered, and agree with its figure. The code makes Adam anew
//! each round (`keep_moments = false`). A client that keeps its counts to itself teaches nothing; a round without any
//! counts, and one in which a loss stops being finite, keeps the base's aggregate, with the metric `fedftg_skipped`.

mod labels;
mod losses;
mod teachers;

use std::ops::Range;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{ElementConversion, Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, ClassId, Classifier, ClientId, Generator, GeneratorFamily, Mean, Metrics, Mode,
    ModelFamily, ParamVector, PerClientStrategy, Pictures, Reports, Round, RoundIndex, SchemaError, Seed, SideInfo,
    StateDict, StateError, Strategy, UpdateSet, flat_gradients, flatten, load, load_frozen, load_to_train, schema_of,
};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::adam::Adam;
use crate::network::{blank, ensure_fits};
use crate::{StrategyConfig, StrategyConfigError};
use labels::ClassCounts;
use losses::Taught;
use teachers::Teachers;

const KIND: &str = "fedftg";
/// Examples that a generator may make in a round.
const MOST_EXAMPLES: usize = 1 << 24;

/// Whose losses: the paper's or the published code's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FedFtgForm {
    /// `KL(D || D_k)` for both networks, the ensemble's scores for `L_cls`, one step of the generator for all clients.
    #[default]
    Paper,
    /// Absolute differences of scores and a step for each client in turn; cross-entropy with the ensemble's
    /// probabilities, over the number of classes, for the student.
    Code,
}

/// Which classes the generator is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelSampling {
    /// As often as the clients of the round have them.
    #[default]
    Customised,
    /// Those that any client of the round has, equally often.
    Uniform,
}

/// How much each client's word weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ensemble {
    /// By its share of the class's examples, `a_k^y`.
    #[default]
    ClassLevel,
    /// All alike, `1 / m`, also those that told no counts.
    Uniform,
}

/// Settings of [`FedFtg`]. The defaults are the published code's, the form and the moments apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedFtgConfig {
    /// The strategy whose aggregate is fine-tuned.
    pub base: Box<StrategyConfig>,
    /// Whose losses.
    pub form: FedFtgForm,
    /// Iterations in each round, `I`; 0 leaves the aggregate alone.
    pub iterations: usize,
    /// Steps of the generator in each iteration, `I_g`.
    pub generator_steps: usize,
    /// Steps of the student in each iteration, `I_d`.
    pub student_steps: usize,
    /// Examples of a batch, `Q`, at least 2.
    pub batch_size: usize,
    /// Learning rate of the student's SGD, positive.
    pub student_lr: f64,
    /// Weight decay of the student, from 0.
    pub weight_decay: f64,
    /// Learning rate of the generator's Adam, positive.
    pub generator_lr: f64,
    /// Factor of both rates from round to round, above 0 and at most 1.
    pub lr_decay: f64,
    /// Weight of `L_cls`, from 0.
    pub lambda_cls: f64,
    /// Weight of `L_dis`, from 0.
    pub lambda_dis: f64,
    /// Whether the generator looks for inputs on which student and teachers disagree; otherwise `L_md` is not its aim.
    pub hard_mining: bool,
    /// Which classes the generator is asked for.
    pub label_sampling: LabelSampling,
    /// How much each client's word weighs.
    pub ensemble: Ensemble,
    /// Whether Adam's moments outlive the round.
    pub keep_moments: bool,
    /// Networks of teachers in memory at a time, at least 1.
    pub teachers_resident: usize,
    /// Length of the generator's noise.
    pub noise: usize,
    /// Channels of the generator's last hidden layer.
    pub width: usize,
    /// Shows a picture of each class after the first round and after every so many; 0 shows none.
    pub pictures_every: u64,
}

impl Default for FedFtgConfig {
    fn default() -> Self {
        Self {
            base: Box::default(),
            form: FedFtgForm::Paper,
            iterations: 10,
            generator_steps: 1,
            student_steps: 5,
            batch_size: 50,
            student_lr: 0.1,
            weight_decay: 1e-3,
            generator_lr: 0.01,
            lr_decay: 0.998,
            lambda_cls: 1.0,
            lambda_dis: 1.0,
            hard_mining: true,
            label_sampling: LabelSampling::Customised,
            ensemble: Ensemble::ClassLevel,
            keep_moments: true,
            teachers_resident: 1,
            noise: 100,
            width: 64,
            pictures_every: 10,
        }
    }
}

impl FedFtgConfig {
    fn check(&self) -> Result<(), StrategyConfigError> {
        let counts = [("batch_size", self.batch_size, 2), ("teachers_resident", self.teachers_resident, 1)];
        if let Some((field, value, _)) = counts.into_iter().find(|(_, value, least)| value < least) {
            let expected = "at least 2 examples and 1 teacher";
            return Err(StrategyConfigError::Value { kind: KIND, field, value: value.to_string(), expected });
        }
        let examples = self.iterations.checked_mul(self.batch_size).filter(|examples| *examples <= MOST_EXAMPLES);
        if examples.is_none() {
            let (value, expected) =
                (self.iterations.to_string(), "at most 16,777,216 examples a round, iterations times batch_size");
            return Err(StrategyConfigError::Value { kind: KIND, field: "iterations", value, expected });
        }
        for (field, value) in [("student_lr", self.student_lr), ("generator_lr", self.generator_lr)] {
            StrategyConfigError::positive(KIND, field, value)?;
        }
        let weights =
            [("weight_decay", self.weight_decay), ("lambda_cls", self.lambda_cls), ("lambda_dis", self.lambda_dis)];
        for (field, value) in weights {
            StrategyConfigError::not_negative(KIND, field, value)?;
        }
        if !(self.lr_decay > 0.0 && self.lr_decay <= 1.0) {
            let (value, expected) = (self.lr_decay.to_string(), "a number above 0, at most 1");
            return Err(StrategyConfigError::Value { kind: KIND, field: "lr_decay", value, expected });
        }
        Ok(())
    }
}

/// Fine-tuning of the models of another strategy, with classifiers of family `F` and a generator of family `G`.
pub struct FedFtg<B: Backend, F, G> {
    base: Strategy<B>,
    config: FedFtgConfig,
    family: F,
    generator: G,
    /// From the first fine-tuned round on.
    made: Option<Made<B>>,
}

/// What outlives a round.
#[derive(Clone, Debug)]
struct Made<B: Backend> {
    generator: ParamVector<B>,
    adam: Adam<B>,
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedFtg<B, F, G> {
    /// Fine-tunes what `base` makes of each round; `config.base` is not looked at. `generator` makes inputs of `family`.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn new(config: FedFtgConfig, base: Strategy<B>, family: F, generator: G) -> Result<Self, StrategyConfigError> {
        config.check()?;
        Ok(Self { base, config, family, generator, made: None })
    }
}

/// What fine-tuning makes of a round.
struct Tuned<B: Backend> {
    global: ParamVector<B>,
    made: Made<B>,
}

/// One iteration's batch: noise, classes as ones and zeros, and each client's weights `a_k` for them.
struct Batch<B: Backend> {
    z: Tensor<B, 2>,
    y: Tensor<B, 2>,
    weights: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Batch<B> {
    fn new(labels: &[usize], weights: &[Vec<f32>], noise: usize, seed: Seed, device: &B::Device) -> Self {
        let (mut rng, classes) = (seed.rng(), weights.first().map_or(0, Vec::len));
        let z: Vec<f32> = (0..labels.len() * noise).map(|_| StandardNormal.sample(&mut rng)).collect();
        let mut y = vec![0.0; labels.len() * classes];
        labels.iter().enumerate().for_each(|(i, label)| y[i * classes + label] = 1.0);
        let of_labels = |client: &Vec<f32>| {
            let values: Vec<f32> = labels.iter().map(|label| client[*label]).collect();
            Tensor::from_data(TensorData::new(values, [labels.len()]), device)
        };
        Self {
            z: Tensor::from_data(TensorData::new(z, [labels.len(), noise]), device),
            y: Tensor::from_data(TensorData::new(y, [labels.len(), classes]), device),
            weights: weights.iter().map(of_labels).collect(),
        }
    }
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

impl FedFtgConfig {
    /// What the generator makes small.
    fn generator_loss<B: Backend>(
        &self,
        s: &Tensor<B, 2>,
        taught: &[Taught<B>],
        y: &Tensor<B, 2>,
        x: &Tensor<B, 4>,
        z: &Tensor<B, 2>,
        diversity_share: f64,
    ) -> Tensor<B, 1> {
        let mining = if self.hard_mining { 1.0 } else { 0.0 };
        let (discrepancy, fidelity, diversity) = match (self.form, taught) {
            (FedFtgForm::Code, [client]) => {
                (losses::code_discrepancy(s, client), losses::code_fidelity(client, y), losses::code_diversity(x, z))
            }
            _ => (losses::discrepancy(s, taught).neg(), losses::fidelity(taught, y), losses::diversity(x, z)),
        };
        discrepancy * mining + fidelity * self.lambda_cls + diversity * (self.lambda_dis * diversity_share)
    }

    /// What the student makes small.
    fn student_loss<B: Backend>(&self, s: &Tensor<B, 2>, taught: &[Taught<B>]) -> Tensor<B, 1> {
        match self.form {
            FedFtgForm::Paper => losses::discrepancy(s, taught),
            FedFtgForm::Code => losses::code_distillation(s, taught),
        }
    }

    /// Factor of both learning rates in `round`.
    fn decay(&self, round: RoundIndex) -> f64 {
        self.lr_decay.powf(round.0.saturating_sub(1) as f64)
    }
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedFtg<B, F, G> {
    /// The fine-tuned vector and what outlives the round; adds figures to `metrics`. `None` where there is nothing to
    /// learn from or a number stopped being finite.
    fn tune(
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
        let weights = match config.ensemble {
            Ensemble::ClassLevel => counts.ensemble_weights(),
            Ensemble::Uniform => vec![vec![1.0 / updates.len() as f32; self.generator.classes()]; updates.len()],
        };
        let mut made = match &self.made {
            Some(made) => made.clone(),
            None => {
                let generator = flatten(&self.generator.init(round.seed.index(GENERATOR), &device))?;
                Made { adam: Adam::new(&generator), generator }
            }
        };
        if !config.keep_moments {
            made.adam = Adam::new(&made.generator);
        }
        let (student_lr, generator_lr) =
            (config.student_lr * config.decay(round.index), config.generator_lr * config.decay(round.index));
        let mut teachers = Teachers::new(&self.family, updates, config.teachers_resident, device.clone());
        let mut student = load_to_train(blank(&self.family, &device), start)?;
        let mut asked = blank(&self.family, &device);
        let mut network = G::TrainModel::from_inner(self.generator.init(Seed::new(0), &device));
        let mut losses = [Tensor::<B, 1>::zeros([1], &device), Tensor::zeros([1], &device)];
        // The clients of one step of the generator.
        let group = match config.form {
            FedFtgForm::Paper => updates.len(),
            FedFtgForm::Code => 1,
        };
        let groups: Vec<Range<usize>> = (0..updates.len()).step_by(group).map(|k| k..k + group).collect();
        for (iteration, labels) in labels.chunks_exact(config.batch_size).enumerate() {
            let seed = round.seed.index(NOISE).index(iteration as u64);
            let batch = Batch::new(labels, &weights, self.generator.noise(), seed, &device);
            asked = load_frozen(asked, &flatten(&student.valid())?)?;
            for group in (0..config.generator_steps).flat_map(|_| groups.clone()) {
                network = load_to_train(network, &made.generator)?;
                let (gradient, loss) = slope::<B, F, _>(config, &mut teachers, &asked, &network, &batch, group)?;
                // With the running statistics that this pass has moved.
                let now = flatten(&network.valid())?;
                made.generator = made.adam.step(&now, gradient, generator_lr)?;
                losses[0] = losses[0].clone() + loss;
            }
            network = load_to_train(network, &made.generator)?;
            let x = network.valid().forward(batch.z, batch.y, Mode::Evaluate);
            let taught = teachers.taught(0..updates.len(), &batch.weights, &x)?;
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
        let finite = tuned.is_finite() && made.generator.is_finite();
        Ok(finite.then_some(Tuned { global: tuned, made }))
    }
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedFtg<B, F, G> {
    /// One picture of each class, from noise that is the same in every round and run.
    fn pictures(&self, made: &Made<B>) -> Result<Pictures, SchemaError> {
        let (device, classes) = (made.generator.device(), self.generator.classes());
        let generator = load(self.generator.init(Seed::new(0), &device), &made.generator)?;
        let labels: Vec<usize> = (0..classes).collect();
        let batch = Batch::<B>::new(&labels, &[vec![0.0; classes]], self.generator.noise(), Seed::new(0), &device);
        let pictures = generator.forward(batch.z, batch.y, Mode::Evaluate);
        Ok(Pictures::of(pictures, labels.into_iter().map(|class| ClassId(class as u32)).collect()))
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

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> PerClientStrategy<B> for FedFtg<B, F, G> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn reports(&self) -> Reports {
        Reports { class_counts: true, ..self.base.reports() }
    }

    fn remembers_clients(&self) -> bool {
        self.base.remembers_clients()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        self.base.side_info(round, client)
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        ensure_fits(&self.family, round.global).map_err(schema)?;
        let mut aggregate = self.base.aggregate(round, updates)?;
        let tuned = self.tune(round, &aggregate.global, updates, &mut aggregate.metrics).map_err(schema)?;
        let skipped = if tuned.is_none() { 1.0 } else { 0.0 };
        aggregate.metrics.add("fedftg_skipped", Mean::new(skipped, 1.0));
        if let Some(Tuned { global, made }) = tuned {
            let every = self.config.pictures_every;
            if every > 0 && (round.index.0 == 1 || round.index.0.is_multiple_of(every)) {
                aggregate.pictures = Some(self.pictures(&made).map_err(schema)?);
            }
            (aggregate.global, self.made) = (global, Some(made));
        }
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.nest("base", self.base.state());
        if let Some(made) = &self.made {
            state.insert_params("generator", &made.generator);
            state.nest("adam", made.adam.state());
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let (base, adam) = (state.split_off("base"), state.split_off("adam"));
        self.made = match state.is_empty() {
            true => {
                adam.expect_empty()?;
                None
            }
            false => {
                let device = like.device();
                let module = self.generator.init(Seed::new(0), &device);
                let damaged = |e: SchemaError| StateError::Damaged { reason: e.to_string() };
                let schema = std::sync::Arc::new(schema_of::<B, _>(&module).map_err(damaged)?);
                let generator = state.take_params("generator", &schema, &device)?;
                Some(Made { adam: Adam::restore(adam, &generator)?, generator })
            }
        };
        state.expect_empty()?;
        self.base.restore(base, like)
    }
}
