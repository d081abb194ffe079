//! `policy check | explain | diff | learn | accept`, complete texts and exit codes.

use crate::lab::{Lab, Ran, finish, snapshot};
use model::{AgentName, Body, Durability, Record, RecordSinkExt, RequestLine, SessionId};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const TRIAGE: &str = r#"schema = 1
description = "Triages issues"

[[egress]]
host = "api.example.org"
methods = ["GET"]
paths = ["/repos/**"]
secret = "tracker"

[[egress]]
host = "*.cdn.example.org"

[[egress]]
host = "pinned.example.org"
tls = "tunnel"

[[egress]]
host = "db.example.org"
port = 5432
protocol = "tcp"
private = true

[[egress]]
host = "own.example.org"
own_credentials = "allow"
max_upload_per_day = "1MiB"

[[ask]]
egress = "POST api.example.org/repos/*/*/issues"
by = "admin"
timeout = "2min"

[[deny]]
host = "admin.cdn.example.org"

[[deny]]
host = "api.example.org"
paths = ["/repos/secret/**"]

[budget]
usd_per_day = 2.0
tokens_per_day = 100000
"#;

fn lab(name: &str) -> Lab {
    let lab = Lab::mine(name);
    lab.file(&lab.home().join("agents/triage.toml"), TRIAGE);
    lab
}

/// What a command said, with its exit code, and the home's path taken out.
fn said(lab: &Lab, ran: &Ran) -> String {
    let home = lab.home().display().to_string();
    let text = format!("{}{}exit {}\n", ran.out(), ran.err(), ran.code());
    text.replace(&home, "HOME")
}

#[test]
fn check_tells_every_grant_and_every_mistake() {
    let lab = lab("check");
    let mut text = said(&lab, &lab.run(["policy", "check"]));
    lab.file(&lab.home().join("agents/bad.toml"), "schema = 1\n[[egress]]\nhots = 'a.org'\n");
    text += &said(&lab, &lab.run(["policy", "check"]));
    text += &said(&lab, &lab.run(["policy", "check", "bad"]));
    text += &said(&lab, &lab.run(["policy", "check", "nobody"]));
    snapshot("policy-check", &text);
    let json = lab.run(["policy", "check", "--json"]);
    assert_eq!(json.code(), 2);
    let value: serde_json::Value = serde_json::from_str(&json.out()).unwrap();
    assert_eq!(value[0]["ok"], false);
    assert_eq!(value[1]["agent"], "triage");
    let loud = value[1]["grants"].as_array().unwrap().iter();
    assert_eq!(loud.filter(|g| g.as_str().unwrap().starts_with("! ")).count(), 3);
}

#[test]
fn explain_names_the_rule_and_what_nearly_matched() {
    let lab = lab("explain");
    let mut text = String::new();
    for (method, url) in [
        ("GET", "https://api.example.org/repos/a/b?token=not-shown"),
        ("POST", "https://api.example.org/repos/a/b/issues"),
        ("PUT", "https://api.example.org/repos/a/b"),
        ("GET", "https://api.example.org/repos/%73ecret/x"),
        ("GET", "https://api.example.org/repos/../admin"),
        ("GET", "https://api.example.org:8443/repos/a"),
        ("GET", "http://api.example.org/repos/a"),
        ("GET", "https://img.cdn.example.org/x.png"),
        ("GET", "https://admin.cdn.example.org/"),
        ("GET", "https://cdn.example.org/"),
        ("GET", "https://pinned.example.org/anything"),
        ("GET", "tcp://db.example.org:5432"),
        ("TRACE", "https://own.example.org/"),
        ("GET", "https://api.exmaple.org/"),
        ("GET", "https://10.0.0.1/"),
        ("GET", "ftp://api.example.org/"),
        ("GET", "https://user:pass@api.example.org/"),
    ] {
        text += &format!("$ {method} {url}\n");
        text += &said(&lab, &lab.run(["policy", "explain", "triage", method, url]));
    }
    assert!(!text.contains("\x1b"), "{text}");
    snapshot("policy-explain", &text);
    let args = ["policy", "explain", "triage", "GET", "https://api.example.org/repos/a", "--json"];
    let value: serde_json::Value = serde_json::from_str(&lab.run(args).ok()).unwrap();
    assert_eq!(value["verdict"], "allow");
    assert_eq!(value["rule"], "agents/triage.toml:4");
}

