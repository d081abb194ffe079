//! What all backends have in common: a sandbox that waits, and one that runs.
//!
//! ```text
//! Spawner::prepare ─┬─ native: spawner.rs, init ──┬─► Prepared (report) ─► Sandbox ─► Ended
//!                   └─ docker, podman: engine/  ──┘        Wait              Run
//! ```
//!
//! Adding a backend: a variant of `model::Backend`, a translation of the native plan, and these two
//! traits. The tests of `tests/sandbox` say what they must keep.

use crate::error::StartError;
use crate::report::{Ended, Report, Usage};
use std::fmt::Debug;
use std::time::Duration;

/// A sandbox that is built, measured and waiting. Dropping it ends it and leaves nothing.
pub(crate) trait Wait: Debug + Send {
    /// Lets the program run.
    fn start(self: Box<Self>) -> Result<Box<dyn Run>, StartError>;
}

/// A running sandbox. Dropping it kills everything in it.
pub(crate) trait Run: Debug + Send + Sync {
    /// How it ended, after at most so long; without a limit always something. It is told when
    /// nothing of it is left.
    fn ended(&self, limit: Option<Duration>) -> Option<Ended>;
    /// Sends a signal to the program's process group.
    fn signal(&self, signal: i32) -> Result<(), StartError>;
    /// Kills everything in it at once.
    fn kill(&self) -> Result<(), StartError>;
    /// What it has used so far.
    fn usage(&self) -> Result<Usage, StartError>;
    /// Stops all its processes where they are.
    fn pause(&self) -> Result<(), StartError>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), StartError>;
}

/// A sandbox that is built, measured and waiting. Dropping it ends it.
#[derive(Debug)]
pub struct Prepared {
    report: Report,
    inner: Box<dyn Wait>,
}

impl Prepared {
    pub(crate) fn new(report: Report, inner: Box<dyn Wait>) -> Self {
        Self { report, inner }
    }

    /// What was measured. Put it on record before calling [`Prepared::start`].
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// When what made it is gone.
    pub fn start(self) -> Result<Sandbox, StartError> {
        let Self { report, inner } = self;
        Ok(Sandbox { inner: inner.start()?, report })
    }
}

/// A running sandbox. Dropping it kills everything in it.
#[derive(Debug)]
pub struct Sandbox {
    report: Report,
    inner: Box<dyn Run>,
}

impl Sandbox {
    /// What was measured before it started.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Waits until it has ended and nothing of it is left. May be called from several threads
    /// and again afterwards. A spawner that is gone counts as killed.
    #[must_use]
    pub fn wait(&self) -> Ended {
        loop {
            if let Some(ended) = self.inner.ended(None) {
                return ended;
            }
        }
    }

    /// As [`Sandbox::wait`], but at most so long; `None` when it still runs.
    #[must_use]
    pub fn wait_timeout(&self, limit: Duration) -> Option<Ended> {
        self.inner.ended(Some(limit))
    }

    /// Sends a signal to the program's process group; ignored when it has ended.
    ///
    /// # Errors
    /// When what made it is gone.
    pub fn signal(&self, signal: i32) -> Result<(), StartError> {
        self.inner.signal(signal)
    }

    /// Kills everything in it at once.
    ///
    /// # Errors
    /// When what made it is gone (and with it the sandbox).
    pub fn kill(&self) -> Result<(), StartError> {
        self.inner.kill()
    }

    /// What it has used so far; the totals once it has ended.
    ///
    /// # Errors
    /// When what made it is gone or does not answer.
    pub fn usage(&self) -> Result<Usage, StartError> {
        self.inner.usage()
    }

    /// Stops all its processes where they are; they keep their memory and use no CPU time.
    ///
    /// # Errors
    /// [`crate::StartErrorKind::Unsupported`] where the backend has no means to; else when what
    /// made it is gone.
    pub fn pause(&self) -> Result<(), StartError> {
        self.inner.pause()
    }

    /// Lets a paused sandbox go on; one that is not paused goes on anyway.
    ///
    /// # Errors
    /// As [`Sandbox::pause`].
    pub fn resume(&self) -> Result<(), StartError> {
        self.inner.resume()
    }
}
