//! The product's side: doors by order, questions answered, a gateway that died replaced.
//!
//! ```text
//! any thread ─ request ─► link ─►  gateway
//! one thread ◄─ replies, questions, notices ─┘
//!     └ EOF ─► start it again ─► hand every door over again ─► say so
//! ```

mod life;
mod logins;
mod programs;
mod questions;

pub use programs::{Doors, NoPrograms, Programs, Wanted};
pub use questions::Withdrawn;

use super::link::{Link, connect};
use super::wire::{Reply, ToGateway};
use crate::asks::{Answer, Question};
use crate::door::{DoorError, DoorGrant, bind_door};
use crate::mcp::Described;
use crate::script::Script;
use crate::usage::Notice;
use model::{AgentName, McpServer, ModelApi, SessionId, TurnId};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A gateway that dies so often within [`DEATHS_WINDOW`] is not started again: something kills it.
const DEATHS_MAX: usize = 3;
/// See [`DEATHS_MAX`].
const DEATHS_WINDOW: Duration = Duration::from_secs(30);

/// What happened to the gateway meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It stopped, was started again, and has every door again. What was under way is lost.
    Restarted,
    /// It stopped for good; nothing goes out any more.
    Failed {
        /// Why, and what to do.
        cause: String,
    },
    /// The owner should know something.
    Notice(Notice),
}

/// Who hears of events and answers questions.
pub trait Watcher: Send + Sync {
    /// Something happened. Must not wait for the gateway.
    fn happened(&self, event: Event);
    /// A human is asked; called on a thread of its own and may take its time, until `withdrawn`
    /// says that the answer is of no use any more.
    fn ask(&self, question: Question, withdrawn: &Withdrawn) -> Answer;
}

/// How a client finds, starts and hears the gateway.
pub struct Settings {
    /// The installation.
    pub home: PathBuf,
    /// What this process is (up to 32 bytes).
    pub role: String,
    /// Starts a gateway and returns when it is ready or has found another one running.
    pub start: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    /// Who hears.
    pub watcher: Arc<dyn Watcher>,
    /// Who starts servers of tools that are programs.
    pub programs: Arc<dyn Programs>,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The gateway, or this side on its behalf, says no.
    #[error("{why}")]
    Refused {
        /// Cause and remedy.
        why: String,
    },
    /// There is no gateway.
    #[error("the gateway is gone: {cause}")]
    Gone {
        /// What was seen, and what to do.
        cause: String,
    },
}

fn refused(why: impl ToString) -> ControlError {
    ControlError::Refused { why: why.to_string() }
}

/// A door as this side keeps it.
struct Held {
    grant: DoorGrant,
    listener: UnixListener,
    turn: Option<TurnId>,
    relay: Option<u32>,
    restarts: u64,
}

enum Phase {
    Up(Arc<Link>),
    Down,
    Failed(String),
}

struct State {
    phase: Phase,
    /// Counts connections, so that what was agreed with one gateway is not taken for another's.
    generation: u64,
    next: u64,
    waiting: HashMap<u64, SyncSender<Reply>>,
    /// Questions of the gateway of now that are being put to a human.
    asked: HashMap<u64, Withdrawn>,
    doors: BTreeMap<u64, Box<Held>>,
    /// Servers of tools that a person looks at now.
    looking: Vec<programs::Looking>,
    /// Programs that are being started.
    starting: usize,
    deaths: Vec<Instant>,
    closing: bool,
}

impl State {
    /// After a connection: no reply comes any more, and no answer is of use.
    fn nobody_waits(&mut self) {
        self.waiting.clear();
        self.asked.drain().for_each(|(_, withdrawn)| withdrawn.set());
    }
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
}

