//! A request's messages → where the conversation stands in a script. Pure.

use super::parse::{Script, Step};
use crate::modelapi::wire::Wire;
use serde_json::Value;

/// What a script needs to know of a conversation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conversation {
    /// The last real words of the user.
    pub(super) user: String,
    /// Answers of the model since.
    pub(super) answers: usize,
    /// Results of the tools called last, in the order of the calls.
    pub(super) results: Vec<String>,
    /// Messages in all; makes ids of calls unique within the conversation.
    pub(super) messages: usize,
}

/// Text out of a `content` that is a string or a list of blocks.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(blocks)) => {
            let texts: Vec<&str> =
                blocks.iter().filter_map(|b| b.get("text").and_then(Value::as_str)).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn str_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Reads the messages of a request; what does not look like one is skipped.
pub(super) fn conversation(request: &Value, wire: Wire) -> Conversation {
    let empty = Vec::new();
    let messages = request.get("messages").and_then(Value::as_array).unwrap_or(&empty);
    let mut now = Conversation { messages: messages.len(), ..Conversation::default() };
    let mut pending: Vec<(String, String)> = Vec::new();
    for message in messages {
        match (str_of(message, "role"), wire) {
            ("assistant", _) => {
                now.answers += 1;
                now.results.clear();
                pending = call_ids(message, wire).map(|id| (id, String::new())).collect();
            }
            ("tool", Wire::OpenAi) => {
                let text = text_of(message.get("content"));
                settle(&mut pending, str_of(message, "tool_call_id"), text);
            }
            ("user", _) => {
                let results = tool_results(message);
                if results.is_empty() {
                    now.user = text_of(message.get("content"));
                    now.answers = 0;
                    pending.clear();
                }
                for (id, text) in results {
                    settle(&mut pending, id, text);
                }
            }
            _ => {}
        }
    }
    now.results = pending.into_iter().map(|(_, text)| text).collect();
    now
}

fn settle(pending: &mut Vec<(String, String)>, id: &str, text: String) {
    match pending.iter_mut().find(|(known, _)| known == id) {
        Some((_, slot)) => *slot = text,
        None => pending.push((id.to_owned(), text)),
    }
}

fn call_ids(message: &Value, wire: Wire) -> impl Iterator<Item = String> + use<'_> {
    let list = match wire {
        Wire::Anthropic => message.get("content"),
        Wire::OpenAi => message.get("tool_calls"),
    };
    let blocks = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    blocks
        .iter()
        .filter(move |b| wire == Wire::OpenAi || str_of(b, "type") == "tool_use")
        .map(|b| str_of(b, "id").to_owned())
}

/// Anthropic's tool results travel in user messages; a message with one is not the user's words.
fn tool_results(message: &Value) -> Vec<(&str, String)> {
    let Some(blocks) = message.get("content").and_then(Value::as_array) else { return Vec::new() };
    blocks
        .iter()
        .filter(|b| str_of(b, "type") == "tool_result")
        .map(|b| (str_of(b, "tool_use_id"), text_of(b.get("content"))))
        .collect()
}

/// The step to play, or the words that say that there is none.
pub(super) fn step<'a>(script: &'a Script, now: &Conversation) -> Result<&'a Step, String> {
    /// As much of the user's text as shows which it was.
    const QUOTED_CHARS: usize = 80;
    let said = now.user.to_lowercase();
    let turn = script
        .turns
        .iter()
        .find(|turn| turn.when.as_ref().is_none_or(|when| said.contains(when.as_str())));
    let quoted: String = now.user.chars().take(QUOTED_CHARS).collect();
    let Some(turn) = turn else {
        return Err(format!("(scripted model) I have no line for {quoted:?}."));
    };
    turn.steps.get(now.answers).ok_or_else(|| {
        format!("(scripted model) I have no line for step {} of {quoted:?}.", now.answers + 1)
    })
}