#[test]
fn diff_says_what_becomes_possible_and_its_exit_code_stops_a_pipeline() {
    let lab = Lab::mine("diff");
    let file = |name: &str, text: &str| lab.file(&lab.person().join(name), text);
    let old = file("old.toml", TRIAGE);
    let wider = TRIAGE
        .replace("methods = [\"GET\"]", "methods = [\"GET\", \"DELETE\"]")
        .replace("host = \"own.example.org\"\n", "host = \"own.example.org\"\nport = 8443\n")
        .replace("[[deny]]\nhost = \"admin.cdn.example.org\"\n", "")
        .replace("[budget]\nusd_per_day = 2.0\n", "[budget]\n")
        + "[env]\nMODE = \"fast\"\n[[mounts]]\nsource = \"~/notes\"\ntarget = \"/mnt/n\"\n\
           access = \"write\"\n[tools]\nallow = [\"bash\", \"web_fetch\"]\n";
    let wider = file("wider.toml", &wider);
    let narrower = file("narrower.toml", &TRIAGE.replace("*.cdn", "img.cdn"));
    let broken = file("broken.toml", "schema = 1\nmodle = 'x'\n");
    let run = |a: &Path, b: &Path| {
        let ran = lab.run([OsStr::new("policy"), "diff".as_ref(), a.as_ref(), b.as_ref()]);
        let person = lab.person().display().to_string();
        (ran.code(), said(&lab, &ran).replace(&person, "PERSON"))
    };
    let mut text = String::new();
    for (a, b, code) in [
        (&old, &wider, 1),
        (&old, &narrower, 0),
        (&old, &old, 0),
        (&old, &broken, 2),
        (&old, &lab.person().join("absent.toml"), 2),
    ] {
        let (got, told) = run(a, b);
        assert_eq!(got, code, "{told}");
        text += &told;
    }
    snapshot("policy-diff", &text);
    // Two files are compared without making a home.
    assert_eq!(fs::read_dir(lab.home()).unwrap().count(), 0);
}

/// Puts records on the log, through the recorder, as the gateway does.
fn put_on_record(lab: &Lab, bodies: Vec<Body>) {
    let (home, binary) = (lab.home(), lab.binary());
    let start = || {
        let args = [OsStr::new("--home"), home.as_os_str(), OsStr::new("__recorder")];
        audit::start_recorder(&binary, &args)
    };
    let log = audit::Client::connect(&home, "test", start).unwrap();
    for body in bodies {
        let record = Record {
            time_ms: 1_700_000_000_000,
            session: Some(SessionId::parse("s1").unwrap()),
            agent: Some(AgentName::parse("triage").unwrap()),
            turn: None,
            body,
        };
        log.append(record, Durability::Durable).unwrap();
    }
}

fn refused(target: &str, request: Option<(&str, &str)>) -> Body {
    let request = request.map(|(method, path)| RequestLine {
        method: method.to_owned(),
        path: path.to_owned(),
        query_keys: Vec::new(),
    });
    Body::EgressRefused {
        target: target.to_owned(),
        rule: "default deny".to_owned(),
        reason: "not permitted".to_owned(),
        request,
    }
}

fn session(lab: &Lab) {
    let used = Body::EgressIntent {
        host: "img.cdn.example.org".to_owned(),
        port: 443,
        rule: "agents/triage.toml:10".to_owned(),
        address: None,
        request: Some(RequestLine {
            method: "GET".to_owned(),
            path: "/pictures/17.png".to_owned(),
            query_keys: Vec::new(),
        }),
        secret: None,
    };
    let mut all = vec![used];
    for n in [7, 8, 9] {
        all.push(refused("new.example.org:443", Some(("GET", &format!("/items/{n}/text")))));
    }
    all.push(refused("new.example.org:443", Some(("GET", "/.env"))));
    all.push(refused("seen.example.org:8443", None));
    all.push(refused("169.254.169.254:80", None));
    all.push(refused("metadata.google.internal:80", None));
    put_on_record(lab, all);
}

