//! Texts beside the log: kept by salted digest, erased on record, and never missed silently.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Temp;
use model::{
    AgentName, Body, Durability, MAX_INLINE_BYTES, Record, RecordSinkExt, SessionId, Sha256Hex,
};
use nanoclaw_audit::payload::{self, SALT_BYTES, Scope};
use nanoclaw_audit::recorder::{prepare, recorder_run};
use nanoclaw_audit::{Client, log_dir, raw, verify_dir};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A recorder in a thread of this process, as long as a client lives.
fn client(home: &Path, private: bool) -> Client {
    Client::connect(home, "test", || {
        let place = prepare(home).unwrap().with_private_texts(private);
        let (home, (told, tell)) = (home.to_owned(), std::io::pipe().unwrap());
        std::thread::spawn(move || recorder_run(&home, place, tell.into()));
        let mut ready = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(told), &mut ready)?;
        Ok(())
    })
    .unwrap()
}

fn called(session: u64, arguments: &str) -> Record {
    Record {
        time_ms: 1_767_225_600_000 + session,
        session: Some(SessionId::mint(session, 1)),
        agent: Some(AgentName::parse("triage").unwrap()),
        turn: None,
        body: Body::ToolCalled {
            call: "1".into(),
            tool: "write".into(),
            arguments: arguments.into(),
            arguments_sha256: Sha256Hex("ab".repeat(32)),
        },
    }
}

/// A log with long and short texts of two sessions; the numbers of the long ones.
fn some(home: &Path, private: bool) -> (PathBuf, Vec<u64>) {
    let client = client(home, private);
    let long = |n: usize| format!("{{\"text\":\"{}\"}}", "x".repeat(MAX_INLINE_BYTES + n));
    let mut numbers = Vec::new();
    for session in [1, 2] {
        client.append(called(session, "short"), Durability::Ordered).unwrap();
        for n in 0..2 {
            let record = called(session, &long(n));
            numbers.push(client.append(record, Durability::Durable).unwrap());
        }
    }
    client.close();
    let dir = log_dir(home);
    wait_for_the_end(&dir);
    (dir, numbers)
}

/// Waits until the recorder has closed the log.
fn wait_for_the_end(dir: &Path) {
    for _ in 0..1_000 {
        if nanoclaw_audit::Log::open(dir).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the recorder does not end");
}

fn entry(dir: &Path, index: u64) -> serde_json::Value {
    let mut found = None;
    raw::scan(dir, index, |_, entry| {
        found = serde_json::from_slice(entry).ok();
        ControlFlow::Break(())
    })
    .unwrap();
    found.unwrap()
}

#[test]
fn a_long_text_stands_beside_the_log_and_only_there() {
    let temp = Temp::new("beside");
    let (dir, numbers) = some(&temp.0, false);
    let value = entry(&dir, numbers[0]);
    let of = &value["unmapped"];
    assert_eq!(of["arguments"], "");
    let digest = of["payloads"]["arguments"]["sha256"].as_str().unwrap();
    assert_eq!(of["arguments_sha256"], digest, "no digest of the bare text is left");
    let file = payload::place(&dir, digest);
    let bytes = fs::read(&file).unwrap();
    assert_eq!(bytes.len() as u64, of["payloads"]["arguments"]["bytes"].as_u64().unwrap() + 32);
    assert!(bytes[SALT_BYTES..].starts_with(b"{\"text\":\"xxx"));
    // Its name is its digest, as anybody's sha256sum has it.
    use sha2::Digest;
    let foreign = sha2::Sha256::digest(&bytes);
    let foreign: String = foreign.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(file.file_name().unwrap().to_str().unwrap(), foreign);
    // The same text twice has two salts: nobody sees that it is the same.
    let again = entry(&dir, numbers[2]);
    assert_ne!(again["unmapped"]["payloads"], of["payloads"]);
    // A short one stands in the record.
    assert_eq!(entry(&dir, numbers[0] - 1)["unmapped"]["arguments"], "short");
    let kept = payload::check(&dir).unwrap();
    assert_eq!((kept.whole, kept.erased, kept.unnamed), (4, 0, 0));
    verify_dir(&dir, None).unwrap();
    // Nothing of a text stands anywhere else below the log.
    for part in ["wal", "tile"] {
        assert!(!grep(&dir.join(part), b"xxxx"), "{part}");
    }
}

fn grep(folder: &Path, wanted: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return grep(&path, wanted);
        }
        fs::read(&path).unwrap().windows(wanted.len()).any(|part| part == wanted)
    })
}

#[test]
fn with_private_texts_every_one_stands_beside() {
    let temp = Temp::new("private");
    let (dir, numbers) = some(&temp.0, true);
    assert_eq!(entry(&dir, numbers[0] - 1)["unmapped"]["arguments"], "");
    assert_eq!(payload::check(&dir).unwrap().whole, 6);
    assert!(!grep(&dir.join("wal"), b"short"));
}

