//! JSON-RPC 2.0 over lines: one bounded frame a line, parsed once.
//!
//! ```text
//! bytes ─► read_frame (bounded) ─► parse ─► Incoming
//! ```
//!
//! Invariants:
//! 1. A frame never grows beyond the limit its reader was given, whatever the peer sends.
//! 2. Every byte sequence is a frame, a fault or the end; none panics.
//!
//! Source: JSON-RPC 2.0; the Agent Client Protocol's stdio transport (newline-delimited UTF-8).

use serde_json::{Value, json};
use std::io::{self, BufRead};

/// JSON-RPC: the bytes are not JSON.
pub(crate) const PARSE_ERROR: i64 = -32_700;
/// JSON-RPC: JSON, but not a request this peer can take now.
pub(crate) const INVALID_REQUEST: i64 = -32_600;
/// JSON-RPC: no such method.
pub(crate) const METHOD_NOT_FOUND: i64 = -32_601;
/// JSON-RPC: the parameters do not fit.
pub(crate) const INVALID_PARAMS: i64 = -32_602;
/// JSON-RPC: this side failed.
pub(crate) const INTERNAL_ERROR: i64 = -32_603;
/// ACP: what was named does not exist.
pub(crate) const NOT_FOUND: i64 = -32_002;
/// Ours (the range is the implementation's): the model failed; `data` says how.
pub(crate) const MODEL_FAILED: i64 = -32_050;

/// What one attempt to read a frame gave; the bytes are in the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A whole line, without its end.
    Line,
    /// The line is longer than the limit; its rest is still unread.
    TooLong,
    /// The peer closed.
    End,
}

/// Reads one line of at most `max` bytes into `line` (cleared first).
///
/// # Errors
/// Whatever the reader reports; interrupted reads are repeated.
pub(crate) fn read_frame(
    reader: &mut impl BufRead,
    max: usize,
    line: &mut Vec<u8>,
) -> io::Result<Frame> {
    line.clear();
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if chunk.is_empty() {
            return Ok(if line.is_empty() { Frame::End } else { Frame::Line });
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        if line.len() + part.len() > max {
            return Ok(Frame::TooLong);
        }
        line.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Frame::Line);
        }
    }
}

/// Throws away the rest of a line that was too long, holding no more than one buffer.
///
/// # Errors
/// Whatever the reader reports.
pub(crate) fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    reader.skip_until(b'\n').map(|_| ())
}

/// A frame understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Incoming {
    /// Wants an answer with this id (a string or a number).
    Request { id: Value, method: String, params: Value },
    /// Wants none.
    Notification { method: String, params: Value },
    /// Answers one of ours.
    Response { id: Value, result: Result<Value, Value> },
}

/// A frame not understood: what to answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    /// Id to answer to; null where none could be read.
    pub(crate) id: Value,
    /// JSON-RPC error code.
    pub(crate) code: i64,
    /// What is wrong.
    pub(crate) message: &'static str,
}

/// Reads one frame.
///
/// # Errors
/// A [`Fault`] that says what to answer.
pub(crate) fn parse(line: &[u8]) -> Result<Incoming, Fault> {
    let fault = |id, code, message| Err(Fault { id, code, message });
    let Ok(value) = serde_json::from_slice::<Value>(line) else {
        return fault(Value::Null, PARSE_ERROR, "the line is not JSON");
    };
    let Value::Object(mut object) = value else {
        return fault(
            Value::Null,
            INVALID_REQUEST,
            "a frame is one JSON object; batches are not taken",
        );
    };
    let id = object.remove("id");
    let usable = matches!(id, None | Some(Value::String(_) | Value::Number(_) | Value::Null));
    let known = if usable { id.clone().unwrap_or(Value::Null) } else { Value::Null };
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return fault(known, INVALID_REQUEST, "\"jsonrpc\" must be \"2.0\"");
    }
    if !usable {
        return fault(Value::Null, INVALID_REQUEST, "\"id\" must be a string or a number");
    }
    let params = object.remove("params").unwrap_or(Value::Null);
    match (object.remove("method"), id) {
        (Some(Value::String(method)), None) => Ok(Incoming::Notification { method, params }),
        (Some(Value::String(_)), Some(Value::Null)) => {
            fault(known, INVALID_REQUEST, "\"id\" must be a string or a number")
        }
        (Some(Value::String(method)), Some(id)) => Ok(Incoming::Request { id, method, params }),
        (Some(_), _) => fault(known, INVALID_REQUEST, "\"method\" must be a string"),
        (None, Some(id)) => match (object.remove("result"), object.remove("error")) {
            (_, Some(error)) if !error.is_null() => {
                Ok(Incoming::Response { id, result: Err(error) })
            }
            (Some(result), _) => Ok(Incoming::Response { id, result: Ok(result) }),
            _ => fault(id, INVALID_REQUEST, "neither a method nor a result"),
        },
        (None, None) => fault(Value::Null, INVALID_REQUEST, "neither a method nor an id"),
    }
}

