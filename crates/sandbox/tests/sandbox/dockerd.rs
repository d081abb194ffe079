//! Real engines of Debian's packages, each started with a data folder of its own: what every
//! backend must keep, and what only containers have.
//!
//! They need root. Without the engine's program they skip by name, and fail in CI.

use crate::Test;
use crate::lab::Lab;
use crate::{lifecycle, limits, meant, programs, run_all, skip, stalled, transparent};
use crate::{walls, witness};
use model::{Access, Backend, EngineChoice, Mount, Workspace};
use nanoclaw_sandbox::{EngineOptions, Operation, Outcome, StartErrorKind, Stdio};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use testkit::{ENGINES, EngineDaemon};

/// What the killed client does.
pub(crate) const HOLD: &str = "__hold-container";

/// What each backend must keep: tests of the native one that ask nothing of how it is done.
const SHARED: [&[Test]; 7] = [
    walls::TESTS,
    limits::TESTS,
    lifecycle::TESTS,
    programs::TESTS,
    transparent::TESTS,
    witness::TESTS,
    stalled::TESTS,
];
/// Those of them that a container keeps too; the others look at native processes or at ids that an
/// engine cannot map.
const KEPT: [&str; 59] = [
    "only_its_own_places_are_writable",
    "host_processes_are_out_of_sight",
    "network_is_loopback_only",
    "fork_bomb_is_stopped",
    "memory_bomb_is_stopped",
    "what_ran_out_of_memory_is_told_from_what_was_killed",
    "cpu_is_limited",
    "file_size_is_limited",
    "required_limits_are_hard_or_refused",
    "queues_of_sockets_are_within_the_memory_limit",
    "what_is_kept_on_the_disk_is_counted_and_stopped",
    "a_deleted_file_that_is_held_open_counts",
    "a_session_over_its_disk_limit_does_not_start",
    "a_sandbox_ends_when_its_time_is_over",
    "what_was_used_is_measured_or_not_said",
    "nobody_inside_sets_limits_of_the_first_process",
    "nobody_inside_sets_the_priority_of_the_first_process",
    "door_relays_and_half_closes",
    "signals_reach_the_program",
    "dropping_kills_all",
    "a_prepared_sandbox_can_wait",
    "daemons_inside_die_with_the_program",
    "many_threads_can_use_one_spawner",
    "bad_specs_are_refused",
    "hello",
    "status_passes_through",
    "streams_pass_through",
    "environment_is_exact",
    "builtin_runs_the_sealed_image",
    "a_probe_runs_before_the_program_and_its_failure_refuses_the_start",
    "pty_works",
    "permitted_names_resolve_and_others_do_not",
    "every_resolver_agrees",
    "a_dialled_name_arrives_as_connect",
    "refusals_reset_and_half_closes_pass",
    "two_names_on_one_port_keep_apart",
    "more_connections_than_descriptors_wait",
    "nothing_but_names_leads_out",
    "odd_questions_are_refused_not_answered",
    "a_dns_tunnel_learns_nothing",
    "the_relay_flows_while_names_are_asked",
    "ports_of_the_sandbox_itself_may_be_permitted_ports",
    "own_servers_work_beside_the_door",
    "a_dead_gateway_ends_every_exit",
    "a_confused_gateway_permits_nothing",
    "without_a_door_nothing_resolves",
    "the_trust_bundle_is_where_programs_look",
    "ports_are_bounded",
    "every_execution_is_reported_with_what_was_passed",
    "what_runs_afterwards_is_read_back",
    "connections_outward_are_refused_and_reported",
    "the_loopback_and_unix_sockets_are_nobodys_business",
    "a_full_queue_refuses_executions_and_says_how_many",
    "an_undumpable_process_is_read_all_the_same",
    "nobody_inside_can_take_the_place_of_the_witness",
    "without_a_witness_nothing_is_reported",
    "sandboxes_are_reported_apart",
    "a_stalled_process_holds_up_nobody_and_executes_nothing",
    "a_stalled_process_ends_with_its_time",
];

