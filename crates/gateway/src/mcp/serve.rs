//! `/mcp` of a door: streamable HTTP, one JSON object a request, nothing remembered between them.
//!
//! Source: MCP 2025-11-25 and 2026-07-28, streamable HTTP.

use super::call::{self, ARGUMENTS_BYTES_MAX};
use super::protocol::{self, Era};
use super::rpc::{self, Fault, INVALID_REQUEST, METHOD_NOT_FOUND, Message, Params};
use crate::authority::quoted;
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, BodyReader, Conn, answer};
use crate::http::head::{Framing, Head};
use crate::memory::Held;
use serde_json::{Value, json};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

/// Largest message: the largest arguments, escaped by a careless client, and their frame.
const MESSAGE_BYTES_MAX: u64 = 2 * ARGUMENTS_BYTES_MAX as u64;

/// Whether the connection can serve another request.
type KeepAlive = bool;

/// Answers one request to the tools.
pub(crate) async fn serve(
    conn: &mut Conn,
    door: &Arc<DoorState>,
    head: &Head,
) -> io::Result<KeepAlive> {
    if let Some(refusal) = refused_head(head) {
        if refusal.status == 403 {
            let target = format!("{} {}", head.method, quoted(&head.target));
            door.scribe.refused(target, "tools", refusal.message.clone()).await;
        }
        // A body may follow that nobody reads.
        let keep_alive = head.keep_alive && head.framing == Framing::None;
        return send(conn, keep_alive, &Reply::fault(&Value::Null, &refusal)).await;
    }
    let Ok(_held) = door.tools.bodies.try_acquire() else {
        let busy = Fault::new(INVALID_REQUEST, "too many requests at once; send fewer").status(503);
        return send(conn, false, &Reply::fault(&Value::Null, &busy)).await;
    };
    let mut held = door.memory.hold();
    let body = match read(conn, head, &mut held).await {
        Ok(body) => body,
        Err(fault) => return send(conn, false, &Reply::fault(&Value::Null, &fault)).await,
    };
    let Some(reply) = conn.unless_gone(respond(door, head, &body, &mut held)).await else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    send(conn, head.keep_alive, &reply).await
}

/// What is sent back.
struct Reply {
    status: u16,
    body: Option<Value>,
}

impl Reply {
    fn fault(id: &Value, fault: &Fault) -> Self {
        Self { status: fault.status, body: Some(fault.answer(id)) }
    }
}

/// Requests that are refused before their body is read.
fn refused_head(head: &Head) -> Option<Fault> {
    let refuse = |status, why: &str| Some(Fault::new(INVALID_REQUEST, why).status(status));
    if let Some(origin) = head.field("origin").filter(|origin| !is_local(origin)) {
        let origin = quoted(origin);
        return refuse(403, &format!("pages of {origin} may not use the tools of this agent"));
    }
    if head.target != super::PATH {
        return refuse(404, "the tools are at /mcp, without a query");
    }
    if head.method != "POST" {
        return refuse(405, "each message is a POST; there is no stream to listen to");
    }
    let kind = head.field("content-type").unwrap_or("").split(';').next().unwrap_or("").trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return refuse(415, "the content type must be application/json");
    }
    if head.field("content-encoding").is_some_and(|v| !v.eq_ignore_ascii_case("identity")) {
        return refuse(415, "compressed messages are not accepted");
    }
    None
}

/// No origin at all (`null`), or this machine: a page from elsewhere that reaches the door through
/// a name it controls still says where it came from.
fn is_local(origin: &str) -> bool {
    if origin == "null" {
        return true;
    }
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let Some(rest) = rest else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (rest, "80"),
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let loopback = inner.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    (loopback || host.eq_ignore_ascii_case("localhost")) && port.parse::<u16>().is_ok()
}

