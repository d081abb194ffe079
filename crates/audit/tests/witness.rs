//! A witness signs what continues, refuses all else by the specification's numbers, and keeps what
//! contradicts; the log's side keeps what witnesses say.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Hasty, Temp, append, behaves, entry, make_log, served};
use nanoclaw_audit::cosign::{Quorum, WitnessKey, WitnessSigner};
use nanoclaw_audit::http::{Dial, Pace, Patience, Plain, Stream, Url, post};
use nanoclaw_audit::log::Log;
use nanoclaw_audit::merkle::{consistency_proof, leaf_hash, subtree_root};
use nanoclaw_audit::note::Signer;
use nanoclaw_audit::witness::{AddCheckpoint, Keeper, Outcome, Policy, Target, Verdict, round};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time by the witness' clock in these tests, seconds since 1970.
const NOW: u64 = 1_790_000_000;

fn signer() -> WitnessSigner {
    WitnessSigner::from_seed("witness.example/w1", [8; 32]).unwrap()
}

/// A log in memory, and requests about it.
struct Small {
    signer: Signer,
    leaves: Vec<[u8; 32]>,
}

impl Small {
    fn new(leaves: std::ops::Range<usize>) -> Self {
        let signer = Signer::from_seed("log.example/one", [4; 32]).unwrap();
        Self { signer, leaves: leaves.map(|i| leaf_hash(&entry(i))).collect() }
    }

    fn note(&self, size: usize) -> String {
        self.signer.sign(size as u64, subtree_root(&self.leaves[..size]))
    }

    fn request(&self, old: usize, new: usize) -> Vec<u8> {
        let proof = consistency_proof(&self.leaves[..], old as u64, new as u64).unwrap();
        let proof = proof.unwrap_or_default();
        AddCheckpoint { old: old as u64, proof, note: self.note(new) }.text().into_bytes()
    }
}

fn keeper(dir: &Path) -> Keeper {
    let log = Small::new(0..0).signer.verifier().clone();
    Keeper::open(dir, signer(), vec![log], || NOW).unwrap()
}

fn evidence(dir: &Path, kind: &str) -> Vec<String> {
    let Ok(files) = fs::read_dir(dir.join("evidence").join(kind)) else { return Vec::new() };
    files.map(|f| fs::read_to_string(f.unwrap().path()).unwrap()).collect()
}

#[test]
fn it_answers_by_the_specifications_numbers_and_remembers_over_restarts() {
    let dir = Temp::new("numbers");
    let log = Small::new(0..40);
    let url = Url::parse(&served(keeper(&dir.0))).unwrap();
    let ask = |body: &[u8]| {
        let (head, body) = post(&Plain, &url, "add-checkpoint", body, 10_000).unwrap();
        (head.status, head.kind.unwrap_or_default(), String::from_utf8(body).unwrap())
    };
    let (status, _, line) = ask(&log.request(0, 10));
    assert_eq!(status, 200);
    let cosigned = format!("{}{line}", log.note(10));
    assert_eq!(signer().key().cosigned(cosigned.as_bytes()), Ok(Some(NOW)));
    assert_eq!(ask(&log.request(10, 25)).0, 200);
    assert_eq!(ask(&log.request(25, 25)).0, 200, "the same head again");
    // 409 with the known size: nothing is known of what the client thinks it last signed.
    for body in [log.request(0, 30), log.request(10, 30), log.request(10, 12)] {
        assert_eq!(ask(&body), (409, "text/x.tlog.size".into(), "25\n".into()));
    }
    assert_eq!(ask(b"old 1\n").0, 400);
    assert_eq!(ask(&log.request(25, 20)).0, 400, "older than the old size");
    let unknown = Signer::from_seed("log.example/two", [4; 32]).unwrap().sign(1, [0; 32]);
    assert_eq!(
        ask(AddCheckpoint { old: 0, proof: vec![], note: unknown }.text().as_bytes()).0,
        404
    );
    let stolen = Signer::from_seed("log.example/one", [5; 32]).unwrap().sign(30, [0; 32]);
    let forged = AddCheckpoint { old: 25, proof: vec![], note: stolen }.text();
    assert_eq!(ask(forged.as_bytes()).0, 403);
    let proofless = AddCheckpoint { old: 25, proof: vec![], note: log.note(30) }.text();
    assert_eq!(ask(proofless.as_bytes()).0, 422);
    let (head, _) = post(&Plain, &url, "elsewhere", b"", 100).unwrap();
    assert_eq!(head.status, 404);
    // Its memory is on disk, and it alone uses that folder.
    let log_key = log.signer.verifier().clone();
    assert!(Keeper::open(&dir.0, signer(), vec![log_key.clone()], || NOW).is_err());
    let known = fs::read_dir(dir.0.join("logs")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(&known).unwrap(), log.note(25));
}

