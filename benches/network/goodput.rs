//! How fast one client's update comes in, beside bare QUIC and gRPC that carry as many bytes.
//!
//! The time is from the client's having the update to the server's having its values in memory of their own. A federation
//! also hashes each chunk at both ends. The others come a second time with a receiver that drops what comes.

use std::error::Error;

use clap::Args;
use fedburn_benches::Took;

use super::federation::{Bench, Setup};
use super::rivals::{Kind, Rival};

/// Uploads in turns.
#[derive(Args)]
pub struct Goodput {
    /// MiB of the update.
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// How often each takes its turn, at least once.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
}

impl Goodput {
    /// Takes turns and prints a table.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        let mut bench = Bench::start(Setup { hold: true, ..Setup::new(self.mib << 18, 1, 1) })?;
        bench.connect()?;
        let rivals = [
            ("bare quinn", Kind::Quinn, true),
            ("tonic", Kind::Grpc, true),
            ("bare quinn, dropped", Kind::Quinn, false),
            ("tonic, dropped", Kind::Grpc, false),
        ];
        let start = |(_, kind, keep)| Rival::start(kind, keep, self.mib, bench.dir());
        let mut started = rivals.map(start).into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut turns = Vec::new();
        for turn in 0..=u64::from(self.turns) {
            let ours = bench.exchange(turn + 1)?;
            let theirs = started.iter_mut().map(Rival::upload).collect::<Result<Vec<_>, _>>()?;
            turns.push([vec![ours], theirs].concat());
        }
        bench.end()?;
        // In the first turn windows grow and memory is got.
        let (turns, mib) = (&turns[1..], self.mib as f64);
        println!("{mib} MiB from one client, loopback, mutual TLS, {} turns of each; median (range)", self.turns);
        println!("QUIC's packets have up to 6,500 bytes, TCP's segments on loopback up to 64 KiB");
        println!("{:20} {:>22} {:>22} {:>22}", "", "MiB/s", "fedburn's rate to it", "CPU of both, s a GiB");
        for (who, name) in ["fedburn"].into_iter().chain(rivals.map(|(name, ..)| name)).enumerate() {
            let of = |value: fn(&Took) -> f64| turns.iter().map(move |turn| value(&turn[who]));
            let rate = spread(of(|took| took.wall.as_secs_f64()).map(|seconds| mib / seconds), 0);
            // Of each turn, so that what else the machine does is in both.
            let ratio = turns.iter().map(|turn| turn[who].wall.as_secs_f64() / turn[0].wall.as_secs_f64());
            let cpu = spread(of(|took| took.cpu).map(|seconds| seconds * 1024.0 / mib), 2);
            println!("{name:20} {rate:>22} {:>22} {cpu:>22}", spread(ratio, 2));
        }
        Ok(())
    }
}

/// Median and range.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}
