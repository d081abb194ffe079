//! Sessions as OpenTelemetry traces, in OTLP/JSON lines, by the semantic conventions for GenAI.
//!
//! ```text
//! session: a trace, and its root span
//!   └─ turn: invoke_agent ─┬─ chat MODEL          model_request … model_response
//!                          ├─ execute_tool TOOL   tool_called … tool_finished, host_tool_…
//!                          ├─ METHOD HOST         egress_intent … egress_result
//!                          └─ events              everything else that happened in the turn
//! ```
//!
//! 1. A file holds one sort of telemetry (OTLP file exporter): what is no span is an event of one.
//! 2. Ids follow from the records: the same log gives the same traces, whatever part is exported.
//! 3. A request and its result belong together by their order, for records have no number of their
//!    pair; a span whose end is not there says so (`nanoclaw.unfinished`).
//! 4. It is telemetry, not evidence. No text of a person, an agent or a tool is in it.

use super::line;
use crate::merkle::sha256;
use crate::payload::hex;
use crate::read::Stored;
use model::{Body, Record};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

/// Spans in a line.
const SPANS_PER_LINE: usize = 64;
/// Events kept of one span; more are counted.
const EVENTS_MAX: usize = 1_024;
/// Kinds of spans (OTLP `Span.SpanKind`).
const INTERNAL: u64 = 1;
const CLIENT: u64 = 3;
/// `Status.code` of an error.
const ERROR: u64 = 2;

/// A span under way.
#[derive(Debug, Clone)]
struct Span {
    name: String,
    kind: u64,
    trace: String,
    id: String,
    parent: Option<String>,
    start_ms: u64,
    last_ms: u64,
    attributes: Vec<Value>,
    events: Vec<Value>,
    dropped: u64,
}

impl Span {
    fn end(mut self, error: Option<&str>, finished: bool) -> Value {
        if let Some(error) = error {
            self.attributes.push(text("error.type", error));
        }
        if !finished {
            self.attributes.push(flag("nanoclaw.unfinished", true));
        }
        let mut span = json!({"traceId": self.trace, "spanId": self.id, "name": self.name,
            "kind": self.kind, "startTimeUnixNano": nanos(self.start_ms),
            "endTimeUnixNano": nanos(self.last_ms), "attributes": self.attributes,
            "status": if error.is_some() { json!({"code": ERROR}) } else { json!({}) }});
        if let Some(parent) = self.parent {
            span["parentSpanId"] = parent.into();
        }
        if !self.events.is_empty() {
            span["events"] = self.events.into();
            span["droppedEventsCount"] = self.dropped.into();
        }
        span
    }

    fn event(&mut self, stored: &Stored, record: &Record) {
        if self.events.len() >= EVENTS_MAX {
            self.dropped += 1;
            return;
        }
        let mut attributes = vec![number("nanoclaw.log.index", stored.index)];
        attributes.extend(of_event(&record.body));
        self.events.push(json!({"timeUnixNano": nanos(record.time_ms),
            "name": format!("nanoclaw.{}", record.body.kind()), "attributes": attributes}));
    }
}

