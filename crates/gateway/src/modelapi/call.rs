//! Asks a model server: key, records, attempts; ends with an answer whose body is still to come.

use super::operation::Ask;
use super::outcome::{Outcome, sha256_hex};
use super::route::Model;
use super::wire::{Failure, PASSED_REQUEST_FIELDS};
use crate::counters::Counters;
use crate::door::DoorState;
use crate::endpoint::Endpoint;
use crate::http::head::Head;
use crate::mask::Masker;
use crate::retry;
use crate::upstream::{Exchange, UpstreamError};
use crate::usage::Reservation;
use crate::vault::Secret;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use model::{Body, Durability};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// An error page is read only as far as a message may stand in it.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;
/// Time to read an error page.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);
/// As much of a provider's own words as helps a person.
const QUOTED_CHARS_MAX: usize = 400;

/// One question to one server.
pub(crate) struct Question<'a> {
    pub(crate) model: &'a Model,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) ask: Ask,
    pub(crate) head: &'a Head,
    pub(crate) body: Bytes,
}

/// An answer that is worth passing on, or an error body of the provider's own.
pub(crate) enum Reply {
    /// 2xx: the body is still to come.
    Answer(Exchange),
    /// A refusal of this very request (400, 404, …) in the provider's words, masked.
    Refused { status: u16, body: Vec<u8> },
}

/// Opens the model's key and checks that it may be used at this host.
pub(crate) fn key_for(door: &DoorState, q: &Question<'_>) -> Result<Option<Secret>, Failure> {
    let Some(name) = &q.model.config.secret else { return Ok(None) };
    let secret = door.vault.secret(name).map_err(|e| Failure::new(401, e.to_string()))?;
    let agent = &door.scribe.agent;
    if !secret.is_for(agent) {
        let why = format!(
            "the key named {name} is not for agent {agent}; set it again with `nanoclaw secret set \
             {name}` and name this agent too"
        );
        return Err(Failure::new(403, why));
    }
    if !secret.serves(&q.endpoint.host, agent) {
        let (hosts, host) = (secret.hosts.join(", "), &q.endpoint.host);
        return Err(Failure::new(
            403,
            format!(
                "the key named {name} may be used at {hosts} only, not at {host}; set it again with \
                 `nanoclaw secret set {name} --host {host}`"
            ),
        ));
    }
    Ok(Some(secret))
}

/// Waits until what is reserved for the call is on the disk.
async fn reserved(bill: Option<&Reservation>) -> Result<(), Failure> {
    let Some(syncing) = bill.and_then(Reservation::syncing) else { return Ok(()) };
    let waited = tokio::task::spawn_blocking(|| syncing.wait()).await;
    let failed = |why: String| Failure::new(503, format!("nothing was sent, for {why}"));
    waited.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}

/// Writes the intent; one durable barrier covers both records, and the reservation's is waited for
/// at the same time.
pub(crate) async fn record_intent(
    door: &DoorState,
    model: &Model,
    (api, host): (&str, &str),
    body: &[u8],
    bill: Option<&Reservation>,
) -> Result<(), Failure> {
    let (written, reserved) =
        tokio::join!(biased; written(door, model, (api, host), body), reserved(bill));
    written.and(reserved)
}

async fn written(
    door: &DoorState,
    model: &Model,
    (api, host): (&str, &str),
    body: &[u8],
) -> Result<(), Failure> {
    let request = door.scribe.write(
        Body::ModelRequest {
            model: model.config.name.clone(),
            api: api.to_owned(),
            host: host.to_owned(),
            bytes: body.len() as u64,
            sha256: sha256_hex(body),
        },
        Durability::Durable,
    );
    let written = match &model.config.secret {
        Some(secret) => {
            let used = Body::SecretUsed { secret: secret.clone(), host: host.to_owned() };
            // Polled in this order, so submitted in this order.
            let used = door.scribe.write(used, Durability::Ordered);
            let (used, request) = tokio::join!(biased; used, request);
            used.and(request)
        }
        None => request.await,
    };
    written.map_err(|e| {
        Failure::new(503, format!("nothing was sent, for {e}; the message can be sent again later"))
    })
}

/// Asks until there is an answer or no further attempt is allowed.
pub(crate) async fn attempt_all(
    door: &DoorState,
    q: &Question<'_>,
    secret: Option<&Secret>,
    outcome: &mut Outcome,
) -> Result<Reply, Failure> {
    let prototype = build(q, secret)?;
    let request = || clone_request(&prototype);
    let (mut attempt, started) = (0, Instant::now());
    loop {
        attempt += 1;
        Counters::add(&door.scribe.counters.bytes_up, q.body.len() as u64);
        let sent = door.pool.send(q.endpoint, request).await;
        let (failure, passing, asked) = match sent {
            Err(e) => (unreachable_failure(q, &e), e.is_passing(), None),
            Ok(exchange) => {
                let status = exchange.response.status().as_u16();
                outcome.status = status;
                if (200..300).contains(&status) {
                    return Ok(Reply::Answer(exchange));
                }
                let field = |name: &str| {
                    exchange.response.headers().get(name).and_then(|v| v.to_str().ok())
                };
                let asked = retry::asked_pause(field("retry-after"), field("retry-after-ms"));
                let body = error_body(exchange.response.into_body(), secret, outcome).await;
                let status = true_status(status, &body);
                if let Some(reply) = own_words(status, &body) {
                    return Ok(reply);
                }
                (status_failure(q, status, &body), retry::is_passing(status), asked)
            }
        };
        let pause = door.retry.next_pause(attempt, started.elapsed(), asked, retry::jitter());
        match pause.filter(|_| passing) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(Failure { passing, ..with_attempts(failure, attempt) }),
        }
    }
}

