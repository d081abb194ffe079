//! A sink that knows what is still on its way: records of two processes about one session must
//! not overtake each other.

use model::{Done, Durability, Record, RecordError, RecordSink};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    /// Numbers of the records without an answer yet; answers come in any order.
    under_way: BTreeSet<u64>,
    next: u64,
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

    /// Waits until everything submitted before this call has been taken. What others go on
    /// submitting is not waited for: a busy session must not hold up another's end.
    ///
    /// # Errors
    /// When the recorder is gone, or does not answer within `limit`.
    pub fn flush(&self, limit: Duration) -> Result<(), RecordError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        let mark = state.next;
        loop {
            if let Some(error) = &state.gone {
                return Err(error.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.under_way.first().is_none_or(|first| *first >= mark) {
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
        let number = {
            let mut state = self.shared.lock();
            let number = state.next;
            state.next += 1;
            state.under_way.insert(number);
            number
        };
        let shared = Arc::clone(&self.shared);
        let answered = move |result: Result<u64, RecordError>| {
            {
                let mut state = shared.lock();
                state.under_way.remove(&number);
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

#[cfg(test)]
mod tests {
    use super::*;
    use model::Body;

    /// Keeps every answer back.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Done>>);

    impl RecordSink for Slow {
        fn submit(&self, _: Record, _: Durability, done: Done) {
            self.0.lock().expect("lock").push(done);
        }
    }

    fn record() -> Record {
        let body = Body::RecorderStopped { records: 0 };
        Record { time_ms: 0, session: None, agent: None, turn: None, body }
    }

    #[test]
    fn a_flush_waits_for_what_came_before_it_and_for_nothing_after() {
        let slow = Arc::new(Slow::default());
        let tracked = Arc::new(Tracked::new(slow.clone()));
        let submit = || tracked.submit(record(), Durability::Ordered, Box::new(drop));
        submit();
        let short = Duration::from_millis(20);
        assert!(tracked.flush(short).is_err(), "the first record has no answer yet");
        let (flushing, busy) = (Arc::clone(&tracked), Arc::clone(&slow));
        let flushed = std::thread::spawn(move || flushing.flush(Duration::from_secs(30)));
        // Another session goes on and on; only the first record is answered.
        for n in 0..100 {
            submit();
            if n == 50 {
                let first = busy.0.lock().expect("lock").remove(0);
                first(Ok(0));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        flushed.join().expect("thread").expect("what came before is answered");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
