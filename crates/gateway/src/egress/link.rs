//! The client side of one door: pinned TCP (→ verified TLS) → HTTP/1.1 or HTTP/2.
//!
//! 1. Certificates are always verified, for the name that the rule permits.
//! 2. A connection belongs to one door; no two sessions ever share one, nor a TLS session.
//! 3. A connection that carried a secret is never used again, nor by two requests at a time.

use super::Origin;
use super::shared::{self, Opening, Pool, Stream};
use super::upload::Upload;
use crate::upstream::{Tls, UpstreamError};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

/// Connections kept per door; package managers open about as many.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Below the keep-alive time of common servers; a stale one is noticed and replaced.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// A request with a body cannot be repeated, so it gets no connection that may be about to close.
const IDLE_TIME_BODY: Duration = Duration::from_secs(2);
/// TLS handshake, two round trips and a certificate check.
const TLS_TIME: Duration = Duration::from_secs(10);
/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// TLS sessions remembered per door.
const TLS_SESSIONS: usize = 32;

/// Where one request at a time can be sent: a connection, or a place on one that is shared.
pub(crate) enum Sender {
    H1(http1::SendRequest<Upload>),
    H2 { sender: http2::SendRequest<Upload>, _place: Option<Stream> },
}

impl Sender {
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H1(sender) => sender.send_request(request).await,
            Self::H2 { sender, .. } => sender.send_request(request).await,
        }
    }
}

/// A connection and what was judged about it.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    pub(crate) ip: IpAddr,
}

/// Who may use a new connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// This request alone, and over HTTP/1.1: it turns into a WebSocket.
    OnlyH1,
    /// This request alone.
    Alone,
    /// Other requests of the door, after this one or beside it.
    Shared,
}

/// What is there for a request that may use a kept connection.
pub(crate) enum Kept {
    Link(Link),
    /// Nothing: it opens a connection, for others too if it has the turn.
    Nothing {
        _turn: Option<Opening>,
    },
}

struct Idle {
    to: Origin,
    since: Instant,
    sender: http1::SendRequest<Upload>,
    ip: IpAddr,
}

/// One door's connections to other hosts.
pub(crate) struct Links {
    tls: Arc<Tls>,
    any: OnceCell<Arc<ClientConfig>>,
    h1: OnceCell<Arc<ClientConfig>>,
    idle: Mutex<Vec<Idle>>,
    shared: Pool,
}

impl Links {
    pub(crate) fn new(tls: Arc<Tls>) -> Self {
        let (any, h1, idle) = (OnceCell::new(), OnceCell::new(), Mutex::default());
        Self { tls, any, h1, idle, shared: Pool::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that is still alive, or the turn to open one.
    pub(crate) async fn take(&self, to: &Origin, with_body: bool) -> Kept {
        let age_max = if with_body { IDLE_TIME_BODY } else { IDLE_TIME };
        if let Some(link) = self.kept(to, age_max).await {
            return Kept::Link(link);
        }
        if !to.tls {
            return Kept::Nothing { _turn: None };
        }
        // Somebody may have opened one meanwhile.
        let opening = self.shared.turn(to).await;
        match self.kept(to, age_max).await {
            Some(link) => Kept::Link(link),
            None => Kept::Nothing { _turn: opening },
        }
    }

    async fn kept(&self, to: &Origin, age_max: Duration) -> Option<Link> {
        self.shared.tidy(IDLE_TIME);
        if let Some((sender, stream, ip)) = self.shared.join(to, age_max) {
            return Some(Link { sender: Sender::H2 { sender, _place: Some(stream) }, ip });
        }
        loop {
            let mut found = {
                let mut idle = self.lock();
                idle.retain(|c| c.since.elapsed() < IDLE_TIME && !c.sender.is_closed());
                let fits = |c: &Idle| c.to == *to && c.since.elapsed() < age_max;
                let at = idle.iter().rposition(fits)?;
                idle.swap_remove(at)
            };
            if found.sender.ready().await.is_ok() {
                return Some(Link { sender: Sender::H1(found.sender), ip: found.ip });
            }
        }
    }

    /// Keeps a connection whose answer was read to the end. One that is shared was never given
    /// away.
    pub(crate) fn give_back(&self, to: Origin, link: Link) {
        let Sender::H1(sender) = link.sender else { return };
        if sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() >= IDLE_CONNECTIONS_MAX {
            idle.remove(0);
        }
        idle.push(Idle { to, since: Instant::now(), sender, ip: link.ip });
    }

    async fn config(&self, only_h1: bool) -> Result<Arc<ClientConfig>, UpstreamError> {
        let cell = if only_h1 { &self.h1 } else { &self.any };
        let build = async {
            let mut config = (*self.tls.config().await?).clone();
            config.resumption = Resumption::in_memory_sessions(TLS_SESSIONS);
            let h1 = b"http/1.1".to_vec();
            config.alpn_protocols = if only_h1 { vec![h1] } else { vec![b"h2".to_vec(), h1] };
            Ok(Arc::new(config))
        };
        cell.get_or_try_init(|| build).await.cloned()
    }

    /// Makes a connection to `ip` over `stream` ready for requests to `to`.
    pub(crate) async fn open(
        &self,
        to: &Origin,
        (stream, ip): (TcpStream, IpAddr),
        sharing: Sharing,
    ) -> Result<Link, UpstreamError> {
        let host = || to.host.to_string();
        let broken =
            |e: hyper::Error| UpstreamError::Exchange { host: host(), cause: e.to_string() };
        if !to.tls {
            let sender = h1(stream).await.map_err(broken)?;
            return Ok(Link { sender, ip });
        }
        let tls_error = |cause: String| UpstreamError::Tls { host: host(), cause };
        let config = self.config(sharing == Sharing::OnlyH1).await?;
        let name = ServerName::try_from(host()).map_err(|e| tls_error(e.to_string()))?;
        let connecting = TlsConnector::from(config).connect(name, stream);
        let stream = tokio::time::timeout(TLS_TIME, connecting)
            .await
            .map_err(|_| tls_error("it took too long".into()))?
            .map_err(|e| tls_error(e.to_string()))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            if sharing == Sharing::Shared {
                self.shared.speaks_h1(to);
            }
            let sender = h1(stream).await.map_err(broken)?;
            return Ok(Link { sender, ip });
        }
        let connected = shared::hello(stream, HEAD_BYTES_MAX as u32).await.map_err(broken)?;
        let sender = match sharing {
            Sharing::Shared => {
                let (sender, stream) = self.shared.share(to, ip, connected);
                Sender::H2 { sender, _place: Some(stream) }
            }
            _ => Sender::H2 { sender: connected.sender, _place: None },
        };
        Ok(Link { sender, ip })
    }
}

async fn h1<T>(stream: T) -> hyper::Result<Sender>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let builder = builder.max_buf_size(HEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    // Ends by itself when the sender and the answer are dropped.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    Ok(Sender::H1(sender))
}
