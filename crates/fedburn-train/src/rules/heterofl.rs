//! HeteroFL: clients train nets of fewer channels, corners of the whole one.
//!
//! Enmao Diao, Jie Ding, Vahid Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for
//! Heterogeneous Clients", ICLR 2021, arXiv:2010.01264; published code diaoenmao/HeteroFL.
//!
//! ```text
//! client of share r:  receive the first ceil(r C) of the C channels of each layer
//!                     the run's epochs of SGD on CE(m * f_r(x), y)
//! server:             each value is the mean over the clients that hold it, all alike, rows of the classifier over those
//!                     that have the class; what nobody holds stays
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `r` | share of the client's group, [`HeteroFlConfig::shares`] |
//! | `f_r` | the slim net, [`ModelFamily::slim`](fedburn_core::ModelFamily::slim), whose layers divide what they make by `r` in training |
//! | `m` | 1 for classes that the client has, 0 for others: a logit of 0, not of minus infinity, as in the code |
//!
//! State: none. Memory: that of the slim net. The server's mean is that of `fedavg` with uniform weights.
//!
//! Rows of absent classes are sent as received, and left out of the mean by the server, which knows from the partition who
//! has which classes ([`Absent`]).
//!
//! Departure. Batch norm goes by the batch at hand, also where the model is measured: the code computes running statistics
//! once more over the clients' data before.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{
    ClientId, Mode, ParamSchema, ParamVector, RoundIndex, SchemaError, SliceName, SubModels, TrainError, flatten,
    load_to_train,
};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::{BatchGradients, GradientRule, LocalRule, LocalRun, TrainModel, Trained};
use crate::depth::group_of;

/// The numbers of [`LocalHeteroFl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeteroFlConfig {
    /// Share of the channels that each group of clients trains, in `(0, 1]`. Client `i` of `N` is in group
    /// `floor(G i / N)` of `G`.
    pub shares: Vec<f64>,
    /// Whether logits of classes that a client does not have are set to 0 in its loss.
    #[serde(default = "masked")]
    pub masked: bool,
    /// Whether the classifier's rows of such classes count in the mean where `masked`.
    #[serde(default)]
    pub absent: Absent,
}

/// What becomes of a classifier's rows of classes that a client does not have, which it sends as it received them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// The mean is over the clients that have the class.
    #[default]
    LeftOut,
    /// They count like others, and hold the mean back.
    Counted,
}

fn masked() -> bool {
    true
}

impl HeteroFlConfig {
    /// The share of `client`, one of `clients`.
    pub fn share(&self, client: ClientId, clients: usize) -> f64 {
        self.shares.get(group_of(self.shares.len(), client, clients)).copied().unwrap_or(1.0)
    }

    /// The part of the model that clients of `share` hold; none for the whole.
    pub fn part(share: f64) -> Option<SliceName> {
        (share < 1.0).then(|| format!("share {share}").into())
    }
}

/// The server's half: each client holds the net of its group's share.
#[derive(Clone, Debug)]
pub(crate) struct SharesOfWidth {
    pub(crate) config: HeteroFlConfig,
    pub(crate) clients: usize,
}

impl SubModels for SharesOfWidth {
    fn held(&self, _round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        HeteroFlConfig::part(self.config.share(client, self.clients)).into_iter().collect()
    }
}

/// The server's half where rows of absent classes do not count.
#[derive(Clone, Debug)]
pub(crate) struct WithoutAbsent {
    pub(crate) base: Arc<dyn SubModels>,
    /// Where these rows lie in what each client holds.
    pub(crate) rows: BTreeMap<ClientId, Vec<Range<usize>>>,
}

impl SubModels for WithoutAbsent {
    fn held(&self, round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        self.base.held(round, client)
    }

    fn times(&self, round: RoundIndex, client: ClientId) -> NonZeroU64 {
        self.base.times(round, client)
    }