#[test]
fn a_fork_a_rollback_and_a_truncation_are_refused_and_both_sides_are_kept() {
    let dir = Temp::new("forks");
    let log = Small::new(0..40);
    let mut forked = Small::new(0..40);
    forked.leaves[7] = leaf_hash(b"rewritten");
    let witness = keeper(&dir.0);
    assert!(matches!(witness.add_checkpoint(&log.request(0, 20)), Verdict::Cosigned(_)));
    // The same size and another root, both signed: proof of two histories.
    assert_eq!(witness.add_checkpoint(&forked.request(20, 20)), Verdict::Fork);
    let kept = evidence(&dir.0, "fork");
    assert!(kept.len() == 1 && kept[0].contains(&log.note(20)), "{kept:?}");
    assert!(kept[0].contains(&forked.note(20)));
    // A client that knows nothing hears the size, and the fork is kept all the same.
    assert_eq!(witness.add_checkpoint(&forked.request(0, 20)), Verdict::Known(20));
    assert_eq!(evidence(&dir.0, "fork").len(), 1, "one head is one piece of evidence");
    // A history that was rewritten, with a proof that fits itself.
    assert_eq!(witness.add_checkpoint(&forked.request(20, 30)), Verdict::Inconsistent);
    assert_eq!(evidence(&dir.0, "inconsistent").len(), 1);
    // A log that was cut, or put back from a copy.
    assert_eq!(witness.add_checkpoint(&log.request(12, 15)), Verdict::Known(20));
    assert_eq!(evidence(&dir.0, "older").len(), 1);
    // None of that has moved what it knows.
    assert!(matches!(witness.add_checkpoint(&log.request(20, 30)), Verdict::Cosigned(_)));
}

#[test]
fn the_head_is_on_disk_before_it_is_signed_and_what_was_changed_there_is_not_replaced() {
    let dir = Temp::new("disk");
    let log = Small::new(0..40);
    let witness = keeper(&dir.0);
    assert!(matches!(witness.add_checkpoint(&log.request(0, 5)), Verdict::Cosigned(_)));
    let known = fs::read_dir(dir.0.join("logs")).unwrap().next().unwrap().unwrap().path();
    // A folder in the way of the new file: it cannot be written, so nothing is signed.
    let in_the_way = known.with_extension(format!("{}.new", std::process::id()));
    fs::create_dir(&in_the_way).unwrap();
    assert!(matches!(witness.add_checkpoint(&log.request(5, 9)), Verdict::Broken(_)));
    assert_eq!(fs::read_to_string(&known).unwrap(), log.note(5));
    fs::remove_dir(&in_the_way).unwrap();
    let changed = fs::read_to_string(&known).unwrap().replacen("\n5\n", "\n4\n", 1);
    fs::write(&known, changed).unwrap();
    assert!(matches!(witness.add_checkpoint(&log.request(5, 9)), Verdict::Broken(_)));
    assert!(matches!(witness.add_checkpoint(&log.request(0, 9)), Verdict::Broken(_)));
    drop(witness);
    let again = Keeper::open(&dir.0, signer(), vec![log.signer.verifier().clone()], || NOW);
    assert!(again.is_err(), "opened over a changed memory");
}

