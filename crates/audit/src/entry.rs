//! One record as one log entry: an OCSF 1.9-shaped event in canonical JSON.
//!
//! ```text
//! Record ─► encode ─► bytes (RFC 8785, ≤ 64,000)      bytes ─► decode ─► Record
//! ```
//!
//! 1. Equal records with equal uid give equal bytes: nothing depends on time, place or hash order.
//! 2. What has no OCSF field stands under `unmapped`, tagged with its `kind`; nothing is dropped,
//!    and `decode` gives back exactly the record that went in.
//! 3. No floats, no number beyond 2^53, no entry beyond 64,000 bytes: refused, never cut.

use crate::body;
use crate::canonical::{self, NotCanonical};
use crate::payload::Beside;
use model::{AgentName, Body, Record, SessionId, TurnId};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest entry, bytes. tlog-tiles allows 65,535; the rest is room for what an exporter adds.
pub const ENTRY_BYTES_MAX: usize = 64_000;

/// OCSF version the events are shaped after.
pub const OCSF_VERSION: &str = "1.9.0";

/// Why a record cannot be an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It is too large.
    #[error(
        "the record has {bytes} bytes; an entry may have {ENTRY_BYTES_MAX}; \
         store the payload beside it and record its digest"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It has no bytes at all.
    #[error("an entry without bytes cannot be recorded")]
    Empty,
    /// It has a number that not every reader would read alike.
    #[error(transparent)]
    Number(#[from] NotCanonical),
}

/// Bytes that may go into a log: at least one, and within the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    /// Wraps bytes as they are; what they say is the caller's affair.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`], [`EncodeError::Empty`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, EncodeError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EncodeError::TooLarge { bytes: bytes.len() });
        }
        if bytes.is_empty() {
            return Err(EncodeError::Empty);
        }
        Ok(Self { bytes })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes as a vector, e.g. to encode the next record into ([`encode_in`]).
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Unique ids of events: UUIDv7 (RFC 9562 §5.7), time from the record, the rest a random start
/// and a counter.
#[derive(Debug)]
pub struct Uids {
    start: u64,
    count: AtomicU64,
}

impl Uids {
    /// `start` is random, once a process.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self { start, count: AtomicU64::new(0) }
    }

    /// The next one.
    #[must_use]
    pub fn next(&self, time_ms: u64) -> [u8; 36] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let n = self.start.wrapping_add(self.count.fetch_add(1, Ordering::Relaxed));
        let high = (time_ms << 16) | 0x7000 | (self.start >> 52);
        let low = (n & (u64::MAX >> 2)) | (1 << 63);
        let all = (u128::from(high) << 64) | u128::from(low);
        let (mut text, mut shift) = ([b'-'; 36], 128);
        for (i, c) in text.iter_mut().enumerate() {
            if !matches!(i, 8 | 13 | 18 | 23) {
                shift -= 4;
                *c = HEX[(all >> shift) as usize & 15];
            }
        }
        text
    }
}

/// How the entry of a [`Body::KeyAnnounced`] begins, and no other: it alone is of that class.
pub(crate) const KEY_ANNOUNCED: &[u8] =
    b"{\"activity_id\":3,\"category_uid\":3,\"class_uid\":3004,";

/// How a kind of record stands in OCSF: class, activity, severity, status.
struct Shape {
    class: u64,
    activity: u64,
    severity: u64,
    status: u64,
}

/// Said of every entry that names an agent: it has what OCSF's profile `ai_operation` adds.
const PROFILES: &[u8] = b",\"profiles\":[\"ai_operation\"]";

const APPLICATION_LIFECYCLE: u64 = 6002;
const API_ACTIVITY: u64 = 6003;
const PROCESS_ACTIVITY: u64 = 1007;
const NETWORK_ACTIVITY: u64 = 4001;
const FILE_SYSTEM_ACTIVITY: u64 = 1001;
const COMPLIANCE_FINDING: u64 = 2003;
const ENTITY_MANAGEMENT: u64 = 3004;
/// Activity of [`API_ACTIVITY`]: something was deleted.
const DELETE: u64 = 4;
/// Activity of any class that has no better word.
const OTHER: u64 = 99;
const INFORMATIONAL: u64 = 1;
const MEDIUM: u64 = 3;
const CRITICAL: u64 = 5;
const SUCCESS: u64 = 1;
const FAILURE: u64 = 2;
/// The outcome is not known yet: an intent.
const UNKNOWN: u64 = 0;

