//! Recovery: a torn tail is set aside, damage elsewhere is refused, nothing acknowledged is lost.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Seed, Temp, append, entry, make_log};
use model::Durability;
use nanoclaw_audit::entry::Entry;
use nanoclaw_audit::log::{Log, OpenError};
use nanoclaw_audit::payload::{self, Kept};
use nanoclaw_audit::read::{Filter, Follow, Reader};
use nanoclaw_audit::wal::WalError;
use nanoclaw_audit::{raw, verify_dir};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;

fn wal(dir: &Path) -> std::path::PathBuf {
    dir.join("wal/0000000000000000.wal")
}

#[test]
fn a_torn_tail_is_kept_as_evidence_and_the_log_goes_on() {
    for torn in
        [&b"x"[..], &[0; 16], &[0; 4096], &[0xff; 40], b"\x09\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0short"]
    {
        let dir = Temp::new("torn");
        make_log(&dir.0, 5);
        OpenOptions::new().append(true).open(wal(&dir.0)).unwrap().write_all(torn).unwrap();
        let report = verify_dir(&dir.0, None).unwrap();
        assert_eq!((report.records, report.unsigned_bytes), (5, torn.len() as u64));
        // Until then whoever reads meets the end there, not damage.
        let read: Vec<u64> =
            Reader::new(&dir.0, Filter::default()).map(|e| e.unwrap().index).collect();
        assert_eq!(read, [0, 1, 2, 3, 4]);
        assert_eq!(raw::scan(&dir.0, 0, |_, _| ControlFlow::Continue(())).unwrap(), 5);
        assert_eq!(payload::check(&dir.0).unwrap(), Kept::default());
        let log = Log::open(&dir.0).unwrap();
        assert_eq!(log.recovered().records, 5);
        assert_eq!(log.recovered().torn_bytes, torn.len() as u64);
        let kept = fs::read_dir(dir.0.join("evidence")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(kept).unwrap(), torn);
        assert_eq!(append(&log, entry(5)), 5);
        log.close().unwrap();
        assert_eq!(verify_dir(&dir.0, None).unwrap().records, 6);
    }
}

#[test]
fn damage_before_the_tail_is_refused_with_file_and_byte() {
    let dir = Temp::new("damage");
    let log = Log::open(&dir.0).unwrap();
    for i in 0..20 {
        append(&log, entry(i));
    }
    drop(log);
    let good = fs::read(wal(&dir.0)).unwrap();
    let frame = 16 + entry(0).len();
    let mut bad = good.clone();
    bad[3 * frame + 20] ^= 1;
    fs::write(wal(&dir.0), &bad).unwrap();
    let read = Reader::new(&dir.0, Filter::default()).last().unwrap();
    assert!(read.is_err(), "records stand behind it: {read:?}");
    assert!(raw::scan(&dir.0, 0, |_, _| ControlFlow::Continue(())).is_err());
    match Log::open(&dir.0) {
        Err(OpenError::Wal(WalError::Damaged { path, offset, .. })) => {
            assert_eq!((path, offset), (wal(&dir.0), 3 * frame as u64));
        }
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(fs::read(wal(&dir.0)).unwrap(), bad, "nothing may be cut");
    // The last record: nothing stands behind it, but it was signed.
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(wal(&dir.0), &bad).unwrap();
    assert!(matches!(Log::open(&dir.0), Err(OpenError::Mismatch { .. })));
    assert_eq!(fs::read(wal(&dir.0)).unwrap(), bad, "nothing may be cut");
}

#[test]
fn one_writer_at_a_time() {
    let dir = Temp::new("lock");
    let log = Log::open(&dir.0).unwrap();
    assert!(matches!(Log::open(&dir.0), Err(OpenError::Locked { .. })));
    log.close().unwrap();
    Log::open(&dir.0).unwrap().close().unwrap();
}

#[test]
fn random_damage_never_panics_and_never_loses_signed_records() {
    let dir = Temp::new("fuzz");
    make_log(&dir.0, 40);
    let good = fs::read(wal(&dir.0)).unwrap();
    let mut seed = Seed(99);
    for round in 0..150 {
        let mut bytes = good.clone();
        for _ in 0..=seed.below(3) {
            match seed.below(3) {
                0 => {
                    let at = seed.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << seed.below(8);
                }
                1 => bytes.truncate(seed.below(bytes.len() as u64) as usize + 1),
                _ => bytes.extend((0..seed.below(60)).map(|i| (i * 37) as u8)),
            }
        }
        fs::write(wal(&dir.0), &bytes).unwrap();
        let verified = verify_dir(&dir.0, None);
        let whole = bytes.starts_with(&good);
        assert_eq!(verified.is_ok(), whole, "round {round}");
        let opened = Log::open(&dir.0);
        assert_eq!(opened.is_ok(), whole, "round {round}");
        if let Ok(log) = opened {
            assert_eq!(log.recovered().records, 40);
        }
        let _ = Reader::new(&dir.0, Filter::default()).count();
    }
}

#[test]
fn a_reader_follows_a_log_that_grows_and_verify_bears_with_it() {
    let dir = Temp::new("follow");
    make_log(&dir.0, 3);
    let mut follow = Follow::new(&dir.0, Filter { from: 1, ..Filter::default() }).unwrap();
    assert_eq!(follow.wait().unwrap().index, 1);
    let (tell, told) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for due in 2..2_000 {
            let stored = follow.wait().unwrap();
            assert_eq!((stored.index, stored.bytes), (due, entry(due as usize)));
        }
        tell.send(()).unwrap();
    });
    let log = Log::open(&dir.0).unwrap();
    for i in 3..2_000 {
        let entry = Entry::from_bytes(entry(i)).unwrap();
        log.submit(&entry, Durability::Durable, Box::new(|r| assert!(r.is_ok())));
        if i % 100 == 0 {
            log.sign().unwrap();
            verify_dir(&dir.0, None).unwrap();
        }
    }
    told.recv().unwrap();
    reader.join().unwrap();
    log.close().unwrap();
    assert_eq!(verify_dir(&dir.0, None).unwrap().records, 2_000);
}

#[test]
fn an_empty_log_verifies_and_has_a_signed_head() {
    let dir = Temp::new("empty");
    Log::open(&dir.0).unwrap().close().unwrap();
    assert_eq!(verify_dir(&dir.0, None).unwrap().records, 0);
    assert!(File::open(dir.0.join("checkpoint")).is_ok());
}

#[test]
fn a_busy_log_signs_by_itself_soon_after_it_went_quiet() {
    let dir = Temp::new("quiet");
    let log = Log::open(&dir.0).unwrap();
    append(&log, entry(0));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while verify_dir(&dir.0, None).unwrap().records == 0 {
        assert!(std::time::Instant::now() < until, "no checkpoint came");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(log);
}
