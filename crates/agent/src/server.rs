//! The agent's side of the Agent Client Protocol, over stdin and stdout.
//!
//! ```text
//! stdin ─► frame ─► dispatch ─► answer ─► stdout
//!                      └─ session/prompt ─► turns' thread ─► session/update … ─► answer
//! ```
//!
//! Invariants:
//! 1. Any frame gets its JSON-RPC answer or error; none stops the agent.
//! 2. The reading thread never waits for a turn, so a cancel is always heard.
//! 3. When stdin ends, the turn is cancelled and nothing it started is left behind.

mod prompt;
mod updates;

use crate::cancel::Cancel;
use crate::config::Config;
use crate::conversation::Conversation;
use crate::mcp::HostTools;
use crate::rpc::{self, Frame, Incoming};
use crate::tools::Jobs;
use serde_json::{Value, json};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use updates::Updates;

/// Longest frame taken from the host: a message of [`prompt::MAX_PROMPT_BYTES`], escaped.
const MAX_FRAME_BYTES: usize = 8 << 20;

/// What the threads of the agent share.
struct Shared {
    config: Config,
    out: Out,
    jobs: Jobs,
    session: Mutex<Option<Session>>,
    /// The turn that is running, if any.
    running: Mutex<Option<Cancel>>,
}

/// The one session of this process.
struct Session {
    cwd: PathBuf,
    conversation: Conversation,
    host: HostTools,
}

/// Where frames go, one at a time.
#[derive(Clone)]
pub(crate) struct Out(Arc<Mutex<Box<dyn Write + Send>>>);

impl Out {
    pub(crate) fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(writer))))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut writer = lock(&self.0);
        writer.write_all(frame)?;
        writer.flush()
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error to answer with.
struct Refusal {
    code: i64,
    message: String,
    data: Option<Value>,
}

impl Refusal {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

type Answer = Result<Value, Refusal>;

/// Serves until `input` ends. `Err` when the streams themselves fail.
pub(crate) fn serve(config: Config, mut input: impl BufRead, out: Out) -> io::Result<()> {
    let shared = Arc::new(Shared {
        config,
        out,
        jobs: Jobs::default(),
        session: Mutex::new(None),
        running: Mutex::new(None),
    });
    let mut server = Server { shared: Arc::clone(&shared), greeted: false, turns: None };
    let result = server.read_all(&mut input);
    if let Some(cancel) = lock(&shared.running).clone() {
        cancel.cancel();
    }
    if let Some((turns, thread)) = server.turns.take() {
        drop(turns);
        let _ = thread.join();
    }
    shared.jobs.kill_all();
    result
}

struct Server {
    shared: Arc<Shared>,
    greeted: bool,
    /// The thread that runs turns, there before the first one: a turn does not wait for a stack.
    turns: Option<(Sender<Prompt>, JoinHandle<()>)>,
}

/// A turn to run.
struct Prompt {
    id: Value,
    text: String,
    cancel: Cancel,
}

impl Server {
    fn read_all(&mut self, input: &mut impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            match rpc::read_frame(input, MAX_FRAME_BYTES, &mut line)? {
                Frame::End => return Ok(()),
                Frame::TooLong => {
                    rpc::skip_line(input)?;
                    let message = "the frame is too long";
                    self.shared.out.send(&rpc::error(
                        &Value::Null,
                        rpc::INVALID_REQUEST,
                        message,
                        None,
                    ))?;
                }
                Frame::Line if line.trim_ascii().is_empty() => {}
                Frame::Line => self.frame(&line)?,
            }
            line.shrink_to(16 << 10);
        }
    }

    fn frame(&mut self, line: &[u8]) -> io::Result<()> {
        match rpc::parse(line) {
            Err(fault) => {
                self.shared.out.send(&rpc::error(&fault.id, fault.code, fault.message, None))
            }
            Ok(Incoming::Response { .. }) => Ok(()), // nothing was asked; nothing is believed
            Ok(Incoming::Notification { method, params }) => {
                if method == "session/cancel" {
                    self.cancel(&params);
                }
                Ok(())
            }
            Ok(Incoming::Request { id, method, params }) => {
                match self.request(&id, &method, &params) {
                    Some(Ok(result)) => self.shared.out.send(&rpc::answer(&id, &result)),
                    Some(Err(no)) => {
                        self.shared.out.send(&rpc::error(&id, no.code, &no.message, no.data))
                    }
                    None => Ok(()), // the turn's thread answers
                }
            }
        }
    }

    fn request(&mut self, id: &Value, method: &str, params: &Value) -> Option<Answer> {
        if method != "initialize" && !self.greeted {
            return Some(Err(Refusal::new(rpc::INVALID_REQUEST, "initialize comes first")));
        }
        Some(match method {
            "initialize" => self.initialize(params),
            "authenticate" => Ok(json!({})),
            "session/new" => self.new_session(params),
            "session/load" => self.load_session(params),
            "session/prompt" => match self.prompt(id, params) {
                Ok(()) => return None,
                Err(no) => Err(no),
            },
            _ => Err(Refusal::new(rpc::METHOD_NOT_FOUND, "this agent has no such method")),
        })
    }

    fn initialize(&mut self, params: &Value) -> Answer {
        // Whatever version the client would like: this one is spoken, and the client decides.
        if params.get("protocolVersion").and_then(Value::as_u64).is_none() {
            return Err(Refusal::new(
                rpc::INVALID_PARAMS,
                "protocolVersion must be a whole number",
            ));
        }
        self.greeted = true;
        Ok(json!({
            "protocolVersion": crate::acp::PROTOCOL_VERSION,
            "agentCapabilities": {
                "loadSession": true,
                "promptCapabilities": {"image": false, "audio": false, "embeddedContext": true},
                "mcpCapabilities": {"http": false, "sse": false},
            },
            "agentInfo": {"name": "nanoclaw-agent", "title": "NanoClaw built-in agent",
                "version": env!("CARGO_PKG_VERSION")},
            "authMethods": [],
        }))
    }

