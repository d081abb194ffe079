//! The other side: files of a log, and a POST to a witness.

use super::head::{Framing, HEAD_BYTES_MAX, Response, parse_response};
use super::pace::{Pace, Paced, Patience};
use super::read_head;
use crate::finding::{Finding, Sort, finding};
use crate::source::Source;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Longest line of a body in pieces, bytes: a length in hex, and perhaps an extension that means
/// nothing here.
const PIECE_LINE_BYTES_MAX: usize = 256;

/// Fields behind a body, bytes of all: as many as a head may have, since they are a head's.
const TRAILER_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Both directions of a connection.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Who makes connections.
pub trait Dial: Sync {
    /// A connection to where the address says, encrypted if it says `https`, that keeps the pace.
    ///
    /// # Errors
    /// When there is none.
    fn dial(&self, url: &Url, pace: &Pace) -> io::Result<Box<dyn Stream>>;

    /// How long the other side is waited for.
    fn patience(&self) -> Patience {
        Patience::default()
    }
}

/// Dials `http` and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Dial for Plain {
    fn dial(&self, url: &Url, pace: &Pace) -> io::Result<Box<dyn Stream>> {
        if url.tls {
            let why = "https is not spoken here";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(Box::new(url.connect(pace)?))
    }
}

/// Where a log or a witness is: scheme, host, port, and a path without its last slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Whether it says `https`.
    pub tls: bool,
    /// Name or address, an IPv6 one without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What stands before every path, without a slash at its end.
    pub prefix: String,
}

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not http://HOST[:PORT][/PATH] or https://…: {0}")]
pub struct UrlError(&'static str);

impl Url {
    /// Parses an address.
    ///
    /// # Errors
    /// For everything but a scheme, a host, perhaps a port, and a plain path.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(UrlError("another scheme, or none")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/%+".contains(&b);
        if !path.bytes().all(plain) {
            return Err(UrlError("the path has more than a plain path"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(UrlError("no ] after the host"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(UrlError("no IPv6 address in the brackets"));
                }
                (host, port)
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let in_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let v6 = authority.starts_with('[');
        if host.is_empty() || host.len() > 253 || !(v6 || host.bytes().all(in_name)) {
            return Err(UrlError("no host"));
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| UrlError("no port"))?
            }
            _ => return Err(UrlError("no port")),
        };
        let prefix = path.trim_end_matches('/').to_owned();
        Ok(Self { tls, host: host.to_owned(), port, prefix })
    }

    /// The address of something below it.
    #[must_use]
    pub fn below(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}/{path}", self.authority(), self.prefix)
    }

    /// Host and port as they stand in an address.
    #[must_use]
    pub fn authority(&self) -> String {
        let v6 = self.host.contains(':');
        let host = if v6 { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = self.port == if self.tls { 443 } else { 80 };
        if usual { host } else { format!("{host}:{}", self.port) }
    }

    /// The address without that last step of its path, which people copy along.
    #[must_use]
    pub fn without(mut self, last: &str) -> Self {
        let before = self.prefix.strip_suffix(last).and_then(|path| path.strip_suffix('/'));
        if let Some(path) = before {
            self.prefix = path.trim_end_matches('/').to_owned();
        }
        self
    }

    /// A connection to it, without encryption, that keeps the pace.
    ///
    /// # Errors
    /// When no address of the host answers in time.
    pub fn connect(&self, pace: &Pace) -> io::Result<Paced> {
        pace.connect(&self.host, self.port)
    }
}

/// A connection and what was read from it beyond the last answer.
struct Line {
    stream: Box<dyn Stream>,
    pace: Pace,
    buffer: Vec<u8>,
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Line {
    fn dial(dial: &dyn Dial, url: &Url, pace: Pace) -> io::Result<Self> {
        Ok(Self { stream: dial.dial(url, &pace)?, pace, buffer: Vec::new() })
    }

    fn ask(&mut self, request: &[u8], most: u64) -> io::Result<(Response, Vec<u8>)> {
        self.stream.write_all(request)?;
        self.stream.flush()?;
        let head = read_head(self.stream.as_mut(), &mut self.buffer)?;
        let head = head.ok_or(io::ErrorKind::ConnectionReset)?;
        let response = parse_response(&head).map_err(broken)?;
        let body = self.body(response.framing, most)?;
        Ok((response, body))
    }

    fn body(&mut self, framing: Framing, most: u64) -> io::Result<Vec<u8>> {
        match framing {
            Framing::Length(length) if length > most => Err(broken("the answer is too long")),
            Framing::Length(length) => self.exactly(length),
            Framing::Chunked => self.pieces(most),
            Framing::UntilClose => {
                let mut body = std::mem::take(&mut self.buffer);
                (&mut self.stream).take(most + 1).read_to_end(&mut body)?;
                if body.len() as u64 > most {
                    Err(broken("the answer is too long"))
                } else {
                    Ok(body)
                }
            }
        }
    }

    fn exactly(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(|_| broken("the answer is too long"))?;
        let rest = self.buffer.split_off(self.buffer.len().min(length));
        let mut body = std::mem::replace(&mut self.buffer, rest);
        let have = body.len();
        body.resize(length, 0);
        self.stream.read_exact(&mut body[have..])?;
        Ok(body)
    }

    /// A line of at most so many bytes with its end, read until there is one.
    fn line(&mut self, most: usize, too_long: &'static str) -> io::Result<String> {
        loop {
            let end = self.buffer.windows(2).position(|w| w == b"\r\n");
            if end.map_or(self.buffer.len(), |end| end + 2) > most {
                return Err(broken(too_long));
            }
            if let Some(end) = end {
                let rest = self.buffer.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| broken("a line that is no text"));
            }
            let mut piece = [0; 512];
            let n = match self.stream.read(&mut piece) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend(&piece[..n]);
        }
    }

    /// Fields after the body mean nothing here, so they are only read to their end.
    fn trailer(&mut self) -> io::Result<()> {
        let mut left = TRAILER_BYTES_MAX;
        loop {
            let line = self.line(left, "too much follows the body")?;
            if line.is_empty() {
                return Ok(());
            }
            left -= line.len() + 2;
        }
    }

    fn pieces(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line(PIECE_LINE_BYTES_MAX, "a piece's length")?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let length = hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
            let length = length.ok_or_else(|| broken("a piece's length"))?;
            if length == 0 {
                self.trailer()?;
                return Ok(body);
            }
            if length > most.saturating_sub(body.len() as u64) {
                return Err(broken("the answer is too long"));
            }
            body.extend(self.exactly(length)?);
            let end = "a piece does not end";
            if !self.line(PIECE_LINE_BYTES_MAX, end)?.is_empty() {
                return Err(broken(end));
            }
        }
    }
}

fn head(url: &Url, method: &str, path: &str, more: &str) -> String {
    format!(
        "{method} {}/{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: nanoclaw/{}\r\n\
         Accept-Encoding: identity\r\n{more}\r\n",
        url.prefix,
        url.authority(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Sends `body` to `path` below `url`; the answer's head, and up to `most` bytes of its body.
///
/// # Errors
/// When there is no answer, or none that is understood.
pub fn post(
    dial: &dyn Dial,
    url: &Url,
    path: &str,
    body: &[u8],
    most: u64,
) -> io::Result<(Response, Vec<u8>)> {
    let more = format!(
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    let mut request = head(url, "POST", path, &more).into_bytes();
    request.extend(body);
    Line::dial(dial, url, Pace::new(dial.patience(), most))?.ask(&request, most)
}

/// A log that a server serves as C2SP tlog-tiles.
pub struct Remote<'a> {
    url: Url,
    dial: &'a dyn Dial,
    line: RefCell<Option<Line>>,
}

impl<'a> Remote<'a> {
    /// The log below that address.
    #[must_use]
    pub fn new(url: Url, dial: &'a dyn Dial) -> Self {
        Self { url, dial, line: RefCell::new(None) }
    }

    fn get(&self, path: &str, most: u64) -> io::Result<(Response, Vec<u8>)> {
        let request = head(&self.url, "GET", path, "Connection: keep-alive\r\n");
        // The server may have closed a connection that was idle: then once more, on a new one, in
        // what is left of the time.
        let kept = self.line.borrow_mut().take();
        let pace = match &kept {
            Some(line) => line.pace.clone(),
            None => Pace::new(self.dial.patience(), most),
        };
        pace.begin(most);
        let again = kept.and_then(|mut line| {
            let answer = line.ask(request.as_bytes(), most).ok()?;
            Some((line, answer))
        });
        let (line, answer) = match again {
            Some(found) => found,
            None => {
                let mut line = Line::dial(self.dial, &self.url, pace)?;
                let answer = line.ask(request.as_bytes(), most)?;
                (line, answer)
            }
        };
        if answer.0.keep_alive {
            *self.line.borrow_mut() = Some(line);
        }
        Ok(answer)
    }
}

impl Source for Remote<'_> {
    fn place(&self, path: &str) -> PathBuf {
        self.url.below(path).into()
    }

    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, Finding> {
        let unread = |why: String| Finding {
            sort: Sort::Unreadable,
            ..finding(self.place(path), 0, format!("it cannot be had: {why}"))
        };
        match self.get(path, most) {
            Ok((response, body)) if response.status == 200 => Ok(Some(body)),
            Ok((response, _)) if matches!(response.status, 404 | 410) => Ok(None),
            Ok((response, _)) => Err(unread(format!("the server answered {}", response.status))),
            Err(e) => Err(unread(e.to_string())),
        }
    }
}
