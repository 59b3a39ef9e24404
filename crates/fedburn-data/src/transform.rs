//! What a client's own instruments do to its inputs: the feature shift of a partition.

use fedburn_core::Seed;
use rand_distr::{Distribution, StandardNormal};

/// A fixed change of a client's inputs. It is a function of the example's index and the settings, so that a client
/// sees the same changed example in every round.
#[derive(Clone, Debug, PartialEq)]
pub enum Transform {
    /// Independent Gaussian noise on every value.
    Noise {
        /// Standard deviation, in units of the normalised inputs; not negative.
        sigma: f64,
        /// The client's noise; each example draws from `seed.index(example)`.
        seed: Seed,
    },
    /// A turn about the centre of the image, interpolated between the four nearest pixels. What comes from outside is
    /// the nearest pixel of the border.
    Rotation {
        /// Angle in degrees, counter-clockwise.
        degrees: f64,
    },
}

impl Transform {
    /// Changes one input `[channels, height, width]` in place; `index` is the example's number in the shared examples.
    pub(crate) fn apply(&self, values: &mut [f32], shape: [usize; 3], index: usize) {
        match *self {
            Self::Noise { sigma, seed } => {
                let mut rng = seed.index(index as u64).rng();
                for value in values {
                    let noise: f64 = StandardNormal.sample(&mut rng);
                    *value += (sigma * noise) as f32;
                }
            }
            Self::Rotation { degrees } => rotate(values, shape, degrees),
        }
    }
}

fn rotate(values: &mut [f32], [_, height, width]: [usize; 3], degrees: f64) {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (centre_y, centre_x) = ((height - 1) as f64 / 2.0, (width - 1) as f64 / 2.0);
    for plane in values.chunks_exact_mut(height * width) {
        let original = plane.to_vec();
        for (position, value) in plane.iter_mut().enumerate() {
            let (dy, dx) = ((position / width) as f64 - centre_y, (position % width) as f64 - centre_x);
            // The inverse turn: where does this pixel come from? Rows count downwards.
            let y = (centre_y + cos * dy + sin * dx).clamp(0.0, (height - 1) as f64);
            let x = (centre_x + cos * dx - sin * dy).clamp(0.0, (width - 1) as f64);
            *value = between(&original, width, height, y, x);
        }
    }
}

/// Bilinear interpolation; `y` and `x` lie inside the image.
fn between(plane: &[f32], width: usize, height: usize, y: f64, x: f64) -> f32 {
    let (top, left) = (y.floor() as usize, x.floor() as usize);
    let (bottom, right) = ((top + 1).min(height - 1), (left + 1).min(width - 1));
    let (fy, fx) = (y - top as f64, x - left as f64);
    let row =
        |row: usize| f64::from(plane[row * width + left]) * (1.0 - fx) + f64::from(plane[row * width + right]) * fx;
    (row(top) * (1.0 - fy) + row(bottom) * fy) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_moves_pixels_counter_clockwise() {
        let mut image = [1.0, 2.0, 3.0, 4.0];
        Transform::Rotation { degrees: 90.0 }.apply(&mut image, [1, 2, 2], 0);
        let expected = [2.0, 4.0, 1.0, 3.0];
        assert!(image.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{image:?}");
    }

    #[test]
    fn a_full_turn_changes_nothing_and_no_turn_leaves_the_range() {
        let original: Vec<f32> = (0..2 * 5 * 7).map(|i| (i * i % 17) as f32).collect();
        for degrees in [0.0, 360.0, 33.0, -120.0] {
            let mut image = original.clone();
            Transform::Rotation { degrees }.apply(&mut image, [2, 5, 7], 0);
            if degrees % 360.0 == 0.0 {
                assert!(image.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-4), "{degrees}");
            } else {
                assert_ne!(image, original);
                assert!(image.iter().all(|v| (-1e-4..=16.001).contains(v)), "interpolation makes no new extremes");
            }
        }
    }

    #[test]
    fn noise_has_the_level_asked_for_and_belongs_to_the_example() {
        let noise = Transform::Noise { sigma: 0.5, seed: Seed::new(3) };
        let draw = |index| {
            let mut values = vec![1.0; 20_000];
            noise.apply(&mut values, [1, 100, 200], index);
            values
        };
        let values = draw(4);
        assert_eq!(values, draw(4));
        assert_ne!(values, draw(5));
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 20_000.0;
        // Five standard errors: 0.5 / sqrt(20000) of the mean, 0.25 x sqrt(2 / 20000) of the variance.
        assert!((mean - 1.0).abs() < 0.018 && (variance - 0.25).abs() < 0.0125, "{mean} {variance}");
    }
}