/// What only containers have.
const OWN: &[Test] = &[
    ("no_privilege_is_left_in_a_container", privileges),
    ("the_line_leads_nowhere_once_the_program_runs", line),
    ("a_container_s_report_is_measured", report),
    ("granted_folders_keep_their_owner", folders),
    ("keys_below_a_grant_are_covered_in_a_container", keys),
    ("a_container_is_paused_and_resumed", pause),
    ("a_container_killed_by_others_is_told_as_killed", killed_by_others),
    ("our_probe_in_a_witnessed_container_is_answered_and_not_reported", probed),
    ("what_a_killed_container_moved_is_counted", moved),
    ("killing_the_client_leaves_no_container", orphan),
    ("containers_leave_nothing_behind", leftovers),
    ("an_unknown_image_or_runtime_is_refused", unknown),
    // The last: afterwards there is no engine.
    ("a_container_ends_without_its_engine", dead_engine),
];

fn options(name: &str, socket: PathBuf, folder: PathBuf) -> EngineOptions {
    let engines = EngineOptions::of(folder);
    match name {
        "docker" => EngineOptions { docker: Some(socket), ..engines },
        _ => EngineOptions { podman: Some(socket), ..engines },
    }
}

fn backend(name: &str) -> Backend {
    match name {
        "docker" => Backend::Docker(EngineChoice::default()),
        _ => Backend::Podman(EngineChoice::default()),
    }
}

/// Every engine that there is.
pub(crate) fn run(filter: &str) -> usize {
    if !rustix::process::geteuid().is_root() {
        println!("test docker::*, podman::* ... skipped: starting an engine needs root");
        return 0;
    }
    let shared = SHARED.concat().into_iter().filter(|(name, _)| KEPT.contains(name));
    let tests: Vec<Test> = shared.chain(OWN.iter().copied()).collect();
    let mut failed = 0;
    for (name, program) in ENGINES {
        if !tests.iter().any(|(test, _)| meant(name, test, filter)) {
            continue;
        }
        let Some(path) = EngineDaemon::find(program) else {
            failed += skip(&format!("{name}::*"), &format!("{program} is not installed"));
            continue;
        };
        let _daemon = EngineDaemon::start(name, &path).unwrap();
        let lab = |test: &str| {
            let folder = std::env::temp_dir().join(format!("nc-e-{}", std::process::id()));
            let engines = options(name, EngineDaemon::socket(name), folder);
            Lab::with(test, backend(name), engines)
        };
        failed += run_all(&tests, filter, name, &lab);
    }
    failed
}

