//! A door: one listening socket for one session. Who connects to it *is* that session.
//!
//! ```text
//! accept ─► (bounded) ─► head ─┬─ CONNECT, http://…  ─► egress
//!                              └─ /v1/…              ─► modelapi
//! ```
//!
//! Invariants:
//! 1. Identity comes from the listener alone; nothing a client sends can change it.
//! 2. Dropping the [`Door`] ends every connection through it, inside and outside.
//! 3. What one session can hold (connections, heads, bodies) is bounded; what all hold together is,
//!    too, and some of it is each one's own ([`crate::room`]).
//! 4. Every byte of every connection is counted, read or not. Once it is known which process of the
//!    sandbox relays all others', that one is served alone: the kernel counts what it moves.

use crate::asks::Asks;
use crate::authority::quoted;
use crate::counters::{Counters, Counts};
use crate::egress;
use crate::endpoint::EndpointError;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::{Head, Version};
use crate::lookups::Lookups;
use crate::memory::Memory;
use crate::metered::Metered;
use crate::modelapi::route::Model;
use crate::modelapi::serve;
use crate::modelapi::spend::Spend;
use crate::quota::Quota;
use crate::rates::Rates;
use crate::retry::RetryPolicy;
use crate::room::{Full, Room};
use crate::scribe::{Scribe, TurnCell};
use crate::script::ScriptError;
use crate::tls::Authority;
use crate::upstream::Pool;
use crate::vault::Vault;
use crate::veil::Veil;
use model::{AgentName, Budget, EgressRule, ModelConfig, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// After a failed accept (no descriptors left) the door rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How long connections of a sandbox that is gone may take to notice it and write their records.
const SETTLE_TIME: Duration = Duration::from_millis(500);
/// How often a failed accept is tried again when a door is closed for good: two seconds, by when
/// descriptors have come back.
const LAST_ACCEPTS: usize = 40;
/// No process: anybody who has the socket may connect.
const ANYBODY: i32 = 0;

/// Everything a door is opened with: finished decisions. It crosses the control socket as data;
/// the turn does not, it is told on its own.
#[derive(Clone, Serialize, Deserialize)]
pub struct DoorGrant {
    /// Whose door it is.
    pub session: SessionId,
    /// Which agent runs behind it.
    pub agent: AgentName,
    /// The turn the session is in, for records; may be shared with whoever runs turns.
    #[serde(skip)]
    pub turn: TurnCell,
    /// Hosts that may be reached.
    pub egress: Vec<EgressRule>,
    /// Models that may be asked.
    pub models: Vec<ModelConfig>,
    /// Name of the model for requests that name none of them.
    pub default_model: Option<String>,
    /// The key the agent was given in place of a real one. It is worth nothing upstream; a plain
    /// HTTP request that carries it elsewhere is refused.
    pub placeholder: String,
    /// Tools of the host that may be called, and the servers they come from.
    #[serde(default)]
    pub tools: model::HostTools,
    /// Tools of the models' providers that requests may turn on.
    #[serde(default)]
    pub provider_tools: BTreeSet<String>,
    /// What the agent may spend on models.
    #[serde(default)]
    pub budget: Budget,
    /// The texts of the models' scripts by their paths, for a gateway that may not read them
    /// itself; what is missing here is read.
    #[serde(default)]
    pub scripts: BTreeMap<PathBuf, String>,
    /// Hosts (names or addresses) of model servers that the user wrote with `http://`.
    #[serde(default)]
    pub plain_http_hosts: Vec<String>,
    /// Secrets that the agent is handed on its standard input (`deliver = "stdin"`).
    #[serde(default)]
    pub stdin_secrets: BTreeSet<String>,
}

/// Why a door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The socket could not be made.
    #[error("the door {path} cannot be {action}: {cause}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
    /// Something that is no socket is in the way.
    #[error("the door {path} cannot be made, for something else is there; move it away")]
    Occupied {
        /// Its path.
        path: PathBuf,
    },
    /// Others could replace the socket.
    #[error(
        "the door's folder {path} can be written by others (mode {mode:04o}); run `chmod 0711 {path}`"
    )]
    OpenFolder {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What was sent today is not known.
    #[error(
        "how much was sent today cannot be read or kept: {cause}; see to the file quota.jsonl in the \
         gateway's folder"
    )]
    Quota {
        /// The operating system's words.
        cause: String,
    },
    /// A model's address is not usable.
    #[error("the model {model:?} is not usable: {why}")]
    Endpoint {
        /// Its name.
        model: String,
        /// What is wrong.
        why: EndpointError,
    },
    /// A model's script is not usable.
    #[error("the model {model:?} is not usable: {why}")]
    Script {
        /// Its name.
        model: String,
        /// What is wrong, with file, line and column.
        why: ScriptError,
    },
    /// A scripted model without a file.
    #[error("the model {model:?} has api = \"script\" but no file; write script = \"FILE.toml\"")]
    NoScript {
        /// Its name.
        model: String,
    },
    /// The default model is not among the models.
    #[error("the default model {model:?} is not among the granted models; add [models.{model}]")]
    UnknownDefault {
        /// Its name.
        model: String,
    },
}

