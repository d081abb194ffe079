//! A step of a script → an answer in either wire format, whole or as events. Pure.

use super::parse::{Call, Part, Script};
use super::place::{Conversation, conversation, step};
use crate::modelapi::wire::{Ask, Wire};
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

struct Line<'a> {
    name: String,
    text: String,
    calls: &'a [Call],
    /// Makes ids unique within the conversation.
    serial: usize,
    usage: Usage,
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
    if matches!(ask, Ask::CountTokens { .. }) {
        let whole = json!({"input_tokens": input}).to_string().into_bytes();
        let usage = Usage::default();
        return Ok(Performance { whole: Some(whole), events: Vec::new(), delay, usage });
    }
    let wire = ask.wire();
    let now = conversation(&request, wire);
    let (text, calls) = match step(script, &now) {
        Ok(step) => {
            (step.text.as_deref().map_or_else(String::new, |p| fill(p, &now)), &step.calls[..])
        }
        Err(no_line) => (no_line, &[][..]),
    };
    let spoken = calls.iter().map(|c| c.arguments.to_string().len()).sum::<usize>() + text.len();
    let usage = Usage { input, output: (spoken as u64).div_ceil(BYTES_PER_TOKEN) };
    let (serial, chunk_chars) = (now.messages, script.chunk_chars);
    let line = Line { name: script.model_name(), text, calls, serial, usage, chunk_chars };
    let with_usage =
        request.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false);
    let (whole, events) = match (wire, stream) {
        (Wire::Anthropic, false) => (Some(anthropic_whole(&line).to_string().into_bytes()), vec![]),
        (Wire::OpenAi, false) => (Some(openai_whole(&line).to_string().into_bytes()), vec![]),
        (Wire::Anthropic, true) => (None, anthropic_events(&line)),
        (Wire::OpenAi, true) => (None, openai_events(&line, with_usage)),
    };
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
    fn chunks(&self) -> Vec<String> {
        let chars: Vec<char> = self.text.chars().collect();
        chars.chunks(self.chunk_chars).map(|c| c.iter().collect()).collect()
    }

    fn tool_id(&self, prefix: &str, n: usize) -> String {
        format!("{prefix}_script_{}_{}", self.serial, n + 1)
    }

    fn stop_reason(&self) -> &'static str {
        if self.calls.is_empty() { "end_turn" } else { "tool_use" }
    }

    fn finish_reason(&self) -> &'static str {
        if self.calls.is_empty() { "stop" } else { "tool_calls" }
    }
}

fn anthropic_message(
    line: &Line<'_>,
    content: Vec<Value>,
    stop: Option<&str>,
    output: u64,
) -> Value {
    json!({
        "id": format!("msg_script_{}", line.serial), "type": "message", "role": "assistant",
        "model": line.name, "content": content, "stop_reason": stop, "stop_sequence": null,
        "usage": {"input_tokens": line.usage.input, "output_tokens": output},
    })
}

fn anthropic_whole(line: &Line<'_>) -> Value {
    let mut content = Vec::new();
    if !line.text.is_empty() || line.calls.is_empty() {
        content.push(json!({"type": "text", "text": line.text}));
    }
    for (n, call) in line.calls.iter().enumerate() {
        let id = line.tool_id("toolu", n);
        content.push(
            json!({"type": "tool_use", "id": id, "name": call.tool, "input": call.arguments}),
        );
    }
    anthropic_message(line, content, Some(line.stop_reason()), line.usage.output)
}

fn event(data: &Value) -> String {
    let name = data.get("type").and_then(Value::as_str).unwrap_or("message");
    format!("event: {name}\ndata: {data}\n\n")
}

fn anthropic_events(line: &Line<'_>) -> Vec<String> {
    let message = anthropic_message(line, Vec::new(), None, 1);
    let mut out = vec![
        event(&json!({"type": "message_start", "message": message})),
        event(&json!({"type": "ping"})),
    ];
    let mut index = 0;
    let mut block = |start: Value, deltas: Vec<Value>| {
        out.push(event(
            &json!({"type": "content_block_start", "index": index, "content_block": start}),
        ));
        for delta in deltas {
            out.push(event(
                &json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ));
        }
        out.push(event(&json!({"type": "content_block_stop", "index": index})));
        index += 1;
    };
    if !line.text.is_empty() || line.calls.is_empty() {
        let deltas = line.chunks().into_iter().map(|t| json!({"type": "text_delta", "text": t}));
        block(json!({"type": "text", "text": ""}), deltas.collect());
    }
    for (n, call) in line.calls.iter().enumerate() {
        let id = line.tool_id("toolu", n);
        let part = call.arguments.to_string();
        block(
            json!({"type": "tool_use", "id": id, "name": call.tool, "input": {}}),
            vec![json!({"type": "input_json_delta", "partial_json": part})],
        );
    }
    out.push(event(&json!({
        "type": "message_delta",
        "delta": {"stop_reason": line.stop_reason(), "stop_sequence": null},
        "usage": {"output_tokens": line.usage.output},
    })));
    out.push(event(&json!({"type": "message_stop"})));
    out
}

fn openai_usage(line: &Line<'_>) -> Value {
    let Usage { input, output } = line.usage;
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn openai_call(line: &Line<'_>, n: usize, call: &Call) -> Value {
    json!({
        "id": line.tool_id("call", n), "type": "function",
        "function": {"name": call.tool, "arguments": call.arguments.to_string()},
    })
}

fn openai_whole(line: &Line<'_>) -> Value {
    let content = if line.text.is_empty() && !line.calls.is_empty() {
        Value::Null
    } else {
        Value::from(line.text.as_str())
    };
    let mut message = json!({"role": "assistant", "content": content});
    if !line.calls.is_empty() {
        let calls = line.calls.iter().enumerate().map(|(n, call)| openai_call(line, n, call));
        message["tool_calls"] = Value::Array(calls.collect());
    }
    json!({
        "id": format!("chatcmpl-script-{}", line.serial), "object": "chat.completion", "created": 0,
        "model": line.name, "usage": openai_usage(line),
        "choices": [{"index": 0, "message": message, "logprobs": null,
                     "finish_reason": line.finish_reason()}],
    })
}

fn openai_events(line: &Line<'_>, with_usage: bool) -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let data = json!({
            "id": format!("chatcmpl-script-{}", line.serial), "object": "chat.completion.chunk",
            "created": 0, "model": line.name, "choices": choices, "usage": usage,
        });
        format!("data: {data}\n\n")
    };
    let delta = |delta: Value, finish: Option<&str>| {
        chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish}]), Value::Null)
    };
    let mut out = vec![delta(json!({"role": "assistant", "content": ""}), None)];
    out.extend(line.chunks().into_iter().map(|text| delta(json!({"content": text}), None)));
    for (n, call) in line.calls.iter().enumerate() {
        let mut call = openai_call(line, n, call);
        call["index"] = json!(n);
        out.push(delta(json!({"tool_calls": [call]}), None));
    }
    out.push(delta(json!({}), Some(line.finish_reason())));
    if with_usage {
        out.push(chunk(json!([]), openai_usage(line)));
    }
    out.push("data: [DONE]\n\n".to_owned());
    out
}
