//! Gaussian class blobs in the shape of images, made from a seed: every class has a random mean image, every example is
//! its class's mean plus unit noise. Also a population whose clients are made when asked for, so that a million of
//! them cost nothing.

use fedburn_core::{ClassId, ClientId, Seed};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::{DatasetError, Examples, Inputs};

/// Largest number of values of one input, and of classes.
const LIMIT: usize = 1 << 24;

/// What blobs look like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyntheticConfig {
    /// Number of classes, at least 1.
    pub classes: usize,
    /// `[channels, height, width]` of one input.
    pub shape: [usize; 3],
    /// Number of training examples; class `i mod classes` for the `i`-th.
    pub train: usize,
    /// Number of test examples, likewise.
    pub test: usize,
    /// Typical distance between two class means in standard deviations of the noise, at least 0. Two classes at this
    /// distance are told apart with an error of at best `Phi(-separation / 2)`: 2.3 % at 4.
    pub separation: f64,
    /// Chooses the means and the examples.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    /// Ten classes of 8 x 8 grey images, 2,000 for training, 500 for testing, separation 4.
    fn default() -> Self {
        Self { classes: 10, shape: [1, 8, 8], train: 2000, test: 500, separation: 4.0, seed: 0 }
    }
}

/// A source of blobs; the class means are fixed, examples are drawn when asked for.
///
/// # Examples
///
/// ```
/// use fedburn_core::ClientId;
/// use fedburn_data::datasets::{Synthetic, SyntheticConfig};
///
/// let blobs = Synthetic::new(SyntheticConfig::default())?;
/// let far = blobs.client(ClientId(999_999), 20, Some(0.5))?; // one client of a million, nothing else is made
/// assert_eq!(far.len(), 20);
/// # Ok::<(), fedburn_data::DatasetError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Synthetic {
    config: SyntheticConfig,
    seed: Seed,
    /// The mean of each class.
    means: Vec<Vec<f32>>,
}

impl Synthetic {
    /// Draws the class means.
    ///
    /// # Errors
    /// [`DatasetError::Setting`]: no class, an empty or huge shape, a separation below 0 or not finite.
    pub fn new(config: SyntheticConfig) -> Result<Self, DatasetError> {
        let size = config.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
        let values = size.checked_mul(config.classes).filter(|&values| values <= LIMIT);
        let wrong =
            |field, value: String, expected: &str| DatasetError::Setting { field, value, expected: expected.into() };
        if config.classes == 0 {
            return Err(wrong("classes", "0".into(), "at least 1"));
        }
        if size == 0 || values.is_none() {
            let expected = "a shape [channels, height, width] without 0, with at most 2^24 values over all classes";
            return Err(wrong("shape", format!("{:?}", config.shape), expected));
        }
        if !config.separation.is_finite() || config.separation < 0.0 {
            return Err(wrong("separation", config.separation.to_string(), "a finite number, at least 0"));
        }
        let seed = Seed::new(config.seed).purpose(fedburn_core::Purpose::Data);
        // Means at N(0, s^2) in d dimensions are s x sqrt(2 d) apart.
        let scale = config.separation / (2.0 * size as f64).sqrt();
        let mean = |class: usize| {
            let mut rng = seed.index(0).index(class as u64).rng();
            (0..size).map(|_| (scale * normal(&mut rng)) as f32).collect()
        };
        let means = (0..config.classes).map(mean).collect();
        Ok(Self { config, seed, means })
    }

    /// The training examples of the config.
    ///
    /// # Errors
    /// [`DatasetError::NonFinite`] where the separation is too large for 32-bit numbers.
    pub fn train(&self) -> Result<Examples, DatasetError> {
        self.balanced(self.config.train, self.seed.index(1))
    }

    /// The test examples of the config, independent of the training examples.
    ///
    /// # Errors
    /// As [`Synthetic::train`].
    pub fn test(&self) -> Result<Examples, DatasetError> {
        self.balanced(self.config.test, self.seed.index(2))
    }

