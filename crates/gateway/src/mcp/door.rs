//! What one door knows of the host's tools: its grants, its servers, its limits.

use super::fetch;
use super::pins::Described;
use super::upstream::{Means, Upstream};
use crate::scribe::Scribe;
use model::{HostTools, ToolGrant};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Calls of one session at work at a time; the rest wait.
const CALLS_MAX: usize = 8;
/// Requests of one session held in memory at a time.
const BODIES_MAX: usize = 32;

/// The tools of one door.
pub(crate) struct DoorTools {
    grants: Vec<ToolGrant>,
    servers: BTreeMap<String, Upstream>,
    pub(crate) slots: Semaphore,
    pub(crate) bodies: Semaphore,
    /// One page of a session at a time is made into text: that keeps a processor busy for seconds.
    pub(crate) reading: Arc<Semaphore>,
    next: AtomicU64,
    told: Mutex<HashSet<String>>,
}

/// Why a granted tool is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// Nobody approved its description.
    Unapproved,
    /// Its description is another than the approved one.
    Changed,
    /// The server has no such tool.
    Absent,
}

impl Hidden {
    /// Why, for records and agents.
    pub(crate) fn why(self, server: &str) -> String {
        match self {
            Self::Unapproved => format!(
                "its description was never approved; look at it with `nanoclaw mcp list`, then run \
                 `nanoclaw mcp approve {server}`"
            ),
            Self::Changed => format!(
                "its description changed since it was approved; look at it with `nanoclaw mcp \
                 list`, then run `nanoclaw mcp approve {server}`"
            ),
            Self::Absent => format!("the server {server} has no such tool"),
        }
    }
}

impl DoorTools {
    /// The tools of the door that `scribe` writes for.
    pub(crate) fn new(tools: HostTools, scribe: &Scribe, means: Means) -> Self {
        let (session, agent) = (Some(scribe.session.clone()), Some(scribe.agent.clone()));
        let means = Means { session, agent, ..means };
        let granted = |name: &String| tools.grants.iter().any(|g| g.server == *name);
        let servers = tools.servers.into_iter().filter(|s| granted(&s.name));
        let servers = servers.map(|s| (s.name.clone(), Upstream::new(s, means.clone()))).collect();
        Self {
            servers,
            grants: tools.grants,
            slots: Semaphore::new(CALLS_MAX),
            bodies: Semaphore::new(BODIES_MAX),
            reading: Arc::new(Semaphore::new(1)),
            next: AtomicU64::new(1),
            told: Mutex::new(HashSet::new()),
        }
    }

    /// The grant behind a name as the agent sees it.
    pub(crate) fn grant(&self, offered: &str) -> Option<&ToolGrant> {
        self.grants.iter().find(|grant| grant.offered_name() == offered)
    }

    pub(crate) fn server(&self, name: &str) -> Option<&Upstream> {
        self.servers.get(name)
    }

    /// The servers that grants name, each once.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Upstream> {
        self.servers.values()
    }

    /// The grants of one server.
    pub(crate) fn grants_of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a ToolGrant> {
        self.grants.iter().filter(move |grant| grant.server == server)
    }

    /// A number that no other call of this door has.
    pub(crate) fn next_call(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this is said for the first time; a tool hidden at every list fills no log.
    pub(crate) fn first_time(&self, what: String) -> bool {
        /// More different things than grants times reasons cannot be said.
        const TOLD_MAX: usize = 4_096;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < TOLD_MAX && told.insert(what)
    }

    /// The tools that NanoClaw brings itself and the grants name, as they are shown.
    pub(crate) fn own(&self) -> Vec<Value> {
        let named = self.grants_of(ToolGrant::OWN).any(|grant| grant.tool == fetch::NAME);
        if named { vec![fetch::described()] } else { Vec::new() }
    }
}

/// A server's tool as the agent is shown it, if its description is the approved one.
pub(crate) fn offered(grant: &ToolGrant, tools: &[Described]) -> Result<Value, Hidden> {
    let tool = tools.iter().find(|tool| tool.name == grant.tool).ok_or(Hidden::Absent)?;
    match &grant.pin {
        None => Err(Hidden::Unapproved),
        Some(pin) if *pin != tool.digest => Err(Hidden::Changed),
        Some(_) => {
            let mut shown = tool.shown.clone();
            shown["name"] = json!(grant.offered_name());
            Ok(shown)
        }
    }
}
