//! Two-dimensional convolution, forward and backward, over [`Planes`].

use pulp::{Simd, WithSimd};

use super::planes::{Axis, Planes, Tap, Target};
use super::simd::{Scratch, dispatch};
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
        let panels: Vec<_> = (0..g.groups)
            .map(|i| Panels::new::<S>(g.outputs, fan_in, |o, k| weight[i * group + o * fan_in + k]))
            .collect();
        let mut y = vec![0.0; g.batch * g.groups * g.output_len()];
        let mut scratch = Scratch::zeroed(planes.len());
        let images = x.chunks_exact(g.input_len()).zip(y.chunks_exact_mut(g.output_len()));
        for (i, (x, y)) in images.enumerate() {
            let group = i % g.groups;
            planes.fill(x, &mut scratch);
            let bias = bias.map(|b| &b[group * g.outputs..][..g.outputs]);
            convolve(simd, &planes, &panels[group], bias, &scratch, y);
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
            let panels: Vec<_> = (0..g.groups)
                .map(|i| {
                    Panels::new::<S>(g.inputs, g.outputs * taps.len(), |c, k| {
                        let output = i * g.outputs + k / taps.len();
                        weight[(output * g.inputs + c) * area + taps[k % taps.len()]]
                    })
                })
                .collect();
            let mut scratch = Scratch::zeroed(planes.len());
            let images = dy.chunks_exact(g.output_len()).zip(dx.chunks_exact_mut(g.input_len()));
            for (i, (dy, dx)) in images.enumerate() {
                planes.fill(dy, &mut scratch);
                convolve(simd, &planes, &panels[i % g.groups], None, &scratch, dx);
            }
        }
        dx
    }
}

/// Weights in the order in which [`convolve`] reads them: blocks of outputs, in each block all inputs and taps, for
/// each of these the block's outputs, zeros where there are no more.
struct Panels {
    outputs: usize,
    /// Outputs in a block.
    height: usize,
    weights: Scratch,
}

impl Panels {
    /// As many sums as the registers hold: 8 outputs by 3 vectors where there are 32 registers, else 4 by 3.
    #[inline(always)]
    fn new<S: Simd>(outputs: usize, fan_in: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        let height = if S::REGISTER_COUNT >= 32 { 8 } else { 4 };
        let mut weights = Scratch::zeroed(outputs.next_multiple_of(height) * fan_in);
        for output in 0..outputs {
            let block = &mut weights[output / height * height * fan_in..][..height * fan_in];
            for k in 0..fan_in {
                block[k * height + output % height] = weight(output, k);
            }
        }
        Self { outputs, height, weights }
    }
}

/// All outputs of one image, from its planes.
#[inline(always)]
fn convolve<S: Simd>(simd: S, planes: &Planes, panels: &Panels, bias: Option<&[f32]>, x: &[f32], y: &mut [f32]) {
    let furthest = planes.offsets.iter().max().zip(planes.starts.iter().max()).map(|(a, b)| a + b);
    let Some(furthest) = furthest else { return };
    assert!(furthest + S::F32_LANES <= x.len());
    let channel = y.len() / panels.outputs;
    let fan_in = planes.offsets.len();
    for (block, y) in y.chunks_mut(panels.height * channel).enumerate() {
        let outputs = y.len() / channel;
        let panel = &panels.weights[block * panels.height * fan_in..][..panels.height * fan_in];
        let mut start = [0.0; 8];
        if let Some(bias) = bias {
            start[..outputs].copy_from_slice(&bias[block * panels.height..][..outputs]);
        }
        let mut vector = 0;
        while vector < planes.starts.len() {
            let vectors = match planes.starts.len() - vector {
                1 => 1,
                2 | 4 => 2,
                _ => 3,
            };
            macro_rules! tile {
                ($outputs:literal, $vectors:literal) => {{
                    let mut starts = [0; $vectors];
                    starts.copy_from_slice(&planes.starts[vector..vector + $vectors]);
                    // SAFETY: the greatest offset and the greatest start stay inside `x` by the assertion above, and a
                    // panel holds `height` weights, at least the tile's outputs, for each offset.
                    #[expect(unsafe_code, reason = "the innermost loop; its bounds are checked once, above")]
                    let sums = unsafe {
                        accumulate::<S, $outputs, $vectors>(
                            simd,
                            panel,
                            panels.height,
                            &planes.offsets,
                            x,
                            starts,
                            &start,
                        )
                    };
                    for (sums, y) in sums.iter().zip(y.chunks_exact_mut(channel)) {
                        for (i, sums) in sums.iter().enumerate() {
                            store(simd, planes, vector + i, *sums, y);
                        }
                    }
                }};
            }
            match (outputs > 4, vectors) {
                (true, 1) => tile!(8, 1),
                (true, 2) => tile!(8, 2),
                (true, _) => tile!(8, 3),
                (false, 1) => tile!(4, 1),
                (false, 2) => tile!(4, 2),
                (false, _) => tile!(4, 3),
            }
            vector += vectors;
        }
    }
}

