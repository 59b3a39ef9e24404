//! Files that a crash leaves whole: the old content or the new, never a part.
//!
//! A process may be killed, or a machine lose its power, between any two instructions. What is written through this
//! crate is then there as before or as after a call, and what a call wrote is on disk when it returns.
//!
//! # Examples
//!
//! ```
//! use fedburn_durable::{Access, File, replace};
//!
//! let dir = tempfile::tempdir()?;
//! replace(&dir.path().join("whole"), b"new", Access::Owner)?;
//!
//! let mut log = File::append(&dir.path().join("log"), Access::Anybody)?;
//! log.write(b"one line\n")?;
//! log.sync()?;
//! # Ok::<(), std::io::Error>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(any(test, feature = "crash"))]
pub mod crash;
mod file;
mod place;

pub use file::{Access, File, lock_file};
pub use place::{
    create_dir, directory_of, remove_dir_all, remove_file, remove_unfinished, rename, replace, replace_with,
    sync_directory, unless_missing, write_synced,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
