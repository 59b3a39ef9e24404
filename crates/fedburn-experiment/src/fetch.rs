//! Being written.
use std::path::{Path, PathBuf};
pub fn default_root() -> PathBuf { PathBuf::from("data") }
pub fn list(_: &Path) -> String { String::new() }
pub fn fetch(_: &str, _: &Path, _: Option<&str>) -> Result<String, std::io::Error> { Ok(String::new()) }
