//! What Byzantine-robust rules share: coordinate medians (D. Yin and others, ICML 2018, arXiv 1803.01498), distances
//! between clients, and what happens in a round with too few updates. Distances and norms are taken of weights alone;
//! running statistics are coordinate medians.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, MixingWeights, ParamKind, ParamSchema, ParamVector, Round, SchemaError, UpdateSet,
};
use serde::{Deserialize, Serialize};

use crate::host::{choose_rows, mean_rows, median_of_sorted, sort_columns, squared_distance, to_host};

/// What a robust rule does with a round of fewer updates than its guarantee needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IfTooFew {
    /// Ends the run with the numbers.
    #[default]
    Refuse,
    /// Takes the coordinate median of what there is.
    Median,
}

impl IfTooFew {
    /// The answer to a round that has too few updates: `needs` says how many are needed and why.
    pub(crate) fn answer<B: Backend>(
        self,
        strategy: &'static str,
        round: &Round<'_, B>,
        updates: &UpdateSet<B>,
        needs: &str,
    ) -> Result<Aggregate<B>, AggregateError> {
        match self {
            Self::Median => Ok(coordinate_median(round, updates)?.into()),
            Self::Refuse => {
                let reason = format!(
                    "{needs}, this round has {}: sample more clients or set if_too_few = \"median\"",
                    updates.len()
                );
                Err(AggregateError::Unusable { round: round.index, strategy, reason })
            }
        }
    }
}

/// An element-wise rule on the host: `rule` gets a piece of every update, `[clients, len]` row after row, and gives
/// `[len]` values.
pub(crate) fn combine_rows<B: Backend>(
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
    rule: impl Fn(&mut [f32], usize) -> Vec<f32> + Sync,
) -> Result<ParamVector<B>, AggregateError> {
    let device = round.global.device();
    let combined = updates.combine_chunks(|chunk, range| {
        let values = rule(&mut to_host(chunk), range.len());
        Tensor::from_data(TensorData::new(values, [range.len()]), &device)
    });
    combined.map_err(schema(round))
}

/// The median of each element over clients.
pub(crate) fn coordinate_median<B: Backend>(
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
) -> Result<ParamVector<B>, AggregateError> {
    combine_rows(round, updates, median_columns)
}

fn median_columns(rows: &mut [f32], len: usize) -> Vec<f32> {
    sort_columns(rows, len);
    median_of_sorted(rows, len)
}

/// These weights with the coordinate medians of the clients' running statistics.
pub(crate) fn with_median_buffers<B: Backend>(
    params: ParamVector<B>,
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
) -> Result<ParamVector<B>, AggregateError> {
    let buffers = params.schema().entries().iter().filter(|e| e.kind == ParamKind::Buffer && !e.is_empty());
    let values = buffers.fold(params.values().clone(), |values, entry| {
        let median = median_columns(&mut to_host(updates.chunk(entry.range())), entry.len());
        let median = Tensor::from_data(TensorData::new(median, [entry.len()]), &params.device());
        values.slice_assign([entry.range()], median)
    });
    params.with_values(values).map_err(schema(round))
}

/// The plain mean of the updates at these places in the cohort, with median running statistics, and who they are.
pub(crate) fn mean_of<B: Backend>(
    selected: &[usize],
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
) -> Result<Aggregate<B>, AggregateError> {
    let mut places = selected.to_vec();
    places.sort_unstable();
    let mean = combine_rows(round, updates, |rows, len| mean_rows(&choose_rows(rows, &places, len), len))?;
    let global = with_median_buffers(mean, round, updates)?;
    Ok(Aggregate { mixing: Some(shares(selected, updates)), ..global.into() })
}

/// Equal weights of the updates at these places.
pub(crate) fn shares<B: Backend>(selected: &[usize], updates: &UpdateSet<B>) -> MixingWeights {
    let mut weights = vec![0.0; updates.len()];
    selected.iter().for_each(|k| weights[*k] = 1.0 / selected.len() as f64);
    MixingWeights::whole(updates.iter().map(|u| u.client).collect(), weights)
}

/// Squared Euclidean distances between the weights of every two updates, `[clients][clients]`.
pub(crate) fn squared_distances<B: Backend>(schema: &ParamSchema, updates: &UpdateSet<B>) -> Vec<Vec<f64>> {
    let count = updates.len();
    let weights = schema.weight_ranges();
    let pairs: Vec<(usize, usize)> = (0..count).flat_map(|i| (0..i).map(move |j| (i, j))).collect();
    let pieces = updates.map_chunks(|chunk, range| {
        let rows = to_host(chunk);
        let row = |k: usize| &rows[k * range.len()..][..range.len()];
        let within: Vec<_> = clip(&weights, &range).collect();
        let distance = |(i, j): &(usize, usize)| -> f64 {
            within.iter().map(|part| squared_distance(&row(*i)[part.clone()], &row(*j)[part.clone()])).sum()
        };
        pairs.iter().map(distance).collect::<Vec<f64>>()
    });
    let mut distances = vec![vec![0.0; count]; count];
    for piece in pieces {
        for ((i, j), part) in pairs.iter().zip(piece) {
            distances[*i][*j] += part;
            distances[*j][*i] = distances[*i][*j];
        }
    }
    distances
}

/// Euclidean distance of each update's weights to one point, given piece by piece: `center` gets a piece of every
/// update, `[clients, range.len()]` row after row, and where it lies.
pub(crate) fn distances_to<B: Backend>(
    round: &Round<'_, B>,
    updates: &UpdateSet<B>,
    center: impl Fn(&[f32], &Range<usize>) -> Vec<f64> + Sync,
) -> Vec<f64> {
    let weights = round.global.schema().weight_ranges();
    let pieces = updates.map_chunks(|chunk, range| {
        let rows = to_host(chunk);
        let center = center(&rows, &range);
        let within: Vec<_> = clip(&weights, &range).collect();
        let square = |row: &[f32]| -> f64 {
            within.iter().map(|part| squared_distance(&row[part.clone()], &center[part.clone()])).sum()
        };
        rows.chunks_exact(range.len()).map(square).collect::<Vec<f64>>()
    });
    let mut squares = vec![0.0f64; updates.len()];
    for piece in pieces {
        squares.iter_mut().zip(piece).for_each(|(sum, part)| *sum += part);
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// Length of each client's step over weights, `norm(x_k - x_t)`.
pub(crate) fn step_norms<B: Backend>(round: &Round<'_, B>, updates: &UpdateSet<B>) -> Vec<f64> {
    let global = round.global.values();
    distances_to(round, updates, |_, range| {
        to_host(global.clone().slice([range.clone()])).into_iter().map(f64::from).collect()
    })
}

/// Of an even number the mean of the two in the middle; of none 0.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count => 0.5 * sorted[(count - 1) / 2] + 0.5 * sorted[count / 2],
    }
}

/// The parts of `ranges` that lie in `range`, as places within it.
fn clip(ranges: &[Range<usize>], range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = *range;
    let first = ranges.partition_point(|r| r.end <= start);
    let inside = ranges[first..].iter().take_while(move |r| r.start < end);
    inside.map(move |r| r.start.max(start) - start..r.end.min(end) - start)
}

/// For `map_err` on schema errors in this round.
pub(crate) fn schema<B: Backend>(round: &Round<'_, B>) -> impl Fn(SchemaError) -> AggregateError + use<B> {
    let round = round.index;
    move |source| AggregateError::Schema { round, source }
}
