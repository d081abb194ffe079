//! HTTP/1.1 over the door: one POST a connection, blocking, bounded.
//!
//! Invariants:
//! 1. Head, chunk headers and body are bounded; a stream that is silent too long is an error.
//! 2. Cancelling shuts the socket down, which ends every blocked read and write.
//! 3. Ambiguous framing (both lengths, two different lengths) is refused.
//!
//! Source: RFC 9112.

use crate::cancel::{Cancel, HookGuard};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Largest response head: the gateway passes few headers on.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Largest response body, in all. An answer of a million tokens stays below it.
const MAX_BODY_BYTES: u64 = 64 << 20;
/// How much of a request's body goes out in one write with its head.
const MAX_BODY_WITH_HEAD: usize = 64 << 10;
/// Interim (1xx) responses skipped before the real one.
const MAX_INTERIM: usize = 8;
/// Longest silence. Large models think for minutes before the first byte; the turn's own limit
/// is the orchestrator's.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Why there is no response, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the door cannot be opened")]
    Connect(#[source] io::Error),
    #[error("the connection failed: {0}")]
    Io(io::Error),
    #[error("nothing came for {} seconds", IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("the response ended in the middle")]
    Ended,
    #[error("the response is not valid HTTP: {0}")]
    Invalid(&'static str),
    #[error("the response is larger than {max} bytes")]
    TooLarge { max: u64 },
}

impl From<io::Error> for HttpError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Idle,
            io::ErrorKind::UnexpectedEof => Self::Ended,
            _ => Self::Io(e),
        }
    }
}

/// Where the door is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Door {
    /// A socket.
    Socket(PathBuf),
    /// A port of the sandbox's own loopback.
    Port(u16),
}

/// A connection to the door.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(door: &Door) -> io::Result<Self> {
        match door {
            Door::Socket(path) => UnixStream::connect(path).map(Self::Unix),
            Door::Port(port) => TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).map(Self::Tcp),
        }
    }

    fn set_timeouts(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(s) => {
                s.set_read_timeout(Some(limit)).and_then(|()| s.set_write_timeout(Some(limit)))
            }
            Self::Tcp(s) => {
                s.set_read_timeout(Some(limit)).and_then(|()| s.set_write_timeout(Some(limit)))
            }
        }
    }

    /// What ends every read and write of it, from any thread.
    fn ender(&self) -> io::Result<Box<dyn Fn() + Send>> {
        Ok(match self {
            Self::Unix(s) => {
                let twin = s.try_clone()?;
                Box::new(move || drop(twin.shutdown(Shutdown::Both)))
            }
            Self::Tcp(s) => {
                let twin = s.try_clone()?;
                Box::new(move || drop(twin.shutdown(Shutdown::Both)))
            }
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buffer),
            Self::Tcp(s) => s.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(bytes),
            Self::Tcp(s) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.flush(),
            Self::Tcp(s) => s.flush(),
        }
    }
}

/// Status and headers.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A response whose body is still on its way.
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) body: Body<BufReader<Stream>>,
    _shutdown: HookGuard,
}

/// Sends one request and reads the response's head.
pub(crate) fn post(
    door: &Door,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    cancel: &Cancel,
) -> Result<Response, HttpError> {
    let mut socket = Stream::open(door).map_err(HttpError::Connect)?;
    socket.set_timeouts(IDLE_TIMEOUT)?;
    let guard = cancel.on_cancel(socket.ender()?);
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nhost: door\r\nuser-agent: nanoclaw-agent/{}\r\n\
         content-type: application/json\r\n\
         accept-encoding: identity\r\nconnection: close\r\ncontent-length: {}\r\n",
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut first = head.into_bytes();
    // Head and usual body in one write wake the gateway once; a large one is not copied for that.
    let (with_head, rest) = body.split_at(body.len().min(MAX_BODY_WITH_HEAD));
    first.extend_from_slice(with_head);
    let sent = socket.write_all(&first).and_then(|()| socket.write_all(rest));
    let mut reader = BufReader::new(socket);
    // A server may answer and close before it has read everything: its answer says more than
    // our broken pipe.
    let head = match (read_head(&mut reader), sent) {
        (Ok(head), _) => head,
        (Err(_), Err(e)) => return Err(e.into()),
        (Err(e), Ok(())) => return Err(e),
    };
    let framing = framing(&head)?;
    Ok(Response { head, body: Body { reader, framing, taken: 0 }, _shutdown: guard })
}

