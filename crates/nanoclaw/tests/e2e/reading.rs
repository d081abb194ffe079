//! `audit search | stats | export | erase | prune | backup | schema` by the binary.

use crate::lab::{Lab, finish, processes_with, wait_until};
use model::{AgentName, Body, Durability, Record, RecordSinkExt, SessionId, Sha256Hex};
use serde_json::Value;
use std::fs;

both!(records_are_found_counted_and_exported, a_backup_verifies_itself_elsewhere);

/// Waits until no process of this home is left, so that nothing writes any more.
fn quiet(lab: &Lab) {
    let home = lab.home().display().to_string();
    wait_until("the recorder is gone", || processes_with(&home).is_empty());
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn records_are_found_counted_and_exported(lab: &Lab) {
    lab.sh(&[], "echo one").ok();
    lab.sh(&[], "bash -c 'echo > /dev/tcp/192.0.2.1/443'");
    quiet(lab);
    let opened = lab.run(["audit", "search", "--kind", "session_opened", "--json"]).ok();
    let opened = lines(&opened);
    assert_eq!(opened.len(), 2);
    let session = opened[0]["entry"]["ai_agent"]["instance_uid"].as_str().unwrap().to_owned();
    let of = lab.run(["audit", "search", "--session", &session, "--json"]).ok();
    assert!(lines(&of).len() > 4, "{of}");
    assert!(lines(&of).iter().all(|l| l["entry"]["ai_agent"]["instance_uid"] == session.as_str()));
    let text = lab.run(["audit", "search", "--session", &session, "--no-index"]).ok();
    assert_eq!(text.lines().count(), lines(&of).len());
    let refused = lab.run(["audit", "search", "--host", "192.0.2.1", "--since", "1h"]).ok();
    assert!(refused.contains("REFUSED 192.0.2.1:443"), "{refused}");
    let first = lab.run(["audit", "search", "-n", "1", "--rebuild", "--json"]).ok();
    assert_eq!(lines(&first)[0]["index"], 0);
    let none = lab.run(["audit", "search", "--kind", "nothing_like_it"]);
    assert!(
        none.code() == 0 && none.out().is_empty() && none.err().contains("No record"),
        "{none}"
    );
    lab.run(["audit", "search", "--since", "yesterday"]).failed(2);
    // Counted, and as many as are verified.
    let stats = lines(&lab.run(["audit", "stats", "--json"]).ok()).remove(0);
    let verified = lines(&lab.run(["audit", "verify", "--json"]).ok()).remove(0);
    assert_eq!(stats["records"], verified["records"]);
    assert_eq!(
        (stats["sessions"].as_u64(), stats["kinds"]["session_opened"].as_u64()),
        (Some(2), Some(2))
    );
    let text = lab.run(["audit", "stats"]).ok();
    assert!(text.contains(" records of 2 sessions") && text.contains("kinds:"), "{text}");
    // Exported, one object a line.
    let ocsf = lines(&lab.run(["audit", "export", "--format", "ocsf"]).ok());
    assert_eq!(ocsf.len() as u64, stats["records"].as_u64().unwrap());
    assert!(ocsf.iter().all(|e| e["attestation_list"][0]["fingerprint"]["value"].is_string()));
    let otlp = lab.run(["audit", "export", "--format", "otlp", "--session", &session]).ok();
    assert!(lines(&otlp).iter().all(|l| l["resourceSpans"][0]["scopeSpans"].is_array()), "{otlp}");
    // The form of records, and of none other.
    let schema = lab.run(["audit", "schema"]).ok();
    assert!(lines(&schema.replace('\n', " "))[0]["oneOf"].as_array().unwrap().len() > 35);
    assert!(lab.run(["audit", "schema", "--table"]).ok().starts_with("# Kinds of records"));
    // Nothing stands beside this log, and nothing is old enough.
    assert!(lab.run(["audit", "erase", "1", "--yes"]).failed(3).contains("nothing stands beside"));
    assert!(
        lab.run(["audit", "prune", "--before", "1970-01-02", "--yes"]).failed(3).contains("pruned")
    );
}

fn a_backup_verifies_itself_elsewhere(lab: &Lab) {
    lab.sh(&[], "echo one").ok();
    quiet(lab);
    let to = lab.folder(&lab.person().join("copies")).join("one");
    let said = lab.run(["audit", "backup", to.to_str().unwrap()]).ok();
    assert!(said.contains("verified there, every byte"), "{said}");
    assert!(!to.join("private").exists());
    let mut command = lab.nanoclaw(["audit", "verify"]);
    command.arg(&to);
    assert!(finish(command, b"").ok().starts_with("intact: "));
    lab.run(["audit", "backup", to.to_str().unwrap()]).failed(2);
    let empty = Lab::mine("no-log");
    empty.run(["audit", "backup", empty.person().join("copy").to_str().unwrap()]).failed(3);
}

/// Long texts, as an agent's tool calls have them, from a client of this process.
#[test]
fn texts_are_erased_on_record_and_the_rest_is_proved() {
    let lab = Lab::mine("erase");
    let (home, binary) = (lab.home(), lab.binary().to_owned());
    let client = audit::Client::connect(&home, "test", || {
        let words = ["--home".as_ref(), home.as_os_str(), "__recorder".as_ref()];
        audit::start_recorder(&binary, &words)
    })
    .unwrap();
    for (session, text) in [(1, "one"), (1, "two"), (2, "three")] {
        let arguments = format!("{text} {}", "x".repeat(5_000));
        let body = Body::ToolCalled {
            call: "1".into(),
            tool: "write".into(),
            arguments,
            arguments_sha256: Sha256Hex("ab".repeat(32)),
        };
        let record = Record {
            time_ms: 1_767_225_600_000,
            session: Some(SessionId::mint(session, 1)),
            agent: Some(AgentName::parse("triage").unwrap()),
            turn: None,
            body,
        };
        client.append(record, Durability::Durable).unwrap();
    }
    client.close();
    quiet(&lab);
    let (first, second) = (SessionId::mint(1, 1), SessionId::mint(2, 1));
    let shown = lab.run(["audit", "show", second.as_str()]).ok();
    assert!(shown.contains("three xxx") && shown.contains("In short: "), "{shown}");
    // Nobody can be asked here, so nothing happens without --yes.
    lab.run(["audit", "erase", "--session", first.as_str()]).failed(2);
    lab.run(["audit", "erase", "--session", first.as_str(), "--json"]).failed(2);
    let said = lab.run(["audit", "erase", "--session", first.as_str(), "--yes", "--json"]).ok();
    let said = lines(&said).remove(0);
    assert_eq!(
        (said["erased"].as_u64(), said["texts_kept"].as_u64()),
        (Some(2), Some(1)),
        "{said}"
    );
    quiet(&lab);
    let shown = lab.run(["audit", "show", first.as_str()]).ok();
    assert!(shown.contains("not there any more") && !shown.contains("one xxx"), "{shown}");
    let report = lines(&lab.run(["audit", "verify", "--json"]).ok()).remove(0);
    assert_eq!((report["texts"].as_u64(), report["texts_erased"].as_u64()), (Some(1), Some(2)));
    // What a crash left: a recorder removes what was not whole, a person what no record names.
    let half = home.join("audit/work").join(format!("{}.new", "cd".repeat(32)));
    let unnamed = home.join("audit/payload/ef").join("ef".repeat(32));
    fs::create_dir_all(unnamed.parent().unwrap()).unwrap();
    for path in [&half, &unnamed] {
        fs::write(path, [b's'; 40]).unwrap();
    }
    let counted = |n: u64| {
        let report = lines(&lab.run(["audit", "verify", "--json"]).ok()).remove(0);
        assert_eq!(report["texts_unnamed"].as_u64(), Some(n), "{report}");
    };
    counted(2);
    let said = lab.run(["audit", "erase", "--unnamed", "--yes"]).failed(3);
    assert!(said.contains("no record names") && unnamed.exists(), "its record may come: {said}");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(4_000);
    let file = fs::File::options().write(true).open(&unnamed).unwrap();
    file.set_modified(long_ago).unwrap();
    let said = lab.run(["audit", "erase", "--unnamed", "--yes", "--json"]).ok();
    assert_eq!(lines(&said).remove(0)["erased"].as_u64(), Some(1), "{said}");
    quiet(&lab);
    assert!(!half.exists() && !unnamed.exists());
    counted(0);
    // One that goes without a record of it is tampering.
    for folder in fs::read_dir(home.join("audit/payload")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    let said = lab.run(["audit", "verify"]).failed(5);
    assert!(said.contains("no erasure is on record"), "{said}");
}

/// A log of small segments, as a long log has large ones; the removal is the walled recorder's.
#[test]
fn old_records_are_pruned_behind_the_recorders_walls() {
    let lab = Lab::mine("prune");
    let dir = lab.home().join("audit");
    let options = audit::log::Options { segment_bytes: 20_000, ..Default::default() };
    let log = audit::Log::open_with(&dir, options).unwrap();
    let uids = audit::entry::Uids::new(1);
    for n in 0..400 {
        let body = Body::TurnFinished { outcome: format!("turn {n}"), duration_ms: n };
        let record =
            Record { time_ms: 1_000_000 + n, session: None, agent: None, turn: None, body };
        let entry = audit::entry::encode(&record, &uids.next(1)).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
        told.recv().unwrap().unwrap();
    }
    log.close().unwrap();
    lab.run(["audit", "prune", "--before", "1970-01-02"]).failed(2);
    let said = lab.run(["audit", "prune", "--before", "1970-01-02", "--yes", "--json"]).ok();
    let said = lines(&said).remove(0);
    let first = said["first"].as_u64().unwrap();
    assert!(first > 100 && said["on_record"] == 400, "{said}");
    let report = lines(&lab.run(["audit", "verify", "--json"]).ok()).remove(0);
    assert_eq!(report["first"], first);
    let found = lines(&lab.run(["audit", "search", "-n", "1", "--json"]).ok()).remove(0);
    assert_eq!(found["index"], first);
    // It goes on, and every command reads what is there.
    lab.sh(&[], "echo on").ok();
    quiet(&lab);
    let story = lab.run(["audit", "show"]).ok();
    assert!(story.contains("echo on"), "{story}");
    let all = lines(&lab.run(["audit", "show", "--all", "--json"]).ok());
    assert_eq!(
        all.len() as u64,
        lines(&lab.run(["audit", "verify", "--json"]).ok())[0]["records"].as_u64().unwrap() - first
    );
    let uid = all[3]["metadata"]["uid"].as_str().unwrap();
    let proof = lab.person().join("record.tlog-proof");
    lab.run(["audit", "proof", uid, "--out", proof.to_str().unwrap()]).ok();
    assert!(lab.run(["audit", "verify"]).ok().contains("were pruned, on record"));
}
