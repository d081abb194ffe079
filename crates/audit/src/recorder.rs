//! `__recorder`: the one process that holds the signing key and writes the log.
//!
//! ```text
//! clients ─ socket ─► reader a client ─► Log (one group commit for all)
//!                                         └─► writer a client ─► answers
//! ```
//!
//! 1. Append only: a client can add records and learn their indices, nothing else; records that
//!    speak for the recorder itself are refused.
//! 2. Only the same user or root is heard (`SO_PEERCRED`), and the socket is 0600 in a 0700 folder.
//! 3. One recorder a log: the folder's lock decides; the second stops quietly with its own code.
//! 4. It sleeps unless something happens, and stops when its last client has gone.
//! 5. A client that floods is not read; one that takes no answers is not read; others go on.

use crate::client::short_path;
use crate::connection::{self, Hub};
use crate::entry::Uids;
use crate::log::{Log, OpenError};
use crate::payload;
use crate::wire::{KEY_FOLDER, key_dir, log_dir, socket_path};
use model::{Body, Durability};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt::socket_peercred;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Exit code of a recorder that found another one running.
pub const EXIT_RUNNING: u8 = 3;

/// What a recorder writes to its ready descriptor once it listens.
pub const READY: &str = "ready\n";

/// How long it waits for its first client.
const FIRST_CLIENT_GRACE: Duration = Duration::from_secs(10);

/// How long it waits for another client after the last one has gone: one command after another
/// then shares a recorder.
const LAST_CLIENT_GRACE: Duration = Duration::from_millis(300);

/// How long clients get to take their last answers after the log has failed.
const FAILED_GRACE: Duration = Duration::from_secs(2);

/// Connections at a time: the roles of one home are a handful.
const CLIENTS_MAX: usize = 64;

