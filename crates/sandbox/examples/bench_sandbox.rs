//! Start of a sandbox to the first byte its program writes, beside the floor and bubblewrap.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_sandbox [RUNS] [--json]
//! [--image FILE]`. All take turns, so that noise of the machine hits all alike; ratios are of the
//! same run. Two spawners: one keeps a spare (what a user meets), one begins every sandbox from
//! nothing ("cold": what a burst meets when the spare is gone).
//!
//! `--image`: an executable that answers to the two inner roles, of the size to be measured: it is
//! what init runs from. The measured program is the same small one everywhere.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use model::{
    AgentName, Backend, Command, DoorSpec, Limits, Network, RootFs, SandboxSpec, SessionId,
    Workspace,
};
use nanoclaw_sandbox::{Spawner, SpawnerOptions, Stdio, floor};
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs thrown away first.
const WARM_UP: usize = 20;
/// Between two starts: what the one before leaves to the kernel (namespaces end asynchronously)
/// and the making of the next spare must not count against the one after.
const APART: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some("__byte") => return byte(),
        Some("__floor") => return floor_server(Path::new(&args[2])),
        _ => {}
    }
    let runs = args.get(1).and_then(|a| a.parse().ok()).unwrap_or(200);
    let json = args.iter().any(|a| a == "--json");
    let image = args.iter().position(|a| a == "--image").and_then(|at| args.get(at + 1));
    let image = image.map(PathBuf::from);
    let dir = std::env::temp_dir().join(format!("nanoclaw-bench-{}", std::process::id()));
    for part in ["state/home", "state/workspace", "floor"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    let all = bench(runs, &dir, image);
    print(&all, json);
    std::fs::remove_dir_all(&dir).unwrap();
    ExitCode::SUCCESS
}

/// The program that is started everywhere.
fn byte() -> ExitCode {
    std::io::stdout().write_all(b"x\n").unwrap();
    ExitCode::SUCCESS
}

/// A small single-threaded process makes the floor's clones, as a spawner makes ours.
fn floor_server(scratch: &Path) -> ExitCode {
    let image: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    let argv = ["floor", "__byte"].map(|a| CString::new(a).unwrap());
    let mut order = [0u8; 1];
    while rustix::io::read(std::io::stdin(), &mut order).unwrap() == 1 {
        let pid = floor::start(&image, &argv, scratch).unwrap();
        floor::wait(pid).unwrap();
        rustix::io::write(std::io::stdout(), b"e").unwrap();
    }
    ExitCode::SUCCESS
}

