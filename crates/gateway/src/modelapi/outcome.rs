//! The `ModelResponse` that follows every `ModelRequest`, written even when a task is torn down.

use crate::counters::Counters;
use crate::scribe::Scribe;
use crate::usage::Usage;
use aws_lc_rs::digest::{Context, SHA256, digest};
use model::{Body, Sha256Hex, TurnId};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

/// SHA-256 as lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> Sha256Hex {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> Sha256Hex {
    let mut out = String::with_capacity(2 * bytes.len());
    for b in bytes {
        // Writing into a String cannot fail.
        let _ = write!(out, "{b:02x}");
    }
    Sha256Hex(out)
}

/// Gathers what is known of an answer; recorded when dropped.
pub(crate) struct Outcome {
    scribe: Arc<Scribe>,
    turn: Option<TurnId>,
    model: String,
    started: Instant,
    digest: Context,
    bytes: u64,
    /// Status of the last answer; 0 when there was none.
    pub(crate) status: u16,
    pub(crate) usage: Usage,
    /// Until someone says otherwise the agent hung up.
    pub(crate) error: Option<String>,
}

impl Outcome {
    pub(crate) fn new(scribe: Arc<Scribe>, model: String) -> Self {
        Self {
            turn: scribe.turn.get(),
            scribe,
            model,
            started: Instant::now(),
            digest: Context::new(&SHA256),
            bytes: 0,
            status: 0,
            usage: Usage::default(),
            error: Some("the agent hung up before the answer was complete".into()),
        }
    }

    /// Counts and hashes bytes of the answer as they came from upstream.
    pub(crate) fn saw(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Counters::add(&self.scribe.counters.bytes_down, bytes.len() as u64);
    }

    /// The answer was passed on completely.
    pub(crate) fn complete(&mut self) {
        self.error = None;
    }

    /// The answer, or the lack of one, was reported to the agent as an error.
    pub(crate) fn failed(&mut self, why: &str) {
        self.error = Some(why.chars().take(model::MAX_INLINE_BYTES / 4).collect());
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let counters = &self.scribe.counters;
        Counters::add(&counters.tokens_in, self.usage.input);
        Counters::add(&counters.tokens_out, self.usage.output);
        let body = Body::ModelResponse {
            model: std::mem::take(&mut self.model),
            status: self.status,
            bytes: self.bytes,
            sha256: hex(self.digest.clone().finish().as_ref()),
            input_tokens: self.usage.input,
            output_tokens: self.usage.output,
            duration_ms: self.started.elapsed().as_millis() as u64,
            cost_micro_usd: None,
            error: self.error.take(),
        };
        self.scribe.note(self.turn.take(), body);
    }
}
