//! One question to a token endpoint (RFC 6749 §3.2), and what its answer means.

use super::flow::form;
use super::tokens::Tokens;
use crate::endpoint::Endpoint;
use crate::lookups::Lookups;
use crate::retry;
use crate::upstream::{Pool, Tls};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::header::HeaderValue;
use model::{LoginConfig, LoginProvider};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// An answer with three tokens is far smaller.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The answer may hold the only refresh token there is from now on, so it is waited for longer
/// than anybody waits for us.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// Errors that end a login: asking again with the same token cannot help. RFC 6749 §5.2, and
/// `OpenAI`'s own words.
const ENDING: [&str; 8] = [
    "invalid_grant",
    "invalid_client",
    "unauthorized_client",
    "access_denied",
    "refresh_token_expired",
    "refresh_token_reused",
    "refresh_token_invalidated",
    "token_expired",
];
/// Further errors that are known, and so may be repeated.
const KNOWN: [&str; 6] = [
    "invalid_request",
    "invalid_scope",
    "unsupported_grant_type",
    "temporarily_unavailable",
    "server_error",
    "rate_limit_error",
];

/// Why there are no tokens.
pub(super) enum NoTokens {
    /// There will never be any for what was sent.
    Ended(String),
    /// Perhaps later.
    Later(String),
}

/// What was asked with.
pub(super) enum Grant<'a> {
    Code { code: &'a str, verifier: &'a str, state: &'a str },
    Refresh(&'a Tokens),
}

/// Where tokens are asked for.
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    path: String,
}

impl Place {
    pub(super) fn of(config: &LoginConfig) -> Result<Self, String> {
        let url = &config.token_url;
        let after = url.find("://").map_or(0, |at| at + 3);
        let (origin, path) = url.split_at(url[after..].find('/').map_or(url.len(), |n| after + n));
        let endpoint = Endpoint::parse(origin, &[]).map_err(|e| e.to_string())?;
        Ok(Self { endpoint, path: if path.is_empty() { "/".into() } else { path.to_owned() } })
    }
}

/// Asks once. `status` is set as soon as there is one.
pub(super) async fn ask(
    (tls, lookups): (&Arc<Tls>, &Lookups),
    place: &Place,
    (config, client_id): (&LoginConfig, &str),
    grant: Grant<'_>,
    now_ms: u64,
    status: &mut u16,
) -> Result<Tokens, NoTokens> {
    let host = &place.endpoint.host;
    let later = |why: String| NoTokens::Later(why);
    let (kind, body) = body_of(config, client_id, &grant);
    let body = Bytes::from_owner(body);
    let request = || {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = hyper::Method::POST;
        // A path that was read from an address that was checked; "/" would then be refused.
        *request.uri_mut() = place.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(field) = HeaderValue::from_str(&place.endpoint.host_field()) {
            headers.insert("host", field);
        }
        headers.insert("content-type", HeaderValue::from_static(kind));
        headers.insert("accept", HeaderValue::from_static("application/json"));
        headers.insert("user-agent", HeaderValue::from_static("nanoclaw"));
        request
    };
    // A connection of its own: it carries more than any other.
    let pool = Pool::new(Arc::clone(tls), lookups.clone());
    let asking = async {
        let exchange =
            pool.send(&place.endpoint, request, &mut false).await.map_err(|e| e.to_string())?;
        let (response, _lease) = exchange.split();
        let status = response.status().as_u16();
        let read = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = read.map_err(|e| format!("the answer of {host} broke off: {e}"))?.to_bytes();
        Ok::<_, String>((status, Zeroizing::new(bytes.to_vec())))
    };
    let answered = tokio::time::timeout(ANSWER_TIME, asking).await;
    let answered = answered.map_err(|_| later(format!("{host} did not answer in time")))?;
    let (its_status, bytes) = answered.map_err(later)?;
    *status = its_status;
    let before = match grant {
        Grant::Refresh(tokens) => Some(tokens),
        Grant::Code { .. } => None,
    };
    judge(host, its_status, &bytes, (before, client_id), now_ms)
}

