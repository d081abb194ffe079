//! Finding records: the index says the same as looking at every record, whatever becomes of it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Seed, Temp, every_kind};
use model::{AgentName, Body, Direction, Durability, MessageId, Record, SaltedDigest, SessionId};
use model::{Sha256Hex, TurnId};
use nanoclaw_audit::entry::{Uids, encode};
use nanoclaw_audit::index::{self, Query, Terms, search};
use nanoclaw_audit::log::{Log, Options};
use nanoclaw_audit::{raw, read, stats};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn session(n: u64) -> SessionId {
    SessionId::mint(n, 7)
}

/// Longer than an index has it, and cut there within a character.
fn long_path() -> String {
    format!("/w/{}", "é".repeat(300))
}

/// Records of some sessions, agents, users, hosts and files, mixed by a seed.
fn record(seed: &mut Seed, n: u64) -> Record {
    let of = seed.below(12);
    let s = |text: &str| text.to_owned();
    let body = match seed.below(6) {
        0 => Body::EgressRefused {
            target: format!("GET https://Host{}.example.org/x", seed.below(5)),
            rule: s("default"),
            reason: s("no rule"),
            request: None,
        },
        1 => Body::EgressPinned {
            host: format!("host{}.example.com", seed.below(5)),
            port: 443,
            address: s("192.0.2.1"),
        },
        2 => Body::ProcessImage {
            exec: n,
            pid: 7,
            image: Some(match seed.below(10) {
                9 => long_path(),
                tool => format!("/usr/bin/tool-{tool}"),
            }),
            unseen: None,
        },
        3 => Body::Message {
            direction: Direction::In,
            message: MessageId::mint(n, 1),
            channel: s("terminal"),
            chat: format!("chat-{}", seed.below(3)),
            digest: SaltedDigest { sha256: Sha256Hex("ab".repeat(32)), bytes: 3 },
        },
        4 => Body::ApprovalDecided {
            approval: s("a"),
            decision: s("deny"),
            by: s("owner"),
            shown_sha256: None,
        },
        // Any other; but nobody announces keys here.
        _ => every_kind()
            .into_iter()
            .filter(|body| body.kind() != "key_announced")
            .nth(seed.below(20) as usize)
            .unwrap(),
    };
    Record {
        time_ms: 1_767_225_600_000 + 10 * n + seed.below(40),
        session: (of > 0).then(|| session(of)),
        agent: (of > 0).then(|| AgentName::parse(if of < 5 { "triage" } else { "coder" }).unwrap()),
        turn: (of > 6).then(|| TurnId::mint(of, 1)),
        body,
    }
}

/// Adds `n` records to the log in `dir`, which has `from` already.
fn add(dir: &Path, seed: &mut Seed, from: u64, n: u64, segment_bytes: u64) {
    let log = Log::open_with(dir, Options { segment_bytes, ..Options::default() }).unwrap();
    let uids = Uids::new(from);
    let (tell, told) = mpsc::channel();
    for i in from..from + n {
        let record = record(seed, i);
        let entry = encode(&record, &uids.next(record.time_ms)).unwrap();
        let tell = tell.clone();
        log.submit(&entry, Durability::Ordered, Box::new(move |r| tell.send(r).unwrap()));
    }
    for _ in 0..n {
        told.recv().unwrap().unwrap();
    }
    log.sign().unwrap();
    log.close().unwrap();
}

