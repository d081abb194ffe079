//! The body of a record as canonical JSON, written straight into the entry's bytes.
//!
//! ```text
//! Body (+ turn) ─► Fields: keys in canonical order, values as they are ─► bytes
//! ```
//!
//! 1. Same fields as the body has in `model`, so that serde reads it back; `tests/entries.rs` holds
//!    both against each other and the order against a foreign library, for every kind.
//! 2. No tree of values in between: a record costs no allocation here.

mod decisions;
mod files;
mod logins;
mod operations;
mod recorder;
mod upkeep;
mod witnesses;

use crate::canonical::{self, NotCanonical};
use crate::payload::Beside;
use model::{Body, Direction, LimitState, RequestLine, SaltedDigest, Sha256Hex, TurnId, WallState};
use std::collections::BTreeMap;

/// An object under way. Keys are given in canonical order; debug builds check it.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    turn: Option<&'a TurnId>,
    beside: Option<&'a Beside>,
    last: &'static str,
}

type Written = Result<(), NotCanonical>;

impl<'a> Fields<'a> {
    fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        debug_assert!(self.last < key, "{key} after {}", self.last);
        self.out.push(if self.last.is_empty() { b'{' } else { b',' });
        self.last = key;
        // Our own keys: lower-case letters, digits and '_', nothing to escape.
        self.out.push(b'"');
        self.out.extend(key.as_bytes());
        self.out.extend(b"\":");
        self.out
    }

    fn text(&mut self, key: &'static str, value: &str) -> &mut Self {
        canonical::string(self.key(key), value);
        self
    }

    fn maybe(&mut self, key: &'static str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => {
                self.key(key).extend(b"null");
                self
            }
        }
    }

    fn flag(&mut self, key: &'static str, value: bool) -> &mut Self {
        self.key(key).extend(if value { &b"true"[..] } else { b"false" });
        self
    }

    /// Left out where there is none, as in the logs of versions that did not have it.
    fn known(&mut self, key: &'static str, value: Option<&Sha256Hex>) -> &mut Self {
        match value {
            Some(digest) => self.text(key, &digest.0),
            None => self,
        }
    }

    fn uint(&mut self, key: &'static str, value: u64) -> Result<&mut Self, NotCanonical> {
        canonical::uint(self.key(key), value)?;
        Ok(self)
    }

    /// Left out where it is 0, as in the logs of versions that did not count it.
    fn some_uint(&mut self, key: &'static str, value: u64) -> Result<&mut Self, NotCanonical> {
        if value == 0 { Ok(self) } else { self.uint(key, value) }
    }

    /// Left out where it was not counted, as in the logs of versions that did not.
    fn counted(
        &mut self,
        key: &'static str,
        value: Option<u64>,
    ) -> Result<&mut Self, NotCanonical> {
        match value {
            Some(value) => self.uint(key, value),
            None => Ok(self),
        }
    }

    fn maybe_uint(
        &mut self,
        key: &'static str,
        value: Option<u64>,
    ) -> Result<&mut Self, NotCanonical> {
        match value {
            Some(value) => self.uint(key, value),
            None => Ok(self.maybe(key, None)),
        }
    }

    fn request(&mut self, key: &'static str, line: Option<&RequestLine>) -> &mut Self {
        let Some(line) = line else { return self.maybe(key, None) };
        let mut inner = nested(self.key(key));
        inner.text("method", &line.method).text("path", &line.path).list(
            "query_keys",
            &line.query_keys,
            |out, name| canonical::string(out, name),
        );
        // Left out where it is not so, as in the logs of versions that did not tell.
        if line.websocket {
            inner.flag("websocket", true);
        }
        inner.out.push(b'}');
        self
    }

    fn list<T>(
        &mut self,
        key: &'static str,
        items: &[T],
        mut each: impl FnMut(&mut Vec<u8>, &T),
    ) -> &mut Self {
        let out = self.key(key);
        out.push(b'[');
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            each(out, item);
        }
        out.push(b']');
        self
    }

    /// The turn, where it stands among the others: every kind calls this once.
    fn turn(&mut self) -> &mut Self {
        match self.turn {
            Some(turn) => self.text("turn", turn.as_str()),
            None => self,
        }
    }

    /// What stands beside the record: every kind that may have it calls this once, at its place.
    fn payloads(&mut self) -> Result<&mut Self, NotCanonical> {
        let Some(beside) = self.beside else { return Ok(self) };
        let mut outer = nested(self.key("payloads"));
        salted(outer.key(beside.field), &beside.digest)?;
        outer.end()?;
        Ok(self)
    }

    fn end(&mut self) -> Written {
        self.out.push(b'}');
        Ok(())
    }
}

fn nested(out: &mut Vec<u8>) -> Fields<'_> {
    Fields { out, turn: None, beside: None, last: "" }
}

