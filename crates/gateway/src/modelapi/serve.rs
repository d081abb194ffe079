//! One origin-form request at the door, from head to answer.

use super::ask;
use super::credential;
use super::operation::{Ask, Listing, Operation, operation};
use super::wire::{self, Failure, Wire};
use crate::authority::quoted;
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, BodyReader, Conn, ReadError, answer};
use crate::http::head::{Framing, Head};
use crate::memory::{Full, Held, Memory};
use bytes::{Bytes, BytesMut};
use std::io;

/// Largest request to a model: what Anthropic's API itself accepts.
pub(crate) const REQUEST_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Whether the connection can serve another request.
pub(crate) type KeepAlive = bool;

/// Answers one origin-form request.
pub(crate) async fn serve(conn: &mut Conn, door: &DoorState, head: &Head) -> io::Result<KeepAlive> {
    if head.field("upgrade").is_some() {
        let why = "WebSocket is not spoken here; use plain HTTP requests with streaming";
        door.scribe.refused(quoted(&head.target), "model-api", why.into()).await;
        return plain(conn, head, 426, why, &[("upgrade", "HTTP/1.1")]).await;
    }
    let operation = operation(&head.method, &head.target);
    let wire = match &operation {
        Operation::Ask { ask, .. } => Some(ask.wire()),
        Operation::ListModels(listing) | Operation::GetModel(listing, _) => Some(match listing {
            Listing::Common => Wire::OpenAi,
            Listing::Gemini => Wire::Gemini,
        }),
        _ => None,
    };
    if let Some(wire) = wire
        && let Err(failure) = credential::check(head, &door.placeholder)
    {
        // Never the target as it came: its query may hold the key.
        let path = head.target.split('?').next().unwrap_or("");
        let target = format!("{} {}", head.method, quoted(path));
        door.scribe.refused(target, "placeholder", failure.message.clone()).await;
        let keep_alive = head.keep_alive && head.framing == Framing::None;
        return fail_as(conn, keep_alive, wire, &failure).await;
    }
    match operation {
        Operation::Ask { ask, model } => ask::serve(conn, door, head, ask, model.as_deref()).await,
        Operation::ListModels(listing) => {
            let list = wire::model_list(listing, &model_ids(door)).to_string();
            json(conn, head.keep_alive, 200, list.as_bytes()).await
        }
        Operation::GetModel(listing, id) if model_ids(door).contains(&id.as_str()) => {
            let entry = wire::model_entry(listing, &id).to_string();
            json(conn, head.keep_alive, 200, entry.as_bytes()).await
        }
        Operation::GetModel(_, id) => {
            let why = format!("no model named {id:?} is granted to this agent");
            plain(conn, head, 404, &why, &[]).await
        }
        Operation::Hello => plain(conn, head, 404, "not found", &[]).await,
        Operation::WrongMethod(right) => {
            plain(conn, head, 405, &format!("use {right}"), &[("allow", right)]).await
        }
        Operation::Unknown => unknown(conn, door, head).await,
    }
}

async fn unknown(conn: &mut Conn, door: &DoorState, head: &Head) -> io::Result<KeepAlive> {
    let why = "this path is no model API; spoken here: POST /v1/messages, POST \
               /v1/messages/count_tokens, POST /v1/chat/completions, POST /v1/responses, POST \
               /v1/embeddings, GET /v1/models, and below /v1beta/models Gemini's generateContent, \
               streamGenerateContent and countTokens (for other hosts use the proxy variables)";
    let target = format!("{} {}", head.method, quoted(&head.target));
    door.scribe.refused(target, "model-api", "not a model API".into()).await;
    plain(conn, head, 404, why, &[]).await
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
    let keep_alive = head.keep_alive && head.framing == Framing::None;
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

/// Answers with JSON.
pub(crate) async fn json(
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

/// Answers with an error in the format of the question.
pub(crate) async fn fail(
    conn: &mut Conn,
    keep_alive: KeepAlive,
    ask: Ask,
    failure: &Failure,
) -> io::Result<KeepAlive> {
    fail_as(conn, keep_alive, ask.wire(), failure).await
}

async fn fail_as(
    conn: &mut Conn,
    keep_alive: KeepAlive,
    wire: Wire,
    failure: &Failure,
) -> io::Result<KeepAlive> {
    let (status, message) = (failure.status, &failure.message);
    let error = match failure.budget {
        true => wire.budget_error(status, message),
        false => wire.error(status, message),
    };
    let error = error.to_string();
    json(conn, keep_alive, failure.status, error.as_bytes()).await
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        Self::new(503, full.to_string())
    }
}

/// Reads a request body into memory, within what the door may hold.
pub(crate) async fn read_whole(
    conn: &mut Conn,
    head: &Head,
    memory: &Memory,
) -> Result<(Bytes, Held), Failure> {
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
    let mut held = memory.hold();
    while let Some(piece) = conn.read_body(&mut reader).await.map_err(failure)? {
        // The buffer doubles when it is full.
        held.grow(2 * piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok((body.freeze(), held))
}
