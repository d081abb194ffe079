//! Exports: every record an event with what its class requires; sessions as traces.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Temp, every_kind, record};
use model::{Body, Record};
use nanoclaw_audit::catalogue::examples;
use nanoclaw_audit::entry::{Uids, decode, encode};
use nanoclaw_audit::export::{ocsf::Ocsf, otlp::Otlp};
use nanoclaw_audit::merkle::{leaf_hash, sha256};
use nanoclaw_audit::read::Stored;
use nanoclaw_audit::{Log, backup, payload};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn stored(index: u64, record: &Record) -> Stored {
    let bytes = encode(record, &Uids::new(index).next(record.time_ms)).unwrap().into_bytes();
    Stored { index, record: decode(&bytes), bytes }
}

#[test]
fn every_kind_is_an_event_with_what_its_class_requires() {
    let mut export = Ocsf::new("nanoclaw/1", "nanoclaw/1+a+b");
    let mut previous: Option<Value> = None;
    for (index, body) in (0..).zip(every_kind().into_iter().chain(examples())) {
        let entry = stored(index, &record(body.clone()));
        let line = export.event(index, &entry.bytes).unwrap();
        assert!(!line.contains('\n'));
        let event: Value = serde_json::from_str(&line).unwrap();
        let has = |path: &str| event.pointer(path).is_some_and(|v| !v.is_null());
        let class = event["class_uid"].as_u64().unwrap();
        let required: &[&str] = match class {
            1001 => &["/actor/app_name", "/device/type_id", "/file/path", "/file/type_id"],
            1007 => &["/actor/app_name", "/device/type_id", "/process"],
            2003 => &["/compliance/standards/0", "/finding_info/uid", "/finding_info/title"],
            3004 => &[],
            4001 => &["/dst_endpoint", "/src_endpoint", "/action_id", "/disposition_id"],
            6002 => &["/app/name"],
            6003 => &["/actor/app_name", "/api/operation", "/src_endpoint/name"],
            other => panic!("class {other}"),
        };
        for path in ["/message", "/time", "/metadata/sequence"].iter().chain(required) {
            assert!(has(path), "{} has no {path}: {line}", body.kind());
        }
        assert_eq!(event["metadata"]["sequence"], index);
        let profiles = event["metadata"]["profiles"].as_array().unwrap();
        assert!(profiles.contains(&"record_integrity".into()), "{line}");
        // The attestation: leaf of the entry, chain, and a fingerprint over all but itself.
        let attestation = &event["attestation_list"][0];
        assert_eq!(attestation["uid"], hex(&leaf_hash(&entry.bytes)));
        assert_eq!(attestation["chain_uid"], "nanoclaw/1");
        let mut bare = event.clone();
        let removed = bare["attestation_list"][0].as_object_mut().unwrap().remove("fingerprint");
        let canonical = serde_json_canonicalizer::to_vec(&bare).unwrap();
        assert_eq!(removed.unwrap()["value"], hex(&sha256(&canonical)));
        if let Some(previous) = &previous {
            let before = &attestation["prev_event"];
            assert_eq!(before["uid"], previous["metadata"]["uid"]);
            assert_eq!(before["fingerprint"], previous["attestation_list"][0]["fingerprint"]);
        } else {
            assert!(attestation.get("prev_event").is_none());
        }
        previous = Some(event);
    }
    assert_eq!(export.event(1, b"no JSON"), None);
}

#[test]
fn what_was_refused_says_so_and_by_which_rule() {
    let mut export = Ocsf::new("o", "v");
    let mut of = |body: Body| -> Value {
        let entry = stored(1, &record(body));
        serde_json::from_str(&export.event(1, &entry.bytes).unwrap()).unwrap()
    };
    let refused = of(Body::EgressRefused {
        target: "GET https://a.org/".into(),
        rule: "default".into(),
        reason: "no rule".into(),
        request: None,
    });
    assert_eq!(
        (refused["action_id"].as_u64(), refused["disposition_id"].as_u64()),
        (Some(2), Some(2))
    );
    assert_eq!(refused["firewall_rule"]["name"], "default");
    let probe = |held| Body::ProbeObserved {
        probe: "p".into(),
        expected: "e".into(),
        observed: "o".into(),
        held,
    };
    assert_eq!(of(probe(true))["compliance"]["status_id"], 1);
    assert_eq!(of(probe(false))["compliance"]["status_id"], 3);
}

/// The spans of an export of these records.
fn spans(records: &[Record]) -> Vec<Value> {
    let mut export = Otlp::new("nanoclaw/1");
    let mut lines: Vec<String> = Vec::new();
    for (index, record) in (0..).zip(records) {
        lines.extend(export.push(&stored(index, record)));
    }
    lines.extend(export.finish());
    let mut spans = Vec::new();
    for line in lines {
        let value: Value = serde_json::from_str(&line).unwrap();
        // One sort of telemetry a file (OTLP file exporter).
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["resourceSpans"]);
        let scope = &value["resourceSpans"][0]["scopeSpans"][0];
        spans.extend(scope["spans"].as_array().unwrap().iter().cloned());
    }
    spans
}

fn attributes(span: &Value) -> BTreeMap<String, String> {
    let all = span["attributes"].as_array().unwrap().iter();
    all.map(|a| {
        let value = a["value"].as_object().unwrap().values().next().unwrap();
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (a["key"].as_str().unwrap().to_owned(), text)
    })
    .collect()
}

