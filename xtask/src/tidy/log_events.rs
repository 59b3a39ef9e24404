//! Every event of the log has a fixed name, and every name is told in the documentation.

use super::code_lines;
use crate::workspace::Source;

/// Where events are told.
pub const PAGE: &str = "docs/federation.md";

/// Whether the rule looks at this file.
pub fn concerns(source: &Source) -> bool {
    CRATES.iter().any(|path| source.path.starts_with(path)) && !source.path.contains("/tests/")
}

/// Each event of `source` ends in a name such as `"node.connected"`, which the text of [`PAGE`] holds.
pub fn untold(source: &Source, page: &str) -> Vec<String> {
    let problem = |(line, name): (usize, Option<String>)| {
        let place = format!("{}:{line}", source.path);
        match name {
            Some(name) if !is_name(&name) => {
                Some(format!("{place}: `{name}` is no event's name, expected `what.happened`"))
            }
            Some(name) if !page.contains(&format!("`{name}`")) => {
                Some(format!("{place}: {PAGE} does not tell of `{name}`"))
            }
            Some(_) => None,
            None => Some(format!("{place}: an event without a name")),
        }
    };
    events(source).into_iter().filter_map(problem).collect()
}

/// Line and name of each event.
fn events(source: &Source) -> Vec<(usize, Option<String>)> {
    let lines: Vec<(usize, &str)> = code_lines(source).collect();
    let begins = |line: &str| LEVELS.iter().find_map(|level| Some(line.find(level)? + level.len()));
    let begun = lines.iter().enumerate().filter_map(|(index, (number, line))| Some((index, *number, begins(line)?)));
    let named = begun.map(|(index, number, column)| {
        let rest = std::iter::once(&lines[index].1[column..]).chain(lines[index + 1..].iter().map(|(_, line)| *line));
        (number, last_text(rest.collect::<Vec<_>>().join("\n").as_str()))
    });
    named.collect()
}

/// The last text in quotes before the parenthesis that is open closes.
fn last_text(code: &str) -> Option<String> {
    let (mut depth, mut text, mut last) = (1, None::<String>, None);
    for letter in code.chars() {
        match (&mut text, letter) {
            (Some(_), '"') => last = text.take(),
            (Some(text), letter) => text.push(letter),
            (None, '"') => text = Some(String::new()),
            (None, '(') => depth += 1,
            (None, ')') if depth == 1 => break,
            (None, ')') => depth -= 1,
            _ => {}
        }
    }
    last
}

fn is_name(name: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    name.split_once('.').is_some_and(|(what, happened)| word(what) && word(happened))
}

/// Crates that log.
const CRATES: &[&str] =
    &["crates/fedburn-transport/src/", "crates/fedburn-runtime/src/", "crates/fedburn-experiment/src/"];
const LEVELS: &[&str] = &["tracing::error!(", "tracing::warn!(", "tracing::info!(", "tracing::debug!("];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_without_a_name_or_a_line_in_the_page_are_found() {
        let code = "fn f() {\n    tracing::info!(%node, a = f(\"x\"), \"node.connected\");\n    tracing::warn!(\n        \
                    error = %e,\n        \"node.lost\"\n    );\n    tracing::debug!(\"some words\");\n    \
                    tracing::error!(x);\n}\n";
        let source = Source::new("crates/fedburn-transport/src/a.rs", code);
        let found = untold(&source, "| `node.connected` |");
        let place = "crates/fedburn-transport/src/a.rs";
        assert_eq!(
            found,
            [
                format!("{place}:3: docs/federation.md does not tell of `node.lost`"),
                format!("{place}:7: `some words` is no event's name, expected `what.happened`"),
                format!("{place}:8: an event without a name"),
            ]
        );
    }
}