#[test]
fn of_many_at_once_no_one_takes_a_head_back() {
    let dir = Temp::new("race");
    let log = Small::new(0..200);
    let witness = keeper(&dir.0);
    std::thread::scope(|scope| {
        for thread in 1..5 {
            let (witness, log) = (&witness, &log);
            scope.spawn(move || {
                let mut old = 0;
                for new in (thread..200).step_by(4) {
                    match witness.add_checkpoint(&log.request(old.min(new), new)) {
                        Verdict::Cosigned(_) => old = new,
                        Verdict::Known(size) => old = size as usize,
                        Verdict::Bad(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    let origin = log.signer.verifier().name();
    let size = witness.known(origin).unwrap().unwrap().0.size;
    assert!(matches!(
        witness.add_checkpoint(&log.request(size as usize, 200)),
        Verdict::Cosigned(_)
    ));
}

fn target(url: &str, key: &WitnessKey) -> Target {
    Target { url: Url::parse(url).unwrap(), key: key.clone() }
}

fn witness_of(log: &Path, dir: &Path, name: &str, seed: u8) -> (String, WitnessKey) {
    let vkey = fs::read_to_string(log.join("vkey")).unwrap();
    let log = nanoclaw_audit::note::Verifier::parse(vkey.trim_end()).unwrap();
    let signer = WitnessSigner::from_seed(name, [seed; 32]).unwrap();
    let key = signer.key().clone();
    (served(Keeper::open(dir, signer, vec![log], || NOW).unwrap()), key)
}

#[test]
fn a_quorum_is_kept_beside_the_head_and_too_few_are_said_by_name() {
    let (dir, one, two) = (Temp::new("log"), Temp::new("one"), Temp::new("two"));
    make_log(&dir.0, 300);
    let (url1, key1) = witness_of(&dir.0, &one.0, "w.example/1", 1);
    let (url2, key2) = witness_of(&dir.0, &two.0, "w.example/2", 2);
    let nobody = WitnessSigner::from_seed("w.example/3", [3; 32]).unwrap().key().clone();
    let all =
        vec![target(&url1, &key1), target(&url2, &key2), target("http://127.0.0.1:9", &nobody)];
    let three = Policy::new(all.clone(), 3).unwrap();
    let first = round(&dir.0, &three, &Plain).unwrap().unwrap();
    assert_eq!((first.size, first.reached()), (300, false));
    assert_eq!(first.cosigned(), ["w.example/1", "w.example/2"]);
    assert_eq!(first.failed()[0].0, "w.example/3");
    assert!(!dir.0.join("witness/cosigned").exists(), "too few, and kept as enough");
    let two_of_three = Policy::new(all, 2).unwrap();
    let log = Log::open(&dir.0).unwrap();
    append(&log, entry(300));
    log.close().unwrap();
    assert!(round(&dir.0, &two_of_three, &Plain).unwrap().unwrap().reached());
    let kept = fs::read(dir.0.join("witness/cosigned")).unwrap();
    let quorum = Quorum::new(vec![key1.clone(), key2], 2).unwrap();
    assert_eq!(quorum.cosigners(&kept).unwrap().len(), 2);
    // Another witness' answer under a known name counts for nothing.
    let (url4, _) = witness_of(&dir.0, &Temp::new("four").0, "w.example/1", 44);
    let liar = Policy::new(vec![target(&url4, &key1)], 1).unwrap();
    let said = round(&dir.0, &liar, &Plain).unwrap().unwrap();
    assert!(matches!(said.said[0].1, Outcome::Refused(_)), "{said:?}");
    // What the log believes its witnesses know is only a hint.
    fs::remove_file(dir.0.join("witness/sizes")).unwrap();
    assert!(round(&dir.0, &two_of_three, &Plain).unwrap().unwrap().reached());
}

#[test]
fn a_log_put_back_from_a_copy_hears_it_from_its_witness_and_keeps_the_answer() {
    let (dir, copy, memory) = (Temp::new("live"), Temp::new("backup"), Temp::new("memory"));
    make_log(&dir.0, 20);
    let copied =
        std::process::Command::new("cp").arg("-a").args([dir.0.join("."), copy.0.clone()]).status();
    assert!(copied.unwrap().success());
    let (url, key) = witness_of(&dir.0, &memory.0, "w.example/1", 1);
    let policy = Policy::new(vec![target(&url, &key)], 1).unwrap();
    let log = Log::open(&dir.0).unwrap();
    append(&log, entry(20));
    log.close().unwrap();
    assert!(round(&dir.0, &policy, &Plain).unwrap().unwrap().reached());
    // Offline nothing speaks against the copy; its witness does.
    assert!(nanoclaw_audit::verify_dir(&copy.0, None).is_ok());
    let said = round(&copy.0, &policy, &Plain).unwrap().unwrap();
    assert!(matches!(&said.said[0].1, Outcome::Contradicts(why) if why.contains("rolled back")));
    // It goes on another way: the same size, and beyond.
    for i in [100, 101] {
        let log = Log::open(&copy.0).unwrap();
        append(&log, entry(i));
        log.close().unwrap();
        let said = round(&copy.0, &policy, &Plain).unwrap().unwrap();
        assert!(matches!(&said.said[0].1, Outcome::Contradicts(_)), "{said:?}");
    }
    assert!(!copy.0.join("witness/cosigned").exists());
    assert_eq!(fs::read_dir(copy.0.join("witness/evidence")).unwrap().count(), 1);
    assert_eq!(evidence(&memory.0, "fork").len(), 1);
    assert_eq!(evidence(&memory.0, "inconsistent").len(), 1);
}

#[test]
fn a_quorum_counts_a_witness_once_and_a_log_s_key_never() {
    let key = signer().key().clone();
    assert_eq!(WitnessKey::parse(&key.vkey()), Ok(key.clone()));
    assert_eq!(WitnessSigner::parse(&signer().skey()).unwrap().key(), &key);
    let renamed = WitnessSigner::from_seed("witness.example/again", [8; 32]).unwrap();
    assert!(Quorum::new(vec![key.clone(), renamed.key().clone()], 2).is_err(), "one key twice");
    assert!(Quorum::new(vec![key.clone()], 2).is_err());
    let log = Signer::from_seed("witness.example/w1", [8; 32]).unwrap();
    assert!(WitnessKey::parse(&log.verifier().vkey()).is_err());
    assert!(nanoclaw_audit::note::Verifier::parse(&key.vkey()).is_err());
    assert!(WitnessSigner::parse(&log.skey()).is_err());
    // The log's own signature under the witness' name is no cosignature.
    let note = log.sign(1, [1; 32]);
    assert_eq!(key.cosigned(note.as_bytes()), Ok(None));
}

#[test]
fn a_witness_that_drips_holds_no_other_up_and_is_left() {
    let (dir, memory) = (Temp::new("drips"), Temp::new("honest"));
    make_log(&dir.0, 20);
    let (url, key) = witness_of(&dir.0, &memory.0, "w.example/1", 1);
    let evil_key = WitnessSigner::from_seed("w.example/2", [2; 32]).unwrap().key().clone();
    let (tell, left) = std::sync::mpsc::channel();
    let evil = behaves(move |mut stream| {
        let mut drip = || {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        let ended: std::io::Result<()> = drip();
        tell.send(()).unwrap();
        ended
    });
    let all = vec![target(&evil, &evil_key), target(&url, &key)];
    let policy = Policy::new(all, 1).unwrap();
    let exchange = Duration::from_secs(2);
    let hasty = Hasty(Patience { exchange, ..Patience::default() });
    let begun = Instant::now();
    let said = round(&dir.0, &policy, &hasty).unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!((said.reached(), said.cosigned()), (true, vec!["w.example/1"]));
    assert!(matches!(&said.said[0].1, Outcome::Unreachable(_)), "{said:?}");
    let kept = fs::read(dir.0.join("witness/cosigned")).unwrap();
    assert_eq!(Quorum::new(vec![key], 1).unwrap().cosigners(&kept).unwrap().len(), 1);
    // What still asked it has ended too.
    left.recv_timeout(Duration::from_secs(20)).unwrap();
}

/// Finds no way to the address with that port, for longer than any test runs: as a search for a
/// host's address may, which nothing can break off.
#[derive(Clone)]
struct Stuck(u16);

impl Dial for Stuck {
    fn dial(&self, url: &Url, pace: &Pace) -> std::io::Result<Box<dyn Stream>> {
        if url.port == self.0 {
            std::thread::sleep(Duration::from_secs(3_600));
        }
        Plain.dial(url, pace)
    }

    fn patience(&self) -> Patience {
        Patience { exchange: Duration::from_secs(2), ..Patience::default() }
    }
}

#[test]
fn a_round_ends_without_the_late_and_has_kept_the_others_before() {
    let (dir, memory) = (Temp::new("late"), Temp::new("honest"));
    make_log(&dir.0, 20);
    let (url, key) = witness_of(&dir.0, &memory.0, "w.example/1", 1);
    let late = WitnessSigner::from_seed("w.example/2", [2; 32]).unwrap().key().clone();
    let all = vec![target("http://127.0.0.1:9", &late), target(&url, &key)];
    let policy = Policy::new(all, 1).unwrap();
    let cosigned = dir.0.join("witness/cosigned");
    let begun = Instant::now();
    let said = std::thread::scope(|scope| {
        let asks = scope.spawn(|| round(&dir.0, &policy, &Stuck(9)).unwrap().unwrap());
        while !cosigned.exists() && !asks.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!asks.is_finished(), "the signature was kept at the end only");
        asks.join().unwrap()
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!((said.reached(), said.cosigned()), (true, vec!["w.example/1"]));
    let failed = said.failed();
    assert!(failed.len() == 1 && failed[0].1.contains("not answered within 2 s"), "{failed:?}");
}