/// Asks the engine of a lab itself, without our client.
fn ask(lab: &Lab, method: &str, path: &str) -> String {
    let mut stream = UnixStream::connect(EngineDaemon::socket(lab.backend.name())).unwrap();
    write!(stream, "{method} /v1.41{path} HTTP/1.0\r\nHost: e\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Ids of all containers there are.
fn containers(lab: &Lab) -> Vec<String> {
    let list: serde_json::Value =
        serde_json::from_str(&ask(lab, "GET", "/containers/json?all=true")).unwrap();
    let id = |c: &serde_json::Value| c["Id"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(id).collect()
}

fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn privileges(lab: &Lab) {
    let out = lab.out(
        "grep -E '^(Cap|NoNew|Seccomp)' /proc/self/status; ulimit -c; ls /sys | wc -l; \
         hostname; cat /etc/machine-id; cat /proc/1/maps 2>&1 | grep -c denied; \
         python3 -c 'import ctypes;l=ctypes.CDLL(None,use_errno=True)\n\
         for n in (b\"mount\",b\"unshare\",b\"ptrace\"):\n \
         print(getattr(l,n.decode())(0,0,0,0,0),ctypes.get_errno())'",
    );
    for line in out.lines().filter(|l| l.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    let sys = if lab.backend.name() == "docker" { "0\n" } else { "" };
    let machine = "sandbox\n00000000000000000000000000000001\n1\n";
    for want in ["NoNewPrivs:\t1", "Seccomp:\t2", &format!("{sys}{machine}"), "-1 1\n-1 1\n-1 1\n"]
    {
        assert!(out.contains(want), "{want:?} in {out}");
    }
}

fn line(lab: &Lab) {
    let script = "import socket\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                  try: s.connect('/run/nanoclaw/line.sock');print('reached')\n\
                  except OSError as e: print(e.errno)";
    assert_eq!(lab.run(&lab.spec(&["python3", "-c", script])).ok(), "111\n");
}

fn report(lab: &Lab) {
    let prepared = lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap();
    let report = prepared.report();
    let wall = |name: &str| report.walls.iter().find(|w| w.wall == name).unwrap().state.clone();
    assert!(wall("engine").contains(lab.backend.name()), "{:?}", report.walls);
    assert!(wall("seccomp").ends_with("filters loaded: 2"), "{:?}", report.walls);
    let namespaces = wall("namespaces");
    let (own, rest) = namespaces.split_once("; ").unwrap_or((&namespaces, ""));
    let own: Vec<&str> = own.split(", ").collect();
    for name in ["mnt", "pid", "net", "ipc", "uts"] {
        assert!(own.contains(&name), "{:?}", report.walls);
    }
    // Podman gives no namespace of control groups of version 1, which the report must say.
    let v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let lacks = v1 && lab.backend.name() == "podman";
    assert_eq!(own.contains(&"cgroup"), !lacks, "{namespaces}");
    assert_eq!(rest.contains("control groups are the host's"), lacks, "{namespaces}");
    let limit = |name: &str| report.limits.iter().find(|l| l.limit == name).unwrap();
    assert_eq!(limit("memory").value, "1073741824 bytes");
    assert_eq!(limit("pids").value, "256");
    assert_eq!(limit("cpu").enforced_by, "cgroup of the engine");
    println!("    {:?}\n    {:?}", report.walls, report.limits);
}

fn folders(lab: &Lab) {
    for name in ["read", "write", "project", "others"] {
        std::fs::create_dir(lab.dir.join(name)).unwrap();
        std::fs::write(lab.dir.join(name).join("f"), name).unwrap();
    }
    let own = nanoclaw_sandbox::DISK_OWNER;
    for path in ["write", "write/f", "project", "project/f"] {
        chown(lab.dir.join(path), Some(own.uid), Some(own.gid)).unwrap();
    }
    let mount = |name: &str, access| Mount {
        source: lab.dir.join(name),
        target: Path::new("/mnt").join(name),
        access,
    };
    let project = lab.dir.join("project");
    let script = format!(
        "cat /mnt/read/f /mnt/write/f; (echo x > /mnt/read/g) 2>/dev/null && echo BAD; \
         echo new > /mnt/write/g; cat {}/f; echo made > made",
        project.display()
    );
    let mut spec = lab.sh(&script);
    spec.workspace = Workspace::User(project.clone());
    spec.mounts = vec![mount("read", Access::Read), mount("write", Access::Write)];
    assert_eq!(lab.run(&spec).ok(), "readwriteproject");
    assert_eq!(std::fs::read_to_string(lab.dir.join("write/g")).unwrap(), "new\n");
    assert_eq!(std::fs::read_to_string(project.join("made")).unwrap(), "made\n");
    spec.mounts.push(mount("others", Access::Write));
    let error = lab.refused(&spec);
    assert_eq!(error.kind, StartErrorKind::IdMap, "{error}");
}

/// At both paths of the workspace, and nothing of it stays.
fn keys(lab: &Lab) {
    let project = lab.dir.join("keys");
    for folder in [&project, &project.join(".ssh"), &project.join("sub")] {
        std::fs::create_dir(folder).unwrap();
    }
    let kept = [".env", ".ssh/id", "sub/.env.local"].map(|inner| project.join(inner));
    for file in &kept {
        std::fs::write(file, "KEY=real\n").unwrap();
    }
    let own = nanoclaw_sandbox::DISK_OWNER;
    for path in [&project, &project.join(".ssh"), &project.join("sub")].into_iter().chain(&kept) {
        chown(path, Some(own.uid), Some(own.gid)).unwrap();
    }
    let script = "for at in \"$@\"; do cd \"$at\"; cat .env sub/.env.local; ls -A .ssh; \
        grep -rs real .; for act in 'echo x > .env' 'rm .env' 'mv .env y' 'ln .env z' \
        'touch .ssh/n' 'rmdir .ssh'; do sh -c \"$act\" 2>/dev/null && echo did $act; done; done; \
        echo end";
    let path = project.to_str().unwrap();
    let mut spec = lab.spec(&["/bin/sh", "-c", script, "sh", "/workspace", path]);
    spec.workspace = Workspace::User(project.clone());
    let prepared = lab.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
    assert_eq!(prepared.report().plan.masks().count(), 6, "{}", prepared.report().plan);
    drop(prepared);
    assert_eq!(lab.run(&spec).ok(), "end\n");
    for file in &kept {
        assert_eq!(std::fs::read_to_string(file).unwrap(), "KEY=real\n", "{file:?}");
    }
}

fn pause(lab: &Lab) {
    let script = "while :; do echo x; sleep 0.02; done";
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let sandbox = lab.spawner.prepare(&lab.sh(script), stdio).unwrap().start().unwrap();
    let mut two = [0; 2];
    pipes.stdout.read_exact(&mut two).unwrap();
    sandbox.pause().unwrap();
    let read = rustix::io::ioctl_fionread(&pipes.stdout).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(rustix::io::ioctl_fionread(&pipes.stdout).unwrap() <= read + 2, "it goes on");
    sandbox.resume().unwrap();
    let before = rustix::io::ioctl_fionread(&pipes.stdout).unwrap();
    assert!(soon(|| rustix::io::ioctl_fionread(&pipes.stdout).unwrap() > before + 2));
    sandbox.pause().unwrap();
    sandbox.kill().unwrap();
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)), "a paused one dies too");
}

fn killed_by_others(lab: &Lab) {
    let prepared = lab.spawner.prepare(&lab.sh("sleep 100"), Stdio::null().unwrap()).unwrap();
    let sandbox = prepared.start().unwrap();
    let id = containers(lab).pop().unwrap();
    ask(lab, "POST", &format!("/containers/{id}/kill"));
    let ended = sandbox.wait();
    assert!(matches!(ended.outcome, Outcome::Killed(_)), "{ended:?}");
}

fn probed(lab: &Lab) {
    let mut spec = lab.sh("/bin/true");
    spec.witness = true;
    spec.probe = ["__builtin", "say"].map(str::to_owned).into();
    let mut prepared = lab.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
    let said = prepared.report().probes.clone().unwrap();
    let number = said.strip_prefix("pid ").and_then(|s| s.split(',').next());
    assert!(number.is_some_and(|n| lab.first_number(n)), "{said}");
    let operations = prepared.operations().unwrap();
    let sandbox = prepared.start().unwrap();
    let mut paths = Vec::new();
    while let Some(batch) = operations.next_batch() {
        operations.taken(&batch);
        paths.extend(batch.into_iter().filter_map(|operation| match operation {
            Operation::Executed(execution) => Some(execution.path),
            _ => None,
        }));
    }
    assert_eq!(paths, ["/bin/sh", "/bin/true"]);
    assert_eq!(sandbox.wait().operations.map(|o| o.executions), Some(2));
}

fn moved(lab: &Lab) {
    let prepared = lab.spawner.prepare(&lab.sh("sleep 100"), Stdio::null().unwrap()).unwrap();
    let sandbox = prepared.start().unwrap();
    sandbox.kill().unwrap();
    let traffic = sandbox.wait().traffic.unwrap();
    // The kernel does not count everywhere.
    let counted = Path::new("/proc/self/io").exists().then_some(0);
    assert_eq!((traffic.door_up, traffic.door_down), (counted, counted));
}

/// Holds a container until it is killed itself.
pub(crate) fn hold(args: &[String]) -> ExitCode {
    let engines = options(&args[0], PathBuf::from(&args[1]), PathBuf::from(&args[2]));
    let lab = Lab::with("hold-container", backend(&args[0]), engines);
    let stdio = Stdio::null().unwrap();
    let prepared = lab.spawner.prepare(&lab.sh("setsid sleep 1000 & sleep 1000"), stdio).unwrap();
    let sandbox = prepared.start().unwrap();
    println!("{}", sandbox.report().pid);
    let _ = sandbox.wait();
    ExitCode::SUCCESS
}

fn orphan(lab: &Lab) {
    let name = lab.backend.name();
    let folder = lab.dir.join("shown");
    let mut client = Command::new("/proc/self/exe")
        .args([HOLD, name])
        .args([EngineDaemon::socket(name), folder.clone()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: u32 = line.trim().parse().unwrap();
    assert_eq!(containers(lab).len(), 1);
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(soon(|| !Path::new(&format!("/proc/{pid}")).exists()), "its process lives on");
    // The next process of this home removes what is left of the dead one's things.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    let socket = EngineDaemon::socket(name);
    let next = Lab::with("next", backend(name), options(name, socket, folder.clone()));
    assert!(soon(|| containers(lab).is_empty()), "a container is left");
    assert!(soon(|| std::fs::read_dir(&folder).unwrap().count() == 0), "its folder is left");
    drop(next);
    let left = std::env::temp_dir().join(format!("nanoclaw-hold-container-{}", client.id()));
    let _ = std::fs::remove_dir_all(left);
}

fn leftovers(lab: &Lab) {
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    lab.out("true");
    // What other tests had may be closing still, on threads of its own.
    assert!(soon(|| {
        let count = fds();
        std::thread::sleep(Duration::from_millis(500));
        fds() == count
    }));
    let before = fds();
    for _ in 0..3 {
        lab.out("touch /tmp/x");
        let mut bad = lab.sh("true");
        bad.limits.open_files = 0;
        lab.refused(&bad);
        drop(lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap());
    }
    assert!(soon(|| fds() <= before), "{} of {before}", fds());
    assert!(containers(lab).is_empty(), "{:?}", containers(lab));
    let lines = std::env::temp_dir().join(format!("nc-e-{}", std::process::id()));
    let own = std::fs::read_dir(lines).unwrap().flatten();
    let left: Vec<_> = own
        .flat_map(|d| std::fs::read_dir(d.path()).into_iter().flatten().flatten())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("line-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn unknown(lab: &Lab) {
    let with = |image: Option<String>, runtime: Option<String>| {
        let choice = EngineChoice { image, runtime };
        let mut spec = lab.sh("true");
        spec.backend = match lab.backend {
            Backend::Docker(_) => Backend::Docker(choice),
            _ => Backend::Podman(choice),
        };
        lab.refused(&spec)
    };
    let error = with(Some(format!("sha256:{}", "ab".repeat(32))), None);
    assert!(error.cause.contains("has no image"), "{error}");
    let error = with(None, Some("no-such-runtime".into()));
    assert_eq!(error.kind, StartErrorKind::Engine, "{error}");
    assert!(containers(lab).is_empty());
}

/// The engine dies, and what it started can still be ended.
fn dead_engine(lab: &Lab) {
    let prepared = lab.spawner.prepare(&lab.sh("sleep 100"), Stdio::null().unwrap()).unwrap();
    let sandbox = prepared.start().unwrap();
    let own = EngineDaemon::socket(lab.backend.name());
    // Only a process that has this engine's own socket in its command is meant.
    let socket = own.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let pid = entry.file_name().to_string_lossy().parse::<i32>().ok();
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            && command.contains(&socket)
            && !command.contains(HOLD)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    assert!(soon(|| UnixStream::connect(&own).is_err()));
    let pid = sandbox.report().pid;
    sandbox.kill().unwrap();
    assert!(soon(|| !Path::new(&format!("/proc/{pid}")).exists()), "its process lives on");
    let ended = sandbox.wait_timeout(Duration::from_secs(40)).unwrap();
    assert!(matches!(ended.outcome, Outcome::Killed(_)), "{ended:?}");
}
