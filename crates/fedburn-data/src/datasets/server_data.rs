//! Training examples that the server keeps for itself.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Dataset;
use super::reduce::drawn;
use crate::{DatasetError, Examples};

/// How many of the training examples the server has, and no client; the `[server_data]` table of a config file.
///
/// # Examples
///
/// ```
/// use std::path::Path;
/// use fedburn_data::datasets::{DatasetConfig, ServerDataConfig, load};
///
/// let digits = load(&DatasetConfig::Digits {}, Path::new("data"))?;
/// let (clients, server) = ServerDataConfig { share: 0.1 }.apply(digits)?;
/// assert_eq!((clients.train.len(), server.len()), (1294, 144));
/// # Ok::<(), fedburn_data::DatasetError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerDataConfig {
    /// Share of the training examples, above 0 and below 1; rounded to the nearest number of examples.
    pub share: f64,
}

impl ServerDataConfig {
    /// What is left for clients, and what the server has. Which examples those are is drawn without regard to labels, the
    /// same for every run; both parts stay in their order.
    ///
    /// # Errors
    /// [`DatasetError::Setting`] where the share is out of its range or leaves one of both without an example.
    pub fn apply(&self, dataset: Dataset) -> Result<(Dataset, Arc<Examples>), DatasetError> {
        let len = dataset.train.len();
        // Casts of floats saturate, and a share that is no number gives 0.
        let wanted = (self.share * len as f64).round() as usize;
        if !(self.share < 1.0 && (1..len).contains(&wanted)) {
            return Err(DatasetError::Setting {
                field: "share",
                value: self.share.to_string(),
                expected: format!(
                    "a share of the {len} training examples above 0 and below 1, with one example at least"
                ),
            });
        }
        let server = drawn(len, wanted, 2);
        let clients: Vec<usize> = (0..len).filter(|index| server.binary_search(index).is_err()).collect();
        let left = Dataset {
            train: Arc::new(dataset.train.subset(&clients)),
            user_ids: dataset.user_ids.map(|ids| clients.iter().map(|&index| ids[index]).collect()),
            ..dataset
        };
        Ok((left, Arc::new(dataset.train.subset(&server))))
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::ClassId;

    use super::*;
    use crate::Inputs;
    use crate::datasets::Normalisation;

    /// Forty examples whose input is their number.
    fn numbered(inputs: Inputs) -> Dataset {
        let labels = (0..40).map(|i| ClassId(i / 10)).collect();
        let train = Arc::new(Examples::new(inputs, [1, 1, 1], labels, 4).unwrap());
        Dataset {
            test: train.clone(),
            train,
            user_ids: Some((100..140).collect()),
            name: "numbered".to_owned(),
            class_names: Vec::new(),
            normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
        }
    }

    fn numbers(examples: &Examples) -> Vec<usize> {
        let all: Vec<usize> = (0..examples.len()).collect();
        examples.batch::<Flex>(&all, &FlexDevice).inputs.into_data().iter::<f32>().map(|v| v as usize).collect()
    }

    #[test]
    fn every_example_is_either_the_servers_or_the_clients() {
        for inputs in [Inputs::F32((0..40).map(|i| i as f32).collect()), Inputs::tokens((0..40).collect())] {
            let (left, server) = ServerDataConfig { share: 0.25 }.apply(numbered(inputs.clone())).unwrap();
            let (clients, servers) = (numbers(&left.train), numbers(&server));
            assert_eq!((clients.len(), servers.len(), left.test.len()), (30, 10, 40));
            assert!(clients.is_sorted() && servers.is_sorted());
            let mut all = [clients.clone(), servers.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (0..40).collect::<Vec<_>>());
            assert_eq!(left.user_ids.unwrap(), clients.iter().map(|i| 100 + *i as u64).collect::<Vec<_>>());
            let label = |i: &usize| ClassId(*i as u32 / 10);
            assert_eq!(left.train.labels(), clients.iter().map(label).collect::<Vec<_>>());
            let again = ServerDataConfig { share: 0.25 }.apply(numbered(inputs)).unwrap().1;
            assert_eq!(numbers(&again), servers, "the same for every run");
        }
    }

    #[test]
    fn shares_that_leave_somebody_nothing_are_refused() {
        for share in [0.0, -0.5, 1.0, 1.5, 0.01, 0.99, f64::NAN, f64::INFINITY] {
            let data = numbered(Inputs::F32(vec![0.0; 40]));
            let error = ServerDataConfig { share }.apply(data).unwrap_err().to_string();
            assert!(error.contains("`share`") && error.contains("above 0 and below 1"), "{error}");
        }
    }
}
