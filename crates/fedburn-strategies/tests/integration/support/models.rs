//! Small models for strategies that run them on the server.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, ClientUpdate, ModelFamily, ParamVector, RoundIndex, Seed, Strategy, flatten};
use fedburn_models::{Zoo, ZooConfig};
use fedburn_ops::Kernels;
use fedburn_testkit::{Rounds, update};

/// Channels, height and width of the examples.
pub const INPUT: [usize; 3] = [1, 4, 4];
pub const CLASSES: usize = 3;

/// The models of a config's `[model]` table.
pub fn zoo(table: &str) -> Zoo {
    toml::from_str::<ZooConfig>(table).unwrap().build(INPUT, CLASSES).unwrap()
}

/// The model that `seed` draws.
pub fn params<B: Kernels>(family: &Zoo, seed: u64) -> ParamVector<B> {
    flatten(&ModelFamily::<B>::init(family, Seed::new(seed), &Default::default())).unwrap()
}

/// A client with the model that `seed` draws, which tells of its examples where there are counts.
pub fn told<B: Kernels>(family: &Zoo, seed: u64, counts: Option<[u64; CLASSES]>) -> ClientUpdate<B> {
    let mut update = update(seed, counts.map_or(5, |c| c.iter().sum()), params(family, seed));
    update.local.report.class_counts = counts.map(Vec::from);
    update
}

pub fn round<B: Backend>(
    strategy: &mut Strategy<B>,
    index: u64,
    global: &ParamVector<B>,
    updates: &[ClientUpdate<B>],
) -> Aggregate<B> {
    Rounds::new(10).combine(strategy, RoundIndex(index), global, updates).unwrap()
}
