//! Servers of tools that are programs, from the product's side: the gateway names one that a
//! session was granted, and it is started here.

use super::{ControlError, Shared};
use crate::control::client::Door;
use crate::control::link::Link;
use crate::control::wire::ToGateway;
use crate::door::DoorGrant;
use model::{AgentName, McpProgram, McpReach, McpServer, SessionId, TurnId};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Programs being started at a time; each is a thread and a sandbox in the making.
const STARTS_MAX: usize = 32;

/// What is to be started, and for whom: what this side granted, under the name the gateway gave.
pub struct Wanted {
    /// Who will use it.
    pub session: SessionId,
    /// The agent of that session.
    pub agent: AgentName,
    /// The turn it is in.
    pub turn: Option<TurnId>,
    /// NAME of the `[mcp.NAME]`.
    pub server: String,
    /// What runs, and what it has.
    pub program: McpProgram,
    /// To be told once how it ended.
    pub stopped: Box<dyn FnOnce(String) + Send>,
}

/// Opens doors for programs that may reach something.
pub struct Doors(Arc<Shared>);

impl Doors {
    /// As [`ControlClient::open_door`](super::ControlClient::open_door).
    ///
    /// # Errors
    /// As there.
    pub fn open(&self, grant: DoorGrant, socket: &Path) -> Result<Door, ControlError> {
        self.0.open_door(grant, socket)
    }
}

/// Who starts programs, each in a sandbox of its own.
pub trait Programs: Send + Sync {
    /// Starts one and returns the other end of its stdin and stdout: a connected Unix socket. When
    /// the gateway closes it, the program is to end. Called on a thread of its own.
    ///
    /// # Errors
    /// Why it does not run, and what to do, in words for people and agents.
    fn start(&self, wanted: Wanted, doors: &Doors) -> Result<OwnedFd, String>;
}

/// Starts none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPrograms;

impl Programs for NoPrograms {
    fn start(&self, wanted: Wanted, _: &Doors) -> Result<OwnedFd, String> {
        Err(format!("the server {} is a program, and none can be started here", wanted.server))
    }
}

/// A session whose server of tools a person looks at; it has no door.
pub(super) struct Looking {
    pub(super) session: SessionId,
    pub(super) agent: AgentName,
    pub(super) server: McpServer,
}

impl Shared {
    /// Starts what the gateway asks for, if this side granted it to that session.
    pub(super) fn start_program(
        self: &Arc<Self>,
        link: &Arc<Link>,
        order: u64,
        session: &SessionId,
        server: &str,
    ) {
        let (told, back) = (Arc::clone(link), Arc::clone(link));
        // One that ends at once is told of after it was said to run.
        let said = Arc::new(Mutex::new(()));
        let in_turn = Arc::clone(&said);
        let not = move |why: String| {
            // A gateway that is gone waits for nothing.
            drop(back.send(&ToGateway::NotStarted { order, why }, None));
        };
        let stopped = Box::new(move |how| {
            let _in_turn = in_turn.lock().unwrap_or_else(PoisonError::into_inner);
            drop(told.send(&ToGateway::Stopped { order, how }, None));
        });
        let Some(wanted) = self.wanted(session, server, stopped) else {
            return not(format!("no session here was granted the server {server}"));
        };
        let Some(turn) = Turn::take(self) else {
            return not(format!("{STARTS_MAX} programs are being started already; try again"));
        };
        let (shared, link) = (Arc::clone(self), Arc::clone(link));
        let refuse = not.clone();
        let work = move || {
            let _saying = said.lock().unwrap_or_else(PoisonError::into_inner);
            match shared.settings.programs.start(wanted, &Doors(Arc::clone(&shared))) {
                // If it cannot be sent, the socket closes here, which ends the program.
                Ok(fd) => drop(link.send(&ToGateway::Started { order }, Some(fd.as_fd()))),
                Err(why) => refuse(why),
            }
            drop(turn);
        };
        if let Err(e) = thread::Builder::new().name("program-start".into()).spawn(work) {
            not(format!("no thread could be had: {e}"));
        }
    }

    fn wanted(
        &self,
        session: &SessionId,
        server: &str,
        stopped: Box<dyn FnOnce(String) + Send>,
    ) -> Option<Wanted> {
        let state = self.lock();
        let of_doors = state.doors.values().filter(|held| held.grant.session == *session);
        let granted = of_doors.flat_map(|held| {
            let (agent, turn) = (&held.grant.agent, held.turn.as_ref());
            held.grant.tools.servers.iter().map(move |server| (server, agent, turn))
        });
        let looked = state.looking.iter().filter(|look| look.session == *session);
        let looked = looked.map(|look| (&look.server, &look.agent, None));
        let (found, agent, turn) = granted.chain(looked).find(|(s, ..)| s.name == server)?;
        let McpReach::Stdio(program) = &found.reach else { return None };
        Some(Wanted {
            session: session.clone(),
            agent: agent.clone(),
            turn: turn.cloned(),
            server: server.to_owned(),
            program: program.as_ref().clone(),
            stopped,
        })
    }
}

/// One of the places among those being started.
struct Turn(Arc<Shared>);

impl Turn {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let mut state = shared.lock();
        if state.starting >= STARTS_MAX {
            return None;
        }
        state.starting += 1;
        drop(state);
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().starting -= 1;
    }
}
