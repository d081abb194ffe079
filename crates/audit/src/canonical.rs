//! RFC 8785 (JSON Canonicalization Scheme), for the JSON this log has: no floats, whole numbers
//! within ±2^53, so that every reader in any language reads the same value.
//!
//! 1. Keys sort by UTF-16 code units, at every depth.
//! 2. Only what must be escaped is: `"`, `\` and U+0000 to U+001F, the short form where there is
//!    one.

use serde_json::Value;

/// Largest whole number that a double, and so any JSON reader, holds exactly.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// A number that this log does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number is not whole or is beyond 2^53; send it as text")]
pub struct NotCanonical;

/// Writes `value` in canonical form at the end of `out`.
///
/// # Errors
/// When a number in it is not whole or beyond ±2^53.
pub fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(true) => out.extend(b"true"),
        Value::Bool(false) => out.extend(b"false"),
        Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(u), _) => uint(out, u)?,
            (None, Some(i)) if i.unsigned_abs() <= INTEGER_MAX => {
                out.push(b'-');
                uint(out, i.unsigned_abs())?;
            }
            _ => return Err(NotCanonical),
        },
        Value::String(s) => string(out, s),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(out, item)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push(b'{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                string(out, key);
                out.push(b':');
                write(out, item)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// Writes a whole number.
///
/// # Errors
/// When it is beyond 2^53.
pub fn uint(out: &mut Vec<u8>, value: u64) -> Result<(), NotCanonical> {
    if value > INTEGER_MAX {
        return Err(NotCanonical);
    }
    let mut digits = [0u8; 20];
    let (mut at, mut rest) = (digits.len(), value);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend(&digits[at..]);
    Ok(())
}

/// Writes a string with its quotes.
pub fn string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let (bytes, mut from) = (text.as_bytes(), 0);
    for (at, &b) in bytes.iter().enumerate() {
        if b >= 0x20 && b != b'"' && b != b'\\' {
            continue;
        }
        out.extend(&bytes[from..at]);
        from = at + 1;
        match b {
            b'"' | b'\\' => out.extend([b'\\', b]),
            8 => out.extend(b"\\b"),
            9 => out.extend(b"\\t"),
            10 => out.extend(b"\\n"),
            12 => out.extend(b"\\f"),
            13 => out.extend(b"\\r"),
            _ => {
                out.extend(b"\\u00");
                out.extend([HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
            }
        }
    }
    out.extend(&bytes[from..]);
    out.push(b'"');
}
