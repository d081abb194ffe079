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
mod register;

pub(crate) use register::Open;

use crate::failure::Failure;
use crate::home::Home;
use crate::manifests::Files;
use crate::operations::Reports;
use crate::product;
use crate::sandboxes::{self, ServerParts};
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::world;
use copy::Running;
use gateway::control::{Door, Doors, Programs, Tracked, Wanted};
use gateway::{DoorGrant, TurnCell};
use model::{Body, Durability, HostTools, RecordSink, SandboxSpec, SessionId};
use register::{Live, Register};
use sandbox::{Pipes, Sandbox, Spawner, Stdio};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Starts programs for the sessions of this process.
pub(crate) struct Servers {
    home: Home,
    spawner: Spawner,
    sink: Arc<Tracked>,
    register: Arc<Register>,
}

impl Servers {
    pub(crate) fn new(home: Home, spawner: Spawner, sink: Arc<Tracked>) -> Self {
        Self { home, spawner, sink, register: Arc::default() }
    }

    /// From now on programs may be started for this session.
    pub(crate) fn open(&self, session: &SessionId) -> Open {
        Register::open(&self.register, session)
    }

    /// Builds its sandbox, puts it on record, and lets it run.
    fn run(
        &self,
        wanted: &Wanted,
        scribe: &Scribe,
        door: Option<&Door>,
    ) -> Result<(Sandbox, Reports, Files, Pipes), String> {
        let spec = self.spec(wanted, door)?;
        let (stdio, pipes) = Stdio::piped().map_err(|e| e.to_string())?;
        let started = |e| told(&product::start_failure(e));
        let mut prepared = self.spawner.prepare(&spec, stdio).map_err(started)?;
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
        if let Some(door) = door {
            door.only_from(report.pid).map_err(|e| format!("it was not started, for {e}"))?;
        }
        let reports = Reports::take(&mut prepared, scribe, Some(&wanted.server))
            .map_err(|e| format!("no thread could be had for its record: {e}"))?;
        reports.set_turn(wanted.turn.clone());
        let files = Files::start(&spec, scribe, Some(&wanted.server), wanted.turn.as_ref())
            .map_err(|e| format!("it was not started, for {e}"))?;
        Ok((prepared.start().map_err(started)?, reports, files, pipes))
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
            provider_tools: BTreeSet::new(),
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
        let place = servers.register.admit(&wanted.session, &wanted.server)?;
        let scribe = Scribe {
            sink: Arc::clone(&servers.sink) as Arc<dyn RecordSink>,
            session: wanted.session.clone(),
            agent: wanted.agent.clone(),
        };
        let door = servers.door(&wanted, doors)?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let (sandbox, reports, files, pipes) = servers.run(&wanted, &scribe, door.as_ref())?;
        let sandbox = Arc::new(sandbox);
        let socket = ours.try_clone().map_err(|e| e.to_string())?;
        place.live(Live { sandbox: Arc::clone(&sandbox), socket });
        let Wanted { server, turn, stopped, .. } = wanted;
        let socket = ours;
        let running =
            Running { sandbox, reports, files, socket, scribe, server, turn, stopped, door, place };
        running.copy(pipes).map_err(|e| format!("no thread could be had for it: {e}"))?;
        Ok(theirs.into())
    }
}

/// How records name the sandboxes of programs among those of their session.
pub(crate) const LABEL: &str = "server of tools ";

/// How records name this program's.
fn label(server: &str) -> String {
    format!("{LABEL}{server}")
}

/// A failure in one sentence.
fn told(failure: &Failure) -> String {
    let remedy = failure.remedy.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
    format!("{}{remedy}", failure.cause)
}
