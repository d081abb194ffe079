//! What a person finds after something went otherwise than meant: sessions closed on record,
//! refusals told, lost output said, a home looked at.

use crate::lab::{Lab, Ran, finish, is_root, start, wait_until};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

both!(
    a_start_that_fails_closes_its_session_with_the_reason,
    what_policy_refused_is_listed_at_the_end,
    a_full_output_is_an_error_and_a_closed_one_is_not,
    doctor_looks_at_the_home,
    a_report_that_cannot_be_written_is_said_before_the_demo_runs,
);

fn records(lab: &Lab, kind: &str) -> Vec<Value> {
    let all = lab.run(["audit", "show", "--all", "--json"]).ok();
    let body = |line: &str| serde_json::from_str::<Value>(line).unwrap()["unmapped"].take();
    all.lines().map(body).filter(|b| b["kind"] == kind).collect()
}

fn a_start_that_fails_closes_its_session_with_the_reason(lab: &Lab) {
    let said = lab.run(["run", "-t", "--", "true"]).failed(2);
    assert!(said.contains("-t needs a terminal"), "{said}");
    assert_eq!(records(lab, "session_opened").len(), 1);
    let closed = records(lab, "session_closed");
    assert_eq!(closed.len(), 1, "{closed:?}");
    let reason = "not started: -t needs a terminal on standard input and output";
    assert_eq!(closed[0]["reason"], reason);
    // One that does start is closed once.
    lab.inside(["true"]).ok();
    assert_eq!(records(lab, "session_closed").len(), 2);
}

fn what_policy_refused_is_listed_at_the_end(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let get =
        |url: &str| format!("curl -sS --noproxy '' -x http://127.0.0.1:3128 {url} -o /dev/null");
    let twice = get("http://example.com/x");
    let script = format!("{twice}; {twice}; {}; true", get("http://example.org/y"));
    let ran = lab.sh(&[], &script);
    assert_eq!(ran.code(), 0, "{ran}");
    let said = ran.err();
    for part in [
        "nanoclaw: refused by policy during this run:",
        "  GET http://example.com/x  (2 times)\n",
        "--allow example.com",
        "  GET http://example.org/y\n",
        "`nanoclaw policy learn s",
    ] {
        assert!(said.contains(part), "{part:?} is not in {ran}");
    }
    assert_eq!(said.matches("example.com/x").count(), 1, "each once: {ran}");
    // What the list says about the log holds.
    let session = said.split("audit show ").nth(1).and_then(|s| s.split('`').next()).unwrap();
    let story = lab.run(["audit", "show", session]).ok();
    assert!(story.contains("REFUSED") && story.contains("  (2 times)"), "{story}");
    // Many are cut, and whoever wants none gets none.
    let many: Vec<String> = (0..12).map(|n| get(&format!("http://example.com/{n}"))).collect();
    let ran = lab.sh(&[], &format!("{}; true", many.join("; ")));
    assert!(ran.err().contains("  and 4 more\n"), "{ran}");
    let quiet = lab.sh(&["--quiet"], &script);
    assert!(!quiet.err().contains("refused by policy"), "{quiet}");
}

/// Runs with standard output into a file that takes nothing.
fn into_full(lab: &Lab, words: &[&str]) -> Ran {
    let mut command = lab.nanoclaw(words);
    // Reads nothing, shows what standard error says.
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let out = command.output().unwrap();
    Ran { status: out.status, stdout: out.stdout, stderr: out.stderr }
}

