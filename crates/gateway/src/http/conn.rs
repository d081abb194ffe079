//! One accepted connection: reads heads and bodies with limits of size and time, writes answers.

use super::head::{self, Framing, HEAD_BYTES_MAX, Head, HeadError, chunk_size};
use bytes::{Buf as _, Bytes, BytesMut};
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A kept-alive connection without a request is closed after this; clients reconnect cheaply.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// A head must be complete this long after its first byte (slowloris).
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Each piece of a body must arrive within this.
const BODY_PIECE_TIME: Duration = Duration::from_secs(30);
/// An agent that takes no bytes of its answer for so long is given up.
const WRITE_TIME: Duration = Duration::from_secs(120);
/// Read at a time; the size of most pipes and sockets' natural pieces.
const READ_BYTES: usize = 16 * 1024;
/// A client may send this much ahead (pipelining) before reading stops until its turn.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Why a request could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("the request took too long to arrive")]
    Slow,
    #[error("the request body is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("the connection ended inside a request: {0}")]
    Io(#[from] io::Error),
}

impl ReadError {
    /// The status to answer with.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Head(HeadError::TooLarge) => 431,
            Self::Head(_) | Self::Io(_) => 400,
            Self::Slow => 408,
            Self::TooLarge { .. } => 413,
        }
    }
}

/// What is left of a request body.
#[derive(Debug)]
pub(crate) struct BodyReader {
    state: BodyState,
    left_max: u64,
    max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Done,
}

impl BodyReader {
    pub(crate) fn new(framing: Framing, max: u64) -> Result<Self, ReadError> {
        let state = match framing {
            Framing::None | Framing::Length(0) => BodyState::Done,
            Framing::Length(n) if n > max => return Err(ReadError::TooLarge { max }),
            Framing::Length(n) => BodyState::Length(n),
            Framing::Chunked => BodyState::ChunkSize,
        };
        Ok(Self { state, left_max: max, max })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }
}

/// One connection from a sandbox.
pub(crate) struct Conn {
    stream: UnixStream,
    buf: BytesMut,
}

