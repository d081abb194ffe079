//! Names of files as records show them: whatever bytes they are, one way to read them back.

use model::{MAX_INLINE_BYTES, Sha256Hex};
use std::fmt::Write;

/// Longest path that a record shows whole; of a longer one the digest stands for the rest. The
/// marks of the cut and the digest fit beside it into a field.
const SHOWN_MAX: usize = MAX_INLINE_BYTES - 96;

/// Bytes that are no UTF-8, control characters and `\` as `\xHH`, each byte by itself; all else as
/// it is. Different names stay different.
pub(super) fn escaped(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    let hex = |out: &mut String, bytes: &[u8]| {
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    };
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() {
                hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(c);
            }
        }
        hex(&mut out, chunk.invalid());
    }
    out
}

/// As [`escaped`]; what is too long ends in `\...` and the digest of the whole. No escaped byte
/// reads so.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = escaped(path);
    if text.len() > SHOWN_MAX {
        text.truncate(text.floor_char_boundary(SHOWN_MAX));
        let _ = write!(text, "\\...sha256:{}", hex(&audit::merkle::sha256(path)).0);
    }
    text
}

pub(super) fn hex(digest: &[u8; 32]) -> Sha256Hex {
    let mut out = String::with_capacity(64);
    for byte in digest {
        let _ = write!(out, "{byte:02x}");
    }
    Sha256Hex(out)
}
