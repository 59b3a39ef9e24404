//! A model's float parameters and buffers as one vector on one device.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, ElementConversion, Tensor, TensorData, backend::Backend};

use super::schema::{ParamEntry, ParamKind, ParamSchema};
use crate::{Encoded, SchemaError};

/// All parameters and running statistics of a model, concatenated in schema order.
///
/// Cloning is cheap: the tensor and the schema are shared.
#[derive(Clone, Debug)]
pub struct ParamVector<B: Backend> {
    values: Tensor<B, 1>,
    schema: Arc<ParamSchema>,
    /// Shared by the clones of one vector and by nothing else: the bytes that it was read from, where it was.
    origin: Arc<Option<Encoded>>,
}

impl<B: Backend> ParamVector<B> {
    /// Wraps `values`, a tensor `[num_values]`.
    ///
    /// # Errors
    /// [`SchemaError::Length`] where the tensor is not as long as the schema says.
    pub fn new(values: Tensor<B, 1>, schema: Arc<ParamSchema>) -> Result<Self, SchemaError> {
        let [found] = values.dims();
        if found != schema.num_values() {
            return Err(SchemaError::Length { expected: schema.num_values(), found });
        }
        Ok(Self { values, schema, origin: Arc::default() })
    }

    /// Uploads host values, in schema order, to `device`.
    ///
    /// # Errors
    /// [`SchemaError::Length`] where the number of values is not the schema's.
    pub fn from_host(values: Vec<f32>, schema: Arc<ParamSchema>, device: &B::Device) -> Result<Self, SchemaError> {
        let found = values.len();
        if found != schema.num_values() {
            return Err(SchemaError::Length { expected: schema.num_values(), found });
        }
        Ok(Self { values: Tensor::from_data(TensorData::new(values, [found]), device), schema, origin: Arc::default() })
    }

    /// A vector of zeros.
    pub fn zeros(schema: Arc<ParamSchema>, device: &B::Device) -> Self {
        Self { values: Tensor::zeros([schema.num_values()], device), schema, origin: Arc::default() }
    }

    /// The flat tensor `[num_values]`.
    pub fn values(&self) -> &Tensor<B, 1> {
        &self.values
    }

    /// Gives up the schema and keeps the flat tensor `[num_values]`.
    pub fn into_values(self) -> Tensor<B, 1> {
        self.values
    }

    /// Names, shapes and places of the tensors.
    pub fn schema(&self) -> &Arc<ParamSchema> {
        &self.schema
    }

    /// Length of the flat vector.
    pub fn num_values(&self) -> usize {
        self.schema.num_values()
    }

    /// Whether one of the two is a clone of the other, or both are of a third: equal without a look at the values. Two
    /// vectors that were made apart are no clones, whatever their values.
    pub fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.origin, &other.origin)
    }

    /// Whether there is a clone of it, so that its values may have to be copied where somebody wants them for himself.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.origin) > 1
    }

    /// The bytes that this very vector was read from; `None` for one that was made in another way.
    pub fn encoded(&self) -> Option<&Encoded> {
        (*self.origin).as_ref()
    }

    pub(crate) fn with_encoded(self, encoded: Encoded) -> Self {
        Self { origin: Arc::new(Some(encoded)), ..self }
    }

    /// The device that holds the values.
    pub fn device(&self) -> B::Device {
        self.values.device()
    }

    /// The same schema around other values `[num_values]`.
    ///
    /// # Errors
    /// [`SchemaError::Length`].
    pub fn with_values(&self, values: Tensor<B, 1>) -> Result<Self, SchemaError> {
        Self::new(values, self.schema.clone())
    }

    /// The values on the host as `f32`, in schema order.
    pub fn to_host(&self) -> Vec<f32> {
        self.clone().into_host()
    }

    /// As [`ParamVector::to_host`], without a copy where the values are on the host and belong to nobody else.
    pub fn into_host(self) -> Vec<f32> {
        let data = self.values.into_data();
        if data.dtype == DType::F32 {
            // Cannot fail for data of this type; an empty vector would be refused by its length.
            data.into_vec().unwrap_or_default()
        } else {
            data.iter().collect()
        }
    }

    /// Gives `use_it` some of the values, in schema order, without a copy of the others.
    ///
    /// # Panics
    /// Where the range is not within `0..num_values`.
    pub fn with_range<T>(&self, range: Range<usize>, use_it: impl FnOnce(&[f32]) -> T) -> T {
        let data = self.values.clone().slice([range]).into_data();
        match data.as_slice::<f32>() {
            Ok(values) => use_it(values),
            Err(_) => use_it(&data.iter().collect::<Vec<f32>>()),
        }
    }

    /// One tensor of the model, in its own shape.
    ///
    /// # Errors
    /// [`SchemaError::UnknownPath`], or [`SchemaError::Rank`] where the tensor does not have `D` dimensions.
    pub fn tensor<const D: usize>(&self, path: &str) -> Result<Tensor<B, D>, SchemaError> {
        let entry = self.schema.entry(path).ok_or_else(|| SchemaError::UnknownPath { path: path.to_owned() })?;
        let shape: [usize; D] = entry.shape.as_slice().try_into().map_err(|_| SchemaError::Rank {
            path: path.to_owned(),
            expected: entry.shape.len(),
            found: D,
        })?;
        Ok(self.values.clone().slice([entry.range()]).reshape(shape))
    }

    /// Whether every value is a finite number.
    pub fn is_finite(&self) -> bool {
        // A finite sum has finite terms, and is many times cheaper; only a sum that overflowed needs a closer look.
        self.num_values() == 0
            || self.values.clone().sum().into_scalar().elem::<f32>().is_finite()
            || self.values.clone().is_finite().all().into_scalar().elem::<bool>()
    }

    /// The first tensor that holds a NaN or an infinity, to name the offender in an error.
    pub fn first_non_finite(&self) -> Option<&ParamEntry> {
        if self.is_finite() {
            return None;
        }
        let index = self.to_host().iter().position(|v| !v.is_finite())?;
        self.schema.entry_at(index)
    }

    /// `self - other`, element-wise. `global.minus(&local)` is the pseudo-gradient, the one sign convention.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`].
    pub fn minus(&self, other: &Self) -> Result<Self, SchemaError> {
        self.schema.ensure_same(&other.schema)?;
        Self::new(self.values.clone() - other.values.clone(), self.schema.clone())
    }

    /// The values of weights alone `[num_weights]`, running statistics left out: what norms and distances are taken of.
    pub fn weight_values(&self) -> Tensor<B, 1> {
        let ranges = self.schema.weight_ranges();
        match ranges.as_slice() {
            [all] if *all == (0..self.num_values()) => self.values.clone(),
            _ => Tensor::cat(ranges.into_iter().map(|range| self.values.clone().slice([range])).collect(), 0),
        }
    }

    /// These weights with the running statistics of `other`.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`].
    pub fn with_buffers_of(&self, other: &Self) -> Result<Self, SchemaError> {
        self.schema.ensure_same(&other.schema)?;
        let buffers = self.schema.entries().iter().filter(|e| e.kind == ParamKind::Buffer && !e.is_empty());
        let values = buffers.fold(self.values.clone(), |values, entry| {
            values.slice_assign([entry.range()], other.values.clone().slice([entry.range()]))
        });
        Self::new(values, self.schema.clone())
    }

    /// The vector on another device.
    pub fn to_device(&self, device: &B::Device) -> Self {
        Self { values: self.values.clone().to_device(device), schema: self.schema.clone(), origin: Arc::default() }
    }
}
