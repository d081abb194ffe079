//! Beginning and end: nothing outlives its owner, nothing is left behind.

use crate::Test;
use crate::lab::Lab;
use nanoclaw_sandbox::{Outcome, Spawner, SpawnerOptions, Stdio};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("door_relays_and_half_closes", door),
    ("killing_the_client_leaves_no_orphan", orphan),
    ("signals_reach_the_program", signals),
    ("dropping_kills_all", dropping),
    ("a_prepared_sandbox_can_wait", warm),
    ("daemons_inside_die_with_the_program", daemons),
    ("nothing_is_left_behind", leftovers),
    ("a_spare_serves_once_and_is_renewed", spare),
    ("a_spare_that_no_longer_fits_is_thrown_away", stale),
    ("a_spare_that_was_killed_is_not_used", killed_spare),
    ("a_spare_ends_with_its_killed_spawner", orphan_spare),
    ("doctor_tries_everything", doctor),
    ("many_threads_can_use_one_spawner", threads),
];

fn door(lab: &Lab) {
    let path = lab.dir.join("door.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.reverse();
            stream.write_all(&all).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let script = "
import socket,hashlib
data=bytes(range(256))*4000
for address in (('127.0.0.1',8080),'/run/nanoclaw/door.sock'):
    s=socket.socket(socket.AF_UNIX if isinstance(address,str) else socket.AF_INET)
    s.connect(address)
    s.sendall(data); s.shutdown(socket.SHUT_WR)
    got=b''
    while True:
        part=s.recv(65536)
        if not part: break
        got+=part
    print(got==data[::-1])
";
    let mut spec = lab.spec(&["python3", "-c", script]);
    spec.network = crate::lab::door(path, &[]);
    assert_eq!(lab.run(&spec).ok(), "True\nTrue\n");
    server.join().unwrap();
}

/// What the killed client does: hold a sandbox and say which pids it has.
pub(crate) fn hold() -> ExitCode {
    let lab = Lab::new("hold");
    let sandbox = lab
        .spawner
        .prepare(&lab.sh("setsid sleep 1000 & sleep 1000"), Stdio::null().unwrap())
        .unwrap()
        .start()
        .unwrap();
    println!("{}", sandbox.report().pid);
    let _ = sandbox.wait();
    ExitCode::SUCCESS
}

pub(crate) fn gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

pub(crate) fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + testkit::patience(Duration::from_secs(10));
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn orphan(_: &Lab) {
    let mut client = std::process::Command::new("/proc/self/exe")
        .arg("__hold")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let init: u32 = line.trim().parse().unwrap();
    let spawner = parent(init);
    assert!(!gone(init) && !gone(spawner));
    assert!(soon(|| children(spawner).len() == 2), "no spare was made");
    let all = children(spawner);
    assert!(all.contains(&init));
    client.kill().unwrap();
    client.wait().unwrap();
    for pid in all {
        assert!(soon(|| gone(pid)), "init {pid} survived");
    }
    assert!(soon(|| gone(spawner)), "spawner {spawner} survived");
    assert!(soon(|| groups(spawner).is_empty()), "its cgroups are left");
    let dirs = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    for dir in
        dirs.filter(|d| d.file_name().to_string_lossy() == format!("nanoclaw-hold-{}", client.id()))
    {
        std::fs::remove_dir_all(dir.path()).unwrap();
    }
}

pub(crate) fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|c| c.parse().unwrap()).collect()
}

/// Our child that makes the sandboxes of this lab.
pub(crate) fn own_spawner(lab: &Lab) -> u32 {
    let prepared = lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap();
    parent(prepared.report().pid)
}

