//! Key epochs and sealed segments: whose signatures count, and what an open takes on trust.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Temp, append, entry, make_log};
use model::{Body, Record};
use nanoclaw_audit::entry::{Uids, encode};
use nanoclaw_audit::log::{Log, OpenError, Options};
use nanoclaw_audit::merkle::{leaf_hash, subtree_root};
use nanoclaw_audit::note::Signer;
use nanoclaw_audit::tiler::SignAfter;
use nanoclaw_audit::{Filter, Reader, verify_dir};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn options(checked_bytes: u64) -> Options {
    let never = Duration::from_secs(60);
    let sign_after = SignAfter { quiet: never, at_most: never };
    Options { segment_bytes: 2_000, checked_bytes, sign_after }
}

fn rotate(log: &Log) -> u64 {
    let (old_vkey, new_vkey) = log.prepare_key().unwrap();
    let body = Body::KeyAnnounced { old_vkey, new_vkey: new_vkey.clone() };
    let record = Record { time_ms: 7, session: None, agent: None, turn: None, body };
    let index = append(log, encode(&record, &Uids::new(1).next(7)).unwrap().into_bytes());
    log.sign().unwrap();
    assert_eq!(log.verifier().vkey(), new_vkey);
    index
}

fn key(dir: &Path) -> Signer {
    Signer::parse(fs::read_to_string(dir.join("private/key")).unwrap().trim_end()).unwrap()
}

/// A log with two keys before its own; returns those two.
fn make(dir: &Path) -> [Signer; 2] {
    let log = Log::open_with(dir, options(1 << 20)).unwrap();
    let mut olds = Vec::new();
    for i in 0..3 {
        for n in 0..110 {
            append(&log, entry(i * 110 + n));
        }
        if i < 2 {
            olds.push(key(dir));
            rotate(&log);
        }
    }
    log.close().unwrap();
    olds.try_into().unwrap()
}

/// A head over everything that is there, by any key.
fn head_by(dir: &Path, signer: &Signer) -> String {
    let all = Reader::new(dir, Filter::default());
    let leaves: Vec<_> = all.map(|stored| leaf_hash(&stored.unwrap().bytes)).collect();
    signer.sign(leaves.len() as u64, subtree_root(&leaves))
}

fn refused(dir: &Path, vkey: Option<&str>, words: &str) {
    let found = verify_dir(dir, vkey).unwrap_err().to_string();
    assert!(found.contains(words), "{found}");
}

#[test]
fn every_key_of_the_chain_leads_to_the_last_and_no_other_does() {
    let (dir, other) = (Temp::new("chain"), Temp::new("other"));
    let olds = make(&dir.0);
    make_log(&other.0, 3);
    for signer in olds.iter().chain([&key(&dir.0)]) {
        let report = verify_dir(&dir.0, Some(&signer.verifier().vkey())).unwrap();
        assert_eq!((report.records, report.vkey), (332, key(&dir.0).verifier().vkey()));
    }
    refused(&dir.0, Some(&key(&other.0).verifier().vkey()), "not the verifier key that was given");
    // It goes on with the newest key.
    let log = Log::open(&dir.0).unwrap();
    append(&log, entry(0));
    log.close().unwrap();
    verify_dir(&dir.0, Some(&olds[0].verifier().vkey())).unwrap();
}

