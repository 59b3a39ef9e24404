//! The list of decoders, in the order of the way that bytes take.

mod config;
mod data;
mod federation;
mod files;
mod values;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Decoder;
use crate::decoder::Decoded;

/// All of them.
pub fn decoders() -> Vec<Decoder> {
    [
        wire::decoders(),
        values::decoders(),
        federation::decoders(),
        files::decoders(),
        data::decoders(),
        config::decoders(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The input as text.
fn text(input: &[u8]) -> Decoded<&str> {
    Ok(std::str::from_utf8(input)?)
}

/// A decoder of TOML, whose tree may be as much larger than the text: each dot of a dotted key opens a table.
fn of_toml(decoder: Decoder) -> Decoder {
    let bound = 256 * decoder.longest;
    decoder.holding(bound)
}

/// A folder for decoders that read files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder of temporary files can be written"))
    }

    /// A decoder whose input is this file of the folder; `open` gets the folder and the file.
    fn decoder<T>(
        self,
        name: &str,
        longest: usize,
        file: &'static str,
        open: impl Fn(&Path, &Path) -> Decoded<T> + 'static,
        law: impl Fn(&[u8], T) + 'static,
    ) -> Decoder {
        Decoder::new(name, longest, move |input| open(self.path(), &self.put(file, input)), law)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file; its path.
    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).expect("a folder of temporary files can be written");
        path
    }
}
