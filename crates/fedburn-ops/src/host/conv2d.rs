//! Two-dimensional convolution, forward and backward, over [`Planes`].

use pulp::{Simd, WithSimd};

use super::planes::{Axis, Planes, Tap, Target};
use super::simd::{Scratch, dispatch};
use super::tiles::{Correlation, Panels, convolve};
use crate::ConvOptions;

/// The sizes of one convolution.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    batch: usize,
    groups: usize,
    /// Per group.
    inputs: usize,
    /// Per group.
    outputs: usize,
    image: [usize; 2],
    kernel: [usize; 2],
    grid: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
}

impl Geometry {
    pub(super) fn new(x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> Self {
        let ConvOptions { stride, padding, dilation, groups } = *options;
        let (image, kernel) = ([x[2], x[3]], [weight[2], weight[3]]);
        let grid = [0, 1]
            .map(|axis| (image[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1);
        let (batch, inputs, outputs) = (x[0], weight[1], weight[0] / groups);
        Self { batch, groups, inputs, outputs, image, kernel, grid, stride, padding, dilation }
    }

    pub(super) fn output(&self) -> [usize; 4] {
        [self.batch, self.groups * self.outputs, self.grid[0], self.grid[1]]
    }

    /// Values of one group of channels of an input image.
    fn input_len(&self) -> usize {
        self.inputs * self.image[0] * self.image[1]
    }

    /// Values of one group of channels of an output image.
    fn output_len(&self) -> usize {
        self.outputs * self.grid[0] * self.grid[1]
    }

    /// Weights of one output channel.
    fn fan_in(&self) -> usize {
        self.inputs * self.kernel[0] * self.kernel[1]
    }

    /// Per axis, each tap's phase and shift.
    fn taps(&self, axis: usize) -> Vec<(usize, usize)> {
        (0..self.kernel[axis])
            .map(|k| (k * self.dilation[axis] % self.stride[axis], k * self.dilation[axis] / self.stride[axis]))
            .collect()
    }

    /// The image as the forward pass sees it.
    fn forward(&self, lanes: usize) -> Planes {
        let [rows, columns] = [0, 1].map(|axis| {
            let taps = self.taps(axis);
            (0..self.stride[axis])
                .filter_map(|phase| {
                    let reach = taps.iter().filter(|tap| tap.0 == phase).map(|tap| tap.1).max()?;
                    let first = phase as isize - self.padding[axis] as isize;
                    let (step, size, len) = (self.stride[axis], self.image[axis], self.grid[axis] + reach);
                    Some((phase, Axis { first, step, size, len }))
                })
                .collect::<Vec<_>>()
        });
        let place = |phases: &[(usize, Axis)], phase| phases.iter().position(|p| p.0 == phase).unwrap_or(0);
        let column_taps = self.taps(1);
        let mut taps = Vec::new();
        for (phase, shift) in self.taps(0) {
            let row = place(&rows, phase) * columns.len();
            taps.extend(
                column_taps.iter().map(|tap| Tap { phase: row + place(&columns, tap.0), shift: [shift, tap.1] }),
            );
        }
        let phases = rows.iter().flat_map(|row| columns.iter().map(|column| [row.1, column.1])).collect();
        let target = Target { start: 0, row: self.grid[1], column: 1 };
        Planes::new(self.inputs, phases, &taps, self.grid, target, lanes)
    }

    /// The output's gradient as each phase of the input sees it, with the taps of that phase.
    fn backward(&self, lanes: usize) -> Vec<(Planes, Vec<usize>)> {
        /// One phase of one axis.
        struct Phase {
            axis: Axis,
            /// Taps as `(index, shift)`.
            taps: Vec<(usize, usize)>,
            /// Inputs of this phase, the first of them, their distance.
            count: usize,
            start: usize,
        }
        let [rows, columns] = [0, 1].map(|axis| {
            let (stride, padding, size) = (self.stride[axis], self.padding[axis], self.image[axis]);
            let all = self.taps(axis);
            (0..stride)
                .filter_map(|phase| {
                    let taps: Vec<_> =
                        all.iter().enumerate().filter(|(_, tap)| tap.0 == phase).map(|(k, tap)| (k, tap.1)).collect();
                    let (least, most) = (taps.first()?.1, taps.last()?.1);
                    let first = padding.saturating_sub(phase).div_ceil(stride);
                    let count = (size + padding).saturating_sub(phase).div_ceil(stride).saturating_sub(first);
                    let axis = Axis {
                        first: first as isize - most as isize,
                        step: 1,
                        size: self.grid[axis],
                        len: count + most - least,
                    };
                    let taps = taps.into_iter().map(|(k, shift)| (k, most - shift)).collect();
                    (count > 0).then(|| Phase { axis, taps, count, start: first * stride + phase - padding })
                })
                .collect::<Vec<_>>()
        });
        let mut all = Vec::new();
        for row in &rows {
            for column in &columns {
                let pairs = row.taps.iter().flat_map(|r| column.taps.iter().map(move |c| (r, c)));
                let taps: Vec<_> = pairs.clone().map(|(r, c)| Tap { phase: 0, shift: [r.1, c.1] }).collect();
                let indices = pairs.map(|(r, c)| r.0 * self.kernel[1] + c.0).collect();
                let target = Target {
                    start: row.start * self.image[1] + column.start,
                    row: self.stride[0] * self.image[1],
                    column: self.stride[1],
                };
                let phases = vec![[row.axis, column.axis]];
                let grid = [row.count, column.count];
                all.push((Planes::new(self.outputs, phases, &taps, grid, target, lanes), indices));
            }
        }
        all
    }
}

/// `x` convolved with `weight`, plus `bias`.
pub(super) fn forward(geometry: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    dispatch(Forward { geometry, x, weight, bias })
}

/// Gradients of input, weight and bias, each where asked for.
pub(super) fn backward(
    geometry: &Geometry,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    needs: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let dx = needs[0].then(|| dispatch(InputGradient { geometry, weight, dy }));
    let dw = needs[1].then(|| dispatch(WeightGradient { geometry, x, dy }));
    let db = needs[2].then(|| dispatch(BiasGradient { geometry, dy }));
    [dx, dw, db]
}

/// Values that the passes work on besides what they are given and make.
pub(super) fn workspace(geometry: &Geometry) -> usize {
    dispatch(Workspace { geometry })
}

struct Workspace<'a> {
    geometry: &'a Geometry,
}

impl WithSimd for Workspace<'_> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        let g = self.geometry;
        let planes = g.forward(S::F32_LANES);
        let values = planes.len() + g.outputs * planes.starts.len() * S::F32_LANES;
        let weight_gradient = WeightGradient::images(g.batch, values) * values;
        let forward = g.groups * Panels::len::<S>(g.outputs, g.fan_in()) + planes.len();
        let input_gradient = |(planes, taps): (Planes, Vec<usize>)| {
            g.groups * Panels::len::<S>(g.inputs, g.outputs * taps.len()) + planes.len()
        };
        let phases = g.backward(S::F32_LANES).into_iter().map(input_gradient);
        phases.chain([forward, weight_gradient]).max().unwrap_or(0)
    }
}