fn nanos(ms: u64) -> String {
    // As text: JSON's numbers end at 2^53.
    format!("{}", u128::from(ms) * 1_000_000)
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn flag(key: &str, value: bool) -> Value {
    json!({"key": key, "value": {"boolValue": value}})
}

/// First bytes of a digest, in hex; never zeros alone.
fn id(sort: &str, of: &str, bytes: usize) -> String {
    hex(&sha256(format!("{sort} {of}").as_bytes())[..bytes])
}

/// What an event of a span says; no word of anybody's.
fn of_event(body: &Body) -> Vec<Value> {
    match body {
        Body::EgressRefused { target, rule, reason, .. } => {
            vec![
                text("server.address", target),
                text("nanoclaw.rule", rule),
                text("error.type", reason),
            ]
        }
        Body::ConnectRefused { target, errno, .. } => {
            vec![text("server.address", target), text("error.type", errno)]
        }
        Body::SecretUsed { secret, host } => {
            vec![text("nanoclaw.secret", secret), text("server.address", host)]
        }
        Body::ProcessExec { pid, path, .. } => {
            vec![number("process.pid", u64::from(*pid)), text("process.executable.path", path)]
        }
        Body::ApprovalDecided { decision, .. } => vec![text("nanoclaw.decision", decision)],
        Body::Message { message, digest, .. } => {
            let message = text("gen_ai.message.id", message.as_str());
            vec![message, number("gen_ai.message.bytes", digest.bytes)]
        }
        _ => Vec::new(),
    }
}

/// The conventions' name of a provider, by the wire format that was spoken.
fn provider(api: &str) -> &str {
    match api {
        "anthropic" => "anthropic",
        "gemini" => "gcp.gemini",
        "responses" => "openai",
        other if other.starts_with("openai") => "openai",
        other => other,
    }
}

/// An export under way.
#[derive(Debug, Default)]
pub struct Otlp {
    origin: String,
    /// Sessions and turns, by their ids.
    frames: BTreeMap<String, Span>,
    /// Calls without an answer, by what they have in common with it.
    calls: BTreeMap<String, VecDeque<Span>>,
    ended: Vec<Value>,
}

impl Otlp {
    /// An export of the log `origin`.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), ..Self::default() }
    }

    /// Takes a record, and gives a line when there are enough spans for one.
    pub fn push(&mut self, stored: &Stored) -> Option<String> {
        let Ok(record) = &stored.record else { return None };
        self.take(stored, record);
        (self.ended.len() >= SPANS_PER_LINE).then(|| self.lines())
    }

    /// The last line, with everything that has no end.
    #[must_use]
    pub fn finish(mut self) -> Option<String> {
        let open = std::mem::take(&mut self.calls).into_values().flatten();
        let open = open.chain(std::mem::take(&mut self.frames).into_values());
        self.ended.extend(open.map(|span| span.end(None, false)));
        (!self.ended.is_empty()).then(|| self.lines())
    }

    fn lines(&mut self) -> String {
        let spans = std::mem::take(&mut self.ended);
        let resource = [text("service.name", "nanoclaw"), text("nanoclaw.log", &self.origin)];
        line(&json!({"resourceSpans": [{"resource": {"attributes": resource},
            "scopeSpans": [{"scope": {"name": "nanoclaw.audit",
                "version": env!("CARGO_PKG_VERSION")}, "spans": spans}]}]}))
    }

    fn take(&mut self, stored: &Stored, record: &Record) {
        match &record.body {
            Body::SessionOpened { .. } => self.open_session(stored, record),
            Body::TurnStarted { .. } => self.open_turn(stored, record),
            Body::SessionClosed { .. } => {
                self.close(record, record.session.as_ref().map(|s| s.as_str()), None)
            }
            Body::TurnFinished { outcome, .. } => {
                let error = (outcome != "done").then_some(outcome.as_str());
                self.close(record, record.turn.as_ref().map(|t| t.as_str()), error);
            }
            Body::ModelRequest { .. }
            | Body::ToolCalled { .. }
            | Body::HostToolCalled { .. }
            | Body::EgressIntent { .. } => self.open_call(stored, record),
            Body::ModelResponse { error, .. } => self.close_call(stored, record, error.as_deref()),
            Body::ToolFinished { ok, .. } => {
                self.close_call(stored, record, (!ok).then_some("tool_error"));
            }
            Body::HostToolFinished { ok, error, .. } => {
                let failed = (!ok).then(|| error.as_deref().unwrap_or("tool_error"));
                self.close_call(stored, record, failed);
            }
            Body::EgressResult { error, .. } => self.close_call(stored, record, error.as_deref()),
            _ => self.event(stored, record),
        }
    }

    /// The span that a record belongs below: its turn's, else its session's.
    fn frame(&mut self, record: &Record) -> Option<&mut Span> {
        let turn = record.turn.as_ref().map(|t| t.as_str());
        let session = record.session.as_ref().map(|s| s.as_str());
        let key = turn.filter(|t| self.frames.contains_key(*t)).or(session)?;
        self.frames.get_mut(key)
    }

    fn event(&mut self, stored: &Stored, record: &Record) {
        if let Some(frame) = self.frame(record) {
            frame.last_ms = frame.last_ms.max(record.time_ms);
            frame.event(stored, record);
            return;
        }
        // Of no session that is open: a span of its own.
        let mut span = self.span(stored, record, story_name(record), INTERNAL);
        span.attributes.extend(of_event(&record.body));
        self.ended.push(span.end(None, true));
    }

    fn span(&self, stored: &Stored, record: &Record, name: String, kind: u64) -> Span {
        let session = record.session.as_ref().map(|s| s.as_str());
        let own = format!("{} {}", self.origin, stored.index);
        let trace = id("trace", session.unwrap_or(&own), 16);
        let parent = match (&record.turn, session) {
            (Some(turn), _) => Some(id("turn", turn.as_str(), 8)),
            (None, Some(session)) => Some(id("session", session, 8)),
            (None, None) => None,
        };
        let mut attributes = vec![number("nanoclaw.log.index", stored.index)];
        attributes.extend(session.map(|s| text("gen_ai.conversation.id", s)));
        if let Some(agent) = &record.agent {
            attributes.push(text("gen_ai.agent.id", agent.as_str()));
            attributes.push(text("gen_ai.agent.name", agent.as_str()));
        }
        let (start_ms, last_ms) = (record.time_ms, record.time_ms);
        let (id, events) = (id("record", &own, 8), Vec::new());
        Span { name, kind, trace, id, parent, start_ms, last_ms, attributes, events, dropped: 0 }
    }

    fn open_session(&mut self, stored: &Stored, record: &Record) {
        let Some(session) = &record.session else { return };
        let mut span = self.span(stored, record, "nanoclaw.session".into(), INTERNAL);
        (span.id, span.parent) = (id("session", session.as_str(), 8), None);
        if let Some(old) = self.frames.insert(session.as_str().to_owned(), span) {
            self.ended.push(old.end(None, false));
        }
    }

    fn open_turn(&mut self, stored: &Stored, record: &Record) {
        let Some(turn) = &record.turn else { return };
        let agent = record.agent.as_ref().map_or("agent", |a| a.as_str());
        let mut span = self.span(stored, record, format!("invoke_agent {agent}"), INTERNAL);
        span.id = id("turn", turn.as_str(), 8);
        span.parent = record.session.as_ref().map(|s| id("session", s.as_str(), 8));
        span.attributes.push(text("gen_ai.operation.name", "invoke_agent"));
        if let Some(old) = self.frames.insert(turn.as_str().to_owned(), span) {
            self.ended.push(old.end(None, false));
        }
    }

    fn close(&mut self, record: &Record, key: Option<&str>, error: Option<&str>) {
        if let Some(mut span) = key.and_then(|key| self.frames.remove(key)) {
            span.last_ms = span.last_ms.max(record.time_ms);
            self.ended.push(span.end(error, true));
        }
    }

    fn open_call(&mut self, stored: &Stored, record: &Record) {
        let (name, kind, more) = call(&record.body);
        let mut span = self.span(stored, record, name, kind);
        span.attributes.extend(more);
        self.calls.entry(pair(record)).or_default().push_back(span);
    }

    fn close_call(&mut self, stored: &Stored, record: &Record, error: Option<&str>) {
        let key = pair(record);
        let Some(mut span) = self.calls.get_mut(&key).and_then(VecDeque::pop_front) else {
            self.event(stored, record);
            return;
        };
        if self.calls.get(&key).is_some_and(VecDeque::is_empty) {
            self.calls.remove(&key);
        }
        span.last_ms = span.last_ms.max(record.time_ms);
        span.attributes.extend(answered(&record.body));
        self.ended.push(span.end(error, true));
    }
}

