//! The client side: endpoint → TCP (→ TLS) → HTTP/1.1 connection, kept for a while per door.
//!
//! Invariants:
//! 1. Certificates are always verified, with the crypto provider named here and no other.
//! 2. A connection belongs to one door; no two sessions ever share one.
//! 3. A connection ends with whoever has it, the exchange or the pool; one that is kept and not
//!    used ends by itself.

use crate::driver::Driver;
use crate::endpoint::Endpoint;
use crate::lookups::Lookups;
use crate::resolve::{self, ADDRESSES_MAX};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

/// Kept per door; agents rarely ask more than a few things at once.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Below the keep-alive time of common servers (nginx 75 s, uvicorn 5 s; a stale one is retried).
const IDLE_TIME: Duration = Duration::from_secs(60);
/// TLS handshake, two round trips and a certificate check.
const TLS_TIME: Duration = Duration::from_secs(10);
/// Largest response head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Models may think before the first byte; the SDKs' own default is ten minutes.
const FIRST_BYTE_TIME: Duration = Duration::from_secs(600);

/// Which certificate authorities are trusted for model servers.
#[derive(Clone, Default)]
pub enum Roots {
    /// The system's (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or the usual places).
    #[default]
    System,
    /// Exactly these.
    Only(Vec<CertificateDer<'static>>),
}

/// Why an upstream could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("the name {host} cannot be resolved: {cause}")]
    Resolve { host: String, cause: String },
    #[error(
        "{host} resolves to {address}, which is not this machine; plain http is spoken only here"
    )]
    NotLoopback { host: String, address: IpAddr },
    #[error("no connection to {host}:{port}: {cause}")]
    Connect { host: String, port: u16, cause: String },
    #[error("TLS with {host} failed: {cause}")]
    Tls { host: String, cause: String },
    #[error(
        "no trusted certificates: {cause}; install the package ca-certificates or set SSL_CERT_FILE"
    )]
    NoRoots { cause: String },
    #[error("{host} ended the exchange: {cause}")]
    Exchange { host: String, cause: String },
    #[error("{host} sent nothing for {seconds} s", seconds = FIRST_BYTE_TIME.as_secs())]
    Silent { host: String },
}

impl UpstreamError {
    /// Whether asking again may help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Resolve { .. } | Self::Connect { .. } | Self::Exchange { .. })
    }
}

/// TLS for all doors: built once, when first needed.
pub(crate) struct Tls {
    roots: Roots,
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, config: OnceCell::new() }
    }

    pub(crate) async fn config(&self) -> Result<Arc<ClientConfig>, UpstreamError> {
        let build = async {
            let roots = self.roots.clone();
            tokio::task::spawn_blocking(move || client_config(roots))
                .await
                .map_err(|e| UpstreamError::NoRoots { cause: e.to_string() })?
        };
        self.config.get_or_try_init(|| build).await.cloned()
    }
}

fn client_config(roots: Roots) -> Result<Arc<ClientConfig>, UpstreamError> {
    let (certs, cause) = match roots {
        Roots::Only(certs) => (certs, String::from("the configured list is empty")),
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            let cause = found.errors.first().map_or_else(|| "none found".into(), |e| e.to_string());
            (found.certs, cause)
        }
    };
    let mut store = rustls::RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certs);
    if added == 0 {
        return Err(UpstreamError::NoRoots { cause });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| UpstreamError::NoRoots { cause: e.to_string() })?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A connection that is driven for as long as this is there.
struct Sender {
    requests: http1::SendRequest<Full<Bytes>>,
    driver: Driver,
}

struct Idle {
    to: (bool, String, u16),
    since: Instant,
    sender: Sender,
}

fn key(to: &Endpoint) -> (bool, String, u16) {
    (to.tls, to.host.clone(), to.port)
}

/// One door's connections to model servers.
pub(crate) struct Pool {
    tls: Arc<Tls>,
    lookups: Lookups,
    idle: Mutex<Vec<Idle>>,
}

/// An answer, and the connection to give back once its body was read to the end.
pub(crate) struct Exchange {
    pub(crate) response: Response<Incoming>,
    to: (bool, String, u16),
    sender: Sender,
}

impl Exchange {
    /// Takes the answer apart.
    pub(crate) fn split(self) -> (Response<Incoming>, Lease) {
        (self.response, Lease { to: self.to, sender: self.sender })
    }
}

/// A connection in use.
pub(crate) struct Lease {
    to: (bool, String, u16),
    sender: Sender,
}

