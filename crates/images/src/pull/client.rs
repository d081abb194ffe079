//! A small client of registries: one request at a time, nothing remembered but a token.
//!
//! Pipeline: connect ─► TLS, verified ─► GET ─► 401? token, again ─► redirected? there ─► body.
//!
//! 1. Plain HTTP is spoken to this machine only, and only when a person asked for it.
//! 2. A token goes to the registry that asked for it, never to where it redirects.
//! 3. No answer is believed: sizes are bounded here, digests are checked by the caller.

use super::reference::{Reference, is_loopback};
use crate::error::{Error, ErrorKind, Result, carry};
use crate::limits::Watch;
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::{OnceCell, RefCell};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Silence after which nobody waits any longer.
const SILENCE: Duration = Duration::from_secs(60);
/// How often whoever wants to stop is asked.
const ASKED: Duration = Duration::from_millis(100);
/// From a registry to where it keeps its blobs, and perhaps on.
const REDIRECTS_MAX: usize = 5;
const HEAD_BYTES_MAX: usize = 64 << 10;
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// An answer whose body is still to be read.
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
}

pub(super) struct Client<'a> {
    runtime: Runtime,
    tls: OnceCell<Arc<ClientConfig>>,
    registry: Target,
    repository: String,
    plain_http: bool,
    token: RefCell<Option<HeaderValue>>,
    watch: &'a dyn Watch,
}

fn network(cause: impl std::fmt::Display) -> Error {
    let remedy = "nothing was stored; check the reference and the network, then try again";
    Error::new(ErrorKind::Network, cause, remedy)
}

impl<'a> Client<'a> {
    pub(super) fn new(from: &Reference, plain_http: bool, watch: &'a dyn Watch) -> Result<Self> {
        if plain_http && !is_loopback(&from.host) {
            let cause = format!("{} is not this machine", from.host);
            let remedy = "plain http is spoken to 127.0.0.1, ::1 and localhost only";
            return Err(Error::new(ErrorKind::Usage, cause, remedy));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| network(format!("no runtime: {e}")))?;
        let port = from.port.unwrap_or(if plain_http { 80 } else { 443 });
        let host = from.host.clone();
        let registry = Target { tls: !plain_http, host, port, path: String::new() };
        Ok(Self {
            runtime,
            tls: OnceCell::new(),
            registry,
            repository: from.repository.clone(),
            plain_http,
            token: RefCell::new(None),
            watch,
        })
    }

