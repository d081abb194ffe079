//! Talking to a model: neutral conversation types, two wire formats, one small HTTP client.
//!
//! ```text
//! Request ─► anthropic | openai (JSON) ─► http ─► door ─► gateway ─► model
//! Answer  ◄─ Assembler ◄─ Piece ◄─ anthropic | openai ◄─ sse ◄─ http
//! ```
//!
//! Invariants:
//! 1. No key is here: the placeholder is sent, the gateway puts the real one in its place.
//! 2. An answer is bounded in text, tool calls and ids before anyone sees it.
//! 3. A stream that ends early is a failure, never a short answer.

mod anthropic;
mod assemble;
mod fail;
pub(crate) mod http;
mod openai;
mod sse;

pub(crate) use assemble::UNPARSED;

use crate::acp::{ModelFailure, Usage};
use crate::cancel::Cancel;
use crate::config::Config;
use assemble::Assembler;
use model::ModelApi;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    User,
    Assistant,
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Block {
    Text { text: String },
    ToolUse { id: String, name: String, input: Value },
    ToolResult { id: String, ok: bool, text: String },
}

/// One message of a conversation, in neither wire format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) blocks: Vec<Block>,
}

impl Message {
    pub(crate) fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, blocks: vec![Block::Text { text: text.into() }] }
    }

    /// Whether it answers tool calls; such a message must follow the one that made them.
    pub(crate) fn has_results(&self) -> bool {
        self.blocks.iter().any(|block| matches!(block, Block::ToolResult { .. }))
    }
}

/// A tool as the model is told of it.
#[derive(Debug)]
pub(crate) struct ToolSpec {
    pub(crate) name: Cow<'static, str>,
    pub(crate) description: Cow<'static, str>,
    pub(crate) schema: Value,
}

/// One question to the model.
pub(crate) struct Request<'a> {
    pub(crate) system: &'a str,
    pub(crate) messages: &'a [Message],
    pub(crate) tools: &'a [&'a ToolSpec],
    pub(crate) max_tokens: u64,
}

/// Why the model stopped. Tool calls show in the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Done,
    MaxTokens,
    Refusal,
}

/// The model's answer, complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) blocks: Vec<Block>,
    pub(crate) stop: Stop,
    pub(crate) usage: Usage,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AskError {
    Cancelled,
    Failed(ModelFailure),
}

impl From<ModelFailure> for AskError {
    fn from(failure: ModelFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Reads the events of one wire format into an [`Assembler`].
trait Decoder {
    /// Takes one event's data; `true` when the answer is complete.
    fn event(&mut self, data: &[u8], into: &mut Assembler<'_>) -> Result<bool, ModelFailure>;

    /// Whether the answer may count as complete though the stream just ended.
    fn may_end(&self) -> bool;
}

/// Asks the model and streams its text to `on_text`.
///
/// # Errors
/// [`AskError::Cancelled`] as soon as `cancel` is raised; else what the model or gateway did.
pub(crate) fn ask(
    config: &Config,
    request: &Request<'_>,
    cancel: &Cancel,
    on_text: &mut dyn FnMut(&str),
) -> Result<Answer, AskError> {
    let result = exchange(config, request, cancel, on_text);
    if cancel.is_cancelled() {
        return Err(AskError::Cancelled); // whatever the broken connection looked like
    }
    Ok(result?)
}

fn exchange(
    config: &Config,
    request: &Request<'_>,
    cancel: &Cancel,
    on_text: &mut dyn FnMut(&str),
) -> Result<Answer, ModelFailure> {
    let bearer = format!("Bearer {}", config.placeholder);
    let (path, mut headers, body, mut decoder): (_, _, _, Box<dyn Decoder>) = match config.api {
        ModelApi::Anthropic => (
            "/v1/messages",
            vec![("x-api-key", config.placeholder.as_str()), ("anthropic-version", "2023-06-01")],
            anthropic::body(&config.model, request),
            Box::new(anthropic::Events),
        ),
        // The settings accept anthropic and openai only.
        ModelApi::OpenAi | ModelApi::Responses | ModelApi::Gemini | ModelApi::Script => (
            "/v1/chat/completions",
            vec![("authorization", bearer.as_str())],
            openai::body(&config.model, request),
            Box::new(openai::Events::default()),
        ),
    };
    let body = body.to_string().into_bytes();
    headers.push(("accept", "text/event-stream"));
    let mut response = http::post(&config.door, path, &headers, &body, cancel)
        .map_err(|e| fail::unreachable(&e))?;
    drop(body);
    if response.head.status != 200 {
        return Err(fail::status(&mut response));
    }
    if !response.head.header("content-type").is_some_and(|t| t.contains("text/event-stream")) {
        return Err(fail::bad_answer("it did not stream"));
    }
    let mut assembler = Assembler::new(on_text);
    stream(&mut response.body, decoder.as_mut(), &mut assembler)?;
    assembler.finish()
}

fn stream<R: std::io::BufRead>(
    body: &mut http::Body<R>,
    decoder: &mut dyn Decoder,
    assembler: &mut Assembler<'_>,
) -> Result<(), ModelFailure> {
    let mut parser = sse::Parser::default();
    let mut buffer = [0_u8; 8 << 10];
    loop {
        let count = body.read(&mut buffer).map_err(|e| fail::broken_off(&e))?;
        if count == 0 {
            break;
        }
        let events = parser
            .push(&buffer[..count])
            .map_err(|sse::TooLong| fail::bad_answer("one event of its stream is too long"))?;
        for data in events {
            if decoder.event(&data, assembler)? {
                return Ok(());
            }
        }
    }
    if decoder.may_end() { Ok(()) } else { Err(fail::cut_off()) }
}

/// Neighbouring messages of one role as one: servers differ in whether they take two in a row.
/// Tool results come first, as both formats want them.
fn merged(messages: &[Message]) -> Vec<(Role, Vec<&Block>)> {
    let mut merged: Vec<(Role, Vec<&Block>)> = Vec::with_capacity(messages.len());
    for message in messages {
        match merged.last_mut() {
            Some((role, blocks)) if *role == message.role => blocks.extend(&message.blocks),
            _ => merged.push((message.role, message.blocks.iter().collect())),
        }
    }
    for (_, blocks) in &mut merged {
        blocks.sort_by_key(|block| !matches!(block, Block::ToolResult { .. }));
    }
    merged
}

#[cfg(test)]
mod tests;
