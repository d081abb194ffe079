//! HTTP/2 connections of one door, each with several requests at a time.
//!
//! ```text
//! request ─► a stream free? ─┬─ yes ─► joins
//!                            └─ no ─► one opens, whoever wants the same host waits for it once
//! ```
//!
//! 1. Streams of a connection are bounded by [`STREAMS_MAX`] and by what the server said in its
//!    SETTINGS (RFC 9113 §6.5.2); before it said so there is one.
//! 2. A connection ends with the last of its requests and its pool, and all that hyper spawned for
//!    it does, too.
//! 3. What one stream's reader leaves unread never takes another's room: the connection's window
//!    holds all of theirs.

use super::Origin;
use super::link::IDLE_TIME;
use super::upload::Upload;
use crate::driver::Driver;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

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
    sender: Sender,
    permits: Permits,
    driver: Driver,
}

/// The tasks that hyper makes of one connection; the socket is in one of them.
#[derive(Clone)]
struct Tasks(Arc<Mutex<Option<JoinSet<()>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        if let Some(tasks) = &mut *lock(&self.0) {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }
}

/// Ends what a connection is made of when it is dropped.
struct Parts<C> {
    connection: Arc<Mutex<Option<C>>>,
    tasks: Tasks,
}

impl<C> Drop for Parts<C> {
    fn drop(&mut self) {
        // Out of their locks first: what is dropped may use them.
        let (connection, tasks) = (lock(&self.connection).take(), lock(&self.tasks.0).take());
        drop((connection, tasks));
    }
}

/// Says hello to an HTTP/2 server.
pub(super) async fn hello<T>(stream: T, head_bytes_max: u32) -> hyper::Result<Connected>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = Tasks(Arc::new(Mutex::new(Some(JoinSet::new()))));
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(head_bytes_max)
        .initial_max_send_streams(STREAMS_FIRST);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let connection = Arc::new(Mutex::new(Some(connection)));
    let parts = Parts { connection: Arc::clone(&connection), tasks };
    let driver =
        Driver::start(std::future::poll_fn(move |cx| match &mut *lock(&parts.connection) {
            Some(connection) => Pin::new(connection).poll(cx).map(drop),
            None => Poll::Ready(()),
        }));
    let permitted = move || lock(&connection).as_ref().map_or(0, |c| c.current_max_send_streams());
    Ok(Connected { sender, permits: Box::new(permitted), driver })
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
    /// With one request on it.
    fn new(to: &Origin, ip: IpAddr, connected: Connected) -> (Arc<Self>, Sender, Stream) {
        let sender = connected.sender.clone();
        let used = Mutex::new(Use { streams: 1, last: Instant::now() });
        let shared = Self { to: to.clone(), ip, connected, since: Instant::now(), used };
        let shared = Arc::new(shared);
        (Arc::clone(&shared), sender, Stream(shared))
    }

    /// Whether it is worth keeping.
    fn lives(&self) -> bool {
        let used = lock(&self.used);
        !self.connected.sender.is_closed() && (used.streams > 0 || used.last.elapsed() < IDLE_TIME)
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
        self.connected.driver.wake();
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
        if used.streams == 0 {
            self.0.connected.driver.rest(IDLE_TIME);
        }
    }
}

/// The one place on a connection that no other request may use.
pub(super) fn alone(to: &Origin, ip: IpAddr, connected: Connected) -> (Sender, Stream) {
    let (_, sender, stream) = Shared::new(to, ip, connected);
    (sender, stream)
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
    turns: Arc<Turns>,
}

/// How turns to open a connection ended.
#[derive(Default)]
struct Turns {
    opened: AtomicU64,
    fruitless: AtomicU64,
}

/// The turn to open a connection; the others wait until it is dropped.
pub(crate) struct Opening {
    turns: Arc<Turns>,
    opened_before: u64,
    unneeded: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Opening {
    /// A place was free after all: that no connection comes of this turn is no failure.
    pub(super) fn unneeded(mut self) {
        self.unneeded = true;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        // Before the turn itself goes to the next in line.
        if !self.unneeded && self.turns.opened.load(Ordering::SeqCst) == self.opened_before {
            self.turns.fruitless.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Pool {
    /// A place on a kept connection to `to` that was in use within `idle_max`.
    pub(super) fn join(&self, to: &Origin, idle_max: Duration) -> Option<(Sender, Stream, IpAddr)> {
        let all = lock(&self.all);
        let mut places = all.iter().rev().filter(|shared| shared.to == *to);
        places.find_map(|s| s.join(idle_max).map(|(sender, stream)| (sender, stream, s.ip)))
    }

    /// Forgets what is closed or was not used for long.
    pub(super) fn tidy(&self) {
        lock(&self.all).retain(|shared| shared.lives());
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
        let fruitless = || self.turns.fruitless.load(Ordering::SeqCst);
        let before = fruitless();
        let turn = turn.lock_owned().await;
        if fruitless() != before {
            return None;
        }
        let opening = Opening {
            turns: Arc::clone(&self.turns),
            opened_before: self.turns.opened.load(Ordering::SeqCst),
            unneeded: false,
            _turn: turn,
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
        let (shared, sender, stream) = Shared::new(to, ip, connected);
        let mut all = lock(&self.all);
        self.turns.opened.fetch_add(1, Ordering::SeqCst);
        if all.len() >= CONNECTIONS_MAX {
            // Its requests go on; it only takes no further ones.
            all.remove(0);
        }
        all.push(shared);
        (sender, stream)
    }
}
