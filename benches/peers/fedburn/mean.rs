//! The exact weighted mean of 10 updates of 10,000,000 values, all in memory, into a vector that is there.

use std::error::Error;
use std::hint::black_box;

use fedburn::core::Seed;
use fedburn::runtime::exact_mean_into;
use rand::RngExt;

use crate::clock::Clock;

const UPDATES: u64 = 10;
const VALUES: usize = 10_000_000;

/// Takes `rounds` means on `threads` threads.
pub fn measure(rounds: usize, threads: usize) -> Result<Clock, Box<dyn Error>> {
    let values: Vec<Vec<f32>> = (0..UPDATES).map(numbers).collect();
    let updates: Vec<(&[f32], u64)> = values.iter().map(Vec::as_slice).zip((100..).step_by(90)).collect();
    let mut mean = vec![0.0; VALUES];
    let mut clock = Clock::default();
    for _ in 0..rounds {
        clock.time(1, || exact_mean_into(black_box(&mut mean), &updates, threads))?;
    }
    Ok(clock)
}

fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}
