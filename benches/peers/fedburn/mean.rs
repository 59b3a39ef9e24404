//! The exact weighted mean of 10 updates of 10,000,000 values, from updates in memory to a vector of its own.

use std::error::Error;
use std::hint::black_box;
use std::thread;

use fedburn::core::Seed;
use fedburn::runtime::{ExactSum, ExactSumError};
use rand::RngExt;

use crate::clock::Clock;

const UPDATES: u64 = 10;
const VALUES: usize = 10_000_000;

/// Takes `rounds` means, each of `threads` threads an equal share of the values.
pub fn measure(rounds: usize, threads: usize) -> Result<Clock, Box<dyn Error>> {
    let updates: Vec<(Vec<f32>, u64)> = (0..UPDATES).map(|k| (numbers(k), 100 + 90 * k)).collect();
    let mut clock = Clock::default();
    for _ in 0..rounds {
        let mut mean = vec![0.0; VALUES];
        clock.time(1, || fill(&mut mean, &updates, threads))?;
        black_box(mean);
    }
    Ok(clock)
}

fn fill(mean: &mut [f32], updates: &[(Vec<f32>, u64)], threads: usize) -> Result<(), ExactSumError> {
    let share = mean.len().div_ceil(threads);
    thread::scope(|scope| {
        let parts: Vec<_> = mean
            .chunks_mut(share)
            .enumerate()
            .map(|(k, part)| scope.spawn(move || one(part, updates, k * share)))
            .collect();
        parts.into_iter().try_for_each(|part| part.join().expect("a sum does not panic"))
    })
}

/// The values of the mean from `start` on.
fn one(mean: &mut [f32], updates: &[(Vec<f32>, u64)], start: usize) -> Result<(), ExactSumError> {
    let mut sum = ExactSum::new(mean.len());
    for (values, weight) in updates {
        sum.add(&values[start..start + mean.len()], *weight)?;
    }
    mean.copy_from_slice(&sum.mean()?);
    Ok(())
}

fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}
