//! Where records go, and why one was not written.

use crate::{Durability, Record};

/// Why a record was not written. Whoever gets this must not go on with the action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The disk refused (full, read-only, failing).
    #[error(
        "the audit log cannot be written: {cause}; make room, or see to the disk: nothing is \
         recorded, so nothing that needs a record happens, until a new recorder can write"
    )]
    Disk {
        /// The operating system's words.
        cause: String,
    },
    /// The recorder cannot be reached.
    #[error("the recorder is gone: {cause}")]
    Gone {
        /// What was seen.
        cause: String,
    },
    /// The entry would be larger than a log entry may be.
    #[error("the record has {bytes} bytes; an entry may have {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Its session submits more than any may; the recorder goes on, for others and later for it.
    #[error("the record is refused: {why}; go on more slowly, or in another session")]
    Flood {
        /// What is exceeded.
        why: String,
    },
    /// The record may not be written by this process, or not in this form.
    #[error("the record is refused: {why}")]
    Invalid {
        /// What is wrong with it.
        why: String,
    },
}

/// Called exactly once, from any thread, with the record's index in the log.
pub type Done = Box<dyn FnOnce(Result<u64, RecordError>) + Send>;

/// Where records go. The only implementation that is not a test's is the audit client.
pub trait RecordSink: Send + Sync {
    /// Submits one record; order of submission is order in the log for one sink.
    fn submit(&self, record: Record, durability: Durability, done: Done);
}

/// Conveniences over [`RecordSink`].
pub trait RecordSinkExt: RecordSink {
    /// Submits and waits. Not for use on an async worker thread.
    ///
    /// # Errors
    /// As [`RecordSink::submit`] reports.
    fn append(&self, record: Record, durability: Durability) -> Result<u64, RecordError> {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.submit(record, durability, Box::new(move |r| drop(tx.send(r))));
        rx.recv().unwrap_or_else(|_| Err(RecordError::Gone { cause: "no answer".into() }))
    }
}

impl<T: RecordSink + ?Sized> RecordSinkExt for T {}
