//! What a verification found wrong, and whether that speaks against the log.

use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, where first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} at byte {offset}: {what}", file.display())]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// First byte that is not as it should be.
    pub offset: u64,
    /// What is wrong, in words.
    pub what: String,
    /// Whether that speaks against the log.
    pub sort: Sort,
}

/// What a [`Finding`] says about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// It is not what was signed, or not under the key that was given.
    Tampered,
    /// Nothing: the system did not let it be read.
    Unreadable,
    /// Nothing: the key that was given is none.
    BadKey,
}

pub(crate) fn finding(file: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Finding {
    Finding { file: file.into(), offset, what: what.into(), sort: Sort::Tampered }
}

pub(crate) fn io_finding(file: &Path) -> impl Fn(io::Error) -> Finding {
    let file = file.to_owned();
    move |e| match e.kind() {
        io::ErrorKind::NotFound => finding(&file, 0, "it is missing"),
        // Our own ways of naming what is no file, and a file that should not be there.
        io::ErrorKind::InvalidInput => finding(&file, 0, e.to_string()),
        io::ErrorKind::InvalidData => finding(e.to_string(), 0, "it does not belong in a log"),
        _ => Finding {
            sort: Sort::Unreadable,
            ..finding(&file, 0, format!("it cannot be read: {e}"))
        },
    }
}