struct Forward<'a> {
    geometry: &'a Geometry,
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl WithSimd for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { geometry: g, x, weight, bias } = self;
        let planes = g.forward(S::F32_LANES);
        let (fan_in, group) = (g.fan_in(), g.outputs * g.fan_in());
        let len = Panels::len::<S>(g.outputs, fan_in);
        let mut scratch = Scratch::zeroed(g.groups * len + planes.len());
        let (weights, scratch) = scratch.split_at_mut(g.groups * len);
        let panels: Vec<_> = (weights.chunks_exact_mut(len).enumerate())
            .map(|(i, weights)| Panels::new::<S>(g.outputs, fan_in, weights, |o, k| weight[i * group + o * fan_in + k]))
            .collect();
        let mut y = vec![0.0; g.batch * g.groups * g.output_len()];
        let images = x.chunks_exact(g.input_len()).zip(y.chunks_exact_mut(g.output_len()));
        for (i, (x, y)) in images.enumerate() {
            let group = i % g.groups;
            planes.fill(x, scratch);
            let bias = bias.map(|b| &b[group * g.outputs..][..g.outputs]);
            convolve(simd, &planes, &panels[group], bias, scratch, y);
        }
        y
    }
}

struct InputGradient<'a> {
    geometry: &'a Geometry,
    weight: &'a [f32],
    dy: &'a [f32],
}

impl WithSimd for InputGradient<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { geometry: g, weight, dy } = self;
        let area = g.kernel[0] * g.kernel[1];
        let mut dx = vec![0.0; g.batch * g.groups * g.input_len()];
        for (planes, taps) in g.backward(S::F32_LANES) {
            let len = Panels::len::<S>(g.inputs, g.outputs * taps.len());
            let mut scratch = Scratch::zeroed(g.groups * len + planes.len());
            let (weights, scratch) = scratch.split_at_mut(g.groups * len);
            let panels: Vec<_> = (weights.chunks_exact_mut(len).enumerate())
                .map(|(i, weights)| {
                    Panels::new::<S>(g.inputs, g.outputs * taps.len(), weights, |c, k| {
                        let output = i * g.outputs + k / taps.len();
                        weight[(output * g.inputs + c) * area + taps[k % taps.len()]]
                    })
                })
                .collect();
            let images = dy.chunks_exact(g.output_len()).zip(dx.chunks_exact_mut(g.input_len()));
            for (i, (dy, dx)) in images.enumerate() {
                planes.fill(dy, scratch);
                convolve(simd, &planes, &panels[i % g.groups], None, scratch, dx);
            }
        }
        dx
    }
}

struct WeightGradient<'a> {
    geometry: &'a Geometry,
    x: &'a [f32],
    dy: &'a [f32],
}

impl WeightGradient<'_> {
    /// Values of inputs and gradients that a pass works on: about what the second-level cache holds.
    const PASS: usize = 1 << 18;

    /// Images that a pass works on, each of so many values of inputs and gradients.
    fn images(batch: usize, values: usize) -> usize {
        (Self::PASS / values.max(1)).clamp(1, batch.max(1))
    }
}

