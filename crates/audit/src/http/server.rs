//! A server of few, short answers: a thread a connection, every wait bounded.

use super::head::{Request, parse_request};
use super::read_head;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How much a server bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; whoever comes beyond is told 503 and let go.
    pub connections: usize,
    /// For a head, and for a body, to arrive; also how long a connection may be idle.
    pub receive: Duration,
    /// For an answer to be taken.
    pub send: Duration,
    /// Requests on one connection.
    pub requests: usize,
}

impl Default for Limits {
    /// 64 threads are little memory; ten seconds are plenty for a head of 8 KiB, and a minute is
    /// for the largest bundle (16 MiB) over a slow line.
    fn default() -> Self {
        Self {
            connections: 64,
            receive: Duration::from_secs(10),
            send: Duration::from_secs(60),
            requests: 10_000,
        }
    }
}

/// What an answer holds.
#[derive(Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// So many bytes of a file, streamed.
    File(File, u64),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its `Content-Type`.
    pub kind: &'static str,
    /// Its `Cache-Control`.
    pub cache: &'static str,
    /// Its body.
    pub content: Content,
}

impl Answer {
    /// A line of plain text that nobody keeps.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        let content = Content::Bytes(format!("{text}\n").into_bytes());
        Self { status, kind: "text/plain; charset=utf-8", cache: "no-store", content }
    }
}

/// What is served.
pub trait Service: Send + Sync {
    /// Largest body of a request, bytes.
    fn body_max(&self) -> u64;

    /// Answers one request. `HEAD` is asked as `GET`, and only the head of the answer sent.
    fn answer(&self, request: &Request, body: &[u8]) -> Answer;
}

/// Serves for as long as the listener accepts.
///
/// # Errors
/// When it does not any more.
pub fn run(listener: &TcpListener, service: &Arc<dyn Service>, limits: Limits) -> io::Result<()> {
    let places = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // A connection that was gone before it was taken is nobody's failure.
            Err(e) if is_passing(&e) => continue,
            // Out of descriptors: those in use come free again.
            Err(e) if matches!(e.raw_os_error(), Some(23 | 24)) => {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            Err(e) => return Err(e),
        };
        let place = Place::take(&places);
        if place.taken > limits.connections {
            refuse(stream);
            continue;
        }
        let service = Arc::clone(service);
        let serve = move || {
            let _place = place;
            // Whatever goes wrong on a connection ends that connection.
            let _ = converse(&stream, service.as_ref(), limits);
            let _ = stream.shutdown(Shutdown::Both);
        };
        // Without a thread the connection is closed, and its place given back.
        let _ = thread::Builder::new().name("audit-http".into()).spawn(serve);
    }
}

fn is_passing(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// A counted connection.
struct Place {
    all: Arc<AtomicUsize>,
    taken: usize,
}

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Self {
        let taken = all.fetch_add(1, Ordering::SeqCst) + 1;
        Self { all: Arc::clone(all), taken }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
    }
}

fn refuse(mut stream: TcpStream) {
    // Told if it can be without waiting; nothing depends on it.
    let _ = stream.set_nonblocking(true);
    let _ =
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

/// Reads and writes of a stream that must be done by a moment.
struct Until<'a> {
    stream: &'a TcpStream,
    moment: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.moment.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn converse(stream: &TcpStream, service: &dyn Service, limits: Limits) -> io::Result<()> {
    let mut buffer = Vec::new();
    for _ in 0..limits.requests {
        let mut until = Until { stream, moment: Instant::now() + limits.receive };
        let Some(head) = read_head(&mut until, &mut buffer)? else { return Ok(()) };
        let (request, answer) = match parse_request(&head) {
            Err(why) => (None, Answer::text(400, why)),
            Ok(request) if request.length > service.body_max() => {
                (None, Answer::text(413, "the body is too large"))
            }
            Ok(mut request) => {
                let mut until = Until { stream, moment: Instant::now() + limits.receive };
                let body = read_body(&mut until, &mut buffer, request.length)?;
                let only_head = request.method == "HEAD";
                if only_head {
                    request.method = "GET".into();
                }
                let answer = service.answer(&request, &body);
                (Some((request, only_head)), answer)
            }
        };
        let keep_alive = request.as_ref().is_some_and(|(request, _)| request.keep_alive);
        let only_head = request.is_some_and(|(_, only_head)| only_head);
        let until = Until { stream, moment: Instant::now() + limits.send };
        send(until, answer, keep_alive, only_head)?;
        if !keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

fn read_body(stream: &mut dyn Read, buffer: &mut Vec<u8>, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
    let rest = buffer.split_off(buffer.len().min(length));
    let mut body = std::mem::replace(buffer, rest);
    let have = body.len();
    body.resize(length, 0);
    stream.read_exact(&mut body[have..])?;
    Ok(body)
}

fn send(mut to: Until<'_>, answer: Answer, keep_alive: bool, only_head: bool) -> io::Result<()> {
    let length = match &answer.content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::File(_, length) => *length,
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nCache-Control: {}\r\nContent-Length: {length}\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: {connection}\r\n\r\n",
        answer.status,
        reason(answer.status),
        answer.kind,
        answer.cache
    );
    match answer.content {
        _ if only_head => to.write_all(head.as_bytes()),
        Content::Bytes(bytes) => to.write_all(&[head.as_bytes(), &bytes].concat()),
        Content::File(file, length) => {
            to.write_all(head.as_bytes())?;
            let sent = io::copy(&mut file.take(length), &mut to)?;
            // A file that became shorter: the connection's end says that the answer is not whole.
            if sent == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Entity",
        _ => "Internal Server Error",
    }
}
