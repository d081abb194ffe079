//! A log that has had several keys: whoever knows any of them goes on, and so do its witnesses.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Temp, append, entry, make_log, served};
use model::{Body, Record};
use nanoclaw_audit::chain::{Chain, follow};
use nanoclaw_audit::cosign::{Quorum, WitnessSigner};
use nanoclaw_audit::entry::{Uids, encode};
use nanoclaw_audit::http::{Plain, Remote, Url};
use nanoclaw_audit::log::Log;
use nanoclaw_audit::note::{Signer, Verifier};
use nanoclaw_audit::scan::{Relation, relate, scan};
use nanoclaw_audit::serve::Serve;
use nanoclaw_audit::source::{Folder, checkpoint};
use nanoclaw_audit::witness::keeper::KeeperError;
use nanoclaw_audit::witness::{AddCheckpoint, Keeper, Outcome, Policy, Target, Verdict, round};
use nanoclaw_audit::{backup, seen, verify_dir};
use std::fs;
use std::path::Path;

fn rotate(dir: &Path) {
    let log = Log::open(dir).unwrap();
    let (old_vkey, new_vkey) = log.prepare_key().unwrap();
    let body = Body::KeyAnnounced { old_vkey, new_vkey: new_vkey.clone() };
    let record = Record { time_ms: 7, session: None, agent: None, turn: None, body };
    append(&log, encode(&record, &Uids::new(1).next(7)).unwrap().into_bytes());
    assert_eq!(log.verifier().vkey(), new_vkey, "acknowledged before the new key signs");
    log.close().unwrap();
}

fn grow(dir: &Path, from: usize, n: usize) {
    let log = Log::open(dir).unwrap();
    for i in from..from + n {
        append(&log, entry(i));
    }
    log.close().unwrap();
}

