//! A door's way to one server of `nanoclaw.toml`: connected when first needed, listed once in a
//! while, and nobody else's.

use super::http::{HttpLink, Reach};
use super::link::{HELLO_TIME, Link, McpError};
use super::pins::Described;
use super::stdio::{StdioAsk, StdioLink, StdioServers};
use crate::memory::Held;
use model::{
    AgentName, Body, Durability, McpReach, McpServer, Record, RecordError, RecordSink, SessionId,
};
use serde_json::Value;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A list of tools is asked for again after this; servers are updated rarely.
const LIST_AGE_MAX: Duration = Duration::from_secs(300);

/// For whom a server is reached, and with what.
#[derive(Clone)]
pub(crate) struct Means {
    /// None for the person who approves tools of a server at an address.
    pub(crate) session: Option<SessionId>,
    /// None for the person who approves tools.
    pub(crate) agent: Option<AgentName>,
    pub(crate) reach: Reach,
    pub(crate) programs: Arc<dyn StdioServers>,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    tools: Option<(Instant, Arc<Vec<Described>>)>,
}

/// One server, for one door.
pub(crate) struct Upstream {
    pub(crate) server: McpServer,
    means: Means,
    state: Mutex<State>,
}

impl Upstream {
    pub(crate) fn new(server: McpServer, means: Means) -> Self {
        Self { server, means, state: Mutex::new(State::default()) }
    }

    /// The vault's name of the secret it is reached with.
    pub(crate) fn secret(&self) -> Option<&str> {
        match &self.server.reach {
            McpReach::Http { secret, .. } => secret.as_deref(),
            McpReach::Stdio(_) => None,
        }
    }

    /// Where it is, for records: the host, or the program's name.
    pub(crate) fn place(&self) -> String {
        match &self.server.reach {
            McpReach::Http { url, .. } => crate::authority::quoted(url),
            McpReach::Stdio(program) => program.command.first().cloned().unwrap_or_default(),
        }
    }

    /// The list that is known and fresh enough, without asking anybody. What another process of the
    /// server listed says nothing of this one's tools.
    pub(crate) async fn known(&self) -> Option<Arc<Vec<Described>>> {
        let state = self.state.lock().await;
        let (since, tools) = state.tools.as_ref()?;
        let same = state.link.as_ref().is_some_and(|link| !link.is_over() && !link.is_stale());
        (same && since.elapsed() < LIST_AGE_MAX).then(|| Arc::clone(tools))
    }

    /// Asks for the list.
    pub(crate) async fn list(&self) -> Result<Arc<Vec<Described>>, McpError> {
        let mut state = self.state.lock().await;
        let link = self.connected(&mut state).await?;
        let tools = Arc::new(within(HELLO_TIME, link.tools()).await?);
        state.tools = Some((Instant::now(), Arc::clone(&tools)));
        Ok(tools)
    }

    /// Calls a tool, at the server whose list was judged and at no later one.
    pub(crate) async fn call(
        &self,
        params: &Value,
        time: Duration,
    ) -> Result<(Value, Held), McpError> {
        let link = self.state.lock().await.link.clone().ok_or(McpError::Ended)?;
        let answers = link.answers();
        let time = self.server.call_ms.map_or(time, Duration::from_millis);
        let result = within(time, link.request("tools/call", params)).await;
        if matches!(result, Err(McpError::Slow(_))) {
            link.overdue(answers);
        }
        result
    }

    async fn connected(&self, state: &mut State) -> Result<Arc<Link>, McpError> {
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_over()) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(within(HELLO_TIME, self.connect()).await?);
        state.link = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn connect(&self) -> Result<Link, McpError> {
        match &self.server.reach {
            McpReach::Http { url, secret, private } => {
                let (reach, agent) = (self.means.reach.clone(), self.means.agent.clone());
                Link::http(HttpLink::new(reach, agent, url, secret.clone(), *private)?).await
            }
            McpReach::Stdio(program) => {
                let Means { session, programs, .. } = &self.means;
                let ask = StdioAsk {
                    session: session.as_ref(),
                    server: &self.server.name,
                    command: &program.command,
                };
                let opened = programs.open(ask).await;
                let running = opened.map_err(|e| McpError::Unreachable(e.to_string()))?;
                Link::stdio(StdioLink::new(running, self.means.reach.memory.clone())).await
            }
        }
    }
}

async fn within<T>(
    time: Duration,
    work: impl Future<Output = Result<T, McpError>>,
) -> Result<T, McpError> {
    tokio::time::timeout(time, work).await.unwrap_or(Err(McpError::Slow(time)))
}

/// What a server offers now, for a person who is to approve it.
///
/// # Errors
/// When the record cannot be written, or the server cannot be reached or does not speak the
/// protocol.
pub(crate) async fn describe(
    server: McpServer,
    means: Means,
    sink: &Arc<dyn RecordSink>,
    time_ms: u64,
) -> Result<Vec<Described>, McpError> {
    let upstream = Upstream::new(server, means);
    if let Some(secret) = upstream.secret() {
        let body = Body::SecretUsed { secret: secret.to_owned(), host: upstream.place() };
        let record = Record { time_ms, session: None, agent: None, turn: None, body };
        let (tx, rx) = tokio::sync::oneshot::channel();
        sink.submit(record, Durability::Durable, Box::new(move |result| drop(tx.send(result))));
        let gone = || RecordError::Gone { cause: "no answer".into() };
        rx.await.unwrap_or_else(|_| Err(gone()))?;
    }
    Ok(upstream.list().await?.as_ref().clone())
}
