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
use std::time::{Duration, Instant};

use burn_flex::Flex;
use fedburn::core::SideInfo;
use fedburn_benches::peak_mib;
use fedburn_benches::rounds::{Rounds, numbers};

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
    let mut rounds = Rounds::of(table, threads)?;
    let controls = table.contains("scaffold");
    let mut seconds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS as u64 {
        let mut spent = Duration::ZERO;
        rounds.begin()?;
        for client in rounds.clients() {
            let vector = |tag: u64| rounds.vector(numbers(tag * 1000 + client.id.0));
            let mut side = SideInfo::default();
            if controls {
                side.vectors.insert(SideInfo::<Flex>::CONTROL_DELTA.into(), vector(1000 + round)?);
            }
            let params = vector(round)?;
            let began = Instant::now();
            rounds.answer(client, params, side)?;
            spent += began.elapsed();
        }
        seconds.push(spent.as_secs_f64());
    }
    let later = &mut seconds[1..];
    later.sort_by(f64::total_cmp);
    println!("{:.3} {:.0}", later[later.len() / 2], peak_mib()?);
    Ok(())
}
