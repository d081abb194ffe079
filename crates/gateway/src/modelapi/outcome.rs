//! The `ModelResponse` that follows every `ModelRequest`, written even when a task is torn down.

use crate::counters::Counters;
use crate::scribe::Scribe;
use crate::usage::{Reservation, Usage};
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
    /// Whether a byte of some request may have left: before that nobody can charge for anything.
    pub(crate) begun: bool,
    bill: Option<Reservation>,
    end: End,
}

enum End {
    /// Until someone says otherwise the agent hung up.
    HungUp,
    Complete,
    Failed(String),
}

impl Outcome {
    pub(crate) fn new(scribe: Arc<Scribe>, model: String, bill: Option<Reservation>) -> Self {
        Self {
            turn: scribe.turn.get(),
            scribe,
            model,
            started: Instant::now(),
            digest: Context::new(&SHA256),
            bytes: 0,
            status: 0,
            usage: Usage::default(),
            begun: false,
            bill,
            end: End::HungUp,
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
        self.end = End::Complete;
    }

    /// The answer, or the lack of one, was reported to the agent as an error.
    pub(crate) fn failed(&mut self, why: &str) {
        self.end = End::Failed(why.chars().take(model::MAX_INLINE_BYTES / 4).collect());
    }

    /// Replaces what was reserved by what was used; the cost in micro-USD, if it is known.
    fn settle(&mut self) -> Option<u64> {
        let bill = self.bill.take()?;
        let most = bill.estimate();
        let answered = (200..300).contains(&self.status);
        match self.end {
            End::Complete if !self.usage.is_none() => bill.settle(self.usage, false),
            End::HungUp if !self.begun => bill.settle(Usage::default(), false),
            // Refused or not reached: nobody charges for that.
            End::Failed(_) if !answered => bill.settle(Usage::default(), false),
            // Counts come last, and a provider may go on writing for nobody (Anthropic's first
            // event counts one token): what was set aside is what it may have cost.
            _ => {
                let mut usage = if self.usage.prompt() == 0 { most } else { self.usage };
                usage.output = self.usage.output.max(most.output);
                bill.settle(usage, true)
            }
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let counters = &self.scribe.counters;
        Counters::add(&counters.tokens_in, self.usage.prompt());
        Counters::add(&counters.tokens_out, self.usage.output);
        let cost_micro_usd = self.settle();
        let error = match std::mem::replace(&mut self.end, End::Complete) {
            End::Complete => None,
            End::HungUp => Some("the agent hung up before the answer was complete".into()),
            End::Failed(why) => Some(why),
        };
        let body = Body::ModelResponse {
            model: std::mem::take(&mut self.model),
            status: self.status,
            bytes: self.bytes,
            sha256: hex(self.digest.clone().finish().as_ref()),
            input_tokens: self.usage.prompt(),
            output_tokens: self.usage.output,
            duration_ms: self.started.elapsed().as_millis() as u64,
            cost_micro_usd,
            error,
        };
        self.scribe.note(self.turn.take(), body);
    }
}