fn numbers(dir: &Path, query: &Query, by_index: bool) -> Vec<u64> {
    let mut found = Vec::new();
    search(dir, query, by_index, |stored| {
        found.push(stored.index);
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// What the query takes, by looking at every entry here.
fn by_hand(dir: &Path, query: &Query) -> Vec<u64> {
    let mut found = Vec::new();
    raw::scan(dir, 0, |index, entry| {
        if query.takes(&Terms::of(entry)) {
            found.push(index);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn queries() -> Vec<Query> {
    let of = |change: fn(&mut Query)| {
        let mut query = Query::default();
        change(&mut query);
        query
    };
    vec![
        Query::default(),
        of(|q| q.session = Some(session(3).as_str().into())),
        of(|q| q.agent = Some("coder".into())),
        of(|q| q.kind = Some("egress_refused".into())),
        of(|q| q.user = Some("chat-1".into())),
        of(|q| q.user = Some("terminal/chat-2".into())),
        of(|q| q.user = Some("owner".into())),
        of(|q| q.host = Some("HOST2.example.org".into())),
        of(|q| q.host = Some("*.example.org".into())),
        of(|q| q.file = Some("/usr/bin/tool-4".into())),
        of(|q| q.file = Some("/usr/bin/".into())),
        of(|q| q.file = Some("/usr/bin".into())),
        of(|q| q.file = Some(long_path())),
        of(|q| (q.from_ms, q.to_ms) = (Some(1_767_225_610_000), Some(1_767_225_620_000))),
        of(|q| {
            q.session = Some(session(8).as_str().into());
            q.kind = Some("process_image".into());
            q.file = Some("/usr/bin/".into());
        }),
        of(|q| {
            q.agent = Some("triage".into());
            q.host = Some("host1.example.org".into());
            q.from_ms = Some(1_767_225_605_000);
        }),
        of(|q| q.session = Some("s0".into())),
    ]
}

fn all_the_same(dir: &Path) -> usize {
    let mut most = 0;
    for query in queries() {
        let want = by_hand(dir, &query);
        assert_eq!(numbers(dir, &query, true), want, "{query:?}");
        assert_eq!(numbers(dir, &query, false), want, "{query:?}");
        most = most.max(want.len());
    }
    most
}

#[test]
fn an_index_finds_what_a_look_at_every_record_finds() {
    let (temp, mut seed) = (Temp::new("search"), Seed(11));
    let dir = &temp.0;
    let mut size = 0;
    // Nothing, too little for an index, enough, more for the same run, and a few beyond it.
    for more in [0, 300, 3_000, 2_100, 5] {
        if more > 0 {
            add(dir, &mut seed, size, more, 1 << 20);
        }
        size += more;
        assert_eq!(all_the_same(dir) as u64, size);
    }
    let (indexed, bytes) = index::update(dir, false).unwrap();
    assert!(indexed > 5_000 && bytes > 10_000, "{indexed} records, {bytes} bytes");
    // It reads few records where few are meant.
    let query = Query { session: Some(session(3).as_str().into()), ..Query::default() };
    let mut got = 0;
    let found = search(dir, &query, true, |_| {
        got += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(got > 100 && found.read < got + 512, "{found:?}");
    // The first few are enough for whoever says so.
    let mut first = Vec::new();
    search(dir, &Query::default(), true, |stored| {
        first.push(stored.index);
        if first.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .unwrap();
    assert_eq!(first, [0, 1, 2]);
}

#[test]
fn a_session_s_records_are_found_from_its_first_on_with_whatever_index_there_is() {
    let temp = Temp::new("of-session");
    let dir = temp.0.join("audit");
    let mut seed = Seed(0x5eed);
    let of = |from: u64| {
        let (mut found, until) = (Vec::new(), Instant::now() + Duration::from_secs(600));
        let whole = index::of_session(&dir, &session(3), from, until, |index, _| {
            found.push(index);
            ControlFlow::Continue(())
        });
        assert!(whole.unwrap());
        found
    };
    add(&dir, &mut seed, 0, 5_000, 1 << 20);
    let query = Query { session: Some(session(3).as_str().into()), ..Query::default() };
    for round in 0..3 {
        let all = by_hand(&dir, &query);
        assert!(all.len() > 200);
        for from in [0, 1, all[100], all[100] + 1, 4_999, 9_000] {
            let wanted: Vec<u64> = all.iter().copied().filter(|i| *i >= from).collect();
            assert_eq!(of(from), wanted, "{round} {from}");
        }
        assert_eq!(dir.join("index").exists(), round > 0, "it makes no index");
        if round == 0 {
            // In the index, all but the newest; later there is more behind it.
            index::update(&dir, false).unwrap();
        } else {
            add(&dir, &mut seed, 4_000 + 1_000 * round, 1_000, 1 << 20);
        }
    }
    let late = Instant::now() - Duration::from_millis(1);
    let ended = index::of_session(&dir, &session(3), 0, late, |_, _| ControlFlow::Continue(()));
    assert!(!ended.unwrap(), "what it had no time for is not the end");
}

#[test]
fn a_damaged_foreign_or_lost_index_hides_nothing() {
    let (temp, mut seed) = (Temp::new("index"), Seed(5));
    let dir = &temp.0;
    add(dir, &mut seed, 0, 2_600, 1 << 20);
    index::update(dir, false).unwrap();
    let file = fs::read_dir(dir.join(index::FOLDER))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "idx"))
        .unwrap();
    let whole = fs::read(&file).unwrap();
    // Another log's index of the same length, under the same name.
    let other = Temp::new("other");
    add(&other.0, &mut Seed(77), 0, 2_600, 1 << 20);
    index::update(&other.0, false).unwrap();
    let foreign = fs::read(other.0.join("index").join(file.file_name().unwrap())).unwrap();
    let mut bad = vec![foreign, Vec::new(), whole[..whole.len() / 2].to_vec()];
    for _ in 0..24 {
        let mut changed = whole.clone();
        let at = seed.below(changed.len() as u64) as usize;
        changed[at] ^= 1 << seed.below(8);
        bad.push(changed);
    }
    for (n, bytes) in bad.into_iter().enumerate() {
        fs::write(&file, bytes).unwrap();
        for query in queries().iter().skip(1 + n % 5).step_by(5) {
            assert_eq!(numbers(dir, query, true), by_hand(dir, query), "{n}: {query:?}");
        }
    }
    fs::write(dir.join("index/mark"), "0 17 2\n").unwrap();
    all_the_same(dir);
    index::remove(dir).unwrap();
    all_the_same(dir);
    // On a disk that cannot be written: every record is looked at.
    index::remove(dir).unwrap();
    fs::write(dir.join(index::FOLDER), "in the way").unwrap();
    all_the_same(dir);
}

#[test]
fn the_newest_are_found_from_the_end() {
    let (temp, mut seed) = (Temp::new("newest"), Seed(3));
    let dir = &temp.0;
    assert!(read::newest(dir, 5).unwrap().is_empty());
    assert_eq!(read::newest_session(dir).unwrap(), None);
    add(dir, &mut seed, 0, 3_000, 100_000);
    for count in [1, 5, 700, 2_999, 3_000, 9_000] {
        let found = read::newest(dir, count).unwrap();
        let want: Vec<u64> = (3_000 - (count as u64).min(3_000)..3_000).collect();
        assert_eq!(found.iter().map(|s| s.index).collect::<Vec<_>>(), want);
    }
    let mut last = None;
    raw::scan(dir, 0, |_, entry| {
        last = Terms::of(entry).session.or(last.take());
        ControlFlow::Continue(())
    })
    .unwrap();
    let newest = read::newest_session(dir).unwrap().map(|s| s.as_str().to_owned());
    assert_eq!(newest, last);
}

#[test]
fn numbers_of_a_log_are_those_of_its_records() {
    let (temp, mut seed) = (Temp::new("stats"), Seed(9));
    let dir = &temp.0;
    add(dir, &mut seed, 0, 3_000, 1 << 20);
    index::update(dir, false).unwrap();
    add(dir, &mut seed, 3_000, 40, 1 << 20);
    let all = stats::whole(dir).unwrap();
    let mut kinds = std::collections::BTreeMap::new();
    let mut times = (u64::MAX, 0);
    raw::scan(dir, 0, |_, entry| {
        let terms = Terms::of(entry);
        *kinds.entry(terms.kind).or_insert(0u64) += 1;
        times = (times.0.min(terms.time_ms), times.1.max(terms.time_ms));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((all.records, all.sessions, all.times), (3_040, 11, Some(times)));
    assert_eq!(all.kinds, kinds);
    assert!(all.wal_bytes > 1_000_000 && all.index_bytes > 0 && all.tile_bytes > all.wal_bytes / 2);
    let query = Query { kind: Some("message".into()), ..Query::default() };
    let some = stats::of(dir, &query).unwrap();
    assert_eq!(some.records, kinds["message"]);
    assert_eq!(some.kinds.len(), 1);
}
