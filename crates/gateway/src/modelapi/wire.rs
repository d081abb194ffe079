//! What differs between the wire formats: key headers, error shapes, answers. Pure.

use super::operation::{Ask, Listing};
use model::ModelApi;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// The code of refusals for a budget of ours; the built-in agent knows it.
const BUDGET_CODE: &str = "nanoclaw_budget";

/// A wire format, as the agent speaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Anthropic,
    OpenAi,
    Responses,
    Gemini,
}

/// Every format, in the order messages name them.
pub(crate) const WIRES: [Wire; 4] = [Wire::Anthropic, Wire::OpenAi, Wire::Responses, Wire::Gemini];

/// Request headers of the agent's that are passed on; all others stay behind. Who is billed
/// (`openai-organization`, `openai-project`, `x-goog-user-project`) goes with the key, which is
/// not the agent's to choose.
pub(crate) const PASSED_REQUEST_FIELDS: &[&str] = &[
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
    "x-goog-api-client",
    "accept",
    "user-agent",
];

/// Further ones where a subscription answers: what Claude Code says that it is.
pub(crate) const LOGIN_REQUEST_FIELDS: &[&str] = &["x-app"];

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
            Self::Responses => ModelApi::Responses,
            Self::Gemini => ModelApi::Gemini,
        }
    }

    /// Its name in records.
    pub(crate) fn name(self) -> &'static str {
        self.api().name()
    }

    /// The path at which the format is spoken, for messages.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::OpenAi => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Gemini => "/v1beta/models/MODEL:generateContent",
        }
    }

    /// The header that carries the key, and what stands before it.
    pub(crate) fn key_field(self) -> (&'static str, &'static str) {
        match self {
            Self::Anthropic => ("x-api-key", ""),
            Self::OpenAi | Self::Responses => ("authorization", "Bearer "),
            Self::Gemini => ("x-goog-api-key", ""),
        }
    }

    /// An error in the shape that clients of this format show to people.
    pub(crate) fn error(self, status: u16, message: &str) -> Value {
        let kind = error_kind(status);
        match self {
            Self::Anthropic => {
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
            Self::OpenAi | Self::Responses => {
                let kind = if status == 402 { "insufficient_quota" } else { kind };
                let code = if status == 402 { json!(kind) } else { Value::Null };
                json!({"error": {
                    "message": message, "type": kind, "param": null, "code": code,
                }})
            }
            Self::Gemini => json!({"error": {
                "code": status, "message": message, "status": gemini_status(status),
            }}),
        }
    }

    /// The error for a budget of ours: types are those that no client asks again for, the code says
    /// that no provider spoke.
    pub(crate) fn budget_error(self, status: u16, message: &str) -> Value {
        let mut error = self.error(status, message);
        match self {
            Self::Gemini => error["error"]["details"] = json!([{"reason": BUDGET_CODE}]),
            _ => error["error"]["code"] = json!(BUDGET_CODE),
        }
        error
    }

    /// The same as an event, for a stream that broke after it began.
    pub(crate) fn error_event(self, message: &str) -> String {
        match self {
            Self::Anthropic => format!("event: error\ndata: {}\n\n", self.error(502, message)),
            Self::OpenAi | Self::Gemini => format!("data: {}\n\n", self.error(502, message)),
            Self::Responses => {
                let error = json!({
                    "type": "error", "code": "server_error", "message": message, "param": null,
                    "sequence_number": 0,
                });
                format!("event: error\ndata: {error}\n\n")
            }
        }
    }

    /// Whether a whole JSON answer is one of this format.
    pub(crate) fn is_answer(self, ask: Ask, body: &[u8]) -> bool {
        let gemini = |s: &Shape| s.candidates.is_some() || s.prompt_feedback.is_some();
        if ask == (Ask::StreamGenerate { sse: false }) {
            return serde_json::from_slice::<FirstShape>(body)
                .is_ok_and(|all| all.0.as_ref().is_some_and(gemini));
        }
        let Ok(shape) = serde_json::from_slice::<Shape>(body) else { return false };
        match ask {
            Ask::CountTokens { .. } => shape.input_tokens.is_some(),
            Ask::CountGemini => shape.total_tokens.is_some(),
            Ask::Messages { .. } => shape.content.is_some(),
            Ask::Chat => shape.choices.is_some(),
            Ask::Embeddings => shape.data.is_some(),
            // A background one has no output yet, and a failed one none at all.
            Ask::Responses => shape.object.as_deref() == Some("response") || shape.output.is_some(),
            // A prompt that was blocked has no candidates.
            Ask::Generate | Ask::StreamGenerate { .. } => gemini(&shape),
        }
    }
}

