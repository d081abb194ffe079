//! The log in other systems' words: OCSF events, OpenTelemetry traces. One JSON object a line.
//!
//! ```text
//! entries ─┬─► ocsf: every record an event, with what its class requires and its attestation
//!          └─► otlp: turns, model and tool calls as spans (GenAI), the rest as their events
//! ```
//!
//! 1. An export proves nothing by itself; it says where in which log a record stands, so that
//!    `audit proof` of that record can be asked for.
//! 2. Texts that stand beside the log are not exported.

pub mod ocsf;
pub mod otlp;

use crate::canonical;
use serde_json::Value;

/// One line of an export. Every number in it is whole and small, or text; a value that were not is
/// left out and said to be.
fn line(value: &Value) -> String {
    let mut bytes = Vec::new();
    match canonical::write(&mut bytes, value) {
        // Canonical JSON is UTF-8.
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) => format!("{{\"error\":\"{e}\"}}"),
    }
}
