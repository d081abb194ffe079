//! What an agent may do is put on record when it is not what it was in its last session: with the
//! difference, before the session is opened, and never not at all.

use crate::lab::{Lab, finish};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

both!(
    a_change_between_two_sessions_is_on_record_in_words_before_the_second,
    a_change_of_nanoclaw_toml_alone_is_on_record_too,
    what_the_command_line_grants_is_a_change_and_so_is_its_end,
    a_missing_or_damaged_copy_is_said_to_be_unknown,
    where_the_change_cannot_be_kept_no_session_is_opened,
);

const AGENT: &str = "schema = 1\n[[egress]]\nhost = \"a.example\"\nmethods = [\"GET\"]\n[env]\n\
                     PLACE = \"hunter2\"\n";
const CONFIG: &str = "schema = 1\n[models.m]\napi = \"script\"\nscript = \"s.toml\"\n";
const SCRIPT: &str = "schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"done\"\n";

fn prepare(lab: &Lab) {
    write(lab, "agents/assistant.toml", AGENT);
    write(lab, "nanoclaw.toml", CONFIG);
    write(lab, "s.toml", SCRIPT);
}

fn write(lab: &Lab, file: &str, text: &str) {
    lab.file(&lab.home().join(file), text);
}

/// A session in which a scripted model is asked, and all records of it.
fn session(lab: &Lab) -> Vec<Value> {
    let ran = finish(lab.nanoclaw(["chat", "--new"]), b"hello\n/quit\n");
    assert!(ran.out().contains("done"), "{ran}");
    newest(lab)
}

/// What is on record of the newest session.
fn newest(lab: &Lab) -> Vec<Value> {
    let text = lab.run(["audit", "show", "--json"]).ok();
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["unmapped"].take()).collect()
}

/// What is said to have changed, if anything, before the session was opened; and with which
/// policy it was.
fn changed(records: &[Value]) -> (Option<Value>, String) {
    let at = records.iter().position(|r| r["kind"] == "session_opened").expect("a session");
    let all: Vec<usize> =
        (0..records.len()).filter(|i| records[*i]["kind"] == "policy_changed").collect();
    let policy = records[at]["policy_sha256"].as_str().unwrap().to_owned();
    let Some(one) = all.first() else { return (None, policy) };
    // The message that the session is opened for is recorded by another thread.
    assert!(all.len() == 1 && *one < at, "one, before the session: {all:?}, {at}");
    assert_eq!(records[*one]["after_sha256"], policy.as_str());
    (Some(records[*one].clone()), policy)
}

fn copy(lab: &Lab) -> PathBuf {
    lab.home().join("policies/assistant.json")
}

/// The story of the newest session, every record of it.
fn story(lab: &Lab) -> String {
    lab.run(["audit", "show"]).ok()
}