fn wall(out: &mut Vec<u8>, w: &WallState) {
    let mut fields = nested(out);
    fields.text("state", &w.state).text("wall", &w.wall);
    fields.out.push(b'}');
}

fn limit(out: &mut Vec<u8>, l: &LimitState) {
    let mut fields = nested(out);
    fields.text("enforced_by", &l.enforced_by).text("limit", &l.limit).text("value", &l.value);
    fields.out.push(b'}');
}

fn salted(out: &mut Vec<u8>, digest: &SaltedDigest) -> Written {
    nested(out).uint("bytes", digest.bytes)?.text("sha256", &digest.sha256.0).end()
}

/// Names that came with the record, so sorted here as RFC 8785 wants it.
fn counts(out: &mut Vec<u8>, counts: &BTreeMap<String, u64>) -> Written {
    let mut sorted: Vec<(&String, u64)> = counts.iter().map(|(k, n)| (k, *n)).collect();
    sorted.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
    out.push(b'{');
    for (i, (key, n)) in sorted.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        canonical::string(out, key);
        out.push(b':');
        canonical::uint(out, n)?;
    }
    out.push(b'}');
    Ok(())
}

/// Writes a body, and the turn among its fields.
///
/// # Errors
/// When a number in it is beyond 2^53.
pub(crate) fn write(
    out: &mut Vec<u8>,
    body: &Body,
    turn: Option<&TurnId>,
    beside: Option<&Beside>,
) -> Written {
    let f = &mut Fields { out, turn, beside, last: "" };
    let kind = body.kind();
    match body {
        Body::RecorderStarted { .. }
        | Body::RecorderStopped { .. }
        | Body::ClientLost { .. }
        | Body::KeyAnnounced { .. }
        | Body::RecordGap { .. }
        | Body::ClockSetBack { .. } => recorder::write(f, kind, body),
        Body::SessionOpened { .. }
        | Body::SessionClosed { .. }
        | Body::TotalsDisagree { .. }
        | Body::SandboxStarted { .. }
        | Body::SandboxStopped { .. } => of_lives(f, kind, body),
        Body::ProcessExec { .. }
        | Body::ProcessImage { .. }
        | Body::ConnectRefused { .. }
        | Body::WitnessGap { .. } => operations::write(f, kind, body),
        Body::PayloadsErased { .. } | Body::RecordsPruned { .. } => upkeep::write(f, kind, body),
        Body::Cosigning { .. } => witnesses::write(f, kind, body),
        Body::FilesChanged { .. } | Body::FilesManifest { .. } | Body::ObserversDisagree { .. } => {
            files::write(f, kind, body)
        }
        Body::Message { .. }
        | Body::MessageWithdrawn { .. }
        | Body::TurnStarted { .. }
        | Body::TurnFinished { .. }
        | Body::ToolCalled { .. }
        | Body::ToolFinished { .. }
        | Body::ProbeObserved { .. } => of_turn(f, kind, body),
        Body::ModelRequest { .. } | Body::ModelResponse { .. } | Body::SecretUsed { .. } => {
            of_models(f, kind, body)
        }
        Body::LoginRequest { .. } | Body::LoginResponse { .. } | Body::LoginChanged { .. } => {
            logins::write(f, kind, body)
        }
        Body::EgressIntent { .. }
        | Body::EgressPinned { .. }
        | Body::EgressResult { .. }
        | Body::EgressRefused { .. } => of_way_out(f, kind, body),
        Body::ApprovalAsked { .. }
        | Body::ApprovalDecided { .. }
        | Body::HostToolCalled { .. }
        | Body::HostToolFinished { .. }
        | Body::PolicyLearned { .. }
        | Body::PolicyAccepted { .. }
        | Body::PolicyChanged { .. } => decisions::write(f, kind, body),
    }
}

fn of_lives(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::SessionOpened { resumed, backend, policy_sha256, grants } => f
            .text("backend", backend)
            .list("grants", grants, |out, grant| canonical::string(out, grant))
            .text("kind", kind)
            .text("policy_sha256", &policy_sha256.0)
            .flag("resumed", *resumed)
            .turn(),
        Body::SessionClosed { reason, counts: all } => {
            counts(f.key("counts"), all)?;
            f.text("kind", kind).text("reason", reason).turn()
        }
        Body::TotalsDisagree { total, relation, gateway, kernel } => f
            .uint("gateway", *gateway)?
            .uint("kernel", *kernel)?
            .text("kind", kind)
            .text("relation", relation)
            .text("total", total)
            .turn(),
        Body::SandboxStarted { plan_sha256, program, walls, limits } => f
            .text("kind", kind)
            .list("limits", limits, limit)
            .text("plan_sha256", &plan_sha256.0)
            .text("program", program)
            .turn()
            .list("walls", walls, wall),
        Body::SandboxStopped { outcome, cpu_ms, peak_memory_bytes, peak_pids, disk_bytes } => f
            .uint("cpu_ms", *cpu_ms)?
            .counted("disk_bytes", *disk_bytes)?
            .text("kind", kind)
            .text("outcome", outcome)
            .uint("peak_memory_bytes", *peak_memory_bytes)?
            .counted("peak_pids", *peak_pids)?
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}

