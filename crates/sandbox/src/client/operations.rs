//! Reports of one sandbox, as their taker sees them.

use crate::backend::Serve;
use crate::operation::Operation;
use std::sync::mpsc;

/// Reports taken at once at most: what is on its way of one sandbox is bounded anyway.
const BATCH_MAX: usize = 128;

/// What the kernel reports of one sandbox, in order. Take it from [`crate::Prepared::operations`]
/// and read it on a thread of its own until the end.
#[derive(Debug)]
pub struct Operations {
    from: mpsc::Receiver<Operation>,
    server: Box<dyn Serve>,
}

impl Operations {
    /// What comes from `from`, where `server` wants to know what was taken.
    pub(crate) fn new(from: mpsc::Receiver<Operation>, server: Box<dyn Serve>) -> Self {
        Self { from, server }
    }

    /// Both halves, for two threads: where reports come from, and who wants to know what was taken.
    pub(crate) fn split(self) -> (mpsc::Receiver<Operation>, Box<dyn Serve>) {
        (self.from, self.server)
    }

    /// Waits for the next reports, one or more; `None` when the sandbox has ended and all were
    /// given.
    #[must_use]
    pub fn next_batch(&self) -> Option<Vec<Operation>> {
        let first = self.from.recv().ok()?;
        Some(std::iter::once(first).chain(self.from.try_iter().take(BATCH_MAX - 1)).collect())
    }

    /// These are on record: there is room for as many more. Marks take no room.
    pub fn taken(&self, batch: &[Operation]) {
        let count = batch.iter().filter(|o| !matches!(o, Operation::Mark(_))).count();
        if count > 0 {
            self.server.taken(count);
        }
    }

    /// Ends the sandbox: what it does cannot be put on record.
    pub fn kill(&self) {
        self.server.kill();
    }
}
