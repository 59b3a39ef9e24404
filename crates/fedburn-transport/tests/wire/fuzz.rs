//! Arbitrary bytes into every decoder: the committed messages, changed a little or a lot.
//!
//! A few thousand inputs each as an ordinary test; `cargo xtask fault fuzz --inputs 1000000` for more. The inputs follow
//! from the seed alone; a failure prints its input, which belongs into a test of its own.

use crate::decoders::{Decoder, decoders};
use crate::generate::Draw;

/// Inputs of each decoder unless the environment says otherwise.
const INPUTS: u64 = 2_000;
/// Decoding may hold so many times the limit of what it decodes.
const FACTOR: usize = 4;
/// One input of so many is as long as the decoder's limit allows.
const LONG_EVERY: usize = 256;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Prints the input that was under way when a panic passes by.
struct Input<'a>(&'a str, &'a [u8]);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("decoder {} failed on {} bytes: {hex}", self.0, self.1.len());
        }
    }
}

#[test]
fn no_input_breaks_a_decoder() {
    let (inputs, seed) = (setting("FEDBURN_FUZZ_INPUTS", INPUTS), setting("FEDBURN_FUZZ_SEED", 0));
    for (number, decoder) in decoders().into_iter().enumerate() {
        let mut draw = Draw::new(seed ^ ((number as u64) << 32));
        let mut bytes = Vec::new();
        let (mut accepted, mut held) = (0u64, 0);
        for _ in 0..inputs {
            change(&decoder, &mut draw, &mut bytes);
            let shown = Input(&decoder.name, &bytes);
            let verdict = (decoder.read)(shown.1);
            accepted += u64::from(verdict.accepted);
            held = held.max(verdict.held);
            assert!(held <= FACTOR * decoder.limit, "{held} bytes held, at most {FACTOR} x {}", decoder.limit);
        }
        println!("{:<14} {inputs} inputs, {accepted} accepted, {held} of {} bytes held", decoder.name, decoder.limit);
        assert!(decoder.seeds.iter().all(|seed| (decoder.read)(seed).accepted), "{}: a seed is refused", decoder.name);
        assert!(accepted < inputs, "{}: nothing was refused, so nothing was tried", decoder.name);
    }
}

/// Makes the next input from a seed.
fn change(decoder: &Decoder, draw: &mut Draw, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend(&decoder.seeds[draw.below(decoder.seeds.len())]);
    for _ in 0..=draw.below(6) {
        let at = draw.below(bytes.len() + 1);
        let end = at + draw.below(bytes.len() - at + 1).min(40);
        match draw.below(10) {
            0..3 if at < bytes.len() => bytes[at] ^= 1 << draw.below(8),
            3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][draw.below(5)],
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..end)),
            // A number of up to ten bytes in the place of one: lengths of any size.
            6 => drop(bytes.splice(at..(at + 1).min(bytes.len()), number(draw.any()))),
            7 => drop(bytes.splice(at..at, (0..end - at).map(|_| draw.any() as u8).collect::<Vec<u8>>())),
            8 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let other = &decoder.seeds[draw.below(decoder.seeds.len())];
                bytes.truncate(at);
                bytes.extend(&other[draw.below(other.len() + 1)..]);
            }
        }
    }
    if draw.below(LONG_EVERY) == 0 && !bytes.is_empty() {
        // A good beginning, a length, the same byte again and again: long lists of small elements cost the most memory.
        let fill = bytes[draw.below(bytes.len())];
        bytes.truncate(draw.below(bytes.len()));
        bytes.extend(number(draw.any()));
        bytes.resize(decoder.limit, fill);
    }
    bytes.truncate(decoder.limit);
}

/// An integer as postcard writes it.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
