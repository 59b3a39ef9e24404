//! What a strategy's generator made, by round.

use data_encoding::BASE64;
use fedburn::core::Pictures;
use maud::{Markup, html as markup};

use crate::results::ExperimentResults;

/// Rounds that have a row; of more, evenly spaced ones with the first and the last.
const MOST_ROUNDS: usize = 8;

/// The section, drawn for the first seed that has pictures; nothing where no generator showed any.
pub(super) fn section(results: &ExperimentResults) -> Markup {
    let drawn = results.counted().into_iter().find(|run| !run.pictures.is_empty());
    markup! {
        @if let Some(run) = drawn {
            @let rounds: Vec<(u64, &Pictures)> = run.pictures.iter().map(|(round, made)| (*round, made)).collect();
            section id="pictures" {
                h2 { "What the generator made" }
                figure {
                    div class="wide" { table {
                        @if let Some((_, first)) = rounds.first() {
                            thead { tr { th { "round" } @for (class, _) in first.iter() { th { "class " (class) } } } }
                        }
                        tbody { @for (round, made) in spaced(&rounds) { tr {
                            th { (round) }
                            @for (class, pixels) in made.iter() { td {
                                @if let Some(data) = png(made.shape, pixels) {
                                    img class="pixels" width="56" src={ "data:image/png;base64," (BASE64.encode(&data)) }
                                        alt={ "a picture of class " (class) " made after round " (round) };
                                }
                            } }
                        } } }
                    } }
                    figcaption {
                        "Seed " (run.seed) ": a picture of each class from noise that is the same in every round, "
                        "stretched from black to white."
                    }
                }
            }
        }
    }
}

/// At most [`MOST_ROUNDS`] of them.
fn spaced<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let shown = all.len().min(MOST_ROUNDS);
    (0..shown).filter_map(move |i| all.get(i * (all.len() - 1) / (shown - 1).max(1)))
}

/// A picture `[channels, height, width]` as a PNG file: grey, or colours where there are three channels; of other
/// numbers of channels the first.
fn png([channels, height, width]: [usize; 3], pixels: &[u8]) -> Option<Vec<u8>> {
    let plane = height * width;
    let (colour, data) = match channels {
        3 => (png::ColorType::Rgb, (0..plane).flat_map(|i| [0, 1, 2].map(|c| pixels[c * plane + i])).collect()),
        _ => (png::ColorType::Grayscale, pixels.get(..plane)?.to_vec()),
    };
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().ok()?.write_image_data(&data).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_comes_back_from_its_file() {
        for (channels, expected) in
            [(1, vec![0, 1, 2, 3, 4, 5]), (3, vec![0, 6, 12, 1, 7, 13, 2, 8, 14, 3, 9, 15, 4, 10, 16, 5, 11, 17])]
        {
            let pixels: Vec<u8> = (0..channels as u8 * 6).collect();
            let file = png([channels, 2, 3], &pixels).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut read = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut read).unwrap();
            assert_eq!((info.width, info.height, read), (3, 2, expected));
        }
    }

    #[test]
    fn of_many_rounds_the_first_and_the_last_are_shown() {
        let all: Vec<u64> = (0..100).collect();
        let shown: Vec<_> = spaced(&all).copied().collect();
        assert_eq!((shown.len(), shown[0], shown[7]), (8, 0, 99));
        assert_eq!(spaced(&all[..3]).count(), 3);
        assert_eq!(spaced(&all[..1]).count(), 1);
        assert_eq!(spaced(&all[..0]).count(), 0);
    }
}
