//! `lib.rs` declares and re-exports; code lives in the files it names.

use super::code_lines;
use crate::workspace::Source;

/// Whether the source is a library crate's `lib.rs`.
pub fn is_root(source: &Source) -> bool {
    source.path.starts_with("crates/") && source.path.ends_with("/src/lib.rs")
}

/// Only attributes, modules, imports and the bodiless struct that carries the README's doctest.
pub fn only_declares(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    // What closes the item that goes on over several lines.
    let mut open: Option<char> = None;
    for (number, line) in code_lines(source) {
        let line = line.trim();
        if let Some(end) = open {
            if line.ends_with(end) {
                open = None;
            }
            continue;
        }
        let item = unqualified(line);
        if item.starts_with('#') {
            open = (!line.ends_with(']')).then_some(']');
        } else if item.starts_with("use ") {
            open = (!line.ends_with(';')).then_some(';');
        } else if !(item.is_empty() || item.ends_with(';') && (item.starts_with("mod ") || item.starts_with("struct ")))
        {
            problems.push(format!("{}:{number}: `{line}`: lib.rs holds docs, `mod` and `use` only", source.path));
        }
    }
    problems
}

/// An item without its visibility.
fn unqualified(item: &str) -> &str {
    let Some(rest) = item.strip_prefix("pub") else { return item };
    let scoped = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    scoped.map_or(rest, |(_, rest)| rest).trim_start()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        only_declares(&Source::new("crates/x/src/lib.rs", text))
    }

    #[test]
    fn declarations_are_fine() {
        let text = "//! Doc.\n#![cfg_attr(test, allow(clippy::unwrap_used))]\n\nmod a;\npub mod b;\npub(crate) mod c;\n\n\
                    #[cfg(\n    doctest\n)]\n#[doc = include_str!(\"../README.md\")]\nstruct Readme;\n\n\
                    pub use a::{\n    One,\n    Two,\n};\npub use b::*;\n";
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn code_is_found_with_its_line() {
        let found = problems("//! Doc.\nmod a;\n\npub fn f() {}\n");
        assert_eq!(found, ["crates/x/src/lib.rs:4: `pub fn f() {}`: lib.rs holds docs, `mod` and `use` only"]);
        assert_eq!(problems("mod inline {\n}\n").len(), 2);
        assert_eq!(problems("const A: u8 = 1;\n").len(), 1);
    }

    #[test]
    fn only_roots_of_library_crates_are_meant() {
        assert!(is_root(&Source::new("crates/x/src/lib.rs", "")));
        assert!(!is_root(&Source::new("crates/x/src/other.rs", "")));
        assert!(!is_root(&Source::new("examples/src/lib.rs", "")));
    }
}
