//! A request's body on its way from the sandbox to the server, and what the rule lets out in a day.

use super::Refusal;
use super::carried::Carried;
use crate::door::DoorState;
use crate::http::conn::{BodyReader, Conn};
use crate::http::head::Framing;
use crate::quota::Quota;
use crate::scribe::Clock;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use model::EgressRule;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Pieces of a body under way between the two connections.
const PIECES: usize = 2;
/// Taken at a time for a body whose length nobody knows.
const BLOCK_BYTES: u64 = 64 * 1024;

/// The bytes one request or connection may still send. Gives back what it did not need.
pub(crate) struct Allowance {
    quota: Arc<Quota>,
    clock: Clock,
    agent: String,
    rule: String,
    max: Option<u64>,
    taken: u64,
    spent: u64,
}

impl Allowance {
    pub(crate) fn new(door: &DoorState, rule: &EgressRule) -> Self {
        Self {
            quota: Arc::clone(&door.quota),
            clock: Arc::clone(&door.scribe.clock),
            agent: door.scribe.agent.to_string(),
            rule: rule.id.clone(),
            max: rule.limits.max_upload_per_day,
            taken: 0,
            spent: 0,
        }
    }

    /// Takes `bytes` beforehand.
    pub(crate) fn reserve(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Some(max) = self.max else { return Ok(()) };
        let account = (self.agent.as_str(), self.rule.as_str());
        self.quota
            .take((self.clock)(), account, bytes, max)
            .map_err(|e| Refusal::new(429, &self.rule, e.to_string()))?;
        self.taken += bytes;
        Ok(())
    }

    /// Bytes that are about to be sent.
    pub(crate) fn spend(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.max.is_none() {
            return Ok(());
        }
        let missing = (self.spent + bytes).saturating_sub(self.taken);
        if missing > 0 && self.reserve(missing.max(BLOCK_BYTES)).is_err() {
            self.reserve(missing)?;
        }
        self.spent += bytes;
        Ok(())
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let account = (self.agent.as_str(), self.rule.as_str());
        self.quota.give_back((self.clock)(), account, self.taken.saturating_sub(self.spent));
    }
}

/// A body fed piece by piece. Ends properly only when told so: what breaks off on this side must
/// never look complete on the other.
pub(crate) struct Upload {
    pieces: Option<mpsc::Receiver<Piece>>,
    left: Option<u64>,
}

enum Piece {
    Data(Bytes),
    End,
}

impl Upload {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self { pieces: None, left: Some(0) }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        pieces.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Data(bytes)) => {
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Some(Ok(Frame::data(bytes)))
            }
            Some(Piece::End) => {
                self.pieces = None;
                None
            }
            None if self.left == Some(0) => None,
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) || self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Why a body did not get through.
pub(crate) enum Broken {
    /// The client is gone or does not keep to the protocol: the status and what is wrong.
    Client(u16, String),
    /// The rule lets no more out.
    Limit(Refusal),
}

/// The sandbox's side of an upload.
pub(crate) struct Uploading {
    reader: BodyReader,
    feed: Option<mpsc::Sender<Piece>>,
    complete: bool,
}

impl Uploading {
    /// Both ends of a body.
    pub(crate) fn pair(framing: Framing, reader: BodyReader) -> (Self, Upload) {
        if reader.is_done() {
            return (Self { reader, feed: None, complete: true }, Upload::empty());
        }
        let (feed, pieces) = mpsc::channel(PIECES);
        let left = match framing {
            Framing::None => Some(0),
            Framing::Length(n) => Some(n),
            Framing::Chunked => None,
        };
        let uploading = Self { reader, feed: Some(feed), complete: false };
        (uploading, Upload { pieces: Some(pieces), left })
    }

    /// Whether more is to come from the client.
    pub(crate) fn is_active(&self) -> bool {
        self.feed.is_some()
    }

    /// Whether the whole body was read, so that another request can follow it.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Moves one piece; waits for the client to hang up when there is none left. May be abandoned
    /// at any time without losing bytes.
    pub(crate) async fn step(
        &mut self,
        conn: &mut Conn,
        carried: &Carried,
        allowance: &mut Allowance,
    ) -> Result<(), Broken> {
        let Some(feed) = &self.feed else {
            conn.gone().await;
            return Err(Broken::Client(400, "the agent hung up".into()));
        };
        let Ok(permit) = feed.reserve().await else {
            // The server wants no more of it.
            self.feed = None;
            return Ok(());
        };
        let read = conn.read_body(&mut self.reader).await;
        match read.map_err(|e| Broken::Client(e.status(), e.to_string()))? {
            Some(piece) => {
                allowance.spend(piece.len() as u64).map_err(Broken::Limit)?;
                carried.sent(&piece);
                permit.send(Piece::Data(piece));
            }
            None => permit.send(Piece::End),
        }
        if self.reader.is_done() {
            self.complete = true;
            if let Some(feed) = self.feed.take() {
                // A full channel holds the last of a counted body, which ends without this.
                let _ = feed.try_send(Piece::End);
            }
        }
        Ok(())
    }
}
