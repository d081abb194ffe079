//! OpenAI Chat Completions: `POST /v1/chat/completions`, streamed. Also what Ollama, llama.cpp,
//! vLLM and LM Studio speak, so it is lenient where they differ.
//!
//! Source: the Chat Completions API reference, "The chat completion chunk object".

use super::assemble::Assembler;
use super::{Block, Decoder, Request, Role, Stop, fail, merged};
use crate::acp::ModelFailure;
use serde_json::{Value, json};

/// Tool calls are numbered by the server; no answer has more.
const MAX_INDEX: u64 = 1_024;

/// The request.
pub(super) fn body(model: &str, request: &Request<'_>) -> Value {
    let mut messages = vec![json!({"role": "system", "content": request.system})];
    for (role, blocks) in merged(request.messages) {
        match role {
            Role::User => user(&blocks, &mut messages),
            Role::Assistant => messages.push(assistant(&blocks)),
        }
    }
    let mut body = json!({
        "model": model,
        "stream": true,
        "stream_options": {"include_usage": true},
        "messages": messages,
    });
    body[limit_name(model)] = json!(request.max_tokens);
    if !request.tools.is_empty() {
        let tool = |t: &super::ToolSpec| {
            let function =
                json!({"name": t.name, "description": t.description, "parameters": t.schema});
            json!({"type": "function", "function": function})
        };
        body["tools"] = request.tools.iter().copied().map(tool).collect();
    }
    body
}

/// OpenAI's reasoning models refuse `max_tokens`; most other servers know only that.
fn limit_name(model: &str) -> &'static str {
    let reasoning = ["gpt-5", "gpt-6", "o1", "o3", "o4"].iter().any(|p| model.starts_with(p));
    if reasoning { "max_completion_tokens" } else { "max_tokens" }
}

fn joined_text(blocks: &[&Block]) -> String {
    let texts = blocks.iter().filter_map(|block| match block {
        Block::Text { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n\n")
}

fn user(blocks: &[&Block], messages: &mut Vec<Value>) {
    for block in blocks {
        if let Block::ToolResult { id, ok, text } = block {
            // This format has no error flag; the tools' own words say it.
            let note = if *ok || text.starts_with("error") { "" } else { "error: " };
            let content = format!("{note}{text}");
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        }
    }
    let text = joined_text(blocks);
    if !text.is_empty() {
        messages.push(json!({"role": "user", "content": text}));
    }
}

fn assistant(blocks: &[&Block]) -> Value {
    let calls: Vec<Value> = blocks
        .iter()
        .filter_map(|block| match block {
            Block::ToolUse { id, name, input } => {
                let function = json!({"name": name, "arguments": input.to_string()});
                Some(json!({"id": id, "type": "function", "function": function}))
            }
            _ => None,
        })
        .collect();
    let text = joined_text(blocks);
    let mut message = json!({"role": "assistant", "content": text});
    if !calls.is_empty() {
        if text.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = Value::Array(calls);
    }
    message
}

/// Reads the stream.
#[derive(Default)]
pub(super) struct Events {
    finished: bool,
    refused: bool,
}

impl Decoder for Events {
    fn event(&mut self, data: &[u8], into: &mut Assembler<'_>) -> Result<bool, ModelFailure> {
        if data.trim_ascii() == b"[DONE]" {
            return if self.finished { Ok(true) } else { Err(fail::cut_off()) };
        }
        let chunk: Value =
            serde_json::from_slice(data).map_err(|_| fail::bad_answer("an event is not JSON"))?;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Err(fail::in_stream(error));
        }
        if let Some(usage) = chunk.get("usage") {
            let field = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
            into.usage.input_tokens = into.usage.input_tokens.max(field("prompt_tokens"));
            into.usage.output_tokens = into.usage.output_tokens.max(field("completion_tokens"));
        }
        let Some(choice) = chunk.pointer("/choices/0") else { return Ok(false) };
        let delta = &choice["delta"];
        into.text(delta.get("content").and_then(Value::as_str).unwrap_or(""))?;
        if let Some(refusal) = delta.get("refusal").and_then(Value::as_str) {
            self.refused = true;
            into.text(refusal)?;
        }
        let calls =
            delta.get("tool_calls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (place, call) in calls.iter().enumerate() {
            tool_call(place, call, into)?;
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finished = true;
            into.stop = match reason {
                "length" => Stop::MaxTokens,
                "content_filter" => Stop::Refusal,
                _ if self.refused => Stop::Refusal,
                _ => Stop::Done,
            };
        }
        Ok(false)
    }

    /// Some servers leave `[DONE]` out.
    fn may_end(&self) -> bool {
        self.finished
    }
}

fn tool_call(place: usize, call: &Value, into: &mut Assembler<'_>) -> Result<(), ModelFailure> {
    let key = call.get("index").and_then(Value::as_u64).unwrap_or(place as u64);
    if key >= MAX_INDEX {
        return Err(fail::bad_answer("a tool call has an absurd number"));
    }
    let text = |path: &str| call.pointer(path).and_then(Value::as_str).unwrap_or("");
    let arguments = match call.pointer("/function/arguments") {
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(), // older Ollama
        _ => String::new(),
    };
    into.call(key, text("/id"), text("/function/name"), &arguments)
}
