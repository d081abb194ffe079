//! Writing records about one session.

use crate::world::now_ms;
use model::{
    AgentName, Body, Done, Durability, MAX_BESIDE_BYTES, MAX_INLINE_BYTES, Record, RecordError,
    RecordSink, RecordSinkExt, SessionId, Sha256Hex, TurnId,
};
use std::sync::Arc;

/// Knows whom the records are about.
#[derive(Clone)]
pub(crate) struct Scribe {
    pub(crate) sink: Arc<dyn RecordSink>,
    pub(crate) session: SessionId,
    pub(crate) agent: AgentName,
}

impl Scribe {
    /// Writes one record and waits as its class demands; returns its index.
    pub(crate) fn write(
        &self,
        turn: Option<&TurnId>,
        body: Body,
        durability: Durability,
    ) -> Result<u64, RecordError> {
        self.sink.append(self.record(turn, body), durability)
    }

    /// Submits one record; `done` hears its index, from any thread.
    pub(crate) fn submit(
        &self,
        turn: Option<&TurnId>,
        body: Body,
        durability: Durability,
        done: Done,
    ) {
        self.sink.submit(self.record(turn, body), durability, done);
    }

    fn record(&self, turn: Option<&TurnId>, body: Body) -> Record {
        Record {
            time_ms: now_ms(),
            session: Some(self.session.clone()),
            agent: Some(self.agent.clone()),
            turn: turn.cloned(),
            body,
        }
    }
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> Sha256Hex {
    let hash = audit::merkle::sha256(bytes);
    Sha256Hex(hash.iter().map(|b| format!("{b:02x}")).collect())
}

/// The beginning of a text that fits into a record's field, cut at a character's border.
pub(crate) fn inline(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_INLINE_BYTES)]
}

/// As [`inline`], for a field whose text the recorder may keep beside the log.
pub(crate) fn whole(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_BESIDE_BYTES)]
}