    /// `GET /v2/<repository>/<what>`.
    pub(super) fn get(&self, what: &str, accept: &str) -> Result<Answer> {
        let first =
            Target { path: format!("/v2/{}/{what}", self.repository), ..self.registry.clone() };
        let mut target = first.clone();
        let mut challenged = false;
        for _ in 0..=REDIRECTS_MAX {
            let own = (&target.host, target.port) == (&first.host, first.port);
            let token = self.token.borrow().clone().filter(|_| own);
            let answer = self.ask(&target, accept, token)?;
            match answer.status {
                StatusCode::OK => return Ok(answer),
                StatusCode::UNAUTHORIZED if own && !challenged => {
                    challenged = true;
                    self.authenticate(&answer.headers)?;
                }
                s if s.is_redirection() => {
                    let to = answer.headers.get(header::LOCATION);
                    let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
                    target = self.target(to, &target)?;
                }
                StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let cause = format!(
                        "{} has no {what} of {} for everybody ({})",
                        self.registry.host, self.repository, answer.status
                    );
                    let remedy = "nothing was stored; check the reference (private images: pull \
                                  them elsewhere and use `nanoclaw image import`)";
                    return Err(Error::new(ErrorKind::Missing, cause, remedy));
                }
                other => {
                    return Err(network(format!("{} answered {other}", target.host)));
                }
            }
        }
        Err(network(format!("{} redirects without end", self.registry.host)))
    }

    /// The body, as something to read; ends with an error beyond `most` bytes.
    pub(super) fn body<'b>(&'b self, answer: Answer, most: u64) -> impl Read + use<'a, 'b> {
        Body { client: self, body: answer.body, rest: Bytes::new(), left: most }
    }

    /// Waits, but not beyond a silence, and not when a person wants to stop.
    fn wait<T>(&self, what: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            let mut future = Box::pin(tokio::time::timeout(SILENCE, future));
            loop {
                if let Ok(done) = tokio::time::timeout(ASKED, &mut future).await {
                    return done.unwrap_or_else(|_| Err(network(format!("{what}: no answer"))));
                }
                if self.watch.cancelled() {
                    return Err(Error::cancelled());
                }
            }
        })
    }

    fn ask(&self, to: &Target, accept: &str, token: Option<HeaderValue>) -> Result<Answer> {
        let tls = if to.tls { Some(self.tls()?) } else { None };
        let lost = |e: &dyn std::fmt::Display| network(format!("{}: {e}", to.host));
        self.wait(&to.host, async {
            let stream = TcpStream::connect((to.host.as_str(), to.port)).await;
            let stream = stream.map_err(|e| lost(&e))?;
            let peer = stream.peer_addr().map_err(|e| lost(&e))?;
            let Some(tls) = tls else {
                if !peer.ip().is_loopback() {
                    return Err(network(format!("{} is not this machine", to.host)));
                }
                return exchange(TokioIo::new(stream), to, accept, token).await;
            };
            let name = ServerName::try_from(to.host.clone()).map_err(|e| lost(&e))?;
            let connector = tokio_rustls::TlsConnector::from(tls);
            let stream = connector.connect(name, stream).await.map_err(|e| lost(&e))?;
            exchange(TokioIo::new(stream), to, accept, token).await
        })
    }

    fn tls(&self) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = rustls::RootCertStore::empty();
        let (added, _) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 {
            let cause = "this machine has no trusted certificates";
            let remedy = "install the package ca-certificates or set SSL_CERT_FILE";
            return Err(Error::new(ErrorKind::Network, cause, remedy));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(network)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        Ok(Arc::clone(self.tls.get_or_init(|| config)))
    }

    /// An address that an answer names.
    fn target(&self, text: &str, from: &Target) -> Result<Target> {
        let bad = || {
            let shown: String = text.chars().take(120).collect();
            network(format!("{} points to {shown:?}, where nobody goes from here", from.host))
        };
        if text.starts_with('/') && !text.starts_with("//") {
            return Ok(Target { path: text.to_owned(), ..from.clone() });
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.plain_http && is_loopback(&host) => false,
            _ => return Err(bad()),
        };
        if uri.authority().is_none_or(|a| a.as_str().contains('@')) {
            return Err(bad());
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Target { tls, host, port, path })
    }

    /// Fetches a token for everybody (RFC 6750; distribution's token specification).
    fn authenticate(&self, headers: &HeaderMap) -> Result<()> {
        let refuse = |why: &str| Err(network(format!("{} {why}", self.registry.host)));
        let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|v| v.to_str().ok());
        let Some(fields) = challenge.and_then(bearer) else {
            return refuse("wants a password, which is not supported");
        };
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let Some(realm) = field("realm") else { return refuse("names no place for tokens") };
        let mut target = self.target(realm, &self.registry)?;
        let mut query = format!("scope=repository:{}:pull", escaped(&self.repository));
        if let Some(service) = field("service") {
            query.push_str(&format!("&service={}", escaped(service)));
        }
        let joint = if target.path.contains('?') { '&' } else { '?' };
        target.path = format!("{}{joint}{query}", target.path);
        let answer = self.ask(&target, "application/json", None)?;
        if answer.status != StatusCode::OK {
            return refuse("gives no token to everybody");
        }
        let bytes =
            crate::writer::read_bounded(self.body(answer, TOKEN_BYTES_MAX), TOKEN_BYTES_MAX)?;
        let value: serde_json::Value = crate::oci::json(&bytes, "token")?;
        let token = value["token"].as_str().or(value["access_token"].as_str());
        let header = token.and_then(|t| HeaderValue::from_str(&format!("Bearer {t}")).ok());
        let Some(mut header) = header else { return refuse("gave no token") };
        header.set_sensitive(true);
        *self.token.borrow_mut() = Some(header);
        Ok(())
    }
}