impl Pool {
    pub(crate) fn new(tls: Arc<Tls>, lookups: Lookups) -> Self {
        Self { tls, lookups, idle: Mutex::new(Vec::new()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, to: &Endpoint) -> Option<Sender> {
        let key = key(to);
        let mut idle = self.lock();
        idle.retain(|c| c.since.elapsed() < IDLE_TIME && !c.sender.requests.is_closed());
        let at = idle.iter().rposition(|c| c.to == key)?;
        let sender = idle.swap_remove(at).sender;
        sender.driver.wake();
        Some(sender)
    }

    /// Gives a connection back after its answer was read to the end.
    pub(crate) fn give_back(&self, lease: Lease) {
        let mut idle = self.lock();
        if lease.sender.requests.is_closed() {
            return;
        }
        lease.sender.driver.rest(IDLE_TIME);
        if idle.len() >= IDLE_CONNECTIONS_MAX {
            idle.remove(0);
        }
        idle.push(Idle { to: lease.to, since: Instant::now(), sender: lease.sender });
    }

    /// Sends one request; sets `begun` before the first byte of it can leave. A kept connection
    /// that the server closed meanwhile is replaced by a fresh one without counting as an attempt;
    /// a request is never sent twice on purpose.
    pub(crate) async fn send(
        &self,
        to: &Endpoint,
        request: impl Fn() -> Request<Full<Bytes>>,
        begun: &mut bool,
    ) -> Result<Exchange, UpstreamError> {
        let silent = || UpstreamError::Silent { host: to.host.clone() };
        while let Some(mut sender) = self.take(to) {
            if sender.requests.ready().await.is_err() {
                continue;
            }
            let before = std::mem::replace(begun, true);
            let sending = sender.requests.try_send_request(request());
            let sent = tokio::time::timeout(FIRST_BYTE_TIME, sending);
            match sent.await.map_err(|_| silent())? {
                Ok(response) => return Ok(Exchange { response, to: key(to), sender }),
                // Unsent requests come back from hyper; whatever was sent is not repeated here.
                Err(mut e) => {
                    if e.take_message().is_none() {
                        return Err(exchange_error(to, e.error()));
                    }
                    *begun = before;
                }
            }
        }
        let mut sender = self.open(to).await?;
        *begun = true;
        let sending = sender.requests.send_request(request());
        let sent = tokio::time::timeout(FIRST_BYTE_TIME, sending).await;
        let response = sent.map_err(|_| silent())?.map_err(|e| exchange_error(to, &e))?;
        Ok(Exchange { response, to: key(to), sender })
    }

    async fn open(&self, to: &Endpoint) -> Result<Sender, UpstreamError> {
        let stream = self.dial(to).await?;
        if !to.tls {
            return handshake(to, TokioIo::new(stream)).await;
        }
        let tls_error = |cause: String| UpstreamError::Tls { host: to.host.clone(), cause };
        let config = self.tls.config().await?;
        let name = ServerName::try_from(to.host.clone()).map_err(|e| tls_error(e.to_string()))?;
        let connecting = TlsConnector::from(config).connect(name, stream);
        let stream = tokio::time::timeout(TLS_TIME, connecting)
            .await
            .map_err(|_| tls_error("it took too long".into()))?
            .map_err(|e| tls_error(e.to_string()))?;
        handshake(to, TokioIo::new(stream)).await
    }

    async fn dial(&self, to: &Endpoint) -> Result<TcpStream, UpstreamError> {
        let addresses = match to.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.lookups.look_up(&to.host).await.map_err(|e| UpstreamError::Resolve {
                host: to.host.clone(),
                cause: e.to_string(),
            })?,
        };
        if to.must_be_loopback()
            && let Some(&address) = addresses.iter().find(|a| !a.is_loopback())
        {
            return Err(UpstreamError::NotLoopback { host: to.host.clone(), address });
        }
        let mut cause = String::new();
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match resolve::connect(SocketAddr::new(address, to.port)).await {
                Ok(stream) => return Ok(stream),
                Err(e) => cause = e.to_string(),
            }
        }
        Err(UpstreamError::Connect { host: to.host.clone(), port: to.port, cause })
    }
}

fn exchange_error(to: &Endpoint, error: &hyper::Error) -> UpstreamError {
    UpstreamError::Exchange { host: to.host.clone(), cause: error.to_string() }
}

async fn handshake<T>(to: &Endpoint, io: TokioIo<T>) -> Result<Sender, UpstreamError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (requests, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(io)
        .await
        .map_err(|e| exchange_error(to, &e))?;
    let driver = Driver::start(async move { drop(connection.await) });
    Ok(Sender { requests, driver })
}
