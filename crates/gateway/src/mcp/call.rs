//! Lists and calls: what is granted, on record before and after, bounded.

use super::door::{self, Hidden};
use super::fetch;
use super::link::McpError;
use super::pins::Described;
use super::rpc::{Fault, INTERNAL_ERROR, INVALID_PARAMS, Params};
use super::upstream::Upstream;
use crate::authority::quoted;
use crate::counters::Counters;
use crate::door::DoorState;
use crate::mask::Masker;
use crate::memory::Held;
use crate::modelapi::outcome::sha256_hex;
use crate::scribe::Scribe;
use model::{Body, Durability, MAX_BESIDE_BYTES, MAX_INLINE_BYTES, ToolGrant, TurnId};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest arguments of one call.
pub(crate) const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;
/// Largest result of one call, as JSON; what is longer is cut, with a mark.
const RESULT_BYTES_MAX: usize = 1 << 20;
/// What stands where a result was cut.
const CUT: &str = "\n[cut here: the result was longer than a call may return]";
/// One call from its start to its result.
const CALL_TIME: Duration = Duration::from_secs(120);
/// Waiting for a place among the calls at work.
const QUEUE_TIME: Duration = Duration::from_secs(60);

/// A call on record; its end is written when this is dropped, however it came about.
struct Running {
    scribe: Arc<Scribe>,
    turn: Option<TurnId>,
    call: String,
    server: String,
    tool: String,
    started: Instant,
    result: Vec<u8>,
    error: Option<String>,
}

impl Running {
    /// Writes the intent, and waits until it is durable. A secret that will be used is named too.
    async fn begin(
        door: &DoorState,
        grant: &ToolGrant,
        arguments: &[u8],
        shown: &str,
    ) -> Result<Self, McpError> {
        let scribe = Arc::clone(&door.scribe);
        let call = format!("host-{:x}-{}", (scribe.clock)(), door.tools.next_call());
        let (server, tool) = (grant.server.clone(), grant.tool.clone());
        let upstream = door.tools.server(&server);
        if let Some((upstream, secret)) = upstream.and_then(|u| Some((u, u.secret()?))) {
            let used = Body::SecretUsed { secret: secret.to_owned(), host: upstream.place() };
            scribe.note(scribe.turn.get(), used);
        }
        let inline = &shown[..shown.floor_char_boundary(MAX_BESIDE_BYTES)];
        let intent = Body::HostToolCalled {
            call: call.clone(),
            server: server.clone(),
            tool: tool.clone(),
            arguments: inline.to_owned(),
            arguments_sha256: sha256_hex(arguments),
        };
        scribe.write(intent, Durability::Durable).await?;
        let (turn, started) = (scribe.turn.get(), Instant::now());
        let error = Some("the agent went away before there was a result".to_owned());
        Ok(Self { scribe, turn, call, server, tool, started, result: Vec::new(), error })
    }

    fn ended(&mut self, result: &[u8], error: Option<String>) {
        self.result = result.to_vec();
        self.error = error.map(|why| why.chars().take(MAX_INLINE_BYTES / 4).collect());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let bytes = self.result.len() as u64;
        Counters::add(&self.scribe.counters.bytes_down, bytes);
        let body = Body::HostToolFinished {
            call: std::mem::take(&mut self.call),
            server: std::mem::take(&mut self.server),
            tool: std::mem::take(&mut self.tool),
            ok: self.error.is_none(),
            bytes,
            sha256: sha256_hex(&self.result),
            duration_ms: self.started.elapsed().as_millis() as u64,
            error: self.error.take(),
        };
        self.scribe.note(self.turn.take(), body);
    }
}

