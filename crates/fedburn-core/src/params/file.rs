//! Parameter vectors as safetensors bytes, the exchange format that every other tool of the field opens.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::schema::ParamSchema;
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
        let refuse = |reason: String| SchemaError::File { reason };
        let file = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))?;
        if file.len() != schema.entries().len() {
            return Err(refuse(format!("{} tensors where the model has {}", file.len(), schema.entries().len())));
        }
        let mut values = Vec::with_capacity(schema.num_values());
        for entry in schema.entries() {
            let tensor = file.tensor(&entry.path).map_err(|_| refuse(format!("tensor `{}` is missing", entry.path)))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != entry.shape {
                let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
                return Err(refuse(format!("tensor `{}` is {found}, expected F32 {:?}", entry.path, entry.shape)));
            }
            values.extend(tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Self::from_host(values, schema, device)
    }
}
