//! Examples of a user's own file, before training and test part are known to fit each other.

use std::path::Path;

use fedburn_core::ClassId;

use super::source::malformed;
use crate::{DatasetError, Examples, Inputs};

/// Most classes that own data may have: class counts are kept for every client.
const MAX_CLASSES: u64 = 65_536;

/// One file of own data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Input values of all examples, one after the other.
    pub values: Vec<f32>,
    /// Shape of one input as far as the file knows it.
    pub shape: Vec<usize>,
    /// The label of every example.
    pub labels: Vec<ClassId>,
    /// Who made each example, where the file says so.
    pub user_ids: Option<Vec<u64>>,
}

impl Table {
    /// Number of classes that the labels need.
    pub(super) fn num_classes(&self) -> usize {
        self.labels.iter().map(|label| label.0 as usize + 1).max().unwrap_or(0)
    }

    /// The examples, in `shape` or the file's own shape, which then has up to three dimensions, the last one the width.
    pub(super) fn into_examples(
        self,
        shape: Option<[usize; 3]>,
        num_classes: usize,
        path: &Path,
    ) -> Result<Examples, DatasetError> {
        let shape = match (shape, self.shape.as_slice()) {
            (Some(shape), _) => shape,
            (None, []) => [1, 1, 1],
            (None, &[width]) => [1, 1, width],
            (None, &[height, width]) => [1, height, width],
            (None, &[channels, height, width]) => [channels, height, width],
            (None, other) => {
                return Err(malformed(path, format!("inputs have shape {other:?}, expected up to 3 dimensions")));
            }
        };
        Examples::new(Inputs::F32(self.values), shape, self.labels, num_classes).map_err(|error| malformed(path, error))
    }
}

pub(super) fn check_label(label: u64, path: &Path) -> Result<u32, DatasetError> {
    match u32::try_from(label) {
        Ok(class) if label < MAX_CLASSES => Ok(class),
        _ => Err(malformed(path, format!("label {label}, expected a class number below {MAX_CLASSES}"))),
    }
}
