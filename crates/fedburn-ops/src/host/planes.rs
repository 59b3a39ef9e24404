//! Where a convolution finds its inputs: zero-padded planes in which every tap of the kernel is a shift.
//!
//! Each channel of an image is copied into a plane with its padding, rows `pitch` apart. A row's zeros on the right
//! serve as the next row's zeros on the left, so that padding costs little. The input that kernel tap `k` meets at
//! output position `p` then lies at `offset(k) + p`, for all positions of a row and, past its end, of the next: sixteen
//! neighbouring outputs are sixteen neighbouring inputs whatever the tap, and no matrix of patches is ever written.
//! A stride splits the image into as many planes as it has phases; dilation only moves the offsets.

use std::ops::Range;

/// One axis of a plane: index `i` holds index `first + i step` of the source, or zero outside `0..size`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub first: isize,
    pub step: usize,
    pub size: usize,
    pub len: usize,
}

impl Axis {
    /// The indices that hold a value of the source.
    fn inside(&self) -> Range<usize> {
        let below = |bound: isize| (bound - self.first).max(0).unsigned_abs().div_ceil(self.step).min(self.len);
        below(0)..below(self.size as isize)
    }

    fn source(&self, index: usize) -> usize {
        (self.first + (index * self.step) as isize).unsigned_abs()
    }
}

/// One tap of the kernel: the plane it reads and how far from the output position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub phase: usize,
    pub shift: [usize; 2],
}

/// Outputs that lie beside each other: `len` lanes from `lane` on go to `start`, `start + step` and so on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub lane: usize,
    pub len: usize,
    pub start: usize,
}

/// Where position `(row, column)` of the output grid lies in its channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub start: usize,
    pub row: usize,
    pub column: usize,
}

/// The planes of one image and the vectors of positions that cover the output grid.
#[derive(Debug)]
pub(super) struct Planes {
    channels: usize,
    phases: Vec<[Axis; 2]>,
    pitch: usize,
    /// Values of one plane.
    plane: usize,
    lanes: usize,
    /// Per channel and tap.
    pub offsets: Vec<usize>,
    /// First position of each vector.
    pub starts: Vec<usize>,
    /// Per vector, the lanes that are outputs.
    pub runs: Vec<Vec<Run>>,
    /// Distance of neighbouring outputs of a row.
    pub step: usize,
}

impl Planes {
    pub(super) fn new(
        channels: usize,
        phases: Vec<[Axis; 2]>,
        taps: &[Tap],
        grid: [usize; 2],
        target: Target,
        lanes: usize,
    ) -> Self {
        let pitch = |[_, columns]: &[Axis; 2]| {
            let Range { start, end } = columns.inside();
            end.max(columns.len - start).max(1)
        };
        // At least a row of the output, so that no position belongs to two.
        let pitch = phases.iter().map(pitch).max().unwrap_or(1).max(grid[1]);
        // One row more, since the last one's zeros on the right are the next one's on the left.
        let plane = phases.iter().map(|[rows, _]| (rows.len + 1) * pitch).max().unwrap_or(0);
        let offset = |channel: usize, tap: &Tap| {
            (channel * phases.len() + tap.phase) * plane + tap.shift[0] * pitch + tap.shift[1]
        };
        let offsets = (0..channels).flat_map(|channel| taps.iter().map(move |tap| offset(channel, tap))).collect();
        let mut planes = Self {
            channels,
            pitch,
            plane,
            lanes,
            offsets,
            starts: Vec::new(),
            runs: Vec::new(),
            step: target.column,
            phases,
        };
        planes.cover(grid, target);
        planes
    }

    /// Values of all planes of an image, with room for a vector that begins in the last row.
    pub(super) fn len(&self) -> usize {
        self.channels * self.phases.len() * self.plane + self.lanes
    }

    /// Copies an image in; what is zero in `planes` stays so and must be before the first image.
    #[inline(always)]
    pub(super) fn fill(&self, image: &[f32], planes: &mut [f32]) {
        let mut planes = planes.chunks_exact_mut(self.plane.max(1));
        let [height, width] = match self.phases.first() {
            Some([rows, columns]) => [rows.size, columns.size],
            None => return,
        };
        for channel in image.chunks_exact((height * width).max(1)).take(self.channels) {
            for [rows, columns] in &self.phases {
                let Some(plane) = planes.next() else { return };
                let inside = columns.inside();
                if inside.is_empty() {
                    continue;
                }
                let from = columns.source(inside.start);
                for row in rows.inside() {
                    let to = &mut plane[row * self.pitch..][inside.clone()];
                    let from = &channel[rows.source(row) * width..][from..width];
                    if columns.step == 1 {
                        copy(to, from);
                    } else {
                        for (to, from) in to.iter_mut().zip(from.iter().step_by(columns.step)) {
                            *to = *from;
                        }
                    }
                }
            }
        }
    }

    /// Covers the grid with vectors, each within a row, or across rows where that takes clearly fewer.
    fn cover(&mut self, [height, width]: [usize; 2], target: Target) {
        if height == 0 || width == 0 {
            return;
        }
        let by_row = height * width.div_ceil(self.lanes);
        let across = ((height - 1) * self.pitch + width).div_ceil(self.lanes);
        if across * 8 > by_row * 7 {
            for row in 0..height {
                for column in (0..width).step_by(self.lanes) {
                    let start = target.start + row * target.row + column * target.column;
                    self.starts.push(row * self.pitch + column);
                    self.runs.push(vec![Run { lane: 0, len: self.lanes.min(width - column), start }]);
                }
            }
            return;
        }
        for vector in 0..across {
            let start = vector * self.lanes;
            let mut runs: Vec<Run> = Vec::new();
            for lane in 0..self.lanes {
                let (row, column) = ((start + lane) / self.pitch, (start + lane) % self.pitch);
                if row >= height || column >= width {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if run.lane + run.len == lane && column > 0 => run.len += 1,
                    _ => {
                        let start = target.start + row * target.row + column * target.column;
                        runs.push(Run { lane, len: 1, start });
                    }
                }
            }
            self.starts.push(start);
            self.runs.push(runs);
        }
    }
}

/// Copies the first `to.len()` values: rows are too short for a call of `memcpy` to pay.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    #[inline(always)]
    fn blocks<const N: usize>(to: &mut [f32], from: &[f32]) {
        let last = to.len() - N;
        for (to, from) in to.chunks_exact_mut(N).zip(from.chunks_exact(N)) {
            to.copy_from_slice(from);
        }
        to[last..].copy_from_slice(&from[last..last + N]);
    }
    match to.len() {
        16.. => blocks::<16>(to, from),
        8.. => blocks::<8>(to, from),
        4.. => blocks::<4>(to, from),
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
    }
}
