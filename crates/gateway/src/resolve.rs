//! Names → addresses, on the host, behind a trait so that tests can answer for a name server.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpStream;

/// A name server that needs longer is taken for dead.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// One TCP handshake across the world, with a lost packet or two.
const CONNECT_TIME: Duration = Duration::from_secs(8);
/// Addresses tried for one name; more would let a name keep the gateway busy.
pub(crate) const ADDRESSES_MAX: usize = 4;

/// What a [`Resolver`] promises: the addresses of a name.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Turns a host name into addresses.
pub trait Resolver: Send + Sync {
    /// All addresses of `host`, in order of preference.
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a>;
}

/// The system's resolver (`getaddrinfo` on a blocking thread).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Resolves within the time limit; IPv4 first, for half-configured IPv6 is the commoner fault.
pub(crate) async fn resolve(resolver: &dyn Resolver, host: &str) -> io::Result<Vec<IpAddr>> {
    let mut found = tokio::time::timeout(RESOLVE_TIME, resolver.resolve(host))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// Connects to one pinned address.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