/// Runs the recorder of `home` until its last client has gone. Writes [`READY`], or why not, to
/// `ready` (a pipe or the standard output).
///
/// Exit codes: 0 in order, [`EXIT_RUNNING`] when another is running, 1 otherwise.
#[must_use]
pub fn recorder_main(home: &Path, ready: OwnedFd) -> ExitCode {
    // A session of its own, so that no terminal's Ctrl-C ends it; it fails only for a leader of a
    // process group, which is nobody's foreground then.
    let _ = rustix::process::setsid();
    match prepare(home) {
        Ok(place) => recorder_run(home, place, ready),
        Err(e) => {
            let _ = writeln!(File::from(ready), "{}", e.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// As [`recorder_main`], for one that has prepared its place and put walls around itself since.
#[must_use]
pub fn recorder_run(home: &Path, place: Place, ready: OwnedFd) -> ExitCode {
    let mut ready = File::from(ready);
    match start(home, place) {
        Ok((hub, listener)) => {
            // The starter may be gone; whoever connects finds us all the same.
            let _ = ready.write_all(READY.as_bytes());
            drop(ready);
            match serve(home, hub, listener) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(OpenError::Locked { .. }) => ExitCode::from(EXIT_RUNNING),
        Err(e) => {
            let _ = writeln!(ready, "{}", e.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// A listening socket that nobody finds yet: it gets its name with the log's lock in hand.
#[derive(Debug)]
pub struct Place {
    listener: UnixListener,
    staged: PathBuf,
    private: bool,
}

impl Place {
    /// Has texts of agents (what they ask tools, and are answered) stand beside the log however
    /// short they are, so that all of them can be erased ([`crate::payload`]).
    #[must_use]
    pub fn with_private_texts(mut self, private: bool) -> Self {
        self.private = private;
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already when it got its name.
        let _ = fs::remove_file(&self.staged);
    }
}

/// Makes the folders and the listening socket that a recorder of `home` needs, for one that is
/// about to put walls around itself and could make neither any more.
///
/// # Errors
/// As the operating system says, with the path.
pub fn prepare(home: &Path) -> Result<Place, OpenError> {
    let socket = socket_path(home);
    let run = socket.parent().map(Path::to_owned);
    for path in std::iter::once(log_dir(home)).chain(run) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| OpenError::Io { path, error })?;
    }
    set_key_apart(home).map_err(|error| OpenError::Io { path: key_dir(home), error })?;
    // The name of a folder that was just made must not be lost with the power; the log could not
    // sync what lies above it any more.
    let synced = File::open(home).and_then(|folder| folder.sync_all());
    synced.map_err(|error| OpenError::Io { path: home.to_owned(), error })?;
    let staged = socket.with_extension(format!("{}.sock", std::process::id()));
    match listen(&staged) {
        Ok(listener) => Ok(Place { listener, staged, private: false }),
        Err(error) => Err(OpenError::Io { path: staged, error }),
    }
}

/// The signing key lies beside the log's folder, which `private` leads to: a rule of Landlock is
/// for all that lies below a folder, and who serves the log or puts its heads before witnesses
/// has to read its folder, and nothing of this.
fn set_key_apart(home: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(key_dir(home))?;
    let log = log_dir(home);
    match symlink(Path::new("..").join(KEY_FOLDER), log.join("private")) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => File::open(log)?.sync_all(),
    }
}

/// Opens the log, listens, and writes the recorder's first record: a log that takes no record any
/// more is found out before anybody is told that it is ready.
fn start(home: &Path, place: Place) -> Result<(Arc<Hub>, UnixListener), OpenError> {
    let (socket, dir) = (socket_path(home), log_dir(home));
    let log = Log::open(&dir)?;
    let swept = payload::sweep(&dir);
    swept.map_err(|error| OpenError::Io { path: dir.clone(), error })?;
    let named = |error| OpenError::Io { path: socket.clone(), error };
    let listener = place.listener.try_clone().map_err(named)?;
    // We hold the log's lock, so whoever made the one that is replaced is gone.
    fs::rename(&place.staged, &socket).map_err(named)?;
    let hub = hub(log, &dir, place.private)
        .map_err(|error| OpenError::Io { path: dir.clone(), error })?;
    let recovered = hub.recovered();
    let started = Body::RecorderStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recovered_records: recovered.records,
        torn_bytes: recovered.torn_bytes,
    };
    if let Err(e) = hub.append_own(started, Durability::Ordered) {
        // Nobody finds a socket that nobody serves. One that is gone already is as good.
        let _ = fs::remove_file(&socket);
        return Err(OpenError::Io { path: dir, error: io::Error::other(e.to_string()) });
    }
    Ok((hub, listener))
}

fn hub(log: Log, dir: &Path, private: bool) -> io::Result<Arc<Hub>> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
    let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    let uids = Uids::new(u64::from_ne_bytes(random));
    Ok(Arc::new(Hub::new(log, dir, private, uids, wake)))
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    // Named for this process, so whoever made it is gone.
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let short = short_path(socket)?;
    let listener = UnixListener::bind(short.path())?;
    fs::set_permissions(short.path(), Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(home: &Path, hub: Arc<Hub>, listener: UnixListener) -> io::Result<()> {
    let mut since = Instant::now();
    let (mut grace, mut departed) = (FIRST_CLIENT_GRACE, 0);
    loop {
        let clients = hub.clients();
        if hub.failed() || (clients == 0 && since.elapsed() >= grace) {
            break;
        }
        let left = (clients == 0).then(|| timespec(grace.saturating_sub(since.elapsed())));
        wait(&hub, &listener, left.as_ref())?;
        while let Ok((stream, _)) = listener.accept() {
            welcome(&hub, stream);
        }
        if hub.departed() != departed {
            (since, grace, departed) = (Instant::now(), LAST_CLIENT_GRACE, hub.departed());
        }
    }
    // Nobody new can come from here on; one that came meanwhile hears nothing and starts another.
    fs::remove_file(socket_path(home))?;
    drop(listener);
    if hub.failed() {
        hub.disconnect_all();
        let until = Instant::now() + FAILED_GRACE;
        while hub.clients() > 0 && Instant::now() < until {
            hub.wait_for_wake(Some(&timespec(until.saturating_duration_since(Instant::now()))))?;
        }
        return Err(io::Error::other("the log has failed"));
    }
    hub.submit_gaps();
    let records = hub.records();
    hub.append_own(Body::RecorderStopped { records }, Durability::Durable)
        .map_err(|e| io::Error::other(e.to_string()))?;
    match Arc::try_unwrap(hub) {
        Ok(hub) => hub.close().map_err(|e| io::Error::other(e.to_string())),
        // A connection's thread is still going; the log closes when the last one lets go.
        Err(hub) => hub.sign().map_err(|e| io::Error::other(e.to_string())),
    }
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) }
}

fn wait(hub: &Hub, listener: &UnixListener, left: Option<&Timespec>) -> io::Result<()> {
    let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(hub.wake_fd(), PollFlags::IN)];
    match poll(&mut fds, left) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {
            hub.clear_wake();
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// Gives a connection its threads, or closes it.
fn welcome(hub: &Arc<Hub>, stream: UnixStream) {
    let Ok(peer) = socket_peercred(&stream) else { return };
    let same = peer.uid == rustix::process::geteuid() || peer.uid.is_root();
    if !same || hub.clients() >= CLIENTS_MAX || stream.set_nonblocking(false).is_err() {
        return;
    }
    let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
    let Some(seat) = hub.seat(&stream) else { return };
    // If no thread can be had, the seat and the connection are given up on the spot.
    let _ = thread::Builder::new()
        .name("audit-client".into())
        .spawn(move || connection::run(&seat, stream, pid));
}
