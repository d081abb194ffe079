//! What an agent tells about a running turn, made out of `session/update` and permission
//! requests. Lenient: an update that is not known is not for us.

use crate::rpc::{clip, one_line};
use serde_json::{Value, json};

/// Longest `arguments_json` and `summary` handed on; a tool's whole output is the agent's matter.
const MAX_DETAIL_BYTES: usize = 64 << 10;
/// Longest title, id or name handed on.
const MAX_LABEL_BYTES: usize = 512;
/// Most options a permission request may have.
const MAX_OPTIONS: usize = 16;

/// Something that happened in a turn. All text is the agent's: data, not trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A piece of the reply, in order.
    Text(String),
    /// A tool call began.
    ToolStarted {
        /// The agent's id of the call.
        id: String,
        /// For people.
        title: String,
        /// The tool's name, or the protocol's kind of it where the agent gives no name.
        tool: String,
        /// Its arguments as JSON, cut to 64 KiB.
        arguments_json: String,
    },
    /// A tool call ended.
    ToolFinished {
        /// The agent's id of the call.
        id: String,
        /// Whether it succeeded.
        ok: bool,
        /// The beginning of its output, cut to 64 KiB.
        summary: String,
        /// Size of the whole output in bytes, as far as the agent tells.
        bytes: u64,
    },
}

/// An agent asks whether it may do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionRequest {
    /// For people.
    pub title: String,
    /// The tool's name or kind.
    pub tool: String,
    /// The arguments as JSON, cut to 64 KiB.
    pub arguments_json: String,
    /// What may be answered.
    pub options: Vec<PermissionOption>,
}

/// One possible answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionOption {
    /// What to send back.
    pub id: String,
    /// For people.
    pub name: String,
    /// `allow_once`, `allow_always`, `reject_once`, `reject_always`.
    pub kind: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermissionAnswer {
    /// Allowed this once: the agent's `allow_once` option, or denied if it offers none.
    AllowOnce,
    /// No.
    Deny,
    /// The turn is being cancelled.
    Cancelled,
}

impl PermissionRequest {
    /// The result to send: an answer the agent did not offer becomes `cancelled`, which no agent
    /// may take for a yes.
    pub(super) fn outcome(&self, answer: &PermissionAnswer) -> Value {
        let kind = match answer {
            PermissionAnswer::AllowOnce => "allow_once",
            PermissionAnswer::Deny => "reject_once",
            PermissionAnswer::Cancelled => "",
        };
        match self.options.iter().find(|option| option.kind == kind) {
            Some(option) => json!({"outcome": {"outcome": "selected", "optionId": option.id}}),
            None => json!({"outcome": {"outcome": "cancelled"}}),
        }
    }
}

/// Reads a permission request.
pub(super) fn permission(params: &Value) -> PermissionRequest {
    let call = params.get("toolCall").unwrap_or(&Value::Null);
    let options = params.get("options").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    PermissionRequest {
        title: label(call, "title"),
        tool: tool_name(call),
        arguments_json: arguments(call),
        options: options
            .iter()
            .take(MAX_OPTIONS)
            .map(|option| PermissionOption {
                id: option.get("optionId").and_then(Value::as_str).unwrap_or("").to_owned(),
                name: label(option, "name"),
                kind: label(option, "kind"),
            })
            .collect(),
    }
}

/// Reads the parameters of one `session/update` and hands on what it holds.
pub(super) fn read(params: &Value, on_update: &mut dyn FnMut(Update)) {
    let Some(update) = params.get("update") else { return };
    match update.get("sessionUpdate").and_then(Value::as_str) {
        Some("agent_message_chunk") => {
            if let Some(text) = update.pointer("/content/text").and_then(Value::as_str) {
                on_update(Update::Text(text.to_owned()));
            }
        }
        Some("tool_call") => {
            on_update(Update::ToolStarted {
                id: label(update, "toolCallId"),
                title: label(update, "title"),
                tool: tool_name(update),
                arguments_json: arguments(update),
            });
            finished(update, on_update);
        }
        Some("tool_call_update") => finished(update, on_update),
        _ => {}
    }
}

fn finished(update: &Value, on_update: &mut dyn FnMut(Update)) {
    let ok = match update.get("status").and_then(Value::as_str) {
        Some("completed") => true,
        Some("failed") => false,
        _ => return,
    };
    let text = content_text(update);
    let told = update.pointer("/_meta/nanoclaw/bytes").and_then(Value::as_u64);
    on_update(Update::ToolFinished {
        id: label(update, "toolCallId"),
        ok,
        bytes: told.unwrap_or(text.len() as u64),
        summary: clip(&text, MAX_DETAIL_BYTES).to_owned(),
    });
}

