//! A place for records that a test can look into, and that can be told to fail.

use model::{Done, Durability, Record, RecordError, RecordSink};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps every record; optionally refuses from the n-th on, as a full disk would.
#[derive(Debug, Default)]
pub struct MemorySink {
    records: Mutex<Vec<(Record, Durability)>>,
    fail_from: Option<usize>,
}

impl MemorySink {
    /// Takes everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the first `count` records and refuses all later ones.
    #[must_use]
    pub fn failing_after(count: usize) -> Self {
        Self { fail_from: Some(count), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Record, Durability)>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was taken so far, in order.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.lock().iter().map(|(record, _)| record.clone()).collect()
    }

    /// The same, with how each was asked to be written.
    #[must_use]
    pub fn submissions(&self) -> Vec<(Record, Durability)> {
        self.lock().clone()
    }

    /// The kinds of what was taken, in order.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        self.lock().iter().map(|(record, _)| record.body.kind()).collect()
    }
}

impl RecordSink for MemorySink {
    fn submit(&self, record: Record, durability: Durability, done: Done) {
        let mut records = self.lock();
        let index = records.len();
        if self.fail_from.is_some_and(|from| index >= from) {
            drop(records);
            return done(Err(RecordError::Disk { cause: "the test said so".into() }));
        }
        records.push((record, durability));
        // `done` may submit again.
        drop(records);
        done(Ok(index as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Body, RecordSinkExt};

    #[test]
    fn keeps_order_and_fails_from_the_nth_on() {
        let sink = MemorySink::failing_after(2);
        let record = |n| Record {
            time_ms: n,
            session: None,
            agent: None,
            turn: None,
            body: Body::RecorderStopped { records: n },
        };
        assert_eq!(sink.append(record(0), Durability::Durable), Ok(0));
        assert_eq!(sink.append(record(1), Durability::Ordered), Ok(1));
        for _ in 0..2 {
            assert!(sink.append(record(2), Durability::Ordered).is_err());
        }
        assert_eq!(sink.records().iter().map(|r| r.time_ms).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(sink.kinds(), ["recorder_stopped"; 2]);
    }
}
