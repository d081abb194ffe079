//! Entries: canonical as a foreign library has it, and back again without loss.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Seed, every_kind, record};
use model::Body;
use nanoclaw_audit::canonical;
use nanoclaw_audit::entry::{ENTRY_BYTES_MAX, EncodeError, Entry, Uids, decode, encode};
use serde_json::{Value, json};

#[test]
fn every_kind_is_canonical_and_comes_back_as_it_went_in() {
    let uids = Uids::new(u64::MAX - 3);
    for body in every_kind() {
        for with in [true, false] {
            let mut record = record(body.clone());
            if !with {
                (record.session, record.turn) = (None, None);
            }
            let entry = encode(&record, &uids.next(record.time_ms)).unwrap();
            let value: Value = serde_json::from_slice(entry.bytes()).unwrap();
            let foreign = serde_json_canonicalizer::to_vec(&value).unwrap();
            assert_eq!(entry.bytes(), foreign, "{}", body.kind());
            assert_eq!(decode(entry.bytes()).unwrap(), record);
            assert_eq!(value["metadata"]["version"], "1.9.0");
            let (class, activity) = (&value["class_uid"], &value["activity_id"]);
            let type_uid = class.as_u64().unwrap() * 100 + activity.as_u64().unwrap();
            assert_eq!(value["type_uid"], type_uid);
            assert_eq!(value["category_uid"], class.as_u64().unwrap() / 1000);
            assert_eq!(value["unmapped"]["kind"], body.kind());
        }
    }
}

#[test]
fn ids_are_uuids_of_version_7_and_never_twice() {
    let uids = Uids::new(u64::MAX);
    let all: std::collections::BTreeSet<_> =
        (0..1000).map(|_| uids.next(1_700_000_000_000)).collect();
    assert_eq!(all.len(), 1000);
    for uid in all {
        let text = std::str::from_utf8(&uid).unwrap();
        assert!(text.starts_with("018bcfe5-6800-7"), "{text}");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}

#[test]
fn any_json_without_floats_is_written_as_a_foreign_library_writes_it() {
    let mut seed = Seed(7);
    for _ in 0..3_000 {
        let value = any(&mut seed, 4);
        let mut ours = Vec::new();
        canonical::write(&mut ours, &value).unwrap();
        let theirs = serde_json_canonicalizer::to_vec(&value).unwrap();
        assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&theirs));
    }
    // U+FB33 sorts after U+1F600 by UTF-16 code units, but before it by code points.
    let mut ours = Vec::new();
    canonical::write(&mut ours, &json!({"\u{fb33}": 1, "\u{1f600}": 2})).unwrap();
    assert_eq!(String::from_utf8(ours).unwrap(), "{\"\u{1f600}\":2,\"\u{fb33}\":1}");
}

fn any(seed: &mut Seed, depth: usize) -> Value {
    match seed.below(if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => json!(seed.below(2) == 0),
        2 => json!(seed.next() as i64 >> 11),
        3 => json!(text(seed)),
        4 => (0..seed.below(5)).map(|_| any(seed, depth - 1)).collect(),
        _ => {
            Value::Object((0..seed.below(6)).map(|_| (text(seed), any(seed, depth - 1))).collect())
        }
    }
}

fn text(seed: &mut Seed) -> String {
    let range = [0x20, 0x7f, 0x800, 0x11_0000][seed.below(4) as usize];
    (0..seed.below(8)).filter_map(|_| char::from_u32(seed.below(range) as u32)).collect()
}

#[test]
fn what_not_every_reader_reads_alike_is_refused() {
    for bad in [json!(0.5), json!(1u64 << 53), json!(-(1i64 << 53)), json!({"a": [1e300]})] {
        assert!(canonical::write(&mut Vec::new(), &bad).is_err(), "{bad}");
    }
    let uid = [b'0'; 36];
    let large = record(Body::RecorderStopped { records: 1 << 53 });
    assert!(matches!(encode(&large, &uid), Err(EncodeError::Number(_))));
    let long = record(Body::ClientLost { pid: 1, role: "x".repeat(ENTRY_BYTES_MAX) });
    let refused = encode(&long, &uid);
    assert!(matches!(refused, Err(EncodeError::TooLarge { bytes }) if bytes > ENTRY_BYTES_MAX));
    assert_eq!(Entry::from_bytes(Vec::new()), Err(EncodeError::Empty));
}

#[test]
fn bytes_that_are_no_entry_are_an_error_and_not_a_panic() {
    let good = encode(&record(Body::RecorderStopped { records: 3 }), &[b'0'; 36]).unwrap();
    let mut seed = Seed(3);
    for _ in 0..20_000 {
        let mut bytes = good.bytes().to_vec();
        let at = seed.below(bytes.len() as u64) as usize;
        bytes[at] = seed.next() as u8;
        bytes.truncate(seed.below(2 * bytes.len() as u64) as usize);
        let _ = decode(&bytes);
    }
    assert!(decode(b"[]").is_err());
    assert!(decode(br#"{"time":1,"unmapped":{"kind":"from_the_future"}}"#).is_err());
}
