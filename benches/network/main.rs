//! Rounds over QUIC on loopback with mutual TLS: latency, throughput, memory, a thousand clients at once.
//!
//! The server is this process, the nodes are processes of their own. Clients do not train: they send back what they
//! were sent, so that what is measured is the transport, with the server's mean where it is said. Peak resident memory
//! is what the kernel says (`VmHWM`), so this runs on Linux.
//!
//! ```sh
//! cargo run --release -p fedburn-benches --bin network -- empty   # 10 clients, a model of 1 KiB
//! cargo run --release -p fedburn-benches --bin network -- large   # 2 clients, a model of 100 MB
//! cargo run --release -p fedburn-benches --bin network -- many    # 1,000 clients, 1 MiB each, at once
//! cargo run --release -p fedburn-benches --bin network -- goodput # one client's upload, beside bare QUIC and gRPC
//! cargo run --release -p fedburn-benches --bin network -- loss    # 20 clients, 64 MiB each, 1, 5 and 10% of packets lost
//! ```

mod federation;
mod goodput;
mod loss;
mod rivals;

use std::error::Error;

use clap::{Parser, Subcommand};
use fedburn_benches::{peak_mib, reset_peak};

use federation::{Bench, NodesOf, Setup, model_mib};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Rounds of 10 clients with a model of 1 KiB.
    Empty {
        #[arg(long, default_value_t = 1_000)]
        rounds: usize,
    },
    /// Rounds of a few clients with a model of 100 MB, with and without the server's mean.
    Large {
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        #[arg(long, default_value_t = 2)]
        clients: usize,
    },
    /// 1,000 clients connect at once; when each has been sent 1 MiB, all send it back at once.
    Many {
        #[arg(long, default_value_t = 1_000)]
        clients: usize,
        #[arg(long, default_value_t = 8)]
        processes: usize,
    },
    /// One client uploads a large update; bare QUIC and gRPC carry the same bytes in turns with it.
    Goodput(goodput::Goodput),
    /// 20 clients are sent 64 MiB each and send it back over a path that loses packets, in a namespace of its own.
    Loss(loss::Loss),
    /// A process of nodes; started by the others.
    #[command(hide = true)]
    Nodes(NodesOf),
    /// A process that sends without a federation; started by `goodput`.
    #[command(hide = true)]
    Send(rivals::Sender),
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse().what {
        What::Empty { rounds } => empty(rounds),
        What::Large { rounds, clients } => large(rounds, clients),
        What::Many { clients, processes } => many(clients, processes),
        What::Goodput(goodput) => goodput.run(),
        What::Loss(loss) => loss.run(),
        What::Nodes(nodes) => nodes.work(),
        What::Send(sender) => sender.work(),
    }
}

fn empty(rounds: usize) -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::start(Setup::new(256, 10, 10))?;
    bench.connect()?;
    let mut times = Vec::new();
    for round in 0..rounds as u64 {
        times.push(bench.exchange(round + 1)?.wall);
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("empty round, 10 clients, 1 KiB: p50 {:.2} ms, p99 {:.2} ms, {rounds} rounds", at(0.5), at(0.99));
    bench.end()?;
    Ok(())
}

fn large(rounds: usize, clients: usize) -> Result<(), Box<dyn Error>> {
    let values = 25_000_000;
    let setup = || Setup::new(values, clients, clients);
    let models = |mib: f64| format!("{:.2} models ({mib:.0} MiB)", mib / model_mib(values));
    let mut bench = Bench::start(setup())?;
    bench.connect()?;
    let mut times = Vec::new();
    for round in 0..rounds as u64 {
        times.push(bench.exchange(round + 1)?.wall.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!("round, {clients} clients, 100 MB, transport alone: median {:.3} s, {rounds} rounds", times[rounds / 2]);
    println!("server peak: {}", models(peak_mib()?));
    println!("node peak: {}", models(bench.end()?));

    reset_peak()?;
    let seconds = Bench::start(setup())?.run(rounds as u64)?;
    println!("round, {clients} clients, 100 MB, with the server's mean: {seconds:.3} s on average");
    println!("server peak: {}", models(peak_mib()?));
    Ok(())
}

fn many(clients: usize, processes: usize) -> Result<(), Box<dyn Error>> {
    let values = 1 << 18;
    let mut bench = Bench::start(Setup { hold: true, ..Setup::new(values, clients, processes) })?;
    let connected = bench.connect()?;
    println!("{clients} clients connected within {:.2} s", connected.as_secs_f64());
    for round in 1..=5 {
        let took = bench.exchange(round)?.wall.as_secs_f64();
        let rate = clients as f64 * model_mib(values) / took;
        println!("{clients} clients upload 1 MiB at once: {took:.2} s, {rate:.0} MiB/s, nobody lost");
    }
    println!("server peak: {:.0} MiB", peak_mib()?);
    println!("largest peak of a process of nodes: {:.0} MiB", bench.end()?);
    Ok(())
}
