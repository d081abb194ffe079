//! Limits and signals of `run`.

use crate::lab::{Lab, Ran, Running, finish, snapshot, start, wait_until};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

both!(
    a_memory_limit_is_hard_or_nothing_starts,
    a_fallback_memory_limit_must_be_asked_for_by_name,
    a_limit_on_the_command_line_may_be_a_fallback_too,
    the_time_limit_ends_the_command,
    the_time_limit_ends_a_command_that_will_not_leave,
    signals_are_forwarded,
    a_fork_bomb_stays_inside,
    what_is_left_running_ends_with_the_command,
);

/// Takes 300 MiB and says so.
const HUNGRY: &str = "x = bytearray(300 << 20); print('had it all')";

fn a_memory_limit_is_hard_or_nothing_starts(lab: &Lab) {
    let hungry = ["run", "--memory", "64MiB", "--", "python3", "-c", HUNGRY];
    let ran = lab.run(hungry);
    assert_eq!(ran.out(), "", "{ran}");
    if has_hard_limits(lab) {
        let said = ran.failed(137);
        assert_eq!(said, "nanoclaw: the command was killed at its memory limit of 64MiB\n");
        assert!(lab.story().contains("memory 67108864 bytes by cgroup"), "{}", lab.story());
        assert!(lab.story().contains("it ran out of memory"), "{}", lab.story());
        // It is the limit that ended it: with more memory the same command runs.
        let enough = lab.run(["run", "--memory", "512MiB", "--", "python3", "-c", HUNGRY]);
        assert_eq!(enough.ok(), "had it all\n");
    } else {
        snapshot("run-memory-not-hard", &ran.failed(4));
    }
}

/// Whether `doctor` finds control groups for memory.
fn has_hard_limits(lab: &Lab) -> bool {
    let checks = lab.run(["doctor", "--json"]).ok();
    let checks: serde_json::Value = serde_json::from_str(&checks).unwrap();
    let memory = checks.as_array().unwrap().iter().find(|c| c["name"] == "memory limit").unwrap();
    memory["found"].as_str().unwrap().starts_with("cgroup")
}

fn a_fallback_memory_limit_must_be_asked_for_by_name(lab: &Lab) {
    let text = "schema = 1\n[sandbox]\nmemory = \"64MiB\"\nlimits = \"fallback\"\n";
    lab.file(&lab.home().join("agents/small.toml"), text);
    let ran = lab.run(["run", "--agent", "small", "--", "python3", "-c", HUNGRY]);
    assert_eq!(ran.out(), "", "{ran}");
    assert_ne!(ran.code(), 0, "{ran}");
    let story = lab.story();
    assert!(story.contains("memory up to 64MiB, fallback accepted"), "{story}");
}

fn a_limit_on_the_command_line_may_be_a_fallback_too(lab: &Lab) {
    let text = "schema = 1\n[sandbox]\nlimits = \"fallback\"\n";
    lab.file(&lab.home().join("agents/lax.toml"), text);
    for more in [["--limits", "fallback"], ["--agent", "lax"]] {
        let flags = ["run", "--memory", "64MiB", more[0], more[1], "--"];
        assert_eq!(lab.run(flags.into_iter().chain(["echo", "ran"])).ok(), "ran\n");
        let ran = lab.run(flags.into_iter().chain(["python3", "-c", HUNGRY]));
        assert_eq!(ran.out(), "", "{ran}");
        assert_ne!(ran.code(), 0, "{ran}");
        let story = lab.story();
        assert!(story.contains("memory up to 64MiB, fallback accepted"), "{story}");
    }
}

fn the_time_limit_ends_the_command(lab: &Lab) {
    let begun = Instant::now();
    let ran = lab.run(["run", "--timeout", "1s", "--", "sleep", "50"]);
    assert_eq!(ran.failed(124), "nanoclaw: the command was stopped at its time limit\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(lab.story().contains("stopped at its time limit"), "{}", lab.story());
    // One that is in time is not touched.
    assert_eq!(lab.run(["run", "--timeout", "50s", "--", "echo", "done"]).ok(), "done\n");
}

fn the_time_limit_ends_a_command_that_will_not_leave(lab: &Lab) {
    let script = "trap '' TERM INT HUP; echo on; while :; do sleep 0.1; done";
    let ran = lab.run(["run", "--timeout", "1s", "--", "sh", "-c", script]);
    assert_eq!(ran.code(), 124, "{ran}");
    assert_eq!(ran.out(), "on\n");
}

/// Starts a script that makes `/workspace/ready`, and waits until it has.
fn ready(lab: &Lab, script: &str) -> (Running, PathBuf) {
    let work = lab.folder(&lab.person().join("work"));
    let script = format!("{script}\n: > ready\nwhile :; do sleep 0.02; done");
    let mut command = lab.nanoclaw(["run", "--workspace"]);
    command.arg(&work).args(["--", "sh", "-c", &script]);
    let running = start(command);
    wait_until("the command is ready", || work.join("ready").exists());
    std::fs::remove_file(work.join("ready")).unwrap();
    (running, work)
}

fn signals_are_forwarded(lab: &Lab) {
    for (signal, name) in
        [(Signal::INT, "INT"), (Signal::TERM, "TERM"), (Signal::HUP, "HUP"), (Signal::QUIT, "QUIT")]
    {
        let (running, _) = ready(lab, &format!("trap 'echo got {name}; exit 33' {name}"));
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.out(), format!("got {name}\n"), "{ran}");
        assert_eq!(ran.code(), 33, "{ran}");
    }
    // A command that does nothing about it dies of it, and `run` tells as a shell would.
    let (running, _) = ready(lab, "");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), 143);
}

fn a_fork_bomb_stays_inside(lab: &Lab) {
    let text = "schema = 1\n[sandbox]\npids = 40\nlimits = \"fallback\"\n";
    lab.file(&lab.home().join("agents/few.toml"), text);
    let script = "import os,time\nn = 0\ntry:\n  while n < 5000:\n    if os.fork() == 0:\n      \
                  time.sleep(30); os._exit(0)\n    n += 1\nexcept OSError as e:\n  \
                  print(n < 40, e.errno, flush=True)\nos._exit(0)";
    let ran: Ran = lab.run(["run", "--agent", "few", "--", "python3", "-c", script]);
    assert_eq!(ran.ok(), "True 11\n");
}

fn what_is_left_running_ends_with_the_command(lab: &Lab) {
    let marker = format!("31{}", std::process::id());
    let script = format!("setsid sleep {marker} & setsid sh -c 'trap \"\" HUP; sleep {marker}' &");
    let command = lab.nanoclaw(["run", "--", "sh", "-c", &script]);
    finish(command, b"").ok();
    wait_until("all of it is gone", || crate::lab::processes_with(&marker).is_empty());
}
