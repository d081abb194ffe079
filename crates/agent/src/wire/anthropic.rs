//! Anthropic Messages: `POST /v1/messages`, streamed.
//!
//! Source: the Messages API reference, "Streaming messages": message_start, content_block_start,
//! content_block_delta, content_block_stop, message_delta, message_stop, ping, error.

use super::assemble::Assembler;
use super::{Block, Decoder, Request, Role, Stop, fail, merged};
use crate::acp::ModelFailure;
use serde_json::{Value, json};

/// Content blocks one answer may have; their indexes are the server's.
const MAX_BLOCKS: u64 = 1_024;

/// The request. The system prompt and the last message are marked for the provider's cache:
/// every round repeats all that came before it.
pub(super) fn body(model: &str, request: &Request<'_>) -> Value {
    let mut messages: Vec<Value> = merged(request.messages)
        .into_iter()
        .map(|(role, blocks)| {
            let role = if role == Role::User { "user" } else { "assistant" };
            json!({"role": role, "content": blocks.into_iter().map(block).collect::<Vec<_>>()})
        })
        .collect();
    let last = messages.last_mut().and_then(|m| m.get_mut("content")).and_then(Value::as_array_mut);
    if let Some(Value::Object(block)) = last.and_then(|content| content.last_mut()) {
        block.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    }
    let mut body = json!({
        "model": model,
        "max_tokens": request.max_tokens,
        "stream": true,
        "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
        "messages": messages,
    });
    if !request.tools.is_empty() {
        let tool = |t: &super::ToolSpec| json!({"name": t.name, "description": t.description, "input_schema": t.schema});
        body["tools"] = request.tools.iter().copied().map(tool).collect();
    }
    body
}

fn block(block: &Block) -> Value {
    match block {
        Block::Text { text } => json!({"type": "text", "text": text}),
        Block::ToolUse { id, name, input } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
        Block::ToolResult { id, ok, text } => {
            json!({"type": "tool_result", "tool_use_id": id, "content": text, "is_error": !ok})
        }
    }
}

/// Reads the stream.
pub(super) struct Events;

impl Decoder for Events {
    fn event(&mut self, data: &[u8], into: &mut Assembler<'_>) -> Result<bool, ModelFailure> {
        let event: Value =
            serde_json::from_slice(data).map_err(|_| fail::bad_answer("an event is not JSON"))?;
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("");
        match event.get("type").and_then(Value::as_str).unwrap_or("") {
            "message_start" => usage(&event["message"]["usage"], into),
            "content_block_start" => {
                let key = index(&event)?;
                into.text(text("/content_block/text"))?;
                if text("/content_block/type") == "tool_use" {
                    let whole = &event["content_block"]["input"];
                    let empty = whole.as_object().is_none_or(serde_json::Map::is_empty);
                    let input = if empty { String::new() } else { whole.to_string() };
                    into.call(key, text("/content_block/id"), text("/content_block/name"), &input)?;
                }
            }
            "content_block_delta" => match text("/delta/type") {
                "text_delta" => into.text(text("/delta/text"))?,
                "input_json_delta" => {
                    into.call(index(&event)?, "", "", text("/delta/partial_json"))?
                }
                _ => {} // thinking, signatures, citations: not part of the conversation here
            },
            "message_delta" => {
                usage(&event["usage"], into);
                into.stop = match text("/delta/stop_reason") {
                    "max_tokens" | "model_context_window_exceeded" => Stop::MaxTokens,
                    "refusal" => Stop::Refusal,
                    _ => Stop::Done,
                };
            }
            "message_stop" => return Ok(true),
            "error" => return Err(fail::in_stream(&event["error"])),
            _ => {} // ping, content_block_stop, and what later versions add
        }
        Ok(false)
    }

    fn may_end(&self) -> bool {
        false
    }
}

fn index(event: &Value) -> Result<u64, ModelFailure> {
    let index = event.get("index").and_then(Value::as_u64).filter(|index| *index < MAX_BLOCKS);
    index.ok_or_else(|| fail::bad_answer("a content block has no number"))
}

/// Counts come twice; the later ones are cumulative.
fn usage(usage: &Value, into: &mut Assembler<'_>) {
    let field = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let input = field("input_tokens")
        .saturating_add(field("cache_creation_input_tokens"))
        .saturating_add(field("cache_read_input_tokens"));
    into.usage.input_tokens = into.usage.input_tokens.max(input);
    into.usage.output_tokens = into.usage.output_tokens.max(field("output_tokens"));
}