/// The control groups of one spawner, wherever they are.
pub(crate) fn groups(spawner: u32) -> Vec<String> {
    let out = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name"])
        .arg(format!("nanoclaw-{spawner}-*"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

fn signals(lab: &Lab) {
    let script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let sandbox = lab.spawner.prepare(&lab.sh(script), stdio).unwrap().start().unwrap();
    let mut ready = [0; 6];
    pipes.stdout.read_exact(&mut ready).unwrap();
    assert!(sandbox.wait_timeout(Duration::from_millis(20)).is_none());
    sandbox.signal(10).unwrap();
    let mut rest = String::new();
    pipes.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), sandbox.wait().outcome), ("got\n", Outcome::Exited(3)));
    let sandbox = lab
        .spawner
        .prepare(&lab.sh("exec sleep 100"), Stdio::null().unwrap())
        .unwrap()
        .start()
        .unwrap();
    assert!(sandbox.usage().unwrap().pids > 0);
    sandbox.kill().unwrap();
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)));
}

fn dropping(lab: &Lab) {
    let prepare = || lab.spawner.prepare(&lab.sh("sleep 100"), Stdio::null().unwrap()).unwrap();
    let prepared = prepare();
    let pid = prepared.report().pid;
    drop(prepared);
    assert!(soon(|| gone(pid)));
    let running = prepare().start().unwrap();
    let pid = running.report().pid;
    drop(running);
    assert!(soon(|| gone(pid)));
}

fn warm(lab: &Lab) {
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let prepared = lab.spawner.prepare(&lab.sh("echo now"), stdio).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let sandbox = prepared.start().unwrap();
    let mut text = String::new();
    pipes.stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "now\n");
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
}

fn daemons(lab: &Lab) {
    let script = "(setsid sh -c 'sleep 500 & sleep 500' &) ; (sh -c 'kill -STOP $$' &); echo done";
    let started = Instant::now();
    assert_eq!(lab.out(script), "done\n");
    assert!(started.elapsed() < testkit::patience(Duration::from_secs(5)));
}

fn leftovers(lab: &Lab) {
    let count = |what: &str| std::fs::read_to_string(what).unwrap().lines().count();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    lab.out("true");
    let spawner = own_spawner(lab);
    let before = (count("/proc/self/mountinfo"), fds());
    for _ in 0..10 {
        lab.out("touch /tmp/x");
        let mut bad = lab.sh("true");
        bad.limits.open_files = 0;
        lab.refused(&bad);
    }
    assert_eq!((count("/proc/self/mountinfo"), fds()), before);
    // What is left belongs to the one spare: at most one group of each controller.
    assert!(soon(|| children(spawner).len() <= 1), "{:?}", children(spawner));
    assert!(soon(|| groups(spawner).len() <= 3), "{:?}", groups(spawner));
}

fn threads(lab: &Lab) {
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(lab.out(&format!("echo {n}")), format!("{n}\n"));
                }
            });
        }
    });
    let other = Spawner::launch(SpawnerOptions::default()).unwrap();
    drop(other);
    assert_eq!(lab.out("echo still"), "still\n");
}

fn doctor(lab: &Lab) {
    let checks = nanoclaw_sandbox::inspect();
    let find = |name: &str| checks.iter().find(|c| c.name == name).unwrap();
    for name in ["mount namespace", "user namespace", "seccomp", "whole sandbox"] {
        assert_eq!(find(name).status, nanoclaw_sandbox::Status::Ok, "{checks:?}");
    }
    // An older Landlock is said to be the weaker form, with what adds the second layer.
    let (landlock, whole) = (find("landlock"), lab.spawner.facts().landlock_abi >= 6);
    assert_eq!(landlock.status == nanoclaw_sandbox::Status::Ok, whole, "{landlock:?}");
    assert_eq!(landlock.status == nanoclaw_sandbox::Status::Degraded, !whole, "{landlock:?}");
    assert_eq!(landlock.remedy.is_empty(), whole, "{landlock:?}");
    let memory = find("memory limit");
    let hard = lab.spawner.facts().ladder.memory != nanoclaw_sandbox::Rung::Fallback;
    assert_eq!(memory.status == nanoclaw_sandbox::Status::Ok, hard);
    assert_eq!(memory.remedy.is_empty(), hard);
}

/// The pid of the spare: the only child besides `others`, for long enough to have done its part.
fn spare_of(spawner: u32, others: &[u32]) -> u32 {
    let look = || {
        let mut found = children(spawner);
        found.retain(|c| !others.contains(c));
        found
    };
    let mut found = Vec::new();
    assert!(soon(|| {
        found = look();
        std::thread::sleep(Duration::from_millis(50));
        found.len() == 1 && !gone(found[0]) && look() == found
    }));
    found[0]
}

