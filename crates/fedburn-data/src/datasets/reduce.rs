//! Less of a data set, for experiments that must be quick.

use std::sync::Arc;

use fedburn_core::{Purpose, Seed};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Dataset;
use crate::{DatasetError, Examples, Inputs};

/// How much of a data set to keep, the `[reduce]` table of a config file; all of it by default.
///
/// # Examples
///
/// ```
/// use std::path::Path;
/// use fedburn_data::datasets::{DatasetConfig, ReduceConfig, load};
///
/// let digits = load(&DatasetConfig::Digits {}, Path::new("data"))?;
/// let small = ReduceConfig { train: Some(500), test: Some(100), pool: 2, pad: 0 }.apply(digits)?;
/// assert_eq!((small.train.len(), small.test.len(), small.train.shape()), (500, 100, [1, 4, 4]));
/// # Ok::<(), fedburn_data::DatasetError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReduceConfig {
    /// Training examples to keep, at least 1 and at most all; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<usize>,
    /// Test examples to keep, at least 1 and at most all; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<usize>,
    /// Side, in pixels, of the squares that become one pixel, their mean; divides height and width. 1 changes nothing.
    pub pool: usize,
    /// Empty pixels (of value 0, or what normalisation makes of it) put around each image, after pooling; so 2 makes 32 by
    /// 32 pixels of 28 by 28. 0 changes nothing.
    pub pad: usize,
}

impl Default for ReduceConfig {
    fn default() -> Self {
        Self { train: None, test: None, pool: 1, pad: 0 }
    }
}

impl ReduceConfig {
    /// Whether everything is kept.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The smaller data set. Which examples are kept is drawn without regard to labels, the same for every run; they stay
    /// in their order.
    ///
    /// # Errors
    /// [`DatasetError::Setting`] where there are not as many examples, or images cannot be divided into such squares.
    pub fn apply(&self, dataset: Dataset) -> Result<Dataset, DatasetError> {
        if self.is_none() {
            return Ok(dataset);
        }
        let kept_train = kept("train", self.train, dataset.train.len(), 0)?;
        let kept_test = kept("test", self.test, dataset.test.len(), 1)?;
        Ok(Dataset {
            train: Arc::new(self.part(&dataset.train, &kept_train)?),
            test: Arc::new(self.part(&dataset.test, &kept_test)?),
            user_ids: dataset.user_ids.map(|ids| kept_train.iter().map(|&index| ids[index]).collect()),
            ..dataset
        })
    }

    fn part(&self, examples: &Examples, kept: &[usize]) -> Result<Examples, DatasetError> {
        let [channels, height, width] = examples.shape();
        if self.pool == 0 || height % self.pool != 0 || width % self.pool != 0 {
            return Err(DatasetError::Setting {
                field: "pool",
                value: self.pool.to_string(),
                expected: format!("a divisor of the images' height and width, {height} and {width}"),
            });
        }
        let [rows, columns] = [height, width].map(|side| side / self.pool);
        if self.pad > rows.max(columns) {
            return Err(DatasetError::Setting {
                field: "pad",
                value: self.pad.to_string(),
                expected: format!("0 to {}, the longer side of an image", rows.max(columns)),
            });
        }
        let shape = [channels, rows + 2 * self.pad, columns + 2 * self.pad];
        let mut values = Vec::with_capacity(kept.len() * shape.iter().product::<usize>());
        let (mut input, mut small) = (Vec::new(), Vec::new());
        for &index in kept {
            input.clear();
            examples.append_input(index, &mut input);
            for (channel, plane) in input.chunks_exact(height * width).enumerate() {
                small.clear();
                self.shrink(plane, width, &mut small);
                self.surround(&small, columns, examples.empty(channel), &mut values);
            }
        }
        let labels = kept.iter().map(|&index| examples.labels()[index]).collect();
        Examples::new(Inputs::F32(values), shape, labels, examples.num_classes())
    }

    fn shrink(&self, plane: &[f32], width: usize, out: &mut Vec<f32>) {
        let pool = self.pool;
        for rows in plane.chunks_exact(width * pool) {
            for column in (0..width).step_by(pool) {
                let square = rows.chunks_exact(width).flat_map(|row| &row[column..column + pool]);
                out.push(square.sum::<f32>() / (pool * pool) as f32);
            }
        }
    }

