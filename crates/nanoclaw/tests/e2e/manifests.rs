//! What became of files, told by the host; and what the agent's account does not explain.

use crate::lab::{Lab, Ran, finish};
use crate::totals::records;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

both!(
    what_a_command_leaves_behind_is_on_record_whatever_it_is_called,
    what_is_closed_to_the_host_is_said,
    a_file_that_a_program_keeps_mapped_is_known_at_the_end,
    a_change_through_memory_that_no_kernel_notes_is_known_at_the_end,
    names_of_files_forge_nothing_in_the_story,
    an_execution_that_no_tool_call_explains_is_a_finding,
);

/// Every change below a mount, in the order of the log.
fn changes(lab: &Lab, mount: &str) -> Vec<Value> {
    let all = records(lab, "files_changed").into_iter().filter(|r| r["mount"] == mount);
    all.flat_map(|r| r["changes"].as_array().unwrap().clone()).collect()
}

fn brief(all: &[Value]) -> Vec<String> {
    let one = |c: &Value| {
        let of = |name: &str| c[name].as_str().unwrap().to_owned();
        format!("{} {} {}", of("act"), of("path"), of("sort"))
    };
    all.iter().map(one).collect()
}

/// The counts of a mount in the manifests, in order.
fn manifests(lab: &Lab, mount: &str) -> Vec<(String, Value)> {
    let of = |r: Value| {
        let seen = r["mounts"].as_array().unwrap().iter().find(|m| m["mount"] == mount).cloned();
        (r["after"].as_str().unwrap().to_owned(), seen.expect("it is among the mounts"))
    };
    records(lab, "files_manifest").into_iter().map(of).collect()
}