fn a_change_between_two_sessions_is_on_record_in_words_before_the_second(lab: &Lab) {
    prepare(lab);
    let (first, policy) = changed(&session(lab));
    let first = first.expect("the first session");
    assert_eq!(first["before_sha256"], Value::Null);
    assert_eq!((&first["lost"], &first["unknown"]), (&json!([]), &Value::Null));
    let gained: Vec<&str> =
        first["gained"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    for line in [
        "egress a.example:443 GET (agents/assistant.toml:2)",
        "environment variable PLACE",
        "model m: the script",
    ] {
        assert!(gained.iter().any(|l| l.starts_with(line)), "{line}: {gained:#?}");
    }
    assert!(story(lab).contains("It had no session before"), "{}", story(lab));
    // For the person alone, and without values.
    let (meta, text) = (fs::metadata(copy(lab)).unwrap(), fs::read_to_string(copy(lab)).unwrap());
    assert_eq!((meta.permissions().mode() & 0o777, meta.uid()), (0o600, lab.ids().0));
    assert!(!text.contains("hunter2"), "{text}");
    // The same again is no change.
    let (none, same) = changed(&session(lab));
    assert_eq!((none, &same), (None, &policy));
    // A host more, a variable less.
    let other = AGENT.replace("a.example", "b.example");
    let other = other.split("[env]").next().unwrap().to_owned();
    write(lab, "agents/assistant.toml", &other);
    let (change, after) = changed(&session(lab));
    let change = change.expect("a change");
    assert_eq!(change["before_sha256"], policy.as_str());
    assert_ne!(after, policy);
    let at = "(agents/assistant.toml:2): a new host";
    assert_eq!(change["gained"], json!([format!("egress b.example:443 GET {at}")]));
    let lost = [format!("egress a.example:443 GET {at}"), "environment variable PLACE".to_owned()];
    assert_eq!((&change["lost"], &change["left_out"]), (&json!(lost), &json!(0)));
    let told = story(lab);
    let words = "What it may do CHANGED since its last session. GAINED: egress b.example:443 GET";
    assert!(told.contains(words) && told.contains("Lost: egress a.example:443"), "{told}");
    assert_eq!(changed(&session(lab)).0, None);
    // A text that the agent is told is no grant, and yet it is another policy.
    write(lab, "agents/assistant.toml", &other.replace("1\n", "1\ninstructions = \"Be kind.\"\n"));
    let change = changed(&session(lab)).0.expect("another digest");
    assert_eq!(change["before_sha256"], after.as_str());
    assert!(story(lab).contains("No grant was gained or lost by it"), "{}", story(lab));
    lab.run(["audit", "verify"]).ok();
}

fn a_change_of_nanoclaw_toml_alone_is_on_record_too(lab: &Lab) {
    prepare(lab);
    let policy = changed(&session(lab)).1;
    write(lab, "other.toml", SCRIPT);
    write(lab, "nanoclaw.toml", &CONFIG.replace("s.toml", "other.toml"));
    let (change, same) = changed(&session(lab));
    let change = change.expect("another model");
    assert_eq!((&change["before_sha256"], &same), (&json!(policy), &policy));
    let model = |file: &str| format!("model m: the script {}", lab.home().join(file).display());
    assert_eq!(change["gained"], json!([model("other.toml")]));
    assert_eq!(change["lost"], json!([model("s.toml")]));
    // What says nothing about what the agent may do is no change of that.
    let more = format!("default_agent = \"assistant\"\n{}", &CONFIG["schema = 1\n".len()..]);
    write(lab, "nanoclaw.toml", &format!("schema = 1\n{more}").replace("s.toml", "other.toml"));
    assert_eq!(changed(&session(lab)).0, None);
}

fn what_the_command_line_grants_is_a_change_and_so_is_its_end(lab: &Lab) {
    prepare(lab);
    session(lab);
    lab.run(["run", "--allow", "c.example", "--", "true"]).ok();
    let change = changed(&newest(lab)).0.expect("a grant more");
    let gained = change["gained"].to_string();
    assert!(gained.contains("c.example:443") && change["lost"] == json!([]), "{change}");
    lab.run(["run", "--", "true"]).ok();
    let change = changed(&newest(lab)).0.expect("a grant less");
    assert!(change["lost"].to_string().contains("c.example:443"), "{change}");
    assert_eq!(change["gained"], json!([]));
}

fn a_missing_or_damaged_copy_is_said_to_be_unknown(lab: &Lab) {
    prepare(lab);
    let policy = changed(&session(lab)).1;
    let good = fs::read(copy(lab)).unwrap();
    let mut damaged = good.clone();
    damaged[100] ^= 1;
    let unknown = |spoil: &dyn Fn(), why: &str| {
        spoil();
        let change = changed(&session(lab)).0.expect(why);
        let told = change["unknown"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains(why), "{change}");
        // The log knows with which policy it was.
        assert_eq!(change["before_sha256"], policy.as_str(), "{change}");
        assert_eq!((&change["gained"], &change["lost"]), (&json!([]), &json!([])));
        assert!(story(lab).contains("is NOT KNOWN"), "{}", story(lab));
        // It is kept anew.
        assert_eq!(changed(&session(lab)).0, None, "{why}");
    };
    unknown(&|| fs::write(copy(lab), &damaged).unwrap(), "is damaged");
    unknown(&|| fs::write(copy(lab), &good[..good.len() / 2]).unwrap(), "is damaged");
    unknown(&|| fs::write(copy(lab), "").unwrap(), "is damaged");
    unknown(&|| fs::remove_file(copy(lab)).unwrap(), "no copy of what it was granted is left");
    unknown(&|| fs::remove_dir_all(lab.home().join("policies")).unwrap(), "no copy");
    let aside = lab.home().join("aside");
    unknown(
        &|| {
            fs::rename(copy(lab), &aside).unwrap();
            std::os::unix::fs::symlink(&aside, copy(lab)).unwrap();
        },
        "cannot be opened",
    );
    assert!(fs::symlink_metadata(copy(lab)).unwrap().is_file());
}

fn where_the_change_cannot_be_kept_no_session_is_opened(lab: &Lab) {
    prepare(lab);
    lab.file(&lab.home().join("policies"), "a file in the way");
    let ran = lab.run(["run", "--", "true"]);
    assert_eq!(ran.code(), 5, "{ran}");
    assert!(ran.err().contains("cannot be kept in"), "{ran}");
    let all = lab.run(["audit", "show", "--all", "--json"]).ok();
    assert!(!all.contains("session_opened") && !all.contains("sandbox_started"), "{all}");
    fs::remove_file(lab.home().join("policies")).unwrap();
    lab.run(["run", "--", "true"]).ok();
    assert!(changed(&newest(lab)).0.is_some());
}
