//! Every strategy that a config can choose has a page, and every local rule is told of in one.

use super::code_lines;
use crate::workspace::Source;

/// The one registry of strategies.
pub const PATH: &str = "crates/fedburn-strategies/src/catalogue.rs";

/// Where the pages lie.
pub const PAGES: &str = "docs/algorithms";

/// Each kind of the catalogue's enum is among `pages`, the file names in [`PAGES`].
pub fn pages(catalogue: &Source, pages: &[String]) -> Vec<String> {
    let kinds = kinds(catalogue);
    if kinds.is_empty() {
        return vec![format!("{}: holds no enum of strategies", catalogue.path)];
    }
    let missing = kinds.iter().filter(|kind| !pages.contains(&format!("{kind}.md")));
    missing.map(|kind| format!("{PAGES}/{kind}.md: the strategy `{kind}` has no page")).collect()
}

/// Where local rules lie, one a file.
pub const RULES: &str = "crates/fedburn-train/src/rules/";

/// Each of `rules` is named, with its path, by one of `pages`, the texts in [`PAGES`].
pub fn untold<'a>(rules: impl Iterator<Item = &'a Source>, pages: &[String]) -> Vec<String> {
    let missing = rules.filter(|rule| !pages.iter().any(|page| page.contains(&format!("`{}`", rule.path))));
    missing.map(|rule| format!("{}: no page of {PAGES} names this file", rule.path)).collect()
}

/// The names by which a config chooses: the variants of the first enum, in snake case or as their serde attribute says.
fn kinds(catalogue: &Source) -> Vec<String> {
    let mut kinds = Vec::new();
    let mut renamed = None;
    let mut depth = 0;
    let body = code_lines(catalogue).map(|(_, line)| line.trim()).skip_while(|line| !line.contains("enum "));
    for line in body {
        if let Some(name) = line.strip_prefix("#[serde(").and_then(rename) {
            renamed = Some(name);
        } else if depth == 1 && line.starts_with(char::is_uppercase) {
            let variant = line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            kinds.push(renamed.take().unwrap_or_else(|| snake_case(variant)));
        }
        depth += line.matches('{').count();
        depth -= line.matches('}').count().min(depth);
        if depth == 0 {
            break;
        }
    }
    kinds
}

/// The value of `rename = "…"` in a serde attribute.
fn rename(attribute: &str) -> Option<String> {
    let value = attribute.split(',').find_map(|part| part.trim().strip_prefix("rename = \""))?;
    value.split('"').next().map(str::to_owned)
}

/// As serde does it: an underscore before every capital but the first.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOGUE: &str = "//! Doc.\nuse x;\n\n#[serde(tag = \"kind\", rename_all = \"snake_case\")]\n\
        pub enum StrategyConfig {\n    /// Doc {.\n    #[serde(rename = \"fedavg\")]\n    FedAvg(FedAvgConfig),\n\
        \x20   OptimalAveraging {\n        Inner: u8,\n    },\n    Ewwa(EwwaConfig),\n}\n\npub enum Other {\n    No,\n}\n";

    #[test]
    fn kinds_are_named_as_in_configs() {
        assert_eq!(kinds(&Source::new(PATH, CATALOGUE)), ["fedavg", "optimal_averaging", "ewwa"]);
    }

    #[test]
    fn a_strategy_without_a_page_is_found() {
        let catalogue = Source::new(PATH, CATALOGUE);
        let written = ["ewwa.md", "fedavg.md"].map(str::to_owned);
        let expected = "docs/algorithms/optimal_averaging.md: the strategy `optimal_averaging` has no page";
        assert_eq!(pages(&catalogue, &written), [expected]);
    }

    #[test]
    fn a_rule_that_no_page_names_is_found() {
        let rules = ["sgd", "ntd"].map(|name| Source::new(&format!("{RULES}{name}.rs"), ""));
        let written = ["Code: `crates/fedburn-train/src/rules/sgd.rs`.".to_owned()];
        let expected = "crates/fedburn-train/src/rules/ntd.rs: no page of docs/algorithms names this file";
        assert_eq!(untold(rules.iter(), &written), [expected]);
    }

    #[test]
    fn a_catalogue_without_an_enum_is_found() {
        assert_eq!(pages(&Source::new(PATH, "//! Doc.\n"), &[]).len(), 1);
    }
}
