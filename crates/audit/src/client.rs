//! The writing end that every other process has: records in, indices out.
//!
//! ```text
//! submit ─► buffer ─► writer thread ─► socket ─► recorder ─► reader thread ─► done(index)
//! ```
//!
//! 1. Every `done` is called exactly once; when the recorder is gone, with [`RecordError::Gone`],
//!    and then every later submit gets the same: whoever cannot record must not act.
//! 2. `submit` does no I/O; it blocks only while 4 MiB are waiting to be sent.
//! 3. A client that ends in order says so; one that does not is on record as lost.

use crate::wire::{
    Frames, FromRecorder, Hello, PROTOCOL, log_dir, parse_recorder, push_bye, push_hello,
    push_rotate, push_submit, socket_path,
};
use model::{Done, Durability, Record, RecordError, RecordSink};
use rustix::net::sockopt::socket_peercred;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

/// Unsent bytes beyond which a submit waits.
const UNSENT_BYTES_MAX: usize = 4 << 20;

/// How long connecting may take in all, with starting a recorder and its replay of the log.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a recorder that took the connection may take to say welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause between two tries, when another process is starting or just stopping a
/// recorder.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Longest path in a Unix socket's address (`sun_path` has 108 bytes, one for the end); beyond it
/// the folder is named by its descriptor.
const SOCKET_PATH_MAX: usize = 107;

#[derive(Default)]
struct State {
    unsent: Vec<u8>,
    next_id: u64,
    /// Those without an answer, by id: the first one has `next_id - pending.len()`.
    pending: VecDeque<Option<Done>>,
    gone: Option<String>,
    closing: bool,
}

