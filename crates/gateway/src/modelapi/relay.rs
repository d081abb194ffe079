//! Passes an answer on: streamed as it comes, metered, hashed and masked on the way.

use super::call::Question;
use super::outcome::Outcome;
use super::wire::{Failure, passes_answer_field};
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::login::Credential;
use crate::mask::Masker;
use crate::memory::{Full, Held};
use crate::upstream::{Exchange, Lease};
use crate::usage::{Meter, looks_like_sse};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::Incoming;
use std::io;
use std::time::Duration;

/// Largest answer that is not streamed: far above the longest text a model writes.
const JSON_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A stream that is silent for so long has died; providers send pings far more often.
const STREAM_SILENCE: Duration = Duration::from_secs(300);
/// A whole answer may take as long as the SDKs wait.
const JSON_TIME: Duration = Duration::from_secs(600);

/// What became of an answer.
pub(crate) enum Relayed {
    /// Passed on; whether the connection can serve another request.
    Done { keep_alive: bool },
    /// Nothing was passed on yet; the agent is told this instead.
    Failed(Failure),
}

/// Passes on a 2xx answer.
pub(crate) async fn relay(
    conn: &mut Conn,
    door: &DoorState,
    q: &Question<'_>,
    exchange: Exchange,
    secret: Option<&Credential>,
    outcome: &mut Outcome,
    keep_alive: bool,
) -> io::Result<Relayed> {
    let (response, lease) = exchange.split();
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if crate::egress::fields::is_encoded(&parts.headers) {
        return Ok(nonsense(q, "it is compressed, though no compression was accepted"));
    }
    let masker = q.masker(secret);
    let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, body, masker };
    match kind.as_str() {
        "text/event-stream" => stream(conn, door, q, answer, lease, outcome, keep_alive).await,
        "application/json" => whole(conn, door, q, answer, lease, outcome, keep_alive).await,
        other => Ok(nonsense(q, &format!("its content type is {:?}", cut(other)))),
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Incoming,
    masker: Masker,
}

impl Answer {
    /// The headers that may pass; one that holds the secret does not.
    fn fields(&mut self) -> Vec<(String, String)> {
        let passing = self.headers.iter().filter(|(name, _)| passes_answer_field(name.as_str()));
        let mut fields = Vec::new();
        for (name, value) in passing {
            let masked = self.masker.whole(value.as_bytes());
            if masked == value.as_bytes()
                && let Ok(text) = String::from_utf8(masked)
            {
                fields.push((name.as_str().to_owned(), text));
            }
        }
        fields
    }
}

fn as_refs(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn nonsense(q: &Question<'_>, why: &str) -> Relayed {
    let (host, name, asked) = (&q.endpoint.host, &q.model.config.name, q.ask.wire().name());
    Relayed::Failed(Failure::new(
        502,
        format!(
            "{host} gave an answer that is not of the {asked} format: {why}; check base_url and api \
             in [models.{name}]"
        ),
    ))
}

async fn whole(
    conn: &mut Conn,
    door: &DoorState,
    q: &Question<'_>,
    mut reply: Answer,
    lease: Lease,
    outcome: &mut Outcome,
    keep_alive: bool,
) -> io::Result<Relayed> {
    let fields = reply.fields();
    let mut held = door.memory.hold();
    let read = collect(&mut reply.body, &mut held);
    let Some(read) = conn.unless_gone(tokio::time::timeout(JSON_TIME, read)).await else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let body = match read {
        Ok(Ok(body)) => body,
        Ok(Err(Broken::Full(full))) => return Ok(Relayed::Failed(full.into())),
        Ok(Err(Broken::Other(why))) => return Ok(nonsense(q, &why)),
        Err(_) => return Ok(nonsense(q, "it did not end")),
    };
    door.pool.give_back(lease);
    outcome.saw(&body);
    if !q.ask.wire().is_answer(q.ask, &body) {
        return Ok(nonsense(q, "its JSON has another shape"));
    }
    outcome.usage = Meter::of(q.ask.wire(), &body);
    let masked = reply.masker.whole(&body);
    outcome.complete();
    let head = answer(reply.status, &as_refs(&fields), &AnswerBody::Whole(&masked), keep_alive);
    conn.write(&head).await?;
    Ok(Relayed::Done { keep_alive })
}

/// Why a whole answer was not read.
enum Broken {
    Full(Full),
    Other(String),
}

/// Reads a whole answer. It is charged four times: for a buffer that grows by doubling, for the
/// masked text, and for that text with its head.
async fn collect(body: &mut Incoming, held: &mut Held) -> Result<Bytes, Broken> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Broken::Other(format!("it ended early ({e})")))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > JSON_BYTES_MAX {
            return Err(Broken::Other(format!("it is longer than {JSON_BYTES_MAX} bytes")));
        }
        held.grow(4 * data.len()).map_err(Broken::Full)?;
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

/// The next piece of a stream; `Err` says how it broke.
async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        return match tokio::time::timeout(STREAM_SILENCE, body.frame()).await {
            Err(_) => Err("it fell silent".into()),
            Ok(None) => Ok(None),
            Ok(Some(Err(e))) => Err(format!("it broke off ({e})")),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => Ok(Some(data)),
                Err(_) => continue,
            },
        };
    }
}

async fn stream(
    conn: &mut Conn,
    door: &DoorState,
    q: &Question<'_>,
    mut reply: Answer,
    lease: Lease,
    outcome: &mut Outcome,
    keep_alive: bool,
) -> io::Result<Relayed> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let fields = reply.fields();
    let first = conn.unless_gone(next_piece(&mut reply.body)).await.ok_or_else(gone)?;
    let mut piece = match first {
        Ok(Some(piece)) if looks_like_sse(&piece) => piece,
        Ok(Some(piece)) => {
            outcome.saw(&piece);
            return Ok(nonsense(q, "its stream has no events"));
        }
        Ok(None) => return Ok(nonsense(q, "its stream is empty")),
        Err(why) => return Ok(nonsense(q, &why)),
    };
    conn.write(&answer(reply.status, &as_refs(&fields), &AnswerBody::Chunks, keep_alive)).await?;
    let mut meter = Meter::of_events(q.ask.wire());
    let broke = loop {
        outcome.saw(&piece);
        meter.feed(&piece);
        outcome.usage = meter.usage();
        conn.write_chunk(&reply.masker.feed(&piece)).await?;
        match conn.unless_gone(next_piece(&mut reply.body)).await.ok_or_else(gone)? {
            Ok(Some(next)) => piece = next,
            Ok(None) => break None,
            Err(why) => break Some(why),
        }
    };
    let mut tail = reply.masker.finish();
    match broke {
        None => {
            door.pool.give_back(lease);
            outcome.complete();
        }
        Some(why) => {
            let host = &q.endpoint.host;
            let message = format!("the answer of {host} is incomplete: {why}; ask again");
            tail.extend_from_slice(b"\n\n");
            tail.extend_from_slice(q.ask.wire().error_event(&message).as_bytes());
            outcome.failed(&message);
        }
    }
    conn.write_chunk(&tail).await?;
    conn.end_chunks().await?;
    Ok(Relayed::Done { keep_alive })
}
