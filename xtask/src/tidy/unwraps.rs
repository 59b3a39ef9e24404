//! Library code does not unwrap.

use super::code_lines;
use crate::workspace::Source;

/// Whether the source is library code; the testkit is test code.
pub fn concerns(source: &Source) -> bool {
    let test = source.path.ends_with("/tests.rs") || source.path.contains("/tests/");
    let mut parts = source.path.split('/');
    parts.next() == Some("crates") && parts.next() != Some("fedburn-testkit") && parts.next() == Some("src") && !test
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
    fn tests_and_the_testkit_may_unwrap() {
        let concerned = |path| concerns(&Source::new(path, ""));
        assert!(concerned("crates/fedburn-core/src/seed.rs"));
        assert!(!concerned("crates/fedburn-core/tests/laws.rs"));
        assert!(!concerned("crates/fedburn-core/src/coordinator/tests.rs"));
        assert!(!concerned("crates/fedburn-testkit/src/laws.rs"));
        assert!(!concerned("examples/quickstart/main.rs"));
    }
}
