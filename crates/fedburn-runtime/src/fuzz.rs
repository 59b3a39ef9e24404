//! The reader of open rounds, for fuzzing alone.

use std::path::Path;

use burn::tensor::backend::Backend;
use fedburn_core::{ParamVector, RoundIndex};

use crate::open_round_file::OpenRoundFile;

/// Reads the file of an open round of the config `fuzz`, begun from `global` before its first round was over; whether
/// there is one in it.
///
/// # Errors
/// That it is damaged, or what the system says.
pub fn open_round<B: Backend>(path: &Path, global: &ParamVector<B>) -> std::io::Result<bool> {
    Ok(OpenRoundFile::new(path.to_owned(), "fuzz").find(RoundIndex(0), global)?.is_some())
}
