//! What the tests of strategies share.

pub mod models;

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, ClientUpdate, ParamVector, RoundIndex, Strategy};
use fedburn_strategies::StrategyConfig;
use fedburn_testkit::{Rounds, base_case, update, vector};

/// Calls a check of one type parameter on both CPU backends.
macro_rules! on_both {
    ($check:ident $(, $argument:expr)*) => {{
        $check::<burn_flex::Flex>($($argument),*);
        $check::<burn_ndarray::NdArray>($($argument),*);
    }};
}
pub(crate) use on_both;

/// The strategy of a config's `[strategy]` table.
pub fn build<B: Backend>(table: &str) -> Strategy<B> {
    toml::from_str::<StrategyConfig>(table).unwrap().build().unwrap()
}

/// The reason why a table is refused.
pub fn refusal(table: &str) -> String {
    match toml::from_str::<StrategyConfig>(table) {
        Ok(config) => config.build::<burn_flex::Flex>().err().unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

/// A strategy over rounds, each from where the one before ended.
pub struct Course<B: Backend> {
    pub strategy: Strategy<B>,
    pub global: ParamVector<B>,
    rounds: Rounds,
    index: RoundIndex,
}

impl<B: Backend> Course<B> {
    pub fn new(table: &str, global: ParamVector<B>, population: u64) -> Self {
        Self { strategy: build(table), global, rounds: Rounds::new(population), index: RoundIndex(0) }
    }

    /// The BASE case's global vector, and the vector after its first round.
    pub fn base(table: &str) -> (Self, Vec<f32>) {
        let (global, updates) = base_case::<B>(&Default::default());
        let mut course = Self::new(table, global, 2);
        let first = course.round(&updates).global.to_host();
        (course, first)
    }

    pub fn round(&mut self, updates: &[ClientUpdate<B>]) -> Aggregate<B> {
        self.index = self.index.next();
        let aggregate = self.rounds.combine(&mut self.strategy, self.index, &self.global, updates).unwrap();
        self.global = aggregate.global.clone();
        aggregate
    }

    /// A round of one client that moved by `delta`.
    pub fn moved(&mut self, delta: &[f32]) -> Vec<f32> {
        let values: Vec<_> = self.global.to_host().iter().zip(delta).map(|(x, d)| x + d).collect();
        let params = vector(&values, self.global.schema(), &self.global.device());
        self.round(&[update(0, 4, params)]).global.to_host()
    }

    /// The next round is this one.
    pub fn skip_to(&mut self, index: u64) {
        self.index = RoundIndex(index - 1);
    }
}

/// Within `tolerance`, absolute for values up to 1 and relative above.
#[track_caller]
pub fn assert_near(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let near = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs() <= tolerance * y.abs().max(1.0);
    assert!(found.iter().zip(expected).all(near), "{what}: {found:?}, expected {expected:?}");
}
