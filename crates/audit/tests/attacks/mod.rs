//! Every attack of the published matrix, carried out on a real log, and who notices.
//!
//! ```text
//! a log of 600 records, witnessed ─► copied ─► attacked ─► chain? ─► + its key? ─► + witness?
//! ```
//!
//! Whoever attacks without the key makes everything fit that needs no key, unless the attack is
//! the misfit itself. The test `matrix` holds each answer to what is promised; the example `tamper`
//! prints them for SPECIFICATION.md.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use model::{Body, Direction, Durability, MessageId, Record, SaltedDigest, Sha256Hex};
use nanoclaw_audit::cosign::{Quorum, WitnessSigner, too_early};
use nanoclaw_audit::entry::{Entry, Uids, decode, encode};
use nanoclaw_audit::log::{Log, Options};
use nanoclaw_audit::merkle::{consistency_proof, leaf_hash, sha256, subtree_root};
use nanoclaw_audit::note::{Signer, Verifier};
use nanoclaw_audit::read::{Filter, Reader};
use nanoclaw_audit::source::{Folder, SourceNodes, entry};
use nanoclaw_audit::tiles::{self, Kind, push_entry};
use nanoclaw_audit::witness::{AddCheckpoint, Keeper, Verdict};
use nanoclaw_audit::{tiler::SignAfter, verify_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Records of the log that is attacked, and of the older copy of it.
const RECORDS: usize = 600;
const BACKUP: usize = 300;

/// The moment of record 0, Unix seconds; each later record is a second younger.
const BEGUN: u64 = 1_790_000_000;

/// The witness' clock when it signed: a moment after record 599.
const WITNESSED: u64 = BEGUN + RECORDS as u64 + 1;

const SALT: &[u8] = b"0123456789abcdef";
const TEXT: &str = "a private text";

/// One row of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was done.
    pub attack: &'static str,
    /// Noticed from the files alone.
    pub chain: bool,
    /// Noticed with the log's public key as well.
    pub checkpoint: bool,
    /// Noticed with the head that a witness has signed as well.
    pub witness: bool,
}

/// What an attacker has.
struct Scene {
    /// The log, to be attacked.
    dir: PathBuf,
    /// A copy of it from when it had [`BACKUP`] records.
    backup: PathBuf,
    /// A log of somebody else's, of the same length.
    other: PathBuf,
    /// For files under way.
    work: PathBuf,
}

