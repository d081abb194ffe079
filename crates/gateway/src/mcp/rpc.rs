//! JSON-RPC 2.0 as the Model Context Protocol uses it: bytes → one [`Message`], or a [`Fault`] that
//! says what to answer. Pure.
//!
//! Source: JSON-RPC 2.0; MCP 2025-06-18 onwards (no batches, params are objects, ids never null).

use serde_json::{Map, Value, json};

/// The bytes are not JSON.
pub(crate) const PARSE_ERROR: i64 = -32_700;
/// JSON, but no message of this protocol.
pub(crate) const INVALID_REQUEST: i64 = -32_600;
/// No such method.
pub(crate) const METHOD_NOT_FOUND: i64 = -32_601;
/// The parameters do not fit, or name a tool that is not there.
pub(crate) const INVALID_PARAMS: i64 = -32_602;
/// This side cannot go on.
pub(crate) const INTERNAL_ERROR: i64 = -32_603;
/// MCP 2026-07-28: a field of the HTTP head says otherwise than the body.
pub(crate) const HEADER_MISMATCH: i64 = -32_020;
/// MCP 2026-07-28: the version is not spoken here.
pub(crate) const UNSUPPORTED_VERSION: i64 = -32_022;

/// Longest id that is answered to; clients count or use UUIDs.
const ID_BYTES_MAX: usize = 256;

/// The parameters of a message.
pub(crate) type Params = Map<String, Value>;

/// A message understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// Wants an answer with this id (a string or an integer).
    Request { id: Value, method: String, params: Params },
    /// Wants none.
    Notification { method: String, params: Params },
    /// Answers a request.
    Response { id: Value, result: Result<Value, Value> },
}

/// Why there is no result: what to answer, and with which status of HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Option<Value>,
}

impl Fault {
    /// A fault of the request's own making that JSON-RPC alone reports (status 200).
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { status: 200, code, message: message.into(), data: None }
    }

    /// The same with another status.
    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The error message to `id`.
    pub(crate) fn answer(&self, id: &Value) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = data.clone();
        }
        json!({"jsonrpc": "2.0", "id": id, "error": error})
    }
}

/// A bad message and the id to answer to; null where none could be read.
pub(crate) type Bad = (Value, Fault);

/// Reads one message.
///
/// # Errors
/// What to answer to it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Message, Bad> {
    let bad = |id: Value, code, why: &str| Err((id, Fault::new(code, why).status(400)));
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return bad(Value::Null, PARSE_ERROR, "the body is not JSON");
    };
    let Value::Object(mut object) = value else {
        return bad(Value::Null, INVALID_REQUEST, "one JSON object is a message; no batches");
    };
    let id = object.remove("id");
    let known = id.clone().filter(is_id).unwrap_or(Value::Null);
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return bad(known, INVALID_REQUEST, "\"jsonrpc\" must be \"2.0\"");
    }
    if id.as_ref().is_some_and(|id| !is_id(id)) {
        return bad(known, INVALID_REQUEST, "\"id\" must be a string or an integer");
    }
    let params = match object.remove("params") {
        None => Params::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return bad(known, INVALID_PARAMS, "\"params\" must be an object"),
    };
    match (object.remove("method"), id) {
        (Some(Value::String(method)), Some(id)) => Ok(Message::Request { id, method, params }),
        (Some(Value::String(method)), None) => Ok(Message::Notification { method, params }),
        (Some(_), _) => bad(known, INVALID_REQUEST, "\"method\" must be a string"),
        (None, Some(id)) => match (object.remove("result"), object.remove("error")) {
            (Some(result), None) => Ok(Message::Response { id, result: Ok(result) }),
            (None, Some(error)) => Ok(Message::Response { id, result: Err(error) }),
            _ => bad(known, INVALID_REQUEST, "neither a method nor one result"),
        },
        (None, None) => bad(known, INVALID_REQUEST, "neither a method nor an id"),
    }
}

fn is_id(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() <= ID_BYTES_MAX,
        Value::Number(number) => number.is_i64() || number.is_u64(),
        _ => false,
    }
}

/// A request message.
pub(crate) fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// A notification message.
pub(crate) fn notification(method: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": method})
}

/// A result message.
pub(crate) fn result(id: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    #[test]
    fn every_kind_of_message_is_told_apart() {
        let kind = |text: &str| match parse(text.as_bytes()) {
            Ok(Message::Request { .. }) => 1,
            Ok(Message::Notification { .. }) => 2,
            Ok(Message::Response { result: Ok(_), .. }) => 3,
            Ok(Message::Response { result: Err(_), .. }) => 4,
            Err((_, fault)) => fault.code,
        };
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{}}"#), 1);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":"x","method":"a"}"#), 1);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","method":"a"}"#), 2);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), 3);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1}}"#), 4);
        for bad in [
            "[]",
            "7",
            r#"[{"jsonrpc":"2.0","id":1,"method":"a"}]"#,
            r#"{"id":1,"method":"a"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":[],"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1.5,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"{"jsonrpc":"2.0"}"#,
        ] {
            assert_eq!(kind(bad), INVALID_REQUEST, "{bad}");
        }
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"a"}}"#, "i".repeat(257));
        assert_eq!(kind(&long), INVALID_REQUEST);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[]}"#), INVALID_PARAMS);
        assert_eq!(kind("{"), PARSE_ERROR);
        assert_eq!(kind(&"[".repeat(100_000)), PARSE_ERROR);
        assert_eq!(kind("\u{feff}{}"), PARSE_ERROR);
    }

    #[test]
    fn fuzz_mcp_message() {
        let seeds: [&[u8]; 4] = [
            br#"{"jsonrpc":"2.0","id":"x\u00e9","method":"tools/call","params":{"name":"b"}}"#,
            br#"{"jsonrpc":"2.0","id":-7,"result":{"tools":[{"name":"a"}]}}"#,
            br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"m"}}"#,
            br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        ];
        let words: [&[u8]; 5] = [b"\"id\":", b"null", b"\"method\":", b"\"error\":{}", b"[[[["];
        fuzz::with_words("mcp-message", &seeds, &words, |bytes, _| match parse(bytes) {
            Ok(Message::Request { id, method, params }) => {
                assert!(is_id(&id));
                let again = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
                let again = parse(&serde_json::to_vec(&again).expect("JSON"));
                assert_eq!(again, Ok(Message::Request { id, method, params }));
                1
            }
            Ok(Message::Response { id, result }) => {
                assert!(is_id(&id));
                2 + u64::from(result.is_ok())
            }
            Ok(Message::Notification { .. }) => 4,
            Err((id, fault)) => {
                assert!(id.is_null() || is_id(&id));
                assert!(serde_json::to_vec(&fault.answer(&id)).is_ok());
                fuzz::outcome((id.is_null(), fault.message))
            }
        });
    }
}
