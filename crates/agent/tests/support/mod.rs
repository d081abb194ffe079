//! What the process tests share: a fake door (a model behind a Unix socket, in both formats, in
//! tiny pieces) and the real agent as a child process.

#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // what fails here fails its test

use nanoclaw_agent::client::{AcpClient, AgentInfo, PromptError, PromptResult, Update};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Api {
    Anthropic,
    OpenAi,
}

pub(crate) const BOTH: [Api; 2] = [Api::Anthropic, Api::OpenAi];

/// What the fake model answers.
pub(crate) enum Reply {
    /// Text and tool calls (id, name, arguments), streamed well.
    Say(&'static str, Vec<(&'static str, &'static str, Value)>),
    /// The first bytes of a well streamed answer, then the connection is closed.
    CutOff(&'static str),
    /// Text, then silence until the client goes away.
    Stall(&'static str),
    /// A plain response.
    Status(u16, &'static str, &'static str),
    /// These bytes and nothing else.
    Raw(&'static [u8]),
}

pub(crate) fn say(text: &'static str) -> Reply {
    Reply::Say(text, Vec::new())
}

pub(crate) fn bash(id: &'static str, command: &str) -> (&'static str, &'static str, Value) {
    (id, "bash", json!({"command": command}))
}

/// One request as the door saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Seen {
    /// The conversation without system prompt, as one string.
    pub(crate) fn messages(&self) -> String {
        self.body["messages"].to_string()
    }

    pub(crate) fn is_summary(&self) -> bool {
        self.body.get("tools").is_none()
    }
}

#[derive(Default)]
struct DoorState {
    seen: Vec<Seen>,
    mcp: Vec<Seen>,
    left: u64,
    broken: Vec<String>,
}

pub(crate) struct Door {
    pub(crate) path: PathBuf,
    state: Arc<Mutex<DoorState>>,
}

impl Door {
    /// `script` answers each request, given its number and itself.
    pub(crate) fn open(
        dir: &Path,
        api: Api,
        script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let path = dir.join("door.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let state = Arc::new(Mutex::new(DoorState::default()));
        let (shared, script) = (Arc::clone(&state), Arc::new(script));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (shared, script) = (Arc::clone(&shared), Arc::clone(&script));
                let socket = socket.unwrap();
                std::thread::spawn(move || serve(socket, api, &shared, &*script));
            }
        });
        Self { path, state }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// What was asked of the host's tools.
    pub(crate) fn mcp(&self) -> Vec<Seen> {
        self.state.lock().unwrap().mcp.clone()
    }

    /// How often a client went away in the middle of a stalled answer.
    pub(crate) fn left(&self) -> u64 {
        self.state.lock().unwrap().left
    }
}

impl Drop for Door {
    /// Every request of every test must have had its tool calls and results in pairs.
    fn drop(&mut self) {
        let broken = self.state.lock().map(|s| s.broken.clone()).unwrap_or_default();
        if !std::thread::panicking() {
            assert!(broken.is_empty(), "{broken:#?}");
        }
    }
}

fn serve(
    mut socket: UnixStream,
    api: Api,
    state: &Mutex<DoorState>,
    script: &dyn Fn(usize, &Seen) -> Reply,
) {
    let Some(seen) = read_request(&socket) else { return };
    if seen.head.starts_with("POST /mcp ") {
        state.lock().unwrap().mcp.push(seen.clone());
        return host_tools(&mut socket, &seen, state);
    }
    let number = {
        let mut state = state.lock().unwrap();
        if let Err(why) = check_pairs(api, &seen.body) {
            state.broken.push(format!("{why}: {}", seen.messages()));
        }
        state.seen.push(seen.clone());
        state.seen.len() - 1
    };
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    match script(number, &seen) {
        Reply::Say(text, calls) => {
            let _ = socket.write_all(head.as_bytes());
            let _ = chunked(&mut socket, stream(api, text, &calls).as_bytes());
            let _ = socket.write_all(b"0\r\n\r\n");
        }
        Reply::CutOff(text) => {
            let _ = socket.write_all(head.as_bytes());
            let whole = stream(api, text, &[]);
            let _ = chunked(&mut socket, &whole.as_bytes()[..whole.len() * 2 / 3]);
        }
        Reply::Stall(text) => {
            let _ = socket.write_all(head.as_bytes());
            let whole = stream(api, text, &[]);
            let end =
                whole.find("\"stop_reason\":\"").or(whole.find("\"finish_reason\":\"")).unwrap();
            let _ =
                chunked(&mut socket, &whole.as_bytes()[..whole[..end].rfind("\n\n").unwrap() + 2]);
            let gone = socket.read(&mut [0; 16]); // the client has nothing more to say
            if matches!(gone, Ok(0) | Err(_)) {
                state.lock().unwrap().left += 1;
            }
        }
        Reply::Status(code, headers, body) => {
            let length = body.len();
            let _ = write!(
                socket,
                "HTTP/1.1 {code} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
            );
        }
        Reply::Raw(bytes) => drop(socket.write_all(bytes)),
    }
}

/// The host's tools: a page fetcher, one that never answers, one that breaks, and one that would
/// like to be the agent's own bash.
fn host_tools(socket: &mut UnixStream, seen: &Seen, state: &Mutex<DoorState>) {
    let tool =
        |name: &str| json!({"name": name, "description": "D", "inputSchema": {"type": "object"}});
    let name = seen.body["params"]["name"].as_str().unwrap_or("");
    let text = |text: &str| json!({"content": [{"type": "text", "text": text}]});
    let answer = match (seen.body["method"].as_str().unwrap_or(""), name) {
        ("tools/list", _) if seen.body["params"]["cursor"] == "2" => {
            json!({"result": {"tools": [tool("slow"), tool("bash")]}})
        }
        ("tools/list", _) => {
            json!({"result": {"tools": [tool("web_fetch"), tool("broken")], "nextCursor": "2"}})
        }
        ("tools/call", "web_fetch") => json!({"result": text("PAGE-TEXT")}),
        ("tools/call", "slow") => {
            let gone = socket.read(&mut [0; 16]);
            if matches!(gone, Ok(0) | Err(_)) {
                state.lock().unwrap().left += 1;
            }
            return;
        }
        ("tools/call", "broken") => {
            drop(socket.write_all(b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\noops"));
            return;
        }
        ("ping", _) => json!({"result": {}}),
        _ => json!({"error": {"code": -32601, "message": "no such thing here"}}),
    };
    let mut frame = json!({"jsonrpc": "2.0", "id": seen.body["id"]});
    frame.as_object_mut().unwrap().extend(answer.as_object().unwrap().clone());
    let body = frame.to_string();
    let _ = write!(
        socket,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

fn read_request(socket: &UnixStream) -> Option<Seen> {
    let mut reader = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { head, body: serde_json::from_slice(&body).ok()? })
}

/// Chunks of 1 to 7 bytes: every split the parsers can meet.
fn chunked(socket: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let (mut at, mut framed) = (0, Vec::new());
    while at < bytes.len() {
        let size = (1 + at % 7).min(bytes.len() - at);
        framed.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        framed.extend_from_slice(&bytes[at..at + size]);
        framed.extend_from_slice(b"\r\n");
        at += size;
    }
    framed.chunks(61).try_for_each(|part| socket.write_all(part))
}

fn stream(api: Api, text: &str, calls: &[(&str, &str, Value)]) -> String {
    match api {
        Api::Anthropic => anthropic_stream(text, calls),
        Api::OpenAi => openai_stream(text, calls),
    }
}

fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(3).map(|c| c.iter().collect()).collect()
}

fn anthropic_stream(text: &str, calls: &[(&str, &str, Value)]) -> String {
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 1}}}),
        json!({"type": "ping"}),
    ];
    let mut index = 0;
    if !text.is_empty() {
        events.push(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}));
        for piece in pieces(text) {
            events.push(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}));
        }
        events.push(json!({"type": "content_block_stop", "index": 0}));
        index = 1;
    }
    for (id, name, input) in calls {
        events.push(json!({"type": "content_block_start", "index": index, "content_block": {"type": "tool_use", "id": id, "name": name, "input": {}}}));
        for piece in pieces(&input.to_string()) {
            events.push(json!({"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": piece}}));
        }
        events.push(json!({"type": "content_block_stop", "index": index}));
        index += 1;
    }
    let reason = if calls.is_empty() { "end_turn" } else { "tool_use" };
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}}));
    events.push(json!({"type": "message_stop"}));
    let named = |e: &Value| format!("event: {}\ndata: {e}\n\n", e["type"].as_str().unwrap());
    events.iter().map(named).collect()
}