fn body_of(
    config: &LoginConfig,
    client_id: &str,
    grant: &Grant<'_>,
) -> (&'static str, Zeroizing<Vec<u8>>) {
    let pairs: Vec<(&str, &str)> = match grant {
        Grant::Code { code, verifier, state } => {
            let mut pairs = vec![
                ("grant_type", "authorization_code"),
                ("code", *code),
                ("redirect_uri", config.redirect_url.as_str()),
                ("client_id", client_id),
                ("code_verifier", *verifier),
            ];
            if config.provider == LoginProvider::Claude {
                pairs.push(("state", *state));
            }
            pairs
        }
        Grant::Refresh(tokens) => vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", tokens.refresh.as_deref().unwrap_or("")),
            ("client_id", client_id),
        ],
    };
    match config.provider {
        LoginProvider::Claude => {
            let all: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
            let mut json = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX));
            // A map of texts can always be written.
            let _ = serde_json::to_writer(&mut *json, &all);
            ("application/json", json)
        }
        LoginProvider::ChatGpt => {
            let text = form(&pairs);
            ("application/x-www-form-urlencoded", Zeroizing::new(text.as_bytes().to_vec()))
        }
    }
}

/// What an answer means. Of its words only known ones are repeated: others could be a token.
fn judge(
    host: &str,
    status: u16,
    body: &[u8],
    (before, client_id): (Option<&Tokens>, &str),
    now_ms: u64,
) -> Result<Tokens, NoTokens> {
    if status == 200 {
        return Tokens::of_answer(body, before, Some(client_id), now_ms).ok_or_else(|| {
            NoTokens::Later(format!("{host} gave an answer that is no answer of a token endpoint"))
        });
    }
    let word = word(body);
    let said = word.map(|w| format!(", {w}")).unwrap_or_default();
    let why = format!("{host} refused (status {status}{said})");
    let about_us = (400..500).contains(&status) && !retry::is_passing(status);
    if about_us && word.is_some_and(|w| ENDING.contains(&w)) {
        return Err(NoTokens::Ended(why));
    }
    Err(NoTokens::Later(why))
}

fn word(body: &[u8]) -> Option<&'static str> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error")?;
    let said = [Some(error), error.get("code"), error.get("type")];
    said.into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .find_map(|said| ENDING.iter().chain(&KNOWN).find(|known| **known == said).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_a_login_or_leave_it_for_later() {
        let ends = |status: u16, body: &str| {
            matches!(judge("h", status, body.as_bytes(), (None, "c"), 1), Err(NoTokens::Ended(_)))
        };
        assert!(ends(400, r#"{"error":"invalid_grant","error_description":"x"}"#));
        assert!(ends(401, r#"{"error":{"code":"refresh_token_reused","message":"x"}}"#));
        for (status, body) in [
            (503, r#"{"error":"invalid_grant"}"#),
            (429, r#"{"error":"invalid_grant"}"#),
            (400, r#"{"error":"invalid_request"}"#),
            (403, "<html>"),
            (200, r#"{"error":"invalid_grant"}"#),
            (302, ""),
        ] {
            assert!(!ends(status, body), "{status} {body}");
        }
    }

    #[test]
    fn no_word_of_the_provider_s_own_is_repeated() {
        let body = br#"{"error":"refresh-not-real","error_description":"refresh-not-real"}"#;
        match judge("h", 400, body, (None, "c"), 1) {
            Err(NoTokens::Later(why)) => assert!(!why.contains("not-real"), "{why}"),
            _ => panic!("neither tokens nor an end"),
        }
    }

    #[test]
    fn a_token_url_is_taken_apart() {
        let mut config = LoginConfig::built_in("claude", LoginProvider::Claude);
        let place = Place::of(&config).expect("a place");
        assert_eq!(place.path, "/v1/oauth/token");
        assert_eq!(place.endpoint.host, "console.anthropic.com");
        config.token_url = "http://127.0.0.1:9".into();
        assert_eq!(Place::of(&config).expect("a place").path, "/");
        config.token_url = "http://login.example.org/t".into();
        assert!(Place::of(&config).is_err());
    }
}