fn a_full_output_is_an_error_and_a_closed_one_is_not(lab: &Lab) {
    lab.inside(["echo", "one"]).ok();
    for words in [
        &["audit", "show", "--all"][..],
        &["audit", "show"],
        &["audit", "tail"],
        &["audit", "verify"],
        &["doctor"],
        &["sandbox", "plan"],
        &["completions", "bash"],
        &["run", "--", "echo", "two"],
        &["--help"],
        &["--version"],
    ] {
        let said = into_full(lab, words).failed(1);
        assert!(said.contains("standard output takes no more"), "{words:?}: {said}");
    }
    // Its reader leaves at once: quiet, as with every other program.
    let mut command = lab.command("sh");
    let line = format!("{} audit show --all | true; exit 0", lab.binary().display());
    command.args(["-c", &line]);
    let ran = finish(command, b"");
    assert_eq!((ran.code(), ran.err().as_str()), (0, ""), "{ran}");
    // One that follows ends with its reader.
    let mut command = lab.command("sh");
    let line = format!("{} audit tail -f | head -n 1", lab.binary().display());
    command.args(["-c", &line]);
    let following = start(command);
    following.wait_for_output("#");
    lab.inside(["echo", "three"]).ok();
    lab.inside(["echo", "four"]).ok();
    following.wait();
}

/// The check of this name.
fn of<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}: {checks:#?}"))
}

fn doctor(lab: &Lab, code: i32) -> Vec<Value> {
    let ran = lab.run(["doctor", "--json"]);
    assert_eq!(ran.code(), code, "{ran}");
    serde_json::from_str(&ran.out()).unwrap()
}

fn doctor_looks_at_the_home(lab: &Lab) {
    // Not there: it is not made.
    fs::remove_dir(lab.home()).unwrap();
    let checks = doctor(lab, 0);
    assert!(of(&checks, "home")["found"].as_str().unwrap().contains("is not there yet"));
    assert!(!lab.home().exists());
    lab.folder(&lab.home());
    fs::set_permissions(lab.home(), Permissions::from_mode(0o700)).unwrap();
    lab.inside(["true"]).ok();
    let text = "schema = 1\n\n[models.m]\napi = \"openai\"\nmodel = \"x\"\nsecret = \"k\"\n";
    let config = lab.file(&lab.home().join("nanoclaw.toml"), text);
    let checks = doctor(lab, 0);
    for (name, status) in
        [("home", "ok"), ("log", "ok"), ("gateway", "ok"), ("disk space", "ok"), ("agents", "ok")]
    {
        assert_eq!(of(&checks, name)["status"], status, "{checks:#?}");
    }
    assert_eq!(of(&checks, "vault")["remedy"], "nanoclaw secret set k", "{checks:#?}");
    // Broken in each way, named and with its remedy.
    lab.file(&config, "schema = 1\nmodles = 1\n");
    let checks = doctor(lab, 4);
    let found = of(&checks, "nanoclaw.toml")["found"].as_str().unwrap().to_owned();
    assert!(found.contains("nanoclaw.toml:2:1"), "{found}");
    fs::remove_file(&config).unwrap();
    let home = lab.home().display().to_string();
    wait_until("the recorder is gone", || crate::lab::processes_with(&home).is_empty());
    let checkpoint = lab.home().join("audit/checkpoint");
    let whole = fs::read(&checkpoint).unwrap();
    lab.file(&checkpoint, "forged");
    let checks = doctor(lab, 5);
    assert!(of(&checks, "log")["found"].as_str().unwrap().contains("NOT intact"), "{checks:#?}");
    fs::write(&checkpoint, whole).unwrap();
    fs::set_permissions(lab.home(), Permissions::from_mode(0o777)).unwrap();
    let checks = doctor(lab, 4);
    assert!(of(&checks, "home")["remedy"].as_str().unwrap().starts_with("chmod 700 "));
    let text = lab.run(["doctor"]);
    assert!(text.out().contains("must be mended first"), "{text}");
    fs::set_permissions(lab.home(), Permissions::from_mode(0o700)).unwrap();
}

fn a_report_that_cannot_be_written_is_said_before_the_demo_runs(lab: &Lab) {
    let said = lab.run(["demo", "--report", "nodir/x.html"]);
    assert_eq!((said.code(), said.out().as_str()), (2, ""), "{said}");
    assert!(said.err().contains("the report nodir/x.html cannot be written"), "{said}");
    assert!(!lab.home().join("demo").exists(), "nothing was run");
    if lab.is_root() || is_root() {
        return;
    }
    assert_eq!(lab.run(["demo", "--report", "/x.html"]).code(), 2);
}