fn proposal(lab: &Lab) -> PathBuf {
    lab.home().join("proposals/triage-s1.toml")
}

#[test]
fn learning_writes_an_inert_proposal_and_accepting_adds_it_on_record() {
    let lab = lab("learn");
    session(&lab);
    let agent = lab.home().join("agents/triage.toml");
    let mut text = said(&lab, &lab.run(["policy", "learn", "s1"]));
    assert!(text.contains("LEARNING"), "{text}");
    assert_eq!(fs::read_to_string(&agent).unwrap(), TRIAGE, "learning grants nothing");
    assert_eq!(fs::metadata(proposal(&lab)).unwrap().permissions().mode() & 0o777, 0o600);

    let accept = |more: &[&str]| {
        let mut command = lab.nanoclaw(["policy", "accept"]);
        command.arg(proposal(&lab)).args(more);
        finish(command, b"y\n")
    };
    // Nobody at a terminal, nobody agrees; a pipe that says y is nobody.
    let ran = accept(&[]);
    assert_eq!(ran.code(), 2, "{ran}");
    text += &said(&lab, &ran);
    assert_eq!(accept(&["--json"]).code(), 1);
    assert_eq!(fs::read_to_string(&agent).unwrap(), TRIAGE, "nobody agreed");
    let ran = accept(&["--yes"]);
    assert_eq!(ran.code(), 0, "{ran}");
    text += &said(&lab, &ran);
    let after = fs::read_to_string(&agent).unwrap();
    assert!(after.starts_with(TRIAGE), "{after}");
    text += &after[TRIAGE.len()..];
    // Twice is refused: the rules are there.
    text += &said(&lab, &accept(&["--yes"]));
    snapshot("policy-learn", &text);

    let url = "https://new.example.org/items/4711/text";
    let told = lab.run(["policy", "explain", "triage", "GET", url]).ok();
    assert!(told.starts_with("allow"), "{told}");
    let log = lab.run(["audit", "show", "--all", "--json"]).ok();
    for kind in ["policy_learned", "policy_accepted"] {
        assert!(log.contains(kind), "{kind}: {log}");
    }
    assert!(
        !fs::read_dir(lab.home().join("agents"))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("new") })
    );
}

#[test]
fn an_agent_file_behind_a_link_stays_behind_it() {
    let lab = Lab::mine("link");
    let real = lab.file(&lab.person().join("mine.toml"), TRIAGE);
    fs::set_permissions(&real, PermissionsExt::from_mode(0o640)).unwrap();
    let agents = lab.folder(&lab.home().join("agents"));
    symlink(&real, agents.join("triage.toml")).unwrap();
    session(&lab);
    lab.run(["policy", "learn", "s1"]).ok();
    let mut command = lab.nanoclaw(["policy", "accept", "--yes"]);
    command.arg(proposal(&lab));
    finish(command, b"").ok();
    assert!(fs::symlink_metadata(agents.join("triage.toml")).unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("new.example.org"));
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn learning_from_nothing_is_said_so() {
    let lab = lab("nothing");
    session(&lab);
    let missing = lab.run(["policy", "learn", "s2"]).failed(3);
    assert!(missing.contains("session s2 is not in the log"), "{missing}");
    let absent = lab.run(["policy", "accept", "absent.toml"]).failed(3);
    assert!(absent.contains("there is no proposal"), "{absent}");
    let more = "schema=1\nagent='triage'\nsession='s1'\n[[egress]]\nhost='a.org'\ntls='tunnel'\n";
    lab.file(&lab.person().join("more.toml"), more);
    let refused = lab.run(["policy", "accept", "more.toml", "--yes"]).failed(2);
    assert!(refused.contains("unknown key \"tls\""), "{refused}");
}