type Attack = (&'static str, fn(&Scene));

/// Carries all attacks out below `folder`, which must be empty.
pub fn run(folder: &Path) -> Vec<Row> {
    let (log, backup) = (folder.join("log"), folder.join("backup"));
    write(&log, &records(0..BACKUP));
    copy(&log, &backup);
    write(&log, &records(BACKUP..RECORDS));
    let other = folder.join("other");
    write(&other, &records(1_000..1_000 + RECORDS));
    let key = fs::read_to_string(log.join("vkey")).unwrap();
    let untouched = judge(&log, &key, &log, &folder.join("memory-0"));
    assert_eq!(untouched, (false, false, false), "an untouched log is suspected");
    let row = |(n, (attack, act)): (usize, &Attack)| {
        let dir = folder.join(format!("attack-{n}"));
        copy(&log, &dir);
        let work = folder.join(format!("work-{n}"));
        fs::create_dir(&work).unwrap();
        act(&Scene { dir: dir.clone(), backup: backup.clone(), other: other.clone(), work });
        let memory = folder.join(format!("memory-{}", n + 1));
        let (chain, checkpoint, witness) = judge(&dir, &key, &log, &memory);
        Row { attack, chain, checkpoint, witness }
    };
    ATTACKS.iter().enumerate().map(row).collect()
}

/// Who notices: the files alone, with the key, with a witness that has signed the head of `seen`.
fn judge(dir: &Path, key: &str, seen: &Path, memory: &Path) -> (bool, bool, bool) {
    let chain = chain(dir).is_err();
    let checkpoint = chain || verify_dir(dir, Some(key)).is_err();
    let witness = checkpoint || witness(dir, key, seen, memory).is_err();
    (chain, checkpoint, witness)
}

/// Frames, their numbers and checksums, and tiles that are what the records make of them. What a
/// text beside the log commits to is looked at too.
fn chain(dir: &Path) -> Result<(), String> {
    let mut entries = Vec::new();
    for stored in Reader::new(dir, Filter::default()) {
        entries.push(stored.map_err(|e| e.to_string())?.bytes);
    }
    let leaves: Vec<_> = entries.iter().map(|e| leaf_hash(e)).collect();
    let upper: Vec<_> = leaves.as_chunks::<256>().0.iter().map(|t| subtree_root(t)).collect();
    let mut bundles = 0;
    for name in tiles::list(dir).map_err(|e| e.to_string())? {
        let found = fs::read(dir.join(name.path())).unwrap();
        let (from, to) =
            (name.index as usize * 256, name.index as usize * 256 + name.width as usize);
        let missing = || format!("{} has more than there are records", name.path());
        let should = match name.kind {
            Kind::Hashes(0) => leaves.get(from..to).ok_or_else(missing)?.as_flattened().to_vec(),
            Kind::Hashes(_) => upper.get(from..to).ok_or_else(missing)?.as_flattened().to_vec(),
            Kind::Entries => {
                bundles += usize::from(name.width == 256);
                let mut bundle = Vec::new();
                let part = entries.get(from..to).ok_or_else(missing)?;
                part.iter().for_each(|e| push_entry(&mut bundle, e));
                bundle
            }
        };
        if found != should {
            return Err(format!("{} is not what the records make", name.path()));
        }
    }
    if bundles != entries.len() / 256 {
        return Err("a bundle is missing".into());
    }
    let salt = fs::read(dir.join("beside/salt")).unwrap();
    let text = fs::read(dir.join("beside/text")).unwrap();
    let first = decode(&entries[0]).map_err(|e| e.to_string())?;
    match first.body {
        Body::Message { digest, .. } if digest == salted(&salt, &text) => Ok(()),
        _ => Err("the text beside the log is not what the record commits to".into()),
    }
}

/// A witness that has signed the head of `seen` is asked to sign that of `dir`.
fn witness(dir: &Path, key: &str, seen: &Path, memory: &Path) -> Result<(), String> {
    let signer = WitnessSigner::from_seed("witness.example/w1", [9; 32]).unwrap();
    let quorum = Quorum::new(vec![signer.key().clone()], 1).unwrap();
    let key = Verifier::parse(key.trim_end()).unwrap();
    let keeper = Keeper::open(memory, signer, vec![key.clone()], || WITNESSED).unwrap();
    let note = fs::read_to_string(seen.join("checkpoint")).unwrap();
    let first = AddCheckpoint { old: 0, proof: vec![], note: note.clone() };
    let Verdict::Cosigned(line) = keeper.add_checkpoint(first.text().as_bytes()) else {
        panic!("the witness does not sign the untouched log");
    };
    let known = key.open(note.as_bytes()).unwrap();
    let new_note = fs::read_to_string(dir.join("checkpoint")).map_err(|e| e.to_string())?;
    let new = key.open(new_note.as_bytes()).map_err(|e| e.to_string())?;
    let source = Folder(dir.to_owned());
    let old = known.size.min(new.size);
    let proof = consistency_proof(&SourceNodes::new(&source, new.size), old, new.size);
    let proof = proof.map_err(|e| e.to_string())?.unwrap_or_default();
    let again = AddCheckpoint { old: known.size.min(new.size), proof, note: new_note };
    match keeper.add_checkpoint(again.text().as_bytes()) {
        Verdict::Cosigned(_) => {}
        refused => return Err(format!("{refused:?}")),
    }
    if new.size > known.size {
        let cosigned = quorum.cosigners(format!("{note}{line}").as_bytes()).unwrap();
        let next = entry(&source, known.size, new.size).map_err(|e| e.to_string())?;
        let time = decode(&next).map_err(|e| e.to_string())?.time_ms;
        if let Some(seconds) = too_early(time, &cosigned) {
            return Err(format!("a later record says that it is {seconds} s older"));
        }
    }
    Ok(())
}

const ATTACKS: &[Attack] = &[
    ("a bit of a record flipped", |s| flip(&first_segment(&s.dir), 400)),
    ("a bit of a leaf tile flipped", |s| flip(&s.dir.join("tile/0/000"), 4_000)),
    ("a bit of an upper tile flipped", |s| flip(&s.dir.join("tile/1/000.p/2"), 40)),
    ("a bit of a bundle flipped", |s| flip(&s.dir.join("tile/entries/001"), 1_000)),
    ("a bit of the head flipped", |s| {
        let head = fs::read_to_string(s.dir.join("checkpoint")).unwrap();
        fs::write(s.dir.join("checkpoint"), head.replacen("\n600\n", "\n601\n", 1)).unwrap();
    }),
    ("the head taken away", |s| fs::remove_file(s.dir.join("checkpoint")).unwrap()),
    ("a record rewritten; checksums and tiles made to fit", |s| {
        refit(s, |all| all[100] = record(7_777));
    }),
    ("a record deleted; all made to fit", |s| refit(s, |all| drop(all.remove(100)))),
    ("two records swapped; all made to fit", |s| refit(s, |all| all.swap(100, 101))),
    ("a record doubled; all made to fit", |s| refit(s, |all| all.insert(100, record(100)))),
    ("a record put in; all made to fit", |s| refit(s, |all| all.insert(100, record(7_777)))),
    ("a record as other JSON of the same meaning; all made to fit", |s| {
        refit(s, |all| {
            let text = String::from_utf8(all[100].clone()).unwrap();
            all[100] = text.replacen(':', ": ", 1).into_bytes();
        });
    }),
    ("the tail cut off; all made to fit", |s| refit(s, |all| all.truncate(400))),
    ("the first segment, tile and bundle pruned", |s| {
        for path in [first_segment(&s.dir), s.dir.join("tile/0/000")] {
            fs::remove_file(path).unwrap();
        }
        fs::remove_file(s.dir.join("tile/entries/000")).unwrap();
    }),
    ("a record of more than 65,535 bytes put in", |s| {
        push_frame(&s.dir, RECORDS as u64, &vec![b'1'; 70_000]);
    }),
    ("two writers: a number given twice", |s| {
        push_frame(&s.dir, RECORDS as u64 - 1, &record(7_777));
    }),
    ("a tile of another log put in", |s| {
        fs::copy(s.other.join("tile/0/000"), s.dir.join("tile/0/000")).unwrap();
    }),
    ("the head of another log put in", |s| {
        fs::copy(s.other.join("checkpoint"), s.dir.join("checkpoint")).unwrap();
    }),
    ("the head signed by another key of the same name", |s| {
        let key = fs::read_to_string(s.dir.join("vkey")).unwrap();
        let key = Verifier::parse(key.trim_end()).unwrap();
        let head = key.open(&fs::read(s.dir.join("checkpoint")).unwrap()).unwrap();
        let forger = Signer::from_seed(key.name(), [1; 32]).unwrap();
        fs::write(s.dir.join("checkpoint"), forger.sign(head.size, head.root)).unwrap();
    }),
    ("everything made anew under another key, its own beside it", |s| {
        refit(s, |all| all[100] = record(7_777));
        for name in ["vkey", "checkpoint"] {
            fs::copy(s.work.join("made").join(name), s.dir.join(name)).unwrap();
        }
    }),
    ("the salt of a private text exchanged", |s| {
        fs::write(s.dir.join("beside/salt"), b"fedcba9876543210").unwrap();
    }),
    ("records cut off before a head covered them", |s| {
        // They are written, cut off again, and nobody has signed in between.
        let segment = last_segment(&s.dir);
        let before = fs::read(&segment).unwrap();
        push_frame(&s.dir, RECORDS as u64, &record(RECORDS));
        fs::write(&segment, before).unwrap();
    }),
    ("a record forged behind the head, which the next start signs", |s| {
        push_frame(&s.dir, RECORDS as u64, &record(7_777));
        write(&s.dir, &[]);
    }),
    ("an older signed head put back", |s| {
        fs::copy(s.backup.join("checkpoint"), s.dir.join("checkpoint")).unwrap();
        // The list of segments tells of a later head, if one was signed while it was written.
        if fs::copy(s.backup.join("manifest"), s.dir.join("manifest")).is_err() {
            drop(fs::remove_file(s.dir.join("manifest")));
        }
        for name in tiles::list(&s.backup).unwrap() {
            fs::create_dir_all(s.dir.join(name.path()).parent().unwrap()).unwrap();
            fs::copy(s.backup.join(name.path()), s.dir.join(name.path())).unwrap();
        }
    }),
    ("the whole log put back from a copy", |s| {
        fs::remove_dir_all(&s.dir).unwrap();
        copy(&s.backup, &s.dir);
    }),
    ("history rewritten with the stolen key", |s| {
        let mut all = records(0..RECORDS);
        all[100] = record(7_777);
        stolen(s, &all);
    }),
    ("forked with the stolen key, and longer", |s| {
        let mut all = records(0..BACKUP);
        all.extend(records(2_000..2_000 + RECORDS));
        stolen(s, &all);
    }),
    ("the clock set back a day", |s| {
        let early = (0..5).map(|n| record_at(n, BEGUN - 86_400 + n as u64)).collect::<Vec<_>>();
        write(&s.dir, &early);
    }),
];

fn salted(salt: &[u8], text: &[u8]) -> SaltedDigest {
    let hash = sha256(&[salt, text].concat());
    let hex = hash.iter().map(|b| format!("{b:02x}")).collect();
    SaltedDigest { sha256: Sha256Hex(hex), bytes: text.len() as u64 }
}

fn record(n: usize) -> Vec<u8> {
    record_at(n, BEGUN + n as u64)
}

fn record_at(n: usize, second: u64) -> Vec<u8> {
    let body = match n {
        0 => Body::Message {
            direction: Direction::In,
            message: MessageId::mint(1, 2),
            channel: "terminal".into(),
            chat: "me".into(),
            digest: salted(SALT, TEXT.as_bytes()),
        },
        n => Body::ClientLost { pid: n as u32, role: format!("role {n}") },
    };
    let record = Record { time_ms: second * 1_000, session: None, agent: None, turn: None, body };
    encode(&record, &Uids::new(n as u64).next(second * 1_000)).unwrap().into_bytes()
}

fn records(which: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    which.map(record).collect()
}

/// Appends to a log, as the recorder does, and closes it.
fn write(dir: &Path, entries: &[Vec<u8>]) {
    let quiet = SignAfter { quiet: Duration::from_secs(60), at_most: Duration::from_secs(60) };
    let options = Options { segment_bytes: 20_000, sign_after: quiet, ..Options::default() };
    let log = Log::open_with(dir, options).unwrap();
    let (tell, told) = mpsc::channel();
    for bytes in entries {
        let tell = tell.clone();
        let entry = Entry::from_bytes(bytes.clone()).unwrap();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
    }
    for _ in entries {
        told.recv().unwrap().unwrap();
    }
    log.close().unwrap();
    fs::create_dir_all(dir.join("beside")).unwrap();
    fs::write(dir.join("beside/salt"), SALT).unwrap();
    fs::write(dir.join("beside/text"), TEXT).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 4;
    fs::write(file, bytes).unwrap();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.join("wal")).unwrap();
    let mut all: Vec<_> = all.map(|f| f.unwrap().path()).collect();
    all.sort();
    assert!(all.len() > 1, "{all:?}");
    all
}

