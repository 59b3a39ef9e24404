//! Labelled examples in memory, shared by every client of a simulation.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use fedburn_core::ClassId;

use crate::DatasetError;

/// The inputs of all examples, one after the other, each `[channels, height, width]` in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Bytes, read as `value x scale[channel] + offset[channel]`: a quarter of the memory of `F32`.
    U8 {
        /// The bytes.
        values: Vec<u8>,
        /// Factor of each channel.
        scale: Vec<f32>,
        /// Summand of each channel.
        offset: Vec<f32>,
    },
    /// Numbers used as they are.
    F32(Vec<f32>),
}

impl Inputs {
    /// Bytes whose range `0..=255` is scaled to `[0, 1]` and then normalised, `(value / 255 - mean) / std`, with one
    /// `mean` and one `std` for each channel.
    pub fn normalised(values: Vec<u8>, mean: &[f32], std: &[f32]) -> Self {
        let scale = std.iter().map(|s| 1.0 / (255.0 * s)).collect();
        let offset = mean.iter().zip(std).map(|(m, s)| -m / s).collect();
        Self::U8 { values, scale, offset }
    }

    /// Bytes used as they are: token numbers.
    pub fn tokens(values: Vec<u8>) -> Self {
        Self::U8 { values, scale: vec![1.0], offset: vec![0.0] }
    }

    fn len(&self) -> usize {
        match self {
            Self::U8 { values, .. } => values.len(),
            Self::F32(values) => values.len(),
        }
    }
}

/// Immutable labelled examples. Inputs are `[channels, height, width]`; a token sequence is `[1, 1, length]` and holds
/// token numbers. Meant to be shared in an [`std::sync::Arc`].
///
/// # Examples
///
/// ```
/// use burn_flex::{Flex, FlexDevice};
/// use fedburn_core::ClassId;
/// use fedburn_data::{Examples, Inputs};
///
/// let labels = vec![ClassId(0), ClassId(1)];
/// let examples = Examples::new(Inputs::F32(vec![0.0, 1.0, 2.0, 3.0]), [1, 1, 2], labels, 2)?;
/// let batch = examples.batch::<Flex>(&[1], &FlexDevice);
/// assert_eq!(batch.inputs.dims(), [1, 1, 1, 2]);
/// # Ok::<(), fedburn_data::DatasetError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    inputs: Inputs,
    shape: [usize; 3],
    labels: Vec<ClassId>,
    num_classes: usize,
}

/// Some examples as tensors.
#[derive(Clone, Debug)]
pub struct Batch<B: Backend> {
    /// Inputs, `[batch, channels, height, width]`.
    pub inputs: Tensor<B, 4>,
    /// Class numbers, `[batch]`.
    pub labels: Tensor<B, 1, Int>,
}