fn sha256(bytes: &[u8]) -> String {
    audit::merkle::sha256(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn what_a_command_leaves_behind_is_on_record_whatever_it_is_called(lab: &Lab) {
    let project = lab.folder(&lab.person().join("project"));
    let notes = lab.person().join("notes");
    lab.file(&project.join("given"), "given\n");
    lab.file(&notes.join("gone"), "gone\n");
    lab.file(&lab.person().join("outside/secret"), "not to be read\n");
    // Names that end a line, erase it, or are no text; a link out; what waits for a reader.
    let script = "printf more >> given; mkdir -p deep/er; printf x > deep/er/f; \
                  printf 1 > \"$(printf 'a\\nb')\"; printf 2 > \"$(printf '\\033[2K')\"; \
                  printf 3 > \"$(printf '\\377')\"; ln -s ../outside out; mkfifo pipe; \
                  rm /mnt/notes/gone; printf new > /mnt/notes/new; printf seen > /mnt/r/no || true";
    let (rw, ro) =
        (format!("{}:/mnt/notes:rw", notes.display()), format!("{}:/mnt/r:ro", notes.display()));
    let folder = project.display().to_string();
    lab.sh(&["--workspace", &folder, "--mount", &rw, "--mount", &ro], script).ok();
    let found = changes(lab, "/workspace");
    let wanted = [
        "created \\x1b[2K file",
        "created a\\x0ab file",
        "created deep folder",
        "created deep/er folder",
        "created deep/er/f file",
        "changed given file",
        "created out link",
        "created pipe pipe",
        "created \\xff file",
    ];
    assert_eq!(brief(&found), wanted);
    assert_eq!(found[5]["sha256"], sha256(b"given\nmore"));
    assert_eq!(found[6]["sha256"], sha256(b"../outside"), "what the link says");
    assert_eq!(brief(&changes(lab, "/mnt/notes")), ["deleted gone file", "created new file"]);
    let all = manifests(lab, "/workspace");
    let after: Vec<&str> = all.iter().map(|(after, _)| &**after).collect();
    assert_eq!(after, ["start", "end"]);
    assert_eq!((&all[0].1["looked_at"], &all[1].1["created"]), (&1.into(), &8.into()));
    let mounts = records(lab, "files_manifest").pop().unwrap()["mounts"].to_string();
    assert!(!mounts.contains("/mnt/r\""), "what cannot be written is not looked at: {mounts}");
    let story = lab.story();
    assert!(story.contains("created \"deep/er/f\" (1 bytes, sha256 2d711642b726)"), "{story}");
    lab.run(["audit", "verify"]).ok();
}

fn what_is_closed_to_the_host_is_said(lab: &Lab) {
    let script = "mkdir shut; printf x > shut/in; chmod 0 shut; printf y > closed; chmod 0 closed";
    lab.sh(&[], script).ok();
    let found = changes(lab, "/workspace");
    let (_, seen) = manifests(lab, "/workspace").pop().unwrap();
    if lab.is_root() {
        let wanted = ["created closed file", "created shut folder", "created shut/in file"];
        assert_eq!(brief(&found), wanted);
        assert_eq!((&seen["missed"], &seen["unread"]), (&0.into(), &0.into()));
        return;
    }
    assert_eq!(brief(&found), ["created closed file", "created shut folder"]);
    assert!(found[0]["unread"].as_str().unwrap().contains("Permission denied"), "{found:?}");
    assert_eq!((&seen["missed"], &seen["unread"]), (&1.into(), &1.into()), "{seen}");
    assert!(seen["missed_first"].to_string().contains("shut: Permission denied"), "{seen}");
    // The short story has it, for something was left out.
    let short = lab.run(["audit", "show"]).ok();
    assert!(short.contains("1 FOLDERS NOT LOOKED INTO (\"shut: "), "{short}");
}

/// A chat with a scripted model; each turn is its steps, each step its calls.
fn chat(lab: &Lab, turns: &[&[(&str, Value)]]) {
    let mut script = String::from("schema = 1\ndelay_ms = 300\n");
    for (number, steps) in turns.iter().enumerate() {
        script.push_str(&format!("[[turn]]\nwhen = \"job {number}\"\n"));
        for (tool, arguments) in *steps {
            let table: Vec<String> =
                arguments.as_object().unwrap().iter().map(|(k, v)| format!("{k} = {v}")).collect();
            script.push_str(&format!(
                "[[turn.step]]\n[[turn.step.call]]\ntool = \"{tool}\"\narguments = {{ {} }}\n",
                table.join(", ")
            ));
        }
        script.push_str("[[turn.step]]\ntext = \"done\"\n");
    }
    let config = "schema = 1\n[models.m]\napi = \"script\"\nscript = \"s.toml\"\n";
    lab.file(&lab.home().join("nanoclaw.toml"), config);
    lab.file(&lab.home().join("s.toml"), &script);
    let input: String = (0..turns.len()).map(|n| format!("job {n}\n")).collect();
    let ran = finish(lab.nanoclaw(["chat", "--new"]), format!("{input}/quit\n").as_bytes());
    assert!(ran.status.success(), "{ran}");
}

/// Writes into a file through memory, once at the beginning and once more when it is told to.
const MAPS: &str = "
import mmap, os, time
f = open('mapped', 'r+b')
m = mmap.mmap(f.fileno(), 4096)
m[0:5] = b'first'
open('ready', 'w').close()
while not os.path.exists('go'): time.sleep(0.02)
m[0:5] = b'later'
open('done', 'w').close()
time.sleep(60)
";

fn a_file_that_a_program_keeps_mapped_is_known_at_the_end(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let begin = "head -c 4096 /dev/zero > mapped; setsid python3 map.py >/dev/null 2>&1 & \
                 while ! test -e ready; do sleep 0.05; done";
    let wait = "while ! test -e done; do sleep 0.05; done";
    chat(
        lab,
        &[
            &[
                ("write_file", json!({"path": "map.py", "content": MAPS})),
                ("bash", json!({"command": begin})),
            ],
            &[
                ("write_file", json!({"path": "go", "content": "x"})),
                ("bash", json!({"command": wait})),
            ],
        ],
    );
    let mut last = BTreeMap::new();
    for change in changes(lab, "/workspace") {
        last.insert(change["path"].as_str().unwrap().to_owned(), change["sha256"].clone());
    }
    let sessions = fs::read_dir(lab.home().join("sessions")).unwrap();
    let workspace = sessions.map(|e| e.unwrap().path().join("workspace")).next().unwrap();
    let contents = fs::read(workspace.join("mapped")).unwrap();
    assert!(contents.starts_with(b"later"));
    assert_eq!(last["mapped"], sha256(&contents), "{last:#?}");
}

/// Writes into a file through a page that it has read before: tmpfs is not told of it.
const MAPS_AFTER_READING: &str = "
import mmap, os
before = os.stat('orders')
m = mmap.mmap(os.open('orders', os.O_RDWR), 0)
x = m[0]
m[9:11] = b'99'
m.close()
after = os.stat('orders')
assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
";

/// Runs it with a tmpfs at `top` that nobody else sees, prepared by `script`, and that ends with
/// it. None where it cannot be made.
fn on_a_tmpfs(lab: &Lab, top: &Path, script: &str, wrapped: &Command) -> Option<Ran> {
    if !crate::lab::is_root() {
        eprintln!("SKIPPED: not root, so no tmpfs can be mounted");
        return None;
    }
    testkit::need("unshare")?;
    let (uid, gid) = lab.ids();
    let own = format!("size=8m,mode=700,uid={uid},gid={gid}");
    let all =
        format!("mount -t tmpfs -o \"$1\" tmpfs \"$0\" && ({script}) && shift && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &all]).arg(top).arg(own);
    command.arg(wrapped.get_program()).args(wrapped.get_args());
    command.env_clear().current_dir(wrapped.get_current_dir()?);
    command.envs(wrapped.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Some(finish(command, b""))
}

fn a_change_through_memory_that_no_kernel_notes_is_known_at_the_end(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let top = lab.folder(&lab.person().join("memory"));
    // Old enough that no look reads them for being fresh.
    let script = "cd \"$0\"; mkdir d; echo transfer 10 to alice > d/orders; echo kept > d/kept; \
                  chmod -R a+rwX .; sleep 0.2";
    let folder = top.join("d").display().to_string();
    let args = ["run", "--workspace", &folder, "--", "python3", "-c", MAPS_AFTER_READING];
    let Some(ran) = on_a_tmpfs(lab, &top, script, &lab.nanoclaw(args)) else { return };
    ran.ok();
    let found = changes(lab, "/workspace");
    assert_eq!(brief(&found), ["changed orders file"]);
    assert_eq!(found[0]["sha256"], sha256(b"transfer 99 to alice\n"));
    let all = manifests(lab, "/workspace");
    let counted: Vec<(&str, &Value, &Value)> =
        all.iter().map(|(after, seen)| (&**after, &seen["changed"], &seen["unread"])).collect();
    let (none, one) = (&json!(0), &json!(1));
    assert_eq!(counted, [("start", none, none), ("end", one, none)]);
}

fn names_of_files_forge_nothing_in_the_story(lab: &Lab) {
    let forged = "n (12 bytes, sha256 98ea6e4f216f); created b";
    let long = "q".repeat(210);
    let script = format!("touch '{forged}' 'a\"b' '<U+202E>'; touch {long}1 {long}2");
    lab.sh(&[], &script).ok();
    let story = lab.story();
    for wanted in [
        format!("created \"{forged}\" (0 bytes, sha256 e3b0c44298fc)"),
        "created \"a<U+0022>b\" (0".to_owned(),
        "created \"<U+003C>U+202E>\" (0".to_owned(),
    ] {
        assert!(story.contains(&wanted), "{wanted}: {story}");
    }
    for end in ["1", "2"] {
        let digest = &sha256(format!("{long}{end}").as_bytes())[..32];
        let wanted = format!("q{end}\" (name of 211 characters, sha256 {digest})");
        assert!(story.contains(&wanted), "{wanted}: {story}");
    }
}

fn an_execution_that_no_tool_call_explains_is_a_finding(lab: &Lab) {
    // It waits, for what is still in the shell's own group ends with it.
    let leave = "setsid sh -c 'touch up; while true; do sleep 0.05; done' >/dev/null 2>&1 & \
                 while ! test -e up; do sleep 0.05; done";
    chat(
        lab,
        &[
            &[("bash", json!({"command": "/bin/true"}))],
            &[("bash", json!({"command": leave}))],
            &[("read_file", json!({"path": "nothing"}))],
        ],
    );
    let found = records(lab, "observers_disagree");
    assert!(!found.is_empty(), "it went on executing after its call");
    let executed = records(lab, "process_exec").len() as u64;
    for one in &found {
        assert_eq!(one["finding"], "execution_without_call", "{one}");
        assert_eq!((&one["told_by"], &one["not_by"]), (&json!("kernel"), &json!("agent")));
        assert!(one["what"].as_str().unwrap().contains("sleep was executed"), "{one}");
        assert!(one["count"].as_u64().unwrap() < executed);
    }
    let closed = records(lab, "session_closed").pop().unwrap();
    assert_eq!(closed["counts"]["observers_disagree"], found[0]["count"], "{closed}");
    let short = lab.run(["audit", "show"]).ok();
    assert!(short.contains("THE OBSERVERS DISAGREE (execution_without_call"), "{short}");
    // The same without what was left behind is no finding.
    chat(lab, &[&[("bash", json!({"command": "/bin/true; sleep 0.05"}))]]);
    assert_eq!(records(lab, "observers_disagree"), Vec::<Value>::new());
}