#[test]
fn the_digest_of_what_a_person_was_shown_is_salted_where_its_text_is_not_in_the_log() {
    let shown = "POST https://api.example.org/items";
    let bare = digest_of(shown);
    let asked = |text: &str, digest: &str| Body::ApprovalAsked {
        approval: "a1".into(),
        rule: "r".into(),
        by: "owner".into(),
        summary: text.into(),
        shown_sha256: Some(Sha256Hex(digest.into())),
    };
    let decided = |digest: &str| Body::ApprovalDecided {
        approval: "a1".into(),
        decision: "allow".into(),
        by: "owner".into(),
        shown_sha256: Some(Sha256Hex(digest.into())),
    };
    for private in [false, true] {
        let temp = Temp::new("shown");
        let client = client(&temp.0, private);
        let write = |body| client.append(Record { body, ..called(1, "") }, Durability::Durable);
        // A digest that is not the text's is no record, so nobody is asked.
        let error = write(asked("POST https://api.example.org/other", &bare)).unwrap_err();
        assert!(error.to_string().contains("not that of the text"), "{error}");
        let question = write(asked(shown, &bare)).unwrap();
        let answer = write(decided(&bare)).unwrap();
        // Nobody knows which text this one is of.
        let stray = write(decided(&bare)).unwrap();
        client.close();
        let dir = log_dir(&temp.0);
        wait_for_the_end(&dir);
        let [question, answer, stray] =
            [question, answer, stray].map(|n| entry(&dir, n)["unmapped"].clone());
        assert_eq!(question["shown_sha256"], answer["shown_sha256"]);
        assert_eq!(stray["shown_sha256"], serde_json::Value::Null);
        if private {
            assert_eq!(question["summary"], "");
            assert_eq!(question["shown_sha256"], question["payloads"]["summary"]["sha256"]);
            for part in ["wal", "tile"] {
                assert!(!grep(&dir.join(part), bare.as_bytes()), "{part}: guesses could be tried");
            }
        } else {
            assert_eq!(
                (&question["summary"], &question["shown_sha256"]),
                (&shown.into(), &bare.as_str().into())
            );
        }
        verify_dir(&dir, None).unwrap();
    }
}

fn digest_of(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_changed_or_missing_text_is_found_and_an_erased_one_is_no_finding() {
    let temp = Temp::new("erase");
    let (dir, numbers) = some(&temp.0, false);
    let files: Vec<PathBuf> = numbers
        .iter()
        .map(|n| {
            let value = entry(&dir, *n);
            let digest = value["unmapped"]["payloads"]["arguments"]["sha256"].as_str().unwrap();
            payload::place(&dir, digest)
        })
        .collect();
    // A changed byte, a byte less, a file gone: each named.
    let whole = fs::read(&files[0]).unwrap();
    let mut changed = whole.clone();
    changed[40] ^= 1;
    for bad in [changed, whole[..whole.len() - 1].to_vec()] {
        fs::write(&files[0], bad).unwrap();
        let found = payload::check(&dir).unwrap_err();
        assert_eq!(found.file, files[0]);
        assert!(found.what.contains("not the one that was recorded"), "{found}");
    }
    fs::remove_file(&files[0]).unwrap();
    let found = payload::check(&dir).unwrap_err();
    assert_eq!(found.file, files[0]);
    assert!(found.what.contains(&format!("record {}", numbers[0])), "{found}");
    fs::write(&files[0], &whole).unwrap();
    // Erased: on record first, then gone; the other session's stay.
    let scope = Scope::Session(SessionId::mint(1, 1).as_str().to_owned());
    let plan = payload::plan(&dir, &scope).unwrap();
    assert_eq!((plan.there.len(), plan.records, plan.gone), (2, 3, 0));
    let client = client(&temp.0, false);
    for body in plan.bodies(&scope) {
        let record = Record { body, session: None, agent: None, ..called(1, "") };
        client.append(record, Durability::Durable).unwrap();
    }
    client.close();
    wait_for_the_end(&dir);
    let kept = payload::check(&dir).unwrap();
    assert_eq!((kept.whole, kept.unfinished), (4, 2), "on record, not done yet");
    payload::remove(&dir, &plan).unwrap();
    payload::remove(&dir, &plan).unwrap();
    let kept = payload::check(&dir).unwrap();
    assert_eq!((kept.whole, kept.erased, kept.unfinished), (2, 2, 0));
    verify_dir(&dir, None).unwrap();
    let again = payload::plan(&dir, &scope).unwrap();
    assert_eq!((again.there.len(), again.gone), (0, 2));
    // That some were erased is no excuse for others.
    fs::remove_file(&files[3]).unwrap();
    assert_eq!(payload::check(&dir).unwrap_err().file, files[3]);
}

#[test]
fn where_a_text_cannot_be_kept_the_record_is_refused() {
    let temp = Temp::new("refused");
    let home = temp.0.join("home");
    let dir = log_dir(&home);
    fs::create_dir_all(&dir).unwrap();
    // A file where the folder of payloads would be.
    fs::write(dir.join("payload"), "in the way").unwrap();
    let mut client = self::client(&home, false);
    let long = "y".repeat(MAX_INLINE_BYTES + 1);
    let refused = client.append(called(1, &long), Durability::Durable).unwrap_err().to_string();
    assert!(refused.contains("a payload"), "{refused}");
    // As after every failure of the disk that recorder ends; the next one takes what it can.
    drop(client);
    wait_for_the_end(&dir);
    client = self::client(&home, false);
    let small = client.append(called(1, "short"), Durability::Durable);
    assert!(small.is_ok(), "others are taken: {small:?}");
    let beyond = client.append(called(1, &"z".repeat(200_000)), Durability::Durable);
    assert!(beyond.is_err(), "more than may be kept of one text");
    client.close();
    wait_for_the_end(&dir);
    assert_eq!(payload::plan(&dir, &Scope::Before(u64::MAX)).unwrap().there.len(), 0);
}

#[test]
fn what_a_crash_left_is_counted_and_no_finding() {
    let temp = Temp::new("unnamed");
    let (dir, _) = some(&temp.0, false);
    let name = "cd".repeat(32);
    let place = payload::place(&dir, &name);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, b"before its record").unwrap();
    assert_eq!(payload::check(&dir).unwrap().unnamed, 1);
    fs::write(dir.join("payload/cd/else"), b"").unwrap();
    assert!(payload::check(&dir).unwrap_err().what.contains("does not belong"));
}

