//! Processes that stand still: stopped by themselves, or paused from outside. All of them die with
//! their session and with their spawner.

use crate::Test;
use crate::lab::Lab;
use crate::lifecycle::{children, gone, groups, kill, own_spawner, parent, soon};
use model::SandboxSpec;
use nanoclaw_sandbox::{Outcome, Pipes, Sandbox, Stdio};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("stopped_and_detached_processes_die_with_the_session", with_session),
    ("stopped_and_detached_processes_die_with_the_program", with_program),
    ("stopped_and_detached_processes_die_with_the_spawner", with_spawner),
    ("a_paused_sandbox_stands_still_and_goes_on", pause),
    ("a_paused_sandbox_can_be_killed", killed_while_paused),
    ("a_paused_sandbox_dies_with_its_spawner", orphaned_while_paused),
    ("forks_cannot_outrun_a_pause", forks),
];

/// One that was forked twice into a session of its own, one that stopped itself, and one that is
/// both and ignores every signal that can be ignored.
const STAY: &str = "
import os, signal, sys, time
def detached(stop):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            if stop: os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        os._exit(0)
    os.wait()
detached(False)
detached(True)
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
time.sleep(0.3)
print('ready', flush=True)
if len(sys.argv) < 2: time.sleep(1000)
";

fn begin(lab: &Lab, spec: &SandboxSpec) -> (Sandbox, Pipes) {
    let (stdio, pipes) = Stdio::piped().unwrap();
    let sandbox = lab.spawner.prepare(spec, stdio).unwrap().start().unwrap();
    (sandbox, pipes)
}

fn line(pipes: &Pipes) -> String {
    let mut text = String::new();
    BufReader::with_capacity(1, &pipes.stdout).read_line(&mut text).unwrap();
    text
}

/// Init and everything below it.
fn tree(init: u32) -> Vec<u32> {
    let (mut all, mut at) = (vec![init], 0);
    while let Some(pid) = all.get(at).copied() {
        all.extend(children(pid));
        at += 1;
    }
    all
}

fn state(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|l| l.strip_prefix("State:"));
    state.map_or_else(|| "gone".to_owned(), |s| s.trim().to_owned())
}

/// A sandbox with all kinds of processes that stay, and their pids.
fn staying(lab: &Lab) -> (Sandbox, Pipes, Vec<u32>) {
    let (sandbox, pipes) = begin(lab, &lab.spec(&["python3", "-c", STAY]));
    assert_eq!(line(&pipes), "ready\n");
    let all = tree(sandbox.report().pid);
    assert_eq!(all.len(), 5, "init, the program, two detached, one stopped");
    let stopped = || all.iter().filter(|p| state(**p).starts_with('T')).count();
    assert!(soon(|| stopped() == 2), "{:?}", all.iter().map(|p| state(*p)).collect::<Vec<_>>());
    (sandbox, pipes, all)
}

fn all_gone(all: &[u32]) {
    for pid in all {
        assert!(soon(|| gone(*pid)), "{pid} survived: {}", state(*pid));
    }
}

fn with_session(lab: &Lab) {
    let (sandbox, _pipes, all) = staying(lab);
    drop(sandbox);
    all_gone(&all);
}

fn with_program(lab: &Lab) {
    let (sandbox, pipes) = begin(lab, &lab.spec(&["python3", "-c", STAY, "leave"]));
    assert_eq!(line(&pipes), "ready\n");
    let all = tree(sandbox.report().pid);
    let begun = Instant::now();
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
    assert!(begun.elapsed() < testkit::patience(Duration::from_secs(10)));
    all_gone(&all);
}

fn with_spawner(_: &Lab) {
    let lab = Lab::new("still-spawner");
    let (sandbox, _pipes, all) = staying(&lab);
    let spawner = parent(sandbox.report().pid);
    kill(spawner);
    all_gone(&all);
    assert!(soon(|| gone(spawner)));
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)));
}

/// Counts aloud, as fast as it can.
const COUNT: &str = "
import time
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.002)
";