fn spare(lab: &Lab) {
    let spawner = own_spawner(lab);
    let script = "readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/pid
                  touch /tmp/mine; ls /tmp; cat";
    let (mut running, mut pids) = (Vec::new(), Vec::new());
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..3 {
        let expected = spare_of(spawner, &pids);
        let mut spec = lab.sh(script);
        // Other limits than those it was made with must hold all the same.
        spec.limits.memory_bytes.value = (300 + 100 * (round % 2)) << 20;
        let (stdio, pipes) = Stdio::piped().unwrap();
        let prepared = lab.spawner.prepare(&spec, stdio).unwrap();
        assert_eq!(prepared.report().pid, expected, "it began from nothing");
        let group = std::fs::read_to_string(format!("/proc/{expected}/cgroup")).unwrap();
        limit_holds(&group, spec.limits.memory_bytes.value);
        let sandbox = prepared.start().unwrap();
        let mut lines = BufReader::new(&pipes.stdout).lines().map(Result::unwrap);
        seen.extend(lines.by_ref().take(3));
        assert_eq!(lines.next().unwrap(), "mine", "nothing of an earlier one is there");
        pids.push(expected);
        running.push((sandbox, pipes));
    }
    assert_eq!(seen.len(), 9, "no namespace is used twice: {seen:?}");
}

/// The memory limit in the group that `/proc/PID/cgroup` names, where this host has one.
fn limit_holds(group: &str, bytes: u64) {
    let ours = |l: &&str| l.contains("nanoclaw-") && (l.contains(":memory:") || l.contains("::"));
    let Some(name) = group.lines().find(ours).and_then(|l| l.rsplit('/').next()) else { return };
    let out = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*/{name}/memory.*")])
        .args(["(", "-name", "memory.limit_in_bytes", "-o", "-name", "memory.max", ")"])
        .output()
        .unwrap();
    let files = String::from_utf8(out.stdout).unwrap();
    let file = files.lines().next().unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), bytes.to_string());
}

fn stale(lab: &Lab) {
    let spawner = own_spawner(lab);
    let before = spare_of(spawner, &[]);
    let mut spec = lab.sh("df -k /tmp | tail -n 1 | awk '{print $2}'");
    spec.limits.tmp_bytes = 8 << 20;
    assert_eq!(lab.run(&spec).ok(), "8192\n");
    assert!(gone(before), "the spare with another /tmp is thrown away");
    if !lab.root() {
        return;
    }
    // What was mounted after the spare was made must be seen inside. A folder of the same file
    // system: not all can be id-mapped (tmpfs since Linux 6.3).
    let other = lab.dir.join("mounted");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("note"), "mounted").unwrap();
    let spare = spare_of(spawner, &[]);
    let mut spec = lab.sh("cat note");
    spec.limits.tmp_bytes = 8 << 20;
    let model::Workspace::Session(folder) = &spec.workspace else { unreachable!() };
    let mount = |args: &[&str]| {
        let status = std::process::Command::new(args[0]).args(&args[1..]).arg(folder).status();
        assert!(status.unwrap().success(), "{args:?}");
    };
    mount(&["mount", "--bind", other.to_str().unwrap()]);
    let out = lab.run(&spec);
    mount(&["umount"]);
    assert_eq!(out.ok(), "mounted");
    assert!(gone(spare), "the spare with old mounts is thrown away");
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn killed_spare(lab: &Lab) {
    let spawner = own_spawner(lab);
    let spare = spare_of(spawner, &[]);
    kill(spare);
    assert!(soon(|| gone(spare)));
    assert_eq!(lab.out("echo still"), "still\n");
    assert_ne!(spare_of(spawner, &[]), spare, "a new one is made");
}

fn orphan_spare(_: &Lab) {
    let lab = Lab::new("orphan-spare");
    let spawner = own_spawner(&lab);
    let spare = spare_of(spawner, &[]);
    kill(spawner);
    assert!(soon(|| gone(spare)), "spare {spare} survived its spawner");
}