/// `M` outputs at `V` vectors of positions: `start[m] + sum over k of panel[k][m] x[offsets[k] + starts[v] + lane]`.
///
/// # Safety
/// `offset + start + lanes <= x.len()` for all offsets and starts; `panel` has `height >= M` weights for each offset.
#[expect(unsafe_code, reason = "the innermost loop; its bounds are checked once, by the caller")]
#[inline(always)]
unsafe fn accumulate<S: Simd, const M: usize, const V: usize>(
    simd: S,
    panel: &[f32],
    height: usize,
    offsets: &[usize],
    x: &[f32],
    starts: [usize; V],
    start: &[f32; 8],
) -> [[S::f32s; V]; M] {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    for m in 0..M {
        sums[m] = [simd.splat_f32s(start[m]); V];
    }
    let mut weights = panel.as_ptr();
    for &offset in offsets {
        let mut inputs = [simd.splat_f32s(0.0); V];
        // SAFETY: by the contract, all reads are inside `x` and `panel`.
        unsafe {
            let x = x.as_ptr().add(offset);
            for v in 0..V {
                inputs[v] = x.add(starts[v]).cast::<S::f32s>().read_unaligned();
            }
            for m in 0..M {
                let weight = simd.splat_f32s(*weights.add(m));
                for v in 0..V {
                    sums[m][v] = simd.mul_add_e_f32s(weight, inputs[v], sums[m][v]);
                }
            }
            weights = weights.add(height);
        }
    }
    sums
}

/// Writes the lanes of one vector that are outputs.
#[inline(always)]
fn store<S: Simd>(simd: S, planes: &Planes, vector: usize, sums: S::f32s, y: &mut [f32]) {
    let runs = &planes.runs[vector];
    if let ([run], 1) = (&runs[..], planes.step)
        && run.lane == 0
    {
        simd.partial_store_f32s(&mut y[run.start..][..run.len], sums);
        return;
    }
    let mut lanes = [0.0f32; 16];
    let lanes = &mut lanes[..S::F32_LANES];
    simd.partial_store_f32s(lanes, sums);
    for run in runs {
        let from = &lanes[run.lane..][..run.len];
        for (to, from) in y[run.start..].iter_mut().step_by(planes.step).zip(from) {
            *to = *from;
        }
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
}

impl WithSimd for WeightGradient<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { geometry: g, x, dy } = self;
        let planes = g.forward(S::F32_LANES);
        let (image, vectors) = (planes.len(), planes.starts.len());
        let row = vectors * S::F32_LANES;
        let pass = (Self::PASS / (image + g.outputs * row).max(1)).clamp(1, g.batch.max(1));
        let mut inputs = Scratch::zeroed(pass * image);
        let mut gradients = Scratch::zeroed(g.outputs * pass * row);
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
                correlate(simd, &planes, images, &inputs, &gradients, pass * row, dw);
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

/// Adds to `dw[o][k]` the sum over images and positions of `gradients[o] inputs[offsets[k]]`.
#[inline(always)]
fn correlate<S: Simd>(
    simd: S,
    planes: &Planes,
    images: usize,
    inputs: &[f32],
    gradients: &[f32],
    row: usize,
    dw: &mut [f32],
) {
    if S::REGISTER_COUNT >= 32 {
        correlate_tiles::<S, 4, 6>(simd, planes, images, inputs, gradients, row, dw);
    } else {
        correlate_tiles::<S, 2, 4>(simd, planes, images, inputs, gradients, row, dw);
    }
}

#[inline(always)]
fn correlate_tiles<S: Simd, const O: usize, const K: usize>(
    simd: S,
    planes: &Planes,
    images: usize,
    inputs: &[f32],
    gradients: &[f32],
    row: usize,
    dw: &mut [f32],
) {
    let (offsets, image, fan_in) = (&planes.offsets[..], planes.len(), planes.offsets.len());
    let Some(furthest) = offsets.iter().max().zip(planes.starts.iter().max()).map(|(a, b)| a + b) else { return };
    let outputs = dw.len() / fan_in;
    assert!(furthest + S::F32_LANES <= image && images * image <= inputs.len());
    assert!(outputs * row <= gradients.len() && images * planes.starts.len() * S::F32_LANES <= row);
    for output in (0..outputs).step_by(O) {
        for k in (0..fan_in).step_by(K) {
            // Past the end, the last one is summed again and dropped.
            let mut rows = [0; O];
            for (o, row_start) in rows.iter_mut().enumerate() {
                *row_start = (output + o).min(outputs - 1) * row;
            }
            let mut taps = [0; K];
            for (j, tap) in taps.iter_mut().enumerate() {
                *tap = offsets[(k + j).min(fan_in - 1)];
            }
            let mut sums = [[simd.splat_f32s(0.0); K]; O];
            for i in 0..images {
                for (v, start) in planes.starts.iter().enumerate() {
                    let at = (i * planes.starts.len() + v) * S::F32_LANES;
                    let mut left = [simd.splat_f32s(0.0); O];
                    // SAFETY: `at + lanes <= row` and every row starts at most at `(outputs - 1) row`; `start + tap +
                    // lanes <= image` and there are `images` of these: the assertions above.
                    #[expect(unsafe_code, reason = "the innermost loop; its bounds are checked once, above")]
                    unsafe {
                        for o in 0..O {
                            left[o] = gradients.as_ptr().add(rows[o] + at).cast::<S::f32s>().read_unaligned();
                        }
                        let x = inputs.as_ptr().add(i * image + start);
                        for j in 0..K {
                            let right = x.add(taps[j]).cast::<S::f32s>().read_unaligned();
                            for o in 0..O {
                                sums[o][j] = simd.mul_add_e_f32s(left[o], right, sums[o][j]);
                            }
                        }
                    }
                }
            }
            for (sums, dw) in sums.iter().zip(dw[output * fan_in..].chunks_mut(fan_in)) {
                for (sum, dw) in sums.iter().zip(&mut dw[k..]) {
                    *dw += simd.reduce_sum_f32s(*sum);
                }
            }
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
