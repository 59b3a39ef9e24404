//! The clients of a run: what they keep for themselves, and what the plain global model is worth to them.

use std::sync::Arc;
use std::thread;

use fedburn::core::{ClientId, Metrics, ParamVector, Population};
use fedburn::models::Zoo;
use fedburn::ops::Kernels;
use fedburn::strategies::MixingClient;
use fedburn::train::{LocalSgd, MemoryLog, SupervisedPopulation};

use crate::assemble::Run;

/// All clients of `run`, each with its configured wrapper; what their training holds is recorded in `memory`.
pub(crate) fn population<B: Kernels>(
    run: &Run,
    device: &B::Device,
    memory: Option<Arc<MemoryLog>>,
) -> SupervisedPopulation<B, Zoo> {
    let experiment = run.experiment();
    let (zoo, training) = (experiment.zoo().clone(), experiment.training().clone());
    let population = SupervisedPopulation::new(run.training_data(), zoo, training.clone(), device.clone());
    let population = match memory {
        Some(log) => population.with_memory_log(log),
        None => population,
    };
    let population = match experiment.generator().cloned() {
        Some(generator) => population.with_rule(move || training.rule_with(generator.clone())),
        None => population,
    };
    match experiment.mixing().cloned() {
        Some(mixing) => population.with_wrapper(move |client| Box::new(MixingClient::new(client, mixing.clone()))),
        None => population,
    }
}

/// Accuracy of `global` itself for each client that was measured, on the same examples.
pub(crate) fn global_accuracy<B: Kernels>(
    run: &Run,
    measured: &[(ClientId, Metrics)],
    global: &ParamVector<B>,
    workers: usize,
) -> Vec<Option<f64>> {
    let experiment = run.experiment();
    if experiment.config().client.personal.is_none() {
        return measured.iter().map(|(_, metrics)| metrics.get(Metrics::ACCURACY)).collect();
    }
    let (zoo, training) = (experiment.zoo().clone(), experiment.training().clone());
    let plain = SupervisedPopulation::<B, Zoo>::new(run.training_data(), zoo, training, global.device());
    let plain = plain.with_rule(|| Box::new(LocalSgd));
    let measure = |part: &[(ClientId, Metrics)]| -> Vec<Option<f64>> {
        let mut worker = plain.worker();
        let mut accuracy = |id| worker.client(id).ok()?.evaluate(global).ok()?.get(Metrics::ACCURACY);
        part.iter().map(|(id, _)| accuracy(*id)).collect()
    };
    let parts = measured.chunks(measured.len().div_ceil(threads(workers)).max(1));
    thread::scope(|scope| {
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || measure(part))).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results.flat_map(|result| result.unwrap_or_else(|cause| std::panic::resume_unwind(cause))).collect()
    })
}

/// Number of threads for a configured number of workers, where 0 asks for one a core.
pub(crate) fn threads(workers: usize) -> usize {
    match workers {
        0 => thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        n => n,
    }
}