    fn uncounted(&self, _round: RoundIndex, client: ClientId) -> Vec<Range<usize>> {
        self.rows.get(&client).cloned().unwrap_or_default()
    }
}

/// Local SGD of a net of the client's width, on the classes that it has.
#[derive(Clone, Debug)]
pub struct LocalHeteroFl {
    config: HeteroFlConfig,
}

impl LocalHeteroFl {
    /// The rule with the numbers of `config`, which a [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: HeteroFlConfig) -> Self {
        Self { config }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalHeteroFl {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let present: Vec<bool> =
            run.data.class_counts().into_iter().map(|count| !self.config.masked || count > 0).collect();
        let trained = run.descend(model, &mut run.training.sharpened(MaskedCrossEntropy::new(present.clone())))?;
        if present.iter().all(|present| *present) {
            return Ok(trained);
        }
        let sent = flatten(&trained.model.valid()).and_then(|after| as_received(&after, &run.task.global, &present));
        let model = sent.and_then(|sent| load_to_train(trained.model, &sent)).map_err(|e| run.schema_error(e))?;
        Ok(Trained { model, ..trained })
    }
}

/// `after` with the scores of classes that are not `present` made as in `before`: those columns of the last layer.
fn as_received<B: Backend>(
    after: &ParamVector<B>,
    before: &ParamVector<B>,
    present: &[bool],
) -> Result<ParamVector<B>, SchemaError> {
    let (schema, received, mut values) = (after.schema(), before.to_host(), after.to_host());
    for range in rows_of_absent(schema, present) {
        values[range.clone()].copy_from_slice(&received[range]);
    }
    ParamVector::from_host(values, schema.clone(), &after.device())
}

/// Where a vector of `schema` has the scores' weights of classes that are not `present`: columns of the last layer, as burn
/// keeps linear weights.
pub(crate) fn rows_of_absent(schema: &ParamSchema, present: &[bool]) -> Vec<Range<usize>> {
    let layer = |path: &str| path.rsplit_once('.').map_or(String::new(), |(layer, _)| layer.to_owned());
    let last = schema.entries().last().map(|entry| layer(&entry.path));
    let head = schema.entries().iter().filter(|entry| Some(layer(&entry.path)) == last);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for entry in head.filter(|entry| entry.shape.last() == Some(&present.len())) {
        for (place, _) in entry.range().zip(present.iter().cycle()).filter(|(_, present)| !**present) {
            match ranges.last_mut() {
                Some(last) if last.end == place => last.end += 1,
                _ => ranges.push(place..place + 1),
            }
        }
    }
    ranges
}

/// A gradient rule: the cross-entropy of logits of which those of absent classes are 0.
#[derive(Clone, Debug)]
pub struct MaskedCrossEntropy {
    /// By class.
    present: Vec<bool>,
}

impl MaskedCrossEntropy {
    /// With the classes that are `present`, one value a class.
    pub fn new(present: Vec<bool>) -> Self {
        Self { present }
    }

    /// The mean loss `[1]` of `logits` `[batch, classes]`.
    fn loss<B: Backend>(&self, logits: Tensor<Autodiff<B>, 2>, batch: Batch<B>) -> Tensor<Autodiff<B>, 1> {
        let (device, classes) = (logits.device(), self.present.len());
        let logits = if self.present.iter().all(|present| *present) {
            logits
        } else {
            let mask: Vec<f32> = self.present.iter().map(|&present| f32::from(u8::from(present))).collect();
            logits * Tensor::<Autodiff<B>, 1>::from_floats(mask.as_slice(), &device).reshape([1, classes])
        };
        CrossEntropyLoss::new(None, &device).forward(logits, Tensor::from_inner(batch.labels))
    }
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for MaskedCrossEntropy {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let logits = model.forward(Tensor::from_inner(batch.inputs.clone()), Mode::Train);
        let loss = self.loss(logits, batch);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}
