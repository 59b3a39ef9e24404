//! Library code does not unwrap.

use super::code_lines;
use crate::workspace::Source;

/// Whether the source is library code; the testkit is test code.
pub fn concerns(source: &Source) -> bool {
    let test = source.path.ends_with("/tests.rs") || source.path.contains("/tests/");
    let mut parts = source.path.split('/');
    parts.next() == Some("crates") && parts.next() != Some("fedburn-testkit") && parts.next() == Some("src") && !test
}

/// Paths, without their ending, of modules that are compiled for tests only: `#[cfg(test)]` before `mod name;`.
pub fn test_modules(source: &Source) -> Vec<String> {
    let Some((folder, file)) = source.path.rsplit_once('/') else { return vec![] };
    let folder = match file {
        "lib.rs" | "main.rs" | "mod.rs" => folder,
        _ => source.path.trim_end_matches(".rs"),
    };
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
        let name = pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')?;
        Some(format!("{folder}/{name}"))
    });
    declared.collect()
}

/// Whether the source is one of those modules or lies in one.
pub fn is_in(source: &Source, modules: &[String]) -> bool {
    let rest = |module: &String| source.path.strip_prefix(module.as_str()).map(str::to_owned);
    modules.iter().filter_map(rest).any(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Every `.unwrap()` outside tests and comments.
pub fn unwraps(source: &Source) -> Vec<String> {
    let hits = code_lines(source).filter(|(_, line)| line.contains(".unwrap()"));
    hits.map(|(number, _)| format!("{}:{number}: `.unwrap()` in library code; return an error", source.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwraps_in_code_are_found_and_in_tests_and_docs_left_alone() {
        let text = "/// Try `x.unwrap()`.\nfn f() {\n    x.unwrap();\n}\n#[cfg(test)]\nmod tests {\n    fn t() { x.unwrap() }\n}\n";
        let found = unwraps(&Source::new("crates/x/src/a.rs", text));
        assert_eq!(found, ["crates/x/src/a.rs:3: `.unwrap()` in library code; return an error"]);
    }

    #[test]
    fn modules_for_tests_only_are_known_by_their_declaration() {
        let modules = test_modules(&Source::new("crates/x/src/lib.rs", "mod a;\n#[cfg(test)]\nmod fixture;\nmod b;\n"));
        assert_eq!(modules, ["crates/x/src/fixture"]);
        assert!(is_in(&Source::new("crates/x/src/fixture.rs", ""), &modules));
        assert!(is_in(&Source::new("crates/x/src/fixture/mod.rs", ""), &modules));
        assert!(!is_in(&Source::new("crates/x/src/fixtures.rs", ""), &modules));
        let nested = test_modules(&Source::new("crates/x/src/a.rs", "#[cfg(test)]\nmod cases;\n"));
        assert_eq!(nested, ["crates/x/src/a/cases"]);
    }

    #[test]
    fn tests_and_the_testkit_may_unwrap() {
        let concerned = |path| concerns(&Source::new(path, ""));
        assert!(concerned("crates/fedburn-core/src/seed.rs"));
        assert!(!concerned("crates/fedburn-core/tests/laws.rs"));
        assert!(!concerned("crates/fedburn-core/src/coordinator/tests.rs"));
        assert!(!concerned("crates/fedburn-testkit/src/laws.rs"));
        assert!(!concerned("examples/quickstart/main.rs"));
    }
}
