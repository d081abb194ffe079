//! A step of a script → an answer in any wire format, whole or as events. Pure.

use super::parse::{Call, Part, Script};
use super::place::{Conversation, conversation, step};
use super::{anthropic, gemini, openai, responses};
use crate::modelapi::operation::Ask;
use crate::modelapi::wire::Wire;
use crate::usage::Usage;
use serde_json::{Value, json};
use std::time::Duration;

/// Bytes that count as one token in the scripted model's estimate.
const BYTES_PER_TOKEN: u64 = 4;

/// Largest request a script is played for: it is taken apart in memory, which costs a multiple.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most characters that one placeholder brings in, so that a huge tool result does not become as
/// many events.
const FILLED_CHARS_MAX: usize = 16 * 1024;

/// An answer ready to be sent: whole, or as events.
pub(crate) struct Performance {
    pub(crate) whole: Option<Vec<u8>>,
    pub(crate) events: Vec<String>,
    pub(crate) delay: Duration,
    pub(crate) usage: Usage,
}

/// What is said.
pub(super) struct Line<'a> {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) calls: &'a [Call],
    /// Makes ids unique within the conversation.
    pub(super) serial: usize,
    pub(super) usage: Usage,
    chunk_chars: usize,
}

/// Plays the script for one request.
pub(crate) fn perform(
    script: &Script,
    ask: Ask,
    body: &[u8],
    stream: bool,
) -> Result<Performance, String> {
    if body.len() > REQUEST_BYTES_MAX {
        return Err(format!("a scripted model takes requests up to {REQUEST_BYTES_MAX} bytes"));
    }
    let request: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let input = (body.len() as u64).div_ceil(BYTES_PER_TOKEN);
    let delay = Duration::from_millis(script.delay_ms);
    let whole = |value: Value| Performance {
        whole: Some(value.to_string().into_bytes()),
        events: Vec::new(),
        delay,
        usage: Usage::default(),
    };
    match ask {
        Ask::CountTokens { .. } => return Ok(whole(json!({"input_tokens": input}))),
        Ask::CountGemini => return Ok(whole(json!({"totalTokens": input}))),
        Ask::Embeddings => return Err("a scripted model makes no embeddings".into()),
        _ => {}
    }
    if request.get("previous_response_id").is_some_and(|id| !id.is_null()) {
        let why = "a scripted model keeps no conversation: send the whole input, without \
                   previous_response_id";
        return Err(why.into());
    }
    let wire = ask.wire();
    let now = conversation(&request, wire);
    let (text, calls) = match (gemini::shaped(&request, wire), step(script, &now)) {
        (Some(shaped), _) => (shaped, &[][..]),
        (None, Ok(step)) => {
            (step.text.as_deref().map_or_else(String::new, |p| fill(p, &now)), &step.calls[..])
        }
        (None, Err(no_line)) => (no_line, &[][..]),
    };
    let spoken = calls.iter().map(|c| c.arguments.to_string().len()).sum::<usize>() + text.len();
    let output = (spoken as u64).div_ceil(BYTES_PER_TOKEN);
    let usage = Usage { input, output, ..Usage::default() };
    let (serial, chunk_chars) = (now.messages, script.chunk_chars);
    let line = Line { name: script.model_name(), text, calls, serial, usage, chunk_chars };
    let with_usage =
        request.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false);
    let (whole, events) = match (wire, stream) {
        (Wire::Anthropic, false) => (Some(anthropic::whole(&line)), vec![]),
        (Wire::OpenAi, false) => (Some(openai::whole(&line)), vec![]),
        (Wire::Responses, false) => (Some(responses::whole(&line)), vec![]),
        (Wire::Gemini, false) => (Some(gemini::whole(&line)), vec![]),
        (Wire::Anthropic, true) => (None, anthropic::events(&line)),
        (Wire::OpenAi, true) => (None, openai::events(&line, with_usage)),
        (Wire::Responses, true) => (None, responses::events(&line)),
        (Wire::Gemini, true) if ask == (Ask::StreamGenerate { sse: true }) => {
            (None, gemini::events(&line))
        }
        (Wire::Gemini, true) => (Some(Value::Array(gemini::pieces(&line))), vec![]),
    };
    let whole = whole.map(|value| value.to_string().into_bytes());
    Ok(Performance { whole, events, delay, usage })
}

fn fill(parts: &[Part], now: &Conversation) -> String {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::User => push_cut(&mut out, &now.user),
            Part::Results => push_cut(&mut out, &now.results.join("\n")),
            Part::Result(n) => push_cut(&mut out, now.results.get(*n).map_or("", String::as_str)),
        }
    }
    out
}

fn push_cut(out: &mut String, text: &str) {
    let mut chars = text.chars();
    out.extend(chars.by_ref().take(FILLED_CHARS_MAX));
    if chars.next().is_some() {
        out.push('…');
    }
}

impl Line<'_> {
    pub(super) fn chunks(&self) -> Vec<String> {
        let chars: Vec<char> = self.text.chars().collect();
        chars.chunks(self.chunk_chars).map(|c| c.iter().collect()).collect()
    }

    pub(super) fn tool_id(&self, prefix: &str, n: usize) -> String {
        format!("{prefix}_script_{}_{}", self.serial, n + 1)
    }

    pub(super) fn stop_reason(&self) -> &'static str {
        if self.calls.is_empty() { "end_turn" } else { "tool_use" }
    }

    pub(super) fn finish_reason(&self) -> &'static str {
        if self.calls.is_empty() { "stop" } else { "tool_calls" }
    }
}

/// An event named by its `type`.
pub(super) fn event(data: &Value) -> String {
    let name = data.get("type").and_then(Value::as_str).unwrap_or("message");
    format!("event: {name}\ndata: {data}\n\n")
}
