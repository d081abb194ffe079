//! The role `nanoclaw __mcp`: a stdio server of tools whose every message goes to the door.
//!
//! ```text
//! agent ─► stdin ─► line (bounded) ─► POST /mcp ─► door        one thread a request
//! agent ◄─ stdout ◄─ line ◄────────── answer ◄──── door
//! ```
//!
//! Invariants:
//! 1. Every request gets exactly one answer, unless the agent cancelled it or went away.
//! 2. The reading thread never waits for the door, so a cancel is always heard.
//! 3. Lines, answers and requests at once are bounded.
//!
//! Source: MCP 2025-11-25 and 2026-07-28, stdio transport and cancellation.

use super::{ACCEPT, PATH};
use crate::cancel::Cancel;
use crate::config;
use crate::rpc::{self, Frame, Incoming};
use crate::wire::http::{self, Door};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the role is called.
pub const MCP_ROLE: &str = "__mcp";

/// Longest line taken; the door takes no longer message.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Largest answer of the door: a result of the largest size, escaped, and its frame.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Requests at once; the door works on fewer.
const REQUESTS_MAX: usize = 32;
/// After stdin ended, answers on their way are waited for so long.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(2);

/// The role `nanoclaw __mcp`: serves the host's tools on stdin and stdout until stdin ends. The
/// door is found by `NANOCLAW_DOOR_PORT`, else by `NANOCLAW_DOOR`, else at its usual place.
///
/// Exit codes: 0 when stdin ended, 1 when the streams failed, 2 when a setting is wrong.
#[must_use]
pub fn mcp_main() -> ExitCode {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let door = match set("NANOCLAW_DOOR_PORT").map(|port| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Door::Port(port),
        Some(_) => {
            let why = "NANOCLAW_DOOR_PORT is not a port; leave it as the sandbox sets it";
            let _ = writeln!(io::stderr(), "nanoclaw mcp: {why}");
            return ExitCode::from(2);
        }
        None => Door::Socket(config::socket(set("NANOCLAW_DOOR"))),
    };
    match serve(door, io::stdin().lock(), io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "nanoclaw mcp: its streams failed: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What the threads share.
struct Shared {
    door: Door,
    out: Mutex<Box<dyn Write + Send>>,
    /// Requests on their way, by their id as JSON.
    running: Mutex<HashMap<String, Cancel>>,
    done: Condvar,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut out = lock(&self.out);
        out.write_all(frame)?;
        out.flush()
    }

    fn refuse(&self, id: &Value, code: i64, why: &str) -> io::Result<()> {
        self.send(&rpc::error(id, code, why, None))
    }
}

fn serve(door: Door, mut input: impl BufRead, out: impl Write + Send + 'static) -> io::Result<()> {
    let shared = Arc::new(Shared {
        door,
        out: Mutex::new(Box::new(out)),
        running: Mutex::default(),
        done: Condvar::new(),
    });
    let result = read_all(&shared, &mut input);
    let deadline = Instant::now() + LAST_ANSWERS_TIME;
    let mut running = lock(&shared.running);
    while !running.is_empty() && result.is_ok() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let waited = shared.done.wait_timeout(running, left);
        running = waited.map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
    }
    // Taken out, so that their threads find that nobody waits.
    running.drain().for_each(|(_, cancel)| cancel.cancel());
    result
}

fn read_all(shared: &Arc<Shared>, input: &mut impl BufRead) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        match rpc::read_frame(input, LINE_BYTES_MAX, &mut line)? {
            Frame::End => return Ok(()),
            Frame::TooLong => {
                rpc::skip_line(input)?;
                shared.refuse(&Value::Null, rpc::INVALID_REQUEST, "the line is too long")?;
            }
            Frame::Line if line.trim_ascii().is_empty() => {}
            Frame::Line => take(shared, &line)?,
        }
        line.shrink_to(16 << 10);
    }
}

fn take(shared: &Arc<Shared>, line: &[u8]) -> io::Result<()> {
    match rpc::parse(line) {
        Err(fault) => shared.refuse(&fault.id, fault.code, fault.message),
        // The door remembers nothing between requests, so no other notice means anything to it.
        Ok(Incoming::Notification { method, params }) if method == "notifications/cancelled" => {
            if let Some(id) = params.get("requestId") {
                // Taken out, so that its thread finds that nobody waits.
                if let Some(cancel) = lock(&shared.running).remove(&id.to_string()) {
                    cancel.cancel();
                }
            }
            Ok(())
        }
        Ok(Incoming::Notification { .. } | Incoming::Response { .. }) => Ok(()),
        Ok(Incoming::Request { id, method, params }) => start(shared, id, &method, params),
    }
}

fn start(shared: &Arc<Shared>, id: Value, method: &str, params: Value) -> io::Result<()> {
    let Some(fields) = super::mirrored(method, &params) else {
        return shared.refuse(&id, rpc::INVALID_PARAMS, "there is no tool of that name");
    };
    let cancel = Cancel::default();
    let key = id.to_string();
    {
        let mut running = lock(&shared.running);
        let refused = if running.contains_key(&key) {
            Some("a request with this id is on its way")
        } else if running.len() >= REQUESTS_MAX {
            Some("too many requests at once; wait for answers")
        } else {
            running.insert(key.clone(), cancel.clone());
            None
        };
        drop(running);
        if let Some(why) = refused {
            return shared.refuse(&id, rpc::INVALID_REQUEST, why);
        }
    }
    // What had no parameters gets none: the door takes an object or nothing.
    let mut message = json!({"jsonrpc": "2.0", "id": id, "method": method});
    if !params.is_null() {
        message["params"] = params;
    }
    let theirs = Arc::clone(shared);
    let (their_id, their_key) = (id.clone(), key.clone());
    let work = move || {
        let frame = ask(&theirs.door, &fields, &message, &their_id, &cancel);
        let waited_for = lock(&theirs.running).contains_key(&their_key);
        // A stdout that fails shows at the reading thread too: the agent is gone.
        if waited_for {
            let _ = theirs.send(&frame);
        }
        lock(&theirs.running).remove(&their_key);
        theirs.done.notify_all();
    };
    match std::thread::Builder::new().name("request".to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(e) => {
            lock(&shared.running).remove(&key);
            shared.refuse(&id, rpc::INTERNAL_ERROR, &format!("no thread for the request: {e}"))
        }
    }
}

/// Sends one request to the door; its answer as a line, with the request's own id.
fn ask(
    door: &Door,
    fields: &[(&'static str, String)],
    message: &Value,
    id: &Value,
    cancel: &Cancel,
) -> Vec<u8> {
    let mut headers: Vec<(&str, &str)> = vec![ACCEPT];
    headers.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
    let body = message.to_string().into_bytes();
    let failed = |why: String| rpc::error(id, rpc::INTERNAL_ERROR, &why, None);
    let mut response = match http::post(door, PATH, &headers, &body, cancel) {
        Ok(response) => response,
        Err(e) => return failed(format!("the host's tools cannot be reached: {e}")),
    };
    let bytes = match response.body.read_all(ANSWER_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) => return failed(format!("the host's answer is not whole: {e}")),
    };
    match rpc::parse(bytes.trim_ascii()) {
        Ok(Incoming::Response { result: Ok(result), .. }) => rpc::answer(id, &result),
        Ok(Incoming::Response { result: Err(error), .. }) => {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(rpc::INTERNAL_ERROR);
            let words = error.get("message").and_then(Value::as_str).unwrap_or("refused");
            rpc::error(id, code, words, error.get("data").cloned())
        }
        _ => failed(format!("the door answered with status {}", response.head.status)),
    }
}
