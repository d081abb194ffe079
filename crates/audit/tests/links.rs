//! Who can put links and pipes in a log's folder reaches nothing else with them, and holds nobody
//! up, whichever command somebody with more rights gives.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Temp, make_log};
use nanoclaw_audit::backup::backup;
use nanoclaw_audit::index::{self, Query};
use nanoclaw_audit::payload::{self, Scope};
use nanoclaw_audit::{stats, verify_dir};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// Enough for the index to be worth writing.
const RECORDS: usize = 2_100;

const PRECIOUS: &str = "somebody else's\n";

/// A log, and a file beside it that is none of its.
fn scene(name: &str) -> (Temp, PathBuf, PathBuf) {
    let temp = Temp::new(name);
    let (log, other) = (temp.0.join("log"), temp.0.join("other"));
    make_log(&log, RECORDS);
    fs::write(&other, PRECIOUS).unwrap();
    (temp, log, other)
}

fn search(log: &Path) {
    let all = |_| ControlFlow::Continue(());
    // Whether it searches or says why not is another matter.
    drop(index::search(log, &Query::default(), true, all));
    drop(stats::of(log, &Query::default()));
    drop(index::update(log, false));
}

#[test]
fn an_index_of_links_is_not_written_through() {
    let (temp, log, _) = scene("sample");
    search(&log);
    let written: Vec<_> = fs::read_dir(log.join("index")).unwrap().map(|e| e.unwrap()).collect();
    assert!(written.len() >= 3, "there is an index to be attacked: {written:?}");
    drop(temp);
    for entry in written {
        let name = entry.file_name().into_string().unwrap();
        for name in [name.clone(), name.replace(".idx", ".new"), format!("{name}.new")] {
            let (_temp, log, other) = scene("link");
            fs::create_dir(log.join("index")).unwrap();
            symlink(&other, log.join("index").join(&name)).unwrap();
            search(&log);
            assert_eq!(fs::read_to_string(&other).unwrap(), PRECIOUS, "{name}");
            let (_temp, log, other) = scene("new");
            let absent = other.with_file_name("absent");
            fs::create_dir(log.join("index")).unwrap();
            symlink(&absent, log.join("index").join(&name)).unwrap();
            search(&log);
            assert!(!absent.exists(), "{name}");
        }
    }
    let (temp, log, _) = scene("folder");
    let elsewhere = temp.0.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, log.join("index")).unwrap();
    search(&log);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn texts_are_erased_in_the_log_s_own_folders_only() {
    for linked in ["payload/ab", "payload"] {
        let (temp, log, _) = scene("erase");
        let elsewhere = temp.0.join("elsewhere");
        let name = format!("ab{}", "c3".repeat(31));
        let file = match linked {
            "payload" => elsewhere.join("ab").join(&name),
            _ => elsewhere.join(&name),
        };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, PRECIOUS).unwrap();
        let old = SystemTime::now() - Duration::from_secs(100_000);
        fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        fs::create_dir_all(log.join(linked).parent().unwrap()).unwrap();
        symlink(&elsewhere, log.join(linked)).unwrap();
        assert!(payload::plan(&log, &Scope::Unnamed).is_err(), "{linked}");
        assert!(payload::check(&log).is_err(), "{linked}");
        // Put there between the plan and the removal.
        let path = payload::place(&log, &name);
        let plan = payload::Plan { unnamed: [(path, 1)].into(), ..payload::Plan::default() };
        assert!(payload::remove(&log, &plan).is_err(), "{linked}");
        assert_eq!(fs::read_to_string(&file).unwrap(), PRECIOUS, "{linked}");
    }
}

#[test]
fn a_backup_copies_no_file_that_a_head_leads_to() {
    let (temp, log, other) = scene("backup");
    fs::remove_file(log.join("checkpoint")).unwrap();
    symlink(&other, log.join("checkpoint")).unwrap();
    let copy = temp.0.join("copy");
    assert!(backup(&log, &copy).is_err());
    assert!(!copy.join("checkpoint").exists());
    assert!(verify_dir(&log, None).is_err());
}

#[test]
fn pipes_hold_up_no_search_and_no_copy() {
    for name in ["vkey", "checkpoint", "index/mark", "index/lock", "tile/entries/000"] {
        let (temp, log, _) = scene("pipe");
        let path = log.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(fs::remove_file(&path));
        let (mode, here) = (rustix::fs::Mode::RUSR, rustix::fs::CWD);
        rustix::fs::mknodat(here, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (ended, wait) = mpsc::channel();
        let to = temp.0.join("copy");
        std::thread::spawn(move || {
            search(&log);
            drop(payload::check(&log));
            drop(backup(&log, &to));
            ended.send(())
        });
        assert_eq!(wait.recv_timeout(Duration::from_secs(30)), Ok(()), "{name}");
    }
}

/// Sparse files cost nothing.
#[test]
fn files_longer_than_any_are_refused_without_being_read() {
    for (name, length) in [("tile/entries/000", 700 << 20), ("checkpoint", 700 << 20)] {
        let (temp, log, _) = scene("long");
        let file = fs::File::options().write(true).open(log.join(name)).unwrap();
        file.set_len(length).unwrap();
        assert!(verify_dir(&log, None).is_err(), "{name}");
        assert!(backup(&log, &temp.0.join("copy")).is_err(), "{name}");
    }
    let (_temp, log, _) = scene("tail");
    let last = fs::read_dir(log.join("wal")).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    fs::File::options().append(true).open(last).unwrap().set_len(4 << 30).unwrap();
    assert!(nanoclaw_audit::log::Log::open(&log).is_err(), "it was taken for a torn end");
    assert!(nanoclaw_audit::read::newest(&log, 1).is_err(), "it was taken for a torn end");
}
