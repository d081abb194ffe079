//! One origin-form request at the door, from head to answer.

use super::call::{self, Question, Reply};
use super::outcome::Outcome;
use super::relay::{self, Relayed};
use super::route::{self, AskBody, Backend, Model};
use super::wire::{self, Ask, Failure, Operation};
use crate::authority::quoted;
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, BodyReader, Conn, ReadError, answer};
use crate::http::head::Head;
use crate::script;
use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest request to a model: what Anthropic's API itself accepts.
pub(crate) const REQUEST_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bodies are accounted in units of this.
const PERMIT_BYTES: u64 = 64 * 1024;
/// Request bodies held in memory for one door at a time: two of the largest.
pub(crate) const BODY_PERMITS: usize = (2 * REQUEST_BYTES_MAX / PERMIT_BYTES) as usize;

/// Whether the connection can serve another request.
pub(crate) type KeepAlive = bool;

/// Answers one origin-form request.
pub(crate) async fn serve(conn: &mut Conn, door: &DoorState, head: &Head) -> io::Result<KeepAlive> {
    if head.field("upgrade").is_some() {
        let why = "WebSocket is not spoken here; use plain HTTP requests with streaming";
        door.scribe.refused(quoted(&head.target), "model-api", why.into()).await;
        return plain(conn, head, 426, why, &[("upgrade", "HTTP/1.1")]).await;
    }
    match wire::operation(&head.method, &head.target) {
        Operation::Ask(ask) => serve_ask(conn, door, head, ask).await,
        Operation::ListModels => {
            let list = wire::model_list(&model_ids(door)).to_string();
            json(conn, head.keep_alive, 200, list.as_bytes()).await
        }
        Operation::GetModel(id) if model_ids(door).contains(&id.as_str()) => {
            json(conn, head.keep_alive, 200, wire::model_entry(&id).to_string().as_bytes()).await
        }
        Operation::GetModel(id) => {
            let why = format!("no model named {id:?} is granted to this agent");
            plain(conn, head, 404, &why, &[]).await
        }
        Operation::Hello => plain(conn, head, 404, "not found", &[]).await,
        Operation::WrongMethod(right) => {
            plain(conn, head, 405, &format!("use {right}"), &[("allow", right)]).await
        }
        Operation::Unknown => {
            let why = "this path is no model API; spoken here: POST /v1/messages, POST \
                       /v1/messages/count_tokens, POST /v1/chat/completions, GET /v1/models (for \
                       other hosts use the proxy variables)";
            let target = format!("{} {}", head.method, quoted(&head.target));
            door.scribe.refused(target, "model-api", "not a model API".into()).await;
            plain(conn, head, 404, why, &[]).await
        }
    }
}

