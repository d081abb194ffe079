//! A sink that knows what is still on its way: records of two processes about one session must
//! not overtake each other.

use model::{Done, Durability, Record, RecordError, RecordSink};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    under_way: u64,
    gone: Option<RecordError>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what was submitted to the sink below and not answered yet.
pub struct Tracked {
    below: Arc<dyn RecordSink>,
    shared: Arc<Shared>,
}

impl Tracked {
    /// Over `below`.
    #[must_use]
    pub fn new(below: Arc<dyn RecordSink>) -> Self {
        Self { below, shared: Arc::default() }
    }

    /// Waits until everything submitted so far by anyone has been taken.
    ///
    /// # Errors
    /// When the recorder is gone, or does not answer within `limit`.
    pub fn flush(&self, limit: Duration) -> Result<(), RecordError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(error) = &state.gone {
                return Err(error.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.under_way == 0 {
                return Ok(());
            }
            if left.is_zero() {
                return Err(RecordError::Gone { cause: "it does not answer".into() });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the recorder was found gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.lock().gone.is_some()
    }
}

impl RecordSink for Tracked {
    fn submit(&self, record: Record, durability: Durability, done: Done) {
        self.shared.lock().under_way += 1;
        let shared = Arc::clone(&self.shared);
        let answered = move |result: Result<u64, RecordError>| {
            {
                let mut state = shared.lock();
                state.under_way = state.under_way.saturating_sub(1);
                if let Err(error @ (RecordError::Gone { .. } | RecordError::Disk { .. })) = &result
                {
                    state.gone = Some(error.clone());
                }
            }
            shared.changed.notify_all();
            done(result);
        };
        self.below.submit(record, durability, Box::new(answered));
    }
}
