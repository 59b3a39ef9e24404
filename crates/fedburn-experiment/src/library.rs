//! Data sets read once, however many cells of a grid use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedburn::data::datasets::{self, Dataset, DatasetConfig, ReduceConfig};

use crate::config::{ConfigError, ExperimentConfig};

/// The data sets of some experiments, as far as they are used.
#[derive(Clone, Debug)]
pub struct Library {
    root: PathBuf,
    read: Vec<(DatasetConfig, ReduceConfig, Arc<Dataset>)>,
}

impl Library {
    /// Nothing read yet; `root` is where data sets are looked for.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), read: Vec::new() }
    }

    /// The data of `config`, which came from `path`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for `[data]` or `[reduce]`.
    pub fn dataset(&mut self, path: &Path, config: &ExperimentConfig) -> Result<Arc<Dataset>, ConfigError> {
        let refuse = |table, reason: String| ConfigError::Value { path: path.to_owned(), table, reason };
        let known =
            |(data, reduce, _): &&(DatasetConfig, ReduceConfig, _)| *data == config.data && *reduce == config.reduce;
        if let Some((_, _, dataset)) = self.read.iter().find(known) {
            return Ok(dataset.clone());
        }
        let dataset = datasets::load(&config.data, &self.root).map_err(|e| refuse("data", e.to_string()))?;
        let dataset = Arc::new(config.reduce.apply(dataset).map_err(|e| refuse("reduce", e.to_string()))?);
        self.read.push((config.data.clone(), config.reduce.clone(), dataset.clone()));
        Ok(dataset)
    }
}
