//! Independent references: plain loops in `f64`, written from the definitions.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientUpdate, ParamVector, Round, RoundIndex, RoundMean, Seed, SideInfo, Strategy,
    UpdateSet, Weighting,
};

/// `sum_k w_k x_k / sum_k w_k`, element by element in `f64`.
pub fn weighted_mean(rows: &[(f64, Vec<f64>)]) -> Vec<f64> {
    let total: f64 = rows.iter().map(|(w, _)| w).sum();
    let len = rows.first().map_or(0, |(_, x)| x.len());
    (0..len).map(|i| rows.iter().map(|(w, x)| w * x[i]).sum::<f64>() / total).collect()
}

/// One round of any strategy over these updates, with means taken by [`weighted_mean`].
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
    let set = UpdateSet::new(updates.to_vec()).expect("at least one update");
    let cohort: Vec<_> = set.iter().map(|u| u.client).collect();
    let round = Round { index, global, cohort: &cohort, seed: Seed::new(1).round(index) };
    match strategy {
        Strategy::PerClient(strategy) => strategy.aggregate(&round, &set),
        Strategy::Mean(strategy) => {
            let weight = |u: &ClientUpdate<B>| match strategy.weighting() {
                Weighting::Examples => u.local.num_examples as f64,
                Weighting::Uniform => 1.0,
            };
            let row = |u: &ClientUpdate<B>| (weight(u), u.local.params.to_host().into_iter().map(f64::from).collect());
            let mean = weighted_mean(&set.iter().map(row).collect::<Vec<_>>()).into_iter().map(|v| v as f32).collect();
            let params = ParamVector::from_host(mean, global.schema().clone(), &global.device());
            let mean = RoundMean {
                params: params.expect("updates of the global vector's schema"),
                side: SideInfo::default(),
                num_examples: set.iter().map(|u| u.local.num_examples).sum(),
                num_updates: set.len(),
            };
            strategy.step(&round, &mean)
        }
    }
}
