//! The machine that figures are taken on, as far as its kernel tells.

use std::fs;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use serde_json::{Value, json};

/// What figures depend on.
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    memory_gib: Option<f64>,
    /// Programs that ran, mean of the last minute.
    load: Option<f64>,
}

impl Machine {
    /// This machine, now.
    pub fn now() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory =
            field(&file("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        Self {
            processor: field(&file("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: available_parallelism().map_or(1, NonZeroUsize::get),
            memory_gib: memory.map(|kib| kib / f64::from(1 << 20)),
            load: load(),
        }
    }

    /// One line for people.
    pub fn shown(&self) -> String {
        let memory = self.memory_gib.map(|gib| format!(", {gib:.0} GiB")).unwrap_or_default();
        let load = self.load.map(|load| format!(", load {load:.2} at the start")).unwrap_or_default();
        let cores = if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        format!("{}, {cores}{memory}, {}{load}", self.processor, std::env::consts::OS)
    }

    /// A warning where other programs run.
    pub fn warning(&self) -> Option<String> {
        let load = self.load.filter(|load| *load > 0.5)?;
        Some(format!("the load is {load:.2}: other programs take turns with the ones measured, look at processor time"))
    }

    pub fn json(&self) -> Value {
        let Self { processor, cores, memory_gib, load } = self;
        let os = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        json!({ "processor": processor, "cores": cores, "memory_gib": memory_gib, "load_at_start": load, "os": os })
    }
}

/// Programs that ran in the last minute, on average.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The first `name : value` of a table of the kernel.
pub fn field(table: &str, name: &str) -> Option<String> {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_kernels_tables_are_found() {
        let table = "processor\t: 0\nmodel name\t: Fast 9000\nMemTotal:       1024 kB\n";
        assert_eq!(field(table, "model name").as_deref(), Some("Fast 9000"));
        assert_eq!(field(table, "MemTotal").as_deref(), Some("1024 kB"));
        assert_eq!(field(table, "missing"), None);
    }

    #[test]
    fn a_busy_machine_is_told() {
        let machine = |load| Machine { processor: "p".to_owned(), cores: 2, memory_gib: Some(4.0), load };
        assert!(machine(Some(2.0)).warning().is_some_and(|text| text.contains("2.00")));
        assert!(machine(Some(0.1)).warning().is_none() && machine(None).warning().is_none());
        assert!(machine(Some(0.1)).shown().starts_with("p, 2 cores, 4 GiB"));
    }
}