fn key(dir: &Path) -> Verifier {
    Verifier::parse(fs::read_to_string(dir.join("vkey")).unwrap().trim_end()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// A log with a head under each of three keys: its keys, and the notes of those heads.
fn rotated(dir: &Path) -> (Vec<Verifier>, Vec<Vec<u8>>) {
    let (mut keys, mut notes) = (Vec::new(), Vec::new());
    make_log(dir, 300);
    for i in 0..3 {
        keys.push(key(dir));
        notes.push(fs::read(dir.join("checkpoint")).unwrap());
        if i < 2 {
            rotate(dir);
            grow(dir, 1_000 * (i + 1), 270);
        }
    }
    (keys, notes)
}

#[test]
fn any_key_leads_to_every_head_of_a_copy_and_of_an_address() {
    let (temp, other) = (Temp::new("any-key"), Temp::new("other-key"));
    let dir = temp.0.join("log");
    let (keys, notes) = rotated(&dir);
    make_log(&other.0, 3);
    let public = temp.0.join("public");
    fs::create_dir(&public).unwrap();
    for name in ["checkpoint", "tile", "epochs"] {
        copy(&dir.join(name), &public);
    }
    let folder = Folder(public.clone());
    let url = served(Serve::new(&dir));
    let remote = Remote::new(Url::parse(&url).unwrap(), &Plain);
    for key in &keys {
        for source in [&folder as &dyn nanoclaw_audit::source::Source, &remote] {
            let scanned = scan(source, key, &Quorum::default()).unwrap();
            assert_eq!((scanned.checkpoint.size, &scanned.vkey), (842, &keys[2].vkey()));
            let note = checkpoint(source).unwrap();
            let (chain, head) = follow(source, &note, key).unwrap();
            for (signer, note) in keys.iter().zip(&notes) {
                let (old, by) = chain.open(note).unwrap();
                assert_eq!(by, *signer);
                let relation = relate(&old, &head, source).unwrap();
                assert!(matches!(relation, Relation::Same | Relation::Continues(_)));
            }
        }
    }
    assert!(scan(&folder, &key(&other.0), &Quorum::default()).is_err());
    // An older head of a source is that of the key of its time.
    let (chain, head) = follow(&folder, &notes[1], &keys[0]).unwrap();
    assert_eq!((head.size, chain.current()), (571, &keys[1]));
    // Every byte of an epoch counts.
    let path = public.join("epochs/0001");
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        assert!(scan(&folder, &keys[0], &Quorum::default()).is_err(), "byte {at}");
    }
    fs::write(&path, &good).unwrap();
    // A head of the first key that ends in no announcement, in place of its closing note.
    let first = public.join("epochs/0000");
    let closing = fs::read(&first).unwrap();
    let early = [format!("{}\n", keys[0].vkey()).into_bytes(), notes[0].clone()].concat();
    fs::write(&first, early).unwrap();
    let found = scan(&folder, &keys[0], &Quorum::default()).unwrap_err();
    assert!(found.what.contains("no record announces a key"), "{found}");
    fs::write(&first, closing).unwrap();
    scan(&folder, &keys[0], &Quorum::default()).unwrap();
    // Without its epochs a copy is verified with its newest key alone.
    fs::remove_dir_all(public.join("epochs")).unwrap();
    scan(&folder, &keys[2], &Quorum::default()).unwrap();
    assert!(scan(&folder, &keys[0], &Quorum::default()).is_err());
}

#[test]
fn an_old_key_s_later_head_is_refused_in_a_copy_too() {
    let temp = Temp::new("stolen-copy");
    let dir = temp.0.join("log");
    make_log(&dir, 20);
    let old = fs::read_to_string(dir.join("private/key")).unwrap();
    let old = Signer::parse(old.trim_end()).unwrap();
    rotate(&dir);
    grow(&dir, 100, 5);
    let newest = fs::read(dir.join("checkpoint")).unwrap();
    let (head, _) = Chain::own(&dir).unwrap().open(&newest).unwrap();
    fs::write(dir.join("checkpoint"), old.sign(head.size, head.root)).unwrap();
    let folder = Folder(dir.clone());
    for key in [old.verifier(), &key(&dir)] {
        let found = scan(&folder, key, &Quorum::default()).unwrap_err();
        assert!(found.what.contains("replaced by then"), "{found}");
    }
    fs::remove_dir_all(dir.join("epochs")).unwrap();
    let found = scan(&folder, old.verifier(), &Quorum::default()).unwrap_err();
    assert!(found.what.contains("another key than the one that signed it"), "{found}");
}

fn signer() -> WitnessSigner {
    WitnessSigner::from_seed("w.example/1", [1; 32]).unwrap()
}

/// A witness of a log with these keys.
fn witness(dir: &Path, keys: &[Verifier]) -> Result<Keeper, KeeperError> {
    Keeper::open(dir, signer(), keys.to_vec(), || 1_790_000_000)
}

fn cosign(log: &Path, keeper: Keeper) -> Outcome {
    let url = Url::parse(&served(keeper)).unwrap();
    let target = Target { url, key: signer().key().clone() };
    let policy = Policy::new(vec![target], 1).unwrap();
    round(log, &policy, &Plain).unwrap().unwrap().said.swap_remove(0).1
}

fn trusted() -> Quorum {
    Quorum::new(vec![signer().key().clone()], 1).unwrap()
}

#[test]
fn what_witnesses_signed_under_an_old_key_stays_seen_and_goes_into_a_backup() {
    let (temp, memory) = (Temp::new("seen-old"), Temp::new("seen-old-memory"));
    let dir = temp.0.join("log");
    make_log(&dir, 30);
    let old = key(&dir);
    let said = cosign(&dir, witness(&memory.0, std::slice::from_ref(&old)).unwrap());
    assert!(matches!(said, Outcome::Cosigned(..)), "{said:?}");
    rotate(&dir);
    grow(&dir, 100, 5);
    let verify = || verify_dir(&dir, Some(&old.vkey()));
    let (report, found) = seen::verified(&dir, &trusted(), verify).unwrap();
    assert_eq!((report.records, found.records, found.by.len()), (36, 30, 1));
    let to = temp.0.join("copy");
    backup::backup(&dir, &to).unwrap();
    let (_, found) = seen::verified(&to, &trusted(), || verify_dir(&to, None)).unwrap();
    assert_eq!((found.records, found.by.len()), (30, 1), "the backup lost its cosignatures");
    // A kept head that the log does not continue speaks against it, and against a backup of it.
    let kept = fs::read_to_string(dir.join("witness/cosigned")).unwrap();
    fs::write(dir.join("witness/cosigned"), kept.replacen("\n30\n", "\n29\n", 1)).unwrap();
    assert!(seen::verified(&dir, &trusted(), || verify_dir(&dir, None)).is_err());
    assert!(backup::backup(&dir, &temp.0.join("bad")).is_err());
}

#[test]
fn a_log_that_is_written_and_cosigned_while_it_is_verified_is_intact() {
    let (dir, memory) = (Temp::new("meanwhile"), Temp::new("meanwhile-memory"));
    make_log(&dir.0, 30);
    let keys = [key(&dir.0)];
    cosign(&dir.0, witness(&memory.0, &keys).unwrap());
    let other = Temp::new("meanwhile-other");
    let meanwhile = || {
        let report = verify_dir(&dir.0, None);
        grow(&dir.0, 100, 5);
        let said = cosign(&dir.0, witness(&other.0, &keys).unwrap());
        assert!(matches!(said, Outcome::Cosigned(..)), "{said:?}");
        report
    };
    let (report, found) = seen::verified(&dir.0, &trusted(), meanwhile).unwrap();
    assert_eq!((report.records, found.records), (30, 30));
}

#[test]
fn a_witness_goes_on_with_the_keys_in_their_order_and_refuses_the_old_one_afterwards() {
    let (dir, memory) = (Temp::new("order"), Temp::new("order-memory"));
    make_log(&dir.0, 30);
    let old_signer = fs::read_to_string(dir.0.join("private/key")).unwrap();
    let old_signer = Signer::parse(old_signer.trim_end()).unwrap();
    let old = key(&dir.0);
    let keeper = |keys: &[Verifier]| witness(&memory.0, keys);
    let known = keeper(std::slice::from_ref(&old)).unwrap();
    let note = fs::read_to_string(dir.0.join("checkpoint")).unwrap();
    let first = AddCheckpoint { old: 0, proof: vec![], note }.text();
    assert!(matches!(known.add_checkpoint(first.as_bytes()), Verdict::Cosigned(_)));
    drop(known);
    rotate(&dir.0);
    let new = key(&dir.0);
    let here = |keys: &[Verifier]| {
        let copied = Temp::new("order-copy");
        copy(&memory.0.join("logs"), &copied.0);
        cosign(&dir.0, witness(&copied.0, keys).unwrap())
    };
    // With the old key alone it says what is to be done.
    let said = here(std::slice::from_ref(&old));
    assert!(matches!(&said, Outcome::Refused(why) if why.contains("rotate-key")), "{said:?}");
    // With the new one alone it cannot know whose its memory is, and does not call it changed.
    let refused = keeper(std::slice::from_ref(&new)).err().unwrap();
    assert!(matches!(&refused, KeeperError::OtherKey { .. }), "{refused}");
    let said = here(&[old.clone(), new.clone()]);
    assert!(matches!(said, Outcome::Cosigned(..)), "{said:?}");
    // From the first head of the new key on, the old one signs nothing that counts.
    let both = keeper(&[old, new]).unwrap();
    let head = |signer: &Signer, size: u64| AddCheckpoint {
        old: size,
        proof: vec![],
        note: signer.sign(size, Chain::own(&dir.0).unwrap().open(&note_of(&dir.0)).unwrap().0.root),
    };
    let moved = AddCheckpoint {
        old: 30,
        proof: proof(&dir.0, 30),
        note: String::from_utf8(note_of(&dir.0)).unwrap(),
    };
    assert!(matches!(both.add_checkpoint(moved.text().as_bytes()), Verdict::Cosigned(_)));
    let by_old = head(&old_signer, 31).text();
    assert_eq!(both.add_checkpoint(by_old.as_bytes()), Verdict::NotSigned);
    // What is changed is still told from what another key signed.
    drop(both);
    let state = fs::read_dir(memory.0.join("logs")).unwrap().next().unwrap().unwrap().path();
    let changed = fs::read_to_string(&state).unwrap().replacen("\n31\n", "\n32\n", 1);
    fs::write(&state, changed).unwrap();
    let refused = keeper(&[key(&dir.0)]).err().unwrap();
    assert!(matches!(&refused, KeeperError::Changed(_)), "{refused}");
}

fn note_of(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("checkpoint")).unwrap()
}

fn proof(dir: &Path, old: u64) -> Vec<[u8; 32]> {
    let (head, _) = Chain::own(dir).unwrap().open(&note_of(dir)).unwrap();
    let nodes = nanoclaw_audit::tiles::TileNodes::new(dir, head.size);
    nanoclaw_audit::merkle::consistency_proof(&nodes, old, head.size).unwrap().unwrap()
}
