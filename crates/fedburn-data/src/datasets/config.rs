//! Every data set by name, for config files, and where its files are looked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cifar::Cifar;
use super::idx::Layout;
use super::leaf::{ALPHABET, Leaf};
use super::source::{locate, plain_or_gz, read};
use super::table::Table;
use super::{Synthetic, SyntheticConfig, csv, digits, safetensors};
use crate::{DatasetError, Examples};

/// Which data set to use; `kind` chooses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DatasetConfig {
    /// 1,797 handwritten digits, inside the library.
    Digits {},
    /// MNIST, 70,000 handwritten digits.
    Mnist {},
    /// Fashion-MNIST, 70,000 articles of clothing.
    FashionMnist {},
    /// EMNIST, handwritten characters.
    Emnist {
        /// Which of its data sets.
        split: EmnistSplit,
    },
    /// CIFAR-10, 60,000 colour images.
    Cifar10 {},
    /// CIFAR-100, 60,000 colour images, fine labels.
    Cifar100 {},
    /// LEAF's handwritten characters by writer.
    Femnist {},
    /// LEAF's next-character prediction by speaking role.
    Shakespeare {},
    /// Gaussian blobs.
    Synthetic(SyntheticConfig),
    /// Own data, `train.csv` and `test.csv`, each also with `.gz`.
    Csv {
        /// The folder, relative to the root of all data.
        path: PathBuf,
        /// `[channels, height, width]` of one input; `[1, 1, columns]` unless told.
        #[serde(default)]
        shape: Option<[usize; 3]>,
    },
    /// Own data, `train.safetensors` and `test.safetensors`.
    Safetensors {
        /// The folder, relative to the root of all data.
        path: PathBuf,
    },
}

/// The data sets of EMNIST (Cohen, Afshar, Tapson and van Schaik, 2017, arXiv 1702.05373, table II).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmnistSplit {
    /// 47 classes, as many examples of each.
    Balanced,
    /// All 62 characters.
    Byclass,
    /// 47 classes: capitals and small letters of the same form are one.
    Bymerge,
    /// 10 digits.
    Digits,
    /// 26 letters, capitals and small ones together.
    Letters,
}

/// What inputs are subtracted by and divided by, channel by channel, after bytes were scaled to `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// For training.
    pub train: Arc<Examples>,
    /// For measuring.
    pub test: Arc<Examples>,
    /// Who made each training example, where the data set knows.
    pub user_ids: Option<Vec<u64>>,
    /// Its name.
    pub name: String,
    /// The name of each class.
    pub class_names: Vec<String>,
    /// The normalisation that the inputs went through.
    pub normalisation: Normalisation,
}

