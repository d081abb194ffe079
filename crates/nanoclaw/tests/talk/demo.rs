//! `demo`, as root and as an ordinary user: its verdict, its report, its records.

use crate::lab::{Lab, Out, Running, copy_for};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Forbidden acts in the demo.
const ACTS: usize = 19;
/// Far above the promise, which is measured with the release binary; this one is not optimised.
const LONGEST: Duration = Duration::from_secs(30);
/// A user of no account, when the tests run as root.
const NOBODY: u32 = 61_234;
/// Tags whose ends HTML does not let one leave out.
const PAIRED: [&str; 12] =
    ["html", "title", "style", "main", "h1", "h2", "small", "table", "thead", "dl", "b", "code"];

fn assert_passed(report: &Value) {
    assert_eq!(report["passed"], true, "{report:#}");
    assert_eq!(report["scripted_model"], true);
    assert_eq!(report["log"]["verified"], true);
    let acts = report["acts"].as_array().expect("acts");
    assert_eq!(acts.len(), ACTS);
    for act in acts {
        assert_eq!(act["held"], true, "{act:#}");
        for field in ["principle", "probe", "act", "expected", "observed"] {
            assert!(act[field].as_str().is_some_and(|t| !t.is_empty()), "{field} of {act:#}");
        }
        let observed = act["observed"].as_str().unwrap();
        assert!(!observed.contains("gave no answer") && !observed.contains("Os {"), "{observed}");
    }
    let principles: std::collections::BTreeSet<&str> =
        acts.iter().filter_map(|a| a["principle"].as_str()).collect();
    assert_eq!(principles.len(), 3, "{principles:?}");
    let work = report["work"].as_str().expect("work");
    assert!(work.contains("2 3 5 7 11 13 17 19 23 29 31 37 41 43 47"), "{work}");
    assert!(!report["walls"].as_array().expect("walls").is_empty());
    assert!(!report["limits"].as_array().expect("limits").is_empty());
}

/// Every record the report names is in the log, and says the same.
fn assert_on_record(report: &Value, log: &Out) {
    let entries: Vec<Value> = log.events();
    let records = report["log"]["records"].as_u64().expect("a number");
    for act in report["acts"].as_array().expect("acts") {
        let index = act["record"].as_u64().expect("a number");
        assert!(index < records, "record {index} is not under the signed head of {records}");
        let entry = &entries[usize::try_from(index).unwrap()]["unmapped"];
        assert_eq!(entry["kind"], "probe_observed", "#{index}: {entry:#}");
        for field in ["probe", "held", "observed"] {
            assert_eq!(entry[field], act[field], "#{index}");
        }
    }
    assert_eq!(log.stderr, "");
}

fn demo_json(out: &Out) -> Value {
    serde_json::from_str(&out.stdout).expect("one JSON object and nothing else")
}

#[test]
fn every_act_is_refused_and_every_record_is_in_the_log() {
    let lab = Lab::new();
    let out = lab.run(&["demo", "--json"]).expect(0);
    assert!(out.took < LONGEST, "{:?}", out.took);
    let report = demo_json(&out);
    assert_passed(&report);
    let folder = report["log"]["folder"].as_str().expect("a folder").to_owned();
    assert_eq!(Path::new(&folder), lab.home().join("demo/audit"));
    let inner = lab.home().join("demo").display().to_string();
    let mut show = Command::new(crate::lab::BINARY);
    lab.surround(&mut show);
    show.args(["--home", &inner, "audit", "show", "--all", "--json"]);
    assert_on_record(&report, &Running::start(show, b"").wait().expect(0));
    let verified = lab.run(&["audit", "verify", &folder, "--json"]).expect(0).events();
    assert_eq!(verified[0]["root"], report["log"]["root"], "the head that was reported");
    lab.assert_nobody_left();
    // A second time in the same place.
    assert_passed(&demo_json(&lab.run(&["demo", "--json"]).expect(0)));
}

#[test]
fn the_story_says_that_the_model_is_scripted_and_names_the_log() {
    let lab = Lab::new();
    let out = lab.run(&["demo"]).expect(0);
    let scripted = out.stdout.find("SCRIPTED").expect("it is said");
    assert!(scripted < out.stdout.find("you>").expect("then the talk begins"), "{}", out.stdout);
    assert_eq!(out.stdout.matches("(record ").count(), ACTS, "{}", out.stdout);
    assert!(out.stdout.contains("nanoclaw audit verify "), "{}", out.stdout);
    assert!(!out.stdout.contains('\x1b'), "no colours but on a terminal");
}

#[test]
fn an_ordinary_user_gets_the_same_verdict() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not started as root, so every other test is by an ordinary user");
        return;
    }
    let Some(setpriv) = testkit::need("setpriv") else { return };
    let lab = Lab::new();
    let binary = copy_for(&lab, NOBODY);
    let mut command = Command::new(setpriv);
    lab.surround(&mut command);
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(binary);
    command.arg("--home").arg(lab.home()).args(["demo", "--json"]);
    let out = Running::start(command, b"").wait().expect(0);
    assert!(out.took < LONGEST, "{:?}", out.took);
    let report = demo_json(&out);
    assert_passed(&report);
    let who = report["started_as"].as_str().expect("who");
    assert!(who.contains(&id), "{who}");
}

#[test]
fn the_page_is_whole_and_needs_nothing_from_elsewhere() {
    let lab = Lab::new();
    let path = lab.path("x.html");
    let out = lab.run(&["demo", "--report", &path.display().to_string()]).expect(0);
    assert!(out.stdout.contains("x.html"), "{}", out.stdout);
    let page = std::fs::read_to_string(&path).expect("the report");
    assert!(page.to_ascii_lowercase().starts_with("<!doctype html>"));
    for outside in ["http://", "https://", "//cdn", "src=", "<script", "<link", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside} is in the page");
    }
    assert!(page.contains("charset=\"utf-8\"") && page.contains("scripted"), "{page}");
    assert_eq!(page.matches("<tr").count(), ACTS + 1, "a row an act, and the heads");
    assert_balanced(&page);
}

/// Every tag whose end may not be left out is closed, in the right order.
fn assert_balanced(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for piece in page.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag that ends");
        let name = tag.trim_start_matches('/').split_whitespace().next().unwrap_or_default();
        let Some(name) = PAIRED.iter().find(|p| **p == name) else { continue };
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(*name), "closed out of order");
        } else {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new(), "never closed");
}

#[test]
fn the_report_for_programs_is_what_json_prints() {
    let lab = Lab::new();
    let path = lab.path("x.json");
    lab.run(&["demo", "--report", &path.display().to_string()]).expect(0);
    let report = std::fs::read_to_string(&path).expect("the report");
    assert_passed(&serde_json::from_str(&report).expect("JSON"));
}

#[test]
fn an_unknown_kind_of_report_is_refused_before_anything_is_done() {
    let lab = Lab::new();
    let path = lab.path("x.txt");
    let out = lab.run(&["demo", "--report", &path.display().to_string()]).expect(2);
    assert!(out.stderr.contains(".html or .json"), "{}", out.stderr);
    assert!(!path.exists() && !lab.home().join("demo").exists());
    assert_eq!(out.stdout, "");
}
