//! How kernels are to run.

/// Settings of group norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormOptions {
    /// Groups, a divisor of the channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// ReLU of the result.
    pub relu: bool,
}

/// Settings of max pooling; each pair is height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Size of the window.
    pub kernel: [usize; 2],
    /// From window to window.
    pub stride: [usize; 2],
    /// On every side, of minus infinity.
    pub padding: [usize; 2],
    /// ReLU of the result, which is the pooled ReLU.
    pub relu: bool,
}

impl PoolOptions {
    /// Height and width of the result, from those of the input.
    pub fn output(&self, input: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| (input[axis] + 2 * self.padding[axis] - self.kernel[axis]) / self.stride[axis] + 1)
    }

    /// Whether a byte can name each place of the window, with one value to spare.
    pub(crate) fn is_small(&self) -> bool {
        self.kernel[0] * self.kernel[1] < usize::from(u8::MAX)
    }
}
