//! The IDX format of MNIST (LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998), Fashion-MNIST
//! (Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747) and EMNIST (Cohen, Afshar, Tapson and van Schaik, 2017, arXiv
//! 1702.05373): a big-endian magic number, one 32-bit length for each dimension, then bytes. Plain or gzip.

use std::path::Path;

use fedburn_core::ClassId;

use super::source::{Source, malformed, plain_or_gz, read};
use super::{Normalisation, source};
use crate::{DatasetError, Examples, Inputs};

/// Grey images of an IDX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxImages {
    /// `[images, height, width]`, row-major, 0 to 255.
    pub pixels: Vec<u8>,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
}

/// Decodes images, magic number 2051 (bytes, three dimensions). `path` is only named in errors.
///
/// # Errors
/// [`DatasetError::Malformed`]: wrong magic number, an empty image, more or fewer bytes than the header says.
pub fn images(bytes: &[u8], path: &Path) -> Result<IdxImages, DatasetError> {
    let (dims, pixels) = decode(bytes, path, 3)?;
    if dims[1] == 0 || dims[2] == 0 {
        return Err(malformed(path, format!("images of {} x {} pixels", dims[1], dims[2])));
    }
    Ok(IdxImages { pixels, height: dims[1], width: dims[2] })
}

/// Decodes labels, magic number 2049 (bytes, one dimension). `path` is only named in errors.
///
/// # Errors
/// [`DatasetError::Malformed`]: wrong magic number, more or fewer bytes than the header says.
pub fn labels(bytes: &[u8], path: &Path) -> Result<Vec<u8>, DatasetError> {
    Ok(decode(bytes, path, 1)?.1)
}

fn decode(bytes: &[u8], path: &Path, num_dims: u32) -> Result<(Vec<usize>, Vec<u8>), DatasetError> {
    let mut source = Source::new(bytes, path);
    let (magic, expected) = (source.word("the magic number")?, 0x0800 | num_dims);
    if magic != expected {
        return Err(source.malformed(format!("magic number {magic:#010x}, expected {expected:#010x}")));
    }
    let dims =
        (0..num_dims).map(|_| Ok(source.word("the dimensions")? as usize)).collect::<Result<Vec<_>, DatasetError>>()?;
    let length = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let length = length.ok_or_else(|| source.malformed(format!("absurd dimensions {dims:?}")))?;
    let data = source.take(length, "the data")?;
    source.end()?;
    Ok((dims, data))
}

/// How a family member differs from MNIST.
pub(super) struct Layout {
    /// Before `train-` and `test-` or `t10k-`: file names are `{prefix}{part}-images-idx3-ubyte`.
    pub train: String,
    pub test: String,
    pub num_classes: usize,
    /// Subtracted from every label.
    pub first_label: u8,
    /// EMNIST stores images column by column.
    pub transposed: bool,
}

impl Layout {
    pub(super) fn first_file(&self) -> String {
        format!("{}-images-idx3-ubyte", self.train)
    }

    /// Training and test examples of the files in `directory`.
    pub(super) fn load(&self, directory: &Path, normalisation: &Normalisation) -> Result<[Examples; 2], DatasetError> {
        Ok([self.part(directory, &self.train, normalisation)?, self.part(directory, &self.test, normalisation)?])
    }

    fn part(&self, directory: &Path, part: &str, normalisation: &Normalisation) -> Result<Examples, DatasetError> {
        let find = |kind: &str| {
            let file = format!("{part}-{kind}");
            plain_or_gz(directory, &file).unwrap_or_else(|| directory.join(file))
        };
        let (image_path, label_path) = (find("images-idx3-ubyte"), find("labels-idx1-ubyte"));
        let mut images = images(&read(&image_path)?, &image_path)?;
        if self.transposed {
            images = transpose(images);
        }
        let labels = labels(&source::read(&label_path)?, &label_path)?;
        let label = |(index, &label): (usize, &u8)| match label.checked_sub(self.first_label) {
            Some(label) => Ok(ClassId(u32::from(label))),
            None => Err(malformed(&label_path, format!("example {index} has label {label}"))),
        };
        let labels = labels.iter().enumerate().map(label).collect::<Result<_, _>>()?;
        let inputs = Inputs::normalised(images.pixels, &normalisation.mean, &normalisation.std);
        Examples::new(inputs, [1, images.height, images.width], labels, self.num_classes)
            .map_err(|error| malformed(&label_path, error))
    }
}

