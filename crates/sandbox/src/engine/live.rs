//! A container from its first process' call to its removal.
//!
//! Pipeline: `Waiting` (measured) ─► go ─► `Live`, with a thread that hears the line ─► finished
//! ─► counters read ─► let go ─► removed ─► told.
//!
//! Invariants:
//! 1. The end is told after nothing of it is left; usage and traffic are read while its first
//!    process, which waits for that or was stopped, still lives.
//! 2. A `Body` that is dropped is killed and removed.
//! 3. Whoever takes reports keeps nothing alive, and can end it.

use super::reports::{Heard, Reports, wait};
use super::{Engine, lock};
use crate::backend::{Run, Serve, Wait};
use crate::cgroup::Group;
use crate::error::{PauseError, StartError, StartErrorKind};
use crate::report::{Ended, Traffic, Usage};
use crate::spawner::{Bounds, Witness, outcome};
use crate::wire::{self, Moved, Order, Word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A killed process is gone within milliseconds, unless it waits for a disk.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an engine may be busy with removing a container.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
/// So long a first process may take to stop before it is killed, and between two looks.
const STOP_TIME: Duration = Duration::from_millis(500);
const STOP_PAUSE: Duration = Duration::from_micros(50);
/// wait(2) status of what was killed.
const KILLED: i32 = libc::SIGKILL;

/// A container with a first process.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) engine: Arc<Engine>,
    pub(super) id: String,
    pub(super) pid: i32,
    /// None where the process was gone before it could be opened.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) line: Option<OwnedFd>,
    paused: AtomicBool,
    removed: AtomicBool,
}