fn shape(body: &Body) -> Shape {
    let s = |class, activity, severity, status| Shape { class, activity, severity, status };
    let done = |ok| if ok { SUCCESS } else { FAILURE };
    match body {
        Body::RecorderStarted { .. } | Body::SessionOpened { .. } => {
            s(APPLICATION_LIFECYCLE, 3, INFORMATIONAL, SUCCESS)
        }
        Body::RecorderStopped { .. } | Body::SessionClosed { .. } => {
            s(APPLICATION_LIFECYCLE, 4, INFORMATIONAL, SUCCESS)
        }
        Body::ClientLost { .. } => s(APPLICATION_LIFECYCLE, OTHER, MEDIUM, FAILURE),
        Body::KeyAnnounced { .. } => s(ENTITY_MANAGEMENT, 3, MEDIUM, SUCCESS),
        Body::RecordGap { .. } | Body::ClockSetBack { .. } => {
            s(COMPLIANCE_FINDING, 1, MEDIUM, FAILURE)
        }
        Body::TotalsDisagree { .. } | Body::ObserversDisagree { .. } => {
            s(COMPLIANCE_FINDING, 1, CRITICAL, FAILURE)
        }
        Body::FilesChanged { .. } => s(FILE_SYSTEM_ACTIVITY, OTHER, INFORMATIONAL, SUCCESS),
        Body::FilesManifest { mounts, .. } => {
            let whole = mounts.iter().all(|m| m.missed == 0 && m.unlisted == 0);
            s(FILE_SYSTEM_ACTIVITY, OTHER, INFORMATIONAL, done(whole))
        }
        Body::SandboxStarted { .. } => s(PROCESS_ACTIVITY, 1, INFORMATIONAL, SUCCESS),
        Body::SandboxStopped { .. } => s(PROCESS_ACTIVITY, 2, INFORMATIONAL, SUCCESS),
        Body::ProcessExec { .. } => s(PROCESS_ACTIVITY, 1, INFORMATIONAL, UNKNOWN),
        Body::ProcessImage { image, .. } => {
            s(PROCESS_ACTIVITY, OTHER, INFORMATIONAL, done(image.is_some()))
        }
        Body::ConnectRefused { .. } => s(NETWORK_ACTIVITY, 5, MEDIUM, FAILURE),
        Body::Cosigning { reached: true, .. } => s(COMPLIANCE_FINDING, 1, INFORMATIONAL, SUCCESS),
        Body::Cosigning { contradicted: true, .. } => s(COMPLIANCE_FINDING, 1, CRITICAL, FAILURE),
        Body::Cosigning { .. } => s(COMPLIANCE_FINDING, 1, MEDIUM, FAILURE),
        Body::WitnessGap { .. } => s(COMPLIANCE_FINDING, 1, MEDIUM, FAILURE),
        Body::Message { .. } | Body::MessageWithdrawn { .. } | Body::TurnFinished { .. } => {
            s(API_ACTIVITY, OTHER, INFORMATIONAL, SUCCESS)
        }
        Body::TurnStarted { .. }
        | Body::ModelRequest { .. }
        | Body::SecretUsed { .. }
        | Body::LoginRequest { .. }
        | Body::ToolCalled { .. } => s(API_ACTIVITY, OTHER, INFORMATIONAL, UNKNOWN),
        Body::ModelResponse { error, .. } | Body::LoginResponse { error, .. } => {
            s(API_ACTIVITY, OTHER, INFORMATIONAL, done(error.is_none()))
        }
        Body::LoginChanged { .. } => s(API_ACTIVITY, 3, INFORMATIONAL, SUCCESS),
        Body::ToolFinished { ok, .. } => s(API_ACTIVITY, OTHER, INFORMATIONAL, done(*ok)),
        Body::EgressIntent { .. } | Body::EgressPinned { .. } => {
            s(NETWORK_ACTIVITY, 1, INFORMATIONAL, UNKNOWN)
        }
        Body::EgressResult { error: None, .. } => s(NETWORK_ACTIVITY, 2, INFORMATIONAL, SUCCESS),
        Body::EgressResult { error: Some(_), .. } => s(NETWORK_ACTIVITY, 4, INFORMATIONAL, FAILURE),
        Body::EgressRefused { .. } => s(NETWORK_ACTIVITY, 5, MEDIUM, FAILURE),
        Body::ApprovalAsked { .. } | Body::HostToolCalled { .. } => {
            s(API_ACTIVITY, OTHER, INFORMATIONAL, UNKNOWN)
        }
        Body::ApprovalDecided { .. } => s(API_ACTIVITY, OTHER, INFORMATIONAL, SUCCESS),
        Body::HostToolFinished { ok, .. } => s(API_ACTIVITY, OTHER, INFORMATIONAL, done(*ok)),
        Body::PolicyLearned { .. }
        | Body::PolicyAccepted { .. }
        | Body::PolicyChanged { unknown: None, .. } => s(API_ACTIVITY, 3, MEDIUM, SUCCESS),
        Body::PolicyChanged { .. } => s(API_ACTIVITY, 3, MEDIUM, UNKNOWN),
        Body::PayloadsErased { .. } | Body::RecordsPruned { .. } => {
            s(API_ACTIVITY, DELETE, MEDIUM, SUCCESS)
        }
        Body::ProbeObserved { held: true, .. } => s(COMPLIANCE_FINDING, 1, INFORMATIONAL, SUCCESS),
        Body::ProbeObserved { held: false, .. } => s(COMPLIANCE_FINDING, 1, CRITICAL, FAILURE),
    }
}