/// Loads a data set. Files are looked for in `root/<name>`, Fashion-MNIST also where Debian's package
/// `dataset-fashion-mnist` puts it.
///
/// # Errors
/// [`DatasetError::Missing`] with the places searched and the command that gets the data, [`DatasetError::Malformed`],
/// [`DatasetError::Read`], [`DatasetError::Setting`].
///
/// # Examples
///
/// ```
/// use std::path::Path;
/// use fedburn_data::datasets::{DatasetConfig, load};
///
/// let digits = load(&DatasetConfig::Digits {}, Path::new("data"))?;
/// assert_eq!((digits.train.len(), digits.test.len()), (1438, 359));
/// # Ok::<(), fedburn_data::DatasetError>(())
/// ```
pub fn load(config: &DatasetConfig, root: &Path) -> Result<Dataset, DatasetError> {
    let name = config.name();
    let normalisation = config.normalisation();
    let mut user_ids = None;
    let [train, test] = match config {
        DatasetConfig::Digits {} => digits()?,
        DatasetConfig::Synthetic(config) => {
            let blobs = Synthetic::new(*config)?;
            [blobs.train()?, blobs.test()?]
        }
        DatasetConfig::Mnist {} => load_idx(&mnist(10), name, &[root.join(name)], &normalisation)?,
        DatasetConfig::FashionMnist {} => {
            let directories = [root.join(name), PathBuf::from("/usr/share/datasets/fashion-mnist")];
            load_idx(&mnist(10), name, &directories, &normalisation)?
        }
        DatasetConfig::Emnist { split } => load_idx(&split.layout(), name, &[root.join(name)], &normalisation)?,
        DatasetConfig::Cifar10 {} => load_cifar(Cifar::Ten, name, root, &normalisation)?,
        DatasetConfig::Cifar100 {} => load_cifar(Cifar::Hundred, name, root, &normalisation)?,
        DatasetConfig::Femnist {} | DatasetConfig::Shakespeare {} => {
            let leaf = if name == "femnist" { Leaf::Femnist } else { Leaf::Shakespeare };
            let directory = root.join(name);
            if !directory.is_dir() {
                let command = format!("cargo xtask data fetch {name}");
                return Err(DatasetError::Missing { name: name.into(), searched: vec![directory], command });
            }
            let [train, test] = leaf.load(&directory)?;
            user_ids = Some(train.user_ids);
            [train.examples, test.examples]
        }
        DatasetConfig::Csv { path, shape } => load_tables(&root.join(path), "csv", *shape, csv, &mut user_ids)?,
        DatasetConfig::Safetensors { path } => {
            load_tables(&root.join(path), "safetensors", None, safetensors, &mut user_ids)?
        }
    };
    let class_names = config.class_names(train.num_classes());
    let (train, test) = (Arc::new(train), Arc::new(test));
    Ok(Dataset { train, test, user_ids, name: name.to_owned(), class_names, normalisation })
}

impl DatasetConfig {
    /// The name in commands and directories.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Digits {} => "digits",
            Self::Mnist {} => "mnist",
            Self::FashionMnist {} => "fashion-mnist",
            Self::Emnist { .. } => "emnist",
            Self::Cifar10 {} => "cifar-10",
            Self::Cifar100 {} => "cifar-100",
            Self::Femnist {} => "femnist",
            Self::Shakespeare {} => "shakespeare",
            Self::Synthetic(_) => "synthetic",
            Self::Csv { .. } => "csv",
            Self::Safetensors { .. } => "safetensors",
        }
    }

    /// The usual constants: of MNIST also for EMNIST, as most published code has it; of the CIFAR training images, pixel
    /// by pixel. `(0, 1)` where none are usual.
    pub fn normalisation(&self) -> Normalisation {
        let (mean, std): (&[f32], &[f32]) = match self {
            Self::Mnist {} | Self::Emnist { .. } => (&[0.1307], &[0.3081]),
            Self::FashionMnist {} => (&[0.2860], &[0.3530]),
            Self::Cifar10 {} => (&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616]),
            Self::Cifar100 {} => (&[0.5071, 0.4865, 0.4409], &[0.2673, 0.2564, 0.2762]),
            _ => (&[0.0], &[1.0]),
        };
        Normalisation { mean: mean.to_vec(), std: std.to_vec() }
    }

    fn class_names(&self, num_classes: usize) -> Vec<String> {
        let words = |text: &str| text.split(", ").map(str::to_owned).collect();
        match self {
            Self::FashionMnist {} => {
                words("T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot")
            }
            Self::Cifar10 {} => words("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"),
            Self::Shakespeare {} => ALPHABET.chars().map(|c| c.escape_default().to_string()).collect(),
            Self::Femnist {} | Self::Emnist { split: EmnistSplit::Byclass } => {
                ('0'..='9').chain('A'..='Z').chain('a'..='z').map(String::from).collect()
            }
            Self::Emnist { split: EmnistSplit::Letters } => ('A'..='Z').map(String::from).collect(),
            Self::Emnist { split: EmnistSplit::Balanced | EmnistSplit::Bymerge } => {
                ('0'..='9').chain('A'..='Z').chain("abdefghnqrt".chars()).map(String::from).collect()
            }
            _ => (0..num_classes).map(|class| class.to_string()).collect(),
        }
    }
}

