//! Own data as text: one example a line, a header line with the names of the columns. The column `label` holds the class
//! from 0, an optional column `user` the number of who made the example, all others are input values in their order.

use std::path::Path;

use fedburn_core::ClassId;

use super::source::{Source, malformed};
use super::table::{Table, check_label};
use crate::DatasetError;

/// Decodes a table, plain or gzip. `path` is only named in errors.
///
/// # Errors
/// [`DatasetError::Malformed`]: no column `label`, no input column, lines of different length, a field that is no
/// number.
pub fn csv(bytes: &[u8], path: &Path) -> Result<Table, DatasetError> {
    let bytes = Source::new(bytes, path).rest()?;
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|error| malformed(path, error))?.clone();
    let column = |name: &str| header.iter().position(|field| field.trim() == name);
    let label = column("label").ok_or_else(|| malformed(path, "has no column `label`"))?;
    let user = column("user");
    let inputs: Vec<usize> = (0..header.len()).filter(|&c| c != label && Some(c) != user).collect();
    if inputs.is_empty() {
        return Err(malformed(path, "has no column besides `label` and `user`"));
    }
    let mut table = Table { shape: vec![inputs.len()], ..Table::default() };
    let mut users = Vec::new();
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(|error| malformed(path, error))?;
        let field = |column: usize| record.get(column).unwrap_or_default().trim();
        let wrong = |column: usize, what: &str| {
            let name = header.get(column).unwrap_or_default();
            malformed(path, format!("row {}, column `{name}`: `{}` is not {what}", row + 1, field(column)))
        };
        let class = field(label).parse().map_err(|_| wrong(label, "a class number"))?;
        table.labels.push(ClassId(check_label(class, path)?));
        if let Some(user) = user {
            users.push(field(user).parse().map_err(|_| wrong(user, "a user number"))?);
        }
        for &input in &inputs {
            let value = field(input).parse().ok().filter(|value: &f32| value.is_finite());
            table.values.push(value.ok_or_else(|| wrong(input, "a finite number"))?);
        }
    }
    table.user_ids = user.map(|_| users);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Table, String> {
        csv(text.as_bytes(), Path::new("own.csv")).map_err(|error| error.to_string())
    }

    #[test]
    fn columns_are_found_by_name() {
        let table = read("a,label,b,user\n0.5,1,-2,7\n 1e3 ,0, 0,8\n").unwrap();
        assert_eq!(table.values, [0.5, -2.0, 1000.0, 0.0]);
        assert_eq!(table.labels, [ClassId(1), ClassId(0)]);
        assert_eq!((table.user_ids, table.shape), (Some(vec![7, 8]), vec![2]));
    }

    #[test]
    fn damage_is_named_with_row_and_column() {
        assert!(read("a,b\n1,2\n").unwrap_err().contains("no column `label`"));
        assert!(read("label,user\n1,2\n").unwrap_err().contains("no column besides"));
        assert!(read("a,label\n1,2\nNaN,1\n").unwrap_err().contains("row 2, column `a`: `NaN` is not a finite number"));
        assert!(read("a,label\n1,-2\n").unwrap_err().contains("`-2` is not a class number"));
        assert!(read("a,label\n1,4000000000\n").unwrap_err().contains("label 4000000000"));
        assert!(read("a,label\n1\n").unwrap_err().starts_with("own.csv: "));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(noise in any::<Vec<u8>>(), text in "(label|user|a|,|\n|1|-|\"| ){0,40}") {
            let _ = csv(&noise, Path::new("f"));
            let _ = csv(text.as_bytes(), Path::new("f"));
        }
    }
}
