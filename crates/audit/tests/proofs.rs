//! Proofs for strangers: files, copies of folders and addresses, each with a public key alone.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Hasty, Temp, append, behaves, entry, make_log, served};
use nanoclaw_audit::cosign::{Quorum, WitnessSigner};
use nanoclaw_audit::http::{Patience, Plain, Remote, Url};
use nanoclaw_audit::log::{Log, Options};
use nanoclaw_audit::note::{Signer, Verifier};
use nanoclaw_audit::proof::{self, Proof, ProofError};
use nanoclaw_audit::scan::{Relation, relate, scan};
use nanoclaw_audit::serve::Serve;
use nanoclaw_audit::source::{Folder, Source, checkpoint};
use nanoclaw_audit::tiler::SignAfter;
use nanoclaw_audit::verify::Sort;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

fn key(dir: &Path) -> Verifier {
    Verifier::parse(fs::read_to_string(dir.join("vkey")).unwrap().trim_end()).unwrap()
}

#[test]
fn a_proof_proves_its_record_with_the_key_alone_and_no_changed_byte_is_believed() {
    let dir = Temp::new("proof");
    make_log(&dir.0, 700);
    let (source, key) = (Folder(dir.0.clone()), key(&dir.0));
    let note = checkpoint(&source).unwrap();
    for index in [0, 255, 256, 511, 699] {
        let proof = proof::make(&source, &key, &note, index).unwrap();
        let read = Proof::parse(proof.text().as_bytes()).unwrap();
        assert_eq!(read, proof);
        let proven = read.verify(&key, &Quorum::default(), None).unwrap();
        assert_eq!((proven.index, proven.entry), (index, entry(index as usize)));
        assert_eq!(proven.checkpoint.size, 700);
    }
    assert!(proof::make(&source, &key, &note, 700).is_err());
    let good = proof::make(&source, &key, &note, 300).unwrap().text().into_bytes();
    for at in 0..good.len() {
        for mask in [1, 0x20, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            let found =
                Proof::parse(&bad).and_then(|proof| proof.verify(&key, &Quorum::default(), None));
            assert!(found.is_err(), "byte {at} mask {mask:#x} unseen");
        }
    }
}

#[test]
fn a_proof_without_its_record_needs_it_and_takes_no_other() {
    let dir = Temp::new("bare");
    make_log(&dir.0, 9);
    let (source, key) = (Folder(dir.0.clone()), key(&dir.0));
    let note = checkpoint(&source).unwrap();
    let bare = Proof { extra: None, ..proof::make(&source, &key, &note, 4).unwrap() };
    let bare = Proof::parse(bare.text().as_bytes()).unwrap();
    let verify = |given: Option<&[u8]>| bare.verify(&key, &Quorum::default(), given);
    assert_eq!(verify(None), Err(ProofError::NoEntry));
    assert!(matches!(verify(Some(&entry(5))), Err(ProofError::NotIncluded { index: 4, size: 9 })));
    assert_eq!(verify(Some(&entry(4))).unwrap().entry, entry(4));
    let other = Signer::from_seed("another.example/log", [3; 32]).unwrap();
    let found = bare.verify(other.verifier(), &Quorum::default(), Some(&entry(4)));
    assert!(matches!(found, Err(ProofError::Note(_))), "{found:?}");
}