fn read_line(reader: &mut impl BufRead, max: usize) -> Result<Vec<u8>, HttpError> {
    let mut line = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        let short = line.len() + 1 < max;
        return Err(if short {
            HttpError::Ended
        } else {
            HttpError::Invalid("a line is too long")
        });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

fn read_head(reader: &mut impl BufRead) -> Result<Head, HttpError> {
    for _ in 0..MAX_INTERIM {
        let head = read_one_head(reader)?;
        if !(100..200).contains(&head.status) {
            return Ok(head);
        }
    }
    Err(HttpError::Invalid("too many interim responses"))
}

fn read_one_head(reader: &mut impl BufRead) -> Result<Head, HttpError> {
    let mut left = MAX_HEAD_BYTES;
    let mut next = |reader: &mut _| {
        let line = read_line(reader, left)?;
        left -= line.len();
        String::from_utf8(line).map_err(|_| HttpError::Invalid("the head is not text"))
    };
    let first = next(reader)?;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or(HttpError::Invalid("the status line"))?;
    let mut head = Head { status, headers: Vec::new() };
    loop {
        let line = next(reader)?;
        if line.is_empty() {
            return Ok(head);
        }
        if head.headers.len() >= 128 {
            return Err(HttpError::Invalid("too many headers"));
        }
        let (name, value) = line.split_once(':').ok_or(HttpError::Invalid("a header"))?;
        head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// How the body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Bytes still to come.
    Length(u64),
    /// Bytes still to come of this chunk; `None` before the first.
    Chunk(Option<u64>),
    /// Until the server closes.
    Close,
    /// It has ended.
    Done,
}

fn framing(head: &Head) -> Result<Framing, HttpError> {
    let all = |wanted: &str| {
        head.headers
            .iter()
            .filter(move |(n, _)| n == wanted)
            .map(|(_, v)| v.as_str())
            .collect::<Vec<_>>()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    if all("content-encoding").iter().any(|c| !c.eq_ignore_ascii_case("identity")) {
        return Err(HttpError::Invalid("it is compressed though nobody asked"));
    }
    match (lengths.as_slice(), codings.as_slice()) {
        _ if head.status == 204 || head.status == 304 => Ok(Framing::Done),
        ([], []) => Ok(Framing::Close),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunk(None)),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| HttpError::Invalid("the length"))
        }
        _ => Err(HttpError::Invalid("its length is ambiguous")),
    }
}

/// A response body being read.
pub(crate) struct Body<R> {
    reader: R,
    framing: Framing,
    taken: u64,
}

impl<R: BufRead> Body<R> {
    #[cfg(test)]
    pub(crate) fn until_close(reader: R) -> Self {
        Self { reader, framing: Framing::Close, taken: 0 }
    }

    /// Reads some bytes; zero is the orderly end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HttpError> {
        let most = match self.framing {
            Framing::Done | Framing::Length(0) => return Ok(0),
            Framing::Close => u64::MAX,
            Framing::Length(left) => left,
            Framing::Chunk(Some(left)) if left > 0 => left,
            Framing::Chunk(before) => match self.next_chunk(before.is_some())? {
                0 => return Ok(0),
                size => size,
            },
        };
        let room = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let count = loop {
            match self.reader.read(&mut buffer[..room]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let got = count as u64;
        self.taken += got;
        if self.taken > MAX_BODY_BYTES {
            return Err(HttpError::TooLarge { max: MAX_BODY_BYTES });
        }
        self.framing = match self.framing {
            Framing::Close if count == 0 => Framing::Done,
            _ if count == 0 => return Err(HttpError::Ended),
            Framing::Length(left) => Framing::Length(left - got),
            Framing::Chunk(_) => Framing::Chunk(Some(most - got)),
            other => other,
        };
        Ok(count)
    }

    /// Reads a chunk's header (after the end of the one before); zero ends the body.
    fn next_chunk(&mut self, after_chunk: bool) -> Result<u64, HttpError> {
        if after_chunk && !read_line(&mut self.reader, 3)?.is_empty() {
            return Err(HttpError::Invalid("a chunk is longer than it says"));
        }
        let line = read_line(&mut self.reader, 1_024)?;
        let text = String::from_utf8_lossy(&line);
        let digits = text.split(';').next().unwrap_or("").trim();
        if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(HttpError::Invalid("a chunk's length"));
        }
        let size =
            u64::from_str_radix(digits, 16).map_err(|_| HttpError::Invalid("a chunk's length"))?;
        if size == 0 {
            self.framing = Framing::Done; // trailers carry nothing we use
        }
        Ok(size)
    }

    /// Reads the whole rest.
    pub(crate) fn read_all(&mut self, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut all = Vec::new();
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(all),
                count if all.len() + count > max => {
                    return Err(HttpError::TooLarge { max: max as u64 });
                }
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads at most `max` bytes of the rest, for error bodies; a broken end is no matter there.
    pub(crate) fn read_some(&mut self, max: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0_u8; 4 << 10];
        while all.len() < max {
            match self.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
            }
        }
        all.truncate(max);
        all
    }
}

/// Status and body of a whole answer.
#[cfg(test)]
fn answer(mut reader: impl BufRead) -> Result<(u16, Vec<u8>), HttpError> {
    let head = read_head(&mut reader)?;
    let mut body = Body { reader, framing: framing(&head)?, taken: 0 };
    let (mut all, mut buffer) = (Vec::new(), [0; 64]);
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok((head.status, all)),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The same from bytes that come in pieces of that size; why not, in words.
#[cfg(test)]
pub(crate) fn whole(bytes: &[u8], size: usize) -> Result<(u16, Vec<u8>), String> {
    answer(BufReader::with_capacity(size, bytes)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<(u16, Vec<u8>), HttpError> {
        answer(BufReader::with_capacity(3, bytes))
    }

    #[test]
    fn every_framing_is_read_to_its_end() {
        for (text, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more", "hello"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                "hello",
            ),
            ("HTTP/1.0 200 OK\n\nhello", "hello"),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
            ("HTTP/1.1 204 No Content\r\n\r\nx", ""),
        ] {
            let (status, got) =
                read_all(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!((status / 100, got.as_slice()), (2, body.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn bad_framing_is_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEAD_BYTES));
        for text in [
            "",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            &long,
        ] {
            assert!(read_all(text.as_bytes()).is_err(), "{:?}", crate::rpc::clip(text, 99));
        }
    }
}
