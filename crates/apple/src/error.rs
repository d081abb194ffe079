//! What can go wrong between us and Apple's program, in words for people.

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The program is not there or cannot be started.
    Missing,
    /// It, or its service, is older than what is needed.
    Version,
    /// Its service does not run.
    Stopped,
    /// It did not answer in time.
    TimeOut,
    /// It answered too much, or something that is not understood.
    Answer,
    /// It said no.
    Refused,
    /// What is asked for cannot be asked of it.
    Spec,
    /// What it says of a container is not what was asked for.
    Verification,
}

/// Why there is no container. Nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What, where, why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { kind, cause: cause.into(), remedy: remedy.into() }
    }
}
