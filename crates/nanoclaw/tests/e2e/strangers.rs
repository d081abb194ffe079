//! Proofs, served logs and witnesses, as strangers and operators meet them.

use crate::lab::{Lab, Running, finish, processes_with, start, wait_until};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Some records, and nobody who writes any more; the log's folder and its key.
fn some_log(lab: &Lab) -> (PathBuf, String) {
    lab.sh(&[], "echo one").ok();
    quiet(lab);
    let dir = lab.home().join("audit");
    let key = fs::read_to_string(dir.join("vkey")).unwrap().trim_end().to_owned();
    (dir, key)
}

fn quiet(lab: &Lab) {
    let home = lab.home().display().to_string();
    wait_until("nobody writes the log", || processes_with(&home).is_empty());
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Started, and the address that it printed.
fn serving(lab: &Lab, args: &[&str]) -> (Running, Value) {
    let more = ["--listen", "127.0.0.1:0", "--json"];
    let running = start(lab.nanoclaw(args.iter().chain(&more)));
    running.wait_for_output("\n");
    let said = json(running.output().lines().next().unwrap());
    (running, said)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_proof_is_verified_elsewhere_by_the_binary_alone() {
    let lab = Lab::mine("proof");
    let (dir, key) = some_log(&lab);
    let (proof, again) = (lab.person().join("p"), lab.person().join("again"));
    lab.run(["audit", "proof", "2", "--out", text(&proof)]).ok();
    let refused = lab.run(["audit", "proof", "2", "--out", text(&proof)]).failed(1);
    assert!(refused.contains("cannot be written"), "{refused}");
    // The same record by its uid.
    let event = json(lab.run(["audit", "show", "--all", "--json"]).ok().lines().nth(2).unwrap());
    let uid = event["metadata"]["uid"].as_str().unwrap();
    lab.run(["audit", "proof", uid, "--out", text(&again)]).ok();
    assert_eq!(fs::read(&proof).unwrap(), fs::read(&again).unwrap());
    lab.run(["audit", "proof", "999"]).failed(3);
    fs::remove_dir_all(lab.home()).unwrap();
    let mut command = lab.command(lab.binary());
    command.args(["audit", "verify", text(&proof), "--key", &key, "--json"]);
    command.env_remove("HOME").env_remove("NANOCLAW_HOME");
    let said = json(&finish(command, b"").ok());
    assert_eq!((&said["verified"], &said["index"]), (&true.into(), &2.into()), "{said}");
    assert_eq!(said["entry"], event);
    assert!(!lab.home().exists(), "verifying made something");
    lab.run(["audit", "verify", text(&proof)]).failed(2);
    let good = fs::read_to_string(&proof).unwrap();
    fs::write(&proof, good.replacen("index 2", "index 1", 1)).unwrap();
    let said = lab.run(["audit", "verify", text(&proof), "--key", &key]).failed(5);
    assert!(said.contains("proves NOTHING"), "{said}");
    assert!(!dir.exists() || dir.is_dir());
}

#[test]
fn what_is_served_is_verified_from_elsewhere_and_nothing_else_is_served() {
    let lab = Lab::mine("served");
    let (dir, key) = some_log(&lab);
    let old = lab.person().join("old.checkpoint");
    fs::copy(dir.join("checkpoint"), &old).unwrap();
    lab.sh(&[], "echo two").ok();
    quiet(&lab);
    let (_running, said) = serving(&lab, &["audit", "serve"]);
    let url = said["url"].as_str().unwrap();
    let report = json(&lab.run(["audit", "verify", url, "--key", &key, "--json"]).ok());
    let whole = json(&lab.run(["audit", "verify", "--json"]).ok());
    assert_eq!((&report["records"], &report["root"]), (&whole["records"], &whole["root"]));
    lab.run(["audit", "verify", url]).failed(2);
    let said = lab.run(["audit", "consistency", text(&old), url, "--key", &key, "--json"]).ok();
    assert_eq!(json(&said)["relation"], "continues", "{said}");
    let back = lab.run(["audit", "consistency", url, text(&old), "--key", &key]).failed(5);
    assert!(back.contains("rolled back"), "{back}");
    lab.run(["audit", "verify", "http://127.0.0.1:9/x", "--key", &key]).failed(7);
    lab.run(["audit", "verify", "gopher://x", "--key", &key]).failed(2);
    // The head's address, as it is printed, is the log's; a wrong one speaks against nothing.
    let (head, wrong) = (format!("{url}/checkpoint"), format!("{url}/foo"));
    lab.run(["audit", "verify", &head, "--key", &key]).ok();
    lab.run(["audit", "consistency", text(&old), &head, "--key", &key]).ok();
    for said in [
        lab.run(["audit", "verify", &wrong, "--key", &key]),
        lab.run(["audit", "consistency", text(&old), &wrong, "--key", &key]),
    ] {
        assert!(said.failed(3).contains("there is no log at"), "{said}");
    }
    // A copy of what is public, without a key.
    let public = lab.person().join("public");
    fs::create_dir_all(public.join("tile")).unwrap();
    fs::copy(&old, public.join("checkpoint")).unwrap();
    lab.run(["audit", "verify", text(&public)]).failed(2);
    // A tile that is changed while it is served is found from elsewhere.
    let tile = dir.join(format!("tile/0/000.p/{}", report["records"]));
    let mut bytes = fs::read(&tile).unwrap();
    bytes[0] ^= 1;
    fs::write(&tile, bytes).unwrap();
    let said = lab.run(["audit", "verify", url, "--key", &key]).failed(5);
    assert!(said.contains("NOT intact"), "{said}");
}

#[test]
fn heads_are_cosigned_while_programs_run_and_too_few_are_said_and_on_record() {
    let lab = Lab::mine("cosigned");
    let (dir, key) = some_log(&lab);
    let file = lab.person().join("w.key");
    let vkey = lab.run(["witness", "key", "w.example/1", text(&file)]).ok();
    let vkey = vkey.trim_end();
    assert_eq!(lab.run(["witness", "key", "w.example/1", text(&file)]).ok().trim_end(), vkey);
    lab.run(["witness", "key", "w.example/2", text(&file)]).failed(2);
    lab.run(["witness", "submit"]).failed(3);
    let memory = lab.person().join("memory");
    let args = ["witness", "serve", "--key", text(&file), "--log", &key, "--state", text(&memory)];
    let (running, said) = serving(&lab, &args);
    assert_eq!(said["vkey"], vkey);
    let url = said["url"].as_str().unwrap().to_owned();
    let config = format!("schema = 1\n[witnesses.one]\nurl = \"{url}\"\nkey = \"{vkey}\"\n");
    lab.file(&lab.home().join("nanoclaw.toml"), &config);
    lab.run(["witness", "submit"]).ok();
    // The address as `witness serve` prints it for people.
    let printed = config.replace(&url, &format!("{url}/add-checkpoint"));
    lab.file(&lab.home().join("nanoclaw.toml"), &printed);
    lab.run(["witness", "submit"]).ok();
    let trusted = ["audit", "verify", "--witness", vkey];
    let said = lab.run(trusted).ok();
    assert!(said.contains("seen  by w.example/1"), "{said}");
    // It happens by itself, the last head included, and that enough sign is on record.
    lab.sh(&[], "echo two").ok();
    quiet(&lab);
    lab.sh(&[], "sleep 3").ok();
    quiet(&lab);
    let report = json(&lab.run(trusted.iter().chain(&["--json"])).ok());
    assert_eq!(report["cosigned_records"], report["records"], "{report}");
    let story = lab.story();
    assert!(story.contains("Enough witnesses sign this log"), "{story}");
    // Nobody there: nothing stops, it is said, and on record.
    drop(running);
    let first = lab.sh(&[], "sleep 3");
    first.ok();
    quiet(&lab);
    let next = lab.sh(&[], "sleep 3");
    assert!(next.err().contains("too few witnesses have signed"), "{next}");
    quiet(&lab);
    let story = lab.story();
    assert!(story.contains("TOO FEW witnesses sign this log"), "{story}");
    lab.run(["witness", "submit"]).failed(1);
    lab.run(["audit", "verify"]).ok();
    assert!(dir.join("witness/cosigned").exists());
}

#[test]
fn a_log_put_back_from_a_copy_is_contradicted_by_its_witness() {
    let lab = Lab::mine("rolled-back");
    let (dir, key) = some_log(&lab);
    let copy = lab.person().join("copy");
    let copied = |from: &Path, to: &Path| {
        let mut copying = lab.command("cp");
        copying.arg("-a").args([from, to]);
        finish(copying, b"").ok();
    };
    copied(&dir, &copy);
    lab.sh(&[], "echo two").ok();
    quiet(&lab);
    let file = lab.person().join("w.key");
    let vkey = lab.run(["witness", "key", "w.example/1", text(&file)]).ok();
    let memory = lab.person().join("memory");
    let args = ["witness", "serve", "--key", text(&file), "--log", &key, "--state", text(&memory)];
    let (_running, said) = serving(&lab, &args);
    let (url, vkey) = (said["url"].as_str().unwrap(), vkey.trim_end());
    let config = format!("schema = 1\n[witnesses.one]\nurl = \"{url}\"\nkey = \"{vkey}\"\n");
    lab.file(&lab.home().join("nanoclaw.toml"), &config);
    lab.run(["witness", "submit"]).ok();
    fs::remove_dir_all(&dir).unwrap();
    copied(&copy, &dir);
    lab.run(["audit", "verify"]).ok();
    let ran = lab.run(["witness", "submit"]);
    assert_eq!(ran.code(), 5, "{ran}");
    assert!(ran.out().contains("CONTRADICTS") && ran.out().contains("rolled back"), "{ran}");
    assert!(dir.join("witness/evidence").is_dir());
}

#[test]
fn a_key_is_replaced_and_strangers_and_witnesses_go_on() {
    let lab = Lab::mine("rotated");
    let (dir, old) = some_log(&lab);
    let head = lab.person().join("old.checkpoint");
    fs::copy(dir.join("checkpoint"), &head).unwrap();
    let (file, memory) = (lab.person().join("w.key"), lab.person().join("memory"));
    let vkey = lab.run(["witness", "key", "w.example/1", text(&file)]).ok();
    let vkey = vkey.trim_end();
    let witness = ["witness", "serve", "--key", text(&file), "--state", text(&memory), "--log"];
    let at = |said: &Value| {
        let url = said["url"].as_str().unwrap();
        let config = format!("schema = 1\n[witnesses.one]\nurl = \"{url}\"\nkey = \"{vkey}\"\n");
        lab.file(&lab.home().join("nanoclaw.toml"), &config);
    };
    let (running, said) = serving(&lab, &[&witness[..], &[&old]].concat());
    at(&said);
    lab.run(["witness", "submit"]).ok();
    lab.run(["audit", "rotate-key"]).ok();
    quiet(&lab);
    let new = fs::read_to_string(dir.join("vkey")).unwrap().trim_end().to_owned();
    assert_ne!(old, new);
    // What was signed before counts, and a proof says whose head it is under.
    let seen = lab.run(["audit", "verify", "--key", &old, "--witness", vkey]).ok();
    assert!(seen.contains("seen  by w.example/1") && seen.contains(&new), "{seen}");
    let proof = lab.person().join("p");
    let said = lab.run(["audit", "proof", "1", "--out", text(&proof)]).ok();
    assert!(said.contains(&old), "{said}");
    lab.run(["audit", "verify", text(&proof), "--key", &old, "--witness", vkey]).ok();
    // Its witness has to be told; until then it is said what to do.
    let said = lab.run(["witness", "submit"]);
    assert!(said.code() == 1 && said.out().contains("rotate-key"), "{said}");
    drop(running);
    let alone = [&witness[..], &[&new, "--listen", "127.0.0.1:0"]].concat();
    let said = lab.run(&alone).failed(2);
    assert!(said.contains("name the keys in their order"), "{said}");
    let (running, said) = serving(&lab, &[&witness[..], &[&old, "--log", &new]].concat());
    at(&said);
    lab.run(["witness", "submit"]).ok();
    let report = json(&lab.run(["audit", "verify", "--witness", vkey, "--json"]).ok());
    assert_eq!(report["cosigned_records"], report["records"], "{report}");
    drop(running);
    // With either key, by address and between heads.
    let (_serving, said) = serving(&lab, &["audit", "serve"]);
    let url = said["url"].as_str().unwrap();
    for key in [&old, &new] {
        let report = json(&lab.run(["audit", "verify", url, "--key", key, "--json"]).ok());
        assert_eq!((&report["verified"], &report["vkey"]), (&true.into(), &new.as_str().into()));
        for b in [url, text(&dir)] {
            let said = lab.run(["audit", "consistency", text(&head), b, "--key", key, "--json"]);
            assert_eq!(json(&said.ok())["relation"], "continues", "{b}");
        }
    }
}

/// What a round came to after the recorder had left is on record with the next session, however
/// short, and so is what a person's own round came to.
#[test]
fn short_sessions_have_on_record_what_witnesses_said_after_them() {
    let lab = Lab::mine("short");
    let (_, key) = some_log(&lab);
    let file = lab.person().join("w.key");
    let vkey = lab.run(["witness", "key", "w.example/1", text(&file)]).ok();
    let vkey = vkey.trim_end();
    let memory = lab.person().join("memory");
    let args = ["witness", "serve", "--key", text(&file), "--log", &key, "--state", text(&memory)];
    let (running, said) = serving(&lab, &args);
    let url = said["url"].as_str().unwrap().to_owned();
    let config = format!("schema = 1\n[witnesses.one]\nurl = \"{url}\"\nkey = \"{vkey}\"\n");
    lab.file(&lab.home().join("nanoclaw.toml"), &config);
    drop(running);
    let short = || {
        let ran = lab.sh(&[], "true");
        quiet(&lab);
        ran
    };
    short().ok();
    assert!(short().err().contains("too few witnesses have signed"));
    let story = lab.story();
    assert_eq!(story.matches("TOO FEW witnesses sign this log").count(), 1, "{story}");
    let address = url.strip_prefix("http://").unwrap();
    let mut again = lab.nanoclaw(args);
    again.args(["--listen", address, "--json"]);
    let running = start(again);
    running.wait_for_output("\n");
    lab.run(["witness", "submit"]).ok();
    let next = short();
    assert!(!next.err().contains("too few"), "{next}");
    let story = lab.story();
    assert_eq!(story.matches("Enough witnesses sign this log").count(), 1, "{story}");
}