#[test]
fn an_old_key_s_later_signature_is_refused() {
    let dir = Temp::new("later");
    let olds = make(&dir.0);
    let vkey = fs::read_to_string(dir.0.join("vkey")).unwrap();
    for old in &olds {
        fs::write(dir.0.join("checkpoint"), head_by(&dir.0, old)).unwrap();
        for given in [None, Some(vkey.as_str()), Some(&*olds[0].verifier().vkey())] {
            refused(&dir.0, given, "replaced by then");
        }
        assert!(matches!(Log::open(&dir.0), Err(OpenError::Note { .. })));
    }
    // With every trace of the epochs after it taken away, the records still tell.
    let old = &olds[0];
    fs::write(dir.0.join("checkpoint"), head_by(&dir.0, old)).unwrap();
    fs::remove_dir_all(dir.0.join("epochs")).unwrap();
    fs::remove_file(dir.0.join("manifest")).unwrap();
    fs::write(dir.0.join("vkey"), format!("{}\n", old.verifier().vkey())).unwrap();
    fs::write(dir.0.join("private/key"), format!("{}\n", old.skey())).unwrap();
    for given in [None, Some(&*old.verifier().vkey())] {
        refused(&dir.0, given, "announces another key, but the one before it goes on");
    }
    match Log::open(&dir.0) {
        Err(OpenError::Mismatch { what, .. }) => assert!(what.contains("announces"), "{what}"),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_head_signed_by_a_key_that_nobody_announced_is_a_finding() {
    let dir = Temp::new("unannounced");
    let olds = make(&dir.0);
    let forger = Signer::from_seed(olds[0].verifier().name(), [9; 32]).unwrap();
    fs::write(dir.0.join("checkpoint"), head_by(&dir.0, &forger)).unwrap();
    refused(&dir.0, None, "signature is not valid");
    fs::remove_file(dir.0.join("manifest")).unwrap();
    fs::write(dir.0.join("vkey"), format!("{}\n", forger.verifier().vkey())).unwrap();
    refused(&dir.0, None, "not announced by any record");
    refused(&dir.0, Some(&olds[0].verifier().vkey()), "not announced by any record");
    assert!(matches!(Log::open(&dir.0), Err(OpenError::Mismatch { .. })));
}

/// A frame with a right checksum, behind everything that is there.
fn push_frame(dir: &Path, bytes: &[u8]) -> Vec<u8> {
    let seq = Reader::new(dir, Filter::default()).count() as u64;
    let len = bytes.len() as u32 | (1 << 31);
    let covered = [&len.to_le_bytes()[..], &seq.to_le_bytes(), bytes].concat();
    let crc = crc32c::crc32c(&covered).to_le_bytes();
    let frame = [&len.to_le_bytes()[..], &crc, &seq.to_le_bytes(), bytes].concat();
    let last = nanoclaw_audit::wal::segments(dir).unwrap().pop().unwrap().path;
    fs::write(&last, [fs::read(&last).unwrap(), frame.clone()].concat()).unwrap();
    frame
}

/// Who can write the folder and has no key: a key of his own, and the record that announces it.
fn forge_announcement(dir: &Path) -> (Signer, Vec<u8>) {
    let own = key(dir);
    let forger = Signer::from_seed(own.verifier().name(), [9; 32]).unwrap();
    fs::write(dir.join("private/key.next"), format!("{}\n", forger.skey())).unwrap();
    let (old_vkey, new_vkey) = (own.verifier().vkey(), forger.verifier().vkey());
    let body = Body::KeyAnnounced { old_vkey, new_vkey };
    let record = Record { time_ms: 7, session: None, agent: None, turn: None, body };
    let bytes = encode(&record, &Uids::new(3).next(7)).unwrap().into_bytes();
    let frame = push_frame(dir, &bytes);
    (forger, frame)
}

#[test]
fn an_announcement_that_no_head_covers_is_set_aside_and_the_old_key_signs_on() {
    let dir = Temp::new("forged");
    make(&dir.0);
    let own = key(&dir.0);
    let (_, frame) = forge_announcement(&dir.0);
    for round in 0..2 {
        let log = Log::open_with(&dir.0, options([0, 1 << 20][round])).unwrap();
        assert_eq!(log.verifier(), *own.verifier(), "it was believed");
        let torn = if round == 0 { frame.len() as u64 } else { 0 };
        assert_eq!(
            (log.recovered().records, log.recovered().torn_bytes),
            (332 + round as u64, torn)
        );
        append(&log, entry(round));
        log.close().unwrap();
        let report = verify_dir(&dir.0, Some(&own.verifier().vkey())).unwrap();
        assert_eq!(report.vkey, own.verifier().vkey());
    }
    let kept = fs::read_dir(dir.0.join("evidence")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(kept).unwrap(), frame);
    assert!(!dir.0.join("private/key.next").exists());
    // A key that lies there when one is made is nobody's either.
    let log = Log::open(&dir.0).unwrap();
    let forger = Signer::from_seed(own.verifier().name(), [9; 32]).unwrap();
    fs::write(dir.0.join("private/key.next"), format!("{}\n", forger.skey())).unwrap();
    rotate(&log);
    log.close().unwrap();
    assert_ne!(key(&dir.0).verifier(), forger.verifier());
    verify_dir(&dir.0, Some(&own.verifier().vkey())).unwrap();
}

#[test]
fn an_announcement_with_records_behind_it_and_a_closing_note_that_ends_in_none_are_refused() {
    let dir = Temp::new("behind");
    make(&dir.0);
    let own = key(&dir.0);
    let saved = fs::read(dir.0.join("checkpoint")).unwrap();
    // Any head of the old key as a closing note, and a key: nothing announces it.
    let forger = Signer::from_seed(own.verifier().name(), [9; 32]).unwrap();
    fs::write(dir.0.join("private/key.next"), format!("{}\n", forger.skey())).unwrap();
    let closing = [format!("{}\n", own.verifier().vkey()).into_bytes(), saved].concat();
    fs::write(dir.0.join("epochs/0002"), closing).unwrap();
    match Log::open(&dir.0) {
        Err(OpenError::Mismatch { what, .. }) => assert!(what.contains("no record"), "{what}"),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(key(&dir.0).verifier(), own.verifier(), "the key was replaced");
    fs::remove_file(dir.0.join("epochs/0002")).unwrap();
    forge_announcement(&dir.0);
    push_frame(&dir.0, &entry(1));
    match Log::open(&dir.0) {
        Err(OpenError::Mismatch { what, .. }) => assert!(what.contains("no head covers"), "{what}"),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_lost_or_changed_epoch_is_named() {
    let dir = Temp::new("epoch");
    let olds = make(&dir.0);
    let path = dir.0.join("epochs/0001");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        assert!(verify_dir(&dir.0, None).is_err(), "byte {at}");
    }
    fs::remove_file(&path).unwrap();
    assert!(verify_dir(&dir.0, None).is_err(), "an epoch is gone");
    // A closing note of the right key over other records.
    let text = format!("{}\n{}", olds[1].verifier().vkey(), olds[1].sign(222, [7; 32]));
    fs::write(&path, text).unwrap();
    assert_eq!(verify_dir(&dir.0, None).unwrap_err().file, path);
    fs::write(&path, &good).unwrap();
    verify_dir(&dir.0, None).unwrap();
}

#[test]
fn opening_a_long_log_reads_its_end_and_the_manifest_vouches_for_the_rest() {
    let dir = Temp::new("sealed");
    make(&dir.0);
    let first = dir.0.join("wal/0000000000000000.wal");
    let good = fs::read(&first).unwrap();
    // What the list has is there, or nothing is opened: not shorter, not longer, not gone.
    for bad in [good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat()] {
        fs::write(&first, bad).unwrap();
        for checked in [0, 1 << 20] {
            let opened = Log::open_with(&dir.0, options(checked));
            assert!(matches!(opened, Err(OpenError::Mismatch { .. })));
        }
        assert_eq!(verify_dir(&dir.0, None).unwrap_err().file, first);
    }
    // A changed record in an old segment is found by reading it: a verification does, and an open
    // does within the bytes that it checks.
    let mut bad = good.clone();
    bad[20] ^= 1;
    fs::write(&first, &bad).unwrap();
    assert!(verify_dir(&dir.0, None).is_err());
    assert!(Log::open_with(&dir.0, options(1 << 20)).is_err());
    Log::open_with(&dir.0, options(0)).unwrap().close().unwrap();
    fs::write(&first, &good).unwrap();
    verify_dir(&dir.0, None).unwrap();
    // The tiles at the edge are gone: it reads everything, writes them again and goes on.
    for tile in ["tile/0/001.p", "tile/entries/000"] {
        let path = dir.0.join(tile);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    let log = Log::open_with(&dir.0, options(0)).unwrap();
    assert_eq!((log.recovered().records, log.recovered().tiles_repaired), (332, true));
    append(&log, entry(1));
    log.close().unwrap();
    verify_dir(&dir.0, None).unwrap();
}

#[test]
fn a_manifest_that_was_changed_or_a_head_put_back_behind_it_is_named() {
    let dir = Temp::new("manifest");
    let log = Log::open_with(&dir.0, options(0)).unwrap();
    for i in 0..100 {
        append(&log, entry(i));
    }
    log.sign().unwrap();
    let old_head = fs::read(dir.0.join("checkpoint")).unwrap();
    for i in 0..300 {
        append(&log, entry(i));
    }
    log.close().unwrap();
    let path = dir.0.join("manifest");
    let good = fs::read(&path).unwrap();
    assert!(good.split(|b| *b == b'\n').count() > 5);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        assert!(verify_dir(&dir.0, None).is_err(), "byte {at}");
        assert!(Log::open_with(&dir.0, options(0)).is_err(), "byte {at}");
    }
    fs::write(&path, &good).unwrap();
    let head = fs::read(dir.0.join("checkpoint")).unwrap();
    fs::write(dir.0.join("checkpoint"), old_head).unwrap();
    refused(&dir.0, None, "put back");
    assert!(matches!(Log::open_with(&dir.0, options(0)), Err(OpenError::Mismatch { .. })));
    fs::write(dir.0.join("checkpoint"), head).unwrap();
    // Without it everything is read, and it comes back.
    fs::remove_file(&path).unwrap();
    let log = Log::open_with(&dir.0, options(0)).unwrap();
    append(&log, entry(1));
    log.close().unwrap();
    assert!(fs::read(&path).unwrap().len() >= good.len());
    verify_dir(&dir.0, None).unwrap();
}