fn with_attempts(mut failure: Failure, attempts: u32) -> Failure {
    if attempts > 1 {
        failure.message.push_str(&format!(" ({attempts} attempts were made)"));
    }
    failure
}

fn build(q: &Question<'_>, secret: Option<&Secret>) -> Result<Request<Full<Bytes>>, Failure> {
    let broken = |what: &str| Failure::new(400, format!("the request cannot be built: {what}"));
    let wire = q.ask.wire();
    let path = q.ask.path(&q.model.config.model);
    let mut request = Request::post(format!("{}{path}", q.endpoint.prefix))
        .header("host", q.endpoint.host_field())
        .header("content-type", "application/json")
        .body(Full::new(q.body.clone()))
        .map_err(|_| broken("its path"))?;
    for &name in PASSED_REQUEST_FIELDS {
        if let Some(value) = q.head.field(name) {
            let value = HeaderValue::from_str(value).map_err(|_| broken(name))?;
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    if let Some(secret) = secret {
        let (field, before) = wire.key_field();
        let mut value = Zeroizing::new(before.as_bytes().to_vec());
        value.extend_from_slice(secret.bytes.expose());
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
            let name = q.model.config.secret.as_deref().unwrap_or("?");
            broken(&format!("the key named {name} has characters that no header may hold; set it again with `nanoclaw secret set {name}`"))
        })?;
        value.set_sensitive(true);
        request.headers_mut().insert(HeaderName::from_static(field), value);
    }
    Ok(request)
}

fn clone_request(prototype: &Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let mut request = Request::new(prototype.body().clone());
    *request.method_mut() = prototype.method().clone();
    *request.uri_mut() = prototype.uri().clone();
    *request.headers_mut() = prototype.headers().clone();
    request
}

async fn error_body(body: Incoming, secret: Option<&Secret>, outcome: &mut Outcome) -> Vec<u8> {
    let read = Limited::new(body, ERROR_BODY_BYTES_MAX).collect();
    let bytes = match tokio::time::timeout(ERROR_BODY_TIME, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    outcome.saw(&bytes);
    Masker::new(secret.map(|s| s.bytes.expose())).whole(&bytes)
}

/// Google tells a bad key as a bad request (google.rpc.ErrorInfo, reason `API_KEY_INVALID`).
fn true_status(status: u16, body: &[u8]) -> u16 {
    const REASON: &[u8] = b"\"API_KEY_INVALID\"";
    if status == 400 && body.windows(REASON.len()).any(|w| w == REASON) { 401 } else { status }
}

/// Refusals of the request itself are the agent's to read, if they are JSON at all.
fn own_words(status: u16, body: &[u8]) -> Option<Reply> {
    let about_request = (400..500).contains(&status)
        && !retry::is_passing(status)
        && !matches!(status, 401 | 403 | 407);
    let json = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok();
    let unknown_model = status == 404 && provider_words(body).is_none();
    (about_request && json && !unknown_model)
        .then(|| Reply::Refused { status, body: body.to_vec() })
}

fn provider_words(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error")?;
    let text = error.get("message").unwrap_or(error).as_str()?;
    Some(text.chars().take(QUOTED_CHARS_MAX).collect())
}

fn status_failure(q: &Question<'_>, status: u16, body: &[u8]) -> Failure {
    let host = &q.endpoint.host;
    let name = &q.model.config.name;
    let said = provider_words(body).map(|w| format!(": {w}")).unwrap_or_default();
    let message = match (status, &q.model.config.secret) {
        (401 | 403, Some(secret)) => format!(
            "the key named {secret} was refused by {host} (status {status}{said}); set it with \
             `nanoclaw secret set {secret}`"
        ),
        (401 | 403, None) => format!(
            "{host} wants a key (status {status}{said}), and the model {name:?} has none; store one \
             with `nanoclaw secret set NAME` and write secret = \"NAME\" in [models.{name}]"
        ),
        (300..=399, _) => format!(
            "{host} answered with a redirect, which is not followed; correct base_url in \
             [models.{name}]"
        ),
        (404, _) => {
            let path = q.ask.path(&q.model.config.model);
            format!("{host} knows no {path}; check base_url and model in [models.{name}]")
        }
        (429, _) => format!("{host} allows no further requests for now (status 429{said})"),
        _ => format!("{host} cannot answer now (status {status}{said})"),
    };
    let status = if (400..600).contains(&status) { status } else { 502 };
    Failure::new(status, message)
}

fn unreachable_failure(q: &Question<'_>, error: &UpstreamError) -> Failure {
    let name = &q.model.config.name;
    let status = if matches!(error, UpstreamError::Silent { .. }) { 504 } else { 502 };
    Failure::new(
        status,
        format!(
            "the model {name:?} cannot be reached: {error}; check that its server runs and that \
             base_url in [models.{name}] is right"
        ),
    )
}
