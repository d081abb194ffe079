//! One accepted connection: reads heads and bodies with limits of size and time, writes answers.

use super::head::{self, Framing, HEAD_BYTES_MAX, Head, HeadError, chunk_size};
use bytes::{Buf as _, Bytes, BytesMut};
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

/// A kept-alive connection without a request is closed after this; clients reconnect cheaply.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// A head must be complete this long after its first byte (slowloris).
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Each piece of a body must arrive within this.
const BODY_PIECE_TIME: Duration = Duration::from_secs(30);
/// So long a body may be waited for in all before its pace is looked at, and what it must then have
/// brought for every second of waiting: a byte now and then holds a connection for hours.
const PACE_GRACE: Duration = Duration::from_secs(60);
const PACE_BYTES_MIN: u64 = 64;
/// An agent that takes no bytes of its answer for so long is given up.
const WRITE_TIME: Duration = Duration::from_secs(120);
/// An end of the connection's writing that takes so long is given up: what TLS keeps back of it
/// waits for a reader, and an agent that never reads must not hold what it holds.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);
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
    got: u64,
    waited: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
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
        Ok(Self { state, left_max: max, max, got: 0, waited: Duration::ZERO })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// Notes that waiting `waited` brought `bytes`; an error for a body that only trickles.
    fn pace(&mut self, waited: Duration, bytes: usize) -> Result<(), ReadError> {
        self.got += bytes as u64;
        self.waited += waited;
        let least = self.waited.as_secs() * PACE_BYTES_MIN;
        if self.waited > PACE_GRACE && self.got < least { Err(ReadError::Slow) } else { Ok(()) }
    }
}

/// What a connection runs over: the door's socket, or TLS on top of it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection from a sandbox.
pub(crate) struct Conn {
    stream: Box<dyn Duplex>,
    buf: BytesMut,
    /// Goes out with the next bytes that are written.
    queued: Vec<u8>,
}

impl Conn {
    pub(crate) fn new(stream: impl Duplex + 'static) -> Self {
        Self::with(Box::new(stream), BytesMut::with_capacity(READ_BYTES))
    }

    /// A connection of which something was read already.
    pub(crate) fn with(stream: Box<dyn Duplex>, buf: BytesMut) -> Self {
        Self { stream, buf, queued: Vec::new() }
    }

    /// The stream and what was read ahead, for a tunnel. What stays behind is at its end.
    pub(crate) fn take_parts(&mut self) -> (Box<dyn Duplex>, BytesMut) {
        let stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        (stream, std::mem::take(&mut self.buf))
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

    /// The next piece of a body; `None` at its end. Safe to abandon: nothing read is lost.
    pub(crate) async fn read_body(
        &mut self,
        body: &mut BodyReader,
    ) -> Result<Option<Bytes>, ReadError> {
        loop {
            match body.state {
                BodyState::Done => return Ok(None),
                BodyState::Length(left) => {
                    let piece = self.piece(left, body).await?;
                    let left = left - piece.len() as u64;
                    body.state = if left == 0 { BodyState::Done } else { BodyState::Length(left) };
                    return Ok(Some(piece));
                }
                BodyState::ChunkSize => {
                    let size = chunk_size(&self.line(body).await?)?;
                    body.left_max = body
                        .left_max
                        .checked_sub(size)
                        .ok_or(ReadError::TooLarge { max: body.max })?;
                    body.state =
                        if size == 0 { BodyState::Trailer } else { BodyState::ChunkData(size) };
                }
                BodyState::Trailer => {
                    // Trailer fields carry nothing that is wanted here.
                    if !self.line(body).await?.is_empty() {
                        return Err(HeadError::Framing("trailers are not accepted").into());
                    }
                    body.state = BodyState::Done;
                }
                BodyState::ChunkData(left) => {
                    let piece = self.piece(left, body).await?;
                    let left = left - piece.len() as u64;
                    body.state =
                        if left == 0 { BodyState::ChunkEnd } else { BodyState::ChunkData(left) };
                    return Ok(Some(piece));
                }
                BodyState::ChunkEnd => {
                    if !self.line(body).await?.is_empty() {
                        return Err(HeadError::Framing("a chunk is longer than it said").into());
                    }
                    body.state = BodyState::ChunkSize;
                }
            }
        }
    }

    async fn piece(&mut self, left: u64, body: &mut BodyReader) -> Result<Bytes, ReadError> {
        if self.buf.is_empty() {
            self.fill_body(body).await?;
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(self.buf.len());
        Ok(self.buf.split_to(take).freeze())
    }

    /// Waits for more of a body, which must neither end nor trickle.
    async fn fill_body(&mut self, body: &mut BodyReader) -> Result<(), ReadError> {
        let since = Instant::now();
        let got = self.fill(BODY_PIECE_TIME).await?;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        body.pace(since.elapsed(), got)
    }

    /// A chunk-size line or the line end after a chunk, CRLF stripped.
    async fn line(&mut self, body: &mut BodyReader) -> Result<Bytes, ReadError> {
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
            self.fill_body(body).await?;
        }
    }

    /// Keeps bytes that go out in one write with the next ones.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.queued.extend_from_slice(bytes);
    }

