//! Measures a search in a long log, on this machine's disk, in one run:
//! `bench_search [--json] [--records N] [FOLDER]`.
//!
//! The log is one of 10,000,000 records (less with `--records`), written as entry bundles and hash
//! tiles, as every log has them, without the write-ahead log, which a search does not read. Floor:
//! reading the found records' bundles and nothing else.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use model::{AgentName, Body, Record, SessionId};
use nanoclaw_audit::entry::{Uids, encode};
use nanoclaw_audit::index::{self, Query, search};
use nanoclaw_audit::merkle::leaf_hash;
use nanoclaw_audit::tiles::{Kind, TileName, push_entry};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

const RECORDS: u64 = 10_000_000;
/// Records of a session; eight sessions are under way at a time.
const SESSION: u64 = 200;
const AT_A_TIME: u64 = 8;
/// Searches, the median of which counts.
const SEARCHES: u64 = 51;
/// What a search by session may take, milliseconds.
const TARGET_MS: f64 = 50.0;

fn session(index: u64) -> u64 {
    index / (SESSION * AT_A_TIME) * AT_A_TIME + index % AT_A_TIME
}

fn record(index: u64) -> Record {
    let session = session(index);
    let body = match index % 5 {
        0 => Body::EgressPinned {
            host: format!("host{}.example.org", index % 997),
            port: 443,
            address: "192.0.2.1".into(),
        },
        1 => Body::ProcessImage {
            exec: index,
            pid: 7,
            image: Some(format!("/usr/bin/tool-{}", index % 311)),
            unseen: None,
        },
        _ => Body::TurnFinished { outcome: "done".into(), duration_ms: index },
    };
    Record {
        time_ms: 1_767_225_600_000 + index,
        session: Some(SessionId::mint(session, session as u32)),
        agent: Some(
            AgentName::parse(if session.is_multiple_of(3) { "triage" } else { "coder" }).unwrap(),
        ),
        turn: None,
        body,
    }
}

fn make(dir: &Path, records: u64) {
    let uids = Uids::new(7);
    fs::create_dir_all(dir.join("wal")).unwrap();
    let (mut bundle, mut leaves, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..records {
        let record = record(index);
        let entry = nanoclaw_audit::entry::encode_in(bytes, &record, &uids.next(record.time_ms));
        let entry = entry.unwrap();
        push_entry(&mut bundle, entry.bytes());
        leaves.extend(leaf_hash(entry.bytes()));
        bytes = entry.into_bytes();
        if index % 256 == 255 {
            for (kind, content) in [(Kind::Entries, &mut bundle), (Kind::Hashes(0), &mut leaves)] {
                let path = dir.join(TileName { kind, index: index / 256, width: 256 }.path());
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, &content).unwrap();
                content.clear();
            }
        }
    }
    drop(encode(&record(0), &uids.next(0)));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.iter().any(|a| a == "--json");
    let at = args.iter().position(|a| a == "--records");
    let records = at.map_or(RECORDS, |at| args[at + 1].parse().unwrap()) / 256 * 256;
    let base =
        args.iter().enumerate().find(|(n, a)| !a.starts_with("--") && at != n.checked_sub(1));
    let base = base.map_or_else(std::env::temp_dir, |(_, folder)| folder.into());
    let dir = base.join(format!("bench-search-{}", std::process::id()));
    make(&dir, records);
    let begun = Instant::now();
    let (indexed, index_bytes) = index::update(&dir, true).unwrap();
    let building = begun.elapsed().as_secs_f64();
    assert_eq!(indexed, records);
    let (mut times, mut floors, mut found) = (Vec::new(), Vec::new(), 0);
    for n in 0..SEARCHES {
        let wanted = session(records / SEARCHES * n + 3 * n);
        let id = SessionId::mint(wanted, wanted as u32);
        let query = Query { session: Some(id.as_str().to_owned()), ..Query::default() };
        let (begun, mut bundles) = (Instant::now(), Vec::new());
        let searched = search(&dir, &query, true, |stored| {
            bundles.push(stored.index / 256);
            ControlFlow::Continue(())
        });
        found += searched.unwrap().records;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        bundles.dedup();
        let begun = Instant::now();
        for index in bundles {
            let name = TileName { kind: Kind::Entries, index, width: 256 };
            assert!(!fs::read(dir.join(name.path())).unwrap().is_empty());
        }
        floors.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_dir_all(&dir).unwrap();
    times.sort_by(f64::total_cmp);
    floors.sort_by(f64::total_cmp);
    let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
    let floor = floors[floors.len() / 2];
    let met = middle < TARGET_MS;
    if json {
        println!(
            "{{\"name\":\"search by session, {records} records\",\"value\":{middle:.3},\
             \"unit\":\"ms\",\
             \"floor\":{floor:.3},\"target\":\"< {TARGET_MS} ms\",\"met\":{met}}}"
        );
        println!(
            "{{\"name\":\"search index\",\"value\":{index_bytes},\"unit\":\"bytes\",\"floor\":0,\
             \"target\":\"said\",\"met\":true}}"
        );
    } else {
        println!(
            "{records} records; {} found a search; index {} MB ({:.1} bytes a record), made in \
             {building:.0} s",
            found / SEARCHES,
            index_bytes / 1_000_000,
            index_bytes as f64 / records as f64
        );
        println!(
            "search by session: median {middle:.2} ms, most {most:.2} ms, floor (its bundles read) \
             {floor:.2} ms; target < {TARGET_MS} ms: {}",
            if met { "met" } else { "NOT MET" }
        );
    }
}
