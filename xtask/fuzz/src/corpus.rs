//! The committed inputs.

use std::fs;
use std::path::Path;

/// The committed inputs of a decoder.
///
/// # Errors
/// That there is no file of this decoder, or that it is not hexadecimal.
pub fn corpus(decoder: &str) -> Result<Vec<Vec<u8>>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/{decoder}.hex"));
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let wrong = |line: usize| format!("{}, line {}: no hexadecimal", path.display(), line + 1);
    text.lines().enumerate().map(|(number, line)| unhex(line).ok_or_else(|| wrong(number))).collect()
}

fn unhex(line: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = line.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
