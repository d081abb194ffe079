//! Pruning: old records go, every proof stays, and nothing goes that is not on record.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Temp;
use model::{AgentName, Body, Durability, Record, SessionId};
use nanoclaw_audit::cosign::Quorum;
use nanoclaw_audit::entry::{Uids, decode, encode};
use nanoclaw_audit::log::{Log, Options};
use nanoclaw_audit::merkle::{self, leaf_hash};
use nanoclaw_audit::note::{Checkpoint, Verifier};
use nanoclaw_audit::scan::scan;
use nanoclaw_audit::source::Folder;
use nanoclaw_audit::tiles::TileNodes;
use nanoclaw_audit::wal::segments;
use nanoclaw_audit::{Filter, Reader, backup, prune, raw, verify_dir};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;

/// Small segments, so that a small log has many.
const SMALL: u64 = 30_000;

fn record(n: u64) -> Record {
    Record {
        time_ms: 1_000_000 + n,
        session: Some(SessionId::mint(1, 1)),
        agent: Some(AgentName::parse("triage").unwrap()),
        turn: None,
        body: Body::TurnFinished { outcome: format!("turn {n}"), duration_ms: n },
    }
}

fn add(dir: &Path, from: u64, n: u64) {
    let options = Options { segment_bytes: SMALL, checked_bytes: SMALL, ..Options::default() };
    let log = Log::open_with(dir, options).unwrap();
    let uids = Uids::new(from);
    let (tell, told) = mpsc::channel();
    for i in from..from + n {
        let entry = encode(&record(i), &uids.next(1)).unwrap();
        let tell = tell.clone();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
        if i % 50 == 49 {
            log.sign().unwrap();
        }
    }
    for _ in 0..n {
        told.recv().unwrap().unwrap();
    }
    log.sign().unwrap();
    log.close().unwrap();
}

fn head(dir: &Path) -> Checkpoint {
    let vkey = fs::read_to_string(dir.join("vkey")).unwrap();
    let note = fs::read(dir.join("checkpoint")).unwrap();
    Verifier::parse(vkey.trim_end()).unwrap().open(&note).unwrap()
}

/// Numbers of the records that a reader gives.
fn read(dir: &Path, filter: Filter) -> Vec<u64> {
    Reader::new(dir, filter).map(|stored| stored.unwrap().index).collect()
}

fn prove(dir: &Path, index: u64, leaf: &[u8; 32], head: &Checkpoint) {
    let nodes = TileNodes::new(dir, head.size);
    let proof = merkle::inclusion_proof(&nodes, index, head.size).unwrap().unwrap();
    assert!(merkle::verify_inclusion(leaf, index, head.size, &proof, &head.root), "{index}");
}

