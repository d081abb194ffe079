//! HTTP/2 connections of one door, each with several requests at a time.
//!
//! ```text
//! request ─► a stream free? ─┬─ yes ─► joins
//!                            └─ no ─► one opens, whoever wants the same host waits for it once
//! ```
//!
//! 1. Streams of a connection are bounded by [`STREAMS_MAX`] and by what the server said in its
//!    SETTINGS (RFC 9113 §6.5.2); before it said so there is one.
//! 2. What one stream's reader leaves unread never takes another's room: the connection's window
//!    holds all of theirs.

use super::Origin;
use super::upload::Upload;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedMutexGuard;

/// Requests at a time on one connection. Servers allow a hundred and more; but a lost packet holds
/// up all streams of its connection, and the window below grows with them.
const STREAMS_MAX: usize = 16;
/// What a server may send ahead on one stream before it is read; all the memory a stream holds.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// All streams together.
const WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX as u32;
/// Connections shared per door; each has room for many requests.
const CONNECTIONS_MAX: usize = 16;
/// A server's SETTINGS are its first frame; whoever wants a second stream waits for them so long.
const SETTINGS_TIME: Duration = Duration::from_millis(500);
/// How often is looked, meanwhile.
const SETTINGS_CHECK: Duration = Duration::from_millis(2);
/// Streams until then.
const STREAMS_FIRST: usize = 1;
/// Hosts whose protocol is remembered; an agent chooses names below a `*.suffix`.
const HOSTS_MAX: usize = 256;

type Sender = http2::SendRequest<Upload>;
type Lock = Arc<tokio::sync::Mutex<()>>;

/// How many streams the server permits now.
type Permits = Box<dyn Fn() -> usize + Send + Sync>;

/// A connection that is ready for requests.
pub(crate) struct Connected {
    pub(super) sender: Sender,
    permits: Permits,
}

/// Says hello to an HTTP/2 server.
pub(super) async fn hello<T>(stream: T, head_bytes_max: u32) -> hyper::Result<Connected>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(head_bytes_max)
        .initial_max_send_streams(STREAMS_FIRST);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let connection = Arc::new(Mutex::new(connection));
    let driven = Arc::clone(&connection);
    tokio::spawn(std::future::poll_fn(move |cx| Pin::new(&mut *lock(&driven)).poll(cx).map(drop)));
    let permits = Box::new(move || lock(&connection).current_max_send_streams());
    Ok(Connected { sender, permits })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Use {
    streams: usize,
    last: Instant,
}

struct Shared {
    to: Origin,
    ip: IpAddr,
    connected: Connected,
    since: Instant,
    used: Mutex<Use>,
}

impl Shared {
    /// Whether it is worth keeping.
    fn lives(&self, idle_max: Duration) -> bool {
        let used = lock(&self.used);
        !self.connected.sender.is_closed() && (used.streams > 0 || used.last.elapsed() < idle_max)
    }

    /// Whether the server may still be about to say how many streams it permits.
    fn is_undecided(&self) -> bool {
        self.since.elapsed() < SETTINGS_TIME
            && !self.connected.sender.is_closed()
            && (self.connected.permits)() == STREAMS_FIRST
    }

    /// A place on it, if one is free and it was in use a moment ago.
    fn join(self: &Arc<Self>, idle_max: Duration) -> Option<(Sender, Stream)> {
        let permitted = (self.connected.permits)().min(STREAMS_MAX);
        let mut used = lock(&self.used);
        let fresh = used.streams > 0 || used.last.elapsed() < idle_max;
        if used.streams >= permitted || !fresh || self.connected.sender.is_closed() {
            return None;
        }
        used.streams += 1;
        drop(used);
        Some((self.connected.sender.clone(), Stream(Arc::clone(self))))
    }
}

/// A place on a shared connection, free again when dropped.
pub(crate) struct Stream(Arc<Shared>);

impl Drop for Stream {
    fn drop(&mut self) {
        let mut used = lock(&self.0.used);
        used.streams = used.streams.saturating_sub(1);
        used.last = Instant::now();
    }
}

/// What is known of a host.
enum Host {
    /// It speaks HTTP/1.1: whoever wants it opens a connection without waiting for others.
    H1,
    /// Whoever holds the lock opens one.
    Unknown(Lock),
}

/// The shared connections of one door.
#[derive(Default)]
pub(crate) struct Pool {
    all: Mutex<Vec<Arc<Shared>>>,
    hosts: Mutex<BTreeMap<Origin, Host>>,
    opened: AtomicU64,
}

/// The turn to open a connection; the others wait until it is dropped.
pub(crate) struct Opening {
    _turn: OwnedMutexGuard<()>,
}

impl Pool {
    /// A place on a kept connection to `to` that was in use within `idle_max`.
    pub(super) fn join(&self, to: &Origin, idle_max: Duration) -> Option<(Sender, Stream, IpAddr)> {
        let all = lock(&self.all);
        let mut places = all.iter().rev().filter(|shared| shared.to == *to);
        places.find_map(|s| s.join(idle_max).map(|(sender, stream)| (sender, stream, s.ip)))
    }

    /// Forgets what is closed or was not used for long.
    pub(super) fn tidy(&self, idle_max: Duration) {
        lock(&self.all).retain(|shared| shared.lives(idle_max));
    }

    /// The turn to open a connection to `to`, after waiting for whoever has it. None where nobody
    /// needs to wait, and where the one that was waited for had no success: then all go on by
    /// themselves.
    pub(super) async fn turn(&self, to: &Origin) -> Option<Opening> {
        let turn = {
            let mut hosts = lock(&self.hosts);
            if hosts.len() >= HOSTS_MAX && !hosts.contains_key(to) {
                hosts.clear();
            }
            match hosts.entry(to.clone()).or_insert_with(|| Host::Unknown(Lock::default())) {
                Host::H1 => return None,
                Host::Unknown(turn) => Arc::clone(turn),
            }
        };
        let before = self.opened.load(Ordering::Relaxed);
        let opening = match Arc::clone(&turn).try_lock_owned() {
            Ok(turn) => Opening { _turn: turn },
            Err(_) => {
                let turn = turn.lock_owned().await;
                if self.opened.load(Ordering::Relaxed) == before {
                    return None;
                }
                Opening { _turn: turn }
            }
        };
        while lock(&self.all).iter().any(|s| s.to == *to && s.is_undecided()) {
            tokio::time::sleep(SETTINGS_CHECK).await;
        }
        Some(opening)
    }

    /// Notes that `to` speaks HTTP/1.1.
    pub(super) fn speaks_h1(&self, to: &Origin) {
        lock(&self.hosts).insert(to.clone(), Host::H1);
    }

    /// Shares a new connection, and gives the first place on it.
    pub(super) fn share(&self, to: &Origin, ip: IpAddr, connected: Connected) -> (Sender, Stream) {
        let sender = connected.sender.clone();
        let used = Mutex::new(Use { streams: 1, last: Instant::now() });
        let since = Instant::now();
        let shared = Arc::new(Shared { to: to.clone(), ip, connected, since, used });
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut all = lock(&self.all);
        if all.len() >= CONNECTIONS_MAX {
            // Its requests go on; it only takes no further ones.
            all.remove(0);
        }
        all.push(Arc::clone(&shared));
        (sender, Stream(shared))
    }
}