/// What every connection of a door shares.
pub(crate) struct DoorState {
    pub(crate) scribe: Arc<Scribe>,
    pub(crate) rules: Vec<EgressRule>,
    pub(crate) stdin_secrets: BTreeSet<String>,
    pub(crate) models: Vec<Model>,
    pub(crate) default_model: Option<usize>,
    pub(crate) placeholder: String,
    pub(crate) vault: Arc<Vault>,
    pub(crate) veil: Veil,
    pub(crate) logins: Arc<crate::login::Logins>,
    pub(crate) lookups: Lookups,
    pub(crate) pool: Pool,
    pub(crate) retry: RetryPolicy,
    pub(crate) spend: Spend,
    pub(crate) memory: Memory,
    pub(crate) provider_tools: BTreeSet<String>,
    pub(crate) authority: Option<Arc<Authority>>,
    pub(crate) links: egress::link::Links,
    pub(crate) asks: Asks,
    pub(crate) quota: Quota,
    pub(crate) rates: Rates,
    pub(crate) names: egress::name::Refused,
    pub(crate) tools: crate::mcp::DoorTools,
    pub(crate) room: Room,
    pub(crate) relay: Relay,
}

/// The process that relays the sandbox's connections, once it is known.
#[derive(Default)]
pub(crate) struct Relay {
    pid: AtomicI32,
    /// That somebody else tried was recorded.
    told: AtomicBool,
}

impl Relay {
    /// Whether the other end of `stream` may speak for the session, by the kernel's word.
    fn admits(&self, stream: &UnixStream) -> bool {
        let relay = self.pid.load(Ordering::Relaxed);
        let peer = stream.peer_cred().ok().and_then(|c| c.pid());
        relay == ANYBODY || peer == Some(relay)
    }
}

/// An open door. Dropping it closes it; the socket's file belongs to whoever bound it.
pub struct Door {
    socket: PathBuf,
    turn: TurnCell,
    counters: Arc<Counters>,
    accepting: JoinHandle<()>,
    settle: Arc<Notify>,
    pub(crate) state: Arc<DoorState>,
}

