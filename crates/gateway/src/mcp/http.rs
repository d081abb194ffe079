//! Servers over streamable HTTP: one POST a message, under the same address guards as all egress.
//!
//! ```text
//! url ─► name resolved, every address judged, pinned ─► TLS ─► POST + bearer ─► JSON or events
//! ```
//!
//! Invariants:
//! 1. Private and metadata addresses are refused after resolution; plain HTTP only to loopback.
//! 2. The secret is opened for one request, used at its own hosts only, and masked in answers.
//! 3. Redirects are not followed: a secret goes where its owner sent it.
//!
//! Source: MCP 2025-11-25, basic/transports, streamable HTTP.

use super::link::{ANSWER_BYTES_MAX, McpError};
use super::rpc::{self, Message};
use super::sse::Events;
use crate::address;
use crate::driver::Driver;
use crate::lookups::Lookups;
use crate::mask::Masker;
use crate::memory::{Held, Memory};
use crate::resolve::{self, ADDRESSES_MAX};
use crate::upstream::Tls;
use crate::vault::{Secret, Vault};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HeaderValue;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use model::{AgentName, HostName};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// A TLS handshake.
const TLS_TIME: Duration = Duration::from_secs(10);
/// Longest session id that is given back to a server.
const SESSION_BYTES_MAX: usize = 1_024;

/// What reaching servers needs.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) vault: Arc<Vault>,
    pub(crate) lookups: Lookups,
    pub(crate) tls: Arc<Tls>,
    /// Where answers are charged.
    pub(crate) memory: Memory,
}

/// An answer with what it is charged at.
pub(crate) type Charged = (Result<Value, Value>, Held);

/// What a message was answered with; the rest of it comes for as long as this is held.
struct Answer {
    response: Response<Incoming>,
    secret: Option<Secret>,
    _driver: Driver,
}

/// A server's address, taken apart.
struct Place {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    target: String,
}

/// One session's conversation with one server.
pub(crate) struct HttpLink {
    reach: Reach,
    agent: Option<AgentName>,
    place: Place,
    secret: Option<String>,
    private: bool,
    session: Mutex<Option<HeaderValue>>,
    version: OnceLock<String>,
    over: AtomicBool,
}

impl HttpLink {
    pub(crate) fn new(
        reach: Reach,
        agent: Option<AgentName>,
        url: &str,
        secret: Option<String>,
        private: bool,
    ) -> Result<Self, McpError> {
        let place = place(url)?;
        let (session, version) = (Mutex::new(None), OnceLock::new());
        let over = AtomicBool::new(false);
        Ok(Self { reach, agent, place, secret, private, session, version, over })
    }

    /// Which version is spoken from now on.
    pub(crate) fn spoken(&self, version: &str) {
        let _ = self.version.set(version.to_owned());
    }