#[test]
fn a_session_is_a_trace_of_turns_models_and_tools() {
    let all = examples();
    let of = |kind: &str| all.iter().find(|b| b.kind() == kind).unwrap().clone();
    let order = [
        "session_opened",
        "message",
        "turn_started",
        "model_request",
        "model_response",
        "tool_called",
        "process_exec",
        "tool_finished",
        "egress_intent",
        "egress_refused",
        "egress_result",
        "host_tool_called",
        "host_tool_finished",
        "model_request",
        "turn_finished",
        "session_closed",
    ];
    let records: Vec<Record> = (0..)
        .zip(order)
        .map(|(n, kind)| {
            let mut record = record(of(kind));
            record.time_ms += n;
            if kind.starts_with("session") || kind == "message" {
                record.turn = None;
            }
            record
        })
        .collect();
    let spans = spans(&records);
    let names: BTreeSet<&str> = spans.iter().map(|s| s["name"].as_str().unwrap()).collect();
    let want = [
        "GET api.github.com",
        "chat claude-sonnet-4-5",
        "execute_tool bash",
        "execute_tool web_fetch",
        "invoke_agent triage",
        "nanoclaw.session",
    ];
    assert_eq!(names, want.into());
    let by = |name: &str| spans.iter().find(|s| s["name"] == name).unwrap();
    let (session, turn) = (by("nanoclaw.session"), by("invoke_agent triage"));
    assert!(session.get("parentSpanId").is_none());
    assert_eq!(turn["parentSpanId"], session["spanId"]);
    let ids: BTreeSet<&str> = spans.iter().map(|s| s["spanId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), spans.len());
    for span in &spans {
        let id = |key: &str, n| {
            span[key]
                .as_str()
                .is_some_and(|id| id.len() == n && id.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        assert!(id("traceId", 32) && id("spanId", 16), "{span}");
        assert_eq!(span["traceId"], session["traceId"]);
        if span["spanId"] != session["spanId"] && span["spanId"] != turn["spanId"] {
            assert_eq!(span["parentSpanId"], turn["spanId"], "{span}");
        }
        let time = |key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
        assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"));
        assert_eq!(attributes(span)["gen_ai.conversation.id"], "s00000000005-00000006");
    }
    let chats: Vec<_> =
        spans.iter().filter(|s| s["name"] == "chat claude-sonnet-4-5").map(attributes).collect();
    let whole = chats.iter().find(|c| !c.contains_key("nanoclaw.unfinished")).unwrap();
    assert_eq!(whole["gen_ai.operation.name"], "chat");
    assert_eq!(whole["gen_ai.provider.name"], "anthropic");
    assert_eq!(whole["gen_ai.usage.input_tokens"], "4120");
    assert_eq!(chats.len(), 2, "the second had no answer, and says so");
    let tool = attributes(by("execute_tool bash"));
    assert_eq!(tool["gen_ai.operation.name"], "execute_tool");
    assert_eq!(tool["gen_ai.tool.call.id"], "call-1");
    let events = turn["events"].as_array().unwrap();
    let events: Vec<&str> = events.iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(events, ["nanoclaw.process_exec", "nanoclaw.egress_refused"]);
    // No word of a person, an agent or a tool.
    let text = serde_json::to_string(&spans).unwrap();
    for secret in ["git log", "12 lines", "--oneline"] {
        assert!(!text.contains(secret), "{secret}");
    }
    // The same log gives the same ids.
    assert_eq!(self::spans(&records), spans);
}

#[test]
fn every_kind_is_in_the_traces_whatever_its_order() {
    let records: Vec<Record> = every_kind().into_iter().rev().map(record).collect();
    assert!(spans(&records).len() > 3);
    let bare: Vec<Record> = every_kind()
        .into_iter()
        .map(|body| Record { session: None, agent: None, turn: None, ..record(body) })
        .collect();
    assert!(spans(&bare).len() > 15);
}

#[test]
fn a_backup_is_verified_in_its_place_and_goes_nowhere_else() {
    let temp = Temp::new("backup");
    let (dir, to) = (temp.0.join("log"), temp.0.join("copy"));
    common::make_log(&dir, 1_000);
    let made = backup::backup(&dir, &to).unwrap();
    assert_eq!((made.report.records, made.report.key_was_given), (1_000, true));
    assert!(!to.join("private").exists(), "the signing key stays where it is");
    assert!(matches!(backup::backup(&dir, &to), Err(backup::BackupError::NotEmpty(_))));
    let none = backup::backup(&temp.0.join("none"), &temp.0.join("x"));
    assert!(matches!(none, Err(backup::BackupError::NoLog(_))));
    // While it is written.
    let log = Log::open(&dir).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                common::append(&log, common::entry(i));
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        let made = backup::backup(&dir, &temp.0.join("live"));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let made = made.unwrap();
        assert!(made.report.records >= 1_000, "{made:?}");
    });
    log.close().unwrap();
    // A log that is not intact makes no backup that says it were.
    let segment = nanoclaw_audit::wal::segments(&dir).unwrap()[0].path.clone();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let bad = backup::backup(&dir, &temp.0.join("bad")).unwrap_err();
    assert!(matches!(bad, backup::BackupError::NotIntact(_)), "{bad}");
    assert_eq!(payload::check(&to).unwrap().whole, 0);
}
