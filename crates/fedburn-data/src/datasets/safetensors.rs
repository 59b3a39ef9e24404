//! Own data as tensors: a safetensors file with `inputs`, `[examples, ...]` of type U8 or F32, `labels`, `[examples]` of
//! an integer type, and optionally `users`, likewise. Bytes are scaled to `[0, 1]`.

use std::path::Path;

use fedburn_core::ClassId;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::source::malformed;
use super::table::{Table, check_label};
use crate::DatasetError;

/// Decodes a file. `path` is only named in errors.
///
/// # Errors
/// [`DatasetError::Malformed`]: no safetensors, a missing tensor, a type or shape other than the above, negative labels.
pub fn safetensors(bytes: &[u8], path: &Path) -> Result<Table, DatasetError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| malformed(path, error))?;
    let tensor = |name: &str| file.tensor(name).map_err(|_| malformed(path, format!("has no tensor `{name}`")));
    let (inputs, labels) = (tensor("inputs")?, tensor("labels")?);
    let values = match inputs.dtype() {
        Dtype::U8 => inputs.data().iter().map(|&v| f32::from(v) / 255.0).collect(),
        Dtype::F32 => inputs.data().as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect(),
        other => return Err(malformed(path, format!("tensor `inputs` has type {other:?}, expected U8 or F32"))),
    };
    let [examples, shape @ ..] = inputs.shape() else {
        return Err(malformed(path, "tensor `inputs` has no dimension"));
    };
    let labels = integers(&labels, "labels", *examples, path)?;
    let labels = labels.into_iter().map(|label| check_label(label, path).map(ClassId)).collect::<Result<_, _>>()?;
    let user_ids = match file.tensor("users") {
        Ok(users) => Some(integers(&users, "users", *examples, path)?),
        Err(_) => None,
    };
    Ok(Table { values, shape: shape.to_vec(), labels, user_ids })
}

/// Numbers that are not negative.
fn integers(tensor: &TensorView<'_>, name: &str, examples: usize, path: &Path) -> Result<Vec<u64>, DatasetError> {
    if tensor.shape() != [examples] {
        return Err(malformed(path, format!("tensor `{name}` has shape {:?}, expected [{examples}]", tensor.shape())));
    }
    let data = tensor.data();
    let numbers: Vec<i128> = match tensor.dtype() {
        Dtype::U8 => data.iter().map(|&v| v.into()).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|&v| i32::from_le_bytes(v).into()).collect(),
        Dtype::U32 => data.as_chunks().0.iter().map(|&v| u32::from_le_bytes(v).into()).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|&v| i64::from_le_bytes(v).into()).collect(),
        Dtype::U64 => data.as_chunks().0.iter().map(|&v| u64::from_le_bytes(v).into()).collect(),
        other => {
            return Err(malformed(
                path,
                format!("tensor `{name}` has type {other:?}, expected U8, U32, U64, I32 or I64"),
            ));
        }
    };
    let number = |n| u64::try_from(n).map_err(|_| malformed(path, format!("tensor `{name}` holds the negative {n}")));
    numbers.into_iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Part<'a> = (&'a str, Dtype, &'a [usize], &'a [u8]);

    fn bytes(parts: &[Part<'_>]) -> Vec<u8> {
        let view = |&(name, dtype, shape, data): &Part<'_>| (name.to_owned(), dtype, shape.to_vec(), data.to_vec());
        let owned: Vec<_> = parts.iter().map(view).collect();
        let views = owned
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::tensor::serialize(views, None).unwrap()
    }

    fn read(parts: &[Part<'_>]) -> Result<Table, String> {
        safetensors(&bytes(parts), Path::new("own.safetensors")).map_err(|error| error.to_string())
    }

    #[test]
    fn bytes_and_numbers_are_read() {
        let labels = [1i64.to_le_bytes(), 0i64.to_le_bytes()].concat();
        let table = read(&[
            ("inputs", Dtype::U8, &[2, 1, 1, 2], &[0, 255, 51, 102]),
            ("labels", Dtype::I64, &[2], &labels),
            ("users", Dtype::U8, &[2], &[3, 4]),
        ]);
        let table = table.unwrap();
        assert_eq!((table.values, table.shape), (vec![0.0, 1.0, 0.2, 0.4], vec![1, 1, 2]));
        assert_eq!((table.labels, table.user_ids), (vec![ClassId(1), ClassId(0)], Some(vec![3, 4])));
    }

    #[test]
    fn damage_is_named() {
        let inputs: Part<'_> = ("inputs", Dtype::U8, &[1, 1], &[0]);
        fn label<'a>(dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> Part<'a> {
            ("labels", dtype, shape, data)
        }
        assert!(read(&[inputs]).unwrap_err().contains("no tensor `labels`"));
        assert!(read(&[inputs, label(Dtype::U8, &[1, 1], &[0])]).unwrap_err().contains("shape [1, 1], expected [1]"));
        assert!(read(&[inputs, label(Dtype::F32, &[1], &[0; 4])]).unwrap_err().contains("type F32"));
        assert!(read(&[inputs, label(Dtype::I32, &[1], &[255; 4])]).unwrap_err().contains("negative -1"));
        assert!(read(&[inputs, label(Dtype::U32, &[1], &[255; 4])]).unwrap_err().contains("label 4294967295"));
        assert!(read(&[("inputs", Dtype::U8, &[], &[0])]).unwrap_err().starts_with("own.safetensors: "));
    }

    proptest! {
        #[test]
        fn arbitrary_and_truncated_bytes_never_panic(noise in any::<Vec<u8>>(), cut in 0usize..200) {
            let good = bytes(&[("inputs", Dtype::U8, &[1, 1], &[0]), ("labels", Dtype::U8, &[1], &[0])]);
            prop_assert!(safetensors(&good[..cut.min(good.len() - 1)], Path::new("f")).is_err());
            prop_assert!(safetensors(&noise, Path::new("f")).is_err());
        }
    }
}
