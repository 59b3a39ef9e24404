//! The two inner loops: sums over inputs and taps, sums over positions.

use pulp::{Simd, WithSimd};

use super::planes::Planes;

/// Weights in the order in which [`convolve`] reads them: blocks of outputs, in each block all inputs and taps, for
/// each of these the block's outputs, zeros where there are no more.
pub(super) struct Panels<'a> {
    outputs: usize,
    /// Outputs in a block.
    height: usize,
    weights: &'a [f32],
}

impl<'a> Panels<'a> {
    /// As many sums as the registers hold: 8 outputs by 3 vectors where there are 32 registers, else 4 by 3.
    const fn height<S: Simd>() -> usize {
        if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
    }

    /// Values that they take, in whole lines of cache.
    pub(super) const fn len<S: Simd>(outputs: usize, fan_in: usize) -> usize {
        (outputs.next_multiple_of(Self::height::<S>()) * fan_in).next_multiple_of(16)
    }

    /// Panels in `weights`, zeros of [`len`](Self::len).
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        outputs: usize,
        fan_in: usize,
        weights: &'a mut [f32],
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let height = Self::height::<S>();
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
pub(super) fn convolve<S: Simd>(
    simd: S,
    planes: &Planes,
    panels: &Panels<'_>,
    bias: Option<&[f32]>,
    x: &[f32],
    y: &mut [f32],
) {
    let furthest = planes.offsets.iter().max().zip(planes.starts.iter().max()).map(|(a, b)| a + b);
    let Some(furthest) = furthest else { return };
    assert!(furthest + S::F32_LANES <= x.len());
    let channel = y.len() / panels.outputs;
    let (fan_in, height) = (planes.offsets.len(), panels.height);
    for (block, y) in y.chunks_mut(height * channel).enumerate() {
        let outputs = y.len() / channel;
        let panel = &panels.weights[block * height * fan_in..][..height * fan_in];
        let y = &mut *y;
        let mut start = [0.0; 8];
        if let Some(bias) = bias {
            start[..outputs].copy_from_slice(&bias[block * height..][..outputs]);
        }
        let mut vector = 0;
        while vector < planes.starts.len() {
            let vectors = match planes.starts.len() - vector {
                1 => 1,
                2 | 4 => 2,
                _ => 3,
            };
            // A function of its own for each size, so that the sums are all that its registers hold.
            macro_rules! tile {
                ($outputs:literal, $vectors:literal) => {
                    simd.vectorize(OutputTile::<$outputs, $vectors> {
                        planes,
                        panel,
                        height,
                        start,
                        x,
                        vector,
                        channel,
                        y,
                    })
                };
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

/// `M` outputs at `V` vectors of positions: `start[m] + sum over k of panel[k][m] x[offsets[k] + starts[v] + lane]`. The
/// reads must be inside `x`.
struct OutputTile<'a, const M: usize, const V: usize> {
    planes: &'a Planes,
    panel: &'a [f32],
    /// Weights in a panel's row, of which the tile takes the first `M`.
    height: usize,
    start: [f32; 8],
    x: &'a [f32],
    /// The first of the vectors.
    vector: usize,
    /// Distance of outputs in `y`.
    channel: usize,
    y: &'a mut [f32],
}

impl<const M: usize, const V: usize> WithSimd for OutputTile<'_, M, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { planes, panel, height, start, x, vector, channel, y } = self;
        let mut starts = [0; V];
        starts.copy_from_slice(&planes.starts[vector..vector + V]);
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        for m in 0..M {
            sums[m] = [simd.splat_f32s(start[m]); V];
        }
        for (&offset, weights) in planes.offsets.iter().zip(panel.chunks_exact(height)) {
            let mut inputs = [simd.splat_f32s(0.0); V];
            for v in 0..V {
                // SAFETY: [`convolve`], the only maker of tiles, asserts that the vector at the greatest offset and the
                // greatest start is inside `x`.
                #[expect(unsafe_code, reason = "the innermost loop; its bounds are checked once, by the caller")]
                let values = unsafe { x.as_ptr().add(offset + starts[v]).cast::<S::f32s>().read_unaligned() };
                inputs[v] = values;
            }
            let Some(weights) = weights.first_chunk::<M>() else { return };
            for m in 0..M {
                let weight = simd.splat_f32s(weights[m]);
                for v in 0..V {
                    sums[m][v] = simd.mul_add_e_f32s(weight, inputs[v], sums[m][v]);
                }
            }
        }
        for (sums, y) in sums.iter().zip(y.chunks_exact_mut(channel)) {
            for (i, sums) in sums.iter().enumerate() {
                store(simd, planes, vector + i, *sums, y);
            }
        }
    }
}

/// Writes the lanes of one vector that are outputs.
#[inline(always)]
fn store<S: Simd>(simd: S, planes: &Planes, vector: usize, sums: S::f32s, y: &mut [f32]) {
    let runs = &planes.runs[vector];
    if let ([run], 1) = (&runs[..], planes.step)
        && run.lane == 0
    {
        let y = &mut y[run.start..][..run.len];
        match S::as_mut_simd_f32s(y) {
            ([whole], _) => *whole = sums,
            _ => simd.partial_store_f32s(y, sums),
        }
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

/// Sums over positions: of every left row times every shifted right one.
///
/// With `b` over blocks, `v` over vectors and all of their lanes,
/// `sum[i][j] = left[i row + (b vectors + v) lanes] right[b block + offsets[j] + starts[v]]`.
pub(super) struct Correlation<'a> {
    pub left: &'a [f32],
    /// Number of left rows.
    pub rows: usize,
    /// Distance of left rows.
    pub row: usize,
    pub right: &'a [f32],
    pub offsets: &'a [usize],
    pub starts: &'a [usize],
    pub blocks: usize,
    /// Distance of blocks of the right side.
    pub block: usize,
}

impl Correlation<'_> {
    /// Adds to `sums` `[rows, offsets]`.
    #[inline(always)]
    pub(super) fn add_to<S: Simd>(&self, simd: S, sums: &mut [f32]) {
        // As many sums as the registers hold.
        if S::REGISTER_COUNT >= 32 {
            self.tiles::<S, 4, 6>(simd, sums);
        } else {
            self.tiles::<S, 2, 4>(simd, sums);
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, const I: usize, const J: usize>(&self, simd: S, sums: &mut [f32]) {
        let Self { left, rows, row, right, offsets, starts, blocks, block } = *self;
        let places: Vec<usize> = (0..blocks).flat_map(|b| starts.iter().map(move |start| b * block + start)).collect();
        let (Some(last), Some(furthest)) = (places.last(), offsets.iter().max()) else { return };
        if rows == 0 {
            return;
        }
        assert!(last + furthest + S::F32_LANES <= right.len() && starts.is_sorted());
        assert!((rows - 1) * row + places.len() * S::F32_LANES <= left.len());
        for i in (0..rows).step_by(I) {
            for j in (0..offsets.len()).step_by(J) {
                // Past the end, the last one is summed again and dropped.
                let mut lefts = [0; I];
                for (k, left) in lefts.iter_mut().enumerate() {
                    *left = (i + k).min(rows - 1) * row;
                }
                let mut rights = [0; J];
                for (k, right) in rights.iter_mut().enumerate() {
                    *right = offsets[(j + k).min(offsets.len() - 1)];
                }
                // A function of its own, so that the sums are all that its registers hold.
                let tile = simd.vectorize(Tile { left, lefts, right, rights, places: &places });
                for (k, tile) in tile.iter().enumerate().take(rows - i) {
                    for (sums, sum) in sums[(i + k) * offsets.len()..][j..offsets.len()].iter_mut().zip(tile) {
                        *sums += sum;
                    }
                }
            }
        }
    }
}

/// `I` left rows times `J` shifted right ones: `left[lefts[i] + v lanes] right[rights[j] + places[v]]`, summed over all
/// `v` and lanes. The reads must be inside both sides.
struct Tile<'a, const I: usize, const J: usize> {
    left: &'a [f32],
    lefts: [usize; I],
    right: &'a [f32],
    rights: [usize; J],
    places: &'a [usize],
}

impl<const I: usize, const J: usize> WithSimd for Tile<'_, I, J> {
    type Output = [[f32; J]; I];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let mut sums = [[simd.splat_f32s(0.0); I]; J];
        let mut left = self.left.as_ptr();
        for &place in self.places {
            let mut factors = [simd.splat_f32s(0.0); I];
            // SAFETY: [`Correlation::tiles`], the only maker of tiles, asserts that the last vector of the last row and
            // the furthest place of the furthest offset are inside; all others come before them.
            #[expect(unsafe_code, reason = "the innermost loop; its bounds are checked once, by the caller")]
            unsafe {
                for (factor, row) in factors.iter_mut().zip(self.lefts) {
                    *factor = left.add(row).cast::<S::f32s>().read_unaligned();
                }
                let right = self.right.as_ptr().add(place);
                for (sums, offset) in sums.iter_mut().zip(self.rights) {
                    let values = right.add(offset).cast::<S::f32s>().read_unaligned();
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = simd.mul_add_e_f32s(factor, values, *sum);
                    }
                }
                left = left.wrapping_add(S::F32_LANES);
            }
        }
        let mut totals = [[0.0; J]; I];
        for (j, sums) in sums.into_iter().enumerate() {
            for (totals, sum) in totals.iter_mut().zip(sums) {
                totals[j] = simd.reduce_sum_f32s(sum);
            }
        }
        totals
    }
}
