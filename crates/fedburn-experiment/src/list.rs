//! Which experiments there are, and which of their seeds are done.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::layers;
use crate::results::{SeedResults, SeedStatus};

/// An experiment file and how its seeds stand.
#[derive(Clone, Debug, Serialize)]
pub struct ListedExperiment {
    /// The suite, a folder of experiment files.
    pub suite: String,
    /// The name, the file's without its ending.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its title; the reason, where the file cannot be read.
    pub title: Result<String, String>,
    /// The paper, table or page that it follows.
    pub reference: Option<String>,
    /// The planned seeds and how their runs stand.
    pub seeds: Vec<ListedSeed>,
}

/// A planned seed.
#[derive(Clone, Debug, Serialize)]
pub struct ListedSeed {
    /// The seed.
    pub seed: u64,
    /// How its run stands.
    pub status: SeedStatus,
}

/// Experiments that cannot be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// A folder cannot be read.
    #[error("the folder of experiments {} cannot be read; --configs says where it is", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such suite or experiment.
    #[error("no experiment `{wanted}` under {}, expected a suite or suite/name; there are {}", root.display(), known.join(", "))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Where it was looked for.
        root: PathBuf,
        /// The suites there are.
        known: Vec<String>,
    },
}

/// Finds the files `<configs>/<suite>/<name>.toml` and the state of their runs in `<out>/<suite>/<name>/seed-<n>`,
/// sorted by suite and name. `only`: a suite or `suite/name`; all where absent.
///
/// # Errors
/// [`ListError`]. A file that cannot be read is listed with the reason as its title.
pub fn list(configs: &Path, out: &Path, only: Option<&str>) -> Result<Vec<ListedExperiment>, ListError> {
    let mut found = Vec::new();
    let mut known = Vec::new();
    for suite in children(configs)?.into_iter().filter(|path| path.is_dir()) {
        let suite_name = stem(&suite);
        for path in children(&suite)?.into_iter().filter(|path| is_experiment(path)) {
            let name = stem(&path);
            if only.is_none_or(|only| only == suite_name || only == format!("{suite_name}/{name}")) {
                let results = out.join(&suite_name).join(&name);
                found.push(read(path, suite_name.clone(), name, &results));
            }
        }
        known.push(suite_name);
    }
    match only {
        Some(wanted) if found.is_empty() => {
            Err(ListError::Unknown { wanted: wanted.into(), root: configs.into(), known })
        }
        _ => Ok(found),
    }
}

impl fmt::Display for ListedExperiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.suite, self.name)?;
        match &self.title {
            Ok(title) => writeln!(f, "  {title}")?,
            Err(reason) => return writeln!(f, "  cannot be read: {reason}"),
        }
        self.reference.iter().try_for_each(|reference| writeln!(f, "    after {reference}"))?;
        // Seeds that stand alike share a line.
        let mut states: Vec<(String, Vec<String>)> = Vec::new();
        for ListedSeed { seed, status } in &self.seeds {
            let state = status.to_string();
            match states.iter_mut().find(|(known, _)| *known == state) {
                Some((_, seeds)) => seeds.push(seed.to_string()),
                None => states.push((state, vec![seed.to_string()])),
            }
        }
        states.iter().try_for_each(|(state, seeds)| {
            let word = if seeds.len() == 1 { "seed" } else { "seeds" };
            writeln!(f, "    {word} {}: {state}", seeds.join(", "))
        })
    }
}

/// Title, reference and seeds are read for themselves, so that a file with a fault elsewhere is still listed by name.
fn read(path: PathBuf, suite: String, name: String, results: &Path) -> ListedExperiment {
    let table = layers::read(&path).map_err(|error| error.to_string());
    let word = |table: &toml::Table, key: &str| Some(table.get(key)?.as_str()?.to_owned());
    let (mut reference, mut seeds) = (None, Vec::new());
    let title = table.and_then(|table| {
        reference = word(&table, "reference");
        let planned = table.get("seeds").and_then(|seeds| seeds.as_array()).into_iter().flatten();
        for seed in planned.filter_map(|seed| u64::try_from(seed.as_integer()?).ok()) {
            let run = SeedResults::load(seed, &results.join(format!("seed-{seed}")));
            seeds.push(ListedSeed { seed, status: run.status() });
        }
        word(&table, "title").ok_or_else(|| "it has no title".to_owned())
    });
    ListedExperiment { suite, name, path, title, reference, seeds }
}

/// Files whose names begin with an underscore are there for others to extend.
fn is_experiment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "toml") && !stem(path).starts_with('_')
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, ListError> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = read().map_err(|source| ListError::Read { path: dir.to_owned(), source })?;
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn files_are_listed_with_the_state_of_their_seeds() {
        let dir = tempfile::tempdir().unwrap();
        let (configs, out) = (dir.path().join("experiments"), dir.path().join("out"));
        let file = |suite: &str, name: &str, text: &str| {
            fs::create_dir_all(configs.join(suite)).unwrap();
            fs::write(configs.join(suite).join(name), text).unwrap();
        };
        file(
            "quick",
            "quick.toml",
            "title = \"Quick\"\nreference = \"A. Author, 2017, table 1\"\nseeds = [0, 1, 2, 5]\n",
        );
        file("other", "bad.toml", "title = ");
        file("other", "notes.md", "no experiment");
        file("other", "_base.toml", "title = \"for others\"\n");
        let mut partial = fixture::finished(&[Some(0.1), Some(0.2)]);
        fixture::write(&partial, &out.join("quick/quick/seed-0"));
        fixture::interrupt(&mut partial, 1);
        fixture::write(&partial, &out.join("quick/quick/seed-2"));

        let all = list(&configs, &out, None).unwrap();
        assert_eq!(all.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["bad", "quick"]);
        assert!(all[0].title.is_err() && all[0].to_string().contains("cannot be read"));
        let text = all[1].to_string();
        assert_eq!(
            text,
            "quick/quick  Quick\n    after A. Author, 2017, table 1\n    seed 0: finished\n    seeds 1, 5: missing\n    \
             seed 2: partial (round 1 of 2)\n"
        );
        assert_eq!(list(&configs, &out, Some("quick")).unwrap().len(), 1);
        assert_eq!(list(&configs, &out, Some("other/bad")).unwrap().len(), 1);
        let unknown = list(&configs, &out, Some("quikc")).unwrap_err().to_string();
        assert!(unknown.contains("`quikc`") && unknown.contains("other, quick"), "{unknown}");
    }
}
