//! `kill -9` at any moment: nothing of a sandbox survives, the log stays whole.

use crate::lab::{Lab, Running, processes_with, start, wait_until};
use crate::secret::{configure, server, set, unlikely_value};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::time::Duration;

both!(
    nothing_survives_the_death_of_the_host_process,
    death_at_any_moment_leaves_a_whole_log,
    nothing_goes_on_without_the_recorder,
);

/// A run whose command has `marker` in its arguments, and the pids of its sandbox.
fn marked(lab: &Lab, marker: &str) -> (Running, Vec<i32>) {
    // In the arguments of the sandbox's processes, and in those of `run` itself.
    let script = format!("setsid sleep {marker} & sleep {marker}");
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", &script]));
    let sleeping = || {
        let all = processes_with(&format!("sleep\0{marker}"));
        all.len() == 2
    };
    wait_until("the sandbox runs", sleeping);
    let mut inside = processes_with(marker);
    inside.retain(|pid| *pid != running.pid().as_raw_nonzero().get());
    (running, inside)
}

/// Control groups of a process below the usual mount point, wherever they are ours.
fn groups_of(pid: i32) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let base = Path::new("/sys/fs/cgroup").join(controllers);
        Some(base.join(path.trim_start_matches('/')))
    };
    let ours =
        |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().contains("nanoclaw"));
    text.lines().filter_map(path).filter(ours).collect()
}

fn mounts_of(lab: &Lab) -> usize {
    let place = lab.person().parent().unwrap().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|l| l.contains(&place)).count()
}

fn nothing_survives_the_death_of_the_host_process(lab: &Lab) {
    let marker = format!("41{}{}", std::process::id(), lab.ids().0);
    let before = mounts_of(lab);
    let (running, inside) = marked(lab, &marker);
    assert!(inside.len() >= 3, "{inside:?}");
    let groups: Vec<PathBuf> = inside.iter().flat_map(|pid| groups_of(*pid)).collect();
    if lab.is_root() {
        assert!(!groups.is_empty(), "as root there are control groups");
    }
    running.signal(Signal::KILL);
    let ran = running.wait();
    assert_eq!(ran.status.code(), None, "{ran}");
    wait_until("the sandbox is gone", || processes_with(&marker).is_empty());
    let home = lab.home().display().to_string();
    wait_until("the recorder is gone", || processes_with(&home).is_empty());
    let said = lab.run(["audit", "verify"]).ok();
    assert!(said.starts_with("intact: "), "{said}");
    // The next start works, and sweeps up what the dead one could not.
    assert_eq!(lab.sh(&[], "echo next").ok(), "next\n");
    wait_until("its control groups are gone", || groups.iter().all(|g| !g.exists()));
    assert_eq!(mounts_of(lab), before, "mounts are left");
    lab.run(["audit", "verify"]).ok();
}

fn death_at_any_moment_leaves_a_whole_log(lab: &Lab) {
    let mut random = testkit::Rng::from_env();
    let marker = format!("42{}{}", std::process::id(), lab.ids().0);
    for _ in 0..12 {
        let script = format!("sleep {marker}");
        let running = start(lab.nanoclaw(["run", "--", "sh", "-c", &script]));
        let millis = u64::try_from(random.below(160)).unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        running.signal(Signal::KILL);
        running.wait();
        wait_until("all of it is gone", || processes_with(&marker).is_empty());
    }
    let home = lab.home().display().to_string();
    wait_until("the recorder is gone", || processes_with(&home).is_empty());
    assert_eq!(lab.sh(&[], "echo still works").ok(), "still works\n");
    let said = lab.run(["audit", "verify"]).ok();
    assert!(said.starts_with("intact: "), "{said}");
}

fn nothing_goes_on_without_the_recorder(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let value = unlikely_value(lab);
    let server = server(&value);
    configure(lab, "openai", &server);
    set(lab, "fake", &value, &[]);
    let work = lab.folder(&lab.person().join("work"));
    // The model can be reached, but every request must be on record before its first byte.
    let script = "ask() { curl -s --noproxy '*' -H \"Authorization: Bearer $OPENAI_API_KEY\" \
                  -H 'Content-Type: application/json' $OPENAI_BASE_URL/chat/completions -d \
                  '{\"model\":\"x\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}'; }\n\
                  ask; touch ready; while [ ! -e go ]; do sleep 0.02; done; ask; exit 0";
    let mut command = lab.nanoclaw(["run", "--workspace"]);
    command.arg(&work).args(["--", "sh", "-c", script]);
    let running = start(command);
    wait_until("the command is ready", || work.join("ready").exists());
    assert_eq!(server.requests().len(), 1);
    let home = lab.home().display().to_string();
    let mut recorders = processes_with("__recorder");
    recorders.retain(|pid| processes_with(&home).contains(pid));
    assert_eq!(recorders.len(), 1, "{recorders:?}");
    kill_process(Pid::from_raw(recorders[0]).unwrap(), Signal::KILL).unwrap();
    wait_until("the recorder is gone", || !processes_with(&home).contains(&recorders[0]));
    lab.file(&work.join("go"), "");
    let ran = running.wait();
    assert_eq!(server.requests().len(), 1, "the model was asked without a record");
    assert_eq!(ran.out().matches("MOCK_TEXT[hello]").count(), 1, "{ran}");
    // The end of the command is not on record either, and `run` says so.
    let said = ran.failed(5);
    assert!(said.contains("its end is not on record"), "{said}");
    lab.run(["audit", "verify"]).ok();
    assert_eq!(lab.sh(&[], "echo next").ok(), "next\n");
}
