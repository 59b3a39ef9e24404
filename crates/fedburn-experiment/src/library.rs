//! Data sets read once, however many cells of a grid use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedburn::data::Examples;
use fedburn::data::datasets::{self, Dataset, DatasetConfig, ReduceConfig, ServerDataConfig};

use crate::config::{ConfigError, ExperimentConfig};

/// The data sets of some experiments, as far as they are used.
#[derive(Clone, Debug)]
pub struct Library {
    root: PathBuf,
    read: Vec<(Wanted, Divided)>,
}

/// What a config says of its data.
type Wanted = (DatasetConfig, ReduceConfig, Option<ServerDataConfig>);

/// The examples of an experiment.
#[derive(Clone, Debug)]
pub struct Divided {
    /// Those of the clients, and those for measuring.
    pub dataset: Arc<Dataset>,
    /// Those of the server, where it has any.
    pub server: Option<Arc<Examples>>,
}

impl Library {
    /// Nothing read yet; `root` is where data sets are looked for.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), read: Vec::new() }
    }

    /// The data of `config`, which came from `path`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for `[data]`, `[reduce]` or `[server_data]`.
    pub fn data(&mut self, path: &Path, config: &ExperimentConfig) -> Result<Divided, ConfigError> {
        let refuse = |table, reason: String| ConfigError::Value { path: path.to_owned(), table, reason };
        let wanted = (config.data.clone(), config.reduce.clone(), config.server_data);
        if let Some((_, divided)) = self.read.iter().find(|(known, _)| *known == wanted) {
            return Ok(divided.clone());
        }
        let dataset = datasets::load(&config.data, &self.root).map_err(|e| refuse("data", e.to_string()))?;
        let dataset = config.reduce.apply(dataset).map_err(|e| refuse("reduce", e.to_string()))?;
        let (dataset, server) = match config.server_data {
            Some(share) => {
                let (clients, server) = share.apply(dataset).map_err(|e| refuse("server_data", e.to_string()))?;
                (clients, Some(server))
            }
            None => (dataset, None),
        };
        let divided = Divided { dataset: Arc::new(dataset), server };
        self.read.push((wanted, divided.clone()));
        Ok(divided)
    }
}
