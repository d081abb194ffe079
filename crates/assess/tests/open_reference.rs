//! Every probe against a deliberately open reference: no sandbox at all, the canary within reach.
//! A probe that does not trip there proves nothing where it holds.
//!
//! Pipeline: canary in place ─► this very file as `__probe NAME …`, no walls ─► it must say
//! `held: false` ─► canary out of reach ─► it must say `held: true`.
//!
//! 1. This file is its own runner, for the program under test is this very file, started again.
//! 2. Where a machine cannot be open enough for a probe, that is said by name, and fails in CI.
//! 3. Everything is bounded and touches only what it made itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use nanoclaw_assess::{CATALOGUE, Observation, probe_main};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use testkit::{TempDir, need};

/// No probe may take longer, walls or none (invariant 3 of the crate).
const WATCHDOG: Duration = Duration::from_secs(60);
/// Processes the fork bomb starts where nothing stops it.
const BOMB_PROCESSES: u32 = 40;
/// Memory the memory bomb fills where nothing stops it, bytes.
const BOMB_BYTES: u64 = 64 << 20;
/// Starts a child that becomes the probe's own, waits for the file `$1`, becomes the probe.
const WITH_CHILD: &str = "sleep 50 & child=$!; exec \"$@\" pid=$child";
/// The same with a child that has the key (told backwards in `$1`) nowhere but in its memory.
const WITH_HOLDER: &str = "\"$2\" __hold \"$3\" < \"$1\" & shift 3
while [ ! -e \"$READY\" ]; do sleep 0.01; done; exec \"$@\"";

/// What came of starting a probe.
enum Tried {
    /// It ran.
    Saw(Observation),
    /// This machine does not let one be as open as the probe needs.
    Cannot(String),
}
use Tried::{Cannot, Saw};

type Case = (&'static str, &'static str, fn(&Path) -> Tried);

/// Probe, way in which it is to trip, and how.
const OPEN: &[Case] = &[
    ("host-file", "the file is there", host_file),
    ("other-session", "the file is there", other_session),
    ("host-processes", "the marked process is there", host_processes),
    ("host-loopback", "a server listens", host_loopback),
    ("network", "an interface beside loopback", network_interface),
    ("network", "a route by loopback alone", network_route),
    ("mount", "capable in its own mount namespace", mount),
    ("namespace", "no filter", namespace),
    ("ptrace", "its own child", ptrace),
    ("init-memory", "its own child", init_memory),
    ("io-uring", "no filter", io_uring),
    ("fork-bomb", "no limit", fork_bomb),
    ("fill-memory", "no limit", fill_memory),
    ("egress-host", "an open proxy", egress_host),
    ("egress-address", "an open proxy", egress_address),
    ("host-env", "in its own environment", host_env_own),
    ("host-env", "in another process's environment", host_env_other),
    ("find-key", "in its own environment", key_in_env),
    ("find-key", "in another process's environment", key_in_other_env),
    ("find-key", "in another process's arguments", key_in_arguments),
    ("find-key", "in a file", key_in_file),
    ("find-key", "in a child's memory alone", key_in_memory),
    ("tamper-log", "a writable copy", tamper_log),
    ("forge-record", "a listening socket", forge_record),
    ("witness", "no filter", |_| run("witness", &[])),
];

/// The same probes with nothing to find: a probe that always trips would be as worthless.
const CLOSED: &[Case] = &[
    ("host-file", "no such file", |dir| run("host-file", &[&path_arg(&dir.join("none"))])),
    ("host-processes", "no such process", |_| run("host-processes", &["marker=no-such-marker"])),
    ("host-loopback", "nobody listens", |_| run("host-loopback", &[&port_arg(free_port())])),
    ("ptrace", "no such process", |_| run("ptrace", &["pid=2147483000"])),
    ("init-memory", "no such process", |_| run("init-memory", &["pid=2147483000"])),
    ("egress-host", "a proxy that refuses", refused_by_proxy),
    ("egress-address", "no proxy", |_| {
        run("egress-address", &["target=127.0.0.1:1", &port_arg(free_port())])
    }),
    ("host-env", "no such variable", |_| run("host-env", &["name=NO_SUCH_VARIABLE_ANYWHERE"])),
    ("find-key", "no such key", key_nowhere),
    ("tamper-log", "no such file", |dir| run("tamper-log", &[&path_arg(&dir.join("none"))])),
    ("forge-record", "no such socket", |dir| {
        run("forge-record", &[&format!("socket={}", dir.join("none").display())])
    }),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__probe") => return probe_main(&args[2..]),
        Some("__hold") => return hold(Path::new(&args[2])),
        _ => {}
    }
    let tests: [(&str, fn()); 4] = [
        ("every_probe_has_a_way_to_trip", every_probe_has_a_way_to_trip),
        ("every_probe_trips_without_walls", every_probe_trips_without_walls),
        ("probes_hold_where_there_is_nothing_to_find", probes_hold_where_there_is_nothing_to_find),
        ("an_unknown_probe_is_no_success", an_unknown_probe_is_no_success),
    ];
    let wanted = args.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn every_probe_has_a_way_to_trip() {
    let catalogue: BTreeSet<&str> = CATALOGUE.iter().map(|p| p.name).collect();
    let tried: BTreeSet<&str> = OPEN.iter().map(|(probe, ..)| *probe).collect();
    assert_eq!(catalogue.len(), CATALOGUE.len(), "names are unique");
    assert_eq!(tried, catalogue);
}

fn every_probe_trips_without_walls() {
    expect_all(OPEN, false);
}

fn probes_hold_where_there_is_nothing_to_find() {
    expect_all(CLOSED, true);
}

fn an_unknown_probe_is_no_success() {
    for args in [&["__probe"][..], &["__probe", "no-such-probe"]] {
        let output = Command::new(me()).args(args).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

/// Runs every case in a folder of its own and compares; tells all that differ at once.
fn expect_all(cases: &[Case], held: bool) {
    let mut wrong = Vec::new();
    for (probe, way, case) in cases {
        let dir = TempDir::new("open").expect("a folder");
        match case(dir.path()) {
            Saw(saw) => {
                let word = if saw.held { "held" } else { "tripped" };
                println!("  {probe} ({way}): {word}: {}", saw.observed);
                if saw.held != held || saw.probe != *probe || saw.observed.is_empty() {
                    wrong.push(format!("{probe} ({way}): {saw:?}"));
                }
            }
            Cannot(why) if std::env::var_os("CI").is_some() => {
                wrong.push(format!("{probe} ({way}) cannot be tried, and CI does not skip: {why}"));
            }
            Cannot(why) => println!("SKIPPED {probe} ({way}): {why}"),
        }
    }
    assert!(wrong.is_empty(), "not held: {held}:\n{}", wrong.join("\n"));
}

fn me() -> PathBuf {
    std::env::current_exe().expect("this program")
}

fn path_arg(path: &Path) -> String {
    format!("path={}", path.display())
}

fn port_arg(port: u16) -> String {
    format!("port={port}")
}

fn backwards(key: &str) -> String {
    key.chars().rev().collect()
}

/// A key that is in no other place of this machine.
fn fresh_key(what: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!("made-up-{what}-{}-{}", std::process::id(), since.as_nanos())
}

/// The words that start a probe.
fn words(probe: &str, args: &[&str]) -> Vec<String> {
    let mut all = vec![me().display().to_string(), "__probe".to_owned(), probe.to_owned()];
    all.extend(args.iter().map(|a| (*a).to_owned()));
    all
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

fn run(probe: &str, args: &[&str]) -> Tried {
    saw(command(&words(probe, args)))
}

/// Runs to the end; the exit code must agree with the one line that is printed. What the command
/// left behind in its process group is ended.
fn saw(mut command: Command) -> Tried {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break Some(status);
        }
        if begun.elapsed() > WATCHDOG {
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // Nobody is left in it, which is the usual case, or they are ended.
    let _ = kill_process_group(group.expect("a pid"), Signal::KILL);
    let status = status.unwrap_or_else(|| panic!("{command:?} runs longer than {WATCHDOG:?}"));
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    let saw: Observation = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{command:?}: {e}: {text:?} ({status})"));
    assert_eq!(status.code(), Some(i32::from(!saw.held)), "{saw:?}");
    Saw(saw)
}

/// The probe in namespaces of its own, which take nothing away and give it what a host has.
fn within(flags: &[&str], words: &[String]) -> Tried {
    let Some(unshare) = need("unshare") else { return Cannot("unshare is missing".into()) };
    let mut all = vec![unshare.display().to_string()];
    all.extend(flags.iter().map(|f| (*f).to_owned()));
    let mut attempt = all.clone();
    attempt.push("true".into());
    let allowed = command(&attempt).output().expect("it starts");
    if !allowed.status.success() {
        let why = String::from_utf8_lossy(&allowed.stderr).trim().to_owned();
        return Cannot(format!("unshare {flags:?}: {why}"));
    }
    all.extend(words.iter().cloned());
    saw(command(&all))
}

/// `sh -c SCRIPT sh WORDS…`
fn by_shell(script: &str, words: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = ["sh", "-c", script, "sh"].map(str::to_owned).into();
    all.extend(words);
    all
}

/// A process with these arguments and this environment, ended when dropped.
struct Neighbour(Child);

impl Neighbour {
    fn start(name: &str, env: &[(&str, &str)]) -> Self {
        // `sh` waits for a line that never comes; its arguments are free.
        let mut command = Command::new("sh");
        command.args(["-c", "read line", name]).env_clear().envs(env.iter().copied());
        Self(command.stdin(Stdio::piped()).spawn().expect("it starts"))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A server on loopback that answers every request head with these words.
fn proxy(answer: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
            let head: Vec<String> =
                lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            assert!(head[0].starts_with("CONNECT ") && head[0].ends_with(" HTTP/1.1"), "{head:?}");
            // In two pieces, as a network may: half a status must not pass for a refusal.
            write!(stream, "HTTP/1.1 ").expect("answered");
            std::thread::sleep(Duration::from_millis(20));
            write!(stream, "{answer}\r\n\r\n").expect("answered");
        }
    });
    port
}

// The cases, in the order of the catalogue.

fn canary(dir: &Path) -> String {
    let path = dir.join("canary");
    std::fs::write(&path, "a canary\n").expect("written");
    path_arg(&path)
}

fn host_file(dir: &Path) -> Tried {
    run("host-file", &[&canary(dir)])
}

fn other_session(dir: &Path) -> Tried {
    run("other-session", &[&canary(dir)])
}

fn host_processes(_: &Path) -> Tried {
    let marker = format!("marked-{}", std::process::id());
    let _there = Neighbour::start(&marker, &[]);
    run("host-processes", &[&format!("marker={marker}")])
}

fn host_loopback(_: &Path) -> Tried {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    run("host-loopback", &[&port_arg(listener.local_addr().expect("its address").port())])
}

/// The machine's own interface, or else a virtual one in a network of the probe's own.
fn network_interface(_: &Path) -> Tried {
    let table = std::fs::read_to_string("/proc/net/dev").expect("readable");
    let has_other = table.lines().skip(2).any(|l| l.split(':').next().unwrap_or("").trim() != "lo");
    if has_other {
        return run("network", &[]);
    }
    if need("ip").is_none() {
        return Cannot("ip (iproute2) is missing".into());
    }
    let script = "ip link add v0 type veth peer name v1 2>/dev/null \
                  || ip link add v0 type dummy || exit 9; exec \"$@\"";
    within(&["-Urn"], &by_shell(script, words("network", &[])))
}

fn network_route(_: &Path) -> Tried {
    if need("ip").is_none() {
        return Cannot("ip (iproute2) is missing".into());
    }
    let script = "ip link set lo up && ip route add default dev lo && exec \"$@\"";
    within(&["-Urn"], &by_shell(script, words("network", &[])))
}

fn mount(_: &Path) -> Tried {
    within(&["-Urm"], &words("mount", &[]))
}

fn namespace(_: &Path) -> Tried {
    if let Err(why) = user_namespaces() {
        return Cannot(why);
    }
    run("namespace", &[])
}

/// Whether this machine lets anyone make a user namespace, asked of a program that is not ours.
fn user_namespaces() -> Result<(), String> {
    let Some(unshare) = need("unshare") else { return Err("unshare is missing".into()) };
    let output = Command::new(unshare).args(["-U", "true"]).output().expect("it starts");
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("unshare -U: {why}")) }
}

/// Only a descendant may be traced where Yama restricts tracing, so it is the probe's own child.
fn ptrace(_: &Path) -> Tried {
    saw(command(&by_shell(WITH_CHILD, words("ptrace", &[]))))
}

fn init_memory(_: &Path) -> Tried {
    saw(command(&by_shell(WITH_CHILD, words("init-memory", &[]))))
}

fn io_uring(_: &Path) -> Tried {
    let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    // 1 is "only for a group", which root is above of (io_uring_setup(2)).
    let root = rustix::process::geteuid().is_root();
    match switch.trim() {
        "2" => Cannot("kernel.io_uring_disabled = 2".into()),
        "1" if !root => Cannot("kernel.io_uring_disabled = 1, and this is not root".into()),
        _ => run("io-uring", &[]),
    }
}

fn fork_bomb(_: &Path) -> Tried {
    run("fork-bomb", &[&format!("count={BOMB_PROCESSES}")])
}

fn fill_memory(_: &Path) -> Tried {
    run("fill-memory", &[&format!("bytes={BOMB_BYTES}")])
}

fn egress_host(_: &Path) -> Tried {
    let port = port_arg(proxy("200 Connection established"));
    run("egress-host", &["target=example.com:443", &port])
}

fn egress_address(_: &Path) -> Tried {
    let port = port_arg(proxy("200 OK"));
    run("egress-address", &["target=127.0.0.1:22", &port])
}

fn refused_by_proxy(_: &Path) -> Tried {
    let port = port_arg(proxy("403 Forbidden"));
    run("egress-host", &["target=example.com:443", &port])
}

const VARIABLE: &str = "OPEN_REFERENCE_CANARY";

fn host_env_own(_: &Path) -> Tried {
    let mut command = command(&words("host-env", &[&format!("name={VARIABLE}")]));
    command.env(VARIABLE, "");
    saw(command)
}

fn host_env_other(_: &Path) -> Tried {
    let _there = Neighbour::start("neighbour", &[(VARIABLE, "1")]);
    run("host-env", &[&format!("name={VARIABLE}")])
}

fn key_in_env(_: &Path) -> Tried {
    let key = fresh_key("env");
    let mut command = command(&words("find-key", &[&format!("reversed={}", backwards(&key))]));
    command.env("SOME_KEY", format!("Bearer {key}"));
    saw(command)
}

fn key_in_other_env(_: &Path) -> Tried {
    let key = fresh_key("other-env");
    let _there = Neighbour::start("neighbour", &[("SOME_KEY", &key)]);
    found(run("find-key", &[&format!("reversed={}", backwards(&key))]), "/environ")
}

fn key_in_arguments(_: &Path) -> Tried {
    let key = fresh_key("arguments");
    let _there = Neighbour::start(&key, &[]);
    found(run("find-key", &[&format!("reversed={}", backwards(&key))]), "/cmdline")
}

/// In a PID namespace of its own, for this runner knows the key, too.
fn key_in_file(dir: &Path) -> Tried {
    let key = fresh_key("file");
    let deep = dir.join("a/b");
    std::fs::create_dir_all(&deep).expect("made");
    std::fs::write(deep.join("config"), format!("api_key = \"{key}\"\n")).expect("written");
    let roots = format!("roots=/no-such-folder,{}", dir.display());
    let words = words("find-key", &[&format!("reversed={}", backwards(&key)), &roots]);
    found(within(&["-Urpf", "--mount-proc"], &words), "/a/b/config")
}

/// The key stands backwards in a file; only the holder ever has it forwards.
fn key_in_memory(dir: &Path) -> Tried {
    let (file, ready) = (dir.join("backwards"), dir.join("ready"));
    let reversed = backwards(&fresh_key("memory"));
    std::fs::write(&file, &reversed).expect("written");
    let ready = ready.display().to_string();
    let mut all = vec![file.display().to_string(), me().display().to_string(), ready.clone()];
    all.extend(words("find-key", &[&format!("reversed={reversed}")]));
    let script = WITH_HOLDER.replace("$READY", &ready);
    found(within(&["-Urpf", "--mount-proc"], &by_shell(&script, all)), "in the memory of process")
}

fn key_nowhere(dir: &Path) -> Tried {
    let words = words(
        "find-key",
        &[
            &format!("reversed={}", backwards(&fresh_key("nowhere"))),
            &format!("roots={}", dir.display()),
        ],
    );
    within(&["-Urpf", "--mount-proc"], &words)
}

/// Tripping elsewhere than where the canary is would prove something else.
fn found(tried: Tried, place: &str) -> Tried {
    if let Saw(saw) = &tried {
        assert!(saw.observed.contains(place), "{place:?} is not in {:?}", saw.observed);
    }
    tried
}

/// The inner role `__hold READY`: turns standard input round, keeps it in memory, says so.
fn hold(ready: &Path) -> ExitCode {
    let mut reversed = String::new();
    std::io::stdin().read_to_string(&mut reversed).expect("read");
    let key = std::hint::black_box(backwards(&reversed));
    std::fs::write(ready, "").expect("written");
    std::thread::sleep(WATCHDOG);
    ExitCode::from(u8::from(std::hint::black_box(key).is_empty()))
}

fn tamper_log(dir: &Path) -> Tried {
    let path = dir.join("checkpoint");
    std::fs::write(&path, "a signed head\n").expect("written");
    let tried = run("tamper-log", &[&path_arg(&path)]);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert_eq!(text, "a signed head\nforged", "it tried the act itself");
    tried
}

fn forge_record(dir: &Path) -> Tried {
    let path = dir.join("recorder.sock");
    let _listener = UnixListener::bind(&path).expect("bound");
    run("forge-record", &[&format!("socket={}", path.display())])
}
