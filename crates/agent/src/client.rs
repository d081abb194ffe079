//! The host's side of the Agent Client Protocol: drives any agent over a pair of pipes.
//!
//! ```text
//! orchestrator ─► AcpClient ─► writer thread ─► agent's stdin
//!      ▲              ▲
//!  Update        bounded queue ◄── reader thread ◄── agent's stdout (untrusted)
//! ```
//!
//! Invariants:
//! 1. Everything read is untrusted: frames, updates and bytes a turn are bounded, and what does
//!    not fit the protocol ends the connection with a typed error, never a panic.
//! 2. No call here blocks on the agent's pipes: a thread each reads and writes them.
//! 3. A permission is denied unless the callback says otherwise.
//! 4. After a protocol error the client stays broken: every later call says so.

mod error;
mod link;
mod update;

pub use crate::acp::{FailureKind, ModelFailure, StopReason, Usage};
pub use error::{AcpError, PromptError};
pub use update::{PermissionAnswer, PermissionOption, PermissionRequest, Update};

use crate::acp::PROTOCOL_VERSION;
use link::{Event, Link};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest line taken from an agent. The largest legitimate ones carry a tool's output or a
/// whole file's diff; 4 MiB holds both and bounds what one agent can make the host hold.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Most bytes taken in one turn: hours of streaming, but not an endless flood.
pub const MAX_TURN_BYTES: usize = 256 << 20;
/// Most frames taken in one turn, for a flood of tiny ones.
pub const MAX_TURN_FRAMES: usize = 1_000_000;
/// How long `initialize` and session set-up may take: the slowest agent measured needed 32 s.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a cancelled turn may take to say so before the agent counts as hung.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// What an agent said about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentInfo {
    /// Its name, one line, cut to 200 bytes; empty if it gave none.
    pub name: String,
    /// Its version, likewise.
    pub version: String,
    /// Whether it can load an earlier session (`session/load`).
    pub load_session: bool,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptResult {
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens used, zero if the agent does not say.
    pub usage: Usage,
}

type PermissionHandler = Box<dyn FnMut(&PermissionRequest) -> PermissionAnswer + Send>;

#[derive(Default)]
struct Shared {
    session: Mutex<Option<String>>,
    cancelled: AtomicBool,
}

/// Drives one agent process. One turn at a time; see the module's invariants.
pub struct AcpClient {
    link: Link,
    shared: Arc<Shared>,
    permission: PermissionHandler,
    next_id: u64,
    broken: Option<AcpError>,
}

/// Cancels the running turn from any thread. A call before [`AcpClient::prompt`] was entered or
/// after it returned has no effect.
#[derive(Clone)]
pub struct CancelHandle {
    wake: link::Waker,
    shared: Arc<Shared>,
}

impl CancelHandle {
    /// Asks the agent to stop. The turn then ends with [`StopReason::Cancelled`], or with
    /// [`AcpError::Timeout`] after [`CANCEL_GRACE`]. Returns at once.
    pub fn cancel(&self) {
        let session = self.shared.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(session) = session else { return };
        self.shared.cancelled.store(true, Ordering::SeqCst);
        self.wake
            .notify(crate::rpc::notification("session/cancel", &json!({"sessionId": session})));
    }
}

