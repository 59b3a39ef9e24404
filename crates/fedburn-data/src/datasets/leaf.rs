//! The JSON format of LEAF (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv 1812.01097): FEMNIST
//! (28 x 28 grey images, 62 classes) and Shakespeare (the next character after 80 others). Every user is a client.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fedburn_core::ClassId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::source::{Source, malformed, read};
use crate::{DatasetError, Examples, Inputs};

/// The symbols of Shakespeare's plays in the order of LEAF; a token's number is its place.
pub const ALPHABET: &str = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}";

/// Characters of one Shakespeare input.
const LENGTH: usize = 80;
/// Pixels of one FEMNIST input.
const PIXELS: usize = 28 * 28;

/// Either data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Handwritten characters by writer, `[1, 28, 28]`, values as in the file (1 is white paper).
    Femnist,
    /// Lines by speaking role, `[1, 1, 80]` token numbers.
    Shakespeare,
}

/// Examples of many users, by user in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub struct LeafExamples {
    /// The examples.
    pub examples: Examples,
    /// For each example its user, an index into `user_names`.
    pub user_ids: Vec<u64>,
    /// Names of the users, sorted.
    pub user_names: Vec<String>,
}

#[derive(Deserialize)]
struct Document<X, Y> {
    user_data: BTreeMap<String, Data<X, Y>>,
}

#[derive(Deserialize)]
struct Data<X, Y> {
    x: Vec<X>,
    y: Vec<Y>,
}

/// Inputs and labels by user.
type Users<T> = BTreeMap<String, (Vec<T>, Vec<ClassId>)>;

impl Leaf {
    /// Number of classes.
    pub fn num_classes(self) -> usize {
        match self {
            Self::Femnist => 62,
            Self::Shakespeare => ALPHABET.len(),
        }
    }

    /// Decodes files, given as path (only named in errors) and bytes. A user may be in several.
    ///
    /// # Errors
    /// [`DatasetError::Malformed`]: no valid JSON, inputs of the wrong length, an unknown character, a label out of
    /// range, inputs and labels of different number.
    pub fn decode(self, files: &[(PathBuf, Vec<u8>)]) -> Result<LeafExamples, DatasetError> {
        let first = files.first().map_or_else(PathBuf::new, |(path, _)| path.clone());
        match self {
            Self::Femnist => {
                let mut users = Users::new();
                files.iter().try_for_each(|(path, bytes)| femnist(&mut users, bytes, path))?;
                collect(users, Inputs::F32, [1, 28, 28], self.num_classes(), &first)
            }
            Self::Shakespeare => {
                let mut users = Users::new();
                files.iter().try_for_each(|(path, bytes)| shakespeare(&mut users, bytes, path))?;
                collect(users, Inputs::tokens, [1, 1, LENGTH], self.num_classes(), &first)
            }
        }
    }

    /// The `train` and `test` folders of `directory`.
    pub(super) fn load(self, directory: &Path) -> Result<[LeafExamples; 2], DatasetError> {
        let part = |part: &str| {
            let folder = directory.join(part);
            let files = json_files(&folder).map_err(|source| DatasetError::Read { path: folder.clone(), source })?;
            if files.is_empty() {
                return Err(malformed(&folder, "holds no .json file"));
            }
            let files = files.into_iter().map(|path| Ok((path.clone(), read(&path)?)));
            self.decode(&files.collect::<Result<Vec<_>, DatasetError>>()?)
        };
        Ok([part("train")?, part("test")?])
    }
}

/// The `.json` files of a folder, sorted by name.
pub(super) fn json_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> =
        entries.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    Ok(files)
}

fn document<X: DeserializeOwned, Y: DeserializeOwned>(
    bytes: &[u8],
    path: &Path,
) -> Result<Document<X, Y>, DatasetError> {
    let bytes = Source::new(bytes, path).rest()?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(path, error))
}

fn femnist(users: &mut Users<f32>, bytes: &[u8], path: &Path) -> Result<(), DatasetError> {
    for (user, data) in document::<Vec<f32>, u32>(bytes, path)?.user_data {
        expect_same(&user, data.x.len(), data.y.len(), path)?;
        let (inputs, labels) = users.entry(user.clone()).or_default();
        for (x, y) in data.x.into_iter().zip(data.y) {
            if x.len() != PIXELS {
                return Err(malformed(path, format!("user `{user}` has an image of {} pixels, not {PIXELS}", x.len())));
            }
            inputs.extend(x);
            labels.push(ClassId(y));
        }
    }
    Ok(())
}

fn shakespeare(users: &mut Users<u8>, bytes: &[u8], path: &Path) -> Result<(), DatasetError> {
    for (user, data) in document::<String, String>(bytes, path)?.user_data {
        expect_same(&user, data.x.len(), data.y.len(), path)?;
        let (inputs, labels) = users.entry(user.clone()).or_default();
        for (x, y) in data.x.iter().zip(&data.y) {
            inputs.extend(tokens(x, LENGTH, &user, path)?);
            labels.extend(tokens(y, 1, &user, path)?.into_iter().map(|token| ClassId(u32::from(token))));
        }
    }
    Ok(())
}

