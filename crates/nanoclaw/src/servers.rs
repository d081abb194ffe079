//! Servers of tools that are programs: each in a sandbox of its own, for one session alone.
//!
//! ```text
//! gateway ═ socket pair ═ two copying threads ═ pipes ═ [ sandbox: program ]     stderr ─► its end
//!      door of its own, if it may reach anything ◄──────────┘
//! ```
//!
//! Invariants:
//! 1. A program has what its `[mcp.NAME]` grants and no more: without a rule it has no way out at
//!    all, and it never sees the agent's folders.
//! 2. It is on record, durably, before it runs, and its end is on record too.
//! 3. It ends with its session, with its gateway's interest in it, and with this process.
//! 4. One that keeps ending is not started again and again.
//! 5. Bytes are copied, never gathered: whoever does not read makes the other side wait.

mod copy;

use crate::failure::Failure;
use crate::home::Home;
use crate::product;
use crate::sandboxes::{self, ServerParts};
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::world;
use copy::Running;
use gateway::control::{Door, Doors, Programs, Tracked, Wanted};
use gateway::{DoorGrant, TurnCell};
use model::{Body, Durability, HostTools, RecordSink, SandboxSpec, SessionId};
use sandbox::{Pipes, Sandbox, Spawner, Stdio};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A program that was started so often within [`STARTS_WINDOW`] is not started again before that
/// is over: each start costs a sandbox.
const STARTS_MAX: usize = 5;
/// See [`STARTS_MAX`].
const STARTS_WINDOW: Duration = Duration::from_secs(60);
/// How long the end of a session waits for its programs. Killing one takes milliseconds; a sandbox
/// in the making takes at most the spawner's own limit.
const END_TIME: Duration = Duration::from_secs(35);

/// Starts programs for the sessions of this process.
pub(crate) struct Servers {
    home: Home,
    spawner: Spawner,
    sink: Arc<Tracked>,
    sessions: Mutex<HashMap<SessionId, Session>>,
    changed: Condvar,
}

/// The programs of one session.
#[derive(Default)]
struct Session {
    over: bool,
    /// When each server was started lately.
    starts: Vec<(String, Instant)>,
    /// Programs that are being started, run or end.
    busy: usize,
    next: u64,
    live: HashMap<u64, Live>,
}

/// A program that runs.
struct Live {
    sandbox: Arc<Sandbox>,
    /// This side's end of the socket pair.
    socket: UnixStream,
}

impl Live {
    fn end(&self) {
        // Gone already is as good.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.sandbox.kill());
    }
}

/// A program's place in its session; dropping it says that nothing is left of the program.
struct Place {
    servers: Arc<Servers>,
    session: SessionId,
    number: u64,
}

