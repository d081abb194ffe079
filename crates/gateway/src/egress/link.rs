//! The client side of one door: pinned TCP (→ verified TLS) → HTTP/1.1 or HTTP/2.
//!
//! 1. Certificates are always verified, for the name that the rule permits.
//! 2. A connection belongs to one door; no two sessions ever share one, nor a TLS session.
//! 3. A connection that carried a secret is never used again.

use super::Origin;
use super::upload::Upload;
use crate::upstream::{Tls, UpstreamError};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
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
/// What a server may send ahead on HTTP/2 before it is read; all the memory a stream can hold.
const WINDOW_BYTES: u32 = 256 * 1024;
/// TLS sessions remembered per door.
const TLS_SESSIONS: usize = 32;

/// A connection that takes one request at a time.
pub(crate) enum Sender {
    H1(http1::SendRequest<Upload>),
    H2(http2::SendRequest<Upload>),
}

impl Sender {
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }

    async fn ready(&mut self) -> bool {
        match self {
            Self::H1(sender) => sender.ready().await.is_ok(),
            Self::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H1(sender) => sender.send_request(request).await,
            Self::H2(sender) => sender.send_request(request).await,
        }
    }
}

/// A connection and what was judged about it.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    pub(crate) ip: IpAddr,
}

struct Idle {
    to: Origin,
    since: Instant,
    link: Link,
}

/// One door's connections to other hosts.
pub(crate) struct Links {
    tls: Arc<Tls>,
    any: OnceCell<Arc<ClientConfig>>,
    h1: OnceCell<Arc<ClientConfig>>,
    idle: Mutex<Vec<Idle>>,
}

impl Links {
    pub(crate) fn new(tls: Arc<Tls>) -> Self {
        let (any, h1, idle) = (OnceCell::new(), OnceCell::new(), Mutex::default());
        Self { tls, any, h1, idle }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that is still alive.
    pub(crate) async fn take(&self, to: &Origin, with_body: bool) -> Option<Link> {
        let age_max = if with_body { IDLE_TIME_BODY } else { IDLE_TIME };
        loop {
            let mut link = {
                let mut idle = self.lock();
                idle.retain(|c| c.since.elapsed() < IDLE_TIME && !c.link.sender.is_closed());
                let fits = |c: &Idle| c.to == *to && c.since.elapsed() < age_max;
                let at = idle.iter().rposition(fits)?;
                idle.swap_remove(at).link
            };
            if link.sender.ready().await {
                return Some(link);
            }
        }
    }

    /// Keeps a connection whose answer was read to the end.
    pub(crate) fn give_back(&self, to: Origin, link: Link) {
        if link.sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() >= IDLE_CONNECTIONS_MAX {
            idle.remove(0);
        }
        idle.push(Idle { to, since: Instant::now(), link });
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

    /// Makes a connection over `stream` ready for requests to `to`.
    pub(crate) async fn open(
        &self,
        to: &Origin,
        stream: TcpStream,
        only_h1: bool,
    ) -> Result<Sender, UpstreamError> {
        let host = || to.host.to_string();
        let broken =
            |e: hyper::Error| UpstreamError::Exchange { host: host(), cause: e.to_string() };
        if !to.tls {
            return h1(stream).await.map_err(broken);
        }
        let tls_error = |cause: String| UpstreamError::Tls { host: host(), cause };
        let config = self.config(only_h1).await?;
        let name = ServerName::try_from(host()).map_err(|e| tls_error(e.to_string()))?;
        let connecting = TlsConnector::from(config).connect(name, stream);
        let stream = tokio::time::timeout(TLS_TIME, connecting)
            .await
            .map_err(|_| tls_error("it took too long".into()))?
            .map_err(|e| tls_error(e.to_string()))?;
        let sender = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => h2(stream).await,
            _ => h1(stream).await,
        };
        sender.map_err(broken)
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

async fn h2<T>(stream: T) -> hyper::Result<Sender>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(Sender::H2(sender))
}