/// A connection to the gateway of a home. Dropping it closes its doors.
pub struct ControlClient {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

impl ControlClient {
    /// Connects; starts a gateway where none runs. Any number of processes may do so at once.
    ///
    /// # Errors
    /// What starting says, or that none can be reached within 30 seconds.
    pub fn connect(settings: Settings) -> io::Result<Self> {
        let (link, inbox) = connect(&settings.home, &settings.role, &settings.start)?;
        link.settle()?;
        let link = Arc::new(link);
        let state = Mutex::new(State {
            phase: Phase::Up(Arc::clone(&link)),
            generation: 0,
            next: 0,
            waiting: HashMap::new(),
            asked: HashMap::new(),
            doors: BTreeMap::new(),
            looking: Vec::new(),
            starting: 0,
            deaths: Vec::new(),
            closing: false,
        });
        let shared = Arc::new(Shared { settings, state, changed: Condvar::new() });
        let for_reader = Arc::clone(&shared);
        let reader = thread::Builder::new()
            .name("gateway-answers".into())
            .spawn(move || for_reader.read(link, inbox))?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Opens a door at `socket` for one session. The socket stays with this process, whatever
    /// becomes of the gateway. Scripts of the grant's models are read here.
    ///
    /// # Errors
    /// When the socket cannot be made safely, a model of the grant is not usable, or the gateway
    /// is gone.
    pub fn open_door(&self, grant: DoorGrant, socket: &Path) -> Result<Door, ControlError> {
        self.shared.open_door(grant, socket)
    }

    /// Asks whether the gateway is there; how many doors it has, all clients' together.
    ///
    /// # Errors
    /// When it is gone for good.
    pub fn ping(&self) -> Result<u64, ControlError> {
        match self.shared.request(&|id| ToGateway::Ping { id }, None, false)?.0 {
            Reply::Pong { doors } => Ok(doors),
            other => Err(unexpected(&other)),
        }
    }

    /// What a server of tools offers now, for a person who is to approve it. Waits for the server,
    /// at most a minute. A server that is a program is started for `session`, in the name of
    /// `agent`.
    ///
    /// # Errors
    /// When the server cannot be reached or understood, or the gateway is gone.
    pub fn describe_mcp(
        &self,
        server: &McpServer,
        session: &SessionId,
        agent: &AgentName,
    ) -> Result<Vec<Described>, ControlError> {
        let (server, for_whom) = (server.clone(), Some(session.clone()));
        let (session, agent) = (session.clone(), agent.clone());
        let made =
            |id| ToGateway::DescribeMcp { id, server: server.clone(), session: for_whom.clone() };
        let looking = programs::Looking { session, agent, server: server.clone() };
        self.shared.lock().looking.push(looking);
        let asked = self.shared.request(&made, None, true);
        self.shared.lock().looking.retain(|look| Some(&look.session) != for_whom.as_ref());
        match asked?.0 {
            Reply::Described(tools) => Ok(tools),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for ControlClient {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(reader) = self.reader.take()
            && reader.thread().id() != thread::current().id()
        {
            // A reader that panicked has nothing left to end.
            let _ = reader.join();
        }
    }
}

fn read_scripts(grant: &mut DoorGrant) -> Result<(), ControlError> {
    for config in grant.models.iter().filter(|m| m.api == ModelApi::Script) {
        let Some(path) = &config.script else { continue };
        let text = Script::text(path)
            .map_err(|why| refused(DoorError::Script { model: config.name.clone(), why }))?;
        grant.scripts.insert(path.clone(), text);
    }
    Ok(())
}

fn open_message(id: u64, door: u64, held: &Held) -> ToGateway {
    let (grant, turn) = (Box::new(held.grant.clone()), held.turn.clone());
    ToGateway::OpenDoor { id, door, grant, turn, relay: held.relay }
}

fn unexpected(reply: &Reply) -> ControlError {
    match reply {
        Reply::Refused { why } => refused(why),
        other => refused(format!("the gateway answered something else: {other:?}")),
    }
}

fn done(reply: Reply) -> Result<(), ControlError> {
    if reply == Reply::Done { Ok(()) } else { Err(unexpected(&reply)) }
}

/// An open door. Dropping it closes it and removes the socket.
pub struct Door {
    shared: Arc<Shared>,
    key: u64,
    socket: PathBuf,
}

impl Door {
    /// Where the socket is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says which turn runs from now on; it stands in every record of the door. Returns when the
    /// gateway knows.
    ///
    /// # Errors
    /// When there is no gateway any more.
    pub fn set_turn(&self, turn: Option<TurnId>) -> Result<(), ControlError> {
        let key = self.key;
        if let Some(held) = self.shared.lock().doors.get_mut(&key) {
            held.turn.clone_from(&turn);
        }
        let made = |id| ToGateway::SetTurn { id, door: key, turn: turn.clone() };
        done(self.shared.request(&made, None, false)?.0)
    }

    /// From now on only this process may connect: the sandbox's first, through which its programs'
    /// connections lead. To be said before its program runs. Returns when the gateway knows.
    ///
    /// # Errors
    /// When there is no gateway any more.
    pub fn only_from(&self, pid: u32) -> Result<(), ControlError> {
        let key = self.key;
        if let Some(held) = self.shared.lock().doors.get_mut(&key) {
            held.relay = Some(pid);
        }
        done(self.shared.request(&|id| ToGateway::OnlyFrom { id, door: key, pid }, None, false)?.0)
    }

    /// What went through so far, once its records are with the recorder; `gateway_restarts` says
    /// that earlier counts are lost.
    ///
    /// # Errors
    /// When there is no gateway any more, or its records cannot be written.
    pub fn counts(&self) -> Result<BTreeMap<String, u64>, ControlError> {
        self.counted(&|id| ToGateway::Counts { id, door: self.key }, false)
    }

    /// Closes the door of a sandbox that is gone and tells the final counts, as
    /// [`Door::counts`] does.
    ///
    /// # Errors
    /// When there is no gateway any more, it stopped meanwhile, or its records cannot be written.
    pub fn settle(&self) -> Result<BTreeMap<String, u64>, ControlError> {
        self.counted(&|id| ToGateway::SettleDoor { id, door: self.key }, true)
    }

    fn counted(
        &self,
        made: &dyn Fn(u64) -> ToGateway,
        once: bool,
    ) -> Result<BTreeMap<String, u64>, ControlError> {
        let (reply, _) = self.shared.request(made, None, once)?;
        let Reply::Counts(mut counts) = reply else { return Err(unexpected(&reply)) };
        let restarts = self.shared.lock().doors.get(&self.key).map_or(0, |h| h.restarts);
        if restarts > 0 {
            counts.insert("gateway_restarts".into(), restarts);
        }
        Ok(counts)
    }

    /// Has the gateway write a secret into `pipe` (its writing end) and close it. The bytes do not
    /// pass through this process. Returns how many there are.
    ///
    /// # Errors
    /// When the agent's file does not grant it, the secret cannot be opened, the record cannot be
    /// written, or the gateway is gone; then it may have been written, and is on record.
    pub fn deliver(&self, secret: &str, pipe: OwnedFd) -> Result<u64, ControlError> {
        let made = |id| ToGateway::Deliver { id, door: self.key, secret: secret.to_owned() };
        match self.shared.request(&made, Some(pipe.as_fd()), true)?.0 {
            Reply::Delivered { bytes } => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let link = {
            let mut state = self.shared.lock();
            state.doors.remove(&self.key);
            match &state.phase {
                Phase::Up(link) => Some(Arc::clone(link)),
                Phase::Down | Phase::Failed(_) => None,
            }
        };
        if let Some(link) = link {
            // Nobody waits for its counts; a gateway that is gone has closed it.
            let id = self.shared.number();
            drop(link.send(&ToGateway::CloseDoor { id, door: self.key }, None));
        }
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Why a new gateway does not do.
enum Lost {
    /// It died as well.
    Again,
    /// It will not do another time either.
    Lasting(String),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        let mut state = self.lock();
        state.next += 1;
        state.next
    }

    fn open_door(
        self: &Arc<Self>,
        mut grant: DoorGrant,
        socket: &Path,
    ) -> Result<Door, ControlError> {
        read_scripts(&mut grant)?;
        let listener = bind_door(socket).map_err(refused)?;
        let mut held = Box::new(Held { grant, listener, turn: None, relay: None, restarts: 0 });
        let key = self.number();
        let placed = loop {
            let made = |id| open_message(id, key, &held);
            let fd = held.listener.as_fd();
            let (reply, generation) = match self.request(&made, Some(fd), false) {
                Ok(done) => done,
                Err(e) => break Err(e),
            };
            if let Err(e) = done(reply) {
                break Err(e);
            }
            match self.place(key, held, generation) {
                Ok(()) => break Ok(()),
                // That gateway is gone already; the next one knows nothing of this door.
                Err(back) => held = back,
            }
        };
        if let Err(e) = placed {
            drop(std::fs::remove_file(socket));
            return Err(e);
        }
        Ok(Door { shared: Arc::clone(self), key, socket: socket.to_owned() })
    }

    /// One request and its reply, with the generation that answered. When the gateway dies under
    /// it, it is put to the next one, unless `once`.
    fn request(
        &self,
        made: &dyn Fn(u64) -> ToGateway,
        fd: Option<BorrowedFd<'_>>,
        once: bool,
    ) -> Result<(Reply, u64), ControlError> {
        loop {
            let (answer, answered) = sync_channel(1);
            let (link, id, generation) = self.enlist(answer)?;
            match link.send(&made(id), fd) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    self.lock().waiting.remove(&id);
                    return Err(refused(e));
                }
                // The reader sees the end and lets go of `answer`.
                Err(_) => link.shutdown(),
            }
            match answered.recv() {
                Ok(reply) => return Ok((reply, generation)),
                Err(_) if once => {
                    let cause = "it stopped while it was asked".to_owned();
                    return Err(ControlError::Gone { cause });
                }
                Err(_) => {}
            }
        }
    }

    fn enlist(&self, answer: SyncSender<Reply>) -> Result<(Arc<Link>, u64, u64), ControlError> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return Err(ControlError::Gone { cause: "this client was closed".into() });
            }
            match &state.phase {
                Phase::Failed(cause) => return Err(ControlError::Gone { cause: cause.clone() }),
                Phase::Down => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Phase::Up(link) => {
                    let link = Arc::clone(link);
                    state.next += 1;
                    let id = state.next;
                    state.waiting.insert(id, answer);
                    return Ok((link, id, state.generation));
                }
            }
        }
    }

    /// Keeps a door that the gateway of `generation` has opened; gives it back when that one is
    /// gone.
    fn place(&self, key: u64, held: Box<Held>, generation: u64) -> Result<(), Box<Held>> {
        let mut state = self.lock();
        if state.generation != generation || !matches!(state.phase, Phase::Up(_)) {
            return Err(held);
        }
        state.doors.insert(key, held);
        Ok(())
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        state.nobody_waits();
        if let Phase::Up(link) = &state.phase {
            link.shutdown();
        }
        drop(state);
        self.changed.notify_all();
    }
}
