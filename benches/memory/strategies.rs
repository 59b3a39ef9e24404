//! Time and peak memory of a round on the server, for each strategy: 10 answers of 10 million parameters, which come one
//! after the other.
//!
//! Every line is a process of its own. Time is that of the coordinator from the first answer to the next global vector,
//! median of the rounds after the first; peak resident memory is what the kernel says (`VmHWM`), so this runs on Linux.
//! It contains the global vector and one answer that is about to arrive, 40 MB each.
//!
//! ```sh
//! cargo run --release -p fedburn-benches --bin strategies
//! ```

use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn_flex::{Flex, FlexDevice};
use fedburn::core::{
    ClientReport, LocalUpdate, Metrics, Outcome, ParamEntry, ParamKind, ParamSchema, ParamVector, Reply, SideInfo,
};
use fedburn::prelude::*;
use fedburn::runtime::{All, Coordinator, Effect, Input};
use fedburn::strategies::StrategyConfig;
use fedburn_benches::peak_mib;
use rand::RngExt;

const CLIENTS: u64 = 10;
const VALUES: usize = 10_000_000;
const ROUNDS: usize = 6;

/// The `[strategy]` tables.
const TABLES: [&str; 21] = [
    "kind = 'fedavg'",
    "kind = 'fedavgm'",
    "kind = 'fedadagrad'",
    "kind = 'fedadam'",
    "kind = 'fedyogi'",
    "kind = 'fedams'",
    "kind = 'fednova'",
    "kind = 'scaffold'",
    "kind = 'feddyn'",
    "kind = 'swa'\nstart = 1",
    "kind = 'norm_clipping'",
    "kind = 'median'",
    "kind = 'trimmed_mean'",
    "kind = 'krum'",
    "kind = 'multi_krum'",
    "kind = 'bulyan'",
    "kind = 'geometric_median'",
    "kind = 'weight_erosion'",
    "kind = 'optimal_averaging'\nvariance = 0.01",
    "kind = 'ewwa'\nform = 'log_share'",
    "kind = 'ewwa'\nform = 'softmax'",
];

fn main() -> Result<(), Box<dyn Error>> {
    if let [_, table, threads] = &std::env::args().collect::<Vec<_>>()[..] {
        return measure(table, threads.parse()?);
    }
    println!("| strategy | one thread, s | two threads, s | peak, one thread, MiB | peak, two threads, MiB |");
    println!("|---|---:|---:|---:|---:|");
    for table in TABLES {
        let mut figures = Vec::new();
        for threads in ["1", "2"] {
            let done = Command::new(std::env::current_exe()?).args([table, threads]).output()?;
            if !done.status.success() {
                return Err(format!("{table}: {}", String::from_utf8_lossy(&done.stderr)).into());
            }
            figures.push(String::from_utf8(done.stdout)?.trim().to_owned());
        }
        let parts: Vec<_> = figures.iter().filter_map(|line| line.split_once(' ')).collect();
        let [(one, peak_one), (two, peak_two)] = parts[..] else { return Err(format!("{table}: no figures").into()) };
        let name = table.replace("kind = ", "").replace("form = ", "").replace('\'', "").replace('\n', ", ");
        println!("| `{name}` | {one} | {two} | {peak_one} | {peak_two} |");
    }
    Ok(())
}

/// Prints seconds a round and MiB.
fn measure(table: &str, threads: usize) -> Result<(), Box<dyn Error>> {
    let schema = Arc::new(ParamSchema::new(vec![ParamEntry::new("weight", vec![VALUES], ParamKind::Weight)])?);
    let vector = |values: Vec<f32>| ParamVector::<Flex>::from_host(values, schema.clone(), &FlexDevice);
    let config: StrategyConfig = toml::from_str(table)?;
    let controls = table.contains("scaffold");
    let clients: Vec<_> = (0..CLIENTS).map(|k| ClientInfo { id: ClientId(k), num_examples: 100 + 31 * k }).collect();
    let global = vector(vec![0.0; VALUES])?;
    let mut coordinator =
        Coordinator::new(config.build()?, Box::new(All), global, Seed::new(0), 1).with_threads(threads);
    let mut seconds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let mut spent = Duration::ZERO;
        let requests = coordinator.step(Input::Begin(&clients), Duration::ZERO)?;
        drop(requests);
        for client in &clients {
            let numbers = |tag: u64| {
                let mut rng = Seed::new(tag * 1000 + client.id.0).rng();
                let values: Vec<f32> = (0..VALUES).map(|_| rng.random_range(-1.0..1.0)).collect();
                vector(values)
            };
            let mut side = SideInfo::default();
            if controls {
                side.vectors.insert(SideInfo::<Flex>::CONTROL_DELTA.into(), numbers(1000 + round as u64)?);
            }
            let update = LocalUpdate {
                params: numbers(round as u64)?,
                num_examples: client.num_examples,
                side,
                report: ClientReport { accumulation: Some(20.0), steps: Some(20), class_counts: None },
                metrics: Metrics::new(),
            };
            let outcome = Outcome { client: client.id, reply: Ok(Reply::Trained(update)) };
            let began = Instant::now();
            for effect in coordinator.step(Input::Outcome(outcome), Duration::ZERO)? {
                match effect {
                    Effect::Close { round, included } if included.len() == clients.len() => {
                        coordinator.memory().commit(round, &included)?;
                        coordinator.memory().checkpointed(round)?;
                    }
                    Effect::Close { .. } => return Err("an answer was refused".into()),
                    _ => {}
                }
            }
            spent += began.elapsed();
        }
        seconds.push(spent.as_secs_f64());
    }
    let later = &mut seconds[1..];
    later.sort_by(f64::total_cmp);
    println!("{:.3} {:.0}", later[later.len() / 2], peak_mib()?);
    Ok(())
}
