//! A virtual machine from its start to its removal.
//!
//! Pipeline: `Body` (created) ─► streams ─► `Waiting` (measured) ─► start ─► `Live`, with a thread
//! that hears the guest ─► ended ─► streams drained ─► removed ─► told.
//!
//! Invariants:
//! 1. The end is told after the program's output is out and nothing of the machine is left.
//! 2. A `Body` that is dropped is removed; a guest whose line has ended counts as killed.
//! 3. Whoever takes reports keeps nothing alive, and can end it.

use super::super::{Shop, lock};
use super::{engine_error, told};
use crate::Stdio;
use crate::backend::{Run, Serve, Wait};
use crate::error::{PauseError, StartError};
use crate::guest::BOX;
use crate::operation::{Execution, Image, Operation};
use crate::report::{Ended, Outcome, Usage};
use crate::wire::{self, Answer, Request};
use apple::{Apple, line};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Longest wait for a guest to take an order, or to answer one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest may take to end what it is to kill, before its machine is removed.
const KILL_TIME: Duration = Duration::from_secs(3);
/// How long the program's last output may take to come out.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Between two looks at the process that carries the streams.
const PAUSE: Duration = Duration::from_millis(5);
/// Each guest counts executions from 1; this keeps those of different machines apart, and apart
/// from others', and all of them below 2^53, which JSON can carry.
const EXECUTIONS: u32 = 36;

/// A machine that was created.
#[derive(Debug)]
pub(super) struct Body {
    apple: Apple,
    name: String,
    /// Which of this process' machines it is, from 1.
    number: u64,
    /// Carries the program's streams; ends when the machine has.
    streams: Mutex<Option<Child>>,
    /// Held while it is removed, so that nobody tells the end before.
    removed: Mutex<bool>,
    /// Its folder has the line and stays as long as this does.
    _shop: Arc<Shop>,
}

impl Body {
    pub(super) fn new(shop: Arc<Shop>, apple: Apple, name: String, number: u64) -> Self {
        let (streams, removed) = (Mutex::default(), Mutex::default());
        Self { apple, name, number, streams, removed, _shop: shop }
    }

    /// Starts it with these streams, which are the program's.
    pub(super) fn start(&mut self, stdio: Stdio) -> Result<(), StartError> {
        let Stdio { stdin, stdout, stderr } = stdio;
        let mut command = self.apple.start(&self.name);
        let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(|e| {
            engine_error(format!("container cannot be started: {e}"), "look at its installation")
        })?;
        *lock(&self.streams) = Some(child);
        Ok(())
    }

    /// How the process that carries the streams ended, if it has.
    pub(super) fn streams_ended(&self) -> Option<ExitStatus> {
        lock(&self.streams).as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Waits until the program's output is out, or the time is over.
    fn drain(&self) {
        let until = Instant::now() + DRAIN_TIME;
        while self.streams_ended().is_none() && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
    }

    /// Removes the machine, whatever runs in it. One that cannot be removed now is found by its
    /// labels later.
    fn remove(&self) -> Result<(), StartError> {
        let mut gone = lock(&self.removed);
        if *gone {
            return Ok(());
        }
        *gone = true;
        let removed = self.apple.remove(&self.name).map_err(told);
        if let Some(mut child) = lock(&self.streams).take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        removed
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// The line to a guest.
#[derive(Debug)]
pub(super) struct Link {
    from: UnixStream,
    to: Arc<Mutex<UnixStream>>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let to = Arc::new(Mutex::new(stream.try_clone()?));
        Ok(Self { from: stream, to })
    }

    /// From now on the guest may be silent as long as it likes.
    pub(super) fn forget_timeout(&self) -> io::Result<()> {
        self.from.set_read_timeout(None)
    }

    pub(super) fn tell(&self, request: &impl Serialize) -> io::Result<()> {
        tell(&self.to, request)
    }

    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(bytes) = line::read(&mut self.from)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }
}

fn tell(to: &Mutex<UnixStream>, request: &impl Serialize) -> io::Result<()> {
    let bytes = wire::encode(request)?;
    line::write(&mut *lock(to), &bytes)
}

#[derive(Debug, Default)]
struct State {
    usage: Option<Usage>,
    frozen: Option<Result<(), PauseError>>,
    operations: Option<Sender<Operation>>,
    killed: Option<String>,
    ended: Option<Ended>,
    /// The last that was known.
    last: Usage,
}

#[derive(Debug)]
struct Shared {
    body: Body,
    to: Arc<Mutex<UnixStream>>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A guest that has measured and waits for the word.
#[derive(Debug)]
pub(super) struct Waiting {
    shared: Arc<Shared>,
    from: Link,
}

impl Waiting {
    pub(super) fn new(body: Body, from: Link, operations: Option<Sender<Operation>>) -> Self {
        let state = Mutex::new(State { operations, ..State::default() });
        let to = Arc::clone(&from.to);
        let shared = Arc::new(Shared { body, to, state, changed: Condvar::new() });
        Self { shared, from }
    }

    /// For whoever takes its reports.
    pub(super) fn server(&self) -> Box<dyn Serve> {
        Box::new(Server(Arc::downgrade(&self.shared)))
    }
}

impl Wait for Waiting {
    fn start(self: Box<Self>) -> Result<Box<dyn Run>, StartError> {
        let Self { shared, from } = *self;
        shared.tell(&Request::Start { id: BOX })?;
        let live = Live(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("machine".into());
        let heard = thread.spawn(move || shared.hear(from));
        heard.map_err(|e| StartError::spawner(format!("no thread for a machine: {e}")))?;
        Ok(Box::new(live))
    }
}

/// Knows the machine as long as somebody else keeps it.
#[derive(Debug)]
struct Server(Weak<Shared>);

impl Serve for Server {
    fn taken(&self, count: usize) {
        if let Some(shared) = self.0.upgrade() {
            // A guest that is gone needs no room.
            let _ = shared.tell(&Request::Taken { id: BOX, count });
        }
    }