/// The text blocks of `content`, one after the other; `rawOutput` where there are none.
fn content_text(update: &Value) -> String {
    let blocks = update.get("content").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let texts: Vec<&str> = blocks
        .iter()
        .filter_map(|block| block.pointer("/content/text").and_then(Value::as_str))
        .collect();
    match update.get("rawOutput") {
        Some(Value::String(text)) if texts.is_empty() => text.clone(),
        Some(raw) if texts.is_empty() && !raw.is_null() => raw.to_string(),
        _ => texts.join("\n"),
    }
}

fn arguments(call: &Value) -> String {
    let raw = call.get("rawInput").filter(|raw| !raw.is_null());
    raw.map_or_else(String::new, |raw| clip(&raw.to_string(), MAX_DETAIL_BYTES).to_owned())
}

fn tool_name(call: &Value) -> String {
    let named = call.pointer("/_meta/nanoclaw/tool").and_then(Value::as_str);
    named.map_or_else(|| label(call, "kind"), |name| one_line(name, MAX_LABEL_BYTES))
}

fn label(value: &Value, field: &str) -> String {
    one_line(value.get(field).and_then(Value::as_str).unwrap_or(""), MAX_LABEL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{Incoming, parse};
    use testkit::fuzz;

    const UPDATE: &str = r#"{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":"tool_call","toolCallId":"t","title":"a","kind":"edit","status":"completed","rawInput":{"a":1},"content":[{"type":"content","content":{"type":"text","text":"done"}}]}}}"#;
    const ASK: &str = r#"{"jsonrpc":"2.0","method":"m","params":{"toolCall":{"title":"x"},"options":[{"optionId":"y","name":"Yes","kind":"allow_once"}]}}"#;

    #[test]
    fn fuzz_acp_updates() {
        let words: [&[u8]; 6] = [
            b"\"agent_message_chunk\"",
            b"\"tool_call_update\"",
            b"\"failed\"",
            b"\"rawOutput\":",
            b"\\n",
            b"\"reject_once\"",
        ];
        let seeds = [UPDATE.as_bytes(), ASK.as_bytes()];
        fuzz::with_words("acp-updates", &seeds, &words, |bytes, _| {
            let Ok(Incoming::Notification { params, .. }) = parse(bytes) else { return 0 };
            let mut kinds = Vec::new();
            let bounded = |texts: &[&String]| {
                let one_line =
                    |t: &&String| t.len() <= MAX_LABEL_BYTES && !t.contains(char::is_control);
                assert!(texts.iter().all(one_line));
            };
            read(&params, &mut |update| match update {
                Update::Text(_) => kinds.push(1),
                Update::ToolStarted { id, title, tool, arguments_json } => {
                    bounded(&[&id, &title, &tool]);
                    kinds.push(if arguments_json.is_empty() { 2 } else { 3 });
                }
                Update::ToolFinished { id, ok, summary, bytes } => {
                    bounded(&[&id]);
                    assert!(summary.len() <= MAX_DETAIL_BYTES);
                    kinds.push(4 + u8::from(ok) + 2 * u8::from(bytes > 0));
                }
            });
            // Nobody says yes by saying no.
            let asked = permission(&params);
            for (answer, kind) in [
                (PermissionAnswer::AllowOnce, "allow_once"),
                (PermissionAnswer::Deny, "reject_once"),
                (PermissionAnswer::Cancelled, ""),
            ] {
                let outcome = asked.outcome(&answer);
                if let Some(id) = outcome.pointer("/outcome/optionId").and_then(Value::as_str) {
                    let named = |o: &PermissionOption| o.id == id && o.kind == kind;
                    assert!(asked.options.iter().any(named));
                }
            }
            fuzz::outcome((kinds, asked.options.len()))
        });
    }

    #[test]
    fn what_is_handed_on_is_bounded() {
        let long = "é\n".repeat(100_000);
        let update = json!({"update": {"sessionUpdate": "tool_call", "toolCallId": long, "title": long,
            "kind": long, "status": "failed", "rawInput": long, "rawOutput": long}});
        let mut seen = Vec::new();
        read(&update, &mut |u| seen.push(u));
        let [
            Update::ToolStarted { id, title, tool, arguments_json },
            Update::ToolFinished { ok: false, summary, bytes, .. },
        ] = seen.as_slice()
        else {
            panic!("{} updates", seen.len())
        };
        assert!([id, title, tool].iter().all(|t| t.len() <= MAX_LABEL_BYTES && !t.contains('\n')));
        assert!(arguments_json.len() <= MAX_DETAIL_BYTES && summary.len() <= MAX_DETAIL_BYTES);
        assert_eq!(*bytes, 300_000);
    }
}
