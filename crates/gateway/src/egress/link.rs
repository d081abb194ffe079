//! The client side of one door: pinned TCP (→ verified TLS) → HTTP/1.1 or HTTP/2.
//!
//! 1. Certificates are always verified, for the name that the rule permits.
//! 2. A connection belongs to one door; no two sessions ever share one, nor a TLS session.
//! 3. A connection that carried a secret is never used again, nor by two requests at a time.
//! 4. A connection ends with whoever has it, the request or this door's pool; one that is kept and
//!    not used ends by itself.

use super::Origin;
use super::h1::H1;
use super::kept::Kept;
use super::shared::{self, Opening, Pool, Stream};
use super::upload::Upload;
use crate::upstream::{Tls, UpstreamError};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

/// Below the keep-alive time of common servers; a stale one is noticed and replaced.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(30);
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
    H1(H1),
    H2 { sender: http2::SendRequest<Upload>, _place: Stream },
}

impl Sender {
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    /// Sends a request; returns when the head of its answer is there.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H1(h1) => h1.send(request).await,
            Self::H2 { sender, .. } => sender.send_request(request).await,
        }
    }

    /// The next piece of its answer. May be abandoned at any time.
    pub(crate) async fn frame(
        &mut self,
        body: &mut Incoming,
    ) -> Option<hyper::Result<Frame<Bytes>>> {
        match self {
            Self::H1(h1) => h1.frame(body).await,
            Self::H2 { .. } => body.frame().await,
        }
    }

    /// What the connection carries after a `101`.
    pub(crate) async fn upgraded(
        &mut self,
        response: Response<Incoming>,
    ) -> hyper::Result<Upgraded> {
        match self {
            Self::H1(h1) => h1.upgraded(response).await,
            Self::H2 { .. } => hyper::upgrade::on(response).await,
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
pub(crate) enum Taken {
    Link(Link),
    /// Nothing: it opens a connection, for others too if it has the turn.
    Nothing {
        _turn: Option<Opening>,
    },
}

/// One door's connections to other hosts.
pub(crate) struct Links {
    tls: Arc<Tls>,
    any: OnceCell<Arc<ClientConfig>>,
    h1: OnceCell<Arc<ClientConfig>>,
    kept: Kept,
    shared: Pool,
}

impl Links {
    pub(crate) fn new(tls: Arc<Tls>) -> Self {
        let (any, h1) = (OnceCell::new(), OnceCell::new());
        Self { tls, any, h1, kept: Kept::default(), shared: Pool::default() }
    }

    /// A kept connection that is still alive, or the turn to open one.
    pub(crate) async fn take(&self, to: &Origin, with_body: bool) -> Taken {
        let age_max = if with_body { IDLE_TIME_BODY } else { IDLE_TIME };
        if let Some(link) = self.kept(to, age_max).await {
            return Taken::Link(link);
        }
        if !to.tls {
            return Taken::Nothing { _turn: None };
        }
        // Somebody may have opened one meanwhile.
        let opening = self.shared.turn(to).await;
        match self.kept(to, age_max).await {
            Some(link) => {
                opening.into_iter().for_each(Opening::unneeded);
                Taken::Link(link)
            }
            None => Taken::Nothing { _turn: opening },
        }
    }

    async fn kept(&self, to: &Origin, age_max: Duration) -> Option<Link> {
        self.shared.tidy();
        if let Some((sender, stream, ip)) = self.shared.join(to, age_max) {
            return Some(Link { sender: Sender::H2 { sender, _place: stream }, ip });
        }
        let (h1, ip) = self.kept.take(to, age_max).await?;
        Some(Link { sender: Sender::H1(h1), ip })
    }

    /// Keeps a connection whose answer was read to the end. One that is shared was never given
    /// away.
    pub(crate) fn give_back(&self, to: Origin, link: Link) {
        if let Sender::H1(h1) = link.sender {
            self.kept.put(to, link.ip, h1);
        }
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
            let h1 = H1::new(stream, HEAD_BYTES_MAX).await.map_err(broken)?;
            return Ok(Link { sender: Sender::H1(h1), ip });
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
            let h1 = H1::new(stream, HEAD_BYTES_MAX).await.map_err(broken)?;
            return Ok(Link { sender: Sender::H1(h1), ip });
        }
        let connected = shared::hello(stream, HEAD_BYTES_MAX as u32).await.map_err(broken)?;
        let (sender, place) = match sharing {
            Sharing::Shared => self.shared.share(to, ip, connected),
            Sharing::OnlyH1 | Sharing::Alone => shared::alone(to, ip, connected),
        };
        Ok(Link { sender: Sender::H2 { sender, _place: place }, ip })
    }
}