fn tokens(text: &str, length: usize, user: &str, path: &Path) -> Result<Vec<u8>, DatasetError> {
    let token = |c: char| {
        let place = ALPHABET.find(c).and_then(|place| u8::try_from(place).ok());
        place.ok_or_else(|| malformed(path, format!("user `{user}` has the character {c:?}, which LEAF does not know")))
    };
    let tokens = text.chars().map(token).collect::<Result<Vec<_>, _>>()?;
    if tokens.len() != length {
        return Err(malformed(path, format!("user `{user}` has a text of {} characters, not {length}", tokens.len())));
    }
    Ok(tokens)
}

fn expect_same(user: &str, inputs: usize, labels: usize, path: &Path) -> Result<(), DatasetError> {
    if inputs == labels {
        return Ok(());
    }
    Err(malformed(path, format!("user `{user}` has {inputs} inputs and {labels} labels")))
}

fn collect<T>(
    users: Users<T>,
    into_inputs: impl FnOnce(Vec<T>) -> Inputs,
    shape: [usize; 3],
    num_classes: usize,
    path: &Path,
) -> Result<LeafExamples, DatasetError> {
    let (mut values, mut labels, mut user_ids, mut user_names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, (name, (x, y))) in users.into_iter().enumerate() {
        user_ids.extend(std::iter::repeat_n(id as u64, y.len()));
        user_names.push(name);
        values.extend(x);
        labels.extend(y);
    }
    let examples = Examples::new(into_inputs(values), shape, labels, num_classes);
    Ok(LeafExamples { examples: examples.map_err(|error| malformed(path, error))?, user_ids, user_names })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(leaf: Leaf, texts: &[&str]) -> Result<LeafExamples, DatasetError> {
        let file = |(k, text): (usize, &&str)| (PathBuf::from(format!("part-{k}.json")), text.as_bytes().to_vec());
        leaf.decode(&texts.iter().enumerate().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn the_alphabet_has_80_different_symbols() {
        let symbols: std::collections::BTreeSet<char> = ALPHABET.chars().collect();
        assert_eq!((symbols.len(), ALPHABET.len()), (80, 80));
    }

    #[test]
    fn users_of_several_files_are_joined_and_sorted() {
        let x = "\n".repeat(80).replace('\n', "\\n");
        let a =
            format!(r#"{{"users": ["z"], "num_samples": [1], "user_data": {{"z": {{"x": ["{x}"], "y": ["}}"]}}}}}}"#);
        let b = format!(r#"{{"user_data": {{"a": {{"x": ["{x}"], "y": [" "]}}, "z": {{"x": ["{x}"], "y": ["!"]}}}}}}"#);
        let leaf = decode(Leaf::Shakespeare, &[&a, &b]).unwrap();
        assert_eq!(leaf.user_names, ["a", "z"]);
        assert_eq!(leaf.user_ids, [0, 1, 1]);
        assert_eq!(leaf.examples.labels(), [ClassId(1), ClassId(79), ClassId(2)]);
        assert_eq!(leaf.examples.shape(), [1, 1, 80]);
    }

    #[test]
    fn images_are_read_as_they_are() {
        let image = format!("[{}]", vec!["0.25"; PIXELS].join(","));
        let text = format!(r#"{{"user_data": {{"w": {{"x": [{image}], "y": [61]}}}}}}"#);
        assert_eq!(decode(Leaf::Femnist, &[&text]).unwrap().examples.labels(), [ClassId(61)]);
        let error = decode(Leaf::Femnist, &[&text.replace("61", "62")]).unwrap_err().to_string();
        assert!(error.contains("part-0.json") && error.contains("label 62"), "{error}");
        let short = r#"{"user_data": {"w": {"x": [[0.5]], "y": [1]}}}"#;
        assert!(decode(Leaf::Femnist, &[short]).unwrap_err().to_string().contains("image of 1 pixels"));
        let odd = r#"{"user_data": {"w": {"x": [], "y": [1]}}}"#;
        assert!(decode(Leaf::Femnist, &[odd]).unwrap_err().to_string().contains("0 inputs and 1 labels"));
        let huge = format!(r#"{{"user_data": {{"w": {{"x": [[{}]], "y": [1]}}}}}}"#, vec!["1e300"; PIXELS].join(","));
        assert!(decode(Leaf::Femnist, &[&huge]).is_err(), "infinite as f32");
    }

    #[test]
    fn unknown_characters_are_refused() {
        let text = format!(r#"{{"user_data": {{"w": {{"x": ["{}"], "y": ["a"]}}}}}}"#, "é".repeat(80));
        assert!(decode(Leaf::Shakespeare, &[&text]).unwrap_err().to_string().contains("'é'"));
    }

    proptest! {
        #[test]
        fn arbitrary_and_truncated_text_never_panics(noise in any::<Vec<u8>>(), cut in 0usize..60) {
            let good = br#"{"user_data": {"w": {"x": [[0.5]], "y": [1]}}}"#;
            for bytes in [noise, good[..cut.min(good.len())].to_vec()] {
                for leaf in [Leaf::Femnist, Leaf::Shakespeare] {
                    prop_assert!(leaf.decode(&[(PathBuf::from("f"), bytes.clone())]).is_err());
                }
            }
        }
    }
}
