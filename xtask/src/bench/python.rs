//! Which peers a Python has installed.

use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;
use serde_json::Value;

/// A framework, or a library, that plays the same jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    Torch,
    Pfl,
    Flower,
    Numpy,
}

impl Peer {
    pub const ALL: [Self; 4] = [Self::Torch, Self::Pfl, Self::Flower, Self::Numpy];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torch => "PyTorch",
            Self::Pfl => "pfl-research",
            Self::Flower => "Flower",
            Self::Numpy => "NumPy",
        }
    }

    /// The modules that its scripts import.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Torch => &["torch", "numpy"],
            Self::Pfl => &["pfl", "torch", "numpy"],
            Self::Flower => &["flwr", "ray", "torch", "numpy"],
            Self::Numpy => &["numpy"],
        }
    }

    /// What brings the modules, as one installs it.
    fn packages(self) -> &'static str {
        match self {
            Self::Torch => "torch numpy",
            Self::Pfl => "pfl torch numpy",
            Self::Flower => "\"flwr[simulation]\" torch numpy",
            Self::Numpy => "numpy",
        }
    }
}

/// A Python and the peers that it can import.
pub struct Python {
    pub program: PathBuf,
    pub peers: Vec<Peer>,
    /// One line for each that it cannot: what is missing, and what would install it.
    pub missing: Vec<String>,
}

impl Python {
    /// Asks `program` for the `wanted` peers.
    pub fn ask(program: PathBuf, wanted: &[Peer]) -> Result<Self, String> {
        let named = "name a Python by --python or by FEDBURN_PEERS_PYTHON";
        let output = Command::new(&program)
            .args(["-c", IMPORTS])
            .env("RAY_USAGE_STATS_ENABLED", "0")
            .env("FLWR_TELEMETRY_ENABLED", "0")
            .output()
            .map_err(|error| format!("cannot run {}: {error}; {named}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let found: Value = found.ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{} does not answer as a Python: {}; {named}", program.display(), said.trim())
        })?;
        Ok(Self::of(program, wanted, &found))
    }

    /// Sorts peers by what could be imported: `found` holds the error by the name of a module, null for none.
    fn of(program: PathBuf, wanted: &[Peer], found: &Value) -> Self {
        let (mut peers, mut missing) = (Vec::new(), Vec::new());
        for &peer in wanted {
            match peer.modules().iter().find_map(|module| Some((module, found[module].as_str()?))) {
                None => peers.push(peer),
                Some((module, error)) => missing.push(format!(
                    "{} is left out: cannot import {module} ({error}); {} -m pip install {}",
                    peer.name(),
                    program.display(),
                    peer.packages()
                )),
            }
        }
        Self { program, peers, missing }
    }
}

/// Prints why each module cannot be imported, or null, as one line of JSON.
const IMPORTS: &str = r#"
import importlib, json
errors = {}
for module in ("numpy", "torch", "pfl", "ray", "flwr"):
    try:
        importlib.import_module(module)
        errors[module] = None
    except Exception as error:
        errors[module] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(errors))
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_needs_all_its_modules() {
        let found = serde_json::json!({
            "numpy": null, "torch": null, "flwr": null, "pfl": null, "ray": "ModuleNotFoundError: No module named 'ray'",
        });
        let python = Python::of("python3".into(), &Peer::ALL, &found);
        assert_eq!(python.peers, [Peer::Torch, Peer::Pfl, Peer::Numpy]);
        let [line] = &python.missing[..] else { panic!("{:?}", python.missing) };
        assert!(line.contains("cannot import ray"), "{line}");
        assert!(line.ends_with("python3 -m pip install \"flwr[simulation]\" torch numpy"), "{line}");
    }

    #[test]
    fn what_is_no_python_is_told_with_the_way_out() {
        let message = Python::ask("/nonexistent/python".into(), &Peer::ALL).err().unwrap();
        assert!(message.contains("/nonexistent/python") && message.contains("--python"), "{message}");
    }
}
