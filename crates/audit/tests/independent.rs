//! The independent `witness-log` (crate witness-log-cli) and ours witness each other's logs.
//!
//! `NANOCLAW_WITNESS_LOG` names its program; `cargo xtask setup --tests` builds it. Without it the
//! tests are skipped by name, and under `CI` they fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Temp, append, entry, make_log, served};
use nanoclaw_audit::Log;
use nanoclaw_audit::cosign::{Quorum, WitnessKey, WitnessSigner};
use nanoclaw_audit::http::{Plain, Url};
use nanoclaw_audit::note::Verifier;
use nanoclaw_audit::source::{Folder, read_file};
use nanoclaw_audit::witness::{Keeper, Outcome, Policy, Target, round, submit};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn program(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("NANOCLAW_WITNESS_LOG").map(PathBuf::from);
    if named.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no witness-log: set NANOCLAW_WITNESS_LOG");
        eprintln!("skipped {test}: NANOCLAW_WITNESS_LOG names no witness-log");
    }
    named
}

/// Runs it in a folder; what it said on both streams, and whether it was content.
fn said(program: &Path, folder: &Path, args: &[&str]) -> (bool, String) {
    let out = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let both = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&both).into_owned())
}

fn must(program: &Path, folder: &Path, args: &[&str]) -> String {
    let (content, said) = said(program, folder, args);
    assert!(content, "{args:?}: {said}");
    said
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Their witness of the log in `log`, on a port of its own choice; its key and address.
fn theirs(program: &Path, work: &Path, log: &Path) -> (Running, WitnessKey, String) {
    let named = ["--name", "w.example/theirs", "--org", "theirs", "--url", "http://127.0.0.1:1"];
    let init = must(program, work, &[&["witness", "init", "wd"][..], &named].concat());
    let key = init.lines().find_map(|l| l.trim().strip_prefix("vkey: ")).unwrap();
    let key = WitnessKey::parse(key).unwrap();
    let vkey = fs::read_to_string(log.join("vkey")).unwrap();
    let origin = Verifier::parse(vkey.trim_end()).unwrap().name().to_owned();
    must(program, work, &["witness", "add-log", "wd", &origin, vkey.trim_end()]);
    // It names no port of its own choice, so one that was free a moment ago is given.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut serve = Command::new(program);
    serve.args(["witness", "serve", "wd", "--listen", &free.to_string()]);
    serve.current_dir(work).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = serve.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first word is said when it listens; who reads on keeps its pipe from filling.
    let first = lines.next();
    std::thread::spawn(move || lines.count());
    let running = Running(child);
    assert!(first.is_some(), "their witness ended at once");
    (running, key, format!("http://{free}"))
}

/// Asks until it listens; any answer will do.
fn awaited(url: &Url) {
    for _ in 0..200 {
        if std::net::TcpStream::connect((url.host.as_str(), url.port)).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("their witness never listened");
}

#[test]
fn their_witness_signs_our_log_and_refuses_its_forks() {
    let Some(program) = program("their_witness_signs_our_log_and_refuses_its_forks") else {
        return;
    };
    let (work, dir, copy) = (Temp::new("theirs"), Temp::new("ours"), Temp::new("fork"));
    make_log(&dir.0, 300);
    let copied = Command::new("cp").arg("-a").args([dir.0.join("."), copy.0.clone()]).status();
    assert!(copied.unwrap().success());
    let (_running, key, url) = theirs(&program, &work.0, &dir.0);
    let url = Url::parse(&url).unwrap();
    awaited(&url);
    let target = Target { url, key: key.clone() };
    let policy = Policy::new(vec![target.clone()], 1).unwrap();
    let first = round(&dir.0, &policy, &Plain).unwrap().unwrap();
    assert!(first.reached(), "{first:?}");
    let log = Log::open(&dir.0).unwrap();
    for i in 300..600 {
        append(&log, entry(i));
    }
    log.close().unwrap();
    let second = round(&dir.0, &policy, &Plain).unwrap().unwrap();
    assert!(second.reached() && second.size == 600, "{second:?}");
    let kept = fs::read(dir.0.join("witness/cosigned")).unwrap();
    let quorum = Quorum::new(vec![key], 1).unwrap();
    assert_eq!(quorum.cosigners(&kept).unwrap().len(), 1);
    // Their own verifier takes the note that we keep, under both keys.
    let (note, vkey) = (dir.0.join("witness/cosigned"), fs::read_to_string(dir.0.join("vkey")));
    let (note, vkey) = (note.to_str().unwrap(), vkey.unwrap());
    let witness = target.key.vkey();
    let verify = ["c2sp", "verify", note, "--vkey", vkey.trim_end(), "--vkey", &witness];
    must(&program, &work.0, &verify);
    let bad = fs::read_to_string(note).unwrap().replacen("\n600\n", "\n601\n", 1);
    fs::write(work.0.join("bad"), bad).unwrap();
    let verify = ["c2sp", "verify", "bad", "--vkey", vkey.trim_end(), "--vkey", &witness];
    assert!(!said(&program, &work.0, &verify).0, "a changed size was accepted");
    // The copy from before, and what it becomes on its own.
    for more in [0, 400] {
        let log = Log::open(&copy.0).unwrap();
        for i in 0..more {
            append(&log, entry(9_000 + i));
        }
        log.close().unwrap();
        let said = round(&copy.0, &policy, &Plain).unwrap().unwrap();
        assert!(matches!(said.said[0].1, Outcome::Contradicts(_)), "{more}: {said:?}");
    }
}

#[test]
fn our_witness_signs_their_log_and_refuses_its_forks() {
    let Some(program) = program("our_witness_signs_their_log_and_refuses_its_forks") else {
        return;
    };
    let (work, memory) = (Temp::new("their-log"), Temp::new("our-memory"));
    let run = |args: &[&str]| said(&program, &work.0, args);
    must(&program, &work.0, &["log", "init", "journal"]);
    must(&program, &work.0, &["log", "append", "journal", "--result", "one"]);
    fs::copy(work.0.join("journal"), work.0.join("copy")).unwrap();
    fs::copy(work.0.join("journal.salts"), work.0.join("copy.salts")).unwrap();
    let info = must(&program, &work.0, &["log", "info", "journal"]);
    let hex = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let identity = info.split(|c: char| !c.is_ascii_alphanumeric()).find(|w| hex(w)).unwrap();
    let origin = format!("witness-log/{identity}");
    let vkey = Verifier::parse(&vkey_of(&origin, identity)).unwrap();
    let signer = WitnessSigner::from_seed("w.example/ours", [6; 32]).unwrap();
    let key = signer.key().vkey();
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let url = served(Keeper::open(&memory.0, signer, vec![vkey], now).unwrap());
    must(
        &program,
        &work.0,
        &["directory", "add", "trusted.json", "--vkey", &key, "--org", "ours", "--url", &url],
    );
    let submit = |journal: &str| {
        let state = format!("{journal}.state");
        let more = ["--directory", "trusted.json", "--min", "1", "--state", &state];
        run(&[&["witness", "submit", journal, "--out", "dossier.json"][..], &more].concat())
    };
    let (content, said) = submit("journal");
    assert!(content && said.contains("cosigned size 1"), "{said}");
    for word in ["two", "three"] {
        must(&program, &work.0, &["log", "append", "journal", "--result", word]);
    }
    let (content, said) = submit("journal");
    assert!(content && said.contains("cosigned size 3"), "{said}");
    // Their verifier believes our cosignature in the note that it makes of it.
    let note = ["c2sp", "export", "dossier.json", "--directory", "trusted.json", "--out", "note"];
    must(&program, &work.0, &note);
    must(&program, &work.0, &["c2sp", "verify", "note", "--vkey", &key]);
    // A copy from before that goes another way, without what its client remembers.
    for word in ["else", "more", "and more"] {
        must(&program, &work.0, &["log", "append", "copy", "--result", word]);
        let (content, said) = submit("copy");
        assert!(!content, "a fork was cosigned: {said}");
    }
    let kept = |kind: &str| fs::read_dir(memory.0.join("evidence").join(kind)).unwrap().count();
    assert_eq!((kept("fork"), kept("inconsistent")), (1, 1));
}

/// Their log's verifier key: name, id and key by the rules of signed-note.
fn vkey_of(origin: &str, identity: &str) -> String {
    let byte = |at: usize| u8::from_str_radix(&identity[at..at + 2], 16).unwrap();
    let mut data = vec![1];
    data.extend((0..64).step_by(2).map(byte));
    let mut text = format!("{origin}\n").into_bytes();
    text.extend(&data);
    let id = nanoclaw_audit::merkle::sha256(&text);
    let id: String = id[..4].iter().map(|b| format!("{b:02x}")).collect();
    format!("{origin}+{id}+{}", STANDARD.encode(data))
}

#[test]
fn their_witness_refuses_what_our_log_did_not_sign() {
    let Some(program) = program("their_witness_refuses_what_our_log_did_not_sign") else {
        return;
    };
    let (work, dir) = (Temp::new("refuse"), Temp::new("unsigned"));
    make_log(&dir.0, 5);
    let (_running, key, url) = theirs(&program, &work.0, &dir.0);
    let target = Target { url: Url::parse(&url).unwrap(), key };
    awaited(&target.url);
    let note = read_file(&dir.0.join("checkpoint"), 65_536).unwrap().unwrap();
    let vkey = fs::read_to_string(dir.0.join("vkey")).unwrap();
    let head = Verifier::parse(vkey.trim_end()).unwrap().open(&note).unwrap();
    let changed = String::from_utf8(note).unwrap().replacen("\n5\n", "\n4\n", 1);
    let source = Folder(dir.0.clone());
    let said = submit::submit(&target, &Plain, &source, changed.as_bytes(), &head, 0);
    assert!(matches!(&said, Outcome::Refused(why) if why.contains("403")), "{said:?}");
}
