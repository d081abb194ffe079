//! The spawner as the orchestrator sees it: a thread-safe, synchronous handle.
//!
//! Pipeline: `prepare` ─► `Prepared` (measured, waiting) ─► `start` ─► `Sandbox` ─► `wait`.
//!
//! Invariants:
//! 1. One thread owns the receiving side and is the parent of the spawner process, so that the
//!    spawner's parent-death signal means "the client is gone", not "some thread ended".
//! 2. Dropping a `Prepared` or a `Sandbox` kills it. What the spawner does not make, an engine
//!    makes, the same way.
//! 3. Reports are queued here, and never more than the spawner's window lets on their way.
//! 4. When the spawner is gone, every waiter is told; nobody waits for ever.

mod operations;
mod stdio;

pub use operations::Operations;
pub use stdio::{Pipes, Stdio};

use crate::backend::{Prepared, Run, Serve, Wait};
use crate::engine::{EngineOptions, Engines};
use crate::error::{PauseError, StartError, StartErrorKind};
use crate::facts::HostFacts;
use crate::operation::Operation;
use crate::report::{Ended, Outcome, Report, Usage};
use crate::wire::{self, Answer, BoxId, Request};
use model::{Backend, SandboxSpec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

/// Longest wait for the spawner to say that it is ready; it takes milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for one sandbox to be prepared, as seen from here; the spawner's own limit is
/// shorter, so this one only speaks when the spawner hangs.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a usage answer, or for a sandbox to stand still (the spawner gives up sooner).
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to start a spawner.
#[derive(Debug, Clone, Default)]
pub struct SpawnerOptions {
    /// The executable to run as `<image> __spawner`; the own one when `None`.
    pub image: Option<PathBuf>,
    /// Directories that hold NanoClaw's own state; a grant that overlaps one is refused.
    pub private: Vec<PathBuf>,
    /// Container engines.
    pub engines: EngineOptions,
}

/// Namespaces by name, with the error that making one gave.
type Tried = Vec<(String, Option<String>)>;

/// What one sandbox is doing, as told by the spawner.
#[derive(Debug, Default)]
struct State {
    prepared: Option<Result<Report, StartError>>,
    usage: Option<Usage>,
    frozen: Option<Result<(), PauseError>>,
    /// Where reports go; gone with the sandbox, so that whoever takes them sees the end.
    operations: Option<mpsc::Sender<Operation>>,
    ended: Option<Ended>,
}

#[derive(Debug, Default)]
struct Board {
    states: HashMap<BoxId, State>,
    next: BoxId,
    /// What trying each namespace gave.
    tried: Option<Tried>,
    /// Why the spawner is gone.
    gone: Option<String>,
}

impl Board {
    /// A box that nobody holds any more needs no news.
    fn set(&mut self, id: BoxId, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.states.get_mut(&id) {
            change(state);
        }
    }
}

#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    board: Mutex<Board>,
    changed: Condvar,
}

impl Link {
    fn board(&self) -> MutexGuard<'_, Board> {
        // A panic while holding the lock cannot leave the plain maps half-changed.
        self.board.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn send(&self, request: &Request) -> Result<(), StartError> {
        wire::send(&self.socket, request, &[])
            .map_err(|e| StartError::spawner(format!("the spawner cannot be reached: {e}")))
    }

