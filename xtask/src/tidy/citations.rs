//! An algorithm's file names the paper that it follows.

use crate::workspace::Source;

/// Folders that hold one algorithm a file.
const ALGORITHMS: [&str; 3] =
    ["crates/fedburn-strategies/src", "crates/fedburn-train/src/rules", "crates/fedburn-data/src/partition"];

/// Files of those folders that hold no algorithm.
const OTHERS: [&str; 6] = ["lib.rs", "mod.rs", "catalogue.rs", "config.rs", "descent.rs", "error.rs"];

/// Whether the source is an algorithm's file; a file that exports no type only helps those that do.
pub fn concerns(source: &Source) -> bool {
    let Some((folder, file)) = source.path.rsplit_once('/') else { return false };
    let exports =
        ["pub struct ", "pub enum "].iter().any(|item| source.text.lines().any(|line| line.starts_with(item)));
    ALGORITHMS.contains(&folder) && !OTHERS.contains(&file) && exports
}

/// The module documentation holds an arXiv id, a DOI, or a venue and a year.
pub fn cites(source: &Source) -> Option<String> {
    let docs: Vec<&str> = source.text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let docs = docs.join(" ");
    (!(has_arxiv_id(&docs) || has_doi(&docs) || has_venue_and_year(&docs))).then(|| {
        let sought = "an arXiv id, a DOI, or a venue and a year";
        format!("{}: the module documentation cites no paper ({sought})", source.path)
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "()[]<>`,;:\"".contains(c)).filter(|word| !word.is_empty())
}

/// `arXiv` and a number such as `1602.05629`.
fn has_arxiv_id(text: &str) -> bool {
    let digits = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
    };
    let is_id = |word: &str| {
        let number = word.trim_end_matches('.').rsplit('/').next().unwrap_or_default();
        number.split_once('.').is_some_and(|(month, paper)| digits(month, 4..=4) && digits(paper, 4..=5))
    };
    text.to_lowercase().contains("arxiv") && words(text).any(is_id)
}

/// `10.`, a registrant, a slash and more.
fn has_doi(text: &str) -> bool {
    words(text).any(|word| {
        let doi = word.find("10.").map(|start| &word[start + 3..]);
        doi.and_then(|doi| doi.split_once('/')).is_some_and(|(registrant, rest)| {
            registrant.len() >= 4 && registrant.bytes().all(|b| b.is_ascii_digit()) && !rest.is_empty()
        })
    })
}

/// An acronym such as `ICML` or `NeurIPS` right before a year.
fn has_venue_and_year(text: &str) -> bool {
    let is_venue = |word: &str| word.chars().filter(|c| c.is_uppercase()).count() >= 2;
    let is_year = |word: &str| word.parse().is_ok_and(|year: u16| (1900..2100).contains(&year));
    let words: Vec<&str> = words(text).map(|word| word.trim_end_matches('.')).collect();
    words.windows(2).any(|pair| is_venue(pair[0]) && is_year(pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cited(docs: &str) -> bool {
        cites(&Source::new("crates/fedburn-strategies/src/x.rs", &format!("//! {docs}\n\nuse a;\n"))).is_none()
    }

    #[test]
    fn the_ways_to_cite() {
        assert!(cited("McMahan et al., AISTATS 2017, arXiv 1602.05629."));
        assert!(cited("See <https://arxiv.org/abs/1602.05629>."));
        assert!(cited("See doi:10.1561/2200000083."));
        assert!(cited("Foret et al., in NeurIPS, 2021."));
        assert!(
            cites(&Source::new("x.rs", "//! Title.\n//!\n//! arXiv\n//! 2003.00295v5\n//! 2003.00295\n")).is_none()
        );
    }

    #[test]
    fn what_is_no_citation() {
        assert!(!cited("The weighted mean of everything, since 2017."));
        assert!(!cited("On arXiv somewhere, with rate 0.05."));
        assert!(!cited("Ten is 10.5/3."));
        assert!(cites(&Source::new("x.rs", "use a;\n// arXiv 1602.05629\n")).is_some());
    }

    #[test]
    fn only_algorithm_files_are_meant() {
        let concerned = |path| concerns(&Source::new(path, "//! Doc.\n\npub struct A;\n"));
        assert!(concerned("crates/fedburn-strategies/src/fedavg.rs"));
        assert!(concerned("crates/fedburn-data/src/partition/dirichlet.rs"));
        assert!(!concerned("crates/fedburn-strategies/src/catalogue.rs"));
        assert!(!concerned("crates/fedburn-train/src/rules/mod.rs"));
        assert!(!concerned("crates/fedburn-train/src/evaluate.rs"));
        assert!(!concerns(&Source::new("crates/fedburn-data/src/partition/pools.rs", "pub(super) fn pools() {}\n")));
    }
}