async fn exchange<T>(
    io: TokioIo<T>,
    to: &Target,
    accept: &str,
    token: Option<HeaderValue>,
) -> Result<Answer>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let lost = |e: &dyn std::fmt::Display| network(format!("{}: {e}", to.host));
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(io).await;
    let (mut sender, connection) = handshake.map_err(|e| lost(&e))?;
    // Ends by itself when the answer is dropped.
    tokio::spawn(async move { drop(connection.await) });
    let customary = if to.tls { 443 } else { 80 };
    let bare = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.clone() };
    let host = if to.port == customary { bare } else { format!("{bare}:{}", to.port) };
    let mut request = Request::get(&to.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("nanoclaw/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, accept);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| lost(&e))?;
    let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
    let (parts, body) = response.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// `Bearer key="value",…` in lower-case keys.
fn bearer(challenge: &str) -> Option<Vec<(String, String)>> {
    let (scheme, mut rest) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut fields = Vec::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.push((key, value.to_owned()));
        rest = after;
    }
    Some(fields)
}

/// A value in a query (RFC 3986 §2.3).
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

struct Body<'a, 'b> {
    client: &'b Client<'a>,
    body: Incoming,
    rest: Bytes,
    left: u64,
}

impl Read for Body<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            let host = &self.client.registry.host;
            let body = &mut self.body;
            let frame = self.client.wait(host, async {
                let frame = body.frame().await.transpose();
                frame.map_err(|e| network(format!("{host} broke off: {e}")))
            });
            let Some(frame) = frame.map_err(carry)? else { return Ok(0) };
            let Ok(data) = frame.into_data() else { continue };
            if data.len() as u64 > self.left {
                return Err(carry(network(format!("{host} sends more than it announced"))));
            }
            self.left -= data.len() as u64;
            self.rest = data;
        }
        let n = self.rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), self.rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.rest.advance(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text =
            "Bearer realm=\"https://a.example/t?x=1\",service=\"a b\", scope=repository:x:pull";
        let fields = bearer(text).unwrap();
        let wanted = [
            ("realm", "https://a.example/t?x=1"),
            ("service", "a b"),
            ("scope", "repository:x:pull"),
        ];
        let wanted = wanted.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(fields, wanted);
        assert_eq!(escaped("a b&c=d/e"), "a%20b%26c%3Dd/e");
        assert!(bearer("Basic realm=\"x\"").is_none() && bearer("Bearer").is_none());
    }

    #[test]
    fn redirects_do_not_lead_to_plain_http_or_passwords() {
        let from = Reference::parse("localhost:5000/x").unwrap();
        let watch = crate::Unwatched;
        for (plain, text, good) in [
            (false, "https://cdn.example/blob?sig=1", true),
            (false, "/v2/x/blobs/other", true),
            (false, "http://127.0.0.1/blob", false),
            (true, "http://127.0.0.1:5000/blob", true),
            (true, "http://cdn.example/blob", false),
            (false, "https://me:word@cdn.example/blob", false),
            (false, "//cdn.example/blob", false),
            (false, "file:///etc/passwd", false),
            (false, "", false),
        ] {
            let client = Client::new(&from, plain, &watch).unwrap();
            let target = client.target(text, &client.registry);
            assert_eq!(target.is_ok(), good, "{plain} {text}");
        }
        let far = Reference::parse("registry.example/x").unwrap();
        assert!(Client::new(&far, true, &watch).is_err());
    }
}
