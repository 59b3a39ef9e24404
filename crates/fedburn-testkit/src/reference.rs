//! Independent references: plain loops in `f64`, written from the definitions.

pub mod averaging;
pub mod ewwa;
pub mod robust;
pub mod server;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientUpdate, MemoryStore, ParamVector, Round, RoundIndex, RoundMean, Seed, SideInfo,
    StateStore, Strategy, UpdateSet, Weighting,
};

/// `sum_k w_k x_k / sum_k w_k`, element by element in `f64`.
pub fn weighted_mean(rows: &[(f64, Vec<f64>)]) -> Vec<f64> {
    let total: f64 = rows.iter().map(|(w, _)| w).sum();
    let len = rows.first().map_or(0, |(_, x)| x.len());
    (0..len).map(|i| rows.iter().map(|(w, x)| w * x[i]).sum::<f64>() / total).collect()
}

/// One round of any strategy over these updates: [`Rounds::combine`] without a memory of earlier rounds.
///
/// # Errors
/// What the strategy answers.
///
/// # Panics
/// Where there is no update.
pub fn combine<B: Backend>(
    strategy: &mut Strategy<B>,
    index: RoundIndex,
    global: &ParamVector<B>,
    updates: &[ClientUpdate<B>],
) -> Result<Aggregate<B>, AggregateError> {
    Rounds::new(updates.len() as u64).combine(strategy, index, global, updates)
}

/// Rounds of a strategy without a federation, with means taken by [`weighted_mean`].
#[derive(Debug)]
pub struct Rounds {
    /// Number of clients that the strategy is told.
    pub population: u64,
    /// What the strategy remembers of clients; each round is committed.
    pub memory: MemoryStore,
}

impl Rounds {
    /// Nothing remembered yet.
    pub fn new(population: u64) -> Self {
        Self { population, memory: MemoryStore::new() }
    }

    /// One round of any strategy over these updates.
    ///
    /// # Errors
    /// What the strategy answers.
    ///
    /// # Panics
    /// Where there is no update, or clients sent different pieces of side information to a rule that sees their mean.
    pub fn combine<B: Backend>(
        &self,
        strategy: &mut Strategy<B>,
        index: RoundIndex,
        global: &ParamVector<B>,
        updates: &[ClientUpdate<B>],
    ) -> Result<Aggregate<B>, AggregateError> {
        let set = UpdateSet::new(updates.to_vec()).expect("at least one update");
        let cohort: Vec<_> = set.iter().map(|u| u.client).collect();
        let (population, seed) = (self.population, Seed::new(1).round(index));
        let round = Round { index, global, cohort: &cohort, population, seed, memory: &self.memory };
        let aggregate = match strategy {
            Strategy::PerClient(strategy) => strategy.aggregate(&round, &set)?,
            Strategy::Mean(strategy) => {
                let mean = mean(&set, strategy.weighting());
                strategy.step(&round, &mean)?
            }
        };
        self.memory.commit(index, &cohort).expect("the memory is not locked");
        Ok(aggregate)
    }
}

fn mean<B: Backend>(set: &UpdateSet<B>, weighting: Weighting) -> RoundMean<B> {
    let weight = |u: &ClientUpdate<B>| match weighting {
        Weighting::Examples => u.local.num_examples as f64,
        Weighting::Uniform => 1.0,
    };
    let vector = |of: &dyn Fn(&ClientUpdate<B>) -> ParamVector<B>| {
        let row = |u| (weight(u), of(u).to_host().into_iter().map(f64::from).collect());
        let values = weighted_mean(&set.iter().map(row).collect::<Vec<_>>()).into_iter().map(|v| v as f32).collect();
        let like = of(set.iter().next().expect("at least one update"));
        ParamVector::from_host(values, like.schema().clone(), &like.device()).expect("as long as its schema")
    };
    let mut side = SideInfo::default();
    let first = set.iter().next().expect("at least one update");
    for name in first.local.side.vectors.keys() {
        side.vectors.insert(name.clone(), vector(&|u| u.local.side.vectors[name].clone()));
    }
    for name in first.local.side.scalars.keys() {
        let rows: Vec<_> = set.iter().map(|u| (weight(u), vec![u.local.side.scalars[name]])).collect();
        side.scalars.insert(name.clone(), weighted_mean(&rows)[0]);
    }
    RoundMean {
        params: vector(&|u| u.local.params.clone()),
        side,
        num_examples: set.iter().map(|u| u.local.num_examples).sum(),
        num_updates: set.len(),
        holders: None,
    }
}