/// The first of a list of answers; takes no memory for the others.
struct FirstShape(Option<Shape>);

impl<'de> Deserialize<'de> for FirstShape {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> serde::de::Visitor<'de> for List {
            type Value = FirstShape;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of answers")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut all: A,
            ) -> Result<FirstShape, A::Error> {
                let first = all.next_element()?;
                while all.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstShape(first))
            }
        }
        from.deserialize_seq(List)
    }
}

/// The outline of a whole answer; takes no memory for what it ignores.
#[derive(Deserialize)]
struct Shape {
    input_tokens: Option<u64>,
    content: Option<Vec<IgnoredAny>>,
    choices: Option<Vec<IgnoredAny>>,
    data: Option<Vec<IgnoredAny>>,
    object: Option<String>,
    output: Option<Vec<IgnoredAny>>,
    candidates: Option<Vec<IgnoredAny>>,
    #[serde(rename = "promptFeedback")]
    prompt_feedback: Option<IgnoredAny>,
    #[serde(rename = "totalTokens")]
    total_tokens: Option<u64>,
}

fn error_kind(status: u16) -> &'static str {
    match status {
        400 | 415 | 426 => "invalid_request_error",
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    }
}

/// Google's own words (google.rpc.Code). Over budget is not `RESOURCE_EXHAUSTED`, which clients
/// take for a rate limit and wait for.
fn gemini_status(status: u16) -> &'static str {
    match status {
        400 | 413 | 415 | 426 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        402 => "FAILED_PRECONDITION",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        502..=504 | 529 => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

/// A model entry.
pub(crate) fn model_entry(listing: Listing, id: &str) -> Value {
    match listing {
        Listing::Common => json!({
            "id": id, "object": "model", "type": "model", "display_name": id,
            "created": 0, "created_at": "1970-01-01T00:00:00Z", "owned_by": "nanoclaw",
        }),
        Listing::Gemini => json!({
            "name": format!("models/{id}"), "displayName": id, "version": "1",
            "supportedGenerationMethods":
                ["generateContent", "streamGenerateContent", "countTokens"],
        }),
    }
}

/// The list of models.
pub(crate) fn model_list(listing: Listing, ids: &[&str]) -> Value {
    let data: Vec<Value> = ids.iter().map(|id| model_entry(listing, id)).collect();
    match listing {
        Listing::Common => json!({
            "object": "list", "data": data, "has_more": false,
            "first_id": ids.first(), "last_id": ids.last(),
        }),
        Listing::Gemini => json!({"models": data}),
    }
}

/// Something that is answered to the agent instead of a model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// HTTP status.
    pub(crate) status: u16,
    /// One clear sentence with the remedy. Never holds a byte of a secret.
    pub(crate) message: String,
    /// Whether another model may do better.
    pub(crate) passing: bool,
    /// Whether a budget of ours is the cause.
    pub(crate) budget: bool,
}

impl Failure {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), passing: false, budget: false }
    }

    /// Nothing was sent, for a budget of ours. Status 402, which no SDK asks again for.
    pub(crate) fn budget(message: impl Into<String>) -> Self {
        Self { budget: true, ..Self::new(402, message) }
    }
}
