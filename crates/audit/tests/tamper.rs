//! Whatever is changed in a log's public files is found and named.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Temp, append, entry, make_log};
use nanoclaw_audit::log::{Log, OpenError, Options};
use nanoclaw_audit::tiler::SignAfter;
use nanoclaw_audit::verify_dir;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A log of three segments, a full tile and partial ones, of this and of earlier checkpoints.
fn varied_log(dir: &Path) {
    let quiet = SignAfter { quiet: Duration::from_secs(60), at_most: Duration::from_secs(60) };
    let options = Options { segment_bytes: 3_000, sign_after: quiet, ..Options::default() };
    let log = Log::open_with(dir, options).unwrap();
    for i in 0..262 {
        assert_eq!(append(&log, entry(i)), i as u64);
        if [9, 258, 260].contains(&i) {
            log.sign().unwrap();
        }
    }
    log.close().unwrap();
}

fn public_files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("private") || path.ends_with("work") => {}
                true => todo.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_changed_byte_of_every_public_file_is_found() {
    let dir = Temp::new("flip");
    varied_log(&dir.0);
    let report = verify_dir(&dir.0, None).unwrap();
    assert_eq!((report.records, report.unsigned_records, report.unsigned_bytes), (262, 0, 0));
    let files = public_files(&dir.0);
    let names: Vec<_> = files.iter().map(|f| f.strip_prefix(&dir.0).unwrap().to_owned()).collect();
    assert!(names.iter().filter(|n| n.starts_with("wal")).count() >= 3, "{names:?}");
    assert!(names.iter().filter(|n| n.starts_with("tile/entries/001.p")).count() >= 2, "{names:?}");
    let mut flips = 0;
    for file in &files {
        let good = fs::read(file).unwrap();
        let small = good.len() < 400;
        for at in 0..good.len() {
            for mask in [1 << (at % 8), 0x20, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= mask;
                fs::write(file, &bad).unwrap();
                let found = verify_dir(&dir.0, None);
                assert!(found.is_err(), "{} byte {at} mask {mask:#x} unseen", file.display());
                flips += 1;
                if !small {
                    break;
                }
            }
        }
        fs::write(file, &good).unwrap();
    }
    assert!(flips > 20_000, "{flips}");
    verify_dir(&dir.0, None).unwrap();
}

#[test]
fn a_finding_names_the_file_and_the_byte() {
    let dir = Temp::new("names");
    varied_log(&dir.0);
    for (name, at) in [("tile/0/000", 4_000), ("tile/entries/000", 1_000), ("tile/1/000.p/1", 31)] {
        let file = dir.0.join(name);
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&file, bad).unwrap();
        let found = verify_dir(&dir.0, None).unwrap_err();
        assert_eq!((found.file, found.offset), (file.clone(), at as u64), "{name}: {}", found.what);
        fs::write(&file, good).unwrap();
    }
}

/// A frame as the log writes it, made here by hand.
fn frame(seq: u64, synced: bool, bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u32 | if synced { 1 << 31 } else { 0 };
    let mut covered = len.to_le_bytes().to_vec();
    covered.extend(seq.to_le_bytes());
    covered.extend(bytes);
    let mut out = len.to_le_bytes().to_vec();
    out.extend(crc32c::crc32c(&covered).to_le_bytes());
    out.extend(seq.to_le_bytes());
    out.extend(bytes);
    out
}

#[test]
fn a_record_rewritten_with_its_checksum_is_named_and_not_opened() {
    let dir = Temp::new("rewrite");
    varied_log(&dir.0);
    let wal = dir.0.join("wal/0000000000000000.wal");
    let mut bytes = fs::read(&wal).unwrap();
    let one = frame(0, true, &entry(0));
    assert_eq!(bytes[..one.len()], one[..], "frame layout");
    let forged = frame(0, true, b"{\"entry\":7}");
    bytes[..one.len()].copy_from_slice(&forged);
    fs::write(&wal, &bytes).unwrap();
    let found = verify_dir(&dir.0, None).unwrap_err();
    assert_eq!(found.file, wal);
    assert_eq!(found.offset, 16 + "{\"entry\":".len() as u64, "{found}");
    let before = public_files(&dir.0);
    assert!(matches!(Log::open(&dir.0), Err(OpenError::Mismatch { .. })));
    assert_eq!(public_files(&dir.0), before, "opening a forged log changed it");
    assert_eq!(fs::read(&wal).unwrap(), bytes);
}

