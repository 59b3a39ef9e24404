//! Parameter vectors as safetensors bytes, the exchange format that every other tool of the field opens.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::schema::{ParamEntry, ParamSchema, is_below};
use super::vector::ParamVector;
use crate::SchemaError;

impl<B: Backend> ParamVector<B> {
    /// Encodes the vector as safetensors: one `F32` tensor an entry, named by its path, in its shape.
    ///
    /// # Errors
    /// [`SchemaError::File`] where the encoder refuses (a header too large).
    pub fn to_safetensors(&self) -> Result<Vec<u8>, SchemaError> {
        let bytes: Vec<u8> = self.to_host().iter().flat_map(|v| v.to_le_bytes()).collect();
        let file = |e: safetensors::SafeTensorError| SchemaError::File { reason: e.to_string() };
        let views = self.schema().entries().iter().map(|e| {
            let range = 4 * e.range().start..4 * e.range().end;
            Ok((e.path.as_str(), TensorView::new(Dtype::F32, e.shape.clone(), &bytes[range]).map_err(file)?))
        });
        let views: Vec<_> = views.collect::<Result<_, SchemaError>>()?;
        let note = HashMap::from([("fedburn.schema".to_owned(), format!("{:016x}", self.schema().fingerprint()))]);
        safetensors::serialize(views, Some(note)).map_err(file)
    }

    /// Decodes safetensors bytes into a vector of `schema` on `device`.
    ///
    /// # Errors
    /// [`SchemaError::File`] for damaged bytes, a missing, extra, wrongly shaped or non-`F32` tensor.
    pub fn from_safetensors(bytes: &[u8], schema: Arc<ParamSchema>, device: &B::Device) -> Result<Self, SchemaError> {
        let file = opened(bytes)?;
        if file.len() != schema.entries().len() {
            return Err(refuse(format!("{} tensors where the model has {}", file.len(), schema.entries().len())));
        }
        let mut values = Vec::with_capacity(schema.num_values());
        for entry in schema.entries() {
            values.extend(values_of(&file, entry)?);
        }
        Self::from_host(values, schema, device)
    }

    /// These values with those of safetensors bytes in their place, by path; tensors of the layers `kept`, each with all
    /// that is below it, keep theirs whatever the bytes hold.
    ///
    /// # Errors
    /// [`SchemaError::File`] for damaged bytes, a missing, extra, wrongly shaped or non-`F32` tensor, and one with a NaN or
    /// an infinity.
    pub fn with_safetensors(&self, bytes: &[u8], kept: &[String]) -> Result<Self, SchemaError> {
        let file = opened(bytes)?;
        let mut extra: Vec<&str> = file.names().into_iter().filter(|name| !is_below(name, kept)).collect();
        extra.retain(|name| self.schema().entry(name).is_none());
        if let Some(first) = extra.into_iter().min() {
            return Err(refuse(format!("tensor `{first}` is not one of the model")));
        }
        let mut values = self.to_host();
        for entry in self.schema().entries().iter().filter(|entry| !is_below(&entry.path, kept)) {
            for (value, read) in values[entry.range()].iter_mut().zip(values_of(&file, entry)?) {
                *value = read;
            }
            if values[entry.range()].iter().any(|value| !value.is_finite()) {
                return Err(refuse(format!("tensor `{}` holds a NaN or an infinity", entry.path)));
            }
        }
        Self::from_host(values, self.schema().clone(), &self.device())
    }
}

fn refuse(reason: String) -> SchemaError {
    SchemaError::File { reason }
}

fn opened(bytes: &[u8]) -> Result<SafeTensors<'_>, SchemaError> {
    SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))
}

/// The values of the file's tensor for `entry`, as many as it has.
fn values_of<'a>(
    file: &SafeTensors<'a>,
    entry: &ParamEntry,
) -> Result<impl Iterator<Item = f32> + use<'a>, SchemaError> {
    let ParamEntry { path, shape, .. } = entry;
    let missing = |_| refuse(format!("tensor `{path}` is missing, expected F32 {shape:?}"));
    let tensor = file.tensor(path).map_err(missing)?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
        return Err(refuse(format!("tensor `{path}` is {found}, expected F32 {shape:?}")));
    }
    Ok(tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
}