    fn kill(&self) {
        if let Some(shared) = self.0.upgrade() {
            let _ = shared.kill();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn tell(&self, request: &Request) -> Result<(), StartError> {
        tell(&self.to, request).map_err(|e| {
            let cause = format!("the guest does not listen: {e}");
            engine_error(cause, "it has ended, or is about to")
        })
    }

    /// Hears the guest until it or its sandbox ends, removes the machine, then tells the end.
    fn hear(&self, mut from: Link) {
        let told = loop {
            match from.hear::<Answer>() {
                Ok(Some(Answer::Ended { ended, .. })) => break Some(ended),
                Ok(Some(answer)) => self.note(answer),
                Ok(None) | Err(_) => break None,
            }
        };
        // The guest ends upon it.
        let _ = from.from.shutdown(Shutdown::Both);
        if told.is_some() {
            self.body.drain();
        }
        let _ = self.body.remove();
        let mut state = self.state();
        let ended = told.unwrap_or_else(|| {
            let why = state.killed.clone();
            let why = why.unwrap_or_else(|| "its virtual machine is gone".to_owned());
            let outcome = Outcome::Killed(why);
            Ended { outcome, usage: state.last, traffic: None, operations: None }
        });
        state.operations = None;
        state.ended = Some(ended);
        drop(state);
        self.changed.notify_all();
    }

    fn note(&self, answer: Answer) {
        let mut state = self.state();
        match answer {
            Answer::Usage { usage, .. } => {
                state.last = usage;
                state.usage = Some(usage);
            }
            Answer::Frozen { error, .. } => state.frozen = Some(error.map_or(Ok(()), Err)),
            Answer::Operation { operation, .. } => {
                if let Some(to) = &state.operations {
                    // Nobody takes reports any more: then the window stays full.
                    let _ = to.send(numbered(operation, self.body.number));
                }
            }
            // Anything else has no meaning here.
            _ => {}
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until `pick` gives something, at most so long, if there is a limit.
    fn wait<T>(
        &self,
        limit: Option<Duration>,
        mut pick: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let until = limit.map(|l| Instant::now() + l);
        let mut state = self.state();
        loop {
            if let Some(found) = pick(&mut state) {
                return Some(found);
            }
            state = match until.map(|u| u.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// By the guest, whose sandbox then tells its totals; by removing the machine when that takes
    /// too long.
    fn kill(&self) -> Result<(), StartError> {
        let mut state = self.state();
        if state.ended.is_some() {
            return Ok(());
        }
        state.killed.get_or_insert_with(|| "by request".to_owned());
        drop(state);
        let told = self.tell(&Request::Kill { id: BOX });
        let ended = |state: &mut State| state.ended.as_ref().map(|_| ());
        if told.is_ok() && self.wait(Some(KILL_TIME), ended).is_some() {
            return Ok(());
        }
        self.body.remove()
    }

    fn freeze(&self, frozen: bool) -> Result<(), PauseError> {
        let gone = |e: StartError| PauseError { cause: e.cause, remedy: e.remedy };
        self.state().frozen = None;
        self.tell(&Request::Freeze { id: BOX, frozen }).map_err(gone)?;
        let over = || Err(PauseError::new("the sandbox has ended", "start the session again"));
        let pick = |s: &mut State| s.frozen.take().or_else(|| s.ended.as_ref().map(|_| over()));
        let silent = || PauseError::new("the guest does not answer", "end the session");
        self.wait(Some(ANSWER_TIMEOUT), pick).ok_or_else(silent)?
    }
}

/// With the number of its execution among those of all machines.
fn numbered(operation: Operation, machine: u64) -> Operation {
    let here = |number: u64| (machine << EXECUTIONS).saturating_add(number);
    match operation {
        Operation::Executed(e) => Operation::Executed(Execution { number: here(e.number), ..e }),
        Operation::Image(i) => Operation::Image(Image { number: here(i.number), ..i }),
        other => other,
    }
}

/// A running machine. Dropping it removes it.
#[derive(Debug)]
struct Live(Arc<Shared>);

impl Run for Live {
    fn ended(&self, limit: Option<Duration>) -> Option<Ended> {
        self.0.wait(limit, |state| state.ended.clone())
    }

    fn signal(&self, signal: i32) -> Result<(), StartError> {
        // One that has ended, or is ending, needs no signal.
        let _ = self.0.tell(&Request::Signal { id: BOX, signal });
        Ok(())
    }

    fn kill(&self) -> Result<(), StartError> {
        self.0.kill()
    }

    fn usage(&self) -> Result<Usage, StartError> {
        self.0.state().usage = None;
        // Of one that has ended the totals are known.
        let asked = self.0.tell(&Request::Usage { id: BOX });
        let pick = |s: &mut State| s.ended.as_ref().map(|e| e.usage).or_else(|| s.usage.take());
        match self.0.wait(Some(ANSWER_TIMEOUT), pick) {
            Some(usage) => Ok(usage),
            None => {
                asked?;
                Err(engine_error("the guest does not answer", "end the session"))
            }
        }
    }

    fn mark(&self, number: u64) -> Result<(), StartError> {
        self.0.tell(&Request::Mark { id: BOX, number })
    }

    fn pause(&self) -> Result<(), PauseError> {
        self.0.freeze(true)
    }

    fn resume(&self) -> Result<(), PauseError> {
        self.0.freeze(false)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}
