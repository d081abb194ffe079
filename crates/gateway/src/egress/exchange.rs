//! One request and its answer: judged, let out, streamed both ways, put on record.

use super::request::{self, Judged, line};
use super::start::{self, Letter, Started};
use super::stream_back::{Back, stream_back};
use super::upload::{Allowance, Broken, Upload, Uploading};
use super::{Origin, Refusal, carried::Carried, link::Link, websocket};
use crate::door::DoorState;
use crate::http::conn::{BodyReader, Conn};
use crate::http::head::{Framing, Head};
use hyper::body::Incoming;
use hyper::{Request, Response};
use std::io;
use std::time::Duration;
use tokio::time::Instant;

/// A server that says nothing for so long is given up. Slow answers are computed, not lost.
pub(super) const SILENCE: Duration = Duration::from_secs(300);

/// Serves one request to `to`; `target` is its path and query. Returns whether the connection can
/// serve another request.
pub(crate) async fn exchange(
    conn: &mut Conn,
    door: &DoorState,
    to: &Origin,
    head: &Head,
    target: &str,
) -> io::Result<bool> {
    match attempt(conn, door, to, head, target).await? {
        Ok(keep_alive) => Ok(keep_alive),
        Err(refusal) => {
            refusal.record(door, to.base(), Some(line(&head.method, target))).await;
            refusal.answer(conn, head).await
        }
    }
}

async fn attempt(
    conn: &mut Conn,
    door: &DoorState,
    to: &Origin,
    head: &Head,
    target: &str,
) -> io::Result<Result<bool, Refusal>> {
    let judged = match request::judge(door, to, head, target) {
        Ok(judged) => judged,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let reader = match BodyReader::new(head.framing, judged.body_max()) {
        Ok(reader) => reader,
        Err(e) => return Ok(Err(Refusal::new(e.status(), &judged.rule.id, e.to_string()))),
    };
    let (mut uploading, upload) = Uploading::pair(head.framing, reader);
    let letter = Letter { to, head, judged: &judged };
    let mut upload = Some(upload);
    let mut fresh = false;
    loop {
        let body = upload.take().unwrap_or_else(Upload::empty);
        let starting = start::start(door, &letter, body, fresh);
        let started = conn.unless_gone(starting).await.ok_or(io::ErrorKind::BrokenPipe)?;
        let started = match started {
            Ok(started) => started,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if head.expects_continue() && uploading.is_active() {
            conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let empty = head.framing == Framing::None;
        let repeatable = started.reused && empty && start::idempotent(head);
        match converse(conn, door, &letter, started, &mut uploading).await? {
            Conversed::Done { keep_alive } => return Ok(Ok(keep_alive)),
            Conversed::Refused(refusal) => return Ok(Err(refusal)),
            // The kept connection was just being closed; should more have come of it, twice is the
            // same as once.
            Conversed::Unanswered(_) if repeatable => fresh = true,
            Conversed::Unanswered(why) => {
                let refusal = Refusal::new(502, &judged.rule.id, why).on_record();
                return Ok(Err(refusal));
            }
        }
    }
}

/// What became of one sending.
enum Conversed {
    Done {
        keep_alive: bool,
    },
    /// Nothing was answered to the client yet.
    Refused(Refusal),
    /// The server broke off before it answered.
    Unanswered(String),
}

async fn converse(
    conn: &mut Conn,
    door: &DoorState,
    letter: &Letter<'_>,
    started: Started,
    uploading: &mut Uploading,
) -> io::Result<Conversed> {
    let Started { mut link, request, carried, mut allowance, masker, .. } = started;
    let Letter { to, head, judged } = letter;
    let sides = Sides { conn: &mut *conn, uploading: &mut *uploading, carried: &carried };
    let response = match answer(sides, &mut allowance, &mut link, request, judged).await? {
        Ok(response) => response,
        Err(Failed::Server(why)) => {
            let why = format!("{} {why}", to.host);
            carried.fail(why.as_str());
            return Ok(Conversed::Unanswered(why));
        }
        Err(Failed::Refused(refusal)) => {
            carried.fail(refusal.reason.as_str());
            return Ok(Conversed::Refused(refusal));
        }
    };
    let status = response.status().as_u16();
    carried.answered(status);
    if status == 101 && judged.websocket {
        websocket::run(conn, response, &carried, allowance, masker, judged).await?;
        return Ok(Conversed::Done { keep_alive: false });
    }
    if status < 200 {
        let why = format!("{} answered with status {status}, which was not asked for", to.host);
        carried.fail(why.as_str());
        return Ok(Conversed::Refused(Refusal::new(502, &judged.rule.id, why)));
    }
    let own = judged.rule.own_credentials;
    let back = Back { head, own_credentials: own, hides: judged.secret.is_some(), masker };
    let sides = Sides { conn, uploading, carried: &carried };
    let kept = judged.secret.is_none() && !judged.websocket;
    match stream_back(sides, &mut allowance, response, back).await? {
        Err(why) => Ok(Conversed::Refused(Refusal::new(502, &judged.rule.id, why))),
        Ok(()) => {
            if kept && uploading.is_complete() {
                door.links.give_back((*to).clone(), link);
            }
            Ok(Conversed::Done { keep_alive: head.keep_alive && uploading.is_complete() })
        }
    }
}

/// The client's side of a conversation.
pub(super) struct Sides<'a> {
    pub(super) conn: &'a mut Conn,
    pub(super) uploading: &'a mut Uploading,
    pub(super) carried: &'a Carried,
}

impl Sides<'_> {
    /// Moves one piece up, or returns when the client is gone. May be abandoned at any time.
    pub(super) async fn step(&mut self, allowance: &mut Allowance) -> Result<(), Broken> {
        self.uploading.step(self.conn, self.carried, allowance).await
    }
}

enum Failed {
    Server(String),
    Refused(Refusal),
}

/// Sends the request while its body comes in, until the head of the answer is there.
async fn answer(
    mut sides: Sides<'_>,
    allowance: &mut Allowance,
    link: &mut Link,
    request: Request<Upload>,
    judged: &Judged<'_>,
) -> io::Result<Result<Response<Incoming>, Failed>> {
    let mut asking = std::pin::pin!(link.sender.send(request));
    let mut moved = Instant::now();
    loop {
        tokio::select! {
            biased;
            answered = &mut asking => {
                let broke = |e: hyper::Error| {
                    Failed::Server(format!("broke the exchange off: {}", why(&e)))
                };
                return Ok(answered.map_err(broke));
            }
            step = sides.step(allowance) => match step {
                Ok(()) => moved = Instant::now(),
                Err(Broken::Limit(refusal)) => return Ok(Err(Failed::Refused(refusal))),
                Err(Broken::Client(status, why)) if sides.uploading.is_active() => {
                    let refusal = Refusal::new(status, &judged.rule.id, why);
                    return Ok(Err(Failed::Refused(refusal)));
                }
                Err(Broken::Client(_, why)) => {
                    sides.carried.fail(why);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            },
            () = tokio::time::sleep_until(moved + SILENCE) => {
                let why = format!("did not answer for {} s", SILENCE.as_secs());
                return Ok(Err(Failed::Server(why)));
            }
        }
    }
}

/// An error with its cause, for hyper's own words alone say little.
pub(super) fn why(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