/// Everything the agent may call now, as it is shown. What is granted and not shown is on record,
/// once for each reason.
pub(crate) async fn list(door: &DoorState) -> Vec<Value> {
    let mut all = door.tools.own();
    for upstream in door.tools.servers() {
        let name = &upstream.server.name;
        let tools = match tools_of(door, upstream).await {
            Ok(tools) => tools,
            Err(e) => {
                hidden(door, name, "*", format!("its tools cannot be listed: {e}")).await;
                continue;
            }
        };
        for grant in door.tools.grants_of(name) {
            match door::offered(grant, &tools) {
                Ok(shown) => all.push(shown),
                Err(why) => hidden(door, name, &grant.tool, why.why(name)).await,
            }
        }
    }
    all
}

async fn hidden(door: &DoorState, server: &str, tool: &str, why: String) {
    if door.tools.first_time(format!("{server}/{tool}: {why}")) {
        door.scribe.refused(format!("tool {server}/{tool}"), "tools", why).await;
    }
}

/// A server's tools: as known, or asked for, on record like any call.
async fn tools_of(door: &DoorState, upstream: &Upstream) -> Result<Arc<Vec<Described>>, McpError> {
    if let Some(known) = upstream.known().await {
        return Ok(known);
    }
    let server = upstream.server.name.clone();
    let asking = ToolGrant { server, tool: "tools/list".into(), pin: None };
    let mut running = Running::begin(door, &asking, b"", "").await?;
    let listed = upstream.list().await;
    match &listed {
        Ok(tools) => {
            let shown: Vec<&Value> = tools.iter().map(|tool| &tool.shown).collect();
            running.ended(json!(shown).to_string().as_bytes(), None);
        }
        Err(e) => running.ended(b"", Some(e.to_string())),
    }
    listed
}

/// Calls a tool, if it is granted.
///
/// # Errors
/// For calls that are none, and for tools that are not granted or not approved; what a tool itself
/// refuses is a result with `isError`, for the model to read.
pub(crate) async fn call(
    door: &Arc<DoorState>,
    params: &Params,
    held: &mut Held,
) -> Result<Value, Fault> {
    let bad = |why: &str| Fault::new(INVALID_PARAMS, why);
    let name = params.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| bad("the tool's name is missing"))?;
    let none = serde_json::Map::new();
    let arguments = match params.get("arguments") {
        None | Some(Value::Null) => &none,
        Some(Value::Object(map)) => map,
        Some(_) => return Err(bad("arguments must be an object")),
    };
    let Some(grant) = door.tools.grant(name) else {
        let why = "it is not among the tools that the agent file allows";
        let name = quoted(name);
        door.scribe.refused(format!("tool {name}"), "tools", why.into()).await;
        return Err(bad(&format!("unknown tool: {name}: {why}")));
    };
    let text = serde_json::to_string(arguments).map_err(|_| bad("arguments must be JSON"))?;
    if text.len() > ARGUMENTS_BYTES_MAX {
        return Err(bad("the arguments are longer than 256 KiB; put less into one call"));
    }
    let slot = tokio::time::timeout(QUEUE_TIME, door.tools.slots.acquire()).await;
    let Ok(Ok(_slot)) = slot else {
        let why = "too many calls of this session are at work; try again later";
        return Err(Fault::new(INTERNAL_ERROR, why));
    };
    let done = if grant.server == ToolGrant::OWN {
        own(door, grant, arguments, &text).await
    } else {
        passed_on(door, grant, arguments, &text, held).await
    };
    done.map_err(|e| match e {
        Stop::Fault(fault) => fault,
        Stop::Unrecorded(why) => Fault::new(INTERNAL_ERROR, why),
    })
}

/// Why a call has no result at all.
enum Stop {
    Fault(Fault),
    Unrecorded(String),
}

impl From<McpError> for Stop {
    fn from(error: McpError) -> Self {
        Self::Unrecorded(error.to_string())
    }
}