#[test]
fn old_records_go_and_every_proof_stays() {
    let temp = Temp::new("prune");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    let before = head(dir);
    let mut leaves = Vec::new();
    raw::scan(dir, 0, |_, entry| {
        leaves.push(leaf_hash(entry));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(leaves.len(), 1_500);
    assert!(segments(dir).unwrap().len() > 6);
    // Nothing is old enough; then some; what is looked at changes nothing.
    assert_eq!(prune::plan(dir, 1_000_000).unwrap().first, 0);
    let plan = prune::plan(dir, 1_000_900).unwrap();
    assert!(plan.first > 300 && plan.first <= 900 && plan.bytes > 0, "{plan:?}");
    verify_dir(dir, None).unwrap();
    let number = prune::carry_out(dir, &plan, 1_000_900, 2_000_000).unwrap();
    assert_eq!(number, 1_500);
    assert_eq!(raw::first(dir).unwrap(), plan.first);
    let report = verify_dir(dir, None).unwrap();
    assert_eq!((report.records, report.first), (1_501, plan.first));
    // What is there is read, and nothing before it; bundles that are wholly older are gone.
    let mut found = Vec::new();
    raw::scan(dir, 0, |index, _| {
        found.push(index);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(found, (plan.first..1_501).collect::<Vec<_>>());
    assert_eq!(read(dir, Filter::default()), found, "a reader from the beginning");
    let middle = Filter { session: None, from: 1_000 };
    assert_eq!(read(dir, middle), (1_000..1_501).collect::<Vec<_>>());
    let of_session = Filter { session: record(0).session, from: 0 };
    assert_eq!(read(dir, of_session), (plan.first..1_500).collect::<Vec<_>>());
    assert!(!dir.join("tile/entries/000").exists());
    assert!(dir.join("tile/0/000").exists());
    // Every record, the pruned ones too, is still proven by its hash; the old head is a prefix.
    let now = head(dir);
    for index in [0, 1, 255, 256, plan.first - 1, plan.first, 1_499] {
        prove(dir, index, &leaves[index as usize], &now);
    }
    let nodes = TileNodes::new(dir, now.size);
    let proof = merkle::consistency_proof(&nodes, before.size, now.size).unwrap().unwrap();
    assert!(merkle::verify_consistency(before.size, &before.root, now.size, &now.root, &proof));
    // It goes on, is opened again, and can be pruned again.
    add(dir, 1_501, 700);
    assert_eq!(verify_dir(dir, None).unwrap().records, 2_201);
    let again = prune::plan(dir, 1_001_400).unwrap();
    assert!(again.from == plan.first && again.first > plan.first, "{again:?}");
    prune::carry_out(dir, &again, 1_001_400, 2_000_001).unwrap();
    assert_eq!(verify_dir(dir, None).unwrap().first, again.first);
    add(dir, 2_202, 10);
    verify_dir(dir, None).unwrap();
    // Even without the list of segments, which is derived.
    fs::remove_file(dir.join("manifest")).unwrap();
    add(dir, 2_212, 10);
    verify_dir(dir, None).unwrap();
}

#[test]
fn a_log_whose_last_bundle_is_begun_can_be_pruned_within_it() {
    let temp = Temp::new("begun-bundle");
    let dir = &temp.0;
    add(dir, 0, 500);
    let plan = prune::plan(dir, 1_000_490).unwrap();
    assert!(plan.first > 256 && plan.first < 500, "{plan:?}");
    prune::carry_out(dir, &plan, 1_000_490, 2_000_000).unwrap();
    assert_eq!(verify_dir(dir, None).unwrap().first, plan.first);
    add(dir, 501, 5);
    verify_dir(dir, None).unwrap();
}

#[test]
fn what_is_missing_without_a_record_of_it_is_tampering() {
    let temp = Temp::new("cut");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    let all = segments(dir).unwrap();
    // As a pruning would leave it, but nobody put it on record.
    fs::remove_file(&all[0].path).unwrap();
    assert!(Log::open(dir).is_err());
    let _ = fs::remove_file(dir.join("manifest"));
    let refused = Log::open(dir).err().unwrap().to_string();
    assert!(refused.contains("no pruning is on record"), "{refused}");
    let found = verify_dir(dir, None).unwrap_err();
    assert!(found.what.contains("no pruning is on record"), "{found}");
}

#[test]
fn more_missing_than_is_on_record_and_changed_hashes_are_found() {
    let temp = Temp::new("more");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    let plan = prune::plan(dir, 1_000_500).unwrap();
    prune::carry_out(dir, &plan, 1_000_500, 2_000_000).unwrap();
    verify_dir(dir, None).unwrap();
    let tile = dir.join("tile/0/000");
    let whole = fs::read(&tile).unwrap();
    let mut changed = whole.clone();
    changed[77] ^= 1;
    fs::write(&tile, changed).unwrap();
    assert!(verify_dir(dir, None).is_err(), "a hash of a pruned record counts too");
    fs::write(&tile, whole).unwrap();
    verify_dir(dir, None).unwrap();
    let next = segments(dir).unwrap()[0].path.clone();
    fs::remove_file(next).unwrap();
    let _ = fs::remove_file(dir.join("manifest"));
    assert!(verify_dir(dir, None).unwrap_err().what.contains("no pruning is on record"));
    assert!(Log::open(dir).is_err());
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn key(dir: &Path) -> Verifier {
    Verifier::parse(fs::read_to_string(dir.join("vkey")).unwrap().trim_end()).unwrap()
}

#[test]
fn a_copy_of_the_public_part_is_verified_after_a_pruning_and_not_without_a_record_of_it() {
    let temp = Temp::new("public");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    let bundle = |n: u64| dir.join(format!("tile/entries/{n:03}"));
    let saved = fs::read(bundle(0)).unwrap();
    let (source, key) = (Folder(dir.clone()), key(dir));
    fs::remove_file(bundle(0)).unwrap();
    let found = scan(&source, &key, &Quorum::default()).unwrap_err();
    assert!(found.what.contains("no pruning is on record"), "{found}");
    fs::write(bundle(0), saved).unwrap();
    let plan = prune::plan(dir, 1_000_900).unwrap();
    assert!(plan.first > 512, "{plan:?}");
    prune::carry_out(dir, &plan, 1_000_900, 2_000_000).unwrap();
    let scanned = scan(&source, &key, &Quorum::default()).unwrap();
    assert_eq!((scanned.checkpoint.size, scanned.first), (1_501, plan.first / 256 * 256));
    // The hashes of what is gone count, more than that may not go, and no bundle in between.
    let tile = dir.join("tile/0/001");
    let whole = fs::read(&tile).unwrap();
    let mut changed = whole.clone();
    changed[77] ^= 1;
    fs::write(&tile, changed).unwrap();
    assert!(scan(&source, &key, &Quorum::default()).is_err());
    fs::write(&tile, whole).unwrap();
    let next = plan.first / 256;
    let saved = fs::read(bundle(next)).unwrap();
    fs::remove_file(bundle(next)).unwrap();
    let found = scan(&source, &key, &Quorum::default()).unwrap_err();
    assert!(found.what.contains("no pruning is on record"), "{found}");
    fs::write(bundle(next), saved).unwrap();
    fs::remove_file(bundle(next + 1)).unwrap();
    assert!(scan(&source, &key, &Quorum::default()).unwrap_err().what.contains("missing"));
}

#[test]
fn one_that_fails_after_its_record_says_so_and_can_be_repeated() {
    let temp = Temp::new("fails");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    let plan = prune::plan(dir, 1_000_900).unwrap();
    // A folder in the way of the order.
    fs::create_dir(dir.join("work/prune.new")).unwrap();
    let failed = prune::carry_out(dir, &plan, 1_000_900, 2_000_000).unwrap_err();
    assert!(matches!(failed, prune::PruneError::OnRecord { record: 1_500, .. }), "{failed}");
    assert_eq!(raw::first(dir).unwrap(), 0);
    verify_dir(dir, None).unwrap();
    fs::remove_dir(dir.join("work/prune.new")).unwrap();
    let plan = prune::plan(dir, 1_000_900).unwrap();
    assert_eq!(prune::carry_out(dir, &plan, 1_000_900, 2_000_000).unwrap(), 1_501);
    assert_eq!(verify_dir(dir, None).unwrap().first, plan.first);
}

#[test]
fn a_pruning_that_was_begun_is_finished_and_one_that_nobody_ordered_is_not() {
    let temp = Temp::new("begun");
    let dir = &temp.0;
    add(dir, 0, 1_500);
    // An order that the log does not know of.
    let third = segments(dir).unwrap()[2].first;
    fs::write(dir.join("work/prune"), format!("{third}\n")).unwrap();
    add(dir, 1_500, 5);
    assert_eq!(raw::first(dir).unwrap(), 0);
    fs::remove_file(dir.join("work/prune")).unwrap();
    // Killed after the record, before anything was removed: a later open does it.
    let plan = prune::plan(dir, 1_000_900).unwrap();
    let body = Body::RecordsPruned { before_ms: 1_000_900, first: plan.first, texts: 0 };
    let order = Record { session: None, agent: None, ..record(0) };
    let order = Record { body, time_ms: 2_000_000, ..order };
    let log = Log::open(dir).unwrap();
    common::append(&log, encode(&order, &Uids::new(1).next(1)).unwrap().into_bytes());
    log.close().unwrap();
    let saved = Temp::new("begun-saved");
    for name in ["wal", "tile"] {
        copy(&dir.join(name), &saved.0);
    }
    fs::write(dir.join("work/prune"), format!("{}\n", plan.first)).unwrap();
    Log::open(dir).unwrap().close().unwrap();
    assert_eq!(raw::first(dir).unwrap(), plan.first);
    assert!(!dir.join("work/prune").exists());
    verify_dir(dir, None).unwrap();
    // Killed in the middle: the list is without them, and all but the first are still there.
    let gone = segments(&saved.0).unwrap();
    assert!(gone[1].first < plan.first, "there is no middle");
    for segment in gone[1..].iter().filter(|s| s.first < plan.first) {
        copy(&segment.path, &dir.join("wal"));
    }
    copy(&saved.0.join("tile/entries"), &dir.join("tile"));
    fs::write(dir.join("work/prune"), format!("{}\n", plan.first)).unwrap();
    assert_eq!(segments(dir).unwrap()[0].first, gone[1].first);
    // Until then a stranger finds it whole, and it can be copied.
    verify_dir(dir, None).unwrap();
    backup::backup(dir, &saved.0.join("backup")).unwrap();
    Log::open(dir).unwrap().close().unwrap();
    assert_eq!(raw::first(dir).unwrap(), plan.first);
    verify_dir(dir, None).unwrap();
    let found = prune::plan(dir, 0).unwrap();
    assert_eq!(found.from, plan.first);
    assert!(decode(b"{}").is_err());
}
