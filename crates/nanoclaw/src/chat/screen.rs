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
    /// An earlier message was answered before the one that is waited for.
    after_earlier: bool,
    /// The command line of this conversation, for hints.
    command: String,
    paint: Paint,
    /// Whether the cursor stands behind streamed text.
    mid_line: bool,
    /// Whether the reply of this turn has been streamed already.
    streamed: bool,
}

impl Screen {
    pub(super) fn new(json: bool, once: bool) -> Self {
        Self {
            json,
            once,
            at: None,
            after_earlier: false,
            command: "nanoclaw chat".to_owned(),
            paint: Paint::auto(),
            mid_line: false,
            streamed: false,
        }
    }

    /// The command line that hints name.
    pub(super) fn again_by(&mut self, command: String) {
        self.command = command;
    }

    /// Another message is waited for from now on.
    pub(super) fn begin(&mut self) {
        self.after_earlier = false;
    }

    /// A turn was stopped, or the wait for its next attempt; of which message, where that is not
    /// plain.
    pub(super) fn stopped(&self, text: Option<&str>) {
        let told = match text {
            _ if self.once => "(stopped)".to_owned(),
            None => "(stopped; the message is not tried again)".to_owned(),
            Some(text) => format!("(stopped; the message is not tried again: {text})"),
        };
        self.notice(&told);
    }

    /// The chat ends while a message waits.
    pub(super) fn left_in_queue(&self) {
        self.notice(&format!("Your message is kept: {}.", how_kept(&self.command)));
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
        self.after_earlier = true;
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
            self.at = Some(message.clone());
            if message == own && std::mem::take(&mut self.after_earlier) && !self.json {
                self.notice("Now yours:");
            }
        }
        let wanted = self.own(own) || !self.once;
        match (self.json, &self.at) {
            (true, Some(at)) if at != own => {
                let event = json!({"event": "earlier", "message": at,
                    "what": self.event(progress)});
                ui::json_line(&event.to_string());
                ui::flush();
            }
            (true, _) => {
                ui::json_line(&self.event(progress).to_string());
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
                    "cancelled" => self.stopped(None),
                    _ => {
                        let reply = self.with_what_comes(reply, *retry_s);
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

    /// A failure, and what becomes of its message: whoever asked once does not wait.
    fn with_what_comes(&self, reply: &str, retry_s: Option<u64>) -> String {
        let Some(s) = retry_s else { return reply.to_owned() };
        let stop = if reply.ends_with(['.', '!', '?']) { "" } else { "." };
        let comes = if self.once {
            format!("Your message is kept: {}.", how_kept(&self.command))
        } else {
            format!(
                "Your message is kept; trying again in {s} s (meanwhile /queue, /drop and /quit \
                 work; Ctrl-C takes it back)."
            )
        };
        format!("{reply}{stop} {comes}")
    }

    fn event(&self, progress: &Progress) -> Value {
        match progress {
            Progress::TurnFinished { reply, retry_s, .. } => {
                event(progress, &self.with_what_comes(reply, *retry_s))
            }
            other => event(other, ""),
        }
    }
}

/// What becomes of a message that this process leaves behind.
fn how_kept(command: &str) -> String {
    format!(
        "the next `{command}` answers it first, `{command} --queued` shows it, \
         `{command} --drop-queued` takes it back"
    )
}

/// The argument a person would name a tool call by.
fn main_argument(arguments: &str) -> String {
    let value: Value = serde_json::from_str(arguments).unwrap_or(Value::Null);
    let named = ["command", "path", "pattern"].iter().find_map(|k| value.get(k)?.as_str());
    named.map_or_else(|| arguments.to_owned(), str::to_owned)
}

/// As JSON; `reply` is what is said at the end of a turn.
fn event(progress: &Progress, reply: &str) -> Value {
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
        Progress::TurnFinished { turn, message, outcome, tokens, .. } => {
            json!({"event": "turn_finished", "turn": turn, "message": message,
                "outcome": outcome, "reply": reply, "input_tokens": tokens.0,
                "output_tokens": tokens.1})
        }
    }
}