async fn read(conn: &mut Conn, head: &Head, held: &mut Held) -> Result<Vec<u8>, Fault> {
    let failed = |status, why: String| Fault::new(INVALID_REQUEST, why).status(status);
    let mut reader = BodyReader::new(head.framing, MESSAGE_BYTES_MAX)
        .map_err(|e| failed(e.status(), e.to_string()))?;
    if head.expects_continue() && !reader.is_done() {
        let go_on = conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        go_on.map_err(|e| failed(400, e.to_string()))?;
    }
    let mut body = Vec::new();
    loop {
        match conn.read_body(&mut reader).await {
            Ok(Some(piece)) => {
                // The buffer doubles when it is full.
                held.grow(2 * piece.len()).map_err(|full| failed(503, full.to_string()))?;
                body.extend_from_slice(&piece);
            }
            Ok(None) => return Ok(body),
            Err(e) => return Err(failed(e.status(), e.to_string())),
        }
    }
}

async fn respond(door: &Arc<DoorState>, head: &Head, body: &[u8], held: &mut Held) -> Reply {
    if let Err((status, why)) = rpc::charge(body, held) {
        let fault = Fault::new(INVALID_REQUEST, why).status(status);
        return Reply::fault(&Value::Null, &fault);
    }
    match rpc::parse(body) {
        Err((id, fault)) => Reply::fault(&id, &fault),
        // Nothing was asked of the client, and its notices change nothing here: a call is given up
        // by hanging up.
        Ok(Message::Notification { .. } | Message::Response { .. }) => {
            Reply { status: 202, body: None }
        }
        Ok(Message::Request { id, method, params }) => {
            match request(door, head, &method, &params, held).await {
                Ok(result) => Reply { status: 200, body: Some(rpc::result(&id, &result)) },
                Err(fault) => Reply::fault(&id, &fault),
            }
        }
    }
}

async fn request(
    door: &Arc<DoorState>,
    head: &Head,
    method: &str,
    params: &Params,
    held: &mut Held,
) -> Result<Value, Fault> {
    let era = protocol::era(head, method, params)?;
    let result = match (method, era) {
        ("initialize", Era::Handshake) => protocol::initialize(params)?,
        ("ping", Era::Handshake) => json!({}),
        ("server/discover", Era::Stateless) => protocol::discover(),
        ("tools/list", _) => {
            let cursor = match params.get("cursor") {
                None | Some(Value::Null) => None,
                Some(cursor) => Some(cursor.as_str().unwrap_or("")),
            };
            protocol::tool_list(&call::list(door).await, cursor)?
        }
        ("tools/call", _) => call::call(door, params, held).await?,
        _ => {
            let method: String = method.chars().take(80).collect();
            let unknown = Fault::new(METHOD_NOT_FOUND, format!("method not found: {method:?}"));
            // 2026-07-28 wants the status too; for older clients 404 means a lost session.
            return Err(if era == Era::Stateless { unknown.status(404) } else { unknown });
        }
    };
    Ok(protocol::finish(era, method, result))
}

async fn send(conn: &mut Conn, keep_alive: KeepAlive, reply: &Reply) -> io::Result<KeepAlive> {
    let body = reply.body.as_ref().map(Value::to_string).unwrap_or_default();
    let mut fields = vec![("cache-control", "no-store")];
    if reply.body.is_some() {
        fields.push(("content-type", "application/json"));
    }
    if reply.status == 405 {
        fields.push(("allow", "POST"));
    }
    let bytes = answer(reply.status, &fields, &AnswerBody::Whole(body.as_bytes()), keep_alive);
    conn.write(&bytes).await?;
    Ok(keep_alive)
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_this_machine_is_a_local_origin() {
        for good in ["null", "http://127.0.0.1:3128", "http://localhost", "https://[::1]:8443"] {
            assert!(is_local(good), "{good}");
        }
        for bad in [
            "",
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://127.0.0.1@evil.example",
            "http://evil.example:80:127.0.0.1",
            "http://10.0.0.1",
            "file://",
            "http://localhost/x",
        ] {
            assert!(!is_local(bad), "{bad}");
        }
    }
}