impl Examples {
    /// Puts inputs and labels together; `shape` is `[channels, height, width]` of one input.
    ///
    /// # Errors
    /// [`DatasetError::Shape`] for an empty shape, [`DatasetError::Length`] where inputs, channels and labels do not fit
    /// each other, [`DatasetError::Label`], [`DatasetError::NonFinite`].
    pub fn new(
        inputs: Inputs,
        shape: [usize; 3],
        labels: Vec<ClassId>,
        num_classes: usize,
    ) -> Result<Self, DatasetError> {
        let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
        let expected = size.and_then(|n| n.checked_mul(labels.len())).ok_or(DatasetError::Shape { shape })?;
        expect_length("input values", expected, inputs.len())?;
        if let Inputs::U8 { scale, offset, .. } = &inputs {
            expect_length("channel scales", shape[0], scale.len())?;
            expect_length("channel offsets", shape[0], offset.len())?;
        }
        let non_finite = match &inputs {
            Inputs::U8 { scale, offset, .. } => {
                scale.iter().zip(offset).position(|(s, o)| !(s * 255.0 + o).is_finite())
            }
            Inputs::F32(values) => values.iter().position(|v| !v.is_finite()),
        };
        if let Some(index) = non_finite {
            return Err(DatasetError::NonFinite { index });
        }
        if let Some(index) = labels.iter().position(|label| label.0 as usize >= num_classes) {
            return Err(DatasetError::Label { index, label: labels[index].0, num_classes });
        }
        Ok(Self { inputs, shape, labels, num_classes })
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `[channels, height, width]` of one input.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The label of every example.
    pub fn labels(&self) -> &[ClassId] {
        &self.labels
    }

    /// Number of classes; every label is below it.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// The examples at `indices`, in that order, as tensors.
    ///
    /// # Panics
    /// Where an index is not below [`Examples::len`]; [`crate::ClientData`] checks its indices once.
    pub fn batch<B: Backend>(&self, indices: &[usize], device: &B::Device) -> Batch<B> {
        let mut inputs = Vec::with_capacity(indices.len() * self.size());
        indices.iter().for_each(|&index| self.append_input(index, &mut inputs));
        self.tensors(inputs, indices.iter().map(|&index| self.labels[index]), device)
    }

    /// The inputs of all examples in the host's memory, `[examples, channels, height, width]`.
    pub fn inputs(&self) -> TensorData {
        let mut inputs = Vec::with_capacity(self.len() * self.size());
        (0..self.len()).for_each(|index| self.append_input(index, &mut inputs));
        let [channels, height, width] = self.shape;
        TensorData::new(inputs, [self.len(), channels, height, width])
    }

    /// The examples at `indices`, in that order, as examples of their own.
    ///
    /// # Panics
    /// Where an index is not below [`Examples::len`].
    pub(crate) fn subset(&self, indices: &[usize]) -> Self {
        fn rows<T: Copy>(values: &[T], size: usize, indices: &[usize]) -> Vec<T> {
            indices.iter().flat_map(|index| &values[index * size..(index + 1) * size]).copied().collect()
        }
        let inputs = match &self.inputs {
            Inputs::F32(values) => Inputs::F32(rows(values, self.size(), indices)),
            Inputs::U8 { values, scale, offset } => {
                Inputs::U8 { values: rows(values, self.size(), indices), scale: scale.clone(), offset: offset.clone() }
            }
        };
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Self { inputs, shape: self.shape, labels, num_classes: self.num_classes }
    }

    /// Number of values of one input.
    pub(crate) fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Appends the values of one input to `out`.
    pub(crate) fn append_input(&self, index: usize, out: &mut Vec<f32>) {
        let range = index * self.size()..(index + 1) * self.size();
        match &self.inputs {
            Inputs::F32(values) => out.extend_from_slice(&values[range]),
            Inputs::U8 { values, scale, offset } => {
                let plane = self.shape[1] * self.shape[2];
                for ((channel, scale), offset) in values[range].chunks_exact(plane).zip(scale).zip(offset) {
                    out.extend(channel.iter().map(|&v| f32::from(v) * scale + offset));
                }
            }
        }
    }

    /// What a value of 0 is in a channel, once normalised.
    pub(crate) fn empty(&self, channel: usize) -> f32 {
        match &self.inputs {
            Inputs::F32(_) => 0.0,
            Inputs::U8 { offset, .. } => offset.get(channel).copied().unwrap_or(0.0),
        }
    }

    /// Host values `inputs` of examples of this shape, and their labels, as tensors.
    pub(crate) fn tensors<B: Backend>(
        &self,
        inputs: Vec<f32>,
        labels: impl Iterator<Item = ClassId>,
        device: &B::Device,
    ) -> Batch<B> {
        let [channels, height, width] = self.shape;
        let labels: Vec<i64> = labels.map(|label| i64::from(label.0)).collect();
        let batch = labels.len();
        Batch {
            inputs: Tensor::from_data(TensorData::new(inputs, [batch, channels, height, width]), device),
            labels: Tensor::from_data(TensorData::new(labels, [batch]), device),
        }
    }
}

fn expect_length(what: &'static str, expected: usize, found: usize) -> Result<(), DatasetError> {
    if expected == found { Ok(()) } else { Err(DatasetError::Length { what, expected, found }) }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::{NdArray, NdArrayDevice};

    use super::*;

    fn labels(labels: &[u32]) -> Vec<ClassId> {
        labels.iter().copied().map(ClassId).collect()
    }

    fn colours() -> Examples {
        let inputs = Inputs::normalised(vec![0, 255, 51, 102, 255, 0, 0, 51], &[0.0, 0.5], &[1.0, 0.5]);
        Examples::new(inputs, [2, 1, 2], labels(&[1, 2]), 3).unwrap()
    }

    #[test]
    fn bytes_are_normalised_by_channel_and_rows_come_in_the_order_asked() {
        let batch = colours().batch::<Flex>(&[1, 0, 1], &FlexDevice);
        assert_eq!(batch.inputs.dims(), [3, 2, 1, 2]);
        let values = batch.inputs.into_data().to_vec::<f32>().unwrap();
        let expected = [1.0, 0.0, -1.0, -0.6, 0.0, 1.0, -0.6, -0.2, 1.0, 0.0, -1.0, -0.6];
        assert!(values.iter().zip(expected).all(|(v, e): (&f32, f32)| (v - e).abs() < 1e-6), "{values:?}");
        assert_eq!(batch.labels.into_data().iter::<i64>().collect::<Vec<_>>(), [2, 1, 2]);
    }

    #[test]
    fn backends_get_the_same_bits() {
        let flex = colours().batch::<Flex>(&[0, 1], &FlexDevice).inputs.into_data();
        let ndarray = colours().batch::<NdArray<f32>>(&[0, 1], &NdArrayDevice::Cpu).inputs.into_data();
        assert_eq!(flex.to_vec::<f32>().unwrap(), ndarray.to_vec::<f32>().unwrap());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let new = |values: usize, shape, l: &[u32]| Examples::new(Inputs::F32(vec![0.0; values]), shape, labels(l), 2);
        assert!(new(4, [1, 2, 1], &[0, 1]).is_ok());
        assert!(matches!(new(5, [1, 2, 1], &[0, 1]), Err(DatasetError::Length { expected: 4, found: 5, .. })));
        assert!(matches!(new(4, [1, 2, 1], &[0, 2]), Err(DatasetError::Label { index: 1, label: 2, .. })));
        assert!(matches!(new(0, [0, 2, 1], &[0, 1]), Err(DatasetError::Shape { .. })));
        assert!(matches!(new(0, [usize::MAX, 2, 1], &[0, 1]), Err(DatasetError::Shape { .. })));
        let nan = Examples::new(Inputs::F32(vec![0.0, f32::NAN]), [1, 1, 1], labels(&[0, 1]), 2);
        assert!(matches!(nan, Err(DatasetError::NonFinite { index: 1 })));
        let scales = Examples::new(Inputs::normalised(vec![0, 0], &[0.0], &[0.0]), [1, 1, 1], labels(&[0, 1]), 2);
        assert!(matches!(scales, Err(DatasetError::NonFinite { .. })));
        let channels = Examples::new(Inputs::tokens(vec![0, 0]), [2, 1, 1], labels(&[0]), 2);
        assert!(matches!(channels, Err(DatasetError::Length { what: "channel scales", .. })));
    }
}