    fn conversation_file(&self) -> PathBuf {
        self.shared.config.home.join(".nanoclaw/conversation.jsonl")
    }

    fn new_session(&mut self, params: &Value) -> Answer {
        self.must_be_idle()?;
        let cwd = working_directory(params)?;
        let path = self.conversation_file();
        let resume = params.pointer("/_meta/resume") == Some(&Value::Bool(true));
        let kept = if resume { Conversation::load(&path, &mut |_| {}) } else { Ok(None) };
        let conversation = kept.and_then(|kept| match kept {
            Some(kept) => Ok(kept),
            None => {
                let now =
                    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let id = format!("session-{now:x}-{:x}", std::process::id());
                Conversation::create(&path, &id, now)
            }
        });
        let conversation = conversation.map_err(|e| storage(&path, &e))?;
        let result = json!({"sessionId": conversation.id()});
        self.turns()?;
        let host = HostTools::open(&self.shared.config);
        *lock(&self.shared.session) = Some(Session { cwd, conversation, host });
        Ok(result)
    }

    fn load_session(&mut self, params: &Value) -> Answer {
        self.must_be_idle()?;
        let cwd = working_directory(params)?;
        let path = self.conversation_file();
        let wanted = params.get("sessionId").and_then(Value::as_str).unwrap_or("");
        let unknown =
            || Refusal::new(rpc::NOT_FOUND, "no such session is kept here; start a new one");
        // Once without telling anybody: another session's words are not for this client.
        let known = Conversation::load(&path, &mut |_| {}).map_err(|e| storage(&path, &e))?;
        if known.is_none_or(|known| known.id() != wanted) {
            return Err(unknown());
        }
        let updates = Updates::new(self.shared.out.clone(), wanted);
        let loaded = Conversation::load(&path, &mut |message| updates.replay(message));
        let conversation = loaded.map_err(|e| storage(&path, &e))?.ok_or_else(unknown)?;
        let host = HostTools::open(&self.shared.config);
        *lock(&self.shared.session) = Some(Session { cwd, conversation, host });
        Ok(Value::Null)
    }

    fn must_be_idle(&self) -> Result<(), Refusal> {
        match *lock(&self.shared.running) {
            Some(_) => {
                Err(Refusal::new(rpc::INVALID_REQUEST, "a turn is running; cancel it first"))
            }
            None => Ok(()),
        }
    }

    fn cancel(&self, params: &Value) {
        let Some(cancel) = lock(&self.shared.running).clone() else { return };
        if params.get("sessionId").and_then(Value::as_str).is_some() {
            cancel.cancel();
        }
    }

    fn prompt(&mut self, id: &Value, params: &Value) -> Result<(), Refusal> {
        self.must_be_idle()?;
        let text = prompt::text(params)?;
        match lock(&self.shared.session).as_ref() {
            None => return Err(Refusal::new(rpc::INVALID_REQUEST, "start a session first")),
            Some(session) => {
                let named = params.get("sessionId").and_then(Value::as_str);
                if named != Some(session.conversation.id()) {
                    return Err(Refusal::new(rpc::NOT_FOUND, "no such session"));
                }
            }
        }
        let turns = self.turns()?.clone();
        let cancel = Cancel::default();
        *lock(&self.shared.running) = Some(cancel.clone());
        turns.send(Prompt { id: id.clone(), text, cancel }).map_err(|_| {
            *lock(&self.shared.running) = None;
            Refusal::new(rpc::INTERNAL_ERROR, "the thread that runs turns is gone; start again")
        })
    }

    /// Where turns are sent to; makes the thread that runs them when it is not there yet.
    fn turns(&mut self) -> Result<&Sender<Prompt>, Refusal> {
        if self.turns.is_none() {
            let (sender, prompts) = mpsc::channel::<Prompt>();
            let shared = Arc::clone(&self.shared);
            let work = move || {
                for Prompt { id, text, cancel } in prompts {
                    prompt::run(&shared, &id, text, &cancel);
                }
            };
            let made = std::thread::Builder::new().name("turns".to_owned()).spawn(work);
            let thread = made.map_err(|e| {
                Refusal::new(rpc::INTERNAL_ERROR, format!("no thread for turns: {e}"))
            })?;
            self.turns = Some((sender, thread));
        }
        let gone = || Refusal::new(rpc::INTERNAL_ERROR, "no thread for turns");
        self.turns.as_ref().map(|(sender, _)| sender).ok_or_else(gone)
    }
}

fn storage(path: &Path, error: &io::Error) -> Refusal {
    let message = format!("the conversation file {} cannot be used: {error}", path.display());
    Refusal::new(rpc::INTERNAL_ERROR, message)
}

fn working_directory(params: &Value) -> Result<PathBuf, Refusal> {
    let bad = |why: &str| Refusal::new(rpc::INVALID_PARAMS, why);
    let servers = params.get("mcpServers").and_then(Value::as_array).map_or(0, Vec::len);
    if servers > 0 {
        return Err(bad("this agent takes no MCP servers; leave mcpServers empty"));
    }
    let cwd = params.get("cwd").and_then(Value::as_str).map(PathBuf::from);
    let cwd =
        cwd.filter(|cwd| cwd.is_absolute()).ok_or_else(|| bad("cwd must be an absolute path"))?;
    if !cwd.is_dir() {
        return Err(bad("cwd is not a folder"));
    }
    Ok(cwd)
}
