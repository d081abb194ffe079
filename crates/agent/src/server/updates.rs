//! `session/update` notifications: what the host is told while a turn runs.

use super::Out;
use crate::cancel::Cancel;
use crate::rpc::{clip, notification};
use crate::tools::{self, Outcome};
use crate::turn::Observer;
use crate::wire::{Block, Message, Role};
use serde_json::{Value, json};

/// Longest part of a tool's output shown to the host; the model gets more.
const MAX_SHOWN_BYTES: usize = 4 << 10;
/// Longest arguments passed on whole.
const MAX_INPUT_BYTES: usize = 64 << 10;

/// Sends the updates of one session.
pub(super) struct Updates {
    out: Out,
    session: String,
    cancel: Option<Cancel>,
}

impl Updates {
    pub(super) fn new(out: Out, session: &str) -> Self {
        Self { out, session: session.to_owned(), cancel: None }
    }

    /// Cancels the turn when nobody listens any more.
    pub(super) fn cancelling(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    fn send(&self, update: &Value) {
        let params = json!({"sessionId": self.session, "update": update});
        let sent = self.out.send(&notification("session/update", &params));
        if let (Err(_), Some(cancel)) = (sent, &self.cancel) {
            cancel.cancel();
        }
    }

    fn chunk(&self, kind: &str, text: &str) {
        self.send(&json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}}));
    }

    /// Tells one message of an earlier time again.
    pub(super) fn replay(&self, message: &Message) {
        for block in &message.blocks {
            match (block, message.role) {
                (Block::Text { text }, Role::User) => self.chunk("user_message_chunk", text),
                (Block::Text { text }, Role::Assistant) => self.chunk("agent_message_chunk", text),
                (Block::ToolUse { id, name, input }, _) => self.tool_started(id, name, input),
                (Block::ToolResult { id, ok, text }, _) => {
                    let outcome = Outcome { ok: *ok, text: text.clone(), bytes: text.len() as u64 };
                    self.tool_finished(id, &outcome);
                }
            }
        }
    }
}

impl Observer for Updates {
    fn text(&self, piece: &str) {
        self.chunk("agent_message_chunk", piece);
    }

    fn tool_started(&self, id: &str, name: &str, input: &Value) {
        let whole = input.to_string();
        let cut = json!({"cut": clip(&whole, MAX_INPUT_BYTES), "bytes": whole.len()});
        self.send(&json!({
            "sessionUpdate": "tool_call",
            "toolCallId": id,
            "title": tools::title(name, input),
            "kind": tools::kind(name),
            "status": "in_progress",
            "rawInput": if whole.len() <= MAX_INPUT_BYTES { input } else { &cut },
            "_meta": {"nanoclaw": {"tool": name}},
        }));
    }

    fn tool_finished(&self, id: &str, outcome: &Outcome) {
        let text = clip(&outcome.text, MAX_SHOWN_BYTES);
        self.send(&json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": id,
            "status": if outcome.ok { "completed" } else { "failed" },
            "content": [{"type": "content", "content": {"type": "text", "text": text}}],
            "_meta": {"nanoclaw": {"bytes": outcome.bytes}},
        }));
    }
}
