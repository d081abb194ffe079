//! Failures of the model as one plain sentence with a remedy, and whether to try again.

use super::http::{HttpError, Response};
use crate::acp::{FailureKind, ModelFailure};
use crate::rpc::one_line;
use serde_json::Value;

/// Longest part of a server's own words that is passed on.
const MAX_WORDS_BYTES: usize = 400;
/// Most of an error body that is read.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

fn failure(kind: FailureKind, retryable: bool, message: impl Into<String>) -> ModelFailure {
    ModelFailure { kind, message: message.into(), retryable, retry_after_s: None }
}

pub(super) fn bad_answer(why: &str) -> ModelFailure {
    let text = format!("The model gave an answer that could not be understood: {why}.");
    failure(FailureKind::BadAnswer, true, text)
}

pub(super) fn cut_off() -> ModelFailure {
    let text = "The model broke off in the middle of its answer. Please try again.";
    failure(FailureKind::ModelUnavailable, true, text)
}

pub(super) fn unreachable(error: &HttpError) -> ModelFailure {
    match error {
        HttpError::Invalid(_) | HttpError::TooLarge { .. } => bad_answer(&error.to_string()),
        _ => {
            let text = format!("The model cannot be reached: {error}. Please try again later.");
            failure(FailureKind::ModelUnavailable, true, text)
        }
    }
}

pub(super) fn broken_off(error: &HttpError) -> ModelFailure {
    match error {
        HttpError::Ended | HttpError::Io(_) => cut_off(),
        _ => unreachable(error),
    }
}

/// What a non-200 response means.
pub(super) fn status(response: &mut Response) -> ModelFailure {
    let body = response.body.read_some(MAX_ERROR_BODY_BYTES);
    let wait = response.head.header("retry-after").and_then(|value| value.parse().ok());
    let mut failure = describe(response.head.status, &body);
    failure.retry_after_s = wait.filter(|_| failure.retryable);
    failure
}

fn describe(status: u16, body: &[u8]) -> ModelFailure {
    let error = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|mut body| body.get_mut("error").map(Value::take))
        .unwrap_or(Value::Null);
    let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("");
    let words = error.as_str().unwrap_or_else(|| field("message"));
    let verdict = judge(status, field("type"), field("code"), words);
    let words = one_line(words, MAX_WORDS_BYTES);
    // The gateway's and the providers' own words say the remedy; ours is for those who say nothing.
    let message = if words.is_empty() {
        format!("{} (HTTP {status}); {}.", verdict.cause, verdict.remedy)
    } else {
        format!("{}: {words}", verdict.cause)
    };
    failure(verdict.kind, verdict.retryable, message)
}

struct Verdict {
    kind: FailureKind,
    retryable: bool,
    cause: &'static str,
    remedy: &'static str,
}

fn judge(status: u16, class: &str, code: &str, words: &str) -> Verdict {
    let lower = words.to_ascii_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let too_long = code == "context_length_exceeded"
        || says(&["prompt is too long", "context length", "context window", "context size"]);
    let no_credit = code == "insufficient_quota" || class == "insufficient_quota";
    let (kind, retryable, cause, remedy) = match status {
        402 if code == OUR_BUDGET => {
            (FailureKind::RateLimited, false, NOT_SENT, "raise the budget in the agent's file")
        }
        413 => (FailureKind::TooLong, false, TOO_LONG, "start a new one with /new"),
        400 | 422 if too_long => {
            (FailureKind::TooLong, false, TOO_LONG, "start a new one with /new")
        }
        401 => (FailureKind::BadKey, false, BAD_KEY, "set a valid one with `nanoclaw secret set`"),
        403 if words.is_empty() || says(&["key", "credential", "token"]) => {
            (FailureKind::BadKey, false, BAD_KEY, "set a valid one with `nanoclaw secret set`")
        }
        402 => (FailureKind::RateLimited, false, NO_CREDIT, "add credit at the provider"),
        429 if no_credit => {
            (FailureKind::RateLimited, false, NO_CREDIT, "add credit at the provider")
        }
        429 => (
            FailureKind::RateLimited,
            true,
            "The model takes no more requests just now",
            "try again in a while",
        ),
        404 => (
            FailureKind::ModelUnavailable,
            false,
            "The model is not known to its server",
            "check model and base_url in nanoclaw.toml",
        ),
        408 | 425 | 500..=599 => (
            FailureKind::ModelUnavailable,
            true,
            "The model cannot answer now",
            "try again in a while",
        ),
        _ => (
            FailureKind::ModelUnavailable,
            false,
            "The model's server refused the request",
            "check the model's settings in nanoclaw.toml",
        ),
    };
    Verdict { kind, retryable, cause, remedy }
}

const TOO_LONG: &str = "The model cannot take a conversation this long";
const BAD_KEY: &str = "The model refused the key";
const NO_CREDIT: &str = "The model's account has no credit left";
const NOT_SENT: &str = "Nothing was sent to the model";
/// The gateway's code for a budget of the agent's file, which is no matter of the provider's.
const OUR_BUDGET: &str = "nanoclaw_budget";

/// An error that came inside a stream that had begun well.
pub(super) fn in_stream(error: &Value) -> ModelFailure {
    let class = error.get("type").and_then(Value::as_str).unwrap_or("");
    let status = match class {
        "authentication_error" | "permission_error" => 401,
        "rate_limit_error" => 429,
        "invalid_request_error" => 400,
        "request_too_large" => 413,
        "not_found_error" => 404,
        _ => 529,
    };
    describe(status, serde_json::json!({"error": error}).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_kinds() {
        let long = br#"{"error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens"}}"#;
        let quota = br#"{"error":{"code":"insufficient_quota","message":"pay"}}"#;
        for (status, body, kind, retryable) in [
            (401, &b"{}"[..], FailureKind::BadKey, false),
            (429, b"", FailureKind::RateLimited, true),
            (429, quota, FailureKind::RateLimited, false),
            (500, b"<html>", FailureKind::ModelUnavailable, true),
            (529, b"[]", FailureKind::ModelUnavailable, true),
            (404, b"\xff", FailureKind::ModelUnavailable, false),
            (400, long, FailureKind::TooLong, false),
            (400, b"{}", FailureKind::ModelUnavailable, false),
        ] {
            let failure = describe(status, body);
            assert_eq!((failure.kind, failure.retryable), (kind, retryable), "{status}");
        }
    }

    #[test]
    fn a_budget_of_ours_is_not_the_providers_credit() {
        let ours = br#"{"type":"error","error":{"type":"billing_error","code":"nanoclaw_budget","message":"the budget of agent a is used up"}}"#;
        let failure = describe(402, ours);
        assert_eq!((failure.kind, failure.retryable), (FailureKind::RateLimited, false));
        let expected = "Nothing was sent to the model: the budget of agent a is used up";
        assert_eq!(failure.message, expected);
        let theirs = br#"{"error":{"type":"billing_error","message":"pay"}}"#;
        assert_eq!(describe(402, theirs).message, "The model's account has no credit left: pay");
    }

    #[test]
    fn the_servers_words_are_passed_on_in_one_printable_line() {
        let body = br#"{"error":{"type":"rate_limit_error","message":"Used up.\nAsk \u001b[31m the owner."}}"#;
        let expected = "The model takes no more requests just now: Used up. Ask [31m the owner.";
        assert_eq!(describe(429, body).message, expected);
        let silent =
            "The model refused the key (HTTP 401); set a valid one with `nanoclaw secret set`.";
        assert_eq!(describe(401, b"").message, silent);
    }
}
