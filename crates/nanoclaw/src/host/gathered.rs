//! What an agent says during a turn: its reply, and its tool calls as it tells them.

use super::REPLY_BYTES_MAX;
use crate::scribe::{Scribe, sha256_hex, whole};
use agent::client::{CancelHandle, Update};
use model::{Body, Durability, TurnId};
use orchestrator::Progress;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Collects the reply of a turn and puts its tool calls on record.
pub(super) struct Gathered<'a> {
    scribe: &'a Scribe,
    turn: &'a TurnId,
    cancel: CancelHandle,
    on: &'a mut dyn FnMut(Progress),
    pub(super) text: String,
    tools: BTreeMap<String, String>,
    /// Why the turn was stopped, if a record could not be written.
    pub(super) refused: Option<String>,
    cancelled: AtomicBool,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(
        scribe: &'a Scribe,
        turn: &'a TurnId,
        cancel: CancelHandle,
        on: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self {
            scribe,
            turn,
            cancel,
            on,
            text: String::new(),
            tools: BTreeMap::new(),
            refused: None,
            cancelled: AtomicBool::new(false),
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Text(piece) => {
                if self.text.len() + piece.len() <= REPLY_BYTES_MAX {
                    self.text.push_str(&piece);
                }
                (self.on)(Progress::Text(piece));
            }
            Update::ToolStarted { id, tool, arguments_json, .. } => {
                // What is said before a tool call is talk, not the reply.
                self.text.clear();
                self.tools.insert(id.clone(), tool.clone());
                self.record(Body::ToolCalled {
                    call: id.clone(),
                    tool: tool.clone(),
                    arguments: whole(&arguments_json).to_owned(),
                    arguments_sha256: sha256_hex(arguments_json.as_bytes()),
                });
                (self.on)(Progress::ToolStarted { id, tool, arguments: arguments_json });
            }
            Update::ToolFinished { id, ok, summary, bytes } => {
                let tool = self.tools.remove(&id).unwrap_or_default();
                self.record(Body::ToolFinished {
                    call: id.clone(),
                    tool,
                    ok,
                    bytes,
                    summary: whole(&summary).to_owned(),
                });
                (self.on)(Progress::ToolFinished { id, ok, summary, bytes });
            }
        }
    }

    /// A turn whose records cannot be written is stopped.
    fn record(&mut self, body: Body) {
        if let Err(e) = self.scribe.write(Some(self.turn), body, Durability::Ordered) {
            self.refused.get_or_insert_with(|| format!("The turn was stopped, for {e}."));
            if !self.cancelled.swap(true, Ordering::SeqCst) {
                self.cancel.cancel();
            }
        }
    }
}