fn of_turn(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::Message { direction, message, channel, chat, digest } => {
            let way = match direction {
                Direction::In => "in",
                Direction::Out => "out",
            };
            salted(f.text("channel", channel).text("chat", chat).key("digest"), digest)?;
            f.text("direction", way).text("kind", kind).text("message", message.as_str()).turn()
        }
        Body::MessageWithdrawn { message, reason } => {
            f.text("kind", kind).text("message", message.as_str()).text("reason", reason).turn()
        }
        Body::TurnStarted { message } => {
            f.text("kind", kind).text("message", message.as_str()).turn()
        }
        Body::TurnFinished { outcome, duration_ms } => {
            f.uint("duration_ms", *duration_ms)?.text("kind", kind).text("outcome", outcome).turn()
        }
        Body::ToolCalled { call, tool, arguments, arguments_sha256 } => f
            .text("arguments", arguments)
            .text("arguments_sha256", &arguments_sha256.0)
            .text("call", call)
            .text("kind", kind)
            .payloads()?
            .text("tool", tool)
            .turn(),
        Body::ToolFinished { call, tool, ok, bytes, summary } => f
            .uint("bytes", *bytes)?
            .text("call", call)
            .text("kind", kind)
            .flag("ok", *ok)
            .payloads()?
            .text("summary", summary)
            .text("tool", tool)
            .turn(),
        Body::ProbeObserved { probe, expected, observed, held } => f
            .text("expected", expected)
            .flag("held", *held)
            .text("kind", kind)
            .text("observed", observed)
            .text("probe", probe)
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}

fn of_models(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::ModelRequest { model, api, host, bytes, sha256, provider_tools } => {
            f.text("api", api)
                .uint("bytes", *bytes)?
                .text("host", host)
                .text("kind", kind)
                .text("model", model);
            if !provider_tools.is_empty() {
                f.list("provider_tools", provider_tools, |out, tool| canonical::string(out, tool));
            }
            f.text("sha256", &sha256.0).turn()
        }
        Body::ModelResponse {
            model,
            status,
            bytes,
            sha256,
            input_tokens,
            output_tokens,
            duration_ms,
            cost_micro_usd,
            error,
        } => f
            .uint("bytes", *bytes)?
            .maybe_uint("cost_micro_usd", *cost_micro_usd)?
            .uint("duration_ms", *duration_ms)?
            .maybe("error", error.as_deref())
            .uint("input_tokens", *input_tokens)?
            .text("kind", kind)
            .text("model", model)
            .uint("output_tokens", *output_tokens)?
            .text("sha256", &sha256.0)
            .uint("status", u64::from(*status))?
            .turn(),
        Body::SecretUsed { secret, host } => {
            f.text("host", host).text("kind", kind).text("secret", secret).turn()
        }
        _ => return Err(NotCanonical),
    }
    .end()
}

fn of_way_out(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::EgressIntent { host, port, rule, address, request, secret } => f
            .maybe("address", address.as_deref())
            .text("host", host)
            .text("kind", kind)
            .uint("port", u64::from(*port))?
            .request("request", request.as_ref())
            .text("rule", rule)
            .maybe("secret", secret.as_deref())
            .turn(),
        Body::EgressPinned { host, port, address } => f
            .text("address", address)
            .text("host", host)
            .text("kind", kind)
            .uint("port", u64::from(*port))?
            .turn(),
        Body::EgressResult {
            host,
            port,
            status,
            sent,
            sent_head,
            received,
            sent_sha256,
            received_sha256,
            duration_ms,
            error,
        } => f
            .uint("duration_ms", *duration_ms)?
            .maybe("error", error.as_deref())
            .text("host", host)
            .text("kind", kind)
            .uint("port", u64::from(*port))?
            .uint("received", *received)?
            .maybe("received_sha256", received_sha256.as_ref().map(|d| d.0.as_str()))
            .uint("sent", *sent)?
            .some_uint("sent_head", *sent_head)?
            .maybe("sent_sha256", sent_sha256.as_ref().map(|d| d.0.as_str()))
            .maybe_uint("status", status.map(u64::from))?
            .turn(),
        Body::EgressRefused { target, rule, reason, request } => f
            .text("kind", kind)
            .text("reason", reason)
            .request("request", request.as_ref())
            .text("rule", rule)
            .text("target", target)
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}