impl EmnistSplit {
    fn layout(self) -> Layout {
        let (name, num_classes) = match self {
            Self::Balanced => ("balanced", 47),
            Self::Byclass => ("byclass", 62),
            Self::Bymerge => ("bymerge", 47),
            Self::Digits => ("digits", 10),
            Self::Letters => ("letters", 26),
        };
        Layout {
            train: format!("emnist-{name}-train"),
            test: format!("emnist-{name}-test"),
            num_classes,
            first_label: u8::from(self == Self::Letters),
            transposed: true,
        }
    }
}

fn mnist(num_classes: usize) -> Layout {
    Layout { train: "train".into(), test: "t10k".into(), num_classes, first_label: 0, transposed: false }
}

fn load_idx(
    layout: &Layout,
    name: &str,
    directories: &[PathBuf],
    normalisation: &Normalisation,
) -> Result<[Examples; 2], DatasetError> {
    layout.load(&locate(name, directories, &layout.first_file())?, normalisation)
}

fn load_cifar(
    cifar: Cifar,
    name: &str,
    root: &Path,
    normalisation: &Normalisation,
) -> Result<[Examples; 2], DatasetError> {
    cifar.load(&locate(name, &cifar.directories(&root.join(name)), cifar.first_file())?, normalisation)
}

