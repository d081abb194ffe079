//! As much HTTP/1.1 as static files and one POST need, on both sides; no runtime, no dependency.
//!
//! ```text
//! server: accept ─► a place? ─► head within time ─► Service::answer ─► written within time
//! client: Dial ─► GET or POST ─► head ─► body within its limit
//! ```
//!
//! 1. What two parsers may read differently is refused: one length, no coded bodies in requests.
//! 2. Heads, bodies, fields behind them, connections, waiting, and an exchange as a whole are
//!    bounded on both sides.
//! 3. No redirect is followed and no coding undone: an answer is what was asked for, or an error.

mod client;
mod head;
mod pace;
mod server;

pub use client::{Dial, Plain, Remote, Stream, Url, UrlError, post};
pub use head::{Framing, HEAD_BYTES_MAX, Request, Response, parse_request, parse_response};
pub use pace::{Pace, Paced, Patience};
pub use server::{Answer, Content, Limits, Service, run};

use std::io::{self, Read};

/// Reads up to the end of a head, which is looked for in what is there already. What follows the
/// head stays in `buffer`. `None` when the stream ends before the first byte.
///
/// # Errors
/// `InvalidData` when the head is too long or breaks off.
pub(crate) fn read_head(
    stream: &mut dyn Read,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    let mut piece = [0; 2048];
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            return Ok(Some(std::mem::replace(buffer, rest)));
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head is too long"));
        }
        let n = match stream.read(&mut piece) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 && buffer.is_empty() {
            return Ok(None);
        }
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head breaks off"));
        }
        buffer.extend(&piece[..n]);
    }
}
