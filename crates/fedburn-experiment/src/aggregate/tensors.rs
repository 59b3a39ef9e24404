//! Safetensors files of any tool as flat vectors, and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fedburn::core::{ParamEntry, ParamKind, ParamSchema};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{AggregateFilesError, read, refuse};

/// A safetensors file in memory.
pub(super) struct Tensors {
    pub(super) path: PathBuf,
    /// The length of the header and the header itself, as the file has them.
    header: Vec<u8>,
    /// Sorted by name.
    entries: BTreeMap<String, StoredTensor>,
}

pub(super) struct StoredTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where the data begin, counted from the end of the header.
    offset: usize,
    data: Vec<u8>,
}

impl Tensors {
    pub(super) fn read(path: &Path) -> Result<Self, AggregateFilesError> {
        let mut bytes = read(path)?;
        let damaged = |e: safetensors::SafeTensorError| refuse(path, format!("not a whole safetensors file: {e}"));
        let (length, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let body = bytes.split_off(8 + length);
        let mut entries = BTreeMap::new();
        for (name, info) in header.tensors() {
            let (dtype, shape, (offset, end)) = (info.dtype, info.shape.clone(), info.data_offsets);
            if !is_float(dtype) && integer_size(dtype).is_none() {
                let reason = format!("tensor `{name}` is {dtype:?}, expected a float, integer or boolean type");
                return Err(refuse(path, reason));
            }
            let Some(data) = body.get(offset..end).map(<[u8]>::to_vec) else {
                return Err(refuse(path, format!("not a whole safetensors file: tensor `{name}` is cut off")));
            };
            entries.insert(name, StoredTensor { dtype, shape, offset, data });
        }
        let tensors = Self { path: path.to_owned(), header: bytes, entries };
        if let Some(name) = tensors.non_finite() {
            let reason = "holds a NaN, an infinity or a value beyond the range of 32-bit floats";
            return Err(refuse(path, format!("tensor `{name}` {reason}")));
        }
        Ok(tensors)
    }

    fn float_entries(&self) -> impl Iterator<Item = (&String, &StoredTensor)> {
        self.entries.iter().filter(|(_, t)| is_float(t.dtype))
    }

    /// Checked on the file's own type: an `F64` beyond the range of `f32` is no usable parameter either.
    fn non_finite(&self) -> Option<&String> {
        self.float_entries()
            .find(|(_, t)| decode(t.dtype, &t.data).iter().any(|v| !v.is_finite()))
            .map(|(name, _)| name)
    }

    pub(super) fn schema(&self) -> Result<ParamSchema, AggregateFilesError> {
        let kind = |name: &str| match name.rsplit('.').next() {
            Some("running_mean" | "running_var") => ParamKind::Buffer,
            _ => ParamKind::Weight,
        };
        let entries: Vec<_> =
            self.float_entries().map(|(name, t)| ParamEntry::new(name.clone(), t.shape.clone(), kind(name))).collect();
        match entries.is_empty() {
            true => Err(refuse(&self.path, "holds no float tensor".to_owned())),
            false => Ok(ParamSchema::new(entries)?),
        }
    }

    pub(super) fn floats(&self) -> Vec<f32> {
        self.float_entries().flat_map(|(_, t)| decode(t.dtype, &t.data)).collect()
    }

    pub(super) fn integers(&self) -> BTreeMap<String, Vec<i128>> {
        let integers = self.entries.iter().filter_map(|(name, t)| Some((name.clone(), decode_integers(t)?)));
        integers.collect()
    }

    /// Refuses `other` where it does not have the same names, shapes and types.
    pub(super) fn ensure_like(&self, other: &Self) -> Result<(), AggregateFilesError> {
        let path = &other.path;
        for (name, expected) in &self.entries {
            let Some(found) = other.entries.get(name) else {
                return Err(refuse(path, format!("tensor `{name}` of {} is missing", self.path.display())));
            };
            if (found.dtype, &found.shape) != (expected.dtype, &expected.shape) {
                let (f, e) = (found, expected);
                let reason =
                    format!("tensor `{name}` is {:?} {:?}, expected {:?} {:?}", f.dtype, f.shape, e.dtype, e.shape);
                return Err(refuse(path, reason));
            }
        }
        match other.entries.keys().find(|name| !self.entries.contains_key(*name)) {
            Some(name) => Err(refuse(path, format!("tensor `{name}` is not in {}", self.path.display()))),
            None => Ok(()),
        }
    }

    /// The values of a file with the same float tensors, of any float type; what else it holds does not matter.
    pub(super) fn floats_of(&self, other: &Self) -> Result<Vec<f32>, AggregateFilesError> {
        let path = &other.path;
        let mut values = Vec::new();
        for (name, expected) in self.float_entries() {
            let Some(found) = other.entries.get(name).filter(|t| is_float(t.dtype)) else {
                return Err(refuse(path, format!("float tensor `{name}` of {} is missing", self.path.display())));
            };
            if found.shape != expected.shape {
                let reason = format!("tensor `{name}` is {:?}, expected {:?}", found.shape, expected.shape);
                return Err(refuse(path, reason));
            }
            values.extend(decode(found.dtype, &found.data));
        }
        Ok(values)
    }

    /// A file of these float tensors as `F32` around other values, without integers and metadata.
    pub(super) fn floats_file(&self, floats: &[f32]) -> Result<Vec<u8>, AggregateFilesError> {
        let mut rest = floats;
        let tensors: Vec<_> = self
            .float_entries()
            .map(|(name, tensor)| {
                let (now, later) = rest.split_at(tensor.shape.iter().product());
                rest = later;
                (name, &tensor.shape, encode(now, Dtype::F32))
            })
            .collect();
        let failed = |e: safetensors::SafeTensorError| refuse(&self.path, e.to_string());
        let views = tensors
            .iter()
            .map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), data).map_err(failed)?)));
        safetensors::serialize(views.collect::<Result<Vec<_>, AggregateFilesError>>()?, None).map_err(failed)
    }

    /// Names of the tensors of type `F64`.
    pub(super) fn doubles(&self) -> Vec<String> {
        self.entries.iter().filter(|(_, t)| t.dtype == Dtype::F64).map(|(name, _)| name.clone()).collect()
    }

    /// The same file, with its header as it is, around other values.
    pub(super) fn with(
        &self,
        floats: &[f32],
        integers: &BTreeMap<String, Vec<i128>>,
    ) -> Result<Vec<u8>, AggregateFilesError> {
        let mut rest = floats;
        let mut file = self.header.clone();
        file.resize(self.header.len() + self.entries.values().map(|t| t.data.len()).sum::<usize>(), 0);
        for (name, tensor) in &self.entries {
            let data = match integers.get(name) {
                Some(values) => encode_integers(values, tensor.dtype),
                None => {
                    let (now, later) = rest.split_at(tensor.shape.iter().product());
                    rest = later;
                    let data = encode(now, tensor.dtype);
                    if decode(tensor.dtype, &data).iter().any(|v| !v.is_finite()) {
                        let reason = format!("the result does not fit tensor `{name}` of type {:?}", tensor.dtype);
                        return Err(refuse(&self.path, reason));
                    }
                    data
                }
            };
            let start = self.header.len() + tensor.offset;
            file[start..start + data.len()].copy_from_slice(&data);
        }
        Ok(file)
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Bytes of a value and whether the type is signed; `None` for other types.
fn integer_size(dtype: Dtype) -> Option<(usize, bool)> {
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => (1, false),
        Dtype::U16 => (2, false),
        Dtype::U32 => (4, false),
        Dtype::U64 => (8, false),
        Dtype::I8 => (1, true),
        Dtype::I16 => (2, true),
        Dtype::I32 => (4, true),
        Dtype::I64 => (8, true),
        _ => return None,
    })
}

fn decode(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn decode_integers(tensor: &StoredTensor) -> Option<Vec<i128>> {
    let (size, signed) = integer_size(tensor.dtype)?;
    let value = |bytes: &[u8]| {
        let unsigned = bytes.iter().rev().fold(0u64, |v, &b| (v << 8) | u64::from(b));
        let unused = 64 - 8 * size as u32;
        if signed { i128::from((unsigned << unused) as i64 >> unused) } else { i128::from(unsigned) }
    };
    Some(tensor.data.chunks_exact(size).map(value).collect())
}

fn encode_integers(values: &[i128], dtype: Dtype) -> Vec<u8> {
    let size = integer_size(dtype).map_or(8, |(size, _)| size);
    values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect()
}
