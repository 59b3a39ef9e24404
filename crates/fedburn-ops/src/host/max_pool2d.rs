//! Max pooling, with the place of each window's largest value as a byte.

use pulp::{Simd, WithSimd};

use super::simd::dispatch;
use crate::PoolOptions;

/// Marks a window whose largest value was cut off at zero: no gradient passes.
const CUT: u8 = u8::MAX;

/// The largest values, and the place of each in its window: `row * kernel width + column`, or [`CUT`].
pub(super) fn forward(x: &[f32], shape: [usize; 4], options: &PoolOptions) -> (Vec<f32>, Vec<u8>) {
    dispatch(Forward { x, shape, options })
}

/// The gradient of `x`: each window's gradient at the place of its largest value.
pub(super) fn backward(dy: &[f32], places: &[u8], shape: [usize; 4], options: &PoolOptions) -> Vec<f32> {
    dispatch(Backward { dy, places, shape, options })
}

/// Whether the windows tile the image two by two, the case that is fast.
fn is_halving(options: &PoolOptions) -> bool {
    let PoolOptions { kernel, stride, padding, .. } = *options;
    (kernel, stride, padding) == ([2, 2], [2, 2], [0, 0])
}

struct Forward<'a> {
    x: &'a [f32],
    shape: [usize; 4],
    options: &'a PoolOptions,
}

impl WithSimd for Forward<'_> {
    type Output = (Vec<f32>, Vec<u8>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Self::Output {
        let Self { x, shape: [batch, channels, height, width], options } = self;
        let [rows, columns] = options.output([height, width]);
        let mut y = vec![0.0; batch * channels * rows * columns];
        let mut places = vec![0; y.len()];
        let images = x.chunks_exact(height * width);
        let outputs = y.chunks_exact_mut(rows * columns).zip(places.chunks_exact_mut(rows * columns));
        for (x, (y, places)) in images.zip(outputs) {
            for (i, (y, places)) in y.chunks_exact_mut(columns).zip(places.chunks_exact_mut(columns)).enumerate() {
                if is_halving(options) {
                    let (above, below) = x[2 * i * width..][..2 * width].split_at(width);
                    halve(above, below, y, places);
                } else {
                    for (j, (y, place)) in y.iter_mut().zip(places.iter_mut()).enumerate() {
                        (*y, *place) = largest(x, [height, width], [i, j], options);
                    }
                }
                if options.relu {
                    for (y, place) in y.iter_mut().zip(places) {
                        if *y <= 0.0 {
                            *y = 0.0;
                            *place = CUT;
                        }
                    }
                }
            }
        }
        (y, places)
    }
}

#[inline(always)]
fn halve(above: &[f32], below: &[f32], y: &mut [f32], places: &mut [u8]) {
    // A NaN wins wherever it is.
    let larger = |a: (f32, u8), b: (f32, u8)| if a.0 >= b.0 || a.0.is_nan() { a } else { b };
    let (above, below) = (above.as_chunks::<2>().0, below.as_chunks::<2>().0);
    for ((above, below), (y, place)) in above.iter().zip(below).zip(y.iter_mut().zip(places)) {
        let above = larger((above[0], 0), (above[1], 1));
        let below = larger((below[0], 2), (below[1], 3));
        (*y, *place) = larger(above, below);
    }
}

#[inline(always)]
fn largest(x: &[f32], [height, width]: [usize; 2], [i, j]: [usize; 2], options: &PoolOptions) -> (f32, u8) {
    let mut found: Option<(f32, u8)> = None;
    for k in 0..options.kernel[0] {
        for l in 0..options.kernel[1] {
            // Wraps to a huge number above and to the left of the image.
            let row = (i * options.stride[0] + k).wrapping_sub(options.padding[0]);
            let column = (j * options.stride[1] + l).wrapping_sub(options.padding[1]);
            if row < height && column < width {
                let value = x[row * width + column];
                if found.is_none_or(|(best, _)| value > best || (value.is_nan() && !best.is_nan())) {
                    found = Some((value, (k * options.kernel[1] + l) as u8));
                }
            }
        }
    }
    found.unwrap_or((f32::NEG_INFINITY, CUT))
}

struct Backward<'a> {
    dy: &'a [f32],
    places: &'a [u8],
    shape: [usize; 4],
    options: &'a PoolOptions,
}

impl WithSimd for Backward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
        let Self { dy, places, shape: [batch, channels, height, width], options } = self;
        let [rows, columns] = options.output([height, width]);
        let mut dx = vec![0.0; batch * channels * height * width];
        let windows = dy.chunks_exact(rows * columns).zip(places.chunks_exact(rows * columns));
        for (dx, (dy, places)) in dx.chunks_exact_mut(height * width).zip(windows) {
            for (i, (dy, places)) in dy.chunks_exact(columns).zip(places.chunks_exact(columns)).enumerate() {
                if is_halving(options) {
                    let (above, below) = dx[2 * i * width..][..2 * width].split_at_mut(width);
                    let (above, below) = (above.as_chunks_mut::<2>().0, below.as_chunks_mut::<2>().0);
                    for ((above, below), (dy, place)) in above.iter_mut().zip(below).zip(dy.iter().zip(places)) {
                        let at = |this| if *place == this { *dy } else { 0.0 };
                        *above = [at(0), at(1)];
                        *below = [at(2), at(3)];
                    }
                } else {
                    for (j, (dy, place)) in dy.iter().zip(places).enumerate() {
                        if *place != CUT {
                            let (k, l) =
                                (usize::from(*place) / options.kernel[1], usize::from(*place) % options.kernel[1]);
                            let row = i * options.stride[0] + k - options.padding[0];
                            dx[row * width + j * options.stride[1] + l - options.padding[1]] += dy;
                        }
                    }
                }
            }
        }
        dx
    }
}
