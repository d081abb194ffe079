//! Absolute-form `http://host[:port]/…`: forwarded to a permitted host, request by request.
//!
//! The request is built anew, without hop-by-hop fields; one connection each, never reused, so
//! that no server can answer one request with the rest of another.

use super::{Carried, Connected, Refusal};
use crate::authority::{self, Authority, quoted};
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, BodyReader, Conn, answer};
use crate::http::head::{Framing, Head};
use crate::modelapi::serve::plain as say;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Largest body sent out by plain HTTP.
const UPLOAD_BYTES_MAX: u64 = 1 << 30;
/// A server that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(120);
/// Pieces of a body under way between the two connections.
const PIECES: usize = 2;

/// Fields that end at this hop (RFC 9110 §7.6.1), and those this hop writes itself.
const HOP_FIELDS: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
    "expect",
];
/// A credential in clear text over the network is never what the owner wants.
const CREDENTIAL_FIELDS: &[&str] =
    &["authorization", "cookie", "x-api-key", "x-goog-api-key", "api-key", "private-token"];

/// Forwards one absolute-form request.
pub(crate) async fn forward(
    conn: &mut Conn,
    door: &Arc<DoorState>,
    head: &Head,
) -> io::Result<bool> {
    let opened = conn.unless_gone(open(door, head)).await;
    match opened.ok_or(io::ErrorKind::BrokenPipe)? {
        Ok((connected, to, path)) => {
            let refused = exchange(conn, head, &to, &path, connected).await?;
            match refused {
                None => Ok(false),
                Some(refusal) => refuse(conn, door, head, &refusal).await,
            }
        }
        Err(refusal) => refuse(conn, door, head, &refusal).await,
    }
}

async fn refuse(conn: &mut Conn, door: &DoorState, head: &Head, r: &Refusal) -> io::Result<bool> {
    if r.status != 503 {
        door.scribe.refused(quoted(&head.target), &r.rule, r.reason.clone()).await;
    }
    say(conn, head, r.status, &r.text(), &[]).await
}

type Opened = (Connected, Authority, String);

async fn open(door: &DoorState, head: &Head) -> Result<Opened, Refusal> {
    let bad = |why: String| Refusal::new(400, "http", why);
    let (to, path) = authority::parse_absolute(&head.target).map_err(|e| bad(e.to_string()))?;
    authority::check_host(head.field("host"), &to).map_err(|e| bad(e.to_string()))?;
    if head.method == "TRACE" {
        return Err(bad("TRACE is not forwarded".into()));
    }
    let rule = super::verdict(door, &to)?;
    check_credentials(door, head, &rule.id)?;
    let found = super::addresses(door, rule).await?;
    Ok((super::connect(door, rule, found).await?, to, path))
}

fn check_credentials(door: &DoorState, head: &Head, rule: &str) -> Result<(), Refusal> {
    let refused = |why: String| Err(Refusal::new(403, rule, why));
    if let Some(name) = CREDENTIAL_FIELDS.iter().find(|name| head.field(name).is_some()) {
        return refused(format!(
            "the request carries a credential ({name}) over plain http; use https"
        ));
    }
    let placeholder = door.placeholder.as_str();
    let carries = |text: &str| !placeholder.is_empty() && text.contains(placeholder);
    if carries(&head.target) || head.fields.iter().any(|(_, value)| carries(value)) {
        return refused("the request carries the placeholder key to another host".into());
    }
    Ok(())
}

