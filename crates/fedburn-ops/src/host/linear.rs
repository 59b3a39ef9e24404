//! Linear layers: matrix products by the crate `gemm`, bias and ReLU in the same pass over the result.

use pulp::{Simd, WithSimd};

use super::simd::dispatch;

/// A matrix in memory: `rows` by `columns`, the strides of either in values.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    fn new(values: &'a [f32], columns: usize) -> Self {
        Self { values, rows: values.len() / columns.max(1), columns, row: columns, column: 1 }
    }

    fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `c = a b`, or `c += a b` where `add`; `c` is stored by rows.
fn multiply(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], add: bool) {
    assert!(a.columns == b.rows && c.len() == a.rows * b.columns);
    assert!(a.values.len() == a.rows * a.columns && b.values.len() == b.rows * b.columns);
    // SAFETY: each of the three slices holds exactly the rows and columns that its strides span, as asserted; `c` is
    // borrowed mutably and hence apart from both others.
    #[expect(unsafe_code, reason = "the only interface of `gemm`")]
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            c.as_mut_ptr(),
            1,
            b.columns as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `x weight + bias`, cut off at zero where `relu`; `x` `[batch, inputs]`, `weight` `[inputs, outputs]`.
pub(super) fn forward(x: &[f32], weight: &[f32], inputs: usize, bias: Option<&[f32]>, relu: bool) -> Vec<f32> {
    let (batch, outputs) = (x.len() / inputs.max(1), weight.len() / inputs.max(1));
    let mut y = Vec::with_capacity(batch * outputs);
    match bias {
        Some(bias) => (0..batch).for_each(|_| y.extend_from_slice(bias)),
        None => y.resize(batch * outputs, 0.0),
    }
    multiply(Matrix::new(x, inputs), Matrix::new(weight, outputs), &mut y, bias.is_some());
    if relu {
        dispatch(Cut(&mut y));
    }
    y
}

/// Gradients of `x`, `weight` and `bias`, each where asked for; `dy` `[batch, outputs]`.
pub(super) fn backward(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    outputs: usize,
    needs: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let inputs = weight.len() / outputs.max(1);
    let (x, weight_matrix, dy_matrix) =
        (Matrix::new(x, inputs), Matrix::new(weight, outputs), Matrix::new(dy, outputs));
    let product = |a: Matrix<'_>, b: Matrix<'_>| {
        let mut c = vec![0.0; a.rows * b.columns];
        multiply(a, b, &mut c, false);
        c
    };
    let dx = needs[0].then(|| {
        // The weights are then read as they lie; the other way about, `gemm` would first copy them into another order.
        let by_columns = product(weight_matrix, dy_matrix.transposed());
        dispatch(Transpose { values: &by_columns, columns: dy_matrix.rows })
    });
    let dw = needs[1].then(|| product(x.transposed(), dy_matrix));
    let db = needs[2].then(|| dispatch(Columns { values: dy, columns: outputs }));
    [dx, dw, db]
}

/// Values that the passes work on besides what they are given and make: `gemm` copies small matrices whole, and keeps
/// for each thread as much as the second-level cache holds once there were larger ones or some that fill its vectors.
pub(super) fn workspace(batch: usize, inputs: usize, outputs: usize) -> usize {
    /// Values in a second-level cache.
    const CACHE: usize = 1 << 18;
    const SMALL: usize = 256;
    if batch.min(inputs).min(outputs) <= 1 {
        0
    } else if outputs.is_multiple_of(4) || batch.max(inputs).max(outputs) > SMALL {
        CACHE
    } else {
        (batch + inputs) * outputs
    }
}

/// A matrix by columns.
struct Transpose<'a> {
    values: &'a [f32],
    columns: usize,
}

impl WithSimd for Transpose<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
        let Self { values, columns } = self;
        let rows = values.len() / columns.max(1);
        let mut transposed = vec![0.0; values.len()];
        // Blocks of rows, so that what is read of a row stays in cache until all of it is.
        for (block, from) in values.chunks(16 * columns.max(1)).enumerate() {
            for (column, to) in transposed.chunks_exact_mut(rows.max(1)).enumerate() {
                let to = &mut to[block * 16..];
                for (to, from) in to.iter_mut().zip(from[column..].iter().step_by(columns)) {
                    *to = *from;
                }
            }
        }
        transposed
    }
}

/// Sets negative values to zero; NaN stays.
struct Cut<'a>(&'a mut [f32]);

impl WithSimd for Cut<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for value in self.0 {
            *value = if *value <= 0.0 { 0.0 } else { *value };
        }
    }
}

/// The sum of each column.
struct Columns<'a> {
    values: &'a [f32],
    columns: usize,
}

impl WithSimd for Columns<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
        let mut sums = vec![0.0; self.columns];
        for row in self.values.chunks_exact(self.columns.max(1)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums
    }
}

/// `max(x + y, 0)`.
pub(super) fn add_relu(x: &[f32], y: &[f32]) -> Vec<f32> {
    struct Op<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Op<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
            let mut sums = Vec::with_capacity(self.0.len());
            sums.extend(self.0.iter().zip(self.1).map(|(x, y)| if x + y <= 0.0 { 0.0 } else { x + y }));
            sums
        }
    }
    dispatch(Op(x, y))
}

/// `dy` where the output `y` of a ReLU is positive, zero elsewhere.
pub(super) fn relu_backward(y: &[f32], dy: &[f32]) -> Vec<f32> {
    struct Op<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Op<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
            let mut gradients = Vec::with_capacity(self.0.len());
            gradients.extend(self.0.iter().zip(self.1).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }));
            gradients
        }
    }
    dispatch(Op(y, dy))
}
