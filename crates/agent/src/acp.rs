//! The words of the Agent Client Protocol (version 1) that both sides here use.
//!
//! Source: agentclientprotocol.com, protocol v1: initialization, session setup, prompt turn,
//! tool calls. What is ours stands under `_meta.nanoclaw`, as the protocol asks.

use serde_json::{Value, json};

/// The protocol version spoken. The peer may ask for a newer one and gets this one back.
pub(crate) const PROTOCOL_VERSION: u64 = 1;

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model said all it had to say.
    EndTurn,
    /// A person or the orchestrator cancelled it.
    Cancelled,
    /// The model's answer was cut at its largest length.
    MaxTokens,
    /// The turn had as many model requests as one turn may have.
    MaxTurnRequests,
    /// The model or its provider refused.
    Refusal,
}

impl StopReason {
    const ALL: [(Self, &'static str); 5] = [
        (Self::EndTurn, "end_turn"),
        (Self::Cancelled, "cancelled"),
        (Self::MaxTokens, "max_tokens"),
        (Self::MaxTurnRequests, "max_turn_requests"),
        (Self::Refusal, "refusal"),
    ];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(reason, _)| *reason == self).map_or("end_turn", |(_, name)| name)
    }

    /// The reason of that name, if the protocol has one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(reason, _)| *reason)
    }
}

/// Tokens a turn used, as the model's server counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Model requests made.
    pub requests: u64,
}

impl Usage {
    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.requests = self.requests.saturating_add(other.requests);
    }

    pub(crate) fn to_json(self) -> Value {
        json!({
            "inputTokens": self.input_tokens,
            "outputTokens": self.output_tokens,
            "requests": self.requests,
        })
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let field = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        Self {
            input_tokens: field("inputTokens"),
            output_tokens: field("outputTokens"),
            requests: field("requests"),
        }
    }
}

/// What kind of failure a model had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// It cannot be reached, is overloaded, broke off, or does not know the model.
    ModelUnavailable,
    /// It refused the key.
    BadKey,
    /// Too many requests, or no budget left.
    RateLimited,
    /// It answered something that is not an answer.
    BadAnswer,
    /// The conversation does not fit its context window.
    TooLong,
}

impl FailureKind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::ModelUnavailable, "model_unavailable"),
        (Self::BadKey, "bad_key"),
        (Self::RateLimited, "rate_limited"),
        (Self::BadAnswer, "bad_answer"),
        (Self::TooLong, "too_long"),
    ];

    /// Its name on the wire (`error.data.kind`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(k, _)| *k == self).map_or("bad_answer", |(_, name)| name)
    }

    /// The kind of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
    }
}

/// A model failed. `message` is one plain sentence or two, meant for the person in the chat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelFailure {
    /// What kind.
    pub kind: FailureKind,
    /// For the person: cause and remedy. One line, at most 600 bytes.
    pub message: String,
    /// Whether asking again later may help.
    pub retryable: bool,
    /// How long the server asked to wait, seconds.
    pub retry_after_s: Option<u64>,
}

impl ModelFailure {
    /// The `data` member of the JSON-RPC error.
    pub(crate) fn data(&self) -> Value {
        let mut data = json!({"kind": self.kind.as_str(), "retryable": self.retryable});
        if let Some(seconds) = self.retry_after_s {
            data["retryAfterS"] = json!(seconds);
        }
        data
    }

    /// Reads a failure back out of a JSON-RPC error's `message` and `data`.
    pub(crate) fn from_rpc(message: &str, data: &Value) -> Option<Self> {
        let kind = FailureKind::parse(data.get("kind")?.as_str()?)?;
        Some(Self {
            kind,
            message: crate::rpc::one_line(message, 600),
            retryable: data.get("retryable").and_then(Value::as_bool).unwrap_or(false),
            retry_after_s: data.get("retryAfterS").and_then(Value::as_u64),
        })
    }
}
