//! What a client begins to say on a connection: TLS, HTTP or something else. Nothing is consumed.
//!
//! ```text
//! stream ─► already (kept whole for whoever serves it) ─► records ─► one ClientHello ─► Hello
//! ```
//!
//! A ClientHello may come in any number of records and a record in any number of reads. Each byte
//! is looked at once; at most [`BYTES_MAX`] are. How long that may take is the caller's matter.

use super::hello;
use bytes::BytesMut;
use model::HostName;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most bytes that are read to find out: a hello with post-quantum keys has about 2 KiB, with
/// resumption less than 8.
pub const BYTES_MAX: usize = 16 * 1024;
/// One read; more than a usual hello.
const READ_BYTES: usize = 4 * 1024;
/// Longest method of HTTP that is recognised; registered ones have at most 17 letters.
const METHOD_BYTES_MAX: usize = 20;

/// ContentType of handshake records (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// HandshakeType (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
/// TLSPlaintext.length (RFC 8446 §5.1).
const FRAGMENT_BYTES_MAX: usize = 1 << 14;

/// How a connection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// A TLS client's first message.
    Tls(Hello),
    /// A method's letters and a space; not parsed further.
    Http,
    /// Neither.
    Other,
    /// The client closed without a word.
    Closed,
}

/// What a `ClientHello` tells in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Whom it calls (SNI, RFC 6066 §3); `None` when it does not say.
    pub server_name: Option<HostName>,
    /// Whether it has an encrypted part that may name another host (ECH or its forerunners, real
    /// or GREASE).
    pub ech: bool,
    /// Protocols it offers (ALPN, RFC 7301), in its order.
    pub alpn: Vec<Vec<u8>>,
}

/// Why a connection's beginning is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SniffError {
    /// The socket failed.
    #[error("the connection broke while its first bytes were read: {cause}")]
    Io {
        /// The operating system's words.
        cause: String,
    },
    /// It ended in the midst of its first message.
    #[error("the connection ended in the midst of its first message")]
    Cut,
    /// It is longer than any honest one.
    #[error("the first message is longer than 16 KiB")]
    TooLong,
    /// It begins like TLS and is not a proper ClientHello.
    #[error("the TLS greeting is not accepted: {why}")]
    Malformed {
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Reads until it is clear how the connection begins. All bytes read, also any beyond the first
/// message, stay in `already`; bytes that are there before count as read. Cancel safe: a dropped
/// call has lost nothing.
///
/// # Errors
/// [`SniffError`]; the bytes read so far stay in `already`.
pub async fn first(
    stream: &mut (impl AsyncRead + Unpin),
    already: &mut BytesMut,
) -> Result<First, SniffError> {
    let mut sniffer = Sniffer::default();
    loop {
        if let Some(first) = sniffer.look(already)? {
            return Ok(first);
        }
        let room = BYTES_MAX.saturating_sub(already.len());
        if room == 0 {
            return Err(SniffError::TooLong);
        }
        already.reserve(READ_BYTES.min(room));
        let read =
            stream.read_buf(already).await.map_err(|e| SniffError::Io { cause: e.to_string() })?;
        match (read, already.is_empty()) {
            (0, true) => return Ok(First::Closed),
            (0, false) => return Err(SniffError::Cut),
            _ => {}
        }
    }
}

/// Remembers how far it has looked.
#[derive(Default)]
struct Sniffer {
    /// Where the next record begins.
    at: usize,
    /// What the records so far held.
    message: Vec<u8>,
}

impl Sniffer {
    /// `bytes` is all that has come; `None` when it takes more to know.
    fn look(&mut self, bytes: &[u8]) -> Result<Option<First>, SniffError> {
        match bytes.first() {
            None => Ok(None),
            Some(&HANDSHAKE) => Ok(self.records(bytes)?.map(First::Tls)),
            Some(_) => Ok(http(bytes)),
        }
    }

    fn records(&mut self, bytes: &[u8]) -> Result<Option<Hello>, SniffError> {
        while let Some(fragment) = record(bytes.get(self.at..).unwrap_or_default())? {
            self.message.extend_from_slice(fragment);
            self.at += RECORD_HEADER_BYTES + fragment.len();
            if let Some(hello) = message(&self.message)? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }
}

fn malformed<T>(why: &'static str) -> Result<T, SniffError> {
    Err(SniffError::Malformed { why })
}

/// The content of the record that `bytes` begin with, once it is whole. Wrong headers are refused
/// as soon as they are seen.
fn record(bytes: &[u8]) -> Result<Option<&[u8]>, SniffError> {
    if bytes.first().is_some_and(|&kind| kind != HANDSHAKE) {
        return malformed("another kind of record comes in between");
    }
    if bytes.get(1).is_some_and(|&major| major != 3) {
        return malformed("a record's version is not TLS");
    }
    let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER_BYTES) else {
        return Ok(None);
    };
    let length = header.iter().skip(3).fold(0, |n, &b| n << 8 | usize::from(b));
    if length == 0 || length > FRAGMENT_BYTES_MAX {
        return malformed("a record is empty or too long");
    }
    Ok(rest.get(..length))
}

/// The handshake message, once it is whole. Nothing may follow it in its record: the client has
/// nothing more to say before it is answered.
fn message(bytes: &[u8]) -> Result<Option<Hello>, SniffError> {
    if bytes.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return malformed("it does not begin with a ClientHello");
    }
    let Some((header, body)) = bytes.split_at_checked(MESSAGE_HEADER_BYTES) else {
        return Ok(None);
    };
    let length = header.iter().skip(1).fold(0, |n, &b| n << 8 | usize::from(b));
    if length > BYTES_MAX {
        return Err(SniffError::TooLong);
    }
    match body.len() {
        have if have < length => Ok(None),
        have if have > length => malformed("something follows it in its record"),
        _ => hello::parse(body).map(Some),
    }
}

/// A method and a space (RFC 9112 §3). The preface of HTTP/2 with prior knowledge (RFC 9113 §3.4)
/// is not HTTP for us.
fn http(bytes: &[u8]) -> Option<First> {
    let end = bytes.iter().position(|b| !(b.is_ascii_uppercase() || *b == b'-'));
    match end {
        Some(1..=METHOD_BYTES_MAX) if bytes.starts_with(b"PRI ") => Some(First::Other),
        Some(end @ 1..=METHOD_BYTES_MAX) if bytes.get(end) == Some(&b' ') => Some(First::Http),
        None if bytes.len() <= METHOD_BYTES_MAX => None,
        _ => Some(First::Other),
    }
}

#[cfg(test)]
#[path = "sniff_tests.rs"]
mod tests;