/// Pauses, or says why this host cannot; then the reason must name what to do instead.
fn paused(lab: &Lab, sandbox: &Sandbox) -> bool {
    match sandbox.pause() {
        Ok(()) => true,
        Err(e) => {
            assert!(e.remedy.starts_with("stop the session"), "{e}");
            assert!(!lab.root(), "root can always make a group of v2 where it is mounted: {e}");
            println!("  {e}");
            false
        }
    }
}

fn pause(lab: &Lab) {
    let (sandbox, pipes) = begin(lab, &lab.spec(&["python3", "-c", COUNT]));
    assert_eq!(line(&pipes), "1\n");
    assert!(sandbox.resume().is_ok(), "one that runs may be told to run");
    if !paused(lab, &sandbox) {
        // It runs on as before.
        assert_eq!(line(&pipes), "2\n");
        return;
    }
    assert!(sandbox.pause().is_ok(), "one that stands may be told to stand");
    let all = tree(sandbox.report().pid);
    let cpu = || -> String {
        let stats = all.iter().map(|p| std::fs::read_to_string(format!("/proc/{p}/stat")));
        let times = stats.flatten().map(|s| {
            let fields: Vec<&str> = s.rsplit_once(')').unwrap().1.split_whitespace().collect();
            format!("{} {} ", fields[11], fields[12])
        });
        times.collect()
    };
    let before = cpu();
    let waiting = rustix::io::ioctl_fionread(&pipes.stdout).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((cpu(), rustix::io::ioctl_fionread(&pipes.stdout).unwrap()), (before, waiting));
    assert!(sandbox.wait_timeout(Duration::from_millis(10)).is_none());
    assert!(sandbox.usage().is_ok(), "it can be asked about meanwhile");
    sandbox.resume().unwrap();
    let grown = || rustix::io::ioctl_fionread(&pipes.stdout).unwrap() > waiting;
    assert!(soon(grown), "it goes on");
    let spawner = parent(sandbox.report().pid);
    sandbox.kill().unwrap();
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)));
    let error = sandbox.pause().unwrap_err();
    assert!(error.cause.contains("has ended"), "{error}");
    let own = |name: &String| !name.contains("/unified/");
    assert!(soon(|| groups(spawner).iter().all(own)), "its group of v2 is left");
}

fn killed_while_paused(lab: &Lab) {
    let (sandbox, _pipes, all) = staying(lab);
    if !paused(lab, &sandbox) {
        return;
    }
    sandbox.kill().unwrap();
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)));
    all_gone(&all);
}

fn orphaned_while_paused(_: &Lab) {
    let lab = Lab::new("still-orphan");
    let spawner = own_spawner(&lab);
    let (sandbox, _pipes, all) = staying(&lab);
    if !paused(&lab, &sandbox) {
        return;
    }
    kill(spawner);
    all_gone(&all);
    nanoclaw_sandbox::sweep();
    assert!(soon(|| {
        nanoclaw_sandbox::sweep();
        groups(spawner).is_empty()
    }));
}

/// Processes that make others without end, as fast as the limit lets them.
const FORKS: &str = "
import os, time
print('ready', flush=True)
for _ in range(4):
    if os.fork() == 0: break
while True:
    pid = os.fork()
    if pid == 0:
        time.sleep(0.001)
        os._exit(0)
    os.waitpid(pid, 0)
";

fn forks(lab: &Lab) {
    let mut spec = lab.spec(&["python3", "-c", FORKS]);
    spec.limits.pids.value = 64;
    let (sandbox, pipes) = begin(lab, &spec);
    assert_eq!(line(&pipes), "ready\n");
    std::thread::sleep(Duration::from_millis(100));
    if !paused(lab, &sandbox) {
        return;
    }
    let before = tree(sandbox.report().pid);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(tree(sandbox.report().pid), before, "none was made and none ended");
    sandbox.resume().unwrap();
    assert!(soon(|| tree(sandbox.report().pid) != before), "they go on");
}
