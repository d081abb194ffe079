//! `deliver = "stdin"`: the agent has its key, from its standard input and from nowhere else.

use crate::hunt::Hunt;
use crate::lab::{Lab, files_below, finish, start, wait_until};
use crate::process::{self, Process};
use std::fs;
use std::path::Path;

both!(
    a_key_handed_over_is_in_the_agents_memory_and_nowhere_else,
    keys_come_first_and_in_order_then_the_users_input,
    what_cannot_be_handed_over_starts_nothing_that_lasts,
);

fn value(lab: &Lab, what: &str) -> String {
    format!("test-key-not-real/{what}+{}-{}=", lab.mode(), std::process::id())
}

fn set(lab: &Lab, name: &str, value: &str, flags: &[&str]) {
    let mut command = lab.nanoclaw(["secret", "set", name, "--host", "a.example"]);
    command.args(flags);
    finish(command, value.as_bytes()).ok();
}

/// The agent's file: a command that must hold these.
fn agent(lab: &Lab, names: &[&str]) {
    let secrets =
        names.iter().map(|n| format!("[[secrets]]\nname = \"{n}\"\ndeliver = \"stdin\"\n"));
    let text = format!(
        "schema = 1\nruntime = \"command\"\ncommand = [\"true\"]\n{}",
        secrets.collect::<String>()
    );
    lab.file(&lab.home().join("agents/holder.toml"), &text);
}

/// Reads its key, has a child that inherits its memory, and stays.
const HOLDER: &str = "
import os, sys, time
key = sys.stdin.readline().rstrip('\\n')
print('held', len(key), flush=True)
if os.fork() == 0:
    open('child', 'w')
    while os.path.exists('wait'): time.sleep(0.05)
    os._exit(0)
while not os.path.exists('child'): time.sleep(0.01)
open('here', 'w')
while os.path.exists('wait'): time.sleep(0.05)
os.wait()
";

/// Arguments, environment and files of a process, and what only it can see.
fn around(process: &Process) -> Vec<std::path::PathBuf> {
    let place = process.place();
    let mut files: Vec<_> = ["cmdline", "environ"].map(|part| place.join(part)).into();
    files.extend(process.unlinked());
    if process.is_inside() {
        let root = |dir: &str| files_below(&place.join("root").join(dir));
        files.extend(["tmp", "run", "etc", "dev/shm"].into_iter().flat_map(root));
    }
    files
}

fn a_key_handed_over_is_in_the_agents_memory_and_nowhere_else(lab: &Lab) {
    let key = value(lab, "handed");
    set(lab, "handed", &key, &["--agent", "holder"]);
    agent(lab, &["handed"]);
    let work = lab.folder(&lab.person().join("work"));
    lab.file(&work.join("wait"), "");
    let folder = work.display().to_string();
    let mut command = lab.nanoclaw(["run", "--agent", "holder", "--workspace", &folder]);
    command.args(["--", "python3", "-c", HOLDER]);
    let running = start(command);
    wait_until("the agent has its key", || work.join("here").exists());

    let hunt = Hunt::for_value(&key);
    let processes = process::of(lab);
    let mut files = files_below(&lab.home());
    files.extend(files_below(&lab.person()));
    files.extend(processes.iter().flat_map(around));
    let found: Vec<_> = files.iter().filter(|f| hunt.file(f).ok().flatten().is_some()).collect();
    assert!(found.is_empty(), "{found:?}");
    let holders: Vec<&Process> =
        processes.iter().filter(|p| !p.is_gateway() && hunt.memory(p.pid).0.is_some()).collect();
    // The price, as the documentation says it: the agent and what it starts.
    assert_eq!(holders.len(), 2, "{holders:?}");
    assert!(holders.iter().all(|p| p.is_inside() && p.argv.starts_with("python3")), "{holders:?}");

    fs::remove_file(work.join("wait")).unwrap();
    let said = running.wait().ok();
    assert_eq!(said, format!("held {}\n", key.len()));
    let story = lab.story();
    assert_eq!(hunt.within(story.as_bytes()), None, "{story}");
    for told in ["secret handed is HANDED TO THE AGENT", "the agent's standard input"] {
        assert!(story.contains(told), "{told}: {story}");
    }
    let after = files_below(&lab.home());
    assert!(after.iter().all(|f| hunt.file(f).ok().flatten().is_none()));
}

fn keys_come_first_and_in_order_then_the_users_input(lab: &Lab) {
    let (first, second) = (value(lab, "first"), value(lab, "second"));
    set(lab, "b-second", &second, &[]);
    set(lab, "a-first", &first, &[]);
    agent(lab, &["b-second", "a-first"]);
    let script = "import sys; print(*(line.rstrip()[::-1] for line in sys.stdin))";
    let command = lab.nanoclaw(["run", "--agent", "holder", "--", "python3", "-c", script]);
    let backwards = |text: &str| text.chars().rev().collect::<String>();
    let expected = format!("{} {} tupni\n", backwards(&first), backwards(&second));
    assert_eq!(finish(command, b"input\n").ok(), expected);
}

fn what_cannot_be_handed_over_starts_nothing_that_lasts(lab: &Lab) {
    agent(lab, &["missing"]);
    let argv = ["run", "--agent", "holder", "--", "sh", "-c", "cat; sleep 50"];
    let missing = lab.run(argv);
    assert_ne!(missing.code(), 0, "{missing}");
    assert!(missing.err().contains("the secret missing was not delivered"), "{missing}");
    // Sealed for somebody else.
    set(lab, "missing", &value(lab, "other"), &["--agent", "other"]);
    let others = lab.run(argv);
    assert!(others.err().contains("is not for this agent"), "{others}");
    assert_eq!((others.out(), missing.out()), (String::new(), String::new()));
    // A terminal would echo it.
    let shown = lab.run(["run", "-t", "--agent", "holder", "--", "cat"]);
    assert!(shown.err().contains("with -t a terminal would show the secrets"), "{shown}");
    assert!(Path::new(&lab.home()).is_dir());
}
