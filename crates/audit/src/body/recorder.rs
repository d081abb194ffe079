//! What the recorder says of itself: it started and stopped, lost a client, took another key,
//! refused records, or found the clock set back.

use super::{Fields, Written};
use crate::canonical::NotCanonical;
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::RecorderStarted { version, recovered_records, torn_bytes } => f
            .text("kind", kind)
            .uint("recovered_records", *recovered_records)?
            .uint("torn_bytes", *torn_bytes)?
            .turn()
            .text("version", version),
        Body::RecorderStopped { records } => f.text("kind", kind).uint("records", *records)?.turn(),
        Body::ClientLost { pid, role } => {
            f.text("kind", kind).uint("pid", u64::from(*pid))?.text("role", role).turn()
        }
        Body::KeyAnnounced { old_vkey, new_vkey } => {
            f.text("kind", kind).text("new_vkey", new_vkey).text("old_vkey", old_vkey).turn()
        }
        Body::RecordGap { lost, open, reason } => f
            .text("kind", kind)
            .uint("lost", *lost)?
            .flag("open", *open)
            .text("reason", reason)
            .turn(),
        Body::ClockSetBack { before_ms, now_ms } => {
            f.uint("before_ms", *before_ms)?.text("kind", kind).uint("now_ms", *now_ms)?.turn()
        }
        _ => return Err(NotCanonical),
    }
    .end()
}