#[test]
fn an_older_head_still_proves_its_records_after_the_log_has_grown() {
    let dir = Temp::new("older");
    let quiet = SignAfter { quiet: Duration::from_secs(60), at_most: Duration::from_secs(60) };
    let log = Log::open_with(&dir.0, Options { sign_after: quiet, ..Options::default() }).unwrap();
    let mut heads = Vec::new();
    for i in 0..600 {
        append(&log, entry(i));
        if [9, 200, 300, 520, 560, 598].contains(&i) {
            log.sign().unwrap();
            heads.push(fs::read(dir.0.join("checkpoint")).unwrap());
        }
    }
    log.close().unwrap();
    let (source, key) = (Folder(dir.0.clone()), key(&dir.0));
    let newest = key.open(&checkpoint(&source).unwrap()).unwrap();
    let remote = served(Serve::new(&dir.0));
    let remote = Remote::new(Url::parse(&remote).unwrap(), &Plain);
    for head in &heads {
        let old = key.open(head).unwrap();
        // The first heads' partial tiles are gone from the folder; fuller ones serve.
        let proof = proof::make(&remote, &key, head, old.size - 1).unwrap();
        assert_eq!(proof.verify(&key, &Quorum::default(), None).unwrap().index, old.size - 1);
        let Relation::Continues(_) = relate(&old, &newest, &source).unwrap() else {
            panic!("a head of {} is not continued", old.size);
        };
    }
}

#[test]
fn two_heads_are_one_continued_rolled_back_or_forked() {
    let (a, b) = (Temp::new("one"), Temp::new("two"));
    make_log(&a.0, 300);
    // The same key and origin, another history from record 250 on.
    fs::create_dir_all(b.0.join("private")).unwrap();
    fs::copy(a.0.join("private/key"), b.0.join("private/key")).unwrap();
    fs::copy(a.0.join("vkey"), b.0.join("vkey")).unwrap();
    let log = Log::open(&b.0).unwrap();
    for i in 0..400 {
        append(&log, if i < 250 { entry(i) } else { entry(i + 1_000) });
        if [199, 299].contains(&i) {
            log.sign().unwrap();
            fs::copy(b.0.join("checkpoint"), b.0.join(format!("at-{}", i + 1))).unwrap();
        }
    }
    log.close().unwrap();
    let key = key(&a.0);
    let open = |path: &Path| key.open(&fs::read(path).unwrap()).unwrap();
    let (first, long) = (open(&a.0.join("checkpoint")), open(&b.0.join("checkpoint")));
    let (common, same_size) = (open(&b.0.join("at-200")), open(&b.0.join("at-300")));
    let (in_a, in_b) = (Folder(a.0.clone()), Folder(b.0.clone()));
    assert_eq!(relate(&first, &first, &in_a), Ok(Relation::Same));
    assert!(matches!(relate(&common, &first, &in_a), Ok(Relation::Continues(p)) if !p.is_empty()));
    assert!(matches!(relate(&common, &long, &in_b), Ok(Relation::Continues(_))));
    assert_eq!(relate(&long, &first, &in_a), Ok(Relation::RolledBack));
    assert!(matches!(relate(&first, &same_size, &in_b), Ok(Relation::Forked(_))));
    assert!(matches!(relate(&first, &long, &in_b), Ok(Relation::Forked(_))));
}

#[test]
fn a_copy_without_its_write_ahead_log_and_an_address_are_verified_to_the_byte() {
    let (dir, copy) = (Temp::new("whole"), Temp::new("copy"));
    make_log(&dir.0, 600);
    for name in ["checkpoint", "tile"] {
        let status = std::process::Command::new("cp")
            .arg("-r")
            .args([dir.0.join(name), copy.0.join(name)])
            .status();
        assert!(status.unwrap().success());
    }
    let (key, none) = (key(&dir.0), Quorum::default());
    let folder = Folder(copy.0.clone());
    let address = served(Serve::new(&copy.0));
    let scan_both = || {
        let remote = Remote::new(Url::parse(&address).unwrap(), &Plain);
        (scan(&folder, &key, &none), scan(&remote, &key, &none))
    };
    let (here, there) = scan_both();
    assert_eq!((here.unwrap().checkpoint.size, there.unwrap().checkpoint.size), (600, 600));
    let names = ["checkpoint", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"];
    for name in names.iter().chain(&["tile/entries/000", "tile/entries/002.p/88"]) {
        let file = copy.0.join(name);
        let good = fs::read(&file).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&file, &bad).unwrap();
            let (here, there) = scan_both();
            assert!(here.is_err() && there.is_err(), "{name} byte {at}: {here:?} {there:?}");
        }
        fs::remove_file(&file).unwrap();
        let (here, there) = scan_both();
        assert!(here.is_err() && there.is_err(), "{name} gone");
        fs::write(&file, &good).unwrap();
    }
    assert!(scan_both().1.is_ok());
    let other = Signer::from_seed(key.name(), [9; 32]).unwrap();
    assert!(scan(&folder, other.verifier(), &none).is_err());
}

