//! Errors: what happened, and what to do.

use std::fmt::Display;

/// What sort of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for makes no sense.
    Usage,
    /// Something is not there.
    Missing,
    /// The image breaks a rule or a limit: hostile, damaged, or beyond what is read here.
    Refused,
    /// What lies in the store is not what was stored.
    Changed,
    /// A sandbox is using it.
    InUse,
    /// The file system refused.
    Disk,
    /// The registry could not be reached, or did not answer as it should.
    Network,
    /// A person wanted it to end.
    Cancelled,
}

/// Cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct Error {
    /// What sort.
    pub kind: ErrorKind,
    /// What happened, and where.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, cause: impl Display, remedy: impl Display) -> Self {
        Self { kind, cause: cause.to_string(), remedy: remedy.to_string() }
    }

    /// The image is refused.
    pub(crate) fn refused(cause: impl Display) -> Self {
        let remedy = "nothing was stored; use an image from a source that you trust";
        Self::new(ErrorKind::Refused, cause, remedy)
    }

    /// The file system said no, about `what`.
    pub(crate) fn disk(what: impl Display, e: impl Into<std::io::Error>) -> Self {
        let e = e.into();
        let remedy = match rustix::io::Errno::from_io_error(&e) {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                "nothing was stored; make room (`nanoclaw image list`, `nanoclaw image remove`)"
            }
            _ => "nothing was stored; look at this file and the disk it lies on",
        };
        Self::new(ErrorKind::Disk, format!("{what}: {e}"), remedy)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "it was interrupted", "nothing was stored; start it again")
    }
}

/// Bytes of an archive for an error: escaped and cut.
pub(crate) fn shown(name: &[u8]) -> String {
    /// Enough to find it, little enough for one line.
    const SHOWN_BYTES_MAX: usize = 120;
    let cut = name.get(..SHOWN_BYTES_MAX).unwrap_or(name);
    let dots = if cut.len() < name.len() { "…" } else { "" };
    format!("\"{}{dots}\"", cut.escape_ascii())
}

/// An error of ours on its way through a reader.
pub(crate) fn carry(error: Error) -> std::io::Error {
    std::io::Error::other(error)
}

/// The error of ours that a reader carried, if it is one.
pub(crate) fn carried(e: &std::io::Error) -> Option<Error> {
    e.get_ref()?.downcast_ref::<Error>().cloned()
}
