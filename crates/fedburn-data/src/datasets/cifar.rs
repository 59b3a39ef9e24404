//! The binary version of CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
//! 2009): records of one label byte (CIFAR-100: a coarse and a fine one, of which the fine is used) and 3 x 32 x 32
//! bytes, channel by channel.

use std::path::{Path, PathBuf};

use fedburn_core::ClassId;

use super::Normalisation;
use super::source::{Source, malformed, plain_or_gz, read};
use crate::{DatasetError, Examples, Inputs};

/// Bytes of one image.
const IMAGE: usize = 3 * 32 * 32;

/// Either data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cifar {
    /// Ten classes.
    Ten,
    /// A hundred classes.
    Hundred,
}

impl Cifar {
    /// Decodes one file into pixels `[images, 3, 32, 32]` and labels. `path` is only named in errors.
    ///
    /// # Errors
    /// [`DatasetError::Malformed`]: not a whole number of records, a label out of range.
    pub fn decode(self, bytes: &[u8], path: &Path) -> Result<(Vec<u8>, Vec<ClassId>), DatasetError> {
        let bytes = Source::new(bytes, path).rest()?;
        let record = IMAGE + self.label_bytes();
        if bytes.is_empty() || bytes.len() % record != 0 {
            return Err(malformed(path, format!("{} bytes are no whole number of {record}-byte records", bytes.len())));
        }
        let mut pixels = Vec::with_capacity(bytes.len() / record * IMAGE);
        let mut labels = Vec::with_capacity(bytes.len() / record);
        for (index, record) in bytes.chunks_exact(record).enumerate() {
            let (label, image) = record.split_at(self.label_bytes());
            let label = u32::from(label[label.len() - 1]);
            if label as usize >= self.num_classes() {
                return Err(malformed(path, format!("record {index} has label {label}")));
            }
            labels.push(ClassId(label));
            pixels.extend_from_slice(image);
        }
        Ok((pixels, labels))
    }

    pub(super) fn num_classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    pub(super) fn first_file(self) -> &'static str {
        self.files()[0][0]
    }

    /// The directory itself, or the folder that the archive makes.
    pub(super) fn directories(self, directory: &Path) -> Vec<PathBuf> {
        let folder = match self {
            Self::Ten => "cifar-10-batches-bin",
            Self::Hundred => "cifar-100-binary",
        };
        vec![directory.to_owned(), directory.join(folder)]
    }

    /// Training and test examples of the files in `directory`.
    pub(super) fn load(self, directory: &Path, normalisation: &Normalisation) -> Result<[Examples; 2], DatasetError> {
        let part = |files: &[&str]| {
            let (mut pixels, mut labels) = (Vec::new(), Vec::new());
            for file in files {
                let path = plain_or_gz(directory, file).unwrap_or_else(|| directory.join(file));
                let (p, l) = self.decode(&read(&path)?, &path)?;
                pixels.extend(p);
                labels.extend(l);
            }
            let inputs = Inputs::normalised(pixels, &normalisation.mean, &normalisation.std);
            Examples::new(inputs, [3, 32, 32], labels, self.num_classes())
        };
        let [train, test] = self.files();
        Ok([part(train)?, part(test)?])
    }

    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    fn files(self) -> [&'static [&'static str]; 2] {
        match self {
            Self::Ten => [
                &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
                &["test_batch.bin"],
            ],
            Self::Hundred => [&["train.bin"], &["test.bin"]],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn record(labels: &[u8], value: u8) -> Vec<u8> {
        [labels, &[value; IMAGE]].concat()
    }

    #[test]
    fn records_are_read_with_the_fine_label() {
        let bytes = [record(&[19, 99], 1), record(&[0, 7], 2)].concat();
        let (pixels, labels) = Cifar::Hundred.decode(&bytes, Path::new("f")).unwrap();
        assert_eq!(labels, [ClassId(99), ClassId(7)]);
        assert_eq!((pixels.len(), pixels[0], pixels[IMAGE]), (2 * IMAGE, 1, 2));
    }

    #[test]
    fn damage_is_named() {
        let problem = |bytes: &[u8]| Cifar::Ten.decode(bytes, Path::new("f")).unwrap_err().to_string();
        assert!(problem(&record(&[10], 0)).contains("record 0 has label 10"));
        assert!(problem(&record(&[1], 0)[..99]).contains("99 bytes are no whole number"));
        assert!(problem(&[]).contains("0 bytes"));
    }

    #[test]
    fn the_archives_folder_is_found_and_a_missing_file_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cifar-10-batches-bin");
        fs::create_dir(&folder).unwrap();
        let normalisation = Normalisation { mean: vec![0.5; 3], std: vec![0.5; 3] };
        for (k, file) in Cifar::Ten.files()[0].iter().enumerate() {
            fs::write(folder.join(file), record(&[k as u8], 255)).unwrap();
        }
        let error = Cifar::Ten.load(&folder, &normalisation).unwrap_err().to_string();
        assert!(error.contains("test_batch.bin"), "{error}");
        fs::write(folder.join("test_batch.bin"), record(&[9], 0)).unwrap();
        let [train, test] = Cifar::Ten.load(&Cifar::Ten.directories(root.path())[1], &normalisation).unwrap();
        assert_eq!((train.len(), test.len(), train.labels()[4]), (5, 1, ClassId(4)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..7000)) {
            let _ = Cifar::Ten.decode(&bytes, Path::new("f"));
            let _ = Cifar::Hundred.decode(&bytes, Path::new("f"));
        }
    }
}