    /// The `num_examples` examples of one client of an unbounded population, a function of the seed and the client
    /// alone. Its class shares are drawn from the symmetric Dirichlet distribution with `alpha`, or are equal for
    /// `None`.
    ///
    /// # Errors
    /// [`DatasetError::Setting`] where alpha is not a finite number above 0; as [`Synthetic::train`].
    pub fn client(&self, id: ClientId, num_examples: usize, alpha: Option<f64>) -> Result<Examples, DatasetError> {
        let seed = self.seed.index(3).client(id);
        let mut rng = seed.index(0).rng();
        let classes = self.config.classes;
        let shares = match alpha {
            None => vec![1.0 / classes as f64; classes],
            Some(alpha) if alpha.is_finite() && alpha > 0.0 => {
                crate::partition::dirichlet_shares(alpha, classes, &mut rng)
            }
            Some(alpha) => {
                let expected = "a finite number above 0".into();
                return Err(DatasetError::Setting { field: "alpha", value: alpha.to_string(), expected });
            }
        };
        let draw = |_| {
            let mut point: f64 = rng.random();
            // Rounding may leave a rest: the last class takes it.
            let class = shares.iter().position(|share| {
                point -= share;
                point < 0.0
            });
            ClassId(class.unwrap_or(classes - 1) as u32)
        };
        let labels = (0..num_examples).map(draw).collect();
        self.examples(labels, seed.index(1))
    }

    fn balanced(&self, count: usize, seed: Seed) -> Result<Examples, DatasetError> {
        let labels = (0..count).map(|i| ClassId((i % self.config.classes) as u32)).collect();
        self.examples(labels, seed)
    }

    fn examples(&self, labels: Vec<ClassId>, seed: Seed) -> Result<Examples, DatasetError> {
        let mut rng = seed.rng();
        let mut values = Vec::new();
        for label in &labels {
            values.extend(self.means[label.0 as usize].iter().map(|&mean| mean + normal(&mut rng) as f32));
        }
        Examples::new(Inputs::F32(values), self.config.shape, labels, self.config.classes)
    }
}

fn normal(rng: &mut impl rand::Rng) -> f64 {
    StandardNormal.sample(rng)
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    fn host(examples: &Examples) -> Vec<f32> {
        let all: Vec<usize> = (0..examples.len()).collect();
        examples.batch::<Flex>(&all, &FlexDevice).inputs.into_data().to_vec().unwrap()
    }

    #[test]
    fn train_and_test_share_means_but_no_noise() {
        let blobs = Synthetic::new(SyntheticConfig::default()).unwrap();
        let (train, test) = (host(&blobs.train().unwrap()), host(&blobs.test().unwrap()));
        assert_ne!(train[..64], test[..64]);
        let mean_of_class = |values: &[f32], class: usize| -> Vec<f64> {
            let rows: Vec<&[f32]> = values.chunks(64).skip(class).step_by(10).collect();
            (0..64).map(|p| rows.iter().map(|row| f64::from(row[p])).sum::<f64>() / rows.len() as f64).collect()
        };
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let means: Vec<Vec<f64>> = (0..10).map(|class| mean_of_class(&train, class)).collect();
        // Means of 200 and 50 draws in 64 dimensions differ by sqrt(64 (1/200 + 1/50)) = 1.3 of pure noise.
        assert!(distance(&means[3], &mean_of_class(&test, 3)) < 1.7);
        let pairs: Vec<f64> = (0..9).map(|c| distance(&means[c], &means[c + 1])).collect();
        assert!((pairs.iter().sum::<f64>() / 9.0 - 4.0).abs() < 0.5, "{pairs:?}");
    }

    #[test]
    fn clients_are_made_alone_and_always_the_same() {
        let blobs = Synthetic::new(SyntheticConfig::default()).unwrap();
        let client = |id| blobs.client(ClientId(id), 30, Some(0.1)).unwrap();
        assert_eq!(client(999_999), client(999_999));
        assert_ne!(client(0), client(1));
        let classes = |id| client(id).labels().iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!((0..20).map(classes).sum::<usize>() < 20 * 5, "alpha 0.1 makes few classes a client");
        assert!(blobs.client(ClientId(0), 1, Some(f64::NAN)).is_err());
    }

    #[test]
    fn impossible_settings_are_refused() {
        let with = |change: fn(&mut SyntheticConfig)| {
            let mut config = SyntheticConfig::default();
            change(&mut config);
            Synthetic::new(config).and_then(|blobs| blobs.train()).map(|e| e.len()).map_err(|e| e.to_string())
        };
        assert!(with(|c| c.classes = 0).unwrap_err().contains("`classes` is 0"));
        assert!(with(|c| c.shape = [1, 0, 8]).unwrap_err().contains("`shape`"));
        assert!(with(|c| c.shape = [usize::MAX, 2, 8]).unwrap_err().contains("`shape`"));
        assert!(with(|c| c.separation = f64::NAN).unwrap_err().contains("`separation`"));
        assert!(with(|c| c.separation = 1e300).unwrap_err().contains("finite"));
        assert_eq!(with(|c| c.train = 0), Ok(0));
    }
}
