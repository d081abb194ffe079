//! What a record is asked before it costs anything.

use super::*;
use model::{MAX_INLINE_BYTES, SessionId, Sha256Hex};
use std::fs;

fn called(session: u32, length: usize) -> Record {
    let body = Body::ToolCalled {
        call: "1".into(),
        tool: "write".into(),
        arguments: "y".repeat(length),
        arguments_sha256: Sha256Hex("ab".repeat(32)),
    };
    let session = Some(SessionId::mint(5, session));
    Record { time_ms: 1, session, agent: None, turn: None, body }
}

/// Whoever is refused does not touch the disk, so that a flood costs the others nothing there.
#[test]
fn a_session_in_a_flood_is_refused_before_its_text_is_written() {
    let dir = std::env::temp_dir().join(format!("connection-flood-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let hub = Hub::new(Log::open(&dir).unwrap(), &dir, false, Uids::new(1), wake);
    // In debt for an hour.
    let later = Instant::now() + Duration::from_secs(3_600);
    while hub.accounts.judge(&called(1, 1), 1, later).take {}
    // Nothing can be kept: where the folder would be is a file.
    fs::write(dir.join("payload"), "in the way").unwrap();
    let long = MAX_INLINE_BYTES + 1;
    let refused = hub.accept(called(1, long), Vec::new()).map(drop);
    assert!(matches!(refused, Err(RecordError::Flood { .. })), "{refused:?}");
    let unkept = hub.accept(called(2, long), Vec::new()).map(drop);
    assert!(matches!(unkept, Err(RecordError::Disk { .. })), "{unkept:?}");
    hub.accept(called(2, 1), Vec::new()).map(drop).unwrap();
    hub.close().unwrap();
    fs::remove_dir_all(&dir).unwrap();
}