    /// Writes what is kept, if anything is.
    pub(crate) async fn write_queued(&mut self) -> io::Result<()> {
        if self.queued.is_empty() { Ok(()) } else { self.write(&[]).await }
    }

    /// Writes bytes, giving up on a client that takes none.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut queued = std::mem::take(&mut self.queued);
        if !queued.is_empty() {
            queued.extend_from_slice(bytes);
        }
        let mut rest = if queued.is_empty() { bytes } else { &queued };
        while rest.has_remaining() {
            match timeout(WRITE_TIME, self.stream.write(rest)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(n)) => rest.advance(n),
                Ok(Err(e)) => return Err(e),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        // TLS may have kept some of it back.
        timeout(WRITE_TIME, self.stream.flush()).await?
    }

    /// Writes one chunk of a chunked answer, in one write.
    pub(crate) async fn write_chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return self.write_queued().await;
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
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.gone() => None,
        }
    }

    /// Returns when the client hung up. Reads ahead to notice it, within bounds.
    pub(crate) async fn gone(&mut self) {
        while self.buf.len() < AHEAD_BYTES_MAX {
            self.buf.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.buf).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Ends the writing side and takes what still arrives for a moment, so that the answer is not
    /// lost to a reset when the client was still sending.
    pub(crate) async fn close(mut self) {
        /// Long enough for what is in flight, short enough not to be a resource.
        const LINGER_TIME: Duration = Duration::from_millis(500);
        if timeout(SHUTDOWN_TIME, self.stream.shutdown()).await.is_err() {
            return;
        }
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
    /// So many bytes follow, unchunked.
    Length(u64),
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
        AnswerBody::Length(n) => {
            out.extend_from_slice(format!("content-length: {n}\r\n\r\n").as_bytes());
        }
        AnswerBody::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
        AnswerBody::HeadOnly => out.extend_from_slice(b"\r\n"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut conn = Conn::new(ours);
        let writing = tokio::spawn(async move {
            while theirs.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        });
        let mut body = BodyReader::new(Framing::Length(1000), 1000).expect("within the limit");
        let mut pieces = 0;
        let end = loop {
            match conn.read_body(&mut body).await {
                Ok(_) => pieces += 1,
                Err(e) => break e,
            }
        };
        assert!(matches!(end, ReadError::Slow) && (2..6).contains(&pieces), "{pieces}");
        drop(conn);
        writing.await.expect("no panic");
    }

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

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_reads_does_not_hold_up_the_end() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        while ours.try_write(&[0; 4096]).is_ok() {}
        // Like TLS, it has something left to write when it is to end.
        let mut stream = tokio::io::BufWriter::new(ours);
        stream.write_all(b"left").await.expect("kept back");
        let started = Instant::now();
        let closing = Conn::new(stream).close();
        timeout(Duration::from_secs(3_600), closing).await.expect("an end");
        assert!((SHUTDOWN_TIME..2 * SHUTDOWN_TIME).contains(&started.elapsed()));
        drop(theirs);
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
