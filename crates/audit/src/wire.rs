//! What goes over the recorder's socket.
//!
//! ```text
//! frame = u32 little-endian length of the rest ‖ u8 kind ‖ body
//! client: H hello (JSON) · S submit (u64 id ‖ u8 durability ‖ record as JSON) ·
//!         R replace the log's key (u64 id) · B bye
//! recorder: W welcome · A written (u64 id ‖ u64 index ‖ u32 count: so many from there on, both
//!           counted up) · E refused (u64 id ‖ JSON)
//! ```
//!
//! 1. Nothing in it reads or changes what is written: a client can only append.
//! 2. A frame is bounded before a byte of it is kept; what does not parse ends the connection.

use crate::entry::ENTRY_BYTES_MAX;
use model::{Durability, Record, RecordError};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest frame after its length field: a record whose longest text is to stand beside the log
/// ([`model::MAX_BESIDE_BYTES`], six bytes a character at worst), and room for one that is just too
/// large to get its own answer.
pub const FRAME_BYTES_MAX: usize = 256 << 10;

/// Version of this protocol.
pub(crate) const PROTOCOL: u32 = 3;

/// Longest role name.
pub(crate) const ROLE_BYTES_MAX: usize = 32;

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) pid: u32,
    pub(crate) role: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireError {
    Disk { cause: String },
    Gone { cause: String },
    TooLarge { bytes: usize, max: usize },
    Invalid { why: String },
    Flood { why: String },
}

/// A frame from a client.
#[allow(clippy::large_enum_variant, reason = "taken apart at once; nearly all are records")]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromClient {
    Hello(Hello),
    Submit { id: u64, durability: Durability, record: Result<Record, RecordError> },
    Rotate { id: u64 },
    Bye,
}

/// A frame from the recorder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromRecorder {
    Welcome,
    Written { id: u64, index: u64, count: u32 },
    Refused { id: u64, error: RecordError },
}

/// What the bytes were not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of this protocol")]
pub(crate) struct Malformed;

/// Folder of the log below a home.
#[must_use]
pub fn log_dir(home: &Path) -> PathBuf {
    home.join("audit")
}

/// Folder of the signing key below a home.
pub(crate) const KEY_FOLDER: &str = "audit-key";

/// Where a home has its log's signing key: a folder that the recorder alone has to read.
#[must_use]
pub fn key_dir(home: &Path) -> PathBuf {
    home.join(KEY_FOLDER)
}

/// The recorder's socket below a home.
#[must_use]
pub fn socket_path(home: &Path) -> PathBuf {
    home.join("run/recorder.sock")
}

fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0, 0, 0, 0, kind]);
    body(out);
    let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

pub(crate) fn push_hello(out: &mut Vec<u8>, hello: &Hello) {
    let json = serde_json::to_vec(hello).unwrap_or_default();
    frame(out, b'H', |o| o.extend(json));
}

/// Appends a submit frame, or says that the record is too large for any log.
pub(crate) fn push_submit(
    out: &mut Vec<u8>,
    id: u64,
    durability: Durability,
    record: &Record,
) -> Result<(), RecordError> {
    let start = out.len();
    let mut bad = None;
    frame(out, b'S', |o| {
        o.extend(id.to_le_bytes());
        o.push(u8::from(durability == Durability::Durable));
        bad = serde_json::to_writer(&mut *o, record).err();
    });
    let bytes = out.len() - start - 4;
    let refusal = match bad {
        Some(e) => Some(RecordError::Invalid { why: e.to_string() }),
        None if bytes > FRAME_BYTES_MAX => {
            Some(RecordError::TooLarge { bytes, max: ENTRY_BYTES_MAX })
        }
        None => None,
    };
    refusal.map_or(Ok(()), |e| {
        out.truncate(start);
        Err(e)
    })
}

pub(crate) fn push_rotate(out: &mut Vec<u8>, id: u64) {
    frame(out, b'R', |o| o.extend(id.to_le_bytes()));
}

pub(crate) fn push_bye(out: &mut Vec<u8>) {
    frame(out, b'B', |_| {});
}

pub(crate) fn push_welcome(out: &mut Vec<u8>) {
    frame(out, b'W', |_| {});
}

/// One frame for every run of ids whose indices run along.
pub(crate) fn push_written(out: &mut Vec<u8>, mut done: &[(u64, u64)]) {
    while let Some(&(id, index)) = done.first() {
        let along = (0u64..).zip(done).take_while(|(n, d)| **d == (id + n, index + n)).count();
        // At least the first one, and no more than a client may have outstanding.
        let count = along as u32;
        frame(out, b'A', |o| {
            o.extend(id.to_le_bytes());
            o.extend(index.to_le_bytes());
            o.extend(count.to_le_bytes());
        });
        done = &done[along..];
    }
}