impl Place {
    /// The program runs; if its session ended meanwhile, no longer.
    fn live(&self, live: Live) {
        let mut sessions = self.servers.lock();
        match sessions.get_mut(&self.session) {
            Some(session) if !session.over => drop(session.live.insert(self.number, live)),
            _ => live.end(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(session) = self.servers.lock().get_mut(&self.session) {
            session.live.remove(&self.number);
            session.busy = session.busy.saturating_sub(1);
        }
        self.servers.changed.notify_all();
    }
}

/// Says that programs may be started for a session; dropping it ends them.
pub(crate) struct Open {
    servers: Arc<Servers>,
    session: SessionId,
}

impl Open {
    /// Ends every program of the session and waits until none is left; none is started afterwards.
    pub(crate) fn end(&self) {
        self.servers.end(&self.session);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

impl Servers {
    pub(crate) fn new(home: Home, spawner: Spawner, sink: Arc<Tracked>) -> Self {
        let (sessions, changed) = (Mutex::default(), Condvar::new());
        Self { home, spawner, sink, sessions, changed }
    }

    /// From now on programs may be started for this session.
    pub(crate) fn open(self: &Arc<Self>, session: &SessionId) -> Open {
        self.lock().entry(session.clone()).or_default();
        Open { servers: Arc::clone(self), session: session.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, id: &SessionId) {
        let until = Instant::now() + END_TIME;
        let mut sessions = self.lock();
        loop {
            let Some(session) = sessions.get_mut(id) else { return };
            session.over = true;
            for live in session.live.values() {
                live.end();
            }
            let left = until.saturating_duration_since(Instant::now());
            if session.busy == 0 || left.is_zero() {
                sessions.remove(id);
                return;
            }
            let waited = self.changed.wait_timeout(sessions, left);
            sessions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A place for one more program of the session.
    fn admit(self: &Arc<Self>, wanted: &Wanted) -> Result<Place, String> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(&wanted.session).filter(|session| !session.over);
        let session = session.ok_or("its session is over")?;
        session.starts.retain(|(_, at)| at.elapsed() < STARTS_WINDOW);
        if session.starts.iter().filter(|(name, _)| *name == wanted.server).count() >= STARTS_MAX {
            return Err(format!(
                "it was started {STARTS_MAX} times within {} s and did not stay; it is started \
                 again later. `nanoclaw mcp list {}` shows what it says",
                STARTS_WINDOW.as_secs(),
                wanted.server
            ));
        }
        session.starts.push((wanted.server.clone(), Instant::now()));
        session.busy += 1;
        session.next += 1;
        let (servers, id) = (Arc::clone(self), wanted.session.clone());
        Ok(Place { servers, session: id, number: session.next })
    }

    /// Builds its sandbox, puts it on record, and lets it run.
    fn run(
        &self,
        wanted: &Wanted,
        scribe: &Scribe,
        door: Option<&Door>,
    ) -> Result<(Sandbox, Pipes), String> {
        let spec = self.spec(wanted, door)?;
        let (stdio, pipes) = Stdio::piped().map_err(|e| e.to_string())?;
        let started = |e| told(&product::start_failure(e));
        let prepared = self.spawner.prepare(&spec, stdio).map_err(started)?;
        let report = prepared.report();
        let program = format!("{}: {}", label(&wanted.server), wanted.program.command.join(" "));
        let body = Body::SandboxStarted {
            plan_sha256: sha256_hex(&report.plan.sha256_input()),
            program: inline(&program).to_owned(),
            walls: report.walls.clone(),
            limits: report.limits.clone(),
        };
        let recorded = scribe.write(wanted.turn.as_ref(), body, Durability::Durable);
        recorded.map_err(|e| format!("it was not started, for {e}"))?;
        Ok((prepared.start().map_err(started)?, pipes))
    }

    /// Its own way out, if its rules give it one: the session's identity, the server's rules.
    fn door(&self, wanted: &Wanted, doors: &Doors) -> Result<Option<Door>, String> {
        if wanted.program.egress.is_empty() {
            return Ok(None);
        }
        let grant = DoorGrant {
            session: wanted.session.clone(),
            agent: wanted.agent.clone(),
            turn: TurnCell::default(),
            egress: wanted.program.egress.clone(),
            models: Vec::new(),
            default_model: None,
            placeholder: sandboxes::placeholder(&wanted.session),
            tools: HostTools::default(),
            budget: model::Budget::default(),
            scripts: BTreeMap::new(),
            plain_http_hosts: Vec::new(),
            stdin_secrets: BTreeSet::new(),
        };
        // A name that no session's own door has.
        let random = u32::from_le_bytes(world::random_bytes());
        let socket = self.home.door(&SessionId::mint(world::now_ms(), random));
        let socket = socket.map_err(|e| told(&e))?;
        doors.open(grant, &socket).map(Some).map_err(|e| e.to_string())
    }

    fn spec(&self, wanted: &Wanted, door: Option<&Door>) -> Result<SandboxSpec, String> {
        let dirs = self.home.server(&wanted.session, &wanted.server).map_err(|e| told(&e))?;
        Ok(sandboxes::server_spec(ServerParts {
            session: &wanted.session,
            agent: &wanted.agent,
            program: &wanted.program,
            dirs: &dirs,
            door: door.map(|door| door.socket().to_owned()),
            trust: sandboxes::bundle(self.home.path()),
        }))
    }
}

/// What the gateway asks: it may be directed from here, and starts nothing itself.
pub(crate) struct Starter(pub(crate) Arc<Servers>);

impl Programs for Starter {
    fn start(&self, wanted: Wanted, doors: &Doors) -> Result<OwnedFd, String> {
        let Self(servers) = self;
        let place = servers.admit(&wanted)?;
        let scribe = Scribe {
            sink: Arc::clone(&servers.sink) as Arc<dyn RecordSink>,
            session: wanted.session.clone(),
            agent: wanted.agent.clone(),
        };
        let door = servers.door(&wanted, doors)?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let (sandbox, pipes) = servers.run(&wanted, &scribe, door.as_ref())?;
        let sandbox = Arc::new(sandbox);
        let socket = ours.try_clone().map_err(|e| e.to_string())?;
        place.live(Live { sandbox: Arc::clone(&sandbox), socket });
        let Wanted { server, turn, stopped, .. } = wanted;
        let running = Running { sandbox, socket: ours, scribe, server, turn, stopped, door, place };
        running.copy(pipes).map_err(|e| format!("no thread could be had for it: {e}"))?;
        Ok(theirs.into())
    }
}

/// How records name a program's sandbox among those of its session.
fn label(server: &str) -> String {
    format!("server of tools {server}")
}

/// A failure in one sentence.
fn told(failure: &Failure) -> String {
    let remedy = failure.remedy.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
    format!("{}{remedy}", failure.cause)
}
