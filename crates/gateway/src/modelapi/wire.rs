//! What differs between the two wire formats: paths, headers, error shapes. Pure.

use model::ModelApi;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// A wire format, as the agent speaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Anthropic,
    OpenAi,
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `POST /v1/messages`; whether with `?beta=true`.
    Messages { beta: bool },
    /// `POST /v1/messages/count_tokens`.
    CountTokens { beta: bool },
    /// `POST /v1/chat/completions`.
    Chat,
}

/// What a path and method mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Ask(Ask),
    /// `GET /v1/models`.
    ListModels,
    /// `GET /v1/models/ID`.
    GetModel(String),
    /// `HEAD` or `GET /api/hello`: Claude Code asks, and 404 is the answer it expects.
    Hello,
    /// Known path, other method; the value is the one allowed.
    WrongMethod(&'static str),
    Unknown,
}

impl Ask {
    pub(crate) fn wire(self) -> Wire {
        match self {
            Self::Messages { .. } | Self::CountTokens { .. } => Wire::Anthropic,
            Self::Chat => Wire::OpenAi,
        }
    }

    /// Path and query upstream, after the endpoint's prefix.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Messages { beta: false } => "/v1/messages",
            Self::Messages { beta: true } => "/v1/messages?beta=true",
            Self::CountTokens { beta: false } => "/v1/messages/count_tokens",
            Self::CountTokens { beta: true } => "/v1/messages/count_tokens?beta=true",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// Reads method and target. Query keys other than `beta=true` are dropped: none is needed, and a
/// key in a query would be a credential.
pub(crate) fn operation(method: &str, target: &str) -> Operation {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let beta = query.split('&').any(|pair| pair == "beta=true");
    let ask =
        |ask| if method == "POST" { Operation::Ask(ask) } else { Operation::WrongMethod("POST") };
    match path {
        "/v1/messages" => ask(Ask::Messages { beta }),
        "/v1/messages/count_tokens" => ask(Ask::CountTokens { beta }),
        "/v1/chat/completions" => ask(Ask::Chat),
        "/v1/models" if method == "GET" => Operation::ListModels,
        "/v1/models" => Operation::WrongMethod("GET"),
        "/api/hello" if matches!(method, "GET" | "HEAD") => Operation::Hello,
        _ => match path.strip_prefix("/v1/models/") {
            Some(id) if method == "GET" && !id.is_empty() => Operation::GetModel(id.to_owned()),
            _ => Operation::Unknown,
        },
    }
}

/// Request headers of the agent's that are passed on; all others stay behind.
pub(crate) const PASSED_REQUEST_FIELDS: &[&str] =
    &["anthropic-version", "anthropic-beta", "openai-beta", "accept", "user-agent"];

/// Answer headers that are passed to the agent.
pub(crate) fn passes_answer_field(name: &str) -> bool {
    matches!(name, "content-type" | "cache-control" | "request-id" | "x-request-id" | "retry-after")
        || name.starts_with("anthropic-ratelimit-")
        || name.starts_with("x-ratelimit-")
}

impl Wire {
    /// The API a model must have to be asked in this format.
    pub(crate) fn api(self) -> ModelApi {
        match self {
            Self::Anthropic => ModelApi::Anthropic,
            Self::OpenAi => ModelApi::OpenAi,
        }
    }

    /// Its name in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
        }
    }

    /// The path at which the format is spoken, for messages.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::OpenAi => "/v1/chat/completions",
        }
    }

    /// The header that carries the key, and what stands before it.
    pub(crate) fn key_field(self) -> (&'static str, &'static str) {
        match self {
            Self::Anthropic => ("x-api-key", ""),
            Self::OpenAi => ("authorization", "Bearer "),
        }
    }

    /// An error in the shape that clients of this format show to people.
    pub(crate) fn error(self, status: u16, message: &str) -> Value {
        let kind = error_kind(status);
        match self {
            Self::Anthropic => {
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
            Self::OpenAi => json!({"error": {
                "message": message, "type": kind, "param": null, "code": null,
            }}),
        }
    }

    /// The same as an event, for a stream that broke after it began.
    pub(crate) fn error_event(self, message: &str) -> String {
        let error = self.error(502, message);
        match self {
            Self::Anthropic => format!("event: error\ndata: {error}\n\n"),
            Self::OpenAi => format!("data: {error}\n\n"),
        }
    }

    /// Whether a whole JSON answer is one of this format.
    pub(crate) fn is_answer(self, ask: Ask, body: &[u8]) -> bool {
        let Ok(shape) = serde_json::from_slice::<Shape>(body) else { return false };
        match (self, ask) {
            (_, Ask::CountTokens { .. }) => shape.input_tokens.is_some(),
            (Self::Anthropic, _) => shape.content.is_some(),
            (Self::OpenAi, _) => shape.choices.is_some(),
        }
    }
}

/// The outline of a whole answer; takes no memory for what it ignores.
#[derive(Deserialize)]
struct Shape {
    input_tokens: Option<u64>,
    content: Option<Vec<IgnoredAny>>,
    choices: Option<Vec<IgnoredAny>>,
}

fn error_kind(status: u16) -> &'static str {
    match status {
        400 | 415 | 426 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    }
}

/// A model entry that clients of both formats accept.
pub(crate) fn model_entry(id: &str) -> Value {
    json!({
        "id": id, "object": "model", "type": "model", "display_name": id,
        "created": 0, "created_at": "1970-01-01T00:00:00Z", "owned_by": "nanoclaw",
    })
}

/// The list of models that clients of both formats accept.
pub(crate) fn model_list(ids: &[&str]) -> Value {
    let data: Vec<Value> = ids.iter().map(|id| model_entry(id)).collect();
    json!({
        "object": "list", "data": data, "has_more": false,
        "first_id": ids.first(), "last_id": ids.last(),
    })
}

/// Something that is answered to the agent instead of a model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// HTTP status.
    pub(crate) status: u16,
    /// One clear sentence with the remedy. Never holds a byte of a secret.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}
