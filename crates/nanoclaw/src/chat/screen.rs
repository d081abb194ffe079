//! How a turn looks: streamed text and tool activity, or one JSON object a line.

use crate::ui::{self, Paint, brief, harmless};
use model::MessageId;
use orchestrator::Progress;
use serde_json::{Value, json};

/// Characters of a tool call or its result shown on one line.
const BRIEF: usize = 100;

pub(super) struct Screen {
    json: bool,
    /// One message is asked: standard output is for its answer alone.
    once: bool,
    /// The message that is worked on.
    at: Option<MessageId>,
    paint: Paint,
    /// Whether the cursor stands behind streamed text.
    mid_line: bool,
    /// Whether the reply of this turn has been streamed already.
    streamed: bool,
}

impl Screen {
    pub(super) fn new(json: bool, once: bool) -> Self {
        Self { json, once, at: None, paint: Paint::auto(), mid_line: false, streamed: false }
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
        self.reply_of(!self.once, &format!("{}\n", harmless(text)));
    }

    /// A message from before is answered first.
    pub(super) fn earlier(&mut self, message: &MessageId, text: &str) {
        if self.json {
            let event = json!({"event": "earlier_message", "message": message, "text": text});
            ui::json_line(&event.to_string());
            return;
        }
        let text = brief(text, BRIEF);
        self.notice(&format!("An earlier message is answered first: {text}"));
    }

    /// The message was taken back.
    pub(super) fn withdrawn(&self, message: &MessageId, reason: &str) {
        if self.json {
            let event = json!({"event": "withdrawn", "message": message, "reason": reason});
            ui::json_line(&event.to_string());
            ui::flush();
            return;
        }
        let told = format!("The message is taken back ({reason}); no later chat answers it.");
        ui::note(self.paint.dim(&told));
    }

    /// What was answered: to standard output, unless it is not what was asked for.
    fn reply_of(&self, wanted: bool, text: &str) {
        if wanted {
            ui::out(text);
            ui::flush();
        } else {
            ui::aside(text);
        }
    }

    fn own(&self, own: &MessageId) -> bool {
        self.at.as_ref().is_none_or(|at| at == own)
    }

    /// Shows one event; `own` is the message that is waited for.
    pub(super) fn show(&mut self, progress: &Progress, own: &MessageId) {
        if let Progress::TurnStarted { message, .. } = progress {
            let from_before = self.at.replace(message.clone()).is_some_and(|at| at != *own);
            if from_before && message == own && !self.json {
                self.notice("Now yours:");
            }
        }
        let wanted = self.own(own) || !self.once;
        match (self.json, &self.at) {
            (true, Some(at)) if at != own => {
                let event = json!({"event": "earlier", "message": at,
                    "what": event(progress, self.kept())});
                ui::json_line(&event.to_string());
                ui::flush();
            }
            (true, _) => {
                ui::json_line(&event(progress, self.kept()).to_string());
                ui::flush();
            }
            (false, _) => self.tell(progress, wanted),
        }
    }

    fn tell(&mut self, progress: &Progress, wanted: bool) {
        match progress {
            Progress::TurnStarted { .. } => self.streamed = false,
            Progress::Text(piece) => {
                self.reply_of(wanted, &harmless(piece));
                self.mid_line = !piece.ends_with('\n');
                self.streamed = true;
            }
            Progress::ToolStarted { tool, arguments, .. } => {
                self.end_line(wanted);
                self.streamed = false;
                let what = brief(&main_argument(arguments), BRIEF);
                ui::note(self.paint.dim(&format!("  · {}: {what}", brief(tool, 40))));
            }
            Progress::ToolFinished { ok, summary, .. } => {
                let mark = if *ok { "→" } else { "✗" };
                ui::note(self.paint.dim(&format!("    {mark} {}", brief(summary, BRIEF))));
            }
            Progress::Notice(text) => {
                self.end_line(wanted);
                ui::note(self.paint.dim(&harmless(text)));
            }
            Progress::Halted(text) => {
                self.end_line(wanted);
                ui::note(self.paint.red(&harmless(text)));
            }
            Progress::TurnFinished { outcome, reply, retry_s, .. } => {
                self.end_line(wanted);
                match outcome.as_str() {
                    "done" if self.streamed => {}
                    "done" => self.reply_of(wanted, &format!("{}\n", harmless(reply))),
                    "cancelled" => ui::note(self.paint.dim("(stopped)")),
                    _ => {
                        let reply = with_what_comes(reply, *retry_s, self.kept());
                        ui::note(self.paint.red(&harmless(&reply)));
                    }
                }
            }
        }
    }

    fn end_line(&mut self, wanted: bool) {
        if self.mid_line {
            self.reply_of(wanted, "\n");
            self.mid_line = false;
        }
    }

    /// What becomes of a message that was put back: whoever asked once does not wait.
    fn kept(&self) -> Kept {
        if self.once { Kept::ForNextChat } else { Kept::Waited }
    }
}

/// What becomes of a message that was put back.
#[derive(Clone, Copy)]
enum Kept {
    /// This process tries again.
    Waited,
    /// This process leaves.
    ForNextChat,
}

fn with_what_comes(reply: &str, retry_s: Option<u64>, kept: Kept) -> String {
    match (retry_s, kept) {
        (None, _) => reply.to_owned(),
        (Some(s), Kept::Waited) => {
            format!("{reply} Your message is kept; trying again in {s} s (Ctrl-C stops waiting).")
        }
        (Some(_), Kept::ForNextChat) => format!(
            "{reply} Your message is kept: the next `nanoclaw chat` answers it first, \
             `nanoclaw chat --queued` shows it, `--drop-queued` takes it back."
        ),
    }
}

/// The argument a person would name a tool call by.
fn main_argument(arguments: &str) -> String {
    let value: Value = serde_json::from_str(arguments).unwrap_or(Value::Null);
    let named = ["command", "path", "pattern"].iter().find_map(|k| value.get(k)?.as_str());
    named.map_or_else(|| arguments.to_owned(), str::to_owned)
}

fn event(progress: &Progress, kept: Kept) -> Value {
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
        Progress::TurnFinished { turn, message, outcome, reply, tokens, retry_s } => {
            let reply = with_what_comes(reply, *retry_s, kept);
            json!({"event": "turn_finished", "turn": turn, "message": message,
                "outcome": outcome, "reply": reply, "input_tokens": tokens.0,
                "output_tokens": tokens.1})
        }
    }
}