pub(crate) fn push_refused(out: &mut Vec<u8>, id: u64, error: RecordError) {
    let error = match error {
        RecordError::Disk { cause } => WireError::Disk { cause },
        RecordError::Gone { cause } => WireError::Gone { cause },
        RecordError::TooLarge { bytes, max } => WireError::TooLarge { bytes, max },
        RecordError::Invalid { why } => WireError::Invalid { why },
        RecordError::Flood { why } => WireError::Flood { why },
    };
    let json = serde_json::to_vec(&error).unwrap_or_default();
    frame(out, b'E', |o| {
        o.extend(id.to_le_bytes());
        o.extend(json);
    });
}

fn take_u64(body: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let (id, rest) = body.split_first_chunk::<8>().ok_or(Malformed)?;
    Ok((u64::from_le_bytes(*id), rest))
}

/// Parses what stands in a client's frame after its length.
pub(crate) fn parse_client(frame: &[u8]) -> Result<FromClient, Malformed> {
    let (kind, body) = frame.split_first().ok_or(Malformed)?;
    match kind {
        b'H' => serde_json::from_slice(body).map(FromClient::Hello).map_err(|_| Malformed),
        b'S' => {
            let (id, rest) = take_u64(body)?;
            let (durability, json) = rest.split_first().ok_or(Malformed)?;
            let durability = match durability {
                0 => Durability::Ordered,
                1 => Durability::Durable,
                _ => return Err(Malformed),
            };
            let record = serde_json::from_slice(json)
                .map_err(|e| RecordError::Invalid { why: e.to_string() });
            Ok(FromClient::Submit { id, durability, record })
        }
        b'R' => match take_u64(body)? {
            (id, []) => Ok(FromClient::Rotate { id }),
            _ => Err(Malformed),
        },
        b'B' if body.is_empty() => Ok(FromClient::Bye),
        _ => Err(Malformed),
    }
}

/// Parses what stands in a recorder's frame after its length.
pub(crate) fn parse_recorder(frame: &[u8]) -> Result<FromRecorder, Malformed> {
    let (kind, body) = frame.split_first().ok_or(Malformed)?;
    match kind {
        b'W' if body.is_empty() => Ok(FromRecorder::Welcome),
        b'A' => {
            let (id, rest) = take_u64(body)?;
            let (index, rest) = take_u64(rest)?;
            let count = u32::from_le_bytes(rest.try_into().map_err(|_| Malformed)?);
            let last = u64::from(count);
            if id.checked_add(last).is_none() || index.checked_add(last).is_none() {
                return Err(Malformed);
            }
            Ok(FromRecorder::Written { id, index, count })
        }
        b'E' => {
            let (id, json) = take_u64(body)?;
            let error = match serde_json::from_slice(json).map_err(|_| Malformed)? {
                WireError::Disk { cause } => RecordError::Disk { cause },
                WireError::Gone { cause } => RecordError::Gone { cause },
                WireError::TooLarge { bytes, max } => RecordError::TooLarge { bytes, max },
                WireError::Invalid { why } => RecordError::Invalid { why },
                WireError::Flood { why } => RecordError::Flood { why },
            };
            Ok(FromRecorder::Refused { id, error })
        }
        _ => Err(Malformed),
    }
}

/// Cuts a stream into frames.
pub(crate) struct Frames<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> Frames<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; 2 * FRAME_BYTES_MAX], start: 0, end: 0 }
    }

    /// The next frame without its length; `None` when the stream ends between two frames.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        if !self.fill(4)? {
            return if self.start == self.end { Ok(None) } else { Err(cut_off()) };
        }
        let mut len = [0; 4];
        len.copy_from_slice(&self.buffer[self.start..self.start + 4]);
        let len = u32::from_le_bytes(len) as usize;
        if len == 0 || len > FRAME_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame has an impossible length",
            ));
        }
        if !self.fill(4 + len)? {
            return Err(cut_off());
        }
        let from = self.start + 4;
        self.start = from + len;
        Ok(Some(&self.buffer[from..from + len]))
    }

    fn fill(&mut self, want: usize) -> io::Result<bool> {
        if self.end - self.start >= want {
            return Ok(true);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < want {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a frame")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_run_along_share_a_frame_and_others_do_not() {
        let done = [(3, 10), (4, 11), (5, 12), (6, 14), (9, 15), (8, 16)];
        let mut bytes = Vec::new();
        push_written(&mut bytes, &done);
        let (mut frames, mut got, mut count_of) = (Frames::new(&bytes[..]), vec![], vec![]);
        while let Some(frame) = frames.next_frame().unwrap() {
            let Ok(FromRecorder::Written { id, index, count }) = parse_recorder(frame) else {
                panic!("not an answer");
            };
            count_of.push(count);
            got.extend((0..u64::from(count)).map(|n| (id + n, index + n)));
        }
        assert_eq!((got.as_slice(), count_of.as_slice()), (&done[..], &[3, 1, 1, 1][..]));
        let mut bytes = Vec::new();
        push_written(&mut bytes, &[(u64::MAX, 1)]);
        assert_eq!(parse_recorder(&bytes[4..]), Err(Malformed), "an id that would overflow");
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_read() {
        let bytes = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
        let kind = Frames::new(&bytes[..]).next_frame().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::InvalidData);
    }
}