    fn surround(&self, plane: &[f32], width: usize, empty: f32, out: &mut Vec<f32>) {
        let edge = self.pad * (width + 2 * self.pad);
        out.extend(std::iter::repeat_n(empty, edge));
        for row in plane.chunks_exact(width) {
            out.extend(std::iter::repeat_n(empty, self.pad));
            out.extend_from_slice(row);
            out.extend(std::iter::repeat_n(empty, self.pad));
        }
        out.extend(std::iter::repeat_n(empty, edge));
    }
}

fn kept(field: &'static str, wanted: Option<usize>, len: usize, stream: u64) -> Result<Vec<usize>, DatasetError> {
    let Some(wanted) = wanted else { return Ok((0..len).collect()) };
    if wanted == 0 || wanted > len {
        return Err(DatasetError::Setting {
            field,
            value: wanted.to_string(),
            expected: format!("1 to {len}, the number of examples"),
        });
    }
    Ok(drawn(len, wanted, stream))
}

/// `wanted` of the numbers below `len`, in their order; the same for every run.
pub(super) fn drawn(len: usize, wanted: usize, stream: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.shuffle(&mut Seed::new(0).purpose(Purpose::Data).index(stream).rng());
    indices.truncate(wanted);
    indices.sort_unstable();
    indices
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::datasets::{DatasetConfig, load};

    fn digits() -> Dataset {
        load(&DatasetConfig::Digits {}, Path::new("")).unwrap()
    }

    #[test]
    fn kept_examples_are_some_of_all_and_pixels_are_means() {
        let (whole, small) =
            (digits(), ReduceConfig { train: Some(40), test: None, pool: 4, pad: 0 }.apply(digits()).unwrap());
        assert_eq!((small.train.shape(), small.test.len()), ([1, 2, 2], whole.test.len()));
        let values = |examples: &Examples, index| {
            examples.batch::<Flex>(&[index], &FlexDevice).inputs.into_data().to_vec::<f32>().unwrap()
        };
        let means = |index| {
            let image = values(&whole.train, index);
            let square = |row: usize, column: usize| {
                (0..16).map(|i| image[8 * (4 * row + i / 4) + 4 * column + i % 4]).sum::<f32>() / 16.0
            };
            [square(0, 0), square(0, 1), square(1, 0), square(1, 1)]
        };
        let mut from = 0;
        for index in 0..40 {
            let found = values(&small.train, index);
            let same = |&other: &usize| means(other).iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5);
            from = (from..whole.train.len()).find(same).expect("in the order of the whole") + 1;
        }
    }

    #[test]
    fn images_get_an_empty_border() {
        let pixels = (1..=12).collect::<Vec<u8>>();
        let inputs = Inputs::normalised(pixels, &[0.5, 0.25], &[0.5, 0.5]);
        let examples = Arc::new(Examples::new(inputs, [2, 2, 3], vec![fedburn_core::ClassId(0)], 1).unwrap());
        let dataset = Dataset { train: examples.clone(), test: examples.clone(), ..digits() };
        let padded = ReduceConfig { pad: 2, ..ReduceConfig::default() }.apply(dataset).unwrap();
        assert_eq!(padded.train.shape(), [2, 6, 7]);
        let values =
            |examples: &Examples| examples.batch::<Flex>(&[0], &FlexDevice).inputs.into_data().to_vec::<f32>().unwrap();
        let (before, after) = (values(&examples), values(&padded.train));
        for (place, found) in after.into_iter().enumerate() {
            let (channel, row, column) = (place / 42, place / 7 % 6, place % 7);
            let inside = (2..4).contains(&row) && (2..5).contains(&column);
            let expected = match inside {
                true => before[channel * 6 + (row - 2) * 3 + column - 2],
                // What black becomes, (0 - mean) / std.
                false => [-1.0, -0.5][channel],
            };
            assert_eq!(found, expected, "channel {channel}, row {row}, column {column}");
        }
    }

    #[test]
    fn which_are_kept_does_not_change_and_impossible_amounts_are_refused() {
        let reduce = |train, test, pool| ReduceConfig { train, test, pool, pad: 0 }.apply(digits());
        let labels = |n| reduce(Some(n), None, 1).unwrap().train.labels().to_vec();
        assert_eq!(labels(300), labels(300));
        assert!(reduce(None, None, 1).unwrap().train.len() == 1438);
        for (wrong, field) in [
            (reduce(Some(0), None, 1), "train"),
            (reduce(Some(2000), None, 1), "train"),
            (reduce(None, Some(360), 1), "test"),
            (reduce(None, None, 3), "pool"),
            (reduce(None, None, 0), "pool"),
            (ReduceConfig { pad: 9, ..ReduceConfig::default() }.apply(digits()), "pad"),
        ] {
            let error = wrong.unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }
}
