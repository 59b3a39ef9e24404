//! The exact mean of vectors that arrive one after another.

use crate::exact_sum::{ExactSum, ExactSumError, check, exact_mean, first_non_finite};

/// A mean in the making. A few vectors wait for each other, because one pass over several is much faster than one for
/// each; what does not fit is folded into an [`ExactSum`]. So the memory does not depend on the number of vectors, and
/// where all of them may wait, as with small models, no sum is ever needed.
pub(crate) struct RunningMean {
    len: usize,
    weight: u64,
    threads: usize,
    waiting: Vec<(Vec<f32>, u64)>,
    sum: Option<ExactSum>,
}

/// As many vectors wait as take the memory of their sum, or more as long as they are small: 8 MiB.
const WAITING: usize = 4;
const WAITING_VALUES: usize = 1 << 21;

impl RunningMean {
    /// The mean of nothing yet; long vectors are shared among up to `threads` threads.
    pub(crate) fn new(len: usize, threads: usize) -> Self {
        Self { len, weight: 0, threads, waiting: Vec::new(), sum: None }
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
        self.waiting.push((values, weight));
        self.weight = total;
        if self.waiting.len() >= WAITING && self.waiting.len().saturating_mul(self.len) >= WAITING_VALUES {
            self.fold()?;
        }
        Ok(())
    }

    /// The mean, each value rounded once.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] where nothing was added.
    pub(crate) fn mean(mut self) -> Result<Vec<f32>, ExactSumError> {
        if self.sum.is_none() && !self.waiting.is_empty() {
            let first = self.waiting.swap_remove(0);
            return exact_mean(first, &slices(&self.waiting), self.threads);
        }
        self.fold()?;
        self.sum.map_or(Err(ExactSumError::Empty), |sum| sum.mean())
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
            let mut mean = RunningMean::new(len, 2);
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
    fn no_vector_has_no_mean() {
        assert_eq!(RunningMean::new(2, 1).mean(), Err(ExactSumError::Empty));
    }
}