impl AcpClient {
    /// Starts the two threads over the agent's stdout (`reader`) and stdin (`writer`). They end
    /// when the agent closes its side or the client is dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<Self, AcpError> {
        Ok(Self {
            link: Link::start(reader, writer)?,
            shared: Arc::default(),
            permission: Box::new(|_| PermissionAnswer::Deny),
            next_id: 0,
            broken: None,
        })
    }

    /// Decides permission requests from now on; without it all are denied. It runs on the thread
    /// that called [`AcpClient::prompt`], which waits for it.
    pub fn on_permission(
        &mut self,
        handler: impl FnMut(&PermissionRequest) -> PermissionAnswer + Send + 'static,
    ) {
        self.permission = Box::new(handler);
    }

    /// A handle that cancels turns of this client.
    #[must_use]
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { wake: self.link.waker(), shared: Arc::clone(&self.shared) }
    }

    /// Says hello. Must be the first call.
    ///
    /// # Errors
    /// When the agent does not answer in [`SETUP_TIMEOUT`], speaks another major version, or
    /// breaks the protocol.
    pub fn initialize(&mut self) -> Result<AgentInfo, AcpError> {
        let result = self.call(
            "initialize",
            &json!({
                "protocolVersion": PROTOCOL_VERSION,
                "clientCapabilities": {"fs": {"readTextFile": false, "writeTextFile": false},
                    "terminal": false},
                "clientInfo": {"name": "nanoclaw", "title": "NanoClaw",
                    "version": env!("CARGO_PKG_VERSION")},
            }),
        )?;
        let spoken = result.get("protocolVersion").and_then(Value::as_u64);
        if spoken != Some(PROTOCOL_VERSION) {
            return self.fail(AcpError::Version { spoken });
        }
        let text = |path: &str| {
            crate::rpc::one_line(result.pointer(path).and_then(Value::as_str).unwrap_or(""), 200)
        };
        Ok(AgentInfo {
            name: text("/agentInfo/name"),
            version: text("/agentInfo/version"),
            load_session: result.pointer("/agentCapabilities/loadSession")
                == Some(&Value::Bool(true)),
        })
    }

    /// Starts a session in `cwd` (a path inside the sandbox). With `resume` the built-in agent
    /// takes up the conversation kept in its home, if there is one; other agents ignore it.
    /// Returns the agent's own session id.
    ///
    /// # Errors
    /// As [`AcpClient::initialize`], or when the agent refuses.
    pub fn new_session(&mut self, cwd: &Path, resume: bool) -> Result<String, AcpError> {
        let mut params = json!({"cwd": cwd.to_string_lossy(), "mcpServers": []});
        if resume {
            params["_meta"] = json!({"resume": true});
        }
        let result = self.call("session/new", &params)?;
        let id = result.get("sessionId").and_then(Value::as_str).unwrap_or("");
        if id.is_empty() || id.len() > 1_024 {
            return self
                .fail(AcpError::Forged { why: "session/new answered without a session id" });
        }
        let id = id.to_owned();
        self.set_session(&id);
        Ok(id)
    }

    /// Takes up an earlier session by the agent's id. What it replays is thrown away.
    ///
    /// # Errors
    /// As [`AcpClient::initialize`], or when the agent does not know the session.
    pub fn load_session(&mut self, id: &str, cwd: &Path) -> Result<(), AcpError> {
        self.set_session(id);
        let params = json!({"sessionId": id, "cwd": cwd.to_string_lossy(), "mcpServers": []});
        self.call("session/load", &params).map(|_| ())
    }

    /// Runs one turn: `on_update` sees text and tool calls as they come, in order. There is no
    /// time limit here; whoever has one cancels through the handle.
    ///
    /// # Errors
    /// [`PromptError::Model`] leaves the client usable; [`PromptError::Agent`] carries an error of
    /// the agent or of the connection.
    pub fn prompt(
        &mut self,
        text: &str,
        on_update: &mut dyn FnMut(Update),
    ) -> Result<PromptResult, PromptError> {
        self.check()?;
        let session = self.session().ok_or(AcpError::NoSession)?;
        self.link.discard_stale();
        self.shared.cancelled.store(false, Ordering::SeqCst);
        let params = json!({"sessionId": session, "prompt": [{"type": "text", "text": text}]});
        let id = self.send("session/prompt", &params)?;
        if self.shared.cancelled.load(Ordering::SeqCst) {
            // The cancel may have overtaken the prompt and found no turn to end.
            self.cancel_handle().cancel();
        }
        let result = self.wait(id, None, on_update)?;
        let stop = result.get("stopReason").and_then(Value::as_str).and_then(StopReason::parse);
        let Some(stop) = stop else {
            let why = "the turn ended without a known stopReason";
            return self.fail(AcpError::Forged { why }).map_err(PromptError::from);
        };
        let usage = result.pointer("/_meta/nanoclaw/usage").or_else(|| result.get("usage"));
        Ok(PromptResult { stop, usage: usage.map(Usage::from_json).unwrap_or_default() })
    }

    fn session(&self) -> Option<String> {
        self.shared.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_session(&self, id: &str) {
        *self.shared.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
    }

    fn check(&self) -> Result<(), AcpError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Remembers a protocol error, so that nobody goes on with a connection out of step.
    fn fail<T>(&mut self, error: AcpError) -> Result<T, AcpError> {
        if error.is_fatal() {
            self.broken = Some(error.clone());
        }
        Err(error)
    }

    fn send(&mut self, method: &str, params: &Value) -> Result<u64, AcpError> {
        let id = self.next_id;
        self.next_id += 1;
        let frame = crate::rpc::request(id, method, params);
        self.link.send(frame).or_else(|e| self.fail(e))?;
        Ok(id)
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value, AcpError> {
        self.check()?;
        let id = self.send(method, params)?;
        let deadline = Instant::now() + SETUP_TIMEOUT;
        match self.wait(id, Some(deadline), &mut |_| {}) {
            Ok(value) => Ok(value),
            Err(PromptError::Agent(error)) => Err(error),
            Err(PromptError::Model(failure)) => {
                Err(AcpError::Refused { code: 0, message: failure.message })
            }
        }
    }

    /// Handles events until the answer to `id` is there.
    fn wait(
        &mut self,
        id: u64,
        mut deadline: Option<Instant>,
        on_update: &mut dyn FnMut(Update),
    ) -> Result<Value, PromptError> {
        let (mut frames, mut bytes) = (0_usize, 0_usize);
        loop {
            if deadline.is_none() && self.shared.cancelled.load(Ordering::SeqCst) {
                deadline = Some(Instant::now() + CANCEL_GRACE);
            }
            let (event, size) = match self.link.receive(deadline) {
                Ok(received) => received,
                Err(e) => return self.fail(e).map_err(PromptError::from),
            };
            frames += 1;
            bytes += size;
            if frames > MAX_TURN_FRAMES || bytes > MAX_TURN_BYTES {
                return self.fail(AcpError::Flood { frames, bytes }).map_err(PromptError::from);
            }
            match self.handle(id, event, on_update) {
                Ok(Some(answer)) => return answer.map_err(|error| error::refusal(&error)),
                Ok(None) => {}
                Err(e) => return self.fail(e).map_err(PromptError::from),
            }
        }
    }

    /// One event: `Some` if it is the answer waited for.
    fn handle(
        &mut self,
        awaited: u64,
        event: Event,
        on_update: &mut dyn FnMut(Update),
    ) -> Result<Option<Result<Value, Value>>, AcpError> {
        match event {
            Event::Wake => Ok(None),
            Event::Response { id, result } if id == json!(awaited) => Ok(Some(result)),
            Event::Response { .. } => {
                Err(AcpError::Forged { why: "it answered a request that was never made" })
            }
            Event::Notification { method, params } => {
                if method == "session/update" {
                    self.check_session(&params)?;
                    update::read(&params, on_update);
                }
                Ok(None)
            }
            Event::Request { id, method, params } => {
                let frame = if method == "session/request_permission" {
                    self.check_session(&params)?;
                    let request = update::permission(&params);
                    let answer = if self.shared.cancelled.load(Ordering::SeqCst) {
                        PermissionAnswer::Cancelled
                    } else {
                        (self.permission)(&request)
                    };
                    crate::rpc::answer(&id, &request.outcome(&answer))
                } else {
                    let code = crate::rpc::METHOD_NOT_FOUND;
                    crate::rpc::error(&id, code, "this client does not offer that", None)
                };
                self.link.send(frame)?;
                Ok(None)
            }
        }
    }

    /// An agent has one session here; an update for another one is forged. Before the session's
    /// id is known any is taken, for some agents speak before they answer `session/new`.
    fn check_session(&self, params: &Value) -> Result<(), AcpError> {
        let named = params.get("sessionId").and_then(Value::as_str);
        match (self.session(), named) {
            (None, _) => Ok(()),
            (Some(ours), Some(theirs)) if ours == theirs => Ok(()),
            _ => Err(AcpError::Forged { why: "it spoke for a session that is not its own" }),
        }
    }
}
