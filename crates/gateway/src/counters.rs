//! What went through a door, for the session's closing record.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Live counters; relaxed, for they are statistics and order nothing.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) bytes_up: AtomicU64,
    pub(crate) bytes_down: AtomicU64,
    pub(crate) tokens_in: AtomicU64,
    pub(crate) tokens_out: AtomicU64,
    pub(crate) door_connections: AtomicU64,
    pub(crate) door_up: AtomicU64,
    pub(crate) door_unread: AtomicU64,
    pub(crate) door_down: AtomicU64,
}

/// A snapshot of a door's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Requests that were read completely enough to be judged.
    pub requests: u64,
    /// Requests and connections that were refused.
    pub refused: u64,
    /// Bytes sent upstream (bodies and tunnels).
    pub bytes_up: u64,
    /// Bytes that came back.
    pub bytes_down: u64,
    /// Tokens of prompts, as the providers counted them.
    pub tokens_in: u64,
    /// Tokens of answers, as the providers counted them.
    pub tokens_out: u64,
    /// Connections from the sandbox.
    pub door_connections: u64,
    /// Bytes that were read from them, whatever they meant.
    pub door_up: u64,
    /// Bytes that were sent on them and never read.
    pub door_unread: u64,
    /// Bytes that were written to them.
    pub door_down: u64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: get(&self.requests),
            refused: get(&self.refused),
            bytes_up: get(&self.bytes_up),
            bytes_down: get(&self.bytes_down),
            tokens_in: get(&self.tokens_in),
            tokens_out: get(&self.tokens_out),
            door_connections: get(&self.door_connections),
            door_up: get(&self.door_up),
            door_unread: get(&self.door_unread),
            door_down: get(&self.door_down),
        }
    }
}

impl Counts {
    /// As the closing record's `counts` wants it.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, u64> {
        [
            ("requests", self.requests),
            ("refused", self.refused),
            ("bytes_up", self.bytes_up),
            ("bytes_down", self.bytes_down),
            ("tokens_in", self.tokens_in),
            ("tokens_out", self.tokens_out),
            ("door_connections", self.door_connections),
            ("door_up", self.door_up),
            ("door_unread", self.door_unread),
            ("door_down", self.door_down),
        ]
        .into_iter()
        .map(|(name, n)| (name.to_owned(), n))
        .collect()
    }
}
