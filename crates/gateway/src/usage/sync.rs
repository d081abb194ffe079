//! How far the ledger's file is on the disk. One sync serves all that wait for it.

use super::ledger::Ledger;
use super::lines::LedgerError;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
struct State {
    store: Option<(PathBuf, File)>,
    up_to: u64,
    #[cfg(test)]
    syncs: u64,
    /// A failed sync is not tried again: the kernel may have dropped the pages.
    failed: Option<LedgerError>,
}

/// What is known to be on the disk.
pub(super) struct Synced(Mutex<State>);

impl Synced {
    /// Of a file, or of none: then nothing is waited for.
    pub(super) fn of(store: Option<(PathBuf, File)>) -> Self {
        Self(Mutex::new(State { store, ..State::default() }))
    }

    /// Waits until the file is on the disk up to `end`; `written` says how far it is written now.
    pub(super) fn up_to(&self, end: u64, written: impl Fn() -> u64) -> Result<(), LedgerError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        // Whoever waited for the lock may find its line among those that the one before synced.
        if state.up_to >= end {
            return Ok(());
        }
        let reached = written();
        let Some((path, file)) = &state.store else { return Ok(()) };
        if let Err(e) = file.sync_data() {
            let error = LedgerError::io(path, "synced", &e);
            state.failed = Some(error.clone());
            return Err(error);
        }
        state.up_to = reached;
        #[cfg(test)]
        {
            state.syncs += 1;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn syncs(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).syncs
    }

    #[cfg(test)]
    pub(super) fn replace(&self, store: Option<(PathBuf, File)>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).store = store;
    }
}

/// What must be on the disk before a call is made.
pub struct Syncing {
    ledger: Arc<Ledger>,
    end: u64,
}

impl Syncing {
    pub(super) fn new(ledger: Arc<Ledger>, end: u64) -> Self {
        Self { ledger, end }
    }

    /// Waits for the disk; a syscall of milliseconds, so not for an async thread.
    ///
    /// # Errors
    /// When the disk refused, now or once before: then the call must not be made.
    pub fn wait(self) -> Result<(), LedgerError> {
        self.ledger.sync_to(self.end)
    }
}
