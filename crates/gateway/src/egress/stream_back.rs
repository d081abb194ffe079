//! The answer on its way back: fields filtered, secret masked, streamed as it comes.

use super::exchange::{SILENCE, Sides, why};
use super::fields;
use super::link::Sender;
use super::upload::{Allowance, Broken};
use crate::http::conn::{AnswerBody, answer};
use crate::http::head::Head;
use crate::mask::Masker;
use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body as _, Incoming};
use hyper::header::HeaderMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use tokio::time::Instant;

/// How an answer is passed on.
pub(super) struct Back<'a> {
    pub(super) head: &'a Head,
    pub(super) own_credentials: bool,
    /// Whether there is a secret that the answer may repeat.
    pub(super) hides: bool,
    pub(super) masker: Masker,
}

impl Back<'_> {
    /// The fields that pass, with every spelling of a secret masked.
    pub(super) fn fields(&mut self, headers: &HeaderMap) -> Vec<(String, String)> {
        let connection = headers.get("connection").and_then(|v| v.to_str().ok()).unwrap_or("");
        let connection = connection.to_ascii_lowercase();
        let mut passing = Vec::with_capacity(headers.len());
        for (name, value) in headers {
            let passes = fields::passes_back(name.as_str(), &connection, self.own_credentials);
            if !passes || self.masker.names(name.as_str()) {
                continue;
            }
            let masked = self.masker.whole(value.as_bytes());
            if let Ok(text) = String::from_utf8(masked) {
                passing.push((name.as_str().to_owned(), text));
            }
        }
        passing
    }
}

/// Passes an answer on; `Err` inside when nothing was passed on yet and this is to be said instead.
pub(super) async fn stream_back(
    mut sides: Sides<'_>,
    allowance: &mut Allowance,
    (sender, response): (&mut Sender, Response<Incoming>),
    mut back: Back<'_>,
) -> io::Result<Result<(), String>> {
    let (parts, mut body) = response.into_parts();
    if back.hides && fields::is_encoded(&parts.headers) {
        let why = "the answer is compressed though that was not accepted, so that a secret in it \
                   could not be masked";
        sides.carried.fail(why);
        return Ok(Err(why.into()));
    }
    let status = parts.status.as_u16();
    let mut passing = back.fields(&parts.headers);
    let kind = match body.size_hint().exact() {
        _ if back.head.method == "HEAD" || matches!(status, 204 | 304) => {
            length_field(&parts.headers, &mut passing, status);
            AnswerBody::HeadOnly
        }
        Some(n) if !back.hides => AnswerBody::Length(n),
        _ => AnswerBody::Chunks,
    };
    let fields: Vec<(&str, &str)> = passing.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    // A body that still comes in after the answer leaves the connection of no further use.
    let keep_alive = back.head.keep_alive && sides.uploading.is_complete();
    let head = answer(status, &fields, &kind, keep_alive);
    let chunked = matches!(kind, AnswerBody::Chunks);
    if matches!(kind, AnswerBody::HeadOnly) {
        // A body that must not be there would be taken for the next answer.
        sides.conn.write(&head).await?;
        return Ok(Ok(()));
    }
    // What came with the head goes with it: a reader is woken once.
    let first = {
        let next = std::pin::pin!(next(&mut sides, allowance, sender, &mut body));
        at_once(next).await
    };
    sides.conn.queue(&head);
    let mut piece = match first {
        Some(first) => first,
        None => {
            sides.conn.write_queued().await?;
            next(&mut sides, allowance, sender, &mut body).await
        }
    };
    if piece.is_err() {
        sides.conn.write_queued().await?;
    }
    while let Some(data) = piece? {
        sides.carried.received(&data);
        let data = if back.hides { back.masker.feed(&data).into() } else { data };
        write(&mut sides, &data, chunked).await?;
        piece = next(&mut sides, allowance, sender, &mut body).await;
    }
    sides.conn.write_queued().await?;
    if chunked {
        let rest = back.masker.finish();
        write(&mut sides, &rest, true).await?;
        sides.conn.end_chunks().await?;
    }
    Ok(Ok(()))
}

/// What is there without waiting.
async fn at_once<T>(mut awaited: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| match awaited.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A `Content-Length` that announces no body is passed on where it is honest.
fn length_field(headers: &HeaderMap, passing: &mut Vec<(String, String)>, status: u16) {
    let length = headers.get("content-length").and_then(|v| v.to_str().ok());
    let digits = |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    if let Some(length) = length.filter(digits)
        && status != 204
    {
        passing.push(("content-length".into(), length.to_owned()));
    }
}

async fn write(sides: &mut Sides<'_>, data: &[u8], chunked: bool) -> io::Result<()> {
    let written = match chunked {
        true => sides.conn.write_chunk(data).await,
        false => sides.conn.write(data).await,
    };
    written.inspect_err(|_| sides.carried.fail("the agent hung up before the answer was complete"))
}

/// The next piece of the answer. When it broke off, so does this side, without a proper end:
/// nothing may look complete that is not.
async fn next(
    sides: &mut Sides<'_>,
    allowance: &mut Allowance,
    sender: &mut Sender,
    body: &mut Incoming,
) -> io::Result<Option<Bytes>> {
    let mut moved = Instant::now();
    loop {
        tokio::select! {
            frame = sender.frame(body) => match frame {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => moved = Instant::now(),
                },
                Some(Err(e)) => {
                    sides.carried.fail(format!("the answer broke off: {}", why(&e)));
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            },
            step = sides.step(allowance) => match step {
                Ok(()) => moved = Instant::now(),
                Err(Broken::Client(_, why)) => {
                    sides.carried.fail(why);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Err(Broken::Limit(refusal)) => {
                    sides.carried.fail(refusal.reason);
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
            },
            () = tokio::time::sleep_until(moved + SILENCE) => {
                sides.carried.fail("the server fell silent in the midst of its answer");
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
