//! The rules of `docs/style.md` that a compiler does not know, each a small function from what it looks at to the
//! problems it finds.

mod catalogue;
mod citations;
mod dependencies;
mod layout;
mod libraries;
mod log_events;
mod unwraps;

use std::path::Path;
use std::process::ExitCode;

use crate::workspace::{Source, entries, files, name, read};

/// Checks every rule and lists every problem.
///
/// # Errors
/// Where a problem was found, or a file could not be read.
pub fn run(root: &Path) -> Result<ExitCode, String> {
    let problems = problems(root)?;
    if problems.is_empty() {
        println!("tidy: nothing to complain about");
        return Ok(ExitCode::SUCCESS);
    }
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    Err(format!("tidy found {} problems; the rules are in docs/style.md", problems.len()))
}

fn problems(root: &Path) -> Result<Vec<String>, String> {
    let mut sources = Vec::new();
    for folder in ["crates", "examples", "benches", "xtask"] {
        sources.extend(files(root, folder, ".rs")?);
    }
    let crates = entries(&root.join("crates"))?;
    let top: Vec<String> = entries(root)?.iter().map(|path| name(path)).collect();
    let mut problems = layout::top_level(&top);
    problems.extend(sources.iter().filter_map(layout::length));
    problems.extend(
        crates
            .iter()
            .filter(|path| !path.join("README.md").is_file())
            .map(|path| format!("crates/{}: no README.md; every crate has one with a runnable example", name(path))),
    );
    problems.extend(sources.iter().filter(|source| libraries::is_root(source)).flat_map(libraries::only_declares));
    let for_tests: Vec<String> = sources.iter().flat_map(unwraps::test_modules).collect();
    let library = sources.iter().filter(|source| unwraps::concerns(source) && !unwraps::is_in(source, &for_tests));
    problems.extend(library.flat_map(unwraps::unwraps));
    problems.extend(sources.iter().filter(|source| citations::concerns(source)).filter_map(citations::cites));
    // A page that is not there tells of no event.
    let page = read(&root.join(log_events::PAGE)).unwrap_or_default();
    problems.extend(sources.iter().filter(|s| log_events::concerns(s)).flat_map(|s| log_events::untold(s, &page)));
    for path in crates {
        let manifest = path.join("Cargo.toml");
        problems.extend(dependencies::dependencies(&name(&path), &read(&manifest)?));
    }
    if let Some(catalogue) = sources.iter().find(|source| source.path == catalogue::PATH) {
        let pages = entries(&root.join(catalogue::PAGES))?;
        let names: Vec<String> = pages.iter().map(|path| name(path)).collect();
        problems.extend(catalogue::pages(catalogue, &names));
        let rules = sources.iter().filter(|s| s.path.starts_with(catalogue::RULES) && citations::concerns(s));
        let texts = pages.iter().map(|path| read(path)).collect::<Result<Vec<String>, String>>()?;
        problems.extend(catalogue::untold(rules, &texts));
    }
    Ok(problems)
}

/// A source's lines with their numbers, from 1, up to its tests, comments left out.
fn code_lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<&str> = source.text.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim().starts_with("#[cfg(test)]") && pair[1].trim_start().starts_with("mod ") && pair[1].contains('{')
    });
    let code = lines.into_iter().take(tests.unwrap_or(usize::MAX));
    (1..).zip(code).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_tests_are_not_code() {
        let source = Source::new("a.rs", "//! Doc.\nuse x;\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n");
        assert_eq!(code_lines(&source).collect::<Vec<_>>(), [(2, "use x;")]);
    }

    #[test]
    fn a_folder_without_anything_breaks_no_rule() {
        let empty = std::env::temp_dir().join(format!("xtask-tidy-{}", std::process::id()));
        assert_eq!(problems(&empty), Ok(vec![]));
    }
}