impl Body {
    /// A container that was made and not started.
    pub(super) fn new(engine: Arc<Engine>, id: String) -> Self {
        let (paused, removed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { engine, id, pid: 0, pidfd: None, line: None, paused, removed }
    }

    /// To its first process.
    pub(super) fn line(&self) -> Result<&OwnedFd, StartError> {
        self.line.as_ref().ok_or_else(|| StartError::spawner("a container has no line"))
    }

    fn tell(&self, order: &Order) -> Result<(), StartError> {
        let told = self.line().map(|line| wire::send(line, order, &[]));
        told?.map_err(|e| {
            let cause = format!("the container's first process does not listen: {e}");
            StartError::new(StartErrorKind::Engine, cause, "it has ended, or is about to")
        })
    }

    /// Ends it, by the kernel where the caller may, else by the engine.
    fn kill(&self) {
        if self.paused.swap(false, Ordering::SeqCst) {
            // A frozen process of cgroup v1 dies when it is thawed.
            let _ = self.engine.api.unpause(&self.id);
        }
        let by_kernel =
            self.pidfd.as_ref().is_some_and(|fd| match pidfd_send_signal(fd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => true,
                Err(_) => false,
            });
        if !by_kernel {
            let _ = self.engine.api.kill(&self.id);
        }
        self.let_go();
    }

    /// Stops its first process; whether it stands. One that is paused stands without, but not any
    /// more when it is let go to be killed.
    fn stop(&self) -> bool {
        let Some(pidfd) = self.pidfd.as_ref().filter(|_| !self.paused.load(Ordering::SeqCst))
        else {
            return false;
        };
        let until = Instant::now() + STOP_TIME;
        let mut stands = false;
        if pidfd_send_signal(pidfd, Signal::STOP).is_ok() {
            while !stands && Instant::now() < until {
                let Some(state) = state_of(self.pid) else { return false };
                stands = state == STOPPED;
                std::thread::sleep(STOP_PAUSE);
            }
        }
        stands
    }

    /// Ends the line, upon which the first process ends.
    fn let_go(&self) {
        if let Some(line) = &self.line {
            let _ = shutdown(line, Shutdown::Both);
        }
    }

    /// Waits until its first process is gone, and with it all others.
    fn await_end(&self) {
        let Some(pidfd) = &self.pidfd else { return };
        let until = Instant::now() + GONE_TIMEOUT;
        while Instant::now() < until {
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            if poll(&mut fds, Some(&wait)).is_ok_and(|n| n > 0) {
                return;
            }
        }
    }

    /// Removes it from the engine's books. An engine that does not answer keeps an entry of a dead
    /// container, which the next process removes.
    fn remove(&self) {
        if self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        let until = Instant::now() + REMOVE_TIMEOUT;
        while let Ok(false) = self.engine.api.remove(&self.id) {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.removed.load(Ordering::SeqCst) {
            self.kill();
            self.await_end();
            self.remove();
        }
    }
}

/// The letter of a process that a signal has stopped (proc_pid_stat(5)).
const STOPPED: char = 'T';

/// The state of a process; `None` when it is gone.
fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// A container that is measured and waits, and what it must keep to that no kernel holds.
#[derive(Debug)]
pub(super) struct Waiting(Arc<Shared>, Bounds);

impl Waiting {
    /// `io`: what its first process has moved so far, and the open counter of it.
    pub(super) fn new(
        body: Body,
        group: Group,
        io: (Option<Moved>, Option<OwnedFd>),
        reports: Option<Reports>,
        bounds: Bounds,
    ) -> Self {
        let mut witness = Witness::of(body.pid);
        witness.zero(io.0, io.1);
        if let Some(reports) = &reports {
            reports.begin();
        }
        let shared = Shared {
            body,
            group,
            witness: Mutex::new(witness),
            reports,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self(Arc::new(shared), bounds)
    }

    /// For whoever takes its reports.
    pub(super) fn server(&self) -> Box<dyn Serve> {
        Box::new(Server(Arc::downgrade(&self.0)))
    }
}

/// Knows the container as long as somebody else keeps it.
#[derive(Debug)]
struct Server(Weak<Shared>);

impl Serve for Server {
    fn taken(&self, count: usize) {
        let shared = self.0.upgrade();
        if let Some(reports) = shared.as_ref().and_then(|s| s.reports.as_ref()) {
            reports.taken(count);
        }
    }

    fn kill(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.kill("by request");
        }
    }
}

impl Wait for Waiting {
    fn start(self: Box<Self>) -> Result<Box<dyn Run>, StartError> {
        let Self(shared, bounds) = *self;
        shared.body.tell(&Order::Go)?;
        let live = Live(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("container".into());
        let heard = thread.spawn(move || shared.hear(bounds));
        heard.map_err(|e| StartError::spawner(format!("no thread for a container: {e}")))?;
        Ok(Box::new(live))
    }
}

#[derive(Debug, Default)]
struct State {
    /// Why it was killed, if it was.
    killed: Option<String>,
    ended: Option<Ended>,
    /// The last that was known.
    usage: Usage,
}

#[derive(Debug)]
struct Shared {
    body: Body,
    group: Group,
    witness: Mutex<Witness>,
    /// Where operations are witnessed.
    reports: Option<Reports>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Attends to it until it ends, then tells the end.
    fn hear(&self, mut bounds: Bounds) {
        bounds.start(Instant::now());
        let finished = self.attend(&mut bounds);
        let mut usage = self.usage();
        usage.memory_bytes = 0;
        usage.pids = 0;
        let traffic: Option<Traffic> = Some(lock(&self.witness).traffic());
        self.body.let_go();
        self.body.await_end();
        usage.disk_bytes = bounds.last();
        let operations = self.reports.as_ref().and_then(Reports::end);
        self.body.remove();
        let mut state = lock(&self.state);
        let killed = state.killed.clone();
        let outcome = outcome(finished, KILLED, killed.as_deref(), usage.oom_kills);
        state.ended = Some(Ended { outcome, usage, traffic, operations });
        drop(state);
        self.changed.notify_all();
    }

    /// Answers its calls and hears its line until the program has ended, whose status it is, or the
    /// line has.
    fn attend(&self, bounds: &mut Bounds) -> Option<i32> {
        let line = self.body.line().ok()?;
        let mut buffer = Vec::new();
        loop {
            let Heard { said, called } = wait(line, self.reports.as_ref(), bounds.due());
            self.hold_to(bounds);
            if let Some(reports) = &self.reports {
                if called && reports.turn().is_err() {
                    self.kill("its calls can no longer be answered");
                }
                reports.look();
            }
            if !said {
                continue;
            }
            match wire::receive::<Word>(line, &mut buffer) {
                Ok(Some((Word::Finished { status }, _))) => return Some(status),
                // Anything else from inside is noise.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Ends it when its time is over, or it keeps too much on the disk.
    fn hold_to(&self, bounds: &mut Bounds) {
        let now = Instant::now();
        if bounds.due().is_some_and(|at| at <= now) {
            let why = bounds.turn(now, self.body.pid);
            lock(&self.state).usage.disk_bytes = bounds.found();
            why.iter().for_each(|why| self.kill(why));
        }
    }

    fn kill(&self, why: &str) {
        if self.has_ended() {
            return;
        }
        let _ = self.usage();
        lock(&self.state).killed.get_or_insert_with(|| why.to_owned());
        let mut witness = lock(&self.witness);
        // Of an ended process the kernel shows nothing, and others reap this one.
        if witness.watches() && self.body.stop() {
            witness.look();
        }
        drop(witness);
        self.body.kill();
    }

    /// As the kernel's files have it; the last that was known once they are gone.
    fn usage(&self) -> Usage {
        let mut state = lock(&self.state);
        let group = &self.group;
        if let Some(memory) = group.memory() {
            let cpu = group.cpu().unwrap_or_default();
            state.usage = Usage {
                cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
                memory_bytes: memory,
                // cgroup v2 tells the peak since Linux 5.19.
                peak_memory_bytes: group
                    .peak()
                    .unwrap_or(memory.max(state.usage.peak_memory_bytes)),
                pids: group.pids().unwrap_or(0),
                oom_kills: group.oom_kills().unwrap_or(0),
                peak_pids: group.peak_pids().or(state.usage.peak_pids),
                ..state.usage
            };
        }
        state.usage
    }

    fn has_ended(&self) -> bool {
        lock(&self.state).ended.is_some()
    }
}

/// A running container. Dropping it kills everything in it.
#[derive(Debug)]
struct Live(Arc<Shared>);

impl Run for Live {
    fn ended(&self, limit: Option<Duration>) -> Option<Ended> {
        let until = limit.map(|l| Instant::now() + l);
        let mut state = lock(&self.0.state);
        loop {
            if let Some(ended) = &state.ended {
                return Some(ended.clone());
            }
            state = match until.map(|u| u.saturating_duration_since(Instant::now())) {
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    let waited = self.0.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn signal(&self, signal: i32) -> Result<(), StartError> {
        // One that has ended needs no signal, and one that is ending hears none.
        match self.0.body.tell(&Order::Signal(signal)) {
            Err(_) if self.0.body.line.is_some() => Ok(()),
            told => told,
        }
    }

    fn kill(&self) -> Result<(), StartError> {
        self.0.kill("by request");
        Ok(())
    }

    fn usage(&self) -> Result<Usage, StartError> {
        let ended = lock(&self.0.state).ended.as_ref().map(|e| e.usage);
        Ok(ended.unwrap_or_else(|| self.0.usage()))
    }

    fn mark(&self, number: u64) -> Result<(), StartError> {
        if let Some(reports) = &self.0.reports {
            reports.mark(number);
        }
        Ok(())
    }

    fn pause(&self) -> Result<(), PauseError> {
        self.0.body.engine.api.pause(&self.0.body.id).map_err(unpaused)?;
        self.0.body.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), PauseError> {
        if self.0.body.paused.swap(false, Ordering::SeqCst) {
            return self.0.body.engine.api.unpause(&self.0.body.id).map_err(unpaused);
        }
        Ok(())
    }
}

/// What the engine said to it.
fn unpaused(e: StartError) -> PauseError {
    PauseError { cause: e.cause, remedy: e.remedy }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
