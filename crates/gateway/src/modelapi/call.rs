//! Asks a model server: key, records, attempts; ends with an answer whose body is still to come.

use super::body::AskBody;
use super::operation::Ask;
use super::outcome::{Outcome, sha256_hex};
use super::provider;
use super::route::Model;
use super::wire::{Failure, LOGIN_REQUEST_FIELDS, PASSED_REQUEST_FIELDS};
use crate::counters::Counters;
use crate::door::DoorState;
use crate::endpoint::Endpoint;
use crate::http::head::Head;
use crate::login::{Credential, Who};
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
use model::{Body, Durability, LoginConfig, LoginProvider};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// An error page is read only as far as a message may stand in it.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;
/// Time to read an error page.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);
/// Where Anthropic's clients say what they want to try.
const BETA: &str = "anthropic-beta";
/// What says that the bearer token is one of a subscription.
const OAUTH_BETA: &str = "oauth-2025-04-20";
/// As much of a provider's own words as helps a person.
const QUOTED_CHARS_MAX: usize = 400;

/// One question to one server.
pub(crate) struct Question<'a> {
    pub(crate) model: &'a Model,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) ask: Ask,
    pub(crate) head: &'a Head,
    pub(crate) body: Bytes,
    /// Further secrets that the answer must not show.
    pub(crate) veil: &'a [Secret],
}

impl Question<'_> {
    /// Masks the credential it was asked with, and the door's other secrets.
    pub(crate) fn masker(&self, own: Option<&Credential>) -> Masker {
        let own = own.map(|own| own.bytes.expose());
        Masker::of(own.into_iter().chain(self.veil.iter().map(|s| s.bytes.expose())))
    }
}

/// An answer that is worth passing on, or an error body of the provider's own.
pub(crate) enum Reply {
    /// 2xx: the body is still to come.
    Answer(Exchange),
    /// A refusal of this very request (400, 404, …) in the provider's words, masked.
    Refused { status: u16, body: Vec<u8> },
}

/// Opens the model's key, or the access token of its login, and checks that it may be used at
/// this host.
pub(crate) async fn key_for(
    door: &DoorState,
    q: &Question<'_>,
) -> Result<Option<Credential>, Failure> {
    if let Some(login) = &q.model.config.login {
        return token_for(door, q, login, None).await.map(Some);
    }
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
    Ok(Some(Credential { bytes: secret.bytes, login: None }))
}

/// The login's access token; with `refused`, another one than that.
async fn token_for(
    door: &DoorState,
    q: &Question<'_>,
    login: &LoginConfig,
    refused: Option<&Credential>,
) -> Result<Credential, Failure> {
    let scribe = &door.scribe;
    let who = Who {
        session: Some(scribe.session.clone()),
        agent: Some(scribe.agent.clone()),
        turn: scribe.turn.get(),
    };
    let host = &q.endpoint.host;
    door.logins.credential(&who, login, host, refused).await.map_err(|trouble| Failure {
        passing: trouble.passing,
        ..Failure::new(trouble.status, trouble.to_string())
    })
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
    what: (&[u8], &AskBody),
    bill: Option<&Reservation>,
) -> Result<(), Failure> {
    let (written, reserved) =
        tokio::join!(biased; written(door, model, (api, host), what), reserved(bill));
    written.and(reserved)
}