impl State {
    /// Moves those who wait for `count` ids from `id` on to `told`, each with its distance from
    /// `id`; an id that nobody waits for is passed over.
    fn take(&mut self, id: u64, count: u32, told: &mut Vec<(u64, Done)>) {
        let first = self.next_id - self.pending.len() as u64;
        for n in 0..u64::from(count).min(self.next_id.saturating_sub(id)) {
            let Some(at) = (id + n).checked_sub(first) else { continue };
            // In range of a queue in memory: `at` is below its length, or there is no such place.
            if let Some(done) = self.pending.get_mut(at as usize).and_then(Option::take) {
                told.push((n, done));
            }
        }
        while let Some(None) = self.pending.front() {
            self.pending.pop_front();
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing can be recorded; says so to everyone who waits.
    fn gone(&self, cause: &str) {
        let mut state = self.lock();
        let cause = state.gone.get_or_insert_with(|| cause.to_owned()).clone();
        let pending = mem::take(&mut state.pending);
        state.unsent.clear();
        drop(state);
        self.changed.notify_all();
        for done in pending.into_iter().flatten() {
            done(Err(RecordError::Gone { cause: cause.clone() }));
        }
    }
}

/// A connection to the recorder.
pub struct Client {
    shared: Arc<Shared>,
    reader: ThreadId,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Client {
    /// Connects as `role` (up to 32 bytes, for the record of a lost client) to the recorder of
    /// `home`. When none is running, `start` is called: it starts one and returns when that one is
    /// ready, or has found another running (see [`start_recorder`]). Any number of processes may do
    /// so at once.
    ///
    /// # Errors
    /// What `start` returns; or that no recorder could be reached within 30 seconds.
    pub fn connect(
        home: &Path,
        role: &str,
        start: impl Fn() -> io::Result<()>,
    ) -> io::Result<Self> {
        let (begun, mut pause, mut started) = (Instant::now(), PAUSE.0, false);
        loop {
            let error = match Self::try_connect(home, role) {
                Err(e) if is_absent(&e) => e,
                other => return other,
            };
            if begun.elapsed() > CONNECT_TIMEOUT {
                let (socket, lock) = (socket_path(home), log_dir(home).join("work/lock"));
                let why = format!(
                    "no recorder can be reached at {}: {error}; \
                     see whether another process holds {}",
                    socket.display(),
                    lock.display()
                );
                return Err(io::Error::new(error.kind(), why));
            }
            if started {
                // Ours stopped at once because another one is starting or stopping.
                thread::sleep(pause);
                pause = PAUSE.1.min(pause * 2);
            }
            start()?;
            started = true;
        }
    }

    fn try_connect(home: &Path, role: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(short_path(&socket_path(home))?.path())?;
        let peer = socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
            let why = "the recorder's socket is held by another user; look who made it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut hello = Vec::new();
        let (pid, role) = (std::process::id(), role.to_owned());
        push_hello(&mut hello, &Hello { protocol: PROTOCOL, pid, role });
        stream.write_all(&hello)?;
        stream.set_read_timeout(Some(WELCOME_TIMEOUT))?;
        let mut frames = Frames::new(stream.try_clone()?);
        let welcome = frames.next_frame()?.map(parse_recorder);
        match welcome {
            Some(Ok(FromRecorder::Welcome)) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {
                return Err(io::Error::other(
                    "the recorder speaks another protocol; stop the old one",
                ));
            }
        }
        stream.set_read_timeout(None)?;
        let shared = Arc::new(Shared::default());
        let for_reader = Arc::clone(&shared);
        let reader = thread::Builder::new()
            .name("audit-answers".into())
            .spawn(move || read_answers(frames, &for_reader))?;
        let for_writer = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("audit-send".into())
            .spawn(move || send(stream, &for_writer))?;
        let (id, threads) = (reader.thread().id(), Mutex::new(vec![writer, reader]));
        Ok(Self { shared, reader: id, threads })
    }

    fn on_reader_thread(&self) -> bool {
        self.reader == thread::current().id()
    }

    /// Has the recorder replace the log's signing key: the next one is announced by a record under
    /// the old one, and a head is signed with it. Returns that record's index.
    ///
    /// # Errors
    /// As [`RecordSink::submit`] reports; the old key then signs on, or after a crash the new one,
    /// if it was announced.
    pub fn rotate_key(&self) -> Result<u64, RecordError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let mut state = self.shared.lock();
        if let Some(cause) = state.gone.clone() {
            return Err(RecordError::Gone { cause });
        }
        let id = state.next_id;
        push_rotate(&mut state.unsent, id);
        state.next_id += 1;
        state.pending.push_back(Some(Box::new(move |result| drop(tell.send(result)))));
        drop(state);
        self.shared.changed.notify_all();
        told.recv().unwrap_or_else(|_| Err(RecordError::Gone { cause: "no answer".to_owned() }))
    }

    /// Sends what is left and a bye, and waits for the answers. Later records are refused. For
    /// processes whose threads keep the client alive to their end; dropping it does the same.
    pub fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if self.on_reader_thread() {
            return;
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A thread that broke off has left its answers to `Shared::gone` or to nobody; there
            // is nothing more to do for it here.
            let _ = thread.join();
        }
        self.shared.gone("the client was closed");
    }
}

impl RecordSink for Client {
    fn submit(&self, record: Record, durability: Durability, done: Done) {
        let mut state = self.shared.lock();
        // The thread that takes answers must never wait for room that only answers make.
        while state.unsent.len() > UNSENT_BYTES_MAX && !self.on_reader_thread() {
            state = self.shared.wait(state);
        }
        if let Some(cause) = state.gone.clone() {
            drop(state);
            return done(Err(RecordError::Gone { cause }));
        }
        let id = state.next_id;
        let was_empty = state.unsent.is_empty();
        if let Err(error) = push_submit(&mut state.unsent, id, durability, &record) {
            drop(state);
            return done(Err(error));
        }
        state.next_id += 1;
        state.pending.push_back(Some(done));
        drop(state);
        if was_empty {
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

fn send(mut stream: UnixStream, shared: &Shared) {
    let mut bytes = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.unsent.is_empty() && !state.closing && state.gone.is_none() {
            state = shared.wait(state);
        }
        if state.gone.is_some() {
            break;
        }
        let last = state.unsent.is_empty();
        mem::swap(&mut bytes, &mut state.unsent);
        drop(state);
        shared.changed.notify_all();
        if last {
            push_bye(&mut bytes);
        }
        if let Err(e) = stream.write_all(&bytes) {
            shared.gone(&e.to_string());
            break;
        }
        bytes.clear();
        if last {
            return;
        }
    }
    // Wakes the reader; if the connection is gone already there is nothing to shut down.
    let _ = stream.shutdown(Shutdown::Both);
}

fn read_answers(mut frames: Frames<UnixStream>, shared: &Shared) {
    let mut told = Vec::new();
    let cause = loop {
        match frames.next_frame() {
            Ok(None) => break "it closed the connection".to_owned(),
            Err(e) => break e.to_string(),
            Ok(Some(frame)) => match parse_recorder(frame) {
                Ok(FromRecorder::Written { id, index, count }) => {
                    shared.lock().take(id, count, &mut told);
                    for (n, done) in told.drain(..) {
                        done(Ok(index + n));
                    }
                }
                Ok(FromRecorder::Refused { id, error }) => {
                    shared.lock().take(id, 1, &mut told);
                    for (_, done) in told.drain(..) {
                        done(Err(error.clone()));
                    }
                }
                Ok(FromRecorder::Welcome) | Err(_) => break "it sent nonsense".to_owned(),
            },
        }
    };
    shared.gone(&cause);
}

fn is_absent(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        e.kind(),
        K::NotFound | K::ConnectionRefused | K::ConnectionReset | K::BrokenPipe | K::UnexpectedEof
    )
}

/// A socket's path, by way of its folder's descriptor where it is too long for an address.
pub(crate) struct ShortPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl ShortPath {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

pub(crate) fn short_path(path: &Path) -> io::Result<ShortPath> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(ShortPath { path: path.to_owned(), _folder: None });
    };
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(ShortPath { path: path.to_owned(), _folder: None });
    }
    let folder = File::open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok(ShortPath { path, _folder: Some(folder) })
}

/// Starts `program args…`, which is to end in [`crate::recorder::recorder_main`] with its
/// standard output as the ready descriptor, and waits until it is ready. It detaches itself and
/// gets nothing of our environment.
///
/// # Errors What the recorder said, when it could not start. That another one is running already is
/// no error.
pub fn start_recorder(program: &Path, args: &[&OsStr]) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line == crate::recorder::READY {
        // Takes the exit status when it comes, so that no zombie stays.
        thread::Builder::new().name("audit-reap".into()).spawn(move || child.wait())?;
        return Ok(());
    }
    let status = child.wait()?;
    if status.code() == Some(i32::from(crate::recorder::EXIT_RUNNING)) {
        return Ok(());
    }
    let said = line.trim_end();
    Err(io::Error::other(if said.is_empty() {
        format!("the recorder {} stopped at once: {status}", program.display())
    } else {
        said.to_owned()
    }))
}
