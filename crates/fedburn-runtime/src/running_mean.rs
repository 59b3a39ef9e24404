//! The exact mean of vectors that arrive one after another.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::exact_sum::{ExactSum, ExactSumError, check, exact_mean, exact_mean_into, first_non_finite};
use crate::staged::Staged;

/// A mean in the making. A few vectors wait for each other, because one pass over several is much faster than one for
/// each; what does not fit is folded into an [`ExactSum`]. So the memory does not depend on the number of vectors, and
/// where all of them may wait, as with small models, no sum is ever needed.
///
/// With a folder for them, long vectors wait in a file instead, however many they are: then the mean itself is all that
/// is in memory.
pub(crate) struct RunningMean {
    len: usize,
    weight: u64,
    threads: usize,
    waiting: Vec<(Vec<f32>, u64)>,
    folder: Option<Arc<Path>>,
    staged: Option<Staged>,
    sum: Option<ExactSum>,
}

/// A mean that cannot be told.
#[derive(Debug, Error)]
pub(crate) enum RunningMeanError {
    /// Nothing was added.
    #[error(transparent)]
    Sum(#[from] ExactSumError),
    /// The file of the vectors that wait cannot be read.
    #[error("the round's updates cannot be read back: {0}")]
    Staged(#[from] std::io::Error),
}

/// As many vectors wait in memory as take the memory of their sum, or more as long as they are small: 8 MiB.
const WAITING: usize = 4;
const WAITING_VALUES: usize = 1 << 21;
/// Values of a vector that is long enough to wait in a file.
const STAGED_VALUES: usize = 1 << 21;
/// Values that are read back at once, of all vectors together.
const BLOCK_VALUES: usize = 1 << 21;

impl RunningMean {
    /// The mean of nothing yet; long vectors are shared among up to `threads` threads and wait in `folder`, where there
    /// is one.
    pub(crate) fn new(len: usize, threads: usize, folder: Option<Arc<Path>>) -> Self {
        Self { len, weight: 0, threads, waiting: Vec::new(), folder, staged: None, sum: None }
    }

    /// The mean of what is in `sum`, to which more may come.
    pub(crate) fn of_sum(sum: ExactSum, threads: usize, folder: Option<Arc<Path>>) -> Self {
        let mean = Self::new(sum.len(), threads, folder);
        Self { weight: sum.weight(), sum: Some(sum.with_threads(threads)), ..mean }
    }

    /// All that was added, as one sum.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] where nothing was added; a file that cannot be read.
    pub(crate) fn sum(&mut self) -> Result<&ExactSum, RunningMeanError> {
        if let Some(staged) = self.staged.take() {
            for (index, weight) in staged.weights() {
                let mut values = vec![0.0; self.len];
                staged.read(index, 0, &mut values)?;
                self.waiting.push((values, weight));
                self.fold()?;
            }
        }
        self.fold()?;
        Ok(self.sum.as_ref().ok_or(ExactSumError::Empty)?)
    }

    /// The weights added so far.
    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// Takes a vector in. A refused one leaves the mean untouched.
    ///
    /// # Errors
    /// As [`ExactSum::add`].
    pub(crate) fn add(&mut self, values: Vec<f32>, weight: u64) -> Result<(), ExactSumError> {
        let total = check(self.len, self.weight, [(values.len(), weight)])?;
        if let Some(index) = first_non_finite(&values) {
            return Err(ExactSumError::NonFinite { index });
        }
        if !self.stage(&values, weight) {
            self.waiting.push((values, weight));
        }
        self.weight = total;
        if self.waiting.len() >= WAITING && self.waiting.len().saturating_mul(self.len) >= WAITING_VALUES {
            self.fold()?;
        }
        Ok(())
    }

    /// The mean, each value rounded once.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] where nothing was added; a file that cannot be read.
    pub(crate) fn mean(mut self) -> Result<Vec<f32>, RunningMeanError> {
        match (&self.sum, &self.staged) {
            (None, Some(staged)) => self.mean_with(staged),
            (None, None) if !self.waiting.is_empty() => {
                let first = self.waiting.swap_remove(0);
                Ok(exact_mean(first, &slices(&self.waiting), self.threads)?)
            }
            _ => Ok(self.sum()?.mean()?),
        }
    }

    /// The mean over the stretches of which others than all hold the values: each sum over the weight of its stretch, and
    /// the value of `rest` where that is 0. Vectors hold `-0.0` where their clients hold nothing.
    ///
    /// # Errors
    /// As [`RunningMean::mean`].
    pub(crate) fn mean_of_held(
        mut self,
        stretches: &[(Range<usize>, u64)],
        mut rest: Vec<f32>,
    ) -> Result<Vec<f32>, RunningMeanError> {
        let sum = self.sum()?;
        let weights: BTreeSet<u64> = stretches.iter().map(|(_, weight)| *weight).filter(|weight| *weight > 0).collect();
        for weight in weights {
            let means = sum.divided_by(weight)?;
            for (range, _) in stretches.iter().filter(|(_, of)| *of == weight) {
                rest[range.clone()].copy_from_slice(&means[range.clone()]);
            }
        }
        Ok(rest)
    }

    /// Puts a long vector into the file; `false` where it has to wait in memory.
    fn stage(&mut self, values: &[f32], weight: u64) -> bool {
        let Some(folder) = self.folder.as_ref().filter(|_| values.len() >= STAGED_VALUES) else { return false };
        let staged = match self.staged.take() {
            Some(staged) => Ok(staged),
            None => Staged::new(folder, self.len),
        };
        let added = staged.and_then(|mut staged| {
            let added = staged.add(values, weight);
            self.staged = Some(staged);
            added
        });
        if let Err(error) = &added {
            tracing::warn!(%error, folder = %folder.display(), "update.staged_in_memory");
        }
        added.is_ok()
    }

    /// The mean of what waits in the file and in memory, block by block.
    fn mean_with(&self, staged: &Staged) -> Result<Vec<f32>, RunningMeanError> {
        let weights: Vec<(usize, u64)> = staged.weights().collect();
        // The file is empty where its disk was full from the first vector on.
        let block = (BLOCK_VALUES / weights.len().max(1)).max(1);
        let mut buffers = vec![vec![0.0; block.min(self.len)]; weights.len()];
        let mut means = vec![0.0; self.len];
        for (start, means) in (0..).step_by(block).zip(means.chunks_mut(block)) {
            for ((index, _), buffer) in weights.iter().zip(&mut buffers) {
                staged.read(*index, start, &mut buffer[..means.len()])?;
            }
            let read = buffers.iter().zip(&weights).map(|(buffer, (_, weight))| (&buffer[..means.len()], *weight));
            let waiting = self.waiting.iter().map(|(values, weight)| (&values[start..start + means.len()], *weight));
            exact_mean_into(means, &read.chain(waiting).collect::<Vec<_>>(), self.threads)?;
        }
        Ok(means)
    }

    fn fold(&mut self) -> Result<(), ExactSumError> {
        if !self.waiting.is_empty() {
            let sum = self.sum.get_or_insert_with(|| ExactSum::new(self.len).with_threads(self.threads));
            sum.add_all(&slices(&self.waiting))?;
            self.waiting.clear();
        }
        Ok(())
    }
}

fn slices(vectors: &[(Vec<f32>, u64)]) -> Vec<(&[f32], u64)> {
    vectors.iter().map(|(values, weight)| (&values[..], *weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_folding_give_the_same_bits() {
        // 600,000 values: four vectors are more than may wait.
        for len in [3, 600_000] {
            let vectors: Vec<(Vec<f32>, u64)> = (0..9u64)
                .map(|k| ((0..len).map(|i| ((i as u64 * 37 + k * 101) % 1009) as f32 * 1e-3 - 0.5).collect(), 3 + k))
                .collect();
            let mut expected = ExactSum::new(len);
            let mut mean = RunningMean::new(len, 2, None);
            for (count, (values, weight)) in vectors.iter().enumerate() {
                expected.add(values, *weight).unwrap();
                mean.add(values.clone(), *weight).unwrap();
                assert_eq!(mean.waiting.len(), if len == 3 { count + 1 } else { (count + 1) % WAITING });
            }
            assert_eq!(mean.weight(), expected.weight());
            assert_eq!(mean.add(vec![f32::NAN; len], 1), Err(ExactSumError::NonFinite { index: 0 }));
            assert_eq!(mean.mean().unwrap(), expected.mean().unwrap());
        }
    }

    #[test]
    fn vectors_that_wait_in_a_file_give_the_same_bits() {
        let folder: Arc<Path> = tempfile::tempdir().unwrap().keep().into();
        let len = STAGED_VALUES + 3;
        let vector = |k: usize| (0..len).map(|i| ((i * 37 + k * 101) % 1009) as f32 * 1e-3 - 0.5).collect::<Vec<_>>();
        let mut expected = ExactSum::new(len);
        let (mut staged, mut lost) =
            (RunningMean::new(len, 2, Some(folder.clone())), RunningMean::new(len, 2, Some(folder.join("no").into())));
        for k in 0..5 {
            expected.add(&vector(k), 3 + k as u64).unwrap();
            staged.add(vector(k), 3 + k as u64).unwrap();
            assert!(staged.waiting.is_empty() && staged.sum.is_none());
            // A folder that is not there is no reason to lose the round.
            lost.add(vector(k), 3 + k as u64).unwrap();
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "the file has no name, so that no crash leaves it");
        let expected = expected.mean().unwrap();
        assert_eq!(lost.mean().unwrap(), expected);

        // A disk that filled up in between: some wait in the file, some in memory.
        for in_memory in 0..=5 {
            let mut mixed = RunningMean::new(len, 2, Some(folder.clone()));
            mixed.staged = Some(Staged::new(&folder, len).unwrap());
            for k in 0..5 {
                mixed.folder = (k >= in_memory).then(|| folder.clone());
                mixed.add(vector(k), 3 + k as u64).unwrap();
            }
            assert_eq!(mixed.mean().unwrap(), expected);
        }
        // An open round that was written has its vectors in a sum; those that come later wait again.
        let mut summed = RunningMean::new(len, 2, Some(folder.clone()));
        for k in 0..5 {
            summed.add(vector(k), 3 + k as u64).unwrap();
            if k == 2 {
                summed = RunningMean::of_sum(summed.sum().unwrap().clone(), 2, Some(folder.clone()));
            }
        }
        assert!(summed.staged.is_some());
        assert_eq!(summed.mean().unwrap(), expected);
        assert_eq!(staged.mean().unwrap(), expected);
        std::fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn no_vector_has_no_mean() {
        let mean = RunningMean::new(2, 1, None).mean();
        assert!(matches!(mean, Err(RunningMeanError::Sum(ExactSumError::Empty))));
    }
}
