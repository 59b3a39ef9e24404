//! What each measurement took.

use std::error::Error;
use std::fs;
use std::time::Instant;

use serde_json::json;

/// Ticks of the kernel's process times in a second: the same on every Linux.
const TICKS: f64 = 100.0;

/// Wall-clock and processor seconds of each measurement, and the examples in it.
#[derive(Default)]
pub struct Clock {
    seconds: Vec<f64>,
    processor_seconds: Vec<f64>,
    examples: Vec<usize>,
}

impl Clock {
    /// Measures `work`, which goes through `examples`.
    pub fn time<T>(&mut self, examples: usize, work: impl FnOnce() -> T) -> T {
        let (wall, processor) = (Instant::now(), processor_seconds());
        let done = work();
        self.seconds.push(wall.elapsed().as_secs_f64());
        self.processor_seconds.push(processor_seconds() - processor);
        self.examples.push(examples);
        done
    }

    /// Prints the measurements as one line of JSON.
    pub fn report(self, job: &str, threads: usize) -> Result<(), Box<dyn Error>> {
        let line = json!({
            "peer": "fedburn",
            "job": job,
            "threads": threads,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "examples": self.examples,
            "peak_memory_mib": fedburn_benches::peak_mib().ok(),
            "versions": { "fedburn": env!("CARGO_PKG_VERSION") },
        });
        println!("{line}");
        Ok(())
    }
}

/// Processor seconds of this process, all threads; 0 where the kernel does not tell them.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; user and system time are the 12th and 13th fields after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}