fn first_segment(dir: &Path) -> PathBuf {
    segments(dir).swap_remove(0)
}

fn last_segment(dir: &Path) -> PathBuf {
    segments(dir).pop().unwrap()
}

/// Other records in place of the log's, with everything that needs no key made to fit.
fn refit(s: &Scene, change: impl Fn(&mut Vec<Vec<u8>>)) {
    let mut all = records(0..RECORDS);
    change(&mut all);
    let made = s.work.join("made");
    write(&made, &all);
    replace(s, &made, &["wal", "tile"]);
}

fn replace(s: &Scene, made: &Path, folders: &[&str]) {
    for folder in folders {
        fs::remove_dir_all(s.dir.join(folder)).unwrap();
        copy(&made.join(folder), &s.dir.join(folder));
    }
}

/// Another history under the log's own key.
fn stolen(s: &Scene, entries: &[Vec<u8>]) {
    let made = s.work.join("made");
    fs::create_dir_all(made.join("private")).unwrap();
    for name in ["private/key", "vkey"] {
        fs::copy(s.dir.join(name), made.join(name)).unwrap();
    }
    write(&made, entries);
    replace(s, &made, &["wal", "tile"]);
    fs::copy(made.join("checkpoint"), s.dir.join("checkpoint")).unwrap();
    // Whoever has the key signs the list of segments too.
    drop(fs::remove_file(s.dir.join("manifest")));
    if made.join("manifest").exists() {
        fs::copy(made.join("manifest"), s.dir.join("manifest")).unwrap();
    }
}

/// A frame with a right checksum at the end of the last segment.
fn push_frame(dir: &Path, seq: u64, bytes: &[u8]) {
    let len = bytes.len() as u32 | (1 << 31);
    let mut covered = len.to_le_bytes().to_vec();
    covered.extend(seq.to_le_bytes());
    covered.extend(bytes);
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend(crc32c::crc32c(&covered).to_le_bytes());
    frame.extend(&covered[4..]);
    let segment = last_segment(dir);
    let mut all = fs::read(&segment).unwrap();
    // A segment may be longer than what is written in it.
    while all.last() == Some(&0) {
        all.pop();
    }
    all.extend(frame);
    fs::write(segment, all).unwrap();
}
