//! What lies at the top level, and how long files are.

use crate::workspace::Source;

/// All that the top level may hold, dotfiles apart.
const TOP_LEVEL: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "crates",
    "docs",
    "examples",
    "xtask",
];

/// Lines, tests included.
const MAX_LINES: usize = 700;

/// The names at the top level are those of the list, all of them and no other (build outputs apart).
pub fn top_level(names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return vec![];
    }
    let known = |name: &&String| name.starts_with('.') || *name == "target" || TOP_LEVEL.contains(&name.as_str());
    let surplus =
        names.iter().filter(|name| !known(name)).map(|name| format!("{name}: does not belong at the top level"));
    let missing = TOP_LEVEL.iter().filter(|expected| !names.iter().any(|name| name == *expected));
    surplus.chain(missing.map(|name| format!("{name}: is missing at the top level"))).collect()
}

/// A file is short enough to be read in one go.
pub fn length(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > MAX_LINES).then(|| format!("{}: {lines} lines, more than {MAX_LINES}; one concept, one file", source.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_listed_names_and_dotfiles_are_fine() {
        let mut all = names(&TOP_LEVEL);
        all.extend(names(&[".git", ".rustfmt.toml", "target"]));
        assert_eq!(top_level(&all), Vec::<String>::new());
    }

    #[test]
    fn surplus_and_missing_names_are_found() {
        let mut all = names(&TOP_LEVEL[1..]);
        all.push("notes.txt".to_owned());
        let problems = top_level(&all);
        assert_eq!(
            problems,
            ["notes.txt: does not belong at the top level", "Cargo.lock: is missing at the top level",]
        );
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(length(&Source::new("a.rs", &"\n".repeat(MAX_LINES))), None);
        assert!(length(&Source::new("a.rs", &"\n".repeat(MAX_LINES + 1))).is_some());
    }
}