/// Training and test part of own data; both have as many classes as the larger label needs.
fn load_tables(
    directory: &Path,
    extension: &str,
    shape: Option<[usize; 3]>,
    decode: fn(&[u8], &Path) -> Result<Table, DatasetError>,
    user_ids: &mut Option<Vec<u64>>,
) -> Result<[Examples; 2], DatasetError> {
    let part = |part: &str| {
        let file = format!("{part}.{extension}");
        let path = plain_or_gz(directory, &file).unwrap_or_else(|| directory.join(file));
        Ok::<_, DatasetError>((decode(&read(&path)?, &path)?, path))
    };
    let ((train, train_path), (test, test_path)) = (part("train")?, part("test")?);
    let num_classes = train.num_classes().max(test.num_classes());
    user_ids.clone_from(&train.user_ids);
    let train = train.into_examples(shape, num_classes, &train_path)?;
    let test = test.into_examples(shape, num_classes, &test_path)?;
    if train.shape() != test.shape() {
        let problem = format!("inputs are {:?}, those of the training part {:?}", test.shape(), train.shape());
        return Err(DatasetError::Malformed { path: test_path, problem });
    }
    Ok([train, test])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::ClassId;

    use super::*;

    fn parse(text: &str) -> Result<DatasetConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn configs_are_read_and_unknown_fields_refused() {
        assert_eq!(parse(r#"{"kind": "fashion_mnist"}"#).unwrap(), DatasetConfig::FashionMnist {});
        let synthetic = parse(r#"{"kind": "synthetic", "classes": 3}"#).unwrap();
        assert_eq!(synthetic, DatasetConfig::Synthetic(SyntheticConfig { classes: 3, ..Default::default() }));
        assert_eq!(parse(&serde_json::to_string(&synthetic).unwrap()).unwrap(), synthetic);
        for text in [
            r#"{"kind": "digits", "path": "x"}"#,
            r#"{"kind": "synthetic", "clases": 3}"#,
            r#"{"kind": "emnist", "split": "x"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_data_set_says_where_and_how() {
        let root = tempfile::tempdir().unwrap();
        for config in [
            DatasetConfig::Mnist {},
            DatasetConfig::Emnist { split: EmnistSplit::Letters },
            DatasetConfig::Cifar10 {},
            DatasetConfig::Cifar100 {},
            DatasetConfig::Femnist {},
            DatasetConfig::Shakespeare {},
        ] {
            let error = load(&config, root.path()).unwrap_err();
            assert!(matches!(error, DatasetError::Missing { .. }));
            let (text, name) = (error.to_string(), config.name());
            assert!(text.contains(&format!("cargo xtask data fetch {name}")), "{text}");
            assert!(text.contains(root.path().join(name).to_str().unwrap()), "{text}");
        }
    }

    #[test]
    fn own_tables_share_classes_and_shape() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("own");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("train.csv"), "a,b,label,user\n1,2,0,4\n3,4,1,5\n").unwrap();
        fs::write(folder.join("test.csv"), "a,b,label\n1,2,2\n").unwrap();
        let config = DatasetConfig::Csv { path: "own".into(), shape: Some([1, 2, 1]) };
        let data = load(&config, root.path()).unwrap();
        assert_eq!((data.train.shape(), data.train.num_classes(), data.user_ids), ([1, 2, 1], 3, Some(vec![4, 5])));
        fs::write(folder.join("test.csv"), "a,label\n1,2\n").unwrap();
        let config = DatasetConfig::Csv { path: "own".into(), shape: None };
        assert!(load(&config, root.path()).unwrap_err().to_string().contains("those of the training part"));
    }

    #[test]
    fn emnist_letters_are_upright_and_count_from_zero() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("emnist");
        fs::create_dir(&folder).unwrap();
        let header = |magic: u32, dims: &[u32]| [&[magic], dims].concat().into_iter().flat_map(u32::to_be_bytes);
        for part in ["train", "test"] {
            let images: Vec<u8> = header(0x803, &[1, 2, 2]).chain([0, 1, 2, 3]).collect();
            let labels: Vec<u8> = header(0x801, &[1]).chain([26]).collect();
            fs::write(folder.join(format!("emnist-letters-{part}-images-idx3-ubyte")), images).unwrap();
            fs::write(folder.join(format!("emnist-letters-{part}-labels-idx1-ubyte")), labels).unwrap();
        }
        let data = load(&DatasetConfig::Emnist { split: EmnistSplit::Letters }, root.path()).unwrap();
        assert_eq!((data.train.labels(), data.class_names[25].as_str()), (&[ClassId(25)] as &[_], "Z"));
        let values = data.train.batch::<Flex>(&[0], &FlexDevice).inputs.into_data().to_vec::<f32>().unwrap();
        let bytes: Vec<u32> = values.iter().map(|v| ((v * 0.3081 + 0.1307) * 255.0).round() as u32).collect();
        assert_eq!(bytes, [0, 2, 1, 3]);
    }

    #[test]
    fn every_class_has_a_name() {
        use EmnistSplit::*;
        for split in [Balanced, Byclass, Bymerge, Digits, Letters] {
            let num_classes = split.layout().num_classes;
            assert_eq!(DatasetConfig::Emnist { split }.class_names(num_classes).len(), num_classes);
        }
        for (config, classes) in [
            (DatasetConfig::FashionMnist {}, 10),
            (DatasetConfig::Cifar10 {}, 10),
            (DatasetConfig::Cifar100 {}, 100),
            (DatasetConfig::Femnist {}, 62),
            (DatasetConfig::Shakespeare {}, 80),
        ] {
            assert_eq!(config.class_names(classes).len(), classes);
        }
    }

    /// Runs where the system carries Fashion-MNIST: sizes, balance, and that the constants normalise.
    #[test]
    fn fashion_mnist_is_whole_where_installed() {
        if !Path::new("/usr/share/datasets/fashion-mnist").is_dir() {
            println!("skipped: Fashion-MNIST is not installed (Debian package dataset-fashion-mnist)");
            return;
        }
        let data = load(&DatasetConfig::FashionMnist {}, Path::new("no-such-folder")).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.train.shape()), (60_000, 10_000, [1, 28, 28]));
        let all = crate::ClientData::all(Arc::clone(&data.train));
        assert_eq!(all.class_counts(), [6000; 10]);
        let (mut sum, mut squares) = (0.0, 0.0);
        for batch in crate::Batches::<Flex>::in_order(&all, 5000, &FlexDevice) {
            for value in batch.inputs.into_data().to_vec::<f32>().unwrap() {
                sum += f64::from(value);
                squares += f64::from(value).powi(2);
            }
        }
        let count = 60_000.0 * 784.0;
        assert!(
            (sum / count).abs() < 1e-3 && (squares / count - 1.0).abs() < 1e-3,
            "{} {}",
            sum / count,
            squares / count
        );
    }
}
