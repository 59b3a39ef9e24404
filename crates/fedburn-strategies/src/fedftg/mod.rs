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
//! State between rounds: the base's, the generator; Adam begins anew each round, as in the published code. Memory: the
//! updates, the student, the generator, `teachers_resident` networks and, for `L_dis`, a few copies of the differences of
//! all pairs of a batch, `Q^2` pictures each; a teacher's pass is followed back before the next one's begins, so that
//! neither networks nor passes add up over clients. Passes of a batch: each generator step asks every teacher twice (for
//! the scores, then for their slopes), each iteration once more for the student.
//!
//! Who teaches. All clients of the round that told of examples, also those whose updates the base leaves out or
//! shortens: what guards against hostile updates belongs around FedFTG (`norm_clipping`), not inside. A client that told
//! nothing, or has no example, teaches nothing and does not count in `m`.
//!
//! Departures. The published code gives each client its own step of the generator and its own losses
//! ([`FedFtgForm::Code`]); the paper one for all ([`FedFtgForm::Paper`], the default). The paper's form was not checked
//! against the text of the paper; it agrees with its overview figure. `keep_moments` lets Adam's moments outlive the
//! round. A round in which nobody teaches, and one in which a loss stops being finite, keeps the base's aggregate, with
//! the metric `fedftg_skipped`.

mod config;
mod losses;
mod tuning;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClassId, ClientId, Generator, GeneratorFamily, Mean, Mode, ModelFamily, ParamVector,
    PerClientStrategy, Pictures, Reports, Round, RoundIndex, SchemaError, Seed, SideInfo, StateDict, StateError,
    Strategy, UpdateSet, load,
};

use crate::StrategyConfigError;
use crate::generated::{Batch, Made};
use crate::network::ensure_fits;
pub(crate) use losses::code_diversity;

pub use config::{Ensemble, FedFtgConfig, FedFtgForm, LabelSampling};
use tuning::Tuned;

const KIND: &str = "fedftg";

/// Fine-tuning of the models of another strategy, with classifiers of family `F` and a generator of family `G`.
pub struct FedFtg<B: Backend, F, G> {
    base: Strategy<B>,
    config: FedFtgConfig,
    family: F,
    generator: G,
    /// From the first fine-tuned round on.
    made: Option<Made<B>>,
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

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedFtg<B, F, G> {
    /// One picture of each class, from noise that is the same in every round and run.
    fn pictures(&self, made: &Made<B>) -> Result<Pictures, SchemaError> {
        let (device, classes) = (made.generator.device(), self.generator.classes());
        let generator = load(self.generator.init(Seed::new(0), &device), &made.generator)?;
        let labels: Vec<usize> = (0..classes).collect();
        let batch = Batch::<B>::new(&labels, classes, &[], self.generator.noise(), Seed::new(0), &device);
        let pictures = generator.forward(batch.z, batch.y, Mode::Evaluate);
        Ok(Pictures::of(pictures, labels.into_iter().map(|class| ClassId(class as u32)).collect()))
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
            made.save(&mut state);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let base = state.split_off("base");
        self.made = Made::restore(&mut state, &self.generator, &like.device())?;
        state.expect_empty()?;
        self.base.restore(base, like)
    }
}