async fn own(
    door: &Arc<DoorState>,
    grant: &ToolGrant,
    map: &Params,
    text: &str,
) -> Result<Value, Stop> {
    let arguments = match fetch::arguments(map) {
        Ok(arguments) if grant.tool == fetch::NAME => arguments,
        Ok(_) => return Ok(failed("there is no such tool in this version")),
        Err(why) => return Ok(failed(&why)),
    };
    // Values of a query may be secrets of the agent's making; records keep none.
    let shown = json!({"url": quoted(&arguments.url)}).to_string();
    let Some(mark) = mark() else {
        return Ok(failed("nothing was fetched: there is no randomness for the mark"));
    };
    let mut running = Running::begin(door, grant, text.as_bytes(), &shown).await?;
    let work = fetch::run(door, &arguments, &mark);
    let done = tokio::time::timeout(CALL_TIME, work).await;
    Ok(match done.unwrap_or_else(|_| Err(McpError::Slow(CALL_TIME).to_string())) {
        Ok(page) => {
            running.ended(page.as_bytes(), None);
            json!({"content": [{"type": "text", "text": page}], "isError": false})
        }
        Err(why) => {
            running.ended(b"", Some(why.clone()));
            failed(&why)
        }
    })
}

async fn passed_on(
    door: &Arc<DoorState>,
    grant: &ToolGrant,
    map: &Params,
    text: &str,
    held: &mut Held,
) -> Result<Value, Stop> {
    let name = &grant.server;
    let refused = |why: String| async move {
        let target = format!("tool {name}/{}", grant.tool);
        door.scribe.refused(target, "tools", why.clone()).await;
        Stop::Fault(Fault::new(INVALID_PARAMS, format!("{}: {why}", grant.offered_name())))
    };
    let Some(upstream) = door.tools.server(name) else {
        return Err(refused(McpError::Unknown(name.clone()).to_string()).await);
    };
    if grant.pin.is_none() {
        return Err(refused(Hidden::Unapproved.why(name)).await);
    }
    let tools = match tools_of(door, upstream).await {
        Ok(tools) => tools,
        Err(e @ McpError::Unrecorded(_)) => return Err(e.into()),
        Err(e) => return Ok(failed(&format!("the server {name} is of no use now: {e}"))),
    };
    if let Err(why) = door::offered(grant, &tools) {
        return Err(refused(why.why(name)).await);
    }
    let mut running = Running::begin(door, grant, text.as_bytes(), text).await?;
    let params = json!({"name": grant.tool, "arguments": map});
    let done = upstream.call(&params, CALL_TIME).await;
    let mut masker = door.veil.masker();
    Ok(match done {
        Ok((mut result, charge)) => {
            masked(&mut result, &mut masker);
            // It is held until the agent has it.
            held.absorb(charge);
            let result = bounded(&result);
            let said = result["isError"] == Value::Bool(true);
            let error = said.then(|| "the tool reported an error".to_owned());
            running.ended(result.to_string().as_bytes(), error);
            result
        }
        Err(e) => {
            let why = masked_text(&e.to_string(), &mut masker);
            running.ended(b"", Some(why.clone()));
            failed(&format!("the server {name} did not do it: {why}"))
        }
    })
}

