//! What the measuring programs share.

pub mod rounds;

use std::io;
use std::time::{Duration, Instant};

/// Lets [`peak_mib`] begin anew from what is resident now.
///
/// # Errors
/// Where the kernel does not allow it: elsewhere than on Linux.
pub fn reset_peak() -> io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

/// What something took: of the clock, and of the processors.
#[derive(Clone, Copy)]
pub struct Took {
    /// Time that passed.
    pub wall: Duration,
    /// Seconds of processor time of the processes that were watched, all their threads together, to a hundredth.
    pub cpu: f64,
}

/// Measures what something takes.
pub struct Stopwatch {
    processes: Vec<u32>,
    began: Instant,
    used: f64,
}

impl Stopwatch {
    /// Starts now, with this process and `others` for processor time.
    ///
    /// # Errors
    /// Where the kernel does not tell processor times: elsewhere than on Linux.
    pub fn start(others: impl IntoIterator<Item = u32>) -> io::Result<Self> {
        let processes: Vec<u32> = others.into_iter().chain([std::process::id()]).collect();
        let used = cpu_seconds(&processes)?;
        Ok(Self { processes, began: Instant::now(), used })
    }

    /// What it took until now.
    ///
    /// # Errors
    /// As [`Stopwatch::start`], and where a process has ended.
    pub fn stop(self) -> io::Result<Took> {
        Ok(Took { wall: self.began.elapsed(), cpu: cpu_seconds(&self.processes)? - self.used })
    }
}

fn cpu_seconds(processes: &[u32]) -> io::Result<f64> {
    let unknown = || io::Error::other("the kernel does not tell processor times");
    let used = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // Behind the name, which is in brackets and may hold anything: user and system time are the 12th and 13th field,
        // in hundredths of a second whatever the kernel's own clock is.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        fields.map(|field| field.parse::<f64>().map_err(|_| unknown())).sum::<io::Result<f64>>()
    };
    Ok(processes.iter().map(used).sum::<io::Result<f64>>()? / 100.0)
}

/// Peak resident memory of this process in MiB since its start or [`reset_peak`], as the kernel tells it (`VmHWM`).
///
/// # Errors
/// Where the kernel does not tell it: elsewhere than on Linux.
pub fn peak_mib() -> io::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: f64 = kib.ok_or_else(|| io::Error::other("the kernel does not tell VmHWM"))?;
    Ok(kib / 1024.0)
}