fn model_ids(door: &DoorState) -> Vec<&str> {
    let mut ids: Vec<&str> = Vec::new();
    for model in &door.models {
        for id in [model.config.name.as_str(), model.config.model.as_str()] {
            if !id.is_empty() && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// Answers with a line of text. An unread request body ends the connection.
pub(crate) async fn plain(
    conn: &mut Conn,
    head: &Head,
    status: u16,
    text: &str,
    more: &[(&str, &str)],
) -> io::Result<KeepAlive> {
    let keep_alive = head.keep_alive && head.framing == crate::http::head::Framing::None;
    let mut fields = vec![("content-type", "text/plain; charset=utf-8")];
    fields.extend_from_slice(more);
    let line = format!("{text}\n");
    let body = if head.method == "HEAD" {
        AnswerBody::HeadOnly
    } else {
        AnswerBody::Whole(line.as_bytes())
    };
    conn.write(&answer(status, &fields, &body, keep_alive)).await?;
    Ok(keep_alive)
}

async fn json(
    conn: &mut Conn,
    keep_alive: KeepAlive,
    status: u16,
    body: &[u8],
) -> io::Result<KeepAlive> {
    // Our own answer is final: SDKs honour this field and do not ask three times more.
    let fields = [("content-type", "application/json"), ("x-should-retry", "false")];
    let bytes = answer(status, &fields, &AnswerBody::Whole(body), keep_alive);
    conn.write(&bytes).await?;
    Ok(keep_alive)
}

async fn fail(
    conn: &mut Conn,
    keep_alive: KeepAlive,
    ask: Ask,
    failure: &Failure,
) -> io::Result<KeepAlive> {
    let error = ask.wire().error(failure.status, &failure.message).to_string();
    json(conn, keep_alive, failure.status, error.as_bytes()).await
}

async fn serve_ask(
    conn: &mut Conn,
    door: &DoorState,
    head: &Head,
    ask: Ask,
) -> io::Result<KeepAlive> {
    let (body, _held) = match read_whole(conn, head, &door.bodies).await {
        Ok(read) => read,
        Err(failure) => {
            // The rest of the body is still coming, so this connection is of no further use.
            return fail(conn, false, ask, &failure).await;
        }
    };
    let chosen = AskBody::parse(body).and_then(|body| {
        let model = route::choose(&door.models, door.default_model, &body.model, ask.wire())?;
        Ok((body, model))
    });
    match chosen {
        Err(failure) => fail(conn, head.keep_alive, ask, &failure).await,
        Ok((body, model)) => match &model.backend {
            Backend::Script(script) => play(conn, door, head, ask, model, script, &body).await,
            Backend::Http(endpoint) => {
                let body = body.with_model(&model.config.model);
                forward(conn, door, &Question { model, endpoint, ask, head, body }).await
            }
        },
    }
}

/// Reads a request body into memory, within what the door may hold.
async fn read_whole(
    conn: &mut Conn,
    head: &Head,
    permits: &Arc<Semaphore>,
) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Failure> {
    if head.field("content-encoding").is_some_and(|v| !v.eq_ignore_ascii_case("identity")) {
        return Err(Failure::new(415, "compressed request bodies are not accepted"));
    }
    let failure = |e: ReadError| Failure::new(e.status(), e.to_string());
    let mut reader = BodyReader::new(head.framing, REQUEST_BYTES_MAX).map_err(failure)?;
    if head.expects_continue() && !reader.is_done() {
        let go_on = conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        go_on.map_err(|e| failure(ReadError::Io(e)))?;
    }
    let mut body = BytesMut::new();
    let mut held = Vec::new();
    while let Some(piece) = conn.read_body(&mut reader).await.map_err(failure)? {
        if body.len() + piece.len() > held.len() * PERMIT_BYTES as usize {
            let permit = Arc::clone(permits).try_acquire_owned().map_err(|_| {
                Failure::new(
                    503,
                    "too many large requests of this session are under way; send fewer at once",
                )
            })?;
            held.push(permit);
        }
        body.extend_from_slice(&piece);
    }
    Ok((body.freeze(), held))
}

async fn forward(conn: &mut Conn, door: &DoorState, q: &Question<'_>) -> io::Result<KeepAlive> {
    let secret = match call::key_for(door, q) {
        Ok(secret) => secret,
        Err(failure) => return fail(conn, q.head.keep_alive, q.ask, &failure).await,
    };
    let wire = q.ask.wire();
    let intent = call::record_intent(door, q.model, wire.name(), &q.endpoint.host, &q.body).await;
    if let Err(failure) = intent {
        return fail(conn, q.head.keep_alive, q.ask, &failure).await;
    }
    let mut outcome = Outcome::new(Arc::clone(&door.scribe), q.model.config.name.clone());
    let asking = call::attempt_all(door, q, secret.as_ref(), &mut outcome);
    let Some(reply) = conn.unless_gone(asking).await else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let failure = match reply {
        Err(failure) => failure,
        Ok(Reply::Refused { status, body }) => {
            outcome.failed(&format!("refused with status {status}"));
            drop(outcome);
            return json(conn, q.head.keep_alive, status, &body).await;
        }
        Ok(Reply::Answer(exchange)) => {
            let (secret, keep_alive) = (secret.as_ref(), q.head.keep_alive);
            let relayed =
                relay::relay(conn, door, q, exchange, secret, &mut outcome, keep_alive).await?;
            match relayed {
                Relayed::Done { keep_alive } => return Ok(keep_alive),
                Relayed::Failed(failure) => failure,
            }
        }
    };
    outcome.failed(&failure.message);
    // On record before the agent can react to it.
    drop(outcome);
    fail(conn, q.head.keep_alive, q.ask, &failure).await
}

/// Plays a scripted model over the same path, with the same records.
async fn play(
    conn: &mut Conn,
    door: &DoorState,
    head: &Head,
    ask: Ask,
    model: &Model,
    script: &script::Script,
    body: &AskBody,
) -> io::Result<KeepAlive> {
    let host = script.model_name();
    if let Err(failure) = call::record_intent(door, model, "script", &host, body.bytes()).await {
        return fail(conn, head.keep_alive, ask, &failure).await;
    }
    let mut outcome = Outcome::new(Arc::clone(&door.scribe), model.config.name.clone());
    let performance = match script::perform(script, ask, body.bytes(), body.stream) {
        Ok(performance) => performance,
        Err(why) => {
            outcome.failed(&why);
            drop(outcome);
            return fail(conn, head.keep_alive, ask, &Failure::new(400, why)).await;
        }
    };
    outcome.status = 200;
    outcome.usage = performance.usage;
    let keep_alive = head.keep_alive;
    if let Some(whole) = &performance.whole {
        outcome.saw(whole);
        outcome.complete();
        let fields = [("content-type", "application/json")];
        conn.write(&answer(200, &fields, &AnswerBody::Whole(whole), keep_alive)).await?;
        return Ok(keep_alive);
    }
    let fields = [("content-type", "text/event-stream"), ("cache-control", "no-cache")];
    conn.write(&answer(200, &fields, &AnswerBody::Chunks, keep_alive)).await?;
    for event in &performance.events {
        if !performance.delay.is_zero() {
            let pause = conn.unless_gone(tokio::time::sleep(performance.delay)).await;
            pause.ok_or(io::ErrorKind::BrokenPipe)?;
        }
        outcome.saw(event.as_bytes());
        conn.write_chunk(event.as_bytes()).await?;
    }
    outcome.complete();
    conn.end_chunks().await?;
    Ok(keep_alive)
}
