//! Beginning and end: nothing outlives its owner, nothing is left behind.

use crate::Test;
use crate::lab::Lab;
use model::{DoorSpec, Network};
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
    spec.network = Network::Door(DoorSpec { socket: path, port: 8080 });
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

fn gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
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
    let group = groups().len();
    assert!(!gone(init) && !gone(spawner));
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(soon(|| gone(init)), "init {init} survived");
    assert!(soon(|| gone(spawner)), "spawner {spawner} survived");
    assert!(group == 0 || soon(|| groups().len() < group), "its cgroups are left");
    let dirs = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    for dir in
        dirs.filter(|d| d.file_name().to_string_lossy() == format!("nanoclaw-hold-{}", client.id()))
    {
        std::fs::remove_dir_all(dir.path()).unwrap();
    }
}

fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Our control groups, wherever they are.
fn groups() -> Vec<String> {
    let out = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name", "nanoclaw-*"])
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
    assert!(started.elapsed() < Duration::from_secs(5));
}

fn leftovers(lab: &Lab) {
    let count = |what: &str| std::fs::read_to_string(what).unwrap().lines().count();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    lab.out("true");
    let own = |list: Vec<String>| list.len();
    let before = (count("/proc/self/mountinfo"), fds());
    for _ in 0..10 {
        lab.out("touch /tmp/x");
        let mut bad = lab.sh("true");
        bad.limits.open_files = 0;
        lab.refused(&bad);
    }
    assert_eq!((count("/proc/self/mountinfo"), fds()), before);
    assert!(soon(|| own(groups()) == 0), "{:?}", groups());
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
    for name in ["mount namespace", "user namespace", "landlock", "seccomp", "whole sandbox"] {
        assert_eq!(find(name).status, nanoclaw_sandbox::Status::Ok, "{checks:?}");
    }
    let memory = find("memory limit");
    let hard = lab.spawner.facts().ladder.memory != nanoclaw_sandbox::Rung::Fallback;
    assert_eq!(memory.status == nanoclaw_sandbox::Status::Ok, hard);
    assert_eq!(memory.remedy.is_empty(), hard);
}
