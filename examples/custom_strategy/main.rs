//! A strategy of one's own: the coordinate-wise median, which a minority of broken clients cannot carry away.
//!
//! D. Yin, Y. Chen, K. Ramchandran, P. Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
//! Rates", ICML 2018, arXiv 1803.01498.
//!
//! ```text
//! x_{t+1}[i] = median_k x_k[i]        for an even number of clients the mean of the two middle values
//! ```
//!
//! State between rounds: none. Memory: cohort times chunk. How much a client counts does not depend on its number of
//! examples: a number that the client itself tells is a number that it may lie about.

use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use fedburn::core::{
    Aggregate, AggregateError, ClientUpdate, PerClientStrategy, Round, RoundIndex, Strategy, UpdateSet,
};
use fedburn_testkit::{combine, schema, update, vector};

/// Takes the median of each parameter over the cohort.
struct CoordinateMedian {
    /// Parameters handled at a time, at least 1.
    chunk: usize,
}

impl<B: Backend> PerClientStrategy<B> for CoordinateMedian {
    fn name(&self) -> &'static str {
        "coordinate_median"
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let chunks = updates.chunks(self.chunk).map(|range| median(updates.chunk(range)));
        let values = Tensor::cat(chunks.collect(), 0);
        let global = round.global.with_values(values);
        Ok(global.map_err(|source| AggregateError::Schema { round: round.index, source })?.into())
    }
}

/// The median over the rows of `values`, `[clients, parameters]`; the result is `[parameters]`.
fn median<B: Backend>(values: Tensor<B, 2>) -> Tensor<B, 1> {
    let [clients, _] = values.dims();
    let sorted = values.sort(0);
    let (low, high) = ((clients - 1) / 2, clients / 2 + 1);
    sorted.narrow(0, low, high - low).mean_dim(0).squeeze_dim(0)
}

/// Six clients that agree more or less, and one that is broken.
fn round() -> Vec<ClientUpdate<Flex>> {
    let rows = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [1.05, 1.0], [0.95, 1.05], [1.0, 0.9], [10.0, -10.0]];
    let schema = schema(&[2]);
    (0..).zip(rows).map(|(client, row)| update(client, 1, vector(&row, &schema, &FlexDevice))).collect()
}

fn main() -> Result<(), AggregateError> {
    let updates = round();
    let global = updates[0].local.params.clone();
    let mut strategy = Strategy::<Flex>::PerClient(Box::new(CoordinateMedian { chunk: 1 << 20 }));
    let next = combine(&mut strategy, RoundIndex(1), &global, &updates)?.global;
    println!("{}: {:?}", strategy.name(), next.to_host());
    Ok(())
}

#[cfg(test)]
mod tests {
    use fedburn_testkit::{Convexity, strategy_laws};

    use super::*;

    fn strategy(chunk: usize) -> Strategy<Flex> {
        Strategy::PerClient(Box::new(CoordinateMedian { chunk }))
    }

    #[test]
    fn it_keeps_the_laws_of_strategies() {
        strategy_laws(|| strategy(3), Convexity::Convex, &FlexDevice);
    }

    #[test]
    fn a_broken_client_changes_nothing() -> Result<(), AggregateError> {
        let updates = round();
        let next = |n: usize| combine(&mut strategy(1), RoundIndex(1), &updates[0].local.params, &updates[..n]);
        assert_eq!(next(7)?.global.to_host(), [1.0, 1.0]);
        assert_eq!(next(2)?.global.to_host(), [(1.0 + 1.1) / 2.0, (1.0 + 0.9) / 2.0]);
        Ok(())
    }
}
