//! As much of HTTP/1.1 (RFC 9112) as model clients use.

use std::io::{BufRead, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection without a request for so long is closed; nothing in a test waits longer.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);

/// Largest head, bytes; four times what servers usually take.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// Largest body, bytes; agents were seen to send 70 KB.
const BODY_BYTES_MAX: usize = 16 << 20;

pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What is answered: one JSON body, or a stream of events.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

pub(super) enum Body {
    Json(String),
    Events(Vec<String>),
}

impl Answer {
    pub(super) fn json(status: u16, body: String) -> Self {
        Self { status, headers: Vec::new(), body: Body::Json(body) }
    }

    pub(super) fn events(events: Vec<String>) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Events(events) }
    }
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why.to_owned())
}

/// The next request, or `None` when the client has closed.
pub(super) fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(bad("the head ends early or is too large"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header without ':'"))?;
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let chunked = request.header("transfer-encoding").is_some_and(|v| v.contains("chunked"));
    request.body = if chunked {
        read_chunks(reader)?
    } else {
        let length = request.header("content-length").map_or(Ok(0), str::parse);
        read_exactly(reader, length.map_err(|_| bad("a bad content-length"))?)?
    };
    Ok(Some(request))
}

fn read_exactly(reader: &mut impl BufRead, length: usize) -> Result<Vec<u8>> {
    if length > BODY_BYTES_MAX {
        return Err(bad("the body is too large"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.by_ref().take(HEAD_BYTES_MAX).read_line(&mut line)?;
        let digits = line.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| bad("a bad chunk size"))?;
        if body.len().saturating_add(size) > BODY_BYTES_MAX {
            return Err(bad("the body is too large"));
        }
        body.extend(read_exactly(reader, size)?);
        let mut end = String::new();
        reader.by_ref().take(HEAD_BYTES_MAX).read_line(&mut end)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Writes an answer; `piece` limits the bytes of one write, `cut` ends in the middle.
pub(super) fn write_answer(
    out: &mut TcpStream,
    request: &Request,
    answer: &Answer,
    piece: Option<usize>,
    cut: bool,
) -> Result<()> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match &answer.body {
        Body::Json(body) => {
            let length = body.len();
            head += &format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            out.write_all(head.as_bytes())?;
            let end = if cut { length / 2 } else { length };
            let body = if request.method == "HEAD" { &[] } else { &body.as_bytes()[..end] };
            write_pieces(out, body, piece, Write::write_all)
        }
        Body::Events(events) => {
            head += "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            out.write_all(head.as_bytes())?;
            let kept = if cut { events.len() / 2 } else { events.len() };
            for event in &events[..kept] {
                write_pieces(out, event.as_bytes(), piece, |out, bytes| {
                    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
                    chunk.extend_from_slice(bytes);
                    chunk.extend_from_slice(b"\r\n");
                    out.write_all(&chunk)
                })?;
            }
            if cut { Ok(()) } else { out.write_all(b"0\r\n\r\n") }
        }
    }
}

fn write_pieces(
    out: &mut TcpStream,
    bytes: &[u8],
    piece: Option<usize>,
    write: impl Fn(&mut TcpStream, &[u8]) -> Result<()>,
) -> Result<()> {
    for part in bytes.chunks(piece.unwrap_or(usize::MAX).max(1)) {
        write(out, part)?;
        out.flush()?;
    }
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        529 => "Overloaded",
        _ => "Status",
    }
}