    /// Waits until `pick` gives something, the spawner is gone, or the time is over.
    fn wait<T>(
        &self,
        id: BoxId,
        limit: Option<Duration>,
        mut pick: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, StartError> {
        self.wait_for(limit, |board| board.states.get_mut(&id).and_then(&mut pick))
    }

    fn wait_for<T>(
        &self,
        limit: Option<Duration>,
        mut pick: impl FnMut(&mut Board) -> Option<T>,
    ) -> Result<T, StartError> {
        let deadline = limit.map(|l| Instant::now() + l);
        let mut board = self.board();
        loop {
            if let Some(found) = pick(&mut board) {
                return Ok(found);
            }
            if let Some(why) = &board.gone {
                return Err(StartError::spawner(format!("the spawner is gone: {why}")));
            }
            board = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(board).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    return Err(StartError::spawner("the spawner does not answer"));
                }
                Some(left) => {
                    self.changed
                        .wait_timeout(board, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn note(&self, answer: Answer) {
        let mut board = self.board();
        match answer {
            Answer::Ready { .. } => {}
            Answer::Tried { namespaces } => board.tried = Some(namespaces),
            Answer::Prepared { id, report } => board.set(id, |s| s.prepared = Some(Ok(*report))),
            Answer::Failed { id, error } => board.set(id, |s| s.prepared = Some(Err(error))),
            Answer::Usage { id, usage } => board.set(id, |s| s.usage = Some(usage)),
            Answer::Frozen { id, error } => {
                board.set(id, |s| s.frozen = Some(error.map_or(Ok(()), Err)));
            }
            Answer::Operation { id, operation } => {
                // Nobody else waits for it.
                return board.set(id, |s| {
                    if let Some(to) = &s.operations {
                        // Nobody takes reports any more: then the window stays full.
                        let _ = to.send(operation);
                    }
                });
            }
            Answer::Ended { id, ended } => board.set(id, |s| {
                s.operations = None;
                s.ended = Some(ended);
            }),
        }
        drop(board);
        self.changed.notify_all();
    }
}

/// The handle of a spawner process. Cloning shares it; it ends, with all its sandboxes, when the
/// last clone, `Prepared` and `Sandbox` are dropped or this process ends in any way.
#[derive(Debug, Clone)]
pub struct Spawner {
    link: Arc<Link>,
    facts: Arc<HostFacts>,
    engines: Arc<Engines>,
    _closer: Arc<Closer>,
}

/// Shuts the socket down when the last handle goes, so that the reading thread and the spawner
/// both see the end.
#[derive(Debug)]
struct Closer(Arc<Link>);

impl Drop for Closer {
    fn drop(&mut self) {
        // Already closed is as good.
        let _ = rustix::net::shutdown(&self.0.socket, rustix::net::Shutdown::Both);
    }
}

impl Spawner {
    /// Starts a spawner process and waits until it is ready.
    ///
    /// # Errors
    /// When the executable cannot be started, or does not answer in time.
    pub fn launch(options: SpawnerOptions) -> Result<Self, StartError> {
        Self::begin(options, true)
    }

    /// As [`Spawner::launch`], but every sandbox is begun from nothing when it is asked for: what
    /// a start costs when none was made ahead. For benches.
    ///
    /// # Errors
    /// As [`Spawner::launch`].
    #[doc(hidden)]
    pub fn launch_without_spares(options: SpawnerOptions) -> Result<Self, StartError> {
        Self::begin(options, false)
    }

    fn begin(options: SpawnerOptions, spares: bool) -> Result<Self, StartError> {
        let failed = |e: std::io::Error| StartError::spawner(format!("cannot start it: {e}"));
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| failed(e.into()))?;
        let board = Mutex::new(Board::default());
        let link = Arc::new(Link { socket: ours, board, changed: Condvar::new() });
        let (tell, told) = mpsc::sync_channel(1);
        let reader = Arc::clone(&link);
        let image = match options.image {
            Some(path) => path,
            None => PathBuf::from("/proc/self/exe"),
        };
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || read_answers(&reader, &image, theirs, &tell))
            .map_err(failed)?;
        link.send(&Request::Hello { private: options.private, spares })?;
        let facts = told
            .recv_timeout(READY_TIMEOUT)
            .map_err(|_| StartError::spawner("it did not become ready"))??;
        let closer = Arc::new(Closer(Arc::clone(&link)));
        let facts = Arc::new(facts);
        let engines = Arc::new(Engines::new(options.engines, Arc::clone(&facts)));
        Ok(Self { link, facts, engines, _closer: closer })
    }

    /// What the spawner found on this host.
    #[must_use]
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// Makes each kind of namespace once, alone; with the error where it fails.
    ///
    /// # Errors
    /// When the spawner is gone or does not answer.
    pub(crate) fn try_namespaces(&self) -> Result<Tried, StartError> {
        self.link.send(&Request::TryNamespaces)?;
        self.link.wait_for(Some(USAGE_TIMEOUT), |board| board.tried.take())
    }

    /// Builds a sandbox up to the last instruction before its program, and measures it. It can
    /// be kept like this for as long as wanted (a warm pool).
    ///
    /// # Errors
    /// When the spec is refused, the host lacks something required, or what was measured is not
    /// what was asked for. Nothing is left behind then.
    pub fn prepare(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Prepared, StartError> {
        match spec.backend {
            Backend::Native => self.native(spec, stdio),
            _ => self.engines.prepare(spec, stdio),
        }
    }

    fn native(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Prepared, StartError> {
        // Here, for it takes as long as there are files, and the spawner has others to serve.
        let masks = crate::check::ahead(spec, &self.facts)?;
        let (sender, receiver) = spec.witness.then(mpsc::channel).unzip();
        let id = {
            let mut board = self.link.board();
            board.next += 1;
            let id = board.next;
            board.states.insert(id, State { operations: sender, ..State::default() });
            id
        };
        let handle = Handle { spawner: self.clone(), id, pause: Mutex::new(()) };
        let request = Request::Prepare { id, spec: Box::new(spec.clone()), masks };
        let bytes = wire::encode(&request).map_err(|_| too_large())?;
        if bytes.len() > crate::check::SPEC_BYTES_MAX {
            return Err(too_large());
        }
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        wire::send_bytes(&self.link.socket, &bytes, &fds)
            .map_err(|e| StartError::spawner(format!("the spawner cannot be reached: {e}")))?;
        let report = self.link.wait(id, Some(PREPARE_TIMEOUT), |s| s.prepared.take())??;
        // Last, for what is searched for may appear at any time; a refusal ends what was built.
        crate::sockets::refuse(spec)?;
        let operations = receiver.map(|from| {
            let tally = Tally { spawner: self.clone(), id };
            Operations::new(from, Box::new(tally))
        });
        Ok(Prepared::new(report, operations, Box::new(handle)))
    }
}

/// Refuses a spec that is too large to be passed on.
pub(crate) fn bounded(spec: &SandboxSpec) -> Result<(), StartError> {
    let bytes = wire::encode(spec).map_err(|_| too_large())?;
    if bytes.len() > crate::check::SPEC_BYTES_MAX { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> StartError {
    StartError::new(
        StartErrorKind::Spec(crate::SpecErrorKind::Size),
        format!("the sandbox's description is larger than {} bytes", crate::check::SPEC_BYTES_MAX),
        "pass large arguments or environment values in a file",
    )
}

/// The body of the reading thread: starts the spawner, waits for its first word, then passes
/// every answer on until the connection ends.
fn read_answers(
    link: &Arc<Link>,
    image: &std::path::Path,
    theirs: OwnedFd,
    tell: &mpsc::SyncSender<Result<HostFacts, StartError>>,
) {
    let started = std::process::Command::new(image)
        .arg0("nanoclaw")
        .arg(crate::SPAWNER_ROLE)
        .env_clear()
        .envs(std::env::var_os("HOME").map(|h| ("HOME", h)))
        .stdin(theirs)
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => {
            let error = StartError::spawner(format!("cannot run {}: {e}", image.display()));
            drop(tell.send(Err(error)));
            return;
        }
    };
    let mut buffer = Vec::new();
    let why = loop {
        match wire::receive::<Answer>(&link.socket, &mut buffer) {
            Ok(None) => break "it closed the connection".to_owned(),
            Err(e) => break e.to_string(),
            Ok(Some((Answer::Ready { facts }, _))) => drop(tell.send(Ok(*facts))),
            Ok(Some((answer, _))) => link.note(answer),
        }
    };
    let mut board = link.board();
    board.gone = Some(why);
    board.states.values_mut().for_each(|s| s.operations = None);
    drop(board);
    link.changed.notify_all();
    // It ends by itself when the connection does; waiting here keeps it from being a zombie.
    let _ = rustix::net::shutdown(&link.socket, rustix::net::Shutdown::Both);
    let _ = child.wait();
}

use std::os::unix::process::CommandExt as _;

/// One sandbox's registration; killing and forgetting it on drop.
#[derive(Debug)]
struct Handle {
    spawner: Spawner,
    id: BoxId,
    /// Held by who pauses or resumes: one at a time.
    pause: Mutex<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A spawner that is gone has killed it already.
        let _ = self.spawner.link.send(&Request::Kill { id: self.id });
        self.spawner.link.board().states.remove(&self.id);
    }
}

/// Tells the spawner what is on record.
#[derive(Debug)]
struct Tally {
    spawner: Spawner,
    id: BoxId,
}

impl Serve for Tally {
    fn taken(&self, count: usize) {
        // A spawner that is gone needs no room.
        let _ = self.spawner.link.send(&Request::Taken { id: self.id, count });
    }

    fn kill(&self) {
        // A spawner that is gone has killed it already.
        let _ = self.spawner.link.send(&Request::Kill { id: self.id });
    }
}

impl Wait for Handle {
    fn start(self: Box<Self>) -> Result<Box<dyn Run>, StartError> {
        self.spawner.link.send(&Request::Start { id: self.id })?;
        Ok(self)
    }
}

impl Run for Handle {
    fn ended(&self, limit: Option<Duration>) -> Option<Ended> {
        let link = &self.spawner.link;
        match link.wait(self.id, limit, |s| s.ended.clone()) {
            Ok(ended) => Some(ended),
            Err(e) if limit.is_none() || link.board().gone.is_some() => {
                let outcome = Outcome::Killed(e.cause);
                let usage = Usage::default();
                Some(Ended { outcome, usage, traffic: None, operations: None })
            }
            Err(_) => None,
        }
    }

    fn signal(&self, signal: i32) -> Result<(), StartError> {
        self.spawner.link.send(&Request::Signal { id: self.id, signal })
    }

    fn kill(&self) -> Result<(), StartError> {
        self.spawner.link.send(&Request::Kill { id: self.id })
    }

    fn usage(&self) -> Result<Usage, StartError> {
        let (id, link) = (self.id, &self.spawner.link);
        if let Some(state) = link.board().states.get_mut(&id) {
            state.usage = None;
        }
        link.send(&Request::Usage { id })?;
        let pick = |s: &mut State| s.usage.take().or_else(|| s.ended.as_ref().map(|e| e.usage));
        link.wait(id, Some(USAGE_TIMEOUT), pick)
    }

    fn mark(&self, number: u64) -> Result<(), StartError> {
        self.spawner.link.send(&Request::Mark { id: self.id, number })
    }

    fn pause(&self) -> Result<(), PauseError> {
        self.freeze(true)
    }

    fn resume(&self) -> Result<(), PauseError> {
        self.freeze(false)
    }
}

impl Handle {
    fn freeze(&self, frozen: bool) -> Result<(), PauseError> {
        let _one = self.pause.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (id, link) = (self.id, &self.spawner.link);
        if let Some(state) = link.board().states.get_mut(&id) {
            state.frozen = None;
        }
        let gone = |e: StartError| PauseError { cause: e.cause, remedy: e.remedy };
        link.send(&Request::Freeze { id, frozen }).map_err(gone)?;
        let over = || Err(PauseError::new("the sandbox has ended", "start the session again"));
        let pick = |s: &mut State| s.frozen.take().or_else(|| s.ended.as_ref().map(|_| over()));
        link.wait(id, Some(USAGE_TIMEOUT), pick).map_err(gone)?
    }
}
