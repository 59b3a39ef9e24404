//! A run of micro benchmarks held against a stored one, from the files that criterion leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::table::Table;
use crate::workspace::{entries, name, read};

/// One benchmark before and now, in nanoseconds.
pub struct Change {
    bench: String,
    now: f64,
    before: Option<Before>,
}

struct Before {
    median: f64,
    /// Ends of the confidence interval of the relative change.
    change: (f64, f64),
}

impl Change {
    /// Whether even the low end of the confidence interval is a slow-down beyond `noise`, a share.
    pub fn is_slower(&self, noise: f64) -> bool {
        self.before.as_ref().is_some_and(|before| before.change.0 > noise)
    }

    fn verdict(&self, noise: f64) -> &'static str {
        match &self.before {
            None => "new",
            Some(_) if self.is_slower(noise) => "SLOWER",
            Some(before) if before.change.1 < -noise => "faster",
            Some(_) => "same",
        }
    }
}

/// Refuses a name under which nothing is kept.
pub fn check_kept(results: &Path, wanted: &str) -> Result<(), String> {
    let mut kept: Vec<String> =
        folders(results)?.iter().filter(|f| f.join("estimates.json").is_file()).map(|f| name(f)).collect();
    kept.sort();
    kept.dedup();
    kept.retain(|name| !["new", "base", "change"].contains(&name.as_str()));
    if kept.iter().any(|name| name == wanted) {
        return Ok(());
    }
    let known =
        if kept.is_empty() { "nothing is kept yet".to_owned() } else { format!("kept are {}", kept.join(", ")) };
    Err(format!("no run is kept as `{wanted}` ({known}); keep one with `cargo xtask bench --save-baseline {wanted}`"))
}

/// The benchmarks that ran since `began`, each with what is kept of it as `wanted`, by name.
pub fn changes(results: &Path, wanted: &str, began: SystemTime) -> Result<Vec<Change>, String> {
    let ran = |file: &Path| fs::metadata(file).and_then(|m| m.modified()).is_ok_and(|when| when >= began);
    let mut changes = Vec::new();
    for folder in folders(results)?.iter().filter(|folder| name(folder) == "new") {
        let (estimates, bench) = (folder.join("estimates.json"), folder.parent().unwrap_or(folder));
        if !ran(&estimates) {
            continue;
        }
        let kept = bench.join(wanted).join("estimates.json");
        let change = bench.join("change").join("estimates.json");
        let before = match kept.is_file() && ran(&change) {
            true => Some(Before { median: median(&kept)?, change: interval(&change)? }),
            false => None,
        };
        let bench = json(&folder.join("benchmark.json"))?["full_id"].as_str().unwrap_or_default().to_owned();
        changes.push(Change { bench, now: median(&estimates)?, before });
    }
    changes.sort_by(|a, b| a.bench.cmp(&b.bench));
    Ok(changes)
}

/// The comparison for people; `noise` is a share.
pub fn table(changes: &[Change], noise: f64) -> String {
    let mut table = Table::new(["bench", "before", "now", "change", "verdict"]);
    for change in changes {
        let (before, moved) = match &change.before {
            Some(before) => (shown(before.median), format!("{:+.1} %", 100.0 * (change.now / before.median - 1.0))),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let verdict = change.verdict(noise).to_owned();
        table.row([change.bench.clone(), before, shown(change.now), moved, verdict]);
    }
    table.text()
}

/// Every folder below `root`.
fn folders(root: &Path) -> Result<Vec<PathBuf>, String> {
    let (mut all, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        let inner: Vec<PathBuf> = entries(&folder)?.into_iter().filter(|path| path.is_dir()).collect();
        open.extend(inner.iter().cloned());
        all.extend(inner);
    }
    Ok(all)
}

fn json(path: &Path) -> Result<Value, String> {
    serde_json::from_str(&read(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

fn median(estimates: &Path) -> Result<f64, String> {
    let missing = || format!("{}: holds no median", estimates.display());
    json(estimates)?["median"]["point_estimate"].as_f64().ok_or_else(missing)
}

fn interval(change: &Path) -> Result<(f64, f64), String> {
    let interval = &json(change)?["median"]["confidence_interval"];
    let ends = interval["lower_bound"].as_f64().zip(interval["upper_bound"].as_f64());
    ends.ok_or_else(|| format!("{}: holds no confidence interval", change.display()))
}

fn shown(nanoseconds: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
    let (size, unit) = units.into_iter().find(|(size, _)| nanoseconds >= *size).unwrap_or((1.0, "ns"));
    format!("{:.2} {unit}", nanoseconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("xtask-baseline-{name}-{}", std::process::id())))
        }

        /// A benchmark as criterion leaves it: medians by the name of the run, and the interval of the change.
        fn bench(&self, id: &str, runs: &[(&str, f64)], change: Option<(f64, f64)>) {
            let write = |folder: &str, file: &str, value: Value| {
                let folder = self.0.join(id).join(folder);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(file), value.to_string()).unwrap();
            };
            for (run, median) in runs {
                write(run, "estimates.json", serde_json::json!({ "median": { "point_estimate": median } }));
                write(run, "benchmark.json", serde_json::json!({ "full_id": id }));
            }
            if let Some((low, high)) = change {
                let interval = serde_json::json!({ "lower_bound": low, "upper_bound": high });
                write("change", "estimates.json", serde_json::json!({ "median": { "confidence_interval": interval } }));
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_what_is_surely_slower_is_a_regression() {
        let folder = Folder::new("verdicts");
        folder.bench("sum/a", &[("main", 1000.0), ("new", 1300.0)], Some((0.2, 0.4)));
        folder.bench("sum/b", &[("main", 1000.0), ("new", 1300.0)], Some((0.01, 0.6)));
        folder.bench("sum/c", &[("main", 1e6), ("new", 5e5)], Some((-0.6, -0.4)));
        folder.bench("sum/d", &[("new", 20.0)], None);
        let changes = changes(&folder.0, "main", SystemTime::UNIX_EPOCH).unwrap();
        let verdicts: Vec<_> = changes.iter().map(|change| (change.bench.as_str(), change.verdict(0.05))).collect();
        assert_eq!(verdicts, [("sum/a", "SLOWER"), ("sum/b", "same"), ("sum/c", "faster"), ("sum/d", "new")]);
        let table = table(&changes, 0.05);
        let line = table.lines().find(|line| line.starts_with("sum/a")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["sum/a", "1.00", "us", "1.30", "us", "+30.0", "%", "SLOWER"]);
    }

    #[test]
    fn benchmarks_that_did_not_run_now_are_left_out() {
        let folder = Folder::new("stale");
        folder.bench("sum/a", &[("main", 1000.0), ("new", 1300.0)], Some((0.2, 0.4)));
        let later = SystemTime::now() + std::time::Duration::from_secs(3600);
        assert!(changes(&folder.0, "main", later).unwrap().is_empty());
    }

    #[test]
    fn an_unknown_run_is_refused_with_the_known_ones() {
        let folder = Folder::new("names");
        assert!(check_kept(&folder.0, "main").unwrap_err().contains("nothing is kept"));
        folder.bench("sum/a", &[("main", 1000.0), ("new", 1300.0)], None);
        assert_eq!(check_kept(&folder.0, "main"), Ok(()));
        let message = check_kept(&folder.0, "mian").unwrap_err();
        assert!(message.contains("kept are main") && message.contains("--save-baseline mian"), "{message}");
    }
}
