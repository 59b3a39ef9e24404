//! The examples: found by asking cargo, run one after the other.

use std::process::ExitCode;

use serde_json::Value;

use crate::cargo::Cargo;

/// Runs every example and stops at the first that fails.
pub fn run() -> Result<ExitCode, String> {
    for name in names()? {
        let call = call(&name);
        eprintln!("$ {}", call.shown());
        if !call.status()? {
            return Err(format!("example `{name}` failed"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The call that runs one example.
pub fn call(name: &str) -> Cargo {
    Cargo::new(["run", "--quiet", "--package", "fedburn-examples", "--bin", name])
}

/// Names of the examples, sorted.
pub fn names() -> Result<Vec<String>, String> {
    let call = Cargo::line("metadata --no-deps --format-version 1");
    let output = call.command().output().map_err(|error| format!("cannot run `{}`: {error}", call.shown()))?;
    if !output.status.success() {
        return Err(format!("`{}` failed: {}", call.shown(), String::from_utf8_lossy(&output.stderr)));
    }
    let metadata = serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    Ok(binaries(&metadata, "fedburn-examples"))
}

fn binaries(metadata: &Value, package: &str) -> Vec<String> {
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = all(&metadata["packages"]).into_iter().filter(|p| p["name"] == package);
    let targets = packages.flat_map(|p| all(&p["targets"])).filter(|t| all(&t["kind"]).contains(&"bin".into()));
    let mut names: Vec<String> = targets.filter_map(|t| t["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_packages_binaries_are_examples() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "fedburn-examples", "targets": [
                { "name": "second", "kind": ["bin"] }, { "name": "first", "kind": ["bin"] }, { "name": "l", "kind": ["lib"] },
            ] },
            { "name": "other", "targets": [{ "name": "other", "kind": ["bin"] }] },
        ] });
        assert_eq!(binaries(&metadata, "fedburn-examples"), ["first", "second"]);
    }
}
