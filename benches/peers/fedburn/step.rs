//! Steps of local training: forward, loss, backward, plain SGD, batch 32, one thread, on batches that are ready.

use std::error::Error;
use std::sync::Arc;

use fedburn::data::Batch;
use fedburn::data::datasets::{Synthetic, SyntheticConfig};
use fedburn::models::{Zoo, ZooConfig};
use fedburn::ops::Kernels;
use fedburn::prelude::*;
use fedburn::train::{CrossEntropy, ResidentModel, descend};

use crate::clock::Clock;

const BATCH: usize = 32;
const LR: f64 = 0.01;

/// Takes `rounds` blocks of `steps` steps with the zoo's `model` for inputs of `shape`.
pub fn measure<B: Kernels>(
    model: ZooConfig,
    shape: [usize; 3],
    steps: usize,
    rounds: usize,
) -> Result<Clock, Box<dyn Error>> {
    let device = B::Device::default();
    let blobs = SyntheticConfig { shape, train: BATCH * steps, ..SyntheticConfig::default() };
    let data = ClientData::all(Arc::new(Synthetic::new(blobs)?.train()?));
    let training = LocalTrainingConfig::sgd(1, BATCH, LR).build()?;
    let batches: Vec<Batch<B>> = training.batches::<B>(&data, Seed::new(1), &device).collect();
    let family = model.build(shape, 10)?;
    let global = flatten(&ModelFamily::<B>::init(&family, Seed::new(0), &device))?;
    let mut resident = ResidentModel::<B, Zoo>::new(family, device);
    let mut clock = Clock::default();
    for _ in 0..rounds {
        let model = resident.load(&global)?;
        let batches = batches.iter().cloned();
        let done =
            clock.time(steps * BATCH, || descend(model, batches, &mut CrossEntropy, &mut training.optimiser(), LR));
        resident.keep(done?.model);
    }
    Ok(clock)
}
