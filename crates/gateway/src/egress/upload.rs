//! A request's body on its way from the sandbox to the server, and what the rule lets out in a day.

use super::Refusal;
use super::carried::Carried;
use crate::door::DoorState;
use crate::http::conn::{BodyReader, Conn};
use crate::http::head::Framing;
use crate::quota::{Account, Quota};
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
    quota: Quota,
    clock: Clock,
    rule: String,
    /// Whose bytes, and how many a day; `None` where nothing is counted.
    account: Option<(Account, u64)>,
    taken: u64,
    spent: u64,
}

impl Allowance {
    pub(crate) fn new(door: &DoorState, rule: &EgressRule) -> Self {
        let max = rule.limits.max_upload_per_day;
        Self {
            quota: door.quota.clone(),
            clock: Arc::clone(&door.scribe.clock),
            rule: rule.id.clone(),
            account: max.map(|max| (Account::new(door.scribe.agent.as_str(), rule), max)),
            taken: 0,
            spent: 0,
        }
    }

    /// Takes `bytes` beforehand. Abandoned, it has taken nothing.
    pub(crate) async fn reserve(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Some((account, max)) = &self.account else { return Ok(()) };
        let taken = self.quota.take((self.clock)(), account, bytes, *max).await;
        taken.map_err(|e| Refusal::new(429, &self.rule, e.to_string()))?;
        self.taken += bytes;
        Ok(())
    }

    /// Bytes that are about to be sent.
    pub(crate) async fn spend(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.account.is_none() {
            return Ok(());
        }
        let missing = (self.spent + bytes).saturating_sub(self.taken);
        if missing > 0 && self.reserve(missing.max(BLOCK_BYTES)).await.is_err() {
            self.reserve(missing).await?;
        }
        self.spent += bytes;
        Ok(())
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        if let Some((account, _)) = &self.account {
            let unspent = self.taken.saturating_sub(self.spent);
            self.quota.give_back((self.clock)(), account, unspent);
        }
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
    /// Read, and not paid for yet.
    pending: Option<Bytes>,
    complete: bool,
}

impl Uploading {
    /// Both ends of a body.
    pub(crate) fn pair(framing: Framing, reader: BodyReader) -> (Self, Upload) {
        if reader.is_done() {
            let done = Self { reader, feed: None, pending: None, complete: true };
            return (done, Upload::empty());
        }
        let (feed, pieces) = mpsc::channel(PIECES);
        let left = match framing {
            Framing::None => Some(0),
            Framing::Length(n) => Some(n),
            Framing::Chunked => None,
        };
        let uploading = Self { reader, feed: Some(feed), pending: None, complete: false };
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
        if self.pending.is_none() {
            let read = conn.read_body(&mut self.reader).await;
            self.pending = read.map_err(|e| Broken::Client(e.status(), e.to_string()))?;
        }
        match &self.pending {
            Some(piece) => {
                // The disk may be waited for here, so the piece must be kept.
                allowance.spend(piece.len() as u64).await.map_err(Broken::Limit)?;
                carried.sent(piece);
                permit.send(Piece::Data(std::mem::take(&mut self.pending).unwrap_or_default()));
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