impl Door {
    /// Starts to accept. Must run inside the runtime.
    pub(crate) fn open(listener: StdListener, state: DoorState) -> Result<Self, DoorError> {
        let address = listener.local_addr().ok();
        let socket = address.and_then(|a| a.as_pathname().map(Path::to_owned)).unwrap_or_default();
        let failed = |e: io::Error| DoorError::Socket {
            path: socket.clone(),
            action: "listened to",
            cause: e.to_string(),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let (turn, counters) = (state.scribe.turn.clone(), Arc::clone(&state.scribe.counters));
        let state = Arc::new(state);
        let settle = Arc::new(Notify::new());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state), Arc::clone(&settle)));
        Ok(Self { socket, turn, counters, accepting, settle, state })
    }

    /// Where the socket was bound.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says which turn runs from now on; it stands in every record of the door.
    pub fn set_turn(&self, turn: Option<TurnId>) {
        self.turn.set(turn);
    }

    /// From now on only this process may connect: the sandbox's first, which relays the others'
    /// connections. A pid of 0 or beyond the kernel's range changes nothing.
    pub fn only_from(&self, pid: u32) {
        if let Ok(pid) = i32::try_from(pid)
            && pid != ANYBODY
        {
            self.state.relay.pid.store(pid, Ordering::Relaxed);
        }
    }

    /// What went through so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// Closes the door of a sandbox that is gone: what is under way gets a moment to end and is
    /// then ended. The counts are final, with what was sent and never read.
    pub async fn settle(mut self) -> Counts {
        self.settle.notify_one();
        // A task that broke off counts no more.
        let _ = (&mut self.accepting).await;
        self.counters.snapshot()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Makes the listening socket, mode 0666: the sandbox runs as another uid. What keeps others out
/// is the folder, and that only this sandbox has the socket mounted. The listener goes to
/// [`Gateway::open_door`](crate::Gateway::open_door), and may go to another one after that.
///
/// # Errors
/// When the folder can be written by others, when something that is no socket is in the way, or
/// as the operating system says; the error's text names the remedy and wraps a [`DoorError`].
pub fn bind_door(path: &Path) -> io::Result<StdListener> {
    bind(path).map_err(io::Error::other)
}

fn bind(path: &Path) -> Result<StdListener, DoorError> {
    let failed = |action, cause: &io::Error| DoorError::Socket {
        path: path.to_owned(),
        action,
        cause: cause.to_string(),
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let meta = std::fs::metadata(folder).map_err(|e| failed("made in its folder", &e))?;
    if meta.mode() & 0o022 != 0 {
        return Err(DoorError::OpenFolder { path: folder.to_owned(), mode: meta.mode() & 0o7777 });
    }
    match std::fs::symlink_metadata(path) {
        Ok(old) if old.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(|e| failed("replaced", &e))?;
        }
        Ok(_) => return Err(DoorError::Occupied { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("looked at", &e)),
    }
    let listener = StdListener::bind(path).map_err(|e| failed("bound", &e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .map_err(|e| failed("opened to the sandbox", &e))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, state: Arc<DoorState>, settle: Arc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = settle.notified() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        if !state.relay.admits(&stream) {
            turn_away_stranger(stream, &state, &mut connections);
            continue;
        }
        let stream = Metered::new(stream, Arc::clone(&state.scribe.counters));
        match state.room.enter() {
            Ok(place) => {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    serve_connection(Conn::new(stream), &state).await;
                    drop(place);
                });
            }
            Err(full) => turn_away(&stream, &state, full),
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SETTLE_TIME, all).await;
    connections.shutdown().await;
    leave_waiting(listener, &state).await;
}

/// Connections that nobody took before the sandbox was gone: they count, and so does what was sent
/// on them. After all others, whose descriptors they may need.
async fn leave_waiting(listener: UnixListener, state: &DoorState) {
    let Ok(listener) = listener.into_std() else { return };
    let mut failures = 0;
    while failures < LAST_ACCEPTS {
        match listener.accept() {
            Ok((stream, _)) => {
                let ready = stream.set_nonblocking(true);
                if let Ok(stream) = ready.and_then(|()| UnixStream::from_std(stream))
                    && state.relay.admits(&stream)
                {
                    drop(Metered::new(stream, Arc::clone(&state.scribe.counters)));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // Out of descriptors: without these connections the totals would not agree.
            Err(_) => {
                failures += 1;
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// One connection too many: told so if that takes no waiting, and closed. No record each, for a
/// flood must not fill the log; the count shows it.
fn turn_away(stream: &Metered, state: &DoorState, full: Full) {
    Counters::add(&state.scribe.counters.refused, 1);
    stream.try_write(&answer(503, &[], &AnswerBody::Whole(full.text().as_bytes()), false));
}

/// Somebody went past the relay. Recorded once, counted each time, and told after that.
fn turn_away_stranger(stream: UnixStream, state: &Arc<DoorState>, tasks: &mut JoinSet<()>) {
    let why = "connections come through the sandbox's proxy, not to the door's socket itself; \
               use the address in HTTPS_PROXY";
    let tell = move || {
        let text = format!("{why}\n");
        let _ = stream.try_write(&answer(403, &[], &AnswerBody::Whole(text.as_bytes()), false));
    };
    if state.relay.told.swap(true, Ordering::Relaxed) {
        Counters::add(&state.scribe.counters.refused, 1);
        return tell();
    }
    let state = Arc::clone(state);
    tasks.spawn(async move {
        state.scribe.refused("the door's socket".into(), "door", why.into()).await;
        tell();
    });
}

async fn serve_connection(mut conn: Conn, door: &Arc<DoorState>) {
    loop {
        let Some(head) = next_head(&mut conn, door).await else { return conn.close().await };
        if head.method == "CONNECT" {
            return egress::connect::connect(conn, door, &head).await;
        }
        match serve_request(&mut conn, door, &head).await {
            Ok(true) => {}
            Ok(false) => return conn.close().await,
            Err(_) => return,
        }
    }
}

/// The next request's head; what is malformed is answered and recorded. `None` at the end.
pub(crate) async fn next_head(conn: &mut Conn, door: &DoorState) -> Option<Head> {
    match conn.read_head().await {
        Ok(head) => {
            Counters::add(&door.scribe.counters.requests, u64::from(head.is_some()));
            head
        }
        Err(e) => {
            door.scribe.refused("a malformed request".into(), "http", e.to_string()).await;
            let text = format!("{e}\n");
            let body = AnswerBody::Whole(text.as_bytes());
            let _ = conn.write(&answer(e.status(), &[], &body, false)).await;
            None
        }
    }
}

async fn serve_request(conn: &mut Conn, door: &Arc<DoorState>, head: &Head) -> io::Result<bool> {
    if head.version == Version::Http10 {
        // Chunked answers, which streaming needs, do not exist there.
        return serve::plain(conn, head, 505, "speak HTTP/1.1", &[]).await;
    }
    if head.target.split('?').next() == Some(crate::mcp::PATH) {
        return crate::mcp::serve(conn, door, head).await;
    }
    if let Some(name) = head.target.strip_prefix(egress::name::PREFIX)
        && head.method == "GET"
    {
        return egress::name::serve(conn, door, head, name).await;
    }
    if head.target.starts_with('/') {
        return serve::serve(conn, door, head).await;
    }
    if head.target.contains("://") {
        return egress::plain::forward(conn, door, head).await;
    }
    let why = "the target is neither a path nor an http:// address";
    door.scribe.refused(quoted(&head.target), "http", why.into()).await;
    serve::plain(conn, head, 400, why, &[]).await?;
    Ok(false)
}
