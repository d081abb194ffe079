//! What can go wrong before a program runs: kind, cause and remedy, in words for people.
//!
//! The errors cross the spawner's protocol, so they are plain data.

use serde::{Deserialize, Serialize};

/// What about a `SandboxSpec` was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpecErrorKind {
    /// A path is relative, not normalised, has a NUL, or is too long.
    Path,
    /// A source does not exist or is of the wrong type.
    Missing,
    /// A source is or contains a symbolic link.
    Symlink,
    /// A source is a place that holds secrets, or contains one.
    Secret,
    /// A source is or contains a socket of the host.
    Socket,
    /// A target is reserved or overlaps another.
    Overlap,
    /// A number is zero or beyond reason.
    Limit,
    /// The command is empty or not an absolute path or a bare name.
    Command,
    /// An environment name or value cannot be passed.
    Environment,
    /// The whole description is too large.
    Size,
    /// Only another backend can do what was asked.
    Backend,
}

/// A `SandboxSpec` that is refused before anything starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct SpecError {
    /// Which rule.
    pub kind: SpecErrorKind,
    /// What, where, why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl SpecError {
    pub(crate) fn new(
        kind: SpecErrorKind,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { kind, cause: cause.into(), remedy: remedy.into() }
    }
}

/// At which wall a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartErrorKind {
    /// The spec itself.
    Spec(SpecErrorKind),
    /// The kernel gives no namespaces to this user.
    Namespaces,
    /// A mount of the private root failed.
    Mount,
    /// A folder cannot be id-mapped.
    IdMap,
    /// A limit cannot be had as firmly as it was asked for.
    Limit,
    /// A control group could not be made or joined.
    Cgroup,
    /// The unprivileged identity could not be taken.
    Identity,
    /// Landlock is missing or below ABI 1.
    Landlock,
    /// The system-call filter could not be loaded.
    Seccomp,
    /// The door's port or socket.
    Door,
    /// What was measured is not what was asked for.
    Verification,
    /// Preparing took longer than allowed.
    TimeOut,
    /// Too many sandboxes at once.
    Busy,
    /// The spawner is gone or spoke nonsense.
    Spawner,
    /// The container engine is absent, unfit, or failed.
    Engine,
}

/// A sandbox that did not start. Nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the sandbox did not start: {cause}; {remedy}")]
pub struct StartError {
    /// Where it failed.
    pub kind: StartErrorKind,
    /// What, where, why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl StartError {
    pub(crate) fn new(
        kind: StartErrorKind,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { kind, cause: cause.into(), remedy: remedy.into() }
    }

    pub(crate) fn spawner(cause: impl Into<String>) -> Self {
        Self::new(
            StartErrorKind::Spawner,
            cause,
            "restart nanoclaw; if it repeats, run `nanoclaw doctor`",
        )
    }
}

impl From<SpecError> for StartError {
    fn from(e: SpecError) -> Self {
        Self { kind: StartErrorKind::Spec(e.kind), cause: e.cause, remedy: e.remedy }
    }
}

/// A sandbox that could not be paused or resumed. It runs on as before, or stands still as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct PauseError {
    /// What, where, why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl PauseError {
    pub(crate) fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into() }
    }
}