impl WithSimd for WeightGradient<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { geometry: g, x, dy } = self;
        let planes = g.forward(S::F32_LANES);
        let (image, vectors) = (planes.len(), planes.starts.len());
        let row = vectors * S::F32_LANES;
        let pass = Self::images(g.batch, image + g.outputs * row);
        let mut scratch = Scratch::zeroed(pass * (image + g.outputs * row));
        let (inputs, gradients) = scratch.split_at_mut(pass * image);
        let mut dw = vec![0.0; g.groups * g.outputs * g.fan_in()];
        let (input, output) = (g.input_len(), g.output_len());
        for first in (0..g.batch).step_by(pass) {
            let images = pass.min(g.batch - first);
            for group in 0..g.groups {
                for i in 0..images {
                    let index = (first + i) * g.groups + group;
                    planes.fill(&x[index * input..][..input], &mut inputs[i * image..][..image]);
                    let dy = &dy[index * output..][..output];
                    for (o, dy) in dy.chunks_exact(output / g.outputs).enumerate() {
                        spread::<S>(&planes, dy, &mut gradients[(o * pass + i) * row..][..row]);
                    }
                }
                let dw = &mut dw[group * g.outputs * g.fan_in()..][..g.outputs * g.fan_in()];
                let correlation = Correlation {
                    left: gradients,
                    rows: g.outputs,
                    row: pass * row,
                    right: inputs,
                    offsets: &planes.offsets,
                    starts: &planes.starts,
                    blocks: images,
                    block: image,
                };
                correlation.add_to(simd, dw);
            }
        }
        dw
    }
}

/// Lays a gradient out in vectors, zero where a lane is no output.
#[inline(always)]
fn spread<S: Simd>(planes: &Planes, dy: &[f32], vectors: &mut [f32]) {
    for (runs, lanes) in planes.runs.iter().zip(vectors.chunks_exact_mut(S::F32_LANES)) {
        for run in runs {
            lanes[run.lane..][..run.len].copy_from_slice(&dy[run.start..][..run.len]);
        }
    }
}

struct BiasGradient<'a> {
    geometry: &'a Geometry,
    dy: &'a [f32],
}

impl WithSimd for BiasGradient<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let outputs = self.geometry.groups * self.geometry.outputs;
        let mut db = vec![0.0; outputs];
        let channel = self.geometry.grid[0] * self.geometry.grid[1];
        for (i, dy) in self.dy.chunks_exact(channel).enumerate() {
            let (vectors, rest) = S::as_simd_f32s(dy);
            let sum = vectors.iter().fold(simd.splat_f32s(0.0), |sum, v| simd.add_f32s(sum, *v));
            db[i % outputs] += simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>();
        }
        db
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three passes by one instruction set.
    fn passes<S: Simd>(simd: S, geometry: &Geometry, x: &[f32], weight: &[f32], dy: &[f32]) -> [Vec<f32>; 4] {
        [
            simd.vectorize(Forward { geometry, x, weight, bias: None }),
            simd.vectorize(InputGradient { geometry, weight, dy }),
            simd.vectorize(WeightGradient { geometry, x, dy }),
            simd.vectorize(BiasGradient { geometry, dy }),
        ]
    }

    /// Vectors of sixteen lanes, of eight and of one take different paths through tiles and remainders.
    #[test]
    fn every_instruction_set_computes_the_same() {
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        for (x, weight, stride, padding, dilation, groups) in [
            ([3, 5, 9, 21], [11, 5, 3, 3], [1, 1], [1, 1], [1, 1], 1),
            ([2, 4, 8, 8], [12, 2, 3, 3], [2, 1], [1, 2], [1, 2], 2),
            ([1, 3, 33, 35], [2, 3, 1, 1], [2, 3], [0, 0], [1, 1], 1),
        ] {
            let geometry = Geometry::new(x, weight, &ConvOptions::new(stride, padding, dilation, groups));
            let (x, weight) = (wave(x.iter().product()), wave(weight.iter().product()));
            let dy = wave(geometry.output().iter().product());
            let expected = passes(pulp::Scalar, &geometry, &x, &weight, &dy);
            let mut found = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                found.extend(pulp::x86::V3::try_new().map(|simd| passes(simd, &geometry, &x, &weight, &dy)));
                found.extend(pulp::x86::V4::try_new().map(|simd| passes(simd, &geometry, &x, &weight, &dy)));
            }
            found.push([
                forward(&geometry, &x, &weight, None),
                dispatch(InputGradient { geometry: &geometry, weight: &weight, dy: &dy }),
                dispatch(WeightGradient { geometry: &geometry, x: &x, dy: &dy }),
                dispatch(BiasGradient { geometry: &geometry, dy: &dy }),
            ]);
            for found in found {
                for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                    assert!((found - expected).abs() < 1e-3, "{geometry:?}: {found} where {expected} was expected");
                }
            }
        }
    }
}
