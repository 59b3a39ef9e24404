//! What can be wrong with an identity.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An identity cannot be read, made or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file's content is not what its name says.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text is no join string or node id.
    #[error("`{text}` is not {expected}")]
    Text {
        /// The text, secrets left out.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A key or a certificate could not be made.
    #[error("cannot make a {what}: {reason}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// A request for a certificate does not hold.
    #[error("enrolment refused: {reason}")]
    Enrolment {
        /// Why.
        reason: &'static str,
    },
}

impl IdentityError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn content(path: &Path, reason: impl ToString) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.to_string() }
    }
}