/// A request frame, with its line end.
pub(crate) fn request(id: u64, method: &str, params: &Value) -> Vec<u8> {
    line(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
}

/// A notification frame, with its line end.
pub(crate) fn notification(method: &str, params: &Value) -> Vec<u8> {
    line(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}

/// An answer frame, with its line end.
pub(crate) fn answer(id: &Value, result: &Value) -> Vec<u8> {
    line(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// An error frame, with its line end.
pub(crate) fn error(id: &Value, code: i64, message: &str, data: Option<Value>) -> Vec<u8> {
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data;
    }
    line(&json!({"jsonrpc": "2.0", "id": id, "error": error}))
}

/// serde_json escapes every control character, so that a frame never holds a line end itself.
fn line(value: &Value) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// Cuts text to at most `max` bytes at a character boundary.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Text from the other side as one printable line of at most `max` bytes.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let clean: String =
        clip(text, max).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    #[test]
    fn frames_are_bounded_and_the_next_one_is_still_readable() {
        let mut input = io::BufReader::with_capacity(3, &b"abcdef\nab\n\nlast"[..]);
        let mut line = Vec::new();
        assert_eq!(read_frame(&mut input, 4, &mut line).unwrap(), Frame::TooLong);
        skip_line(&mut input).unwrap();
        for expected in ["ab", "", "last"] {
            assert_eq!(read_frame(&mut input, 4, &mut line).unwrap(), Frame::Line);
            assert_eq!(line, expected.as_bytes());
        }
        assert_eq!(read_frame(&mut input, 4, &mut line).unwrap(), Frame::End);
    }

    #[test]
    fn every_kind_of_frame_is_told_apart() {
        let kind = |text: &str| match parse(text.as_bytes()) {
            Ok(Incoming::Request { .. }) => 1,
            Ok(Incoming::Notification { .. }) => 2,
            Ok(Incoming::Response { result: Ok(_), .. }) => 3,
            Ok(Incoming::Response { result: Err(_), .. }) => 4,
            Err(fault) => fault.code,
        };
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#), 1);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","method":"a"}"#), 2);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"result":null}"#), 3);
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1}}"#), 4);
        for bad in [
            "[]",
            r#"{"id":1,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":[],"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0"}"#,
        ] {
            assert_eq!(kind(bad), INVALID_REQUEST, "{bad}");
        }
        assert_eq!(kind("{"), PARSE_ERROR);
        assert_eq!(kind(&"[".repeat(100_000)), PARSE_ERROR);
    }

    /// Every frame of a stream with a limit, and where one was too long.
    fn frames(mut reader: impl BufRead, max: usize) -> Vec<Result<Vec<u8>, ()>> {
        let (mut found, mut line) = (Vec::new(), Vec::new());
        loop {
            let frame = read_frame(&mut reader, max, &mut line).expect("no error in it");
            assert!(line.len() <= max);
            match frame {
                Frame::Line => found.push(Ok(line.clone())),
                Frame::TooLong => {
                    skip_line(&mut reader).expect("no error in it");
                    found.push(Err(()));
                }
                Frame::End => return found,
            }
        }
    }

    #[test]
    fn fuzz_acp_frames() {
        let seeds: [&[u8]; 4] = [
            br#"{"jsonrpc":"2.0","id":"x\u00e9","method":"a","params":{"b":[1,-2e9]}}"#,
            b"{\"jsonrpc\":\"2.0\",\"method\":\"m\"}\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}\n",
            br#"{"jsonrpc":"2.0","id":3,"error":{"code":-32050,"message":"m","data":{"kind":"bad_key","retryable":true}}}"#,
            b"[]\n\n{\"id\":null}",
        ];
        let words: [&[u8]; 6] =
            [b"\n", b"\"id\":", b"null", b"\"method\":", b"\"result\":", b"\"error\":"];
        fuzz::with_words("acp-frames", &seeds, &words, |bytes, dice| {
            let whole = frames(bytes, 200);
            let cut = io::BufReader::with_capacity(1 + dice.below(9), bytes);
            assert_eq!(frames(cut, 200), whole, "in pieces it says something else");
            let said = |frame: &Result<Vec<u8>, ()>| match frame.as_deref().map(parse) {
                Err(()) => 0,
                Ok(Err(fault)) => {
                    let answer = error(&fault.id, fault.code, fault.message, None);
                    assert_eq!(answer.iter().filter(|b| **b == b'\n').count(), 1);
                    fuzz::outcome((fault.code, fault.message, fault.id.is_null()))
                }
                Ok(Ok(Incoming::Request { id, method, params })) => {
                    let frame =
                        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
                    let again = parse(&line(&frame)).expect("ours");
                    assert_eq!(again, Incoming::Request { id, method, params });
                    1
                }
                Ok(Ok(Incoming::Notification { params, .. })) => 2 + u64::from(params.is_object()),
                Ok(Ok(Incoming::Response { result: Ok(_), .. })) => 4,
                Ok(Ok(Incoming::Response { result: Err(failed), .. })) => {
                    let failure = crate::acp::ModelFailure::from_rpc("x", &failed["data"]);
                    5 + u64::from(failure.is_some())
                }
            };
            fuzz::outcome(whole.iter().map(said).collect::<Vec<_>>())
        });
    }
}