#[test]
fn a_cut_tail_a_lost_segment_and_a_lost_head_are_refused() {
    type Attack = (&'static str, fn(&Path));
    let attacks: [Attack; 7] = [
        ("tail cut at a record", |dir| {
            let last = public_files(&dir.join("wal")).pop().unwrap();
            let len =
                fs::metadata(&last).unwrap().len() - frame(261, true, &entry(261)).len() as u64;
            fs::File::options().write(true).open(last).unwrap().set_len(len).unwrap();
        }),
        ("last segment gone", |dir| {
            fs::remove_file(public_files(&dir.join("wal")).pop().unwrap()).unwrap();
        }),
        ("first segment gone", |dir| {
            fs::remove_file(dir.join("wal/0000000000000000.wal")).unwrap();
        }),
        ("segment swapped", |dir| {
            let files = public_files(&dir.join("wal"));
            fs::rename(&files[1], dir.join("x")).unwrap();
            fs::rename(&files[0], &files[1]).unwrap();
            fs::rename(dir.join("x"), &files[0]).unwrap();
        }),
        ("segment from the future", |dir| {
            let last = public_files(&dir.join("wal")).pop().unwrap();
            fs::copy(last, dir.join("wal/00000000ffffffff.wal")).unwrap();
        }),
        ("head gone", |dir| fs::remove_file(dir.join("checkpoint")).unwrap()),
        ("head of another log", |dir| {
            let other = Temp::new("other");
            make_log(&other.0, 262);
            fs::copy(other.0.join("checkpoint"), dir.join("checkpoint")).unwrap();
        }),
    ];
    for (name, attack) in attacks {
        let dir = Temp::new("attack");
        varied_log(&dir.0);
        attack(&dir.0);
        assert!(verify_dir(&dir.0, None).is_err(), "{name}: verified");
        assert!(Log::open(&dir.0).is_err(), "{name}: opened");
    }
}

/// Whoever opens a pipe waits for its other end.
#[test]
fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
    let sample = Temp::new("files");
    varied_log(&sample.0);
    for file in public_files(&sample.0) {
        let dir = Temp::new("pipe");
        varied_log(&dir.0);
        let name = file.strip_prefix(&sample.0).unwrap();
        let path = dir.0.join(name);
        if !path.exists() {
            continue; // Its time is in its name.
        }
        fs::remove_file(&path).unwrap();
        let (mode, here) = (rustix::fs::Mode::RUSR, rustix::fs::CWD);
        rustix::fs::mknodat(here, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (ended, wait) = std::sync::mpsc::channel();
        let folder = dir.0.clone();
        std::thread::spawn(move || {
            let refused = verify_dir(&folder, None).is_err();
            // Whether it opens is another matter: what is derived is written anew.
            drop(Log::open(&folder));
            ended.send(refused)
        });
        let refused = wait.recv_timeout(Duration::from_secs(30));
        assert_eq!(refused, Ok(true), "{}", name.display());
    }
}

#[test]
fn another_key_a_foreign_file_and_a_missing_tile_are_refused() {
    let (dir, other) = (Temp::new("own"), Temp::new("forged"));
    varied_log(&dir.0);
    make_log(&other.0, 3);
    let key = fs::read_to_string(other.0.join("vkey")).unwrap();
    let own = fs::read_to_string(dir.0.join("vkey")).unwrap();
    assert!(verify_dir(&dir.0, Some(&own)).unwrap().key_was_given);
    assert_eq!(verify_dir(&dir.0, Some(&key)).unwrap_err().file, dir.0.join("vkey"));
    fs::write(dir.0.join("tile/extra"), "x").unwrap();
    assert_eq!(verify_dir(&dir.0, None).unwrap_err().file, dir.0.join("tile/extra"));
    fs::remove_file(dir.0.join("tile/extra")).unwrap();
    fs::remove_file(dir.0.join("tile/entries/000")).unwrap();
    assert_eq!(verify_dir(&dir.0, None).unwrap_err().file, dir.0.join("tile/entries/000"));
    // Tiles are derived: opening writes it again, and keeps a wrong one as evidence.
    fs::write(dir.0.join("tile/0/000"), "wrong").unwrap();
    let log = Log::open(&dir.0).unwrap();
    assert!(log.recovered().tiles_repaired);
    log.close().unwrap();
    verify_dir(&dir.0, None).unwrap();
    assert_eq!(fs::read(dir.0.join("evidence/tile_0_000")).unwrap(), b"wrong");
    fs::remove_file(dir.0.join("private/key")).unwrap();
    assert!(matches!(Log::open(&dir.0), Err(OpenError::Mismatch { .. })));
}
