//! The 1,797 handwritten digits of the test part of *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak,
//! UCI Machine Learning Repository, 1998), inside the library: `data/README.md` holds source and licence.
//!
//! Images are 8 x 8, values 0 to 16 scaled to `[0, 1]`. The split is stratified and fixed: of the images of each class,
//! in the order of the file and counted from 0, every one whose number leaves the remainder 2 after division by 5 is a
//! test image. That makes 1,438 training and 359 test images; both parts have all 13 writers.

use std::path::Path;

use fedburn_core::ClassId;

use super::source::{Source, malformed};
use crate::{DatasetError, Examples, Inputs};

const FILE: &[u8] = include_bytes!("../../data/digits.csv.gz");
const NAME: &str = "the embedded digits.csv.gz";
const PIXELS: usize = 64;

/// Training and test examples.
///
/// # Errors
/// [`DatasetError::Malformed`] where the library was built with a damaged file.
pub fn digits() -> Result<[Examples; 2], DatasetError> {
    let text = Source::new(FILE, Path::new(NAME)).rest()?;
    let mut seen = [0usize; 10];
    let mut parts = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for (number, line) in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let values = line.split(|&byte| byte == b',').map(|field| std::str::from_utf8(field).ok()?.trim().parse().ok());
        let Some((image, label)) = values.collect::<Option<Vec<u8>>>().and_then(image_and_label) else {
            return Err(malformed(Path::new(NAME), format!("line {} is no digit", number + 1)));
        };
        let nth = &mut seen[usize::from(label)];
        let (pixels, labels) = &mut parts[usize::from(*nth % 5 == 2)];
        *nth += 1;
        pixels.extend(image);
        labels.push(ClassId(u32::from(label)));
    }
    let [train, test] = parts.map(|(values, labels)| {
        let inputs = Inputs::U8 { values, scale: vec![1.0 / 16.0], offset: vec![0.0] };
        Examples::new(inputs, [1, 8, 8], labels, 10)
    });
    Ok([train?, test?])
}

/// 64 values up to 16 and a digit.
fn image_and_label(mut values: Vec<u8>) -> Option<(Vec<u8>, u8)> {
    let label = values.pop().filter(|&label| label < 10)?;
    (values.len() == PIXELS && values.iter().all(|&value| value <= 16)).then_some((values, label))
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    /// 64-bit FNV-1a over the bits of all inputs and labels.
    fn hash(examples: &Examples) -> u64 {
        let all: Vec<usize> = (0..examples.len()).collect();
        let batch = examples.batch::<Flex>(&all, &FlexDevice);
        let inputs =
            batch.inputs.into_data().to_vec::<f32>().unwrap().into_iter().flat_map(|v| v.to_bits().to_le_bytes());
        let labels = examples.labels().iter().flat_map(|label| label.0.to_le_bytes());
        inputs.chain(labels).fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    #[test]
    fn the_split_is_pinned() {
        let [train, test] = digits().unwrap();
        assert_eq!((train.len(), test.len(), train.shape()), (1438, 359, [1, 8, 8]));
        assert_eq!((hash(&train), hash(&test)), (8_330_865_013_300_633_089, 441_684_613_725_476_139));
    }

    #[test]
    fn both_parts_have_the_same_classes_in_the_same_proportion() {
        let [train, test] = digits().unwrap();
        for class in 0..10 {
            let count = |e: &Examples| e.labels().iter().filter(|l| l.0 == class).count() as f64;
            let share = count(&test) / (count(&test) + count(&train));
            assert!((share - 0.2).abs() < 0.005, "class {class}: {share}");
        }
    }
}
