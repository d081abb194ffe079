//! Names → addresses, on the host, behind a trait so that tests can answer for a name server; and
//! the socket to an address.

use rustix::net::sockopt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// One TCP handshake across the world, with a lost packet or two.
const CONNECT_TIME: Duration = Duration::from_secs(8);
/// A peer that takes nothing of what was sent for so long is given up (`TCP_USER_TIMEOUT`, tcp(7)):
/// a server may stand still for a while before it reads on, and a lost line come back. So long, at
/// most, the kernel keeps what a session left unsent when it ended.
const UNREAD_TIME: Duration = Duration::from_secs(120);
/// A connection on which nothing is said is asked after so long whether its peer is still there;
/// one that is not is given up after [`UNREAD_TIME`] as well.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// Between one such question and the next.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
/// Addresses tried for one name; more would let a name keep the gateway busy.
pub(crate) const ADDRESSES_MAX: usize = 4;

/// What a [`Resolver`] promises: the addresses of a name.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Turns a host name into addresses.
pub trait Resolver: Send + Sync {
    /// All addresses of `host`, in order of preference.
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a>;
}

/// The system's resolver: `getaddrinfo`, each on a thread of its own, for it may block as long as it
/// likes and other blocking work (syncs, flushes of records) must not stand behind it. How many there
/// are at a time is up to whoever asks; the gateway bounds it for each door.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            let host = host.to_owned();
            std::thread::Builder::new().name("lookup".into()).spawn(move || {
                let found = (host.as_str(), 0).to_socket_addrs();
                // Nobody may be waiting any more.
                drop(tell.send(found.map(|all| all.map(|address| address.ip()).collect())));
            })?;
            told.await.unwrap_or_else(|_| Err(io::Error::other("the lookup broke off")))
        })
    }
}

/// Connects to one pinned address.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    give_up_after(&stream, UNREAD_TIME)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_TIME)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_EVERY)?;
    Ok(stream)
}

fn give_up_after(stream: &TcpStream, time: Duration) -> io::Result<()> {
    let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, ms)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let mut stream = connect(listener.local_addr().expect("its address")).await.expect("it");
        let (_never_reads, _) = listener.accept().await.expect("a connection");
        let timeout = sockopt::tcp_user_timeout(&stream).map(u128::from);
        assert_eq!(timeout, Ok(UNREAD_TIME.as_millis()));
        assert_eq!(sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(KEEPALIVE_TIME));
        // The same, in a time that a test can wait.
        give_up_after(&stream, Duration::from_millis(500)).expect("an option");
        let writing = async { while stream.write_all(&[b'x'; 65_536]).await.is_ok() {} };
        let ended = tokio::time::timeout(Duration::from_secs(20), writing).await;
        assert!(ended.is_ok(), "its unread bytes are held for ever");
    }

    #[test]
    fn a_name_is_looked_up_however_full_the_blocking_threads_are() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(1).build().expect("a runtime");
        let (release, held) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            tokio::task::spawn_blocking(move || held.recv());
            let looking = SystemResolver.resolve("localhost");
            let found = tokio::time::timeout(Duration::from_secs(20), looking).await;
            let found = found.expect("an answer").expect("addresses");
            assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        });
        drop(release);
    }
}