/// Masks the session's secrets in a result, in texts, names and numbers: as JSON they may have been
/// escaped in any way, and a program's answers come past no other mask.
fn masked(value: &mut Value, masker: &mut Masker) {
    match value {
        _ if masker.is_idle() => {}
        Value::String(text) => *text = masked_text(text, masker),
        Value::Number(number) => {
            if let Some(text) = masker.number(number) {
                *value = Value::String(text);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| masked(inner, masker)),
        Value::Object(map) => {
            for (name, mut inner) in std::mem::take(map) {
                masked(&mut inner, masker);
                map.insert(masked_text(&name, masker), inner);
            }
        }
        _ => {}
    }
}

fn masked_text(text: &str, masker: &mut Masker) -> String {
    String::from_utf8_lossy(&masker.whole(text.as_bytes())).into_owned()
}

/// A result that tells the model what went wrong.
fn failed(why: &str) -> Value {
    json!({"content": [{"type": "text", "text": why}], "isError": true})
}

/// A mark that no page can guess; `None` without randomness, for a mark that can be guessed is a
/// wall a page walks through.
fn mark() -> Option<String> {
    let mut bytes = [0_u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A server's result with the parts agents know, within the largest size.
fn bounded(result: &Value) -> Value {
    let size = |value: &Value| value.to_string().len();
    let (mut left, mut cut) = (RESULT_BYTES_MAX - 1_024, false);
    let mut content = Vec::new();
    for item in result.get("content").and_then(Value::as_array).into_iter().flatten() {
        let bytes = size(item) + 1;
        if bytes <= left {
            left -= bytes;
            content.push(item.clone());
            continue;
        }
        cut = true;
        if let Some(text) = item.get("text").and_then(Value::as_str) {
            // Escapes make a text longer on the wire: at most six bytes for one.
            let mut kept = left.saturating_sub(64);
            while size(&json!(&text[..text.floor_char_boundary(kept)])) + 64 > left && kept > 0 {
                kept /= 2;
            }
            content.push(json!({"type": "text", "text": &text[..text.floor_char_boundary(kept)]}));
        }
        break;
    }
    let mut out = json!({"isError": result.get("isError") == Some(&Value::Bool(true))});
    match result.get("structuredContent") {
        Some(structured) if !cut && size(structured) <= left => {
            out["structuredContent"] = structured.clone();
        }
        Some(_) => cut = true,
        None => {}
    }
    if cut {
        content.push(json!({"type": "text", "text": CUT}));
    }
    out["content"] = Value::Array(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_in_every_text_and_name_of_a_result() {
        let text = r#"{"content":[{"type":"text","text":"a \u0074est-key-not-rea\u006c b"}],
            "structuredContent":{"test-key-not-real":[{"x":"test-key-not-real"},7,null]}}"#;
        let mut result: Value = serde_json::from_str(text).expect("JSON");
        masked(&mut result, &mut Masker::new(Some(b"test-key-not-real")));
        assert_eq!(result["content"][0]["text"], "a [secret masked] b");
        let inner = &result["structuredContent"]["[secret masked]"];
        assert_eq!(*inner, json!([{"x": "[secret masked]"}, 7, null]));
    }

    #[test]
    fn a_secret_of_digits_is_masked_where_it_is_a_number() {
        let mut result = json!({"content": [{"pin": 7_654_321, "n": 765}], "x": [-7_654_321]});
        masked(&mut result, &mut Masker::new(Some(b"7654321")));
        let expected = json!({"content": [{"pin": "[secret masked]", "n": 765}],
            "x": ["-[secret masked]"]});
        assert_eq!(result, expected);
    }

    #[test]
    fn results_are_bounded_whatever_they_are_made_of() {
        let text = |n: usize| json!({"type": "text", "text": "\u{1}".repeat(n)});
        for result in [
            json!({"content": [text(300_000)]}),
            json!({"content": [text(10), {"type": "image", "data": "A".repeat(2 << 20)}]}),
            json!({"content": [text(10)], "structuredContent": {"a": "b".repeat(2 << 20)}}),
            json!({"content": (0..200_000).map(|_| text(1)).collect::<Vec<_>>()}),
            json!({"content": [{"type": "text", "text": "é".repeat(1 << 20)}], "_meta": {}}),
        ] {
            let out = bounded(&result);
            assert!(out.to_string().len() <= RESULT_BYTES_MAX, "{}", out.to_string().len());
            let last = out["content"].as_array().and_then(|c| c.last()).cloned();
            assert_eq!(last.map(|item| item["text"].clone()), Some(json!(CUT)));
            assert!(out.get("_meta").is_none());
        }
        let small = json!({"content": [text(3)], "isError": true, "structuredContent": {"a": 1}});
        assert_eq!(bounded(&small), small);
        for odd in [json!({}), json!({"content": 7, "isError": "yes"})] {
            assert_eq!(bounded(&odd), json!({"content": [], "isError": false}));
        }
    }
}
