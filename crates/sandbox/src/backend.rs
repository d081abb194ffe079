//! What all backends have in common: a sandbox that waits, and one that runs.
//!
//! ```text
//! Spawner::prepare ─┬─ native: spawner.rs, init ──┬─► Prepared (report) ─► Sandbox ─► Ended
//!                   └─ docker, podman: engine/  ──┘        Wait              Run
//! ```
//!
//! Adding a backend: a variant of `model::Backend`, a translation of the native plan, and these
//! traits; the third serves reports, where they are wanted. The tests of `tests/sandbox` say what
//! they must keep.

use crate::client::Operations;
use crate::error::{PauseError, StartError};
use crate::report::{Ended, Report, Usage};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Puts a mark of this number behind everything that was reported before.
    fn mark(&self, number: u64) -> Result<(), StartError>;
    /// Stops all its processes where they are.
    fn pause(&self) -> Result<(), PauseError>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), PauseError>;
}

/// Who answers the calls of a sandbox that the kernel reports.
pub(crate) trait Serve: Debug + Send {
    /// So many of the oldest reports are on record.
    fn taken(&self, count: usize);
    /// Kills the sandbox. One that is gone already needs it no more.
    fn kill(&self);
}

/// A sandbox that is built, measured and waiting. Dropping it ends it.
#[derive(Debug)]
pub struct Prepared {
    report: Report,
    operations: Option<Operations>,
    inner: Box<dyn Wait>,
}

impl Prepared {
    pub(crate) fn new(
        report: Report,
        operations: Option<Operations>,
        inner: Box<dyn Wait>,
    ) -> Self {
        Self { report, operations, inner }
    }

    /// What was measured. Put it on record before calling [`Prepared::start`].
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reports of what it will execute and be refused; once, and `None` where the spec does not
    /// want them. They must be taken: what is not on record makes no room for more, and what cannot
    /// be reported is not executed.
    #[must_use]
    pub fn operations(&mut self) -> Option<Operations> {
        self.operations.take()
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// When what made it is gone.
    pub fn start(self) -> Result<Sandbox, StartError> {
        let Self { report, inner, .. } = self;
        Ok(Sandbox { inner: inner.start()?, report, marks: AtomicU64::new(0) })
    }
}

/// A running sandbox. Dropping it kills everything in it.
#[derive(Debug)]
pub struct Sandbox {
    report: Report,
    inner: Box<dyn Run>,
    marks: AtomicU64,
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

    /// Asks for an [`crate::Operation::Mark`] of the number returned, behind everything that was
    /// reported before.
    ///
    /// # Errors
    /// When what made it is gone.
    pub fn mark(&self) -> Result<u64, StartError> {
        let number = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        self.inner.mark(number)?;
        Ok(number)
    }

    /// Stops every process in it where it stands, until [`Sandbox::resume`]; it can be killed
    /// meanwhile. Returns when all stand.
    ///
    /// # Errors
    /// When this host or the engine has no means for it, when something in it does not stop, or
    /// when what made it is gone. It then runs on.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.inner.pause()
    }

    /// Lets it run on after [`Sandbox::pause`]; one that is not paused runs on anyway.
    ///
    /// # Errors
    /// When what made it is gone.
    pub fn resume(&self) -> Result<(), PauseError> {
        self.inner.resume()
    }
}