/// The request body on its way from the sandbox to the server.
struct Upload {
    pieces: mpsc::Receiver<Bytes>,
    left: Option<u64>,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(cx).map(|piece| {
            let piece = piece?;
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(piece.len() as u64);
            }
            Some(Ok(Frame::data(piece)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn build(head: &Head, to: &Authority, path: &str, upload: Upload) -> Option<Request<Upload>> {
    let host = if to.port == 80 { to.host.to_string() } else { format!("{}:{}", to.host, to.port) };
    let named = head.field("connection").unwrap_or("").to_ascii_lowercase();
    let mut request = Request::builder()
        .method(head.method.as_str())
        .uri(path)
        .header("host", host)
        .header("connection", "close");
    for (name, value) in &head.fields {
        let hop = HOP_FIELDS.contains(&name.as_str()) || named.split(',').any(|n| n.trim() == name);
        if !hop {
            request = request.header(name, value);
        }
    }
    request.body(upload).ok()
}

/// Sends and streams back. `Some` when nothing was answered to the client yet.
async fn exchange(
    conn: &mut Conn,
    head: &Head,
    to: &Authority,
    path: &str,
    connected: Connected,
) -> io::Result<Option<Refusal>> {
    let Connected { stream, carried } = connected;
    let bad = |status, why: String| {
        carried.fail(why.as_str());
        Ok(Some(Refusal::new(status, "http", why)))
    };
    let mut reader = match BodyReader::new(head.framing, UPLOAD_BYTES_MAX) {
        Ok(reader) => reader,
        Err(e) => return bad(e.status(), e.to_string()),
    };
    if head.expects_continue() && !reader.is_done() {
        conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (feed, pieces) = mpsc::channel(PIECES);
    let left = match head.framing {
        Framing::None => Some(0),
        Framing::Length(n) => Some(n),
        Framing::Chunked => None,
    };
    let Some(request) = build(head, to, path, Upload { pieces, left }) else {
        return bad(400, "the request cannot be forwarded".into());
    };
    let mut asking = std::pin::pin!(ask(stream, request));
    let answered = tokio::select! {
        biased;
        early = &mut asking => early,
        uploaded = upload(conn, &carried, &mut reader, feed) => match uploaded {
            Err(why) => return bad(400, why),
            Ok(()) => {
                let waited = conn.unless_gone(tokio::time::timeout(SILENCE, asking)).await;
                match waited.ok_or(io::ErrorKind::BrokenPipe)? {
                    Ok(answered) => answered,
                    Err(_) => return bad(504, format!("{} did not answer", to.host)),
                }
            }
        },
    };
    match answered {
        Err(e) => bad(502, format!("{} broke the exchange off: {e}", to.host)),
        Ok(response) => stream_back(conn, head, &carried, response).await.map(|()| None),
    }
}

async fn ask(stream: TcpStream, request: Request<Upload>) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await
}

async fn upload(
    conn: &mut Conn,
    carried: &Carried,
    reader: &mut BodyReader,
    feed: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    while let Some(piece) = conn.read_body(reader).await.map_err(|e| e.to_string())? {
        carried.sent(piece.len());
        if feed.send(piece).await.is_err() {
            // The server answered without wanting the rest.
            return Ok(());
        }
    }
    Ok(())
}

async fn stream_back(
    conn: &mut Conn,
    head: &Head,
    carried: &Carried,
    response: Response<Incoming>,
) -> io::Result<()> {
    let (parts, mut body) = response.into_parts();
    let mut fields: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &parts.headers {
        if !HOP_FIELDS.contains(&name.as_str())
            && let Ok(value) = value.to_str()
        {
            fields.push((name.as_str(), value));
        }
    }
    let status = parts.status.as_u16();
    let bodiless = head.method == "HEAD" || matches!(status, 204 | 304);
    let kind = if bodiless { AnswerBody::HeadOnly } else { AnswerBody::Chunks };
    conn.write(&answer(status, &fields, &kind, false)).await?;
    if bodiless {
        return Ok(());
    }
    loop {
        let next = conn.unless_gone(tokio::time::timeout(SILENCE, body.frame())).await;
        let data = match next.ok_or(io::ErrorKind::BrokenPipe)? {
            Ok(None) => return conn.end_chunks().await,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            // Ending without the last chunk tells the client that the body is incomplete.
            Ok(Some(Err(e))) => {
                carried.fail(e.to_string());
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Err(_) => {
                carried.fail("the server fell silent");
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        carried.received(data.len());
        conn.write_chunk(&data).await?;
    }
}
