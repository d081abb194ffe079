//! How a turn looks: streamed text and tool activity, or one JSON object a line.

use crate::ui::{self, Paint, brief, harmless};
use model::MessageId;
use orchestrator::Progress;
use serde_json::{Value, json};

/// Characters of a tool call or its result shown on one line.
const BRIEF: usize = 100;

pub(super) struct Screen {
    json: bool,
    paint: Paint,
    /// Whether the cursor stands behind streamed text.
    mid_line: bool,
    /// Whether the reply of this turn has been streamed already.
    streamed: bool,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self { json, paint: Paint::auto(), mid_line: false, streamed: false }
    }

    /// Something for the person that is not a reply.
    pub(super) fn notice(&self, text: &str) {
        if self.json {
            ui::json_line(&json!({"event": "notice", "text": text}).to_string());
        } else {
            ui::note(self.paint.dim(text));
        }
    }

    /// The message is committed. People need not be told; programs may measure from here.
    pub(super) fn received(&self, message: &MessageId) {
        if self.json {
            ui::json_line(&json!({"event": "received", "message": message}).to_string());
            ui::flush();
        }
    }

    /// An earlier exchange.
    pub(super) fn past(&self, text: &str, reply: &str) {
        self.notice(&format!("you> {}\n  … {}", brief(text, BRIEF), brief(reply, BRIEF)));
    }

    /// A reply from before.
    pub(super) fn late(&self, text: &str, perhaps_seen: bool) {
        if self.json {
            let event = json!({"event": "reply", "text": text, "late": true,
                "perhaps_repeated": perhaps_seen});
            ui::json_line(&event.to_string());
            return;
        }
        let label = if perhaps_seen { "from before, perhaps shown already" } else { "from before" };
        ui::note(self.paint.dim(&format!("({label})")));
        ui::line(harmless(text));
    }

    /// Shows one event; `own` is the message that is waited for.
    pub(super) fn show(&mut self, progress: &Progress, own: &MessageId) {
        if self.json {
            ui::json_line(&event(progress).to_string());
            ui::flush();
            return;
        }
        match progress {
            Progress::TurnStarted { message, .. } => {
                self.streamed = false;
                if message != own {
                    self.notice("(an earlier message is answered first)");
                }
            }
            Progress::Text(piece) => {
                ui::out(&harmless(piece));
                ui::flush();
                self.mid_line = !piece.ends_with('\n');
                self.streamed = true;
            }
            Progress::ToolStarted { tool, arguments, .. } => {
                self.end_line();
                self.streamed = false;
                let what = brief(&main_argument(arguments), BRIEF);
                ui::note(self.paint.dim(&format!("  · {}: {what}", brief(tool, 40))));
            }
            Progress::ToolFinished { ok, summary, .. } => {
                let mark = if *ok { "→" } else { "✗" };
                ui::note(self.paint.dim(&format!("    {mark} {}", brief(summary, BRIEF))));
            }
            Progress::Notice(text) => {
                self.end_line();
                ui::note(self.paint.dim(&harmless(text)));
            }
            Progress::Halted(text) => {
                self.end_line();
                ui::note(self.paint.red(&harmless(text)));
            }
            Progress::TurnFinished { outcome, reply, .. } => self.finish(outcome, reply),
        }
    }

    fn end_line(&mut self) {
        if self.mid_line {
            ui::line("");
            self.mid_line = false;
        }
    }

    fn finish(&mut self, outcome: &str, reply: &str) {
        self.end_line();
        match outcome {
            "done" if self.streamed => {}
            "done" => ui::line(harmless(reply)),
            "cancelled" => ui::note(self.paint.dim("(stopped)")),
            _ => ui::note(self.paint.red(&harmless(reply))),
        }
    }
}

/// The argument a person would name a tool call by.
fn main_argument(arguments: &str) -> String {
    let value: Value = serde_json::from_str(arguments).unwrap_or(Value::Null);
    let named = ["command", "path", "pattern"].iter().find_map(|k| value.get(k)?.as_str());
    named.map_or_else(|| arguments.to_owned(), str::to_owned)
}

fn event(progress: &Progress) -> Value {
    match progress {
        Progress::TurnStarted { turn, message } => {
            json!({"event": "turn_started", "turn": turn, "message": message})
        }
        Progress::Text(text) => json!({"event": "text", "text": text}),
        Progress::ToolStarted { id, tool, arguments } => {
            json!({"event": "tool_started", "id": id, "tool": tool, "arguments": arguments})
        }
        Progress::ToolFinished { id, ok, summary, bytes } => {
            json!({"event": "tool_finished", "id": id, "ok": ok, "summary": summary,
                "bytes": bytes})
        }
        Progress::Notice(text) => json!({"event": "notice", "text": text}),
        Progress::Halted(text) => json!({"event": "halted", "text": text}),
        Progress::TurnFinished { turn, message, outcome, reply, tokens } => {
            json!({"event": "turn_finished", "turn": turn, "message": message,
                "outcome": outcome, "reply": reply, "input_tokens": tokens.0,
                "output_tokens": tokens.1})
        }
    }
}