/// One request, as bytes, and everything that comes back until the server closes.
fn raw(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_served_has_its_type_and_age_and_nothing_else_is_there() {
    let dir = Temp::new("types");
    make_log(&dir.0, 300);
    let address = served(Serve::new(&dir.0));
    let get =
        |path: &str| raw(&address, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n"));
    let head = get("/checkpoint");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("Cache-Control: no-cache\r\n"), "{head}");
    for tile in ["/tile/0/000", "/tile/entries/001.p/44", "/tile/entries/001.p/7"] {
        let answer = get(tile);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{tile}: {answer}");
        assert!(answer.contains("Content-Type: application/octet-stream\r\n"), "{tile}");
        assert!(answer.contains("Cache-Control: public, max-age=31536000, immutable\r\n"));
    }
    // The last one is no file: it was cut from a fuller one.
    assert!(!dir.0.join("tile/entries/001.p/7").exists());
    for (path, status) in [
        ("/", "404"),
        ("/private/key", "404"),
        ("/vkey", "404"),
        ("/tile/../private/key", "404"),
        ("//tile/0/000", "404"),
        ("/tile/0/0", "404"),
        ("/tile/0/009", "404"),
        ("/tile/entries/001.p/45", "404"),
        ("/checkpoint?x", "404"),
    ] {
        let answer = get(path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(!answer.contains("PRIVATE+KEY"), "{path}");
    }
    for (request, status) in [
        ("POST /checkpoint HTTP/1.1\r\nConnection: close\r\n\r\n", "405"),
        ("POST /checkpoint HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "413"),
        ("GET checkpoint HTTP/1.1\r\n\r\n", "400"),
        ("GET /checkpoint HTTP/2.0\r\n\r\n", "400"),
        ("GET /checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
        ("GET /checkpoint HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", "400"),
    ] {
        let answer = raw(&address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    let head = raw(&address, "HEAD /tile/0/000 HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(head.contains("Content-Length: 8192\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn cosignatures_of_the_head_are_served_with_it_and_of_another_head_are_not() {
    let dir = Temp::new("beside");
    make_log(&dir.0, 5);
    let signer = WitnessSigner::from_seed("w.example/1", [5; 32]).unwrap();
    let quorum = Quorum::new(vec![signer.key().clone()], 1).unwrap();
    let note = fs::read_to_string(dir.0.join("checkpoint")).unwrap();
    let text = &note[..=note.find("\n\n").unwrap()];
    let cosigned = format!("{note}{}", signer.cosign(text, 1_700_000_000));
    fs::create_dir(dir.0.join("witness")).unwrap();
    fs::write(dir.0.join("witness/cosigned"), &cosigned).unwrap();
    let remote = served(Serve::new(&dir.0));
    let read = || {
        let remote = Remote::new(Url::parse(&remote).unwrap(), &Plain);
        remote.read("checkpoint", 65_536).unwrap().unwrap()
    };
    let by = quorum.cosigners(&read()).unwrap();
    assert_eq!((by.len(), by[0].time), (1, 1_700_000_000));
    let log = Log::open(&dir.0).unwrap();
    append(&log, entry(5));
    log.close().unwrap();
    assert_eq!(quorum.cosigners(&read()).unwrap(), []);
}

#[test]
fn who_sends_nothing_and_who_comes_too_many_leave_the_others_unharmed() {
    let dir = Temp::new("crowd");
    make_log(&dir.0, 3);
    let limits = nanoclaw_audit::http::Limits {
        connections: 4,
        receive: Duration::from_millis(300),
        ..nanoclaw_audit::http::Limits::default()
    };
    let address = common::served_with(Serve::new(&dir.0), limits);
    let host = address.strip_prefix("http://").unwrap();
    let mut silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(host).unwrap()).collect();
    silent[0].write_all(b"GET /checkpoint HT").unwrap();
    // Some of these may come before the silent ones are counted; one after them is told.
    let told = (0..50).any(|_| raw(&address, "").starts_with("HTTP/1.1 503 "));
    assert!(told, "nobody was refused");
    // The silent ones are let go of by the server, and there is room again.
    for stream in &mut silent {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let again = (0..100)
        .any(|_| raw(&address, "GET /checkpoint HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert!(again, "no room after the silent ones were gone");
}

#[test]
fn an_address_is_taken_with_the_last_step_that_people_copy_along() {
    let log = |text: &str| Url::parse(text).unwrap().without("checkpoint");
    assert_eq!(log("http://h/checkpoint"), Url::parse("http://h").unwrap());
    assert_eq!(log("http://h/a/checkpoint/"), Url::parse("http://h/a").unwrap());
    for other in ["http://h/acheckpoint", "http://checkpoint", "http://h/checkpoint/a"] {
        assert_eq!(log(other), Url::parse(other).unwrap(), "{other}");
    }
}

/// What an address' `checkpoint` is, for somebody of that patience.
fn read_there(address: &str, patience: Patience) -> Result<Option<Vec<u8>>, String> {
    let dial = Hasty(patience);
    let remote = Remote::new(Url::parse(address).unwrap(), &dial);
    remote.read("checkpoint", 20_000).map_err(|finding| {
        assert_eq!(finding.sort, Sort::Unreadable, "{finding}");
        finding.what
    })
}

#[test]
fn fields_behind_an_answer_come_to_an_end() {
    let pieces = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n";
    let endless = behaves(move |mut stream| {
        stream.write_all(pieces.as_bytes())?;
        loop {
            stream.write_all(b"x: y\r\n")?;
        }
    });
    let said = read_there(&endless, Patience::default()).unwrap_err();
    assert!(said.contains("too much follows"), "{said}");
    let one_line = behaves(move |mut stream| {
        stream.write_all(pieces.as_bytes())?;
        loop {
            stream.write_all(&[b'x'; 100])?;
        }
    });
    let said = read_there(&one_line, Patience::default()).unwrap_err();
    assert!(said.contains("too much follows"), "{said}");
    let some = behaves(move |mut stream| {
        stream.write_all(pieces.as_bytes())?;
        let fields = format!("one: {}\r\n", "x".repeat(1_000)).repeat(8);
        stream.write_all(format!("{fields}\r\n").as_bytes())
    });
    assert_eq!(read_there(&some, Patience::default()), Ok(Some(b"abc".to_vec())));
}

#[test]
fn an_answer_that_drips_is_given_up_and_a_slow_large_one_is_not() {
    let (silence, exchange) = (Duration::from_secs(20), Duration::from_millis(500));
    let hasty = Patience { silence, exchange, bytes_per_second: 1_000 };
    for head in ["Content-Length: 5000", "Transfer-Encoding: chunked", "Connection: close"] {
        let drips = behaves(move |mut stream| {
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes())?;
            loop {
                stream.write_all(b"1")?;
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let said = read_there(&drips, hasty).unwrap_err();
        assert!(said.contains("takes too long") || said.contains("in time"), "{head}: {said}");
        // By silence nothing ends here, and by length only after minutes.
        assert!(begun.elapsed() < Duration::from_secs(10), "{head}: {:?}", begun.elapsed());
    }
    let slow = behaves(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")?;
        for _ in 0..50 {
            stream.write_all(&[b'x'; 400])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
    let begun = Instant::now();
    assert_eq!(read_there(&slow, hasty), Ok(Some(vec![b'x'; 20_000])));
    assert!(begun.elapsed() > exchange);
}
