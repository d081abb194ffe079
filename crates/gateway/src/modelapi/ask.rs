//! A question to a model, from its body to the end of its answer.

use super::body::AskBody;
use super::call::{self, Question, Reply};
use super::operation::Ask;
use super::outcome::Outcome;
use super::relay::{self, Relayed};
use super::route::{self, Backend, Model};
use super::serve::{KeepAlive, fail, json, read_whole};
use super::spend;
use super::wire::Failure;
use crate::door::DoorState;
use crate::endpoint::Endpoint;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::Head;
use crate::script::{self, Script};
use std::io;
use std::sync::Arc;

/// What one model made of the question.
enum Turned {
    /// The agent has its answer, or its error.
    Done(KeepAlive),
    /// Nothing was passed on yet.
    Failed(Failure),
}

/// A question and whom it came from.
struct Asked<'a> {
    door: &'a DoorState,
    head: &'a Head,
    ask: Ask,
    body: AskBody,
}

/// Answers one question.
pub(crate) async fn serve(
    conn: &mut Conn,
    door: &DoorState,
    head: &Head,
    ask: Ask,
    in_path: Option<&str>,
) -> io::Result<KeepAlive> {
    let (body, _held) = match read_whole(conn, head, &door.bodies).await {
        Ok(read) => read,
        Err(failure) => {
            // The rest of the body is still coming, so this connection is of no further use.
            return fail(conn, false, ask, &failure).await;
        }
    };
    let chosen = AskBody::parse(body, ask, in_path).and_then(|body| {
        let model = route::choose(&door.models, door.default_model, &body.model, ask)?;
        Ok((body, model))
    });
    let (body, first) = match chosen {
        Err(failure) => return fail(conn, head.keep_alive, ask, &failure).await,
        Ok(chosen) => chosen,
    };
    let asked = Asked { door, head, ask, body };
    let mut others = route::in_order(&door.models, first, ask).into_iter().peekable();
    while let Some(model) = others.next() {
        let turned = match &model.backend {
            Backend::Script(script) => play(conn, &asked, model, script).await?,
            Backend::Http(endpoint) => forward(conn, &asked, model, endpoint).await?,
        };
        match turned {
            Turned::Done(keep_alive) => return Ok(keep_alive),
            Turned::Failed(failure) if failure.passing && others.peek().is_some() => {}
            Turned::Failed(failure) => return fail(conn, head.keep_alive, ask, &failure).await,
        }
    }
    // The first is always there, and ends above if it is the only one.
    fail(conn, false, ask, &Failure::new(500, "no model was asked")).await
}

async fn forward(
    conn: &mut Conn,
    asked: &Asked<'_>,
    model: &Model,
    endpoint: &Endpoint,
) -> io::Result<Turned> {
    let (door, ask, head) = (asked.door, asked.ask, asked.head);
    let body = asked.body.with_model(&model.config.model);
    let q = Question { model, endpoint, ask, head, body };
    let secret = match call::key_for(door, &q) {
        Ok(secret) => secret,
        Err(failure) => return Ok(Turned::Failed(failure)),
    };
    let bill = match spend::reserve(door, model, ask, &asked.body).await {
        Ok(bill) => bill,
        Err(failure) => return Ok(Turned::Failed(failure)),
    };
    let wire = ask.wire().name();
    let to = (wire, endpoint.host.as_str());
    if let Err(failure) = call::record_intent(door, model, to, &q.body, bill.as_ref()).await {
        if let Some(bill) = bill {
            bill.release();
        }
        return Ok(Turned::Failed(failure));
    }
    let mut outcome = Outcome::new(Arc::clone(&door.scribe), model.config.name.clone(), bill);
    let asking = call::attempt_all(door, &q, secret.as_ref(), &mut outcome);
    let Some(reply) = conn.unless_gone(asking).await else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let failure = match reply {
        Err(failure) => failure,
        Ok(Reply::Refused { status, body }) => {
            outcome.failed(&format!("refused with status {status}"));
            drop(outcome);
            return Ok(Turned::Done(json(conn, head.keep_alive, status, &body).await?));
        }
        Ok(Reply::Answer(exchange)) => {
            let (secret, keep_alive) = (secret.as_ref(), head.keep_alive);
            let relayed =
                relay::relay(conn, door, &q, exchange, secret, &mut outcome, keep_alive).await?;
            match relayed {
                Relayed::Done { keep_alive } => return Ok(Turned::Done(keep_alive)),
                Relayed::Failed(failure) => failure,
            }
        }
    };
    outcome.failed(&failure.message);
    // On record before the agent can react to it.
    drop(outcome);
    Ok(Turned::Failed(failure))
}

/// Plays a scripted model over the same path, with the same records.
async fn play(
    conn: &mut Conn,
    asked: &Asked<'_>,
    model: &Model,
    script: &Script,
) -> io::Result<Turned> {
    let (door, ask, keep_alive) = (asked.door, asked.ask, asked.head.keep_alive);
    let bill = match spend::reserve(door, model, ask, &asked.body).await {
        Ok(bill) => bill,
        Err(failure) => return Ok(Turned::Failed(failure)),
    };
    let (host, bytes) = (script.model_name(), asked.body.bytes());
    let to = ("script", host.as_str());
    if let Err(failure) = call::record_intent(door, model, to, bytes, bill.as_ref()).await {
        if let Some(bill) = bill {
            bill.release();
        }
        return Ok(Turned::Failed(failure));
    }
    let mut outcome = Outcome::new(Arc::clone(&door.scribe), model.config.name.clone(), bill);
    let performance = match script::perform(script, ask, bytes, asked.body.stream) {
        Ok(performance) => performance,
        Err(why) => {
            outcome.failed(&why);
            drop(outcome);
            return Ok(Turned::Failed(Failure::new(400, why)));
        }
    };
    outcome.status = 200;
    outcome.usage = performance.usage;
    if let Some(whole) = &performance.whole {
        outcome.saw(whole);
        outcome.complete();
        let fields = [("content-type", "application/json")];
        conn.write(&answer(200, &fields, &AnswerBody::Whole(whole), keep_alive)).await?;
        return Ok(Turned::Done(keep_alive));
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
    Ok(Turned::Done(keep_alive))
}
