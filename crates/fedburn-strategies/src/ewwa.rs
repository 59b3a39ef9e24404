//! EWWA-FL: every element of the model has its own mixing weights over clients.
//!
//! Y. Hu, H. Ren, C. Hu, J. Deng, X. Xie: "An Element-Wise Weights Aggregation Method for Federated Learning", IEEE
//! International Conference on Data Mining Workshops 2023, arXiv 2404.15919. Code: `Rand2AI/EWWA-FL`.
//!
//! Two forms exist, and they are different algorithms. With `g_k = x_t - x_k`, element by element:
//!
//! ```text
//! softmax     m_k <- beta1 m_k + (1 - beta1) g_k        v_k <- beta2 v_k + (1 - beta2) g_k^2
//!             b_k = alpha * m_k / (1 - beta1^t) / (sqrt(v_k / (1 - beta2^t)) + eps)
//!             p_k = exp(b_k) / sum_c exp(b_c)
//!
//! log_share   one (m, v) for all; client after client, in order of ids:
//!             m <- beta1 m + (1 - beta1) g_k            v <- beta2 v + (1 - beta2) g_k^2
//!             b_k = alpha * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
//!             L_k = log(b_k - low + 1) + 1e-8           low = min of b over clients, tensors and elements
//!             p_k = L_k / sum_c L_c
//!
//! both        x_{t+1} = sum_k p_k x_k
//!
//! adagrad     v <- v + g^2
//! yogi        v <- v - (1 - beta2) g^2 sign(v - g^2)
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t`, `x_k` | global vector, client k's after local training | `round.global`, the updates |
//! | `m`, `v` | running means of pseudo-gradients and of their squares | [`Moments`] |
//! | `t` | rounds that entered the moments, this one included: of the client (`softmax`), of all (`log_share`) | `Moments::rounds` |
//! | `b_k`, `p_k` | client k's score and weight, per element | `scores`, `weights` |
//! | `alpha`, `beta1`, `beta2`, `eps` | temperature of the scores, decay rates, floor of the denominator | [`EwwaConfig`] |
//!
//! State between rounds: `softmax` keeps `(m_k, v_k, t)` of every client that ever took part in the round's memory,
//! where a new client starts from zeros with `t = 1`; `log_share` keeps one `(m, v, t)` in the strategy's own state.
//!
//! Memory and passes: `softmax` loads, advances and stages the moments of one client at a time (per thread) and holds
//! one score vector per client of the cohort until it mixes; `log_share` holds two vectors and goes through the
//! updates twice, first for `low`. The arithmetic runs on the host, where the moments are kept.
//!
//! What to know before using it: example counts are not used, all clients count alike. Scores carry the sign of the
//! moments, so that negating a coordinate of the model does not negate the result; this is the method, not a mistake.
//! `log_share` depends on the order of clients, which is that of their ids, and on every other element through `low`.
//!
//! Departures. `softmax` is the form that the text describes, with moments for each client and `sqrt(v) + eps` as in
//! the published code; that code runs `log_share`. In both forms all three optimisers have Adam's bias correction, as
//! there. Running statistics are means weighted by examples in `softmax`; `log_share` passes them through the rule, as
//! there. Pseudo-gradients are limited to 1e18 in size, so that squares stay finite.

use std::ops::Range;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientUpdate, MixingWeights, ParamKind, ParamSchema, ParamVector, PerClientStrategy,
    Round, StateData, StateDict, StateError, StateTensor, UpdateSet, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::host::{normalise_columns, sum, to_host, weighted_columns};

/// Which of the two published algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EwwaForm {
    /// The paper's text: moments for each client, softmax over clients.
    #[default]
    Softmax,
    /// The authors' published code: shared moments, shares of logarithms; depends on the order of clients.
    LogShare,
}

/// How the second moment follows the squared pseudo-gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EwwaOptimizer {
    /// Exponential mean.
    #[default]
    Adam,
    /// Sum over rounds.
    Adagrad,
    /// Moves towards the square by a step that does not depend on the distance.
    Yogi,
}

/// Settings of [`Ewwa`]. The defaults are the published code's, the form is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EwwaConfig {
    /// Which algorithm.
    pub form: EwwaForm,
    /// Rule of the second moment.
    pub optimizer: EwwaOptimizer,
    /// Factor of the scores, above 0 and at most 1e6; near 0 all clients count alike.
    pub alpha: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the square root of the second moment, from 1e-30 to 1.
    pub eps: f64,
}

impl Default for EwwaConfig {
    fn default() -> Self {
        let (form, optimizer) = (EwwaForm::Softmax, EwwaOptimizer::Adam);
        Self { form, optimizer, alpha: 1.0, beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

impl EwwaConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build(self) -> Result<Ewwa, StrategyConfigError> {
        let checks = [
            ("alpha", self.alpha, self.alpha > 0.0 && self.alpha <= 1e6, "a number above 0, at most 1e6"),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "a number from 0 to below 1"),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "a number from 0 to below 1"),
            ("eps", self.eps, (1e-30..=1.0).contains(&self.eps), "a number from 1e-30 to 1"),
        ];
        match checks.into_iter().find(|(_, _, ok, _)| !ok) {
            None => Ok(Ewwa { config: self, shared: None }),
            Some((field, value, _, expected)) => {
                Err(StrategyConfigError::Value { kind: NAME, field, value: value.to_string(), expected })
            }
        }
    }
}

/// Element-wise weights aggregation.
#[derive(Clone, Debug)]
pub struct Ewwa {
    config: EwwaConfig,
    /// Of `log_share`, from its first round on.
    shared: Option<Moments>,
}

impl<B: Backend> PerClientStrategy<B> for Ewwa {
    fn name(&self) -> &'static str {
        NAME
    }

    fn remembers_clients(&self) -> bool {
        self.config.form == EwwaForm::Softmax
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        match self.config.form {
            EwwaForm::Softmax => self.softmax(round, updates),
            EwwaForm::LogShare => self.log_share(round, updates),
        }
    }

    fn state(&self) -> StateDict {
        self.shared.clone().map(Moments::into_state).unwrap_or_default()
    }

    fn restore(&mut self, state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        if self.config.form == EwwaForm::Softmax || state.is_empty() {
            self.shared = None;
            return state.expect_empty();
        }
        let moments = Moments::from_state(state)?;
        moments.expect_len(like.num_values())?;
        self.shared = Some(moments);
        Ok(())
    }
}

impl Ewwa {
    fn softmax<B: Backend>(
        &self,
        round: &Round<'_, B>,
        updates: &UpdateSet<B>,
    ) -> Result<Aggregate<B>, AggregateError> {
        let global = round.global.to_host();
        let scores = updates.map_updates(|update| {
            let scores = self.client_scores(round, &global, update);
            scores.map_err(|e| unusable(round, format!("moments of client {}: {e}", update.client)))
        });
        let scores = scores.into_iter().collect::<Result<Vec<_>, _>>()?;
        let by_examples = updates.weights(Weighting::Examples);
        let pieces = updates.map_chunks(|chunk, range| {
            let mut weights = Vec::with_capacity(scores.len() * range.len());
            scores.iter().for_each(|scores| weights.extend_from_slice(&scores[range.clone()]));
            softmax_columns(&mut weights, range.len());
            for (_, local) in entries_in(round.global.schema(), &range, Some(ParamKind::Buffer)) {
                for (row, p) in weights.chunks_exact_mut(range.len()).zip(&by_examples) {
                    row[local.clone()].fill(*p as f32);
                }
            }
            Piece::mix(&weights, &to_host(chunk), round.global.schema(), &range)
        });
        assemble(round, updates, pieces)
    }

    /// Advances the client's moments by its update and gives its scores.
    fn client_scores<B: Backend>(
        &self,
        round: &Round<'_, B>,
        global: &[f32],
        update: &ClientUpdate<B>,
    ) -> Result<Vec<f32>, StateError> {
        let mut moments = match round.memory.load(update.client, round.index)? {
            Some(state) => Moments::from_state(state)?,
            None => Moments::zeros(global.len()),
        };
        moments.expect_len(global.len())?;
        moments.rounds += 1;
        let factors = self.factors(moments.rounds);
        let mut scores = vec![0.0; global.len()];
        for start in (0..global.len()).step_by(PIECE) {
            let range = start..global.len().min(start + PIECE);
            let local = to_host(update.local.params.values().clone().slice([range.clone()]));
            let (first, second) = (&mut moments.first[range.clone()], &mut moments.second[range.clone()]);
            factors.advance(&global[range.clone()], &local, first, second, &mut scores[range]);
        }
        round.memory.stage(update.client, round.index, moments.into_state())?;
        Ok(scores)
    }

    fn log_share<B: Backend>(
        &mut self,
        round: &Round<'_, B>,
        updates: &UpdateSet<B>,
    ) -> Result<Aggregate<B>, AggregateError> {
        let global = round.global.to_host();
        let mut moments = self.shared.clone().unwrap_or_else(|| Moments::zeros(global.len()));
        moments.expect_len(global.len()).map_err(|e| unusable(round, e.to_string()))?;
        moments.rounds += 1;
        let factors = self.factors(moments.rounds);
        // Scores of all clients on a piece, `[clients, range.len()]`, and the moments after the last of them.
        let advance = |locals: &[f32], range: &Range<usize>| {
            let (mut first, mut second) =
                (moments.first[range.clone()].to_vec(), moments.second[range.clone()].to_vec());
            let mut scores = vec![0.0; locals.len()];
            let rows = locals.chunks_exact(range.len()).zip(scores.chunks_exact_mut(range.len()));
            rows.for_each(|(row, scores)| {
                factors.advance(&global[range.clone()], row, &mut first, &mut second, scores);
            });
            (scores, first, second)
        };
        let lows = updates.map_chunks(|chunk, range| minimum(&advance(&to_host(chunk), &range).0));
        let low = minimum(&lows);
        let pieces = updates.map_chunks(|chunk, range| {
            let locals = to_host(chunk);
            let (mut weights, first, second) = advance(&locals, &range);
            weights.iter_mut().for_each(|b| *b = (*b - low + 1.0).ln() + 1e-8);
            normalise_columns(&mut weights, range.len());
            (Piece::mix(&weights, &locals, round.global.schema(), &range), first, second)
        });
        moments.first.clear();
        moments.second.clear();
        let mut mixed = Vec::with_capacity(pieces.len());
        for (piece, first, second) in pieces {
            mixed.push(piece);
            moments.first.extend(first);
            moments.second.extend(second);
        }
        let aggregate = assemble(round, updates, mixed)?;
        self.shared = Some(moments);
        Ok(aggregate)
    }

    fn factors(&self, t: u64) -> Factors {
        let EwwaConfig { form, optimizer, alpha, beta1, beta2, eps } = self.config;
        let (one, two) = (1.0 - beta1.powf(t as f64), (1.0 - beta2.powf(t as f64)).sqrt());
        let (score, root) = match form {
            EwwaForm::Softmax => (alpha / one, 1.0 / two),
            EwwaForm::LogShare => (alpha * two / one, 1.0),
        };
        let [beta1, gain1] = [beta1, 1.0 - beta1].map(|v| v as f32);
        let [beta2, gain2] = [beta2, 1.0 - beta2].map(|v| v as f32);
        Factors { optimizer, beta1, gain1, beta2, gain2, score: score as f32, root: root as f32, eps: eps as f32 }
    }
}

/// Running means of pseudo-gradients and of their squares, in schema order.
#[derive(Clone, Debug)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    /// Rounds that entered.
    rounds: u64,
}

impl Moments {
    fn zeros(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], rounds: 0 }
    }

    fn into_state(self) -> StateDict {
        let mut state = StateDict::new();
        for (name, values) in [("first", self.first), ("second", self.second)] {
            state.insert(name, StateTensor { shape: vec![values.len()], data: StateData::F32(values) });
        }
        state.insert_u64("rounds", self.rounds);
        state
    }

    fn from_state(mut state: StateDict) -> Result<Self, StateError> {
        let mut values = |name: &str| match state.take(name)?.data {
            StateData::F32(values) => Ok(values),
            _ => Err(wrong(name, "f32 values".into(), "values of another type".into())),
        };
        let (first, second) = (values("first")?, values("second")?);
        if first.len() != second.len() {
            return Err(wrong("second", format!("f32 [{}]", first.len()), format!("f32 [{}]", second.len())));
        }
        let rounds = state.take_u64("rounds")?;
        state.expect_empty()?;
        Ok(Self { first, second, rounds })
    }

    fn expect_len(&self, len: usize) -> Result<(), StateError> {
        match self.first.len() {
            found if found == len => Ok(()),
            found => Err(wrong("first", format!("f32 [{len}] as the model"), format!("f32 [{found}]"))),
        }
    }
}

/// The numbers of one advance of moments, rounded to `f32` once.
struct Factors {
    optimizer: EwwaOptimizer,
    beta1: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    /// Factor of the first moment in a score.
    score: f32,
    /// Factor of the second moment's root in a score.
    root: f32,
    eps: f32,
}

impl Factors {
    /// Takes one client's values into the moments and writes its scores, all slices of one length.
    fn advance(&self, global: &[f32], local: &[f32], first: &mut [f32], second: &mut [f32], scores: &mut [f32]) {
        let (beta2, gain2) = (self.beta2, self.gain2);
        match self.optimizer {
            EwwaOptimizer::Adam => {
                self.advance_with(global, local, first, second, scores, |v, square| beta2 * v + gain2 * square);
            }
            EwwaOptimizer::Adagrad => self.advance_with(global, local, first, second, scores, |v, square| v + square),
            EwwaOptimizer::Yogi => self.advance_with(global, local, first, second, scores, |v, square| {
                let (above, below) = (f32::from(v > square), f32::from(v < square));
                v - gain2 * square * (above - below)
            }),
        }
    }

    #[inline]
    fn advance_with(
        &self,
        global: &[f32],
        local: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        scores: &mut [f32],
        next_second: impl Fn(f32, f32) -> f32,
    ) {
        let moments = first.iter_mut().zip(second);
        for (((x, x_k), (m, v)), score) in global.iter().zip(local).zip(moments).zip(scores) {
            let g = (x - x_k).clamp(-LARGEST_STEP, LARGEST_STEP);
            *m = self.beta1 * *m + self.gain1 * g;
            *v = next_second(*v, g * g);
            *score = *m * self.score / (v.sqrt() * self.root + self.eps);
        }
    }
}

/// The new values of a piece of the flat axis, and each client's sum of weights in each tensor that lies in it.
struct Piece {
    values: Vec<f32>,
    sums: Vec<(usize, Vec<f64>)>,
}

impl Piece {
    /// `weights` and `locals` are `[clients, range.len()]`.
    fn mix(weights: &[f32], locals: &[f32], schema: &ParamSchema, range: &Range<usize>) -> Self {
        let sums = entries_in(schema, range, None).map(|(entry, local)| {
            (entry, weights.chunks_exact(range.len()).map(|row| sum(&row[local.clone()])).collect())
        });
        Self { sums: sums.collect(), values: weighted_columns(weights, locals, range.len()) }
    }
}

fn assemble<B: Backend>(
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
    pieces: Vec<Piece>,
) -> Result<Aggregate<B>, AggregateError> {
    let schema = round.global.schema();
    let mut weights = vec![vec![0.0; updates.len()]; schema.entries().len()];
    let mut values = Vec::with_capacity(schema.num_values());
    for piece in pieces {
        values.extend(piece.values);
        for (entry, sums) in piece.sums {
            let len = schema.entries()[entry].len() as f64;
            weights[entry].iter_mut().zip(sums).for_each(|(weight, sum)| *weight += sum / len);
        }
    }
    let (tensors, weights) =
        schema.entries().iter().zip(weights).filter(|(e, _)| !e.is_empty()).map(|(e, w)| (e.path.clone(), w)).unzip();
    let global = ParamVector::from_host(values, schema.clone(), &round.global.device());
    let global = global.map_err(|source| AggregateError::Schema { round: round.index, source })?;
    let mixing = Some(MixingWeights { clients: updates.iter().map(|u| u.client).collect(), tensors, weights });
    Ok(Aggregate { mixing, ..global.into() })
}

/// Tensors that lie in `range`, of one kind or of any: index among the schema's entries, and place within the range.
fn entries_in<'a>(
    schema: &'a ParamSchema,
    range: &Range<usize>,
    kind: Option<ParamKind>,
) -> impl Iterator<Item = (usize, Range<usize>)> + use<'a> {
    let Range { start, end } = *range;
    let first = schema.entries().partition_point(|e| e.range().end <= start);
    let entries = schema.entries().iter().enumerate().skip(first).take_while(move |(_, e)| e.offset < end);
    let wanted = entries.filter(move |(_, e)| !e.is_empty() && kind.is_none_or(|kind| e.kind == kind));
    wanted.map(move |(i, e)| (i, e.offset.max(start) - start..e.range().end.min(end) - start))
}

/// Turns scores, `[clients, len]`, into weights that add up to one in each column.
fn softmax_columns(scores: &mut [f32], len: usize) {
    let mut largest = scores[..len].to_vec();
    for row in scores.chunks_exact(len).skip(1) {
        largest.iter_mut().zip(row).for_each(|(top, b)| *top = if b > top { *b } else { *top });
    }
    for row in scores.chunks_exact_mut(len) {
        row.iter_mut().zip(&largest).for_each(|(b, top)| *b = (*b - top).exp());
    }
    normalise_columns(scores, len);
}

fn minimum(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::INFINITY, f32::min)
}

fn wrong(name: &str, expected: String, found: String) -> StateError {
    StateError::Shape { name: name.to_owned(), expected, found }
}

fn unusable<B: Backend>(round: &Round<'_, B>, reason: String) -> AggregateError {
    AggregateError::Unusable { round: round.index, strategy: NAME, reason }
}

const NAME: &str = "ewwa";

/// Largest size of a pseudo-gradient's element; its square is finite.
const LARGEST_STEP: f32 = 1e18;

/// Values of one client handled at a time: 64 KiB, so that its five vectors stay in a core's own cache.
const PIECE: usize = 1 << 14;
