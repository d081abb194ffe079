//! Start of a sandbox to the first byte its program writes, beside the floor and bubblewrap.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_sandbox [RUNS]`. The three take
//! turns, so that noise of the machine hits all alike; ratios are of the same run.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use model::{
    AgentName, Command, DoorSpec, Limits, Network, RootFs, SandboxSpec, SessionId, Workspace,
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
    let dir = std::env::temp_dir().join(format!("nanoclaw-bench-{}", std::process::id()));
    for part in ["state/home", "state/workspace", "floor"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    bench(runs, &dir);
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
        rootfs: RootFs::HostUsr,
        workspace: Workspace::Session(dir.join("state/workspace")),
        home: dir.join("state/home"),
        mounts: Vec::new(),
        network,
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        command: Command::Builtin(vec!["__byte".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
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

fn bench(runs: usize, dir: &Path) {
    let mut floor = std::process::Command::new("/proc/self/exe")
        .arg("__floor")
        .arg(dir.join("floor"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut order, mut heard) = (floor.stdin.take().unwrap(), floor.stdout.take().unwrap());
    let options = SpawnerOptions { image: None, private: vec![dir.join("state")] };
    let spawner = Spawner::launch(options).unwrap();
    let socket = dir.join("door");
    let _door = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let spec = spec(dir, Network::Door(DoorSpec { socket, port: 8080 }));
    let bwrap = Path::new("/usr/bin/bwrap").exists();
    let own = std::fs::read_link("/proc/self/exe").unwrap();
    let names = ["floor", "sandbox: prepare + start", "  of which start (warm)", "bubblewrap"];
    let mut all = names.map(|n| Series(n, Vec::new()));
    for run in 0..runs + WARM_UP {
        let mut buffer = [0; 3];
        let begun = Instant::now();
        order.write_all(b"g").unwrap();
        heard.read_exact(&mut buffer[..2]).unwrap();
        let floor_time = begun.elapsed();
        heard.read_exact(&mut buffer[2..]).unwrap();
        let (cold, warm) = sandbox(&spawner, &spec);
        let peer = if bwrap { bubblewrap(&own) } else { Duration::ZERO };
        if run >= WARM_UP {
            for (series, time) in all.iter_mut().zip([floor_time, cold, warm, peer]) {
                series.1.push(time);
            }
        }
    }
    drop(order);
    floor.wait().unwrap();
    for series in &all {
        let ratio = series.at(50) / all[0].at(50);
        let quiet = series.at(10) / all[0].at(10);
        println!(
            "{:<26} p10 {:6.2} ms ({quiet:4.2} x floor)  p50 {:6.2} ms ({ratio:4.2} x floor)  p95 {:6.2} ms",
            series.0,
            series.at(10),
            series.at(50),
            series.at(95)
        );
    }
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