/// Writes a record as an entry.
///
/// # Errors
/// When it is too large or has a number beyond 2^53.
pub fn encode(record: &Record, uid: &[u8; 36]) -> Result<Entry, EncodeError> {
    encode_in(Vec::with_capacity(640), record, uid)
}

/// As [`encode`], into the memory of a vector that is no longer needed.
///
/// # Errors
/// As [`encode`].
pub fn encode_in(out: Vec<u8>, record: &Record, uid: &[u8; 36]) -> Result<Entry, EncodeError> {
    encode_with(out, record, uid, None)
}

/// As [`encode_in`], with what was taken out of the record to stand beside the log
/// ([`crate::payload`]).
///
/// # Errors
/// As [`encode`].
pub fn encode_with(
    mut out: Vec<u8>,
    record: &Record,
    uid: &[u8; 36],
    beside: Option<&Beside>,
) -> Result<Entry, EncodeError> {
    let shape = shape(&record.body);
    out.clear();
    // The keys below stand in canonical order; `tests/entries.rs` checks it with a foreign library.
    out.extend(b"{\"activity_id\":");
    canonical::uint(&mut out, shape.activity)?;
    if record.session.is_some() || record.agent.is_some() {
        out.extend(b",\"ai_agent\":{");
        if let Some(session) = &record.session {
            out.extend(b"\"instance_uid\":");
            canonical::string(&mut out, session.as_str());
        }
        if let Some(agent) = &record.agent {
            out.extend(if record.session.is_some() { &b",\"uid\":"[..] } else { b"\"uid\":" });
            canonical::string(&mut out, agent.as_str());
        }
        out.push(b'}');
    }
    for (key, number) in
        [(&b",\"category_uid\":"[..], shape.class / 1000), (b",\"class_uid\":", shape.class)]
    {
        out.extend(key);
        canonical::uint(&mut out, number)?;
    }
    out.extend(
        concat!(
            ",\"metadata\":{\"product\":{\"name\":\"nanoclaw\",\"version\":\"",
            env!("CARGO_PKG_VERSION"),
            "\"}"
        )
        .as_bytes(),
    );
    if record.agent.is_some() {
        out.extend(PROFILES);
    }
    out.extend(b",\"uid\":\"");
    out.extend(uid);
    out.extend(b"\",\"version\":\"");
    out.extend(OCSF_VERSION.as_bytes());
    out.extend(b"\"}");
    for (key, number) in [
        (&b",\"severity_id\":"[..], shape.severity),
        (b",\"status_id\":", shape.status),
        (b",\"time\":", record.time_ms),
        (b",\"type_uid\":", shape.class * 100 + shape.activity),
    ] {
        out.extend(key);
        canonical::uint(&mut out, number)?;
    }
    out.extend(b",\"unmapped\":");
    body::write(&mut out, &record.body, record.turn.as_ref(), beside)?;
    out.push(b'}');
    Entry::from_bytes(out)
}

/// Why bytes are not an entry of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the entry is not a record this version knows: {why}; \
     read it with the version that wrote it, or as plain JSON"
)]
pub struct DecodeError {
    /// What is wrong.
    pub why: String,
}

/// Reads an entry back.
///
/// # Errors
/// When it is not JSON, not an event of this log, or of a kind that this version does not know.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let bad = |why: String| DecodeError { why };
    let event: Value = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    let time_ms = event["time"].as_u64().ok_or_else(|| bad("it has no time".into()))?;
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let session = text(&event["ai_agent"]["instance_uid"]).map(|s| SessionId::parse(&s));
    let agent = text(&event["ai_agent"]["uid"]).map(|s| AgentName::parse(&s));
    let Value::Object(mut unmapped) = event["unmapped"].clone() else {
        return Err(bad("it has no unmapped fields".into()));
    };
    unmapped.remove("payloads");
    let turn = unmapped.remove("turn").as_ref().and_then(text).map(|s| TurnId::parse(&s));
    let body = serde_json::from_value(Value::Object(unmapped)).map_err(|e| bad(e.to_string()))?;
    Ok(Record {
        time_ms,
        session: session.transpose().map_err(|e| bad(e.to_string()))?,
        agent: agent.transpose().map_err(|e| bad(e.to_string()))?,
        turn: turn.transpose().map_err(|e| bad(e.to_string()))?,
        body,
    })
}

/// Whether bytes are the one canonical spelling of a record of a known kind; if not, why.
pub(crate) fn well_formed(bytes: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let mut canonical = Vec::with_capacity(bytes.len());
    canonical::write(&mut canonical, &value).map_err(|e| e.to_string())?;
    if canonical != bytes {
        return Err("it is not written in canonical form".to_owned());
    }
    decode(bytes).map(drop).map_err(|e| e.to_string())
}