fn transpose(images: IdxImages) -> IdxImages {
    let (height, width) = (images.width, images.height);
    let mut pixels = Vec::with_capacity(images.pixels.len());
    for image in images.pixels.chunks_exact(height * width) {
        pixels.extend((0..height * width).map(|p| image[p % width * height + p / width]));
    }
    IdxImages { pixels, height, width }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn file(magic: u32, dims: &[u32], data: &[u8]) -> Vec<u8> {
        let header = std::iter::once(magic).chain(dims.iter().copied()).flat_map(u32::to_be_bytes);
        header.chain(data.iter().copied()).collect()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn problem(bytes: &[u8]) -> String {
        images(bytes, Path::new("some-file")).unwrap_err().to_string()
    }

    #[test]
    fn plain_and_gzip_give_the_same() {
        let plain = file(0x803, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let expected = IdxImages { pixels: vec![1, 2, 3, 4, 5, 6], height: 1, width: 3 };
        assert_eq!(images(&plain, Path::new("f")).unwrap(), expected);
        assert_eq!(images(&gz(&plain), Path::new("f")).unwrap(), expected);
        assert_eq!(labels(&file(0x801, &[2], &[7, 9]), Path::new("f")).unwrap(), [7, 9]);
    }

    #[test]
    fn damage_is_named_with_the_file() {
        let good = file(0x803, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        assert!(problem(&good[..12]).contains("truncated in the dimensions"));
        assert!(problem(&good[..18]).contains("truncated in the data: expected 6 bytes, found 2"));
        assert!(problem(&gz(&good[..18])).contains("truncated in the data: expected 6 bytes, found 2"));
        assert!(problem(&gz(&good)[..20]).contains("unreadable"));
        assert!(problem(&file(0x801, &[1], &[1])).contains("magic number 0x00000801, expected 0x00000803"));
        assert!(problem(&[good.as_slice(), &[0]].concat()).contains("after the end"));
        assert!(problem(&file(0x803, &[u32::MAX; 3], &[])).contains("absurd dimensions"));
        assert!(problem(&file(0x803, &[u32::MAX, 28, 28], &[])).contains("the file holds at most 16"));
        assert!(problem(&file(0x803, &[3, 0, 3], &[])).contains("0 x 3 pixels"));
        assert!(problem(&good[..3]).starts_with("some-file: "));
    }

    #[test]
    fn transposing_turns_columns_into_rows() {
        let images = IdxImages { pixels: vec![1, 2, 3, 4, 5, 6], height: 3, width: 2 };
        assert_eq!(transpose(images), IdxImages { pixels: vec![1, 3, 5, 2, 4, 6], height: 2, width: 3 });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(magic in prop_oneof![Just(0x801u32), Just(0x803), any::<u32>()],
                                       dims in prop::collection::vec(prop_oneof![0u32..9, any::<u32>()], 0..4),
                                       data in prop::collection::vec(any::<u8>(), 0..200), zip: bool) {
            let bytes = file(magic, &dims, &data);
            let bytes = if zip { gz(&bytes) } else { bytes };
            let _ = images(&bytes, Path::new("f"));
            let _ = labels(&bytes, Path::new("f"));
        }

        #[test]
        fn every_truncation_is_refused(cut in 0usize..22, zip: bool) {
            let good = file(0x803, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
            let bytes = if zip { gz(&good[..cut]) } else { good[..cut].to_vec() };
            prop_assert!(images(&bytes, Path::new("f")).is_err());
        }
    }
}