    /// Whether the server forgot the session; a new greeting is needed then.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) async fn notify(&self, message: &Value) -> Result<(), McpError> {
        self.post(message).await.map(drop)
    }

    pub(crate) async fn request(&self, id: u64, message: &Value) -> Result<Charged, McpError> {
        let Answer { response, secret, _driver } = self.post(message).await?;
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok());
        if crate::egress::fields::is_encoded(response.headers()) {
            // What cannot be read cannot be masked either.
            let why = "its answer is compressed, though no compression was accepted";
            return Err(McpError::Protocol(why.into()));
        }
        let streamed = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        let mut body = response.into_body();
        let (mut masker, mut events) = (masker(secret.as_ref()), Events::default());
        let (mut seen, mut whole, mut held) = (0, Vec::new(), self.reach.memory.hold());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| McpError::Ended)?.into_data() else { continue };
            seen += data.len();
            if seen > ANSWER_BYTES_MAX {
                return Err(McpError::Protocol("its answer is too large".into()));
            }
            // Once masked, and once in a buffer that doubles.
            held.grow(3 * data.len()).map_err(|full| McpError::Full(full.to_string()))?;
            let clean = masker.feed(&data);
            if !streamed {
                whole.extend_from_slice(&clean);
                continue;
            }
            for event in events.push(&clean) {
                if let Some(answer) = answer_to(id, &event, &mut held)? {
                    return Ok((answer, held));
                }
            }
        }
        whole.extend(masker.finish());
        let answer = answer_to(id, &whole, &mut held)?;
        let answer = answer.ok_or_else(|| McpError::Protocol("it did not answer".into()))?;
        Ok((answer, held))
    }

    async fn post(&self, message: &Value) -> Result<Answer, McpError> {
        let stream = self.dial().await?;
        let secret = self.secret()?;
        let request = self.build(message, secret.as_ref())?;
        let sent = if self.place.tls {
            exchange(TokioIo::new(self.secured(stream).await?), request).await
        } else {
            exchange(TokioIo::new(stream), request).await
        };
        let (response, driver) = sent?;
        let status = response.status().as_u16();
        if status == 404 && self.version.get().is_some() {
            self.over.store(true, Ordering::Relaxed);
        }
        if !(200..300).contains(&status) {
            let hint = match (status, &self.secret) {
                (401 | 403, Some(name)) => format!("; set it with `nanoclaw secret set {name}`"),
                (401 | 403, None) => "; it may want a secret".to_owned(),
                (300..=399, _) => "; redirects are not followed, correct its url".to_owned(),
                _ => String::new(),
            };
            return Err(McpError::Refused(format!("status {status}{hint}")));
        }
        let session = response.headers().get("mcp-session-id");
        if let Some(id) = session.filter(|id| id.len() <= SESSION_BYTES_MAX) {
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
        }
        Ok(Answer { response, secret, _driver: driver })
    }

    fn secret(&self) -> Result<Option<Secret>, McpError> {
        let Some(name) = &self.secret else { return Ok(None) };
        let secret = self.reach.vault.secret(name).map_err(|e| McpError::Secret(e.to_string()))?;
        let host = &self.place.host;
        // A person who approves tools uses it for no agent.
        let serves = match &self.agent {
            Some(agent) => secret.serves(host, agent),
            None => secret.hosts.iter().any(|h| h == host),
        };
        if serves {
            return Ok(Some(secret));
        }
        Err(McpError::Secret(format!(
            "the secret {name} may not be used at {host}; set it again with `nanoclaw secret set \
             {name} --host {host}`"
        )))
    }

    fn build(
        &self,
        message: &Value,
        secret: Option<&Secret>,
    ) -> Result<Request<Full<Bytes>>, McpError> {
        let broken = |_| McpError::Protocol("the request cannot be built".into());
        let mut request = Request::post(&self.place.target)
            .header("host", &self.place.authority)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("accept-encoding", "identity")
            .header("user-agent", concat!("nanoclaw/", env!("CARGO_PKG_VERSION")));
        if let Some(version) = self.version.get() {
            request = request.header("mcp-protocol-version", version);
        }
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        if let Some(secret) = secret {
            let mut value = Zeroizing::new(b"Bearer ".to_vec());
            value.extend_from_slice(secret.bytes.expose());
            let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
                McpError::Secret("the secret has characters that no header may hold".into())
            })?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        request.body(Full::new(Bytes::from(message.to_string()))).map_err(broken)
    }

    /// Resolves, judges every address, and connects to one of them.
    async fn dial(&self) -> Result<TcpStream, McpError> {
        let host = &self.place.host;
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.reach.lookups.look_up(host).await.map_err(|e| {
                McpError::Unreachable(format!("the name {host} cannot be resolved: {e}"))
            })?,
        };
        for &ip in &addresses {
            match address::forbidden(ip) {
                Some(f) if !(f.opens && self.private) => {
                    let hint =
                        if f.opens { "; if that is meant, write private = true" } else { "" };
                    let why = format!("{host} is at {ip}, which is {}{hint}", f.range);
                    return Err(McpError::Unreachable(why));
                }
                _ if !self.place.tls && !ip.is_loopback() => {
                    let why = format!("plain http goes to this machine only, not to {ip}");
                    return Err(McpError::Unreachable(why));
                }
                _ => {}
            }
        }
        let mut cause = String::new();
        for ip in addresses.into_iter().take(ADDRESSES_MAX) {
            match resolve::connect(SocketAddr::new(ip, self.place.port)).await {
                Ok(stream) => return Ok(stream),
                Err(e) => cause = e.to_string(),
            }
        }
        Err(McpError::Unreachable(format!("{host}:{}: {cause}", self.place.port)))
    }

    async fn secured(
        &self,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, McpError> {
        let failed = |cause: String| McpError::Unreachable(format!("TLS failed: {cause}"));
        let config = self.reach.tls.config().await.map_err(|e| failed(e.to_string()))?;
        let name =
            ServerName::try_from(self.place.host.clone()).map_err(|e| failed(e.to_string()))?;
        let connecting = tokio_rustls::TlsConnector::from(config).connect(name, stream);
        tokio::time::timeout(TLS_TIME, connecting)
            .await
            .map_err(|_| failed("it took too long".into()))?
            .map_err(|e| failed(e.to_string()))
    }
}