fn story_name(record: &Record) -> String {
    format!("nanoclaw.{}", record.body.kind())
}

/// What a call and its answer have in common.
fn pair(record: &Record) -> String {
    let session = record.session.as_ref().map_or("", |s| s.as_str());
    match &record.body {
        Body::ModelRequest { model, .. } | Body::ModelResponse { model, .. } => {
            format!("model {session} {model}")
        }
        Body::ToolCalled { call, .. } | Body::ToolFinished { call, .. } => {
            format!("tool {session} {call}")
        }
        Body::HostToolCalled { call, .. } | Body::HostToolFinished { call, .. } => {
            format!("host {session} {call}")
        }
        Body::EgressIntent { host, port, .. } | Body::EgressResult { host, port, .. } => {
            format!("egress {session} {host} {port}")
        }
        _ => String::new(),
    }
}

/// Name, kind and attributes of a call's span.
fn call(body: &Body) -> (String, u64, Vec<Value>) {
    match body {
        Body::ModelRequest { model, api, host, .. } => {
            let attributes = vec![
                text("gen_ai.operation.name", "chat"),
                text("gen_ai.provider.name", provider(api)),
                text("gen_ai.request.model", model),
                text("server.address", host),
            ];
            (format!("chat {model}"), CLIENT, attributes)
        }
        Body::ToolCalled { call, tool, .. } | Body::HostToolCalled { call, tool, .. } => {
            let sort = match body {
                // Carried out by the host, behind the gateway, for the agent.
                Body::HostToolCalled { .. } => "extension",
                _ => "function",
            };
            let attributes = vec![
                text("gen_ai.operation.name", "execute_tool"),
                text("gen_ai.tool.name", tool),
                text("gen_ai.tool.call.id", call),
                text("gen_ai.tool.type", sort),
            ];
            (format!("execute_tool {tool}"), INTERNAL, attributes)
        }
        Body::EgressIntent { host, port, rule, request, .. } => {
            let mut attributes = vec![
                text("server.address", host),
                number("server.port", u64::from(*port)),
                text("nanoclaw.rule", rule),
            ];
            let method = request.as_ref().map_or("CONNECT", |r| r.method.as_str());
            attributes.push(text("http.request.method", method));
            attributes.extend(request.as_ref().map(|r| text("url.path", &r.path)));
            (format!("{method} {host}"), CLIENT, attributes)
        }
        other => (other.kind().to_owned(), INTERNAL, Vec::new()),
    }
}

/// What an answer adds to its call's span.
fn answered(body: &Body) -> Vec<Value> {
    match body {
        Body::ModelResponse { status, input_tokens, output_tokens, cost_micro_usd, .. } => {
            let mut all = vec![
                number("gen_ai.usage.input_tokens", *input_tokens),
                number("gen_ai.usage.output_tokens", *output_tokens),
                number("http.response.status_code", u64::from(*status)),
            ];
            all.extend(cost_micro_usd.map(|c| number("nanoclaw.cost_micro_usd", c)));
            all
        }
        Body::EgressResult { status, sent, received, .. } => {
            let mut all = vec![
                number("http.request.body.size", *sent),
                number("http.response.body.size", *received),
            ];
            all.extend(status.map(|s| number("http.response.status_code", u64::from(s))));
            all
        }
        _ => Vec::new(),
    }
}