fn spec(dir: &Path, network: Network) -> SandboxSpec {
    SandboxSpec {
        session: SessionId::parse("bench").unwrap(),
        agent: AgentName::parse("bench").unwrap(),
        backend: Backend::Native,
        rootfs: RootFs::HostUsr,
        workspace: Workspace::Session(dir.join("state/workspace")),
        home: dir.join("state/home"),
        mounts: Vec::new(),
        network,
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        probe: Vec::new(),
        command: Command::Builtin(vec!["__byte".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
        witness: true,
    }
}

struct Series(&'static str, Vec<Duration>);

impl Series {
    fn at(&self, percent: usize) -> f64 {
        let mut all = self.1.clone();
        all.sort();
        all[(all.len() - 1) * percent / 100].as_secs_f64() * 1e3
    }
}

/// The most a start may cost, in floors.
const TARGET: f64 = 2.0;

fn print(all: &[Series], json: bool) {
    let (floor, peer) = (&all[0], &all[all.len() - 1]);
    for series in all {
        let (value, ratio) = (series.at(50), series.at(50) / floor.at(50));
        let ours = series.0.starts_with("start");
        let ok = !ours || (ratio <= TARGET && (peer.1.is_empty() || value < peer.at(50)));
        if json {
            let line = serde_json::json!({
                "name": series.0.trim(), "value_ms": value, "floor_ms": floor.at(50), "ratio": ratio,
                "target": if ours { Some(TARGET) } else { None }, "ok": ok,
            });
            println!("{line}");
            continue;
        }
        println!(
            "{:<34} p10 {:6.2} ms ({:4.2} x floor)  p50 {value:6.2} ms ({ratio:4.2} x floor)  \
             p95 {:6.2} ms{}",
            series.0,
            series.at(10),
            series.at(10) / floor.at(10),
            series.at(95),
            if ok { "" } else { "  over the target" },
        );
    }
}

/// The floor's server and its two ends.
struct Floor(std::process::Child, std::process::ChildStdin, std::process::ChildStdout);

impl Floor {
    fn new(dir: &Path) -> Self {
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("__floor")
            .arg(dir.join("floor"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (order, heard) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self(child, order, heard)
    }

    fn run(&mut self) -> Duration {
        let mut buffer = [0; 3];
        let begun = Instant::now();
        self.1.write_all(b"g").unwrap();
        self.2.read_exact(&mut buffer[..2]).unwrap();
        let time = begun.elapsed();
        self.2.read_exact(&mut buffer[2..]).unwrap();
        time
    }

    fn end(self) {
        let Self(mut child, order, _) = self;
        drop(order);
        child.wait().unwrap();
    }
}

fn bench(runs: usize, dir: &Path, image: Option<PathBuf>) -> Vec<Series> {
    let mut floor = Floor::new(dir);
    let options = SpawnerOptions {
        image: image.clone(),
        private: vec![dir.join("state")],
        ..SpawnerOptions::default()
    };
    let spare = Spawner::launch(options.clone()).unwrap();
    let cold = Spawner::launch_without_spares(options).unwrap();
    let socket = dir.join("door");
    let _door = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let trust = dir.join("trust.pem");
    std::fs::write(&trust, "").unwrap();
    let door = DoorSpec { socket, port: 8080, ports: vec![80, 443], trust: Some(trust) };
    let mut spec = spec(dir, Network::Door(door));
    let own = std::fs::read_link("/proc/self/exe").unwrap();
    if image.is_some() {
        // The image does not know our byte; a file beside the workspace does.
        std::fs::copy(&own, dir.join("state/workspace/byte")).unwrap();
        spec.command = Command::Program(vec!["/workspace/byte".into(), "__byte".into()]);
    }
    let bwrap = Path::new("/usr/bin/bwrap").exists();
    let names = [
        "floor",
        "start, spare ready",
        "  of which from prepared",
        "start, cold",
        "  of which from prepared, cold",
        "bubblewrap",
    ];
    let mut all: Vec<Series> = names.map(|n| Series(n, Vec::new())).into();
    if !bwrap {
        all.pop();
    }
    for run in 0..runs + WARM_UP {
        let floor_time = floor.run();
        std::thread::sleep(APART);
        let (full, start) = sandbox(&spare, &spec);
        std::thread::sleep(APART);
        let (cold_full, cold_start) = sandbox(&cold, &spec);
        std::thread::sleep(APART);
        let peer = if bwrap { bubblewrap(&own) } else { Duration::ZERO };
        std::thread::sleep(APART);
        if run >= WARM_UP {
            let times = [floor_time, full, start, cold_full, cold_start, peer];
            for (series, time) in all.iter_mut().zip(times) {
                series.1.push(time);
            }
        }
    }
    floor.end();
    all
}

fn sandbox(spawner: &Spawner, spec: &SandboxSpec) -> (Duration, Duration) {
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let begun = Instant::now();
    let prepared = spawner.prepare(spec, stdio).unwrap();
    let ready = Instant::now();
    let sandbox = prepared.start().unwrap();
    pipes.stdout.read_exact(&mut [0; 2]).unwrap();
    let times = (begun.elapsed(), ready.elapsed());
    let _ = sandbox.wait();
    times
}

fn bubblewrap(own: &PathBuf) -> Duration {
    let begun = Instant::now();
    let mut child = std::process::Command::new("/usr/bin/bwrap")
        .args(["--unshare-all", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"])
        .args(["--tmpfs", "/tmp", "--ro-bind"])
        .arg(own)
        .args(["/program", "/program", "__byte"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
    let time = begun.elapsed();
    child.wait().unwrap();
    time
}
