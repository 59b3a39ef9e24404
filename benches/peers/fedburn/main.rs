//! fedburn's side of the jobs that no experiment plays: one step of training, and the mean of many large updates.
//!
//! Prints the line that the scripts beside it print: seconds, processor seconds and examples of each measurement.
//!
//! ```sh
//! cargo run --release -p fedburn-benches --bin fedburn-jobs -- --job step-cnn
//! ```

mod clock;
mod mean;
mod step;

use std::error::Error;
use std::num::NonZeroUsize;

use burn_flex::Flex;
use burn_ndarray::NdArray;
use clap::{Parser, ValueEnum};
use fedburn::models::{NormKind, ZooConfig};

#[derive(Parser)]
struct Arguments {
    /// What to do.
    #[arg(long)]
    job: Job,
    /// How often: means, or blocks of steps.
    #[arg(long, default_value = "20")]
    rounds: NonZeroUsize,
    /// Threads of the mean; a step has one.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Where a step computes.
    #[arg(long, default_value = "flex")]
    backend: Backend,
}

#[derive(Clone, Copy, ValueEnum)]
enum Job {
    #[value(name = "step-2nn")]
    StepTwoNn,
    StepCnn,
    #[value(name = "step-resnet20")]
    StepResNet20,
    Mean,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Flex,
    Ndarray,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { job, rounds, threads, backend } = Arguments::parse();
    let (rounds, threads) = (rounds.get(), threads.get());
    let resnet = ZooConfig::ResNet { depth: 20, norm: NormKind::Group, groups: None };
    // Model, shape of an example, steps in a block.
    let (model, shape, steps) = match job {
        Job::StepTwoNn => (ZooConfig::TwoNn { hidden: 200 }, [1, 28, 28], 50),
        Job::StepCnn => (ZooConfig::FedAvgCnn {}, [1, 28, 28], 4),
        Job::StepResNet20 => (resnet, [3, 32, 32], 2),
        Job::Mean => return mean::measure(rounds, threads)?.report("mean", threads),
    };
    let clock = match backend {
        Backend::Flex => step::measure::<Flex>(model, shape, steps, rounds)?,
        Backend::Ndarray => step::measure::<NdArray>(model, shape, steps, rounds)?,
    };
    let name = job.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    clock.report(&name, 1)
}