fn masker(secret: Option<&Secret>) -> Masker {
    Masker::new(secret.map(|s| s.bytes.expose()))
}

/// The answer to `id`, if that is what the bytes are.
fn answer_to(
    id: u64,
    bytes: &[u8],
    held: &mut Held,
) -> Result<Option<Result<Value, Value>>, McpError> {
    rpc::charge(bytes, held).map_err(|(_, why)| McpError::Full(why))?;
    Ok(match rpc::parse(bytes) {
        Ok(Message::Response { id: found, result }) if found.as_u64() == Some(id) => Some(result),
        _ => None,
    })
}

async fn exchange<T>(
    io: TokioIo<T>,
    request: Request<Full<Bytes>>,
) -> Result<(Response<Incoming>, Driver), McpError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    /// Largest response head.
    const HEAD_BYTES_MAX: usize = 64 * 1024;
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(io).await;
    let (mut sender, connection) = handshake.map_err(|_| McpError::Ended)?;
    let driver = Driver::start(async move { drop(connection.await) });
    let response = sender.send_request(request).await.map_err(|_| McpError::Ended)?;
    Ok((response, driver))
}

/// The host of a server's URL, as [`HttpLink`] reaches it.
pub(crate) fn host_of(url: &str) -> Option<String> {
    place(url).ok().map(|place| place.host)
}

/// Takes a URL apart; policy has checked it before.
fn place(url: &str) -> Result<Place, McpError> {
    let bad = |why: &str| McpError::Unreachable(format!("its url is not usable: {why}"));
    let uri: Uri = url.parse().map_err(|_| bad("it is no URL"))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad("it must begin with https://")),
    };
    let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(bad("user names and passwords do not belong in it"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let host = match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_string(),
        Err(_) => HostName::parse(host).map_err(|e| bad(e.why))?.to_string(),
    };
    let target = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Ok(Place { tls, host, port, authority: authority.as_str().to_owned(), target })
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn urls_are_taken_apart_or_refused() {
        let p = place("https://Tools.example.com/mcp?x=1").expect("valid");
        assert_eq!((p.tls, p.host.as_str(), p.port), (true, "tools.example.com", 443));
        assert_eq!(p.target, "/mcp?x=1");
        let p = place("http://[::1]:8080").expect("valid");
        assert_eq!((p.host.as_str(), p.port, p.target.as_str()), ("::1", 8080, "/"));
        for bad in ["", "x", "ftp://e.org/", "https://u:p@e.org/", "https://a_b/", "https:///x"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