async fn written(
    door: &DoorState,
    model: &Model,
    (api, host): (&str, &str),
    (body, asked): (&[u8], &AskBody),
) -> Result<(), Failure> {
    let request = door.scribe.write(
        Body::ModelRequest {
            model: model.config.name.clone(),
            api: api.to_owned(),
            host: host.to_owned(),
            bytes: body.len() as u64,
            sha256: sha256_hex(body),
            provider_tools: asked.provider_tools.iter().map(|t| (*t).to_owned()).collect(),
        },
        Durability::Durable,
    );
    let login = model.config.login.as_ref().map(|login| format!("login:{}", login.name));
    let written = match model.config.secret.clone().or(login) {
        Some(secret) => {
            let used = Body::SecretUsed { secret, host: host.to_owned() };
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
    secret: &mut Option<Credential>,
    outcome: &mut Outcome,
) -> Result<Reply, Failure> {
    let granted = &door.provider_tools;
    let mut prototype = build(q, secret.as_ref(), granted)?;
    let (mut attempt, mut renewed, started) = (0, false, Instant::now());
    loop {
        attempt += 1;
        Counters::add(&door.scribe.counters.bytes_up, q.body.len() as u64);
        let prepared = || clone_request(&prototype);
        let sent = door.pool.send(q.endpoint, prepared, &mut outcome.begun).await;
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
                let body = exchange.response.into_body();
                let body = error_body(body, q.masker(secret.as_ref()), outcome).await;
                let status = true_status(status, &body);
                // A token that has run out or was taken back is renewed once, and asked with again.
                if let (401, false, Some(login)) = (status, renewed, &q.model.config.login) {
                    renewed = true;
                    *secret = Some(token_for(door, q, login, secret.as_ref()).await?);
                    prototype = build(q, secret.as_ref(), granted)?;
                    continue;
                }
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

fn build(
    q: &Question<'_>,
    secret: Option<&Credential>,
    provider_tools: &BTreeSet<String>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let broken = |what: &str| Failure::new(400, format!("the request cannot be built: {what}"));
    let wire = q.ask.wire();
    let path = q.ask.path(&q.model.config.model);
    let mut request = Request::post(format!("{}{path}", q.endpoint.prefix))
        .header("host", q.endpoint.host_field())
        .header("content-type", "application/json")
        .body(Full::new(q.body.clone()))
        .map_err(|_| broken("its path"))?;
    let of_login = if q.model.config.login.is_some() { LOGIN_REQUEST_FIELDS } else { &[] };
    for &name in PASSED_REQUEST_FIELDS.iter().chain(of_login) {
        if let Some(value) = q.head.field(name) {
            let value = match name {
                "anthropic-beta" => provider::granted_betas(value, provider_tools),
                _ => Cow::Borrowed(value),
            };
            let value = HeaderValue::from_str(&value).map_err(|_| broken(name))?;
            if !value.is_empty() {
                request.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
    }
    if let Some(secret) = secret {
        let (field, before) = match secret.login {
            Some(_) => ("authorization", "Bearer "),
            None => wire.key_field(),
        };
        let mut value = Zeroizing::new(before.as_bytes().to_vec());
        value.extend_from_slice(secret.bytes.expose());
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
            let name = q.model.config.secret.as_deref().unwrap_or("?");
            broken(&format!("the key named {name} has characters that no header may hold; set it again with `nanoclaw secret set {name}`"))
        })?;
        value.set_sensitive(true);
        request.headers_mut().insert(HeaderName::from_static(field), value);
        login_fields(request.headers_mut(), secret);
    }
    Ok(request)
}

/// What says to Anthropic that the bearer token is one of a subscription.
fn login_fields(headers: &mut hyper::HeaderMap, credential: &Credential) {
    if credential.login != Some(LoginProvider::Claude) {
        return;
    }
    let said = headers.get(BETA).and_then(|v| v.to_str().ok()).unwrap_or("");
    if said.split(',').any(|flag| flag.trim() == OAUTH_BETA) {
        return;
    }
    let all = if said.is_empty() { OAUTH_BETA.into() } else { format!("{said},{OAUTH_BETA}") };
    if let Ok(value) = HeaderValue::from_str(&all) {
        headers.insert(BETA, value);
    }
}

fn clone_request(prototype: &Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let mut request = Request::new(prototype.body().clone());
    *request.method_mut() = prototype.method().clone();
    *request.uri_mut() = prototype.uri().clone();
    *request.headers_mut() = prototype.headers().clone();
    request
}

async fn error_body(body: Incoming, mut masker: Masker, outcome: &mut Outcome) -> Vec<u8> {
    let read = Limited::new(body, ERROR_BODY_BYTES_MAX).collect();
    let bytes = match tokio::time::timeout(ERROR_BODY_TIME, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    outcome.saw(&bytes);
    masker.whole(&bytes)
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
    // Only looked at: as a tree a page of 64 KiB may take megabytes.
    let json = body.trim_ascii_start().first() == Some(&b'{')
        && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let unknown_model = status == 404 && provider_words(body).is_none();
    (about_request && json && !unknown_model)
        .then(|| Reply::Refused { status, body: body.to_vec() })
}

fn provider_words(body: &[u8]) -> Option<String> {
    /// What stands under `error`, or under `message` in it; all else takes no memory.
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
    }
    let error = serde_json::from_slice::<Told<'_>>(body).ok()?.error;
    let told = serde_json::from_str::<Inner<'_>>(error.get()).map_or(error, |e| e.message);
    let text: String = serde_json::from_str(told.get()).ok()?;
    Some(text.chars().take(QUOTED_CHARS_MAX).collect())
}

fn status_failure(q: &Question<'_>, status: u16, body: &[u8]) -> Failure {
    let host = &q.endpoint.host;
    let name = &q.model.config.name;
    let said = provider_words(body).map(|w| format!(": {w}")).unwrap_or_default();
    let message = match (status, &q.model.config.secret) {
        (401 | 403, None) if q.model.config.login.is_some() => {
            let login = q.model.config.login.as_ref().map_or("?", |l| l.name.as_str());
            format!(
                "the login {login} was refused by {host} (status {status}{said}); if it serves no \
                 more, log in again with `nanoclaw login {login}` (docs/subscriptions.md says what \
                 the providers allow)"
            )
        }
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
