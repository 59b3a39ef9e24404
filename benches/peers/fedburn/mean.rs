//! The exact weighted mean of 10 updates of 10,000,000 values, from updates in memory to a vector of its own.

use std::error::Error;
use std::hint::black_box;

use fedburn::core::Seed;
use fedburn::runtime::exact_mean_into;
use rand::RngExt;

use crate::clock::Clock;

const UPDATES: u64 = 10;
const VALUES: usize = 10_000_000;

/// Takes `rounds` means on `threads` threads, each into the same vector, as the peer does.
pub fn measure(rounds: usize, threads: usize) -> Result<Clock, Box<dyn Error>> {
    let vectors: Vec<(Vec<f32>, u64)> = (0..UPDATES).map(|k| (numbers(k), 100 + 90 * k)).collect();
    let updates: Vec<_> = vectors.iter().map(|(values, weight)| (&values[..], *weight)).collect();
    let mut mean = vec![1.0; VALUES];
    let mut clock = Clock::default();
    for _ in 0..rounds {
        clock.time(1, || exact_mean_into(&mut mean, &updates, threads))?;
        black_box(&mean);
    }
    Ok(clock)
}

fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}
