//! Vectors that wait in a file for the end of their round.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Vectors of one length in a file without a name: it is gone with whoever holds it, however that ends. Nothing is
/// synced, since a crash loses the round's vectors anyway; what the system writes to disk at all is its own choice.
pub(crate) struct Staged {
    file: File,
    len: usize,
    weights: Vec<u64>,
}

impl Staged {
    pub(crate) fn new(folder: &Path, len: usize) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(folder)?, len, weights: Vec::new() })
    }

    /// Appends a vector. One that failed is written over by the next.
    pub(crate) fn add(&mut self, values: &[f32], weight: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.place(self.weights.len(), 0)))?;
        self.file.write_all(bytemuck::cast_slice(values))?;
        self.weights.push(weight);
        Ok(())
    }

    /// Number and weight of each vector.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.weights.iter().copied().enumerate()
    }

    /// Reads a vector from its value `start` on.
    pub(crate) fn read(&self, index: usize, start: usize, to: &mut [f32]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.place(index, start)))?;
        file.read_exact(bytemuck::cast_slice_mut(to))
    }

    fn place(&self, index: usize, start: usize) -> u64 {
        4 * (index as u64 * self.len as u64 + start as u64)
    }
}