impl Conn {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, buf: BytesMut::with_capacity(READ_BYTES) }
    }

    /// The stream and what was read ahead, for a tunnel.
    pub(crate) fn into_parts(self) -> (UnixStream, BytesMut) {
        (self.stream, self.buf)
    }

    async fn fill(&mut self, limit: Duration) -> Result<usize, ReadError> {
        self.buf.reserve(READ_BYTES);
        match timeout(limit, self.stream.read_buf(&mut self.buf)).await {
            Ok(read) => Ok(read?),
            Err(_) => Err(ReadError::Slow),
        }
    }

    /// The next request head; `None` when the client went away between requests.
    pub(crate) async fn read_head(&mut self) -> Result<Option<Head>, ReadError> {
        if self.buf.is_empty() {
            match self.fill(IDLE_TIME).await {
                Ok(0) | Err(ReadError::Slow | ReadError::Io(_)) => return Ok(None),
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        match timeout(HEAD_TIME, self.rest_of_head()).await {
            Ok(end) => {
                let bytes = self.buf.split_to(end?);
                Ok(Some(head::parse(&bytes)?))
            }
            Err(_) => Err(ReadError::Slow),
        }
    }

    async fn rest_of_head(&mut self) -> Result<usize, ReadError> {
        let mut searched = 0;
        loop {
            if let Some(end) = head::end_of_head(&self.buf, searched) {
                return Ok(end);
            }
            searched = self.buf.len();
            if searched > HEAD_BYTES_MAX {
                return Err(HeadError::TooLarge.into());
            }
            if self.fill(HEAD_TIME).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn read_body(
        &mut self,
        body: &mut BodyReader,
    ) -> Result<Option<Bytes>, ReadError> {
        loop {
            match body.state {
                BodyState::Done => return Ok(None),
                BodyState::Length(left) => {
                    let piece = self.piece(left).await?;
                    let left = left - piece.len() as u64;
                    body.state = if left == 0 { BodyState::Done } else { BodyState::Length(left) };
                    return Ok(Some(piece));
                }
                BodyState::ChunkSize => {
                    let size = chunk_size(&self.line().await?)?;
                    body.left_max = body
                        .left_max
                        .checked_sub(size)
                        .ok_or(ReadError::TooLarge { max: body.max })?;
                    if size == 0 {
                        // Trailer fields carry nothing that is wanted here.
                        if !self.line().await?.is_empty() {
                            return Err(HeadError::Framing("trailers are not accepted").into());
                        }
                        body.state = BodyState::Done;
                    } else {
                        body.state = BodyState::ChunkData(size);
                    }
                }
                BodyState::ChunkData(left) => {
                    let piece = self.piece(left).await?;
                    let left = left - piece.len() as u64;
                    body.state =
                        if left == 0 { BodyState::ChunkEnd } else { BodyState::ChunkData(left) };
                    return Ok(Some(piece));
                }
                BodyState::ChunkEnd => {
                    if !self.line().await?.is_empty() {
                        return Err(HeadError::Framing("a chunk is longer than it said").into());
                    }
                    body.state = BodyState::ChunkSize;
                }
            }
        }
    }

    async fn piece(&mut self, left: u64) -> Result<Bytes, ReadError> {
        if self.buf.is_empty() && self.fill(BODY_PIECE_TIME).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(self.buf.len());
        Ok(self.buf.split_to(take).freeze())
    }

    /// A chunk-size line or the line end after a chunk, CRLF stripped.
    async fn line(&mut self) -> Result<Bytes, ReadError> {
        /// 8 hex digits and CRLF.
        const LINE_BYTES_MAX: usize = 10;
        loop {
            let seen = self.buf.len().min(LINE_BYTES_MAX);
            if let Some(at) = self.buf[..seen].iter().position(|&b| b == b'\n') {
                let mut line = self.buf.split_to(at + 1);
                let text = line.len().saturating_sub(2);
                if !line.ends_with(b"\r\n") {
                    return Err(HeadError::Framing("a chunk line must end with CR LF").into());
                }
                line.truncate(text);
                return Ok(line.freeze());
            }
            if seen == LINE_BYTES_MAX {
                return Err(HeadError::Framing("a chunk size is not a plain hex number").into());
            }
            if self.fill(BODY_PIECE_TIME).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Writes bytes, giving up on a client that takes none.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while rest.has_remaining() {
            match timeout(WRITE_TIME, self.stream.write(rest)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(n)) => rest.advance(n),
                Ok(Err(e)) => return Err(e),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }

    /// Writes one chunk of a chunked answer, in one write.
    pub(crate) async fn write_chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut framed = Vec::with_capacity(bytes.len() + 12);
        framed.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        framed.extend_from_slice(bytes);
        framed.extend_from_slice(b"\r\n");
        self.write(&framed).await
    }

    /// Ends a chunked answer.
    pub(crate) async fn end_chunks(&mut self) -> io::Result<()> {
        self.write(b"0\r\n\r\n").await
    }

    /// Runs `work` unless the client hangs up first (`None`): work for nobody costs money.
    pub(crate) async fn unless_gone<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            if self.buf.len() >= AHEAD_BYTES_MAX {
                return Some(work.await);
            }
            self.buf.reserve(READ_BYTES);
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                read = self.stream.read_buf(&mut self.buf) => match read {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                },
            }
        }
    }

    /// Ends the writing side and takes what still arrives for a moment, so that the answer is not
    /// lost to a reset when the client was still sending.
    pub(crate) async fn close(mut self) {
        /// Long enough for what is in flight, short enough not to be a resource.
        const LINGER_TIME: Duration = Duration::from_millis(500);
        let _ = self.stream.shutdown().await;
        let _ = timeout(LINGER_TIME, async {
            loop {
                self.buf.clear();
                self.buf.reserve(READ_BYTES);
                if !matches!(self.stream.read_buf(&mut self.buf).await, Ok(n) if n > 0) {
                    break;
                }
            }
        })
        .await;
    }
}

/// How an answer's body is delimited.
pub(crate) enum AnswerBody<'a> {
    /// The whole body.
    Whole(&'a [u8]),
    /// Chunks follow.
    Chunks,
    /// The length only; nothing follows (HEAD).
    HeadOnly,
}

/// An answer's head (and whole body) as bytes. `fields` come from this crate or passed a filter,
/// so they hold no line breaks; one that does is left out.
pub(crate) fn answer(
    status: u16,
    fields: &[(&str, &str)],
    body: &AnswerBody<'_>,
    keep_alive: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let reason = hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Status");
    out.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
    for (name, value) in fields {
        if !value.contains(['\r', '\n', '\0']) {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    if !keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    match body {
        AnswerBody::Whole(bytes) => {
            out.extend_from_slice(format!("content-length: {}\r\n\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
        }
        AnswerBody::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
        AnswerBody::HeadOnly => out.extend_from_slice(b"\r\n"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_in_is_given_up_in_time() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut conn = Conn::new(ours);
        let started = tokio::time::Instant::now();
        let reading = tokio::spawn(async move { conn.read_head().await });
        for byte in b"GET / HTTP/1.1" {
            if theirs.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert!(matches!(reading.await.expect("no panic"), Err(ReadError::Slow)));
        // Each byte came well within the limit; together they did not.
        assert!(started.elapsed() >= HEAD_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_and_a_stalled_body_are_given_up() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut conn = Conn::new(ours);
        assert!(matches!(conn.read_head().await, Ok(None)));
        theirs.write_all(b"abc").await.expect("written");
        let mut body = BodyReader::new(Framing::Length(10), 100).expect("within the limit");
        let piece = conn.read_body(&mut body).await.expect("the first piece");
        assert_eq!(piece.as_deref(), Some(&b"abc"[..]));
        assert!(matches!(conn.read_body(&mut body).await, Err(ReadError::Slow)));
    }

    #[tokio::test]
    async fn chunked_bodies_are_bounded_as_a_whole() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut conn = Conn::new(ours);
        theirs.write_all(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\nNEXT").await.expect("written");
        let mut body = BodyReader::new(Framing::Chunked, 5).expect("not known yet");
        assert!(conn.read_body(&mut body).await.is_ok());
        let second = conn.read_body(&mut body).await;
        assert!(matches!(second, Err(ReadError::TooLarge { max: 5 })));
    }
}