/// Files below `work`.
fn half_written(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.join("work")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_str().unwrap().ends_with(".new")).collect()
}

#[test]
fn what_a_killed_recorder_left_half_written_is_counted_and_goes_with_the_next() {
    let temp = Temp::new("half");
    let (dir, numbers) = some(&temp.0, false);
    let half = dir.join("work").join(format!("{}.new", "cd".repeat(32)));
    fs::write(&half, b"private, and not whole").unwrap();
    assert_eq!(payload::check(&dir).unwrap().unnamed, 1);
    // It is no text of a record, so nothing that names records takes it.
    assert_eq!(payload::plan(&dir, &Scope::Before(u64::MAX)).unwrap().sum().0, 4);
    let client = client(&temp.0, false);
    client.append(called(3, "short"), Durability::Durable).unwrap();
    assert_eq!(half_written(&dir), Vec::<PathBuf>::new());
    client.close();
    wait_for_the_end(&dir);
    let kept = payload::check(&dir).unwrap();
    assert_eq!((kept.whole, kept.unnamed), (numbers.len() as u64, 0), "keys and payloads stay");
    verify_dir(&dir, None).unwrap();
}

#[test]
fn texts_that_no_record_names_can_be_erased_on_record_once_they_are_old() {
    let temp = Temp::new("unnamed-erased");
    let (dir, numbers) = some(&temp.0, false);
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(4_000);
    let make = |path: PathBuf, old: bool| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [b's'; SALT_BYTES + 5]).unwrap();
        if old {
            fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        }
        path
    };
    let old = make(payload::place(&dir, &"cd".repeat(32)), true);
    let young = make(payload::place(&dir, &"ef".repeat(32)), false);
    let half = make(dir.join("work").join(format!("{}.new", "ab".repeat(32))), true);
    // The age of one that a record names does not matter.
    let value = entry(&dir, numbers[0]);
    let digest = value["unmapped"]["payloads"]["arguments"]["sha256"].as_str().unwrap();
    let named = fs::File::options().write(true).open(payload::place(&dir, digest)).unwrap();
    named.set_modified(long_ago).unwrap();
    let plan = payload::plan(&dir, &Scope::Unnamed).unwrap();
    let found: Vec<&PathBuf> = plan.unnamed.keys().collect();
    assert_eq!(found, [&old, &half]);
    assert_eq!(plan.sum(), (2, 10));
    let bodies = plan.bodies(&Scope::Unnamed);
    let Body::PayloadsErased { records, texts, bytes, .. } = &bodies[0] else { panic!("none") };
    assert_eq!((bodies.len(), records.len(), *texts, *bytes), (1, 0, 2, 10));
    let record = Record { body: bodies[0].clone(), session: None, agent: None, ..called(1, "") };
    let told = nanoclaw_audit::story::line(0, &record);
    assert!(told.contains("2 texts, 10 bytes (texts that no record names)."), "{told}");
    payload::remove(&dir, &plan).unwrap();
    payload::remove(&dir, &plan).unwrap();
    assert!(!old.exists() && !half.exists() && young.exists());
    let kept = payload::check(&dir).unwrap();
    assert_eq!((kept.whole, kept.unnamed, kept.erased), (4, 1, 0));
    verify_dir(&dir, None).unwrap();
}
