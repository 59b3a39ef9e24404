//! Which crate may know which: the arrows of `docs/architecture.md`.

use toml::{Table, Value};

/// Each crate with the crates of the workspace that it may depend on. Siblings do not know each other.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("fedburn-core", &[]),
    ("fedburn-durable", &[]),
    ("fedburn-meter", &[]),
    ("fedburn-ops", &[]),
    ("fedburn-data", &["fedburn-core"]),
    ("fedburn-models", &["fedburn-core", "fedburn-ops"]),
    ("fedburn-train", &["fedburn-core", "fedburn-data", "fedburn-meter"]),
    ("fedburn-strategies", &["fedburn-core"]),
    ("fedburn-transport", &["fedburn-core", "fedburn-durable"]),
    ("fedburn-runtime", &["fedburn-core", "fedburn-durable"]),
    ("fedburn-testkit", &["fedburn-core"]),
    ("fedburn", &FACADE),
    ("fedburn-experiment", &["fedburn"]),
];

/// What the facade re-exports.
const FACADE: [&str; 10] = [
    "fedburn-core",
    "fedburn-data",
    "fedburn-durable",
    "fedburn-meter",
    "fedburn-models",
    "fedburn-ops",
    "fedburn-runtime",
    "fedburn-strategies",
    "fedburn-train",
    "fedburn-transport",
];

/// Crates that may name a concrete backend.
const MAY_NAME_BACKENDS: [&str; 2] = ["fedburn-ops", "fedburn-experiment"];

/// Concrete backends, as crates (`burn-flex`) and as features of burn.
const BACKENDS: [&str; 9] = ["candle", "cpu", "cuda", "flex", "ndarray", "rocm", "tch", "vulkan", "wgpu"];

/// The dependencies of one crate point the allowed way, those for its tests apart.
pub fn dependencies(package: &str, manifest: &str) -> Vec<String> {
    let manifest: Table = match manifest.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("crates/{package}/Cargo.toml: {error}")],
    };
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package) else {
        return vec![format!("crates/{package}: has no line in the table of allowed dependencies (xtask/src/tidy)")];
    };
    let mut problems = Vec::new();
    for (name, dependency) in linked(&manifest) {
        if name.starts_with("fedburn") && !allowed.contains(&name) {
            problems.push(format!("crates/{package}: must not depend on {name}; see docs/architecture.md"));
        }
        if !MAY_NAME_BACKENDS.contains(&package) {
            let backends = backends(name, dependency).into_iter();
            problems.extend(backends.map(|backend| format!("crates/{package}: must not name the backend {backend}")));
        }
    }
    problems
}

/// Dependencies that users of the crate link, on any target.
fn linked(manifest: &Table) -> Vec<(&str, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = targets.filter_map(Value::as_table).chain([manifest]);
    let sections = tables.flat_map(|table| ["dependencies", "build-dependencies"].map(|section| table.get(section)));
    let entries = sections.flatten().filter_map(Value::as_table).flatten();
    entries.map(|(name, dependency)| (real_name(name, dependency), dependency)).collect()
}

/// The name of a dependency that may have been renamed.
fn real_name<'a>(name: &'a str, dependency: &'a Value) -> &'a str {
    dependency.get("package").and_then(Value::as_str).unwrap_or(name)
}

/// The backends that a dependency brings in.
fn backends(name: &str, dependency: &Value) -> Vec<String> {
    if let Some(backend) = name.strip_prefix("burn-").filter(|backend| BACKENDS.contains(backend)) {
        return vec![backend.to_owned()];
    }
    let features = dependency.get("features").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    features.filter(|feature| name == "burn" && BACKENDS.contains(feature)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_arrows_are_fine() {
        let manifest = "[dependencies]\nfedburn-core.workspace = true\nserde.workspace = true\n\
                        [dev-dependencies]\nfedburn-testkit.workspace = true\nburn-flex.workspace = true\n";
        assert_eq!(dependencies("fedburn-data", manifest), Vec::<String>::new());
    }

    #[test]
    fn siblings_must_not_know_each_other() {
        let manifest = "[dependencies]\nfedburn-data.workspace = true\n";
        let expected = "crates/fedburn-strategies: must not depend on fedburn-data; see docs/architecture.md";
        assert_eq!(dependencies("fedburn-strategies", manifest), [expected]);
        let renamed = "[target.'cfg(unix)'.dependencies]\ndata = { package = \"fedburn-data\", path = \"../x\" }\n";
        assert_eq!(dependencies("fedburn-strategies", renamed), [expected]);
    }

    #[test]
    fn the_core_depends_on_no_other_crate_of_the_workspace() {
        assert_eq!(dependencies("fedburn-core", "[dependencies]\nfedburn-ops.workspace = true\n").len(), 1);
    }

    #[test]
    fn backends_are_named_by_few() {
        let crates = "[dependencies.burn-flex]\nworkspace = true\noptional = true\n";
        assert_eq!(dependencies("fedburn-train", crates), ["crates/fedburn-train: must not name the backend flex"]);
        assert_eq!(dependencies("fedburn-ops", crates), Vec::<String>::new());
        let features = "[dependencies]\nburn = { workspace = true, features = [\"cuda\", \"std\"] }\n";
        assert_eq!(dependencies("fedburn-train", features), ["crates/fedburn-train: must not name the backend cuda"]);
    }

    #[test]
    fn a_crate_without_a_line_in_the_table_is_found() {
        assert_eq!(dependencies("fedburn-new", "[dependencies]\n").len(), 1);
        assert_eq!(dependencies("fedburn-core", "not toml").len(), 1);
    }
}
