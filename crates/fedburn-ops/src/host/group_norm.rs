//! Group norm, forward and backward. Means and variances are computed twice rather than kept.

use pulp::{Simd, WithSimd};

use super::simd::dispatch;
use crate::GroupNormOptions;

/// `x` `[batch, channels, positions]` and what belongs to it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub x: &'a [f32],
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    /// Height times width.
    pub positions: usize,
    pub options: GroupNormOptions,
}

impl Input<'_> {
    fn group_channels(&self) -> usize {
        self.gamma.len() / self.options.groups
    }

    /// Mean and reciprocal standard deviation of the values of a group.
    #[inline(always)]
    fn statistics<S: Simd>(&self, simd: S, group: &[f32]) -> (f32, f32) {
        let mean = total(simd, group, |x| x) / group.len() as f32;
        let shift = simd.splat_f32s(mean);
        let squares = total(simd, group, |x| {
            let centred = simd.sub_f32s(x, shift);
            simd.mul_f32s(centred, centred)
        });
        (mean, 1.0 / (squares / group.len() as f32 + self.options.epsilon as f32).sqrt())
    }
}

/// The sum of a function of the values, in an order that depends on their number alone.
#[inline(always)]
fn total<S: Simd>(simd: S, values: &[f32], f: impl Fn(S::f32s) -> S::f32s) -> f32 {
    let (vectors, rest) = S::as_simd_f32s(values);
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (blocks, last) = vectors.as_chunks::<4>();
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum = simd.add_f32s(*sum, f(*v));
        }
    }
    for v in last {
        sums[0] = simd.add_f32s(sums[0], f(*v));
    }
    let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    let mut sum = simd.reduce_sum_f32s(sum);
    for x in rest {
        // One value at a time, as the other lanes of a vector would count for something.
        let mut lanes = [0.0; 16];
        simd.partial_store_f32s(&mut lanes[..S::F32_LANES], f(simd.splat_f32s(*x)));
        sum += lanes[0];
    }
    sum
}

/// The normalised values, scaled, shifted and, where asked for, cut off at zero.
pub(super) fn forward(input: Input<'_>) -> Vec<f32> {
    dispatch(Forward(input))
}

struct Forward<'a>(Input<'a>);

impl WithSimd for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self(input) = self;
        let Input { x, gamma, beta, positions, options } = input;
        let channels = input.group_channels();
        let mut y = Vec::with_capacity(x.len());
        for (index, group) in x.chunks_exact(channels * positions).enumerate() {
            let (mean, scale) = input.statistics(simd, group);
            for (c, x) in group.chunks_exact(positions).enumerate() {
                let channel = index % options.groups * channels + c;
                let a = gamma[channel] * scale;
                let b = beta[channel] - a * mean;
                if options.relu {
                    y.extend(x.iter().map(|x| cut(a * x + b)));
                } else {
                    y.extend(x.iter().map(|x| a * x + b));
                }
            }
        }
        y
    }
}

/// Zero for negative values; NaN stays.
#[inline(always)]
fn cut(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

/// Gradients of `x`, `gamma` and `beta`.
pub(super) fn backward(input: Input<'_>, dy: &[f32]) -> [Vec<f32>; 3] {
    dispatch(Backward { input, dy })
}

struct Backward<'a> {
    input: Input<'a>,
    dy: &'a [f32],
}

impl WithSimd for Backward<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 3] {
        let Self { input, dy } = self;
        let Input { x, gamma, beta, positions, options } = input;
        let channels = input.group_channels();
        let size = channels * positions;
        let mut dx = Vec::with_capacity(x.len());
        let (mut dgamma, mut dbeta) = (vec![0.0; gamma.len()], vec![0.0; gamma.len()]);
        let mut cut_dy = vec![0.0; if options.relu { size } else { 0 }];
        for (index, (group, dy)) in x.chunks_exact(size).zip(dy.chunks_exact(size)).enumerate() {
            let (mean, scale) = input.statistics(simd, group);
            let first = index % options.groups * channels;
            let mut dy = dy;
            if options.relu {
                for (c, ((x, dy), cut)) in group
                    .chunks_exact(positions)
                    .zip(dy.chunks_exact(positions))
                    .zip(cut_dy.chunks_exact_mut(positions))
                    .enumerate()
                {
                    let a = gamma[first + c] * scale;
                    let b = beta[first + c] - a * mean;
                    for ((x, dy), cut) in x.iter().zip(dy).zip(cut) {
                        *cut = if a * x + b > 0.0 { *dy } else { 0.0 };
                    }
                }
                dy = &cut_dy;
            }
            // Sums over the group of gamma dy and gamma dy x_hat.
            let (mut sum, mut product) = (0.0, 0.0);
            for (c, (x, dy)) in group.chunks_exact(positions).zip(dy.chunks_exact(positions)).enumerate() {
                let (d, dx_hat) = sums(simd, x, dy, mean);
                let dx_hat = dx_hat * scale;
                dbeta[first + c] += d;
                dgamma[first + c] += dx_hat;
                sum += gamma[first + c] * d;
                product += gamma[first + c] * dx_hat;
            }
            let (k1, k2) = (scale * sum / size as f32, scale * scale * product / size as f32);
            for (c, (x, dy)) in group.chunks_exact(positions).zip(dy.chunks_exact(positions)).enumerate() {
                let a = gamma[first + c] * scale;
                let b = k2 * mean - k1;
                dx.extend(x.iter().zip(dy).map(|(x, dy)| a * dy - k2 * x + b));
            }
        }
        [dx, dgamma, dbeta]
    }
}

/// The sums of `dy` and of `dy (x - mean)`.
#[inline(always)]
fn sums<S: Simd>(simd: S, x: &[f32], dy: &[f32], mean: f32) -> (f32, f32) {
    let ((xs, x_rest), (ds, d_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(dy));
    let shift = simd.splat_f32s(mean);
    let (mut sum, mut product) = ([simd.splat_f32s(0.0); 2], [simd.splat_f32s(0.0); 2]);
    for (i, (x, d)) in xs.iter().zip(ds).enumerate() {
        sum[i % 2] = simd.add_f32s(sum[i % 2], *d);
        product[i % 2] = simd.mul_add_e_f32s(*d, simd.sub_f32s(*x, shift), product[i % 2]);
    }
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(sum[0], sum[1]));
    let mut product = simd.reduce_sum_f32s(simd.add_f32s(product[0], product[1]));
    for (x, d) in x_rest.iter().zip(d_rest) {
        sum += d;
        product += d * (x - mean);
    }
    (sum, product)
}
