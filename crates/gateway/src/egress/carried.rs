//! What one connection or request carried; recorded as `EgressResult` when dropped, however it
//! ended.

use super::request::Origin;
use crate::counters::Counters;
use crate::door::DoorState;
use crate::scribe::Scribe;
use aws_lc_rs::digest::{Context, SHA256};
use model::{Body, Sha256Hex, TurnId};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The bodies of a request and its answer.
struct Digests {
    sent: Context,
    received: Context,
}

#[derive(Default)]
struct Ending {
    status: Option<u16>,
    error: Option<String>,
    digests: Option<Digests>,
}

/// The account of one intent.
pub(crate) struct Carried {
    scribe: Arc<Scribe>,
    turn: Option<TurnId>,
    host: String,
    port: u16,
    started: Instant,
    sent: AtomicU64,
    sent_head: AtomicU64,
    received: AtomicU64,
    ending: Mutex<Ending>,
}

impl Carried {
    /// An account of bytes nobody looks at.
    pub(crate) fn connection(door: &DoorState, to: &Origin) -> Self {
        Self {
            scribe: Arc::clone(&door.scribe),
            turn: door.scribe.turn.get(),
            host: to.host.to_string(),
            port: to.port,
            started: Instant::now(),
            sent: AtomicU64::new(0),
            sent_head: AtomicU64::new(0),
            received: AtomicU64::new(0),
            ending: Mutex::default(),
        }
    }

    /// An account of a request's and an answer's body.
    pub(crate) fn bodies(door: &DoorState, to: &Origin) -> Self {
        let carried = Self::connection(door, to);
        let digests = Digests { sent: Context::new(&SHA256), received: Context::new(&SHA256) };
        carried.lock().digests = Some(digests);
        carried
    }

    fn lock(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how it failed; the first word counts.
    pub(crate) fn fail(&self, why: impl Into<String>) {
        self.lock().error.get_or_insert(why.into());
    }

    /// Says what the server answered.
    pub(crate) fn answered(&self, status: u16) {
        self.lock().status = Some(status);
    }

    /// Says how large the request's line and fields are that go out.
    pub(crate) fn begun(&self, head_bytes: u64) {
        self.sent_head.store(head_bytes, Ordering::Relaxed);
    }

    /// From here on it is no longer bodies that pass.
    pub(crate) fn upgraded(&self) {
        self.lock().digests = None;
    }

    /// Counts bytes that went out.
    pub(crate) fn sent(&self, bytes: &[u8]) {
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Counters::add(&self.scribe.counters.bytes_up, bytes.len() as u64);
        if let Some(digests) = &mut self.lock().digests {
            digests.sent.update(bytes);
        }
    }

    /// Counts bytes that came back.
    pub(crate) fn received(&self, bytes: &[u8]) {
        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Counters::add(&self.scribe.counters.bytes_down, bytes.len() as u64);
        if let Some(digests) = &mut self.lock().digests {
            digests.received.update(bytes);
        }
    }

    /// How many bytes moved, both ways.
    pub(crate) fn moved(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed)
    }
}

fn hex(context: Context) -> Sha256Hex {
    let mut out = String::with_capacity(64);
    for b in context.finish().as_ref() {
        // Writing into a String cannot fail.
        let _ = write!(out, "{b:02x}");
    }
    Sha256Hex(out)
}

impl Drop for Carried {
    fn drop(&mut self) {
        let ending = std::mem::take(&mut *self.lock());
        let (sent_sha256, received_sha256) =
            ending.digests.map(|d| (hex(d.sent), hex(d.received))).unzip();
        let body = Body::EgressResult {
            host: std::mem::take(&mut self.host),
            port: self.port,
            status: ending.status,
            sent: self.sent.load(Ordering::Relaxed),
            sent_head: self.sent_head.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            sent_sha256,
            received_sha256,
            duration_ms: self.started.elapsed().as_millis() as u64,
            error: ending.error.map(|e| e.chars().take(model::MAX_INLINE_BYTES / 4).collect()),
        };
        self.scribe.note(self.turn.take(), body);
    }
}