fn openai_stream(text: &str, calls: &[(&str, &str, Value)]) -> String {
    let chunk = |delta: Value| json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}))];
    events.extend(pieces(text).into_iter().map(|piece| chunk(json!({"content": piece}))));
    for (index, (id, name, input)) in calls.iter().enumerate() {
        events.push(chunk(json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]})));
        for piece in pieces(&input.to_string()) {
            events.push(chunk(
                json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}),
            ));
        }
    }
    let reason = if calls.is_empty() { "stop" } else { "tool_calls" };
    events.push(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}));
    events.push(json!({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}));
    let mut text: String = events.iter().map(|e| format!("data: {e}\n\n")).collect();
    text.push_str("data: [DONE]\n\n");
    text
}

/// The rules both providers enforce: every call answered in the very next message, no answer
/// without its call, roles alternating, nothing empty.
fn check_pairs(api: Api, body: &Value) -> Result<(), String> {
    let mut open: Vec<String> = Vec::new();
    let mut last_role = String::new();
    for message in body["messages"].as_array().ok_or("no messages")? {
        let role = message["role"].as_str().unwrap_or("").to_owned();
        let content = &message["content"];
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let (calls, results): (Vec<String>, Vec<String>) = match api {
            Api::Anthropic => {
                let blocks = content.as_array().filter(|b| !b.is_empty()).ok_or("empty content")?;
                let of = |kind: &str, id: &str| {
                    blocks.iter().filter(|b| b["type"] == kind).map(|b| text(&b[id])).collect()
                };
                (of("tool_use", "id"), of("tool_result", "tool_use_id"))
            }
            Api::OpenAi => {
                let none = Vec::new();
                let calls = message["tool_calls"].as_array().unwrap_or(&none);
                let result = (role == "tool").then(|| text(&message["tool_call_id"]));
                (calls.iter().map(|c| text(&c["id"])).collect(), result.into_iter().collect())
            }
        };
        for id in &results {
            let at = open.iter().position(|o| o == id).ok_or("a result without its call")?;
            open.remove(at);
        }
        if !open.is_empty() && role != "tool" {
            return Err("a call without its result".to_owned());
        }
        if role == last_role && role != "tool" {
            return Err(format!("two messages of {role} in a row"));
        }
        if !calls.is_empty() {
            open = calls;
        }
        last_role = role;
    }
    if open.is_empty() && last_role != "assistant" {
        Ok(())
    } else {
        Err("it ends unfinished".to_owned())
    }
}

pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nca-{}-{number}", std::process::id()));
        std::fs::create_dir_all(path.join("work")).unwrap();
        std::fs::create_dir_all(path.join("home")).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    pub(crate) fn conversation(&self) -> PathBuf {
        self.0.join("home/.nanoclaw/conversation.jsonl")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The agent as a process, not yet spoken to.
pub(crate) fn spawn(dir: &TempDir, api: Api, more: &[(&str, &str)]) -> Child {
    spawn_program("agent", dir, api, more)
}

/// One of the examples: a role as a program of its own.
pub(crate) fn spawn_program(name: &str, dir: &TempDir, api: Api, more: &[(&str, &str)]) -> Child {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "build it first: cargo build -p nanoclaw-agent --examples");
    Command::new(program)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", dir.path().join("home"))
        .env("NANOCLAW_DOOR", dir.path().join("door.sock"))
        .env("NANOCLAW_MODEL", "test-model")
        .env("NANOCLAW_MODEL_API", if api == Api::Anthropic { "anthropic" } else { "openai" })
        .env("NANOCLAW_PLACEHOLDER", "placeholder-not-a-key")
        .envs(more.iter().copied())
        .current_dir(dir.work())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

pub(crate) fn pipes(child: &mut Child) -> (ChildStdout, ChildStdin) {
    (child.stdout.take().unwrap(), child.stdin.take().unwrap())
}

/// The agent and the client that drives it.
pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) client: AcpClient,
    pub(crate) info: AgentInfo,
    pub(crate) session: String,
}

impl Agent {
    pub(crate) fn start(dir: &TempDir, api: Api, more: &[(&str, &str)], resume: bool) -> Self {
        let mut child = spawn(dir, api, more);
        let (out, input) = pipes(&mut child);
        let mut client = AcpClient::start(out, input).unwrap();
        let info = client.initialize().unwrap();
        let session = client.new_session(&dir.work(), resume).unwrap();
        Self { child, client, info, session }
    }

    /// One turn; all updates come back with it.
    pub(crate) fn turn(&mut self, text: &str) -> (Result<PromptResult, PromptError>, Vec<Update>) {
        let mut updates = Vec::new();
        let result = self.client.prompt(text, &mut |update| updates.push(update));
        (result, updates)
    }

    /// One turn that must succeed; its text.
    pub(crate) fn ask(&mut self, text: &str) -> String {
        let (result, updates) = self.turn(text);
        result.unwrap_or_else(|e| panic!("{text}: {e}"));
        said(&updates)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn said(updates: &[Update]) -> String {
    let texts = updates.iter().filter_map(|u| match u {
        Update::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Waits until `done` holds, for at most five seconds.
pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether any process of that group is alive (zombies do not count).
pub(crate) fn group_lives(group: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        fields.get(2) == Some(&group) && fields.first() != Some(&"Z")
    })
}
