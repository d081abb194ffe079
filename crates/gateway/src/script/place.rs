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

/// One entry of a conversation, in any format.
enum Said {
    /// The model's, with the ids of the calls it made.
    Model(Vec<String>),
    /// The user's own words.
    User(String),
    /// Results of calls, by id.
    Results(Vec<(String, String)>),
}

/// Reads the messages of a request; what does not look like one is skipped.
pub(super) fn conversation(request: &Value, wire: Wire) -> Conversation {
    let key = match wire {
        Wire::Anthropic | Wire::OpenAi => "messages",
        Wire::Responses => "input",
        Wire::Gemini => "contents",
    };
    let list = match request.get(key) {
        Some(Value::Array(list)) => list.as_slice(),
        // Responses take a plain text for a whole conversation, Gemini one entry for a list.
        Some(Value::String(text)) => {
            return Conversation { user: text.clone(), messages: 1, ..Conversation::default() };
        }
        Some(one @ Value::Object(_)) => std::slice::from_ref(one),
        _ => &[],
    };
    let mut now = Conversation { messages: list.len(), ..Conversation::default() };
    let mut pending: Vec<(String, String)> = Vec::new();
    let mut model_spoke = false;
    for entry in list {
        let said = match wire {
            Wire::Anthropic => anthropic(entry),
            Wire::OpenAi => openai(entry),
            Wire::Responses => responses(entry),
            Wire::Gemini => gemini(entry),
        };
        // In Responses one answer is several entries in a row.
        let goes_on = wire == Wire::Responses && model_spoke;
        match said {
            Some(Said::Model(calls)) => {
                if !goes_on {
                    now.answers += 1;
                    pending.clear();
                }
                pending.extend(calls.into_iter().map(|id| (id, String::new())));
                model_spoke = true;
            }
            Some(Said::User(text)) => {
                (now.user, now.answers) = (text, 0);
                pending.clear();
                model_spoke = false;
            }
            Some(Said::Results(results)) => {
                for (id, text) in results {
                    settle(&mut pending, &id, text);
                }
                model_spoke = false;
            }
            None => {}
        }
    }
    now.results = pending.into_iter().map(|(_, text)| text).collect();
    now
}

fn settle(pending: &mut Vec<(String, String)>, id: &str, text: String) {
    // Calls that share a name, and have no id, are answered in their order.
    let open = pending.iter().position(|(known, slot)| known == id && slot.is_empty());
    match open.or_else(|| pending.iter().position(|(known, _)| known == id)) {
        Some(at) => pending[at].1 = text,
        None => pending.push((id.to_owned(), text)),
    }
}

fn blocks<'a>(entry: &'a Value, key: &str) -> &'a [Value] {
    entry.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
}

/// Tool results travel in user messages; a message with one is not the user's words.
fn anthropic(entry: &Value) -> Option<Said> {
    let content = blocks(entry, "content");
    let of = |kind: &'static str| content.iter().filter(move |b| str_of(b, "type") == kind);
    match str_of(entry, "role") {
        "assistant" => {
            Some(Said::Model(of("tool_use").map(|b| str_of(b, "id").to_owned()).collect()))
        }
        "user" => {
            let results: Vec<_> = of("tool_result")
                .map(|b| (str_of(b, "tool_use_id").to_owned(), text_of(b.get("content"))))
                .collect();
            if results.is_empty() {
                return Some(Said::User(text_of(entry.get("content"))));
            }
            Some(Said::Results(results))
        }
        _ => None,
    }
}

fn openai(entry: &Value) -> Option<Said> {
    match str_of(entry, "role") {
        "assistant" => {
            let calls = blocks(entry, "tool_calls").iter();
            Some(Said::Model(calls.map(|b| str_of(b, "id").to_owned()).collect()))
        }
        "tool" => {
            let id = str_of(entry, "tool_call_id").to_owned();
            Some(Said::Results(vec![(id, text_of(entry.get("content")))]))
        }
        "user" => Some(Said::User(text_of(entry.get("content")))),
        _ => None,
    }
}

fn responses(entry: &Value) -> Option<Said> {
    let id = || str_of(entry, "call_id").to_owned();
    match str_of(entry, "type") {
        "" | "message" => match str_of(entry, "role") {
            "assistant" => Some(Said::Model(Vec::new())),
            "user" => Some(Said::User(text_of(entry.get("content")))),
            _ => None,
        },
        "reasoning" => Some(Said::Model(Vec::new())),
        "function_call" | "custom_tool_call" => Some(Said::Model(vec![id()])),
        "function_call_output" | "custom_tool_call_output" => {
            Some(Said::Results(vec![(id(), text_of(entry.get("output")))]))
        }
        _ => None,
    }
}

/// Calls and results need no id in Gemini: without one, name and order tell which is which.
fn gemini(entry: &Value) -> Option<Said> {
    let parts = blocks(entry, "parts");
    let id = |call: &Value| match str_of(call, "id") {
        "" => str_of(call, "name").to_owned(),
        id => id.to_owned(),
    };
    if str_of(entry, "role") == "model" {
        let calls = parts.iter().filter_map(|p| p.get("functionCall"));
        return Some(Said::Model(calls.map(id).collect()));
    }
    let results: Vec<_> = parts
        .iter()
        .filter_map(|p| p.get("functionResponse"))
        .map(|r| (id(r), response_text(r.get("response"))))
        .collect();
    if results.is_empty() {
        return Some(Said::User(text_of(entry.get("parts"))));
    }
    Some(Said::Results(results))
}

/// A result is an object by Gemini's rules; the usual keys hold the text.
fn response_text(response: Option<&Value>) -> String {
    let Some(response) = response else { return String::new() };
    let text = ["output", "result", "error"].into_iter().find_map(|key| response.get(key));
    match text {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => response.to_string(),
    }
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
