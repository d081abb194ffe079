//! Start of a sandbox to the first byte its program writes, beside floors and peers.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_sandbox [RUNS] [--json]
//! [--image FILE]`. All take turns, so that noise of the machine hits all alike; ratios are of the
//! same run's medians. Two spawners: one keeps a spare (what a user meets), one begins every
//! sandbox from nothing ("cold": what a burst meets when the spare is gone). Two floors: bare
//! namespaces with `pivot_root` and exec (`floor`, Rust), and a program in C with all that a
//! sandbox of ours has (`floor/floor.c`), which needs a C compiler. Two more spawners have clients
//! of 4 and 256 MiB.
//!
//! `--image`: an executable that answers to the two inner roles, of the size to be measured: it is
//! what init runs from. The measured program is the same small one everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "floor/mod.rs"]
mod servers;

use model::{
    AgentName, Backend, Command, DoorSpec, Limits, Network, RootFs, SandboxSpec, SessionId,
    Workspace,
};
use nanoclaw_sandbox::{Spawner, SpawnerOptions, Stdio, floor};
use servers::{InC, Server, bundle};
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
/// Clients of these sizes have a spawner each, MiB.
const SIZES: [usize; 2] = [4, 256];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some("__byte") => return byte(),
        Some("__floor") => return floor_server(Path::new(&args[2])),
        Some("__runc") => return runc_server(Path::new(&args[2])),
        Some("__sized") => return sized_server(Path::new(&args[2]), args[3].parse().unwrap()),
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
    print(&bench(runs, &dir, image), json);
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

/// A client with so much memory, all of it touched, and a spawner of its own.
fn sized_server(dir: &Path, mib: usize) -> ExitCode {
    let memory = vec![1_u8; mib << 20];
    for part in ["state/home", "state/workspace"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    let options = SpawnerOptions { private: vec![dir.join("state")], ..SpawnerOptions::default() };
    let spawner = Spawner::launch(options).unwrap();
    let spec = spec(dir, Network::None);
    let mut order = [0u8; 1];
    while rustix::io::read(std::io::stdin(), &mut order).unwrap() == 1 {
        let (full, _) = sandbox(&spawner, &spec);
        let micros = u64::try_from(full.as_micros()).unwrap();
        rustix::io::write(std::io::stdout(), &micros.to_le_bytes()).unwrap();
    }
    std::hint::black_box(&memory);
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

/// What a series is held to.
#[derive(Clone, Copy)]
enum Aim {
    /// At most so many times the median of that series.
    Times(f64, &'static str),
    /// At most so many milliseconds.
    Milliseconds(f64),
}

/// Starts of one kind.
struct Series {
    name: &'static str,
    aims: &'static [Aim],
    times: Vec<Duration>,
    /// Why there are none.
    missing: Option<String>,
}

const FLOOR: &str = "floor";
const IN_C: &str = "floor in C, all walls";
const OVERLAY: &str = "floor in C, all walls, overlay";
const BUBBLEWRAP: &str = "bubblewrap";
const RUNC: &str = "runc run";
const SMALL: &str = "start, client of 4 MiB";

/// All series, in the order of a turn.
const ALL: [(&str, &[Aim]); 11] = [
    (FLOOR, &[]),
    (IN_C, &[]),
    (OVERLAY, &[]),
    (
        "start, spare ready",
        &[
            Aim::Times(2.0, FLOOR),
            Aim::Times(1.5, IN_C),
            Aim::Times(0.8, BUBBLEWRAP),
            Aim::Times(0.15, RUNC),
        ],
    ),
    ("  of which handed over", &[Aim::Milliseconds(1.5)]),
    ("start, cold", &[Aim::Times(2.0, FLOOR), Aim::Times(1.0, BUBBLEWRAP)]),
    ("  of which handed over, cold", &[Aim::Milliseconds(1.5)]),
    (SMALL, &[]),
    // What a fork of the client would cost grows with its size; twenty-fold here.
    ("start, client of 256 MiB", &[Aim::Times(1.25, SMALL)]),
    (BUBBLEWRAP, &[]),
    (RUNC, &[]),
];

impl Series {
    fn at(&self, percent: usize) -> f64 {
        let mut all = self.times.clone();
        all.sort();
        all.get((all.len().max(1) - 1) * percent / 100).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
    }
}

/// One aim: in words, what was reached, and whether that is enough; `None` where the other series
/// is missing.
fn held(all: &[Series], series: &Series, aim: Aim) -> Option<(String, f64, bool)> {
    match aim {
        Aim::Milliseconds(most) => {
            Some((format!("at most {most} ms"), series.at(50), series.at(50) <= most))
        }
        Aim::Times(most, name) => {
            let other = all.iter().find(|s| s.name == name && !s.times.is_empty())?;
            let ratio = series.at(50) / other.at(50);
            Some((format!("at most {most} x {name}"), ratio, ratio <= most))
        }
    }
}

fn print(all: &[Series], json: bool) {
    for series in all {
        let name = series.name.trim();
        if let Some(why) = &series.missing {
            let line = serde_json::json!({ "name": name, "missing": why });
            println!("{}", if json { line.to_string() } else { format!("{name:<32} {why}") });
            continue;
        }
        let aims: Vec<_> = series.aims.iter().filter_map(|a| held(all, series, *a)).collect();
        let ok = aims.iter().all(|(_, _, ok)| *ok);
        if json {
            let (value, floor) = (series.at(50), all[0].at(50));
            let aims: Vec<_> = aims
                .iter()
                .map(|(aim, got, ok)| serde_json::json!({ "aim": aim, "got": got, "ok": ok }))
                .collect();
            let line = serde_json::json!({
                "name": name, "value_ms": value, "p10_ms": series.at(10), "p95_ms": series.at(95),
                "floor_ms": floor, "ratio": value / floor, "aims": aims, "ok": ok,
            });
            println!("{line}");
            continue;
        }
        let (low, median, high) = (series.at(10), series.at(50), series.at(95));
        println!("{:<32} p10 {low:6.2} ms  p50 {median:6.2} ms  p95 {high:6.2} ms", series.name);
        for (aim, got, ok) in aims {
            println!("{:>34}{aim}: {got:.2}{}", "", if ok { "" } else { "  MISSED" });
        }
    }
}

/// Everything that takes its turn.
struct Turns {
    floor: Server,
    in_c: Result<[Server; 2], String>,
    spare: Spawner,
    cold: Spawner,
    spec: SandboxSpec,
    sized: [Server; 2],
    own: PathBuf,
    runc: Result<Server, String>,
    _door: std::os::unix::net::UnixListener,
}

impl Turns {
    fn new(dir: &Path, image: Option<PathBuf>) -> Self {
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
        let own_again = |word: &str| {
            let mut command = std::process::Command::new("/proc/self/exe");
            command.arg(word);
            command
        };
        let in_c = {
            let prepared = cold.prepare(&spec, Stdio::null().unwrap()).unwrap();
            InC::compile(dir, prepared.report().pid)
        };
        let serve = |c: InC| {
            [("bind", false), ("overlay", true)]
                .map(|(name, overlay)| c.serve(&own, &dir.join("floor").join(name), name, overlay))
        };
        let sized = SIZES.map(|mib| {
            let place = dir.join(format!("sized-{mib}"));
            Server::start(own_again("__sized").arg(place).arg(mib.to_string()))
        });
        Self {
            floor: Server::start(own_again("__floor").arg(dir.join("floor"))),
            in_c: in_c.map(serve),
            spare,
            cold,
            spec,
            sized,
            runc: bundle(dir, &own).and_then(|bundle| runc_apart(&own, &bundle)),
            own,
            _door,
        }
    }

    /// One start of each kind, in the order of [`ALL`]; why there is none of it.
    fn turn(&mut self) -> Vec<Result<Duration, String>> {
        let apart = || std::thread::sleep(APART);
        let mut times = vec![Ok(self.floor.run())];
        apart();
        for at in 0..2 {
            times.push(self.in_c.as_mut().map(|c| c[at].run()).map_err(|why| why.clone()));
            apart();
        }
        for spawner in [&self.spare, &self.cold] {
            let (full, start) = sandbox(spawner, &self.spec);
            times.extend([Ok(full), Ok(start)]);
            apart();
        }
        for server in &mut self.sized {
            times.push(Ok(server.ask()));
            apart();
        }
        times.push(bubblewrap(&self.own));
        apart();
        times.push(self.runc.as_mut().map(Server::ask).map_err(|why| why.clone()));
        apart();
        times
    }

    fn end(self) {
        self.floor.end();
        self.in_c.into_iter().flatten().chain(self.sized).chain(self.runc).for_each(Server::end);
    }
}

fn bench(runs: usize, dir: &Path, image: Option<PathBuf>) -> Vec<Series> {
    let series = |(name, aims)| Series { name, aims, times: Vec::new(), missing: None };
    let mut all = ALL.map(series);
    let mut turns = Turns::new(dir, image);
    for run in 0..runs + WARM_UP {
        for (series, time) in all.iter_mut().zip(turns.turn()) {
            match time {
                Ok(time) if run >= WARM_UP => series.times.push(time),
                Ok(_) => {}
                Err(why) => series.missing = Some(why),
            }
        }
    }
    turns.end();
    all.into()
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

fn bubblewrap(own: &Path) -> Result<Duration, String> {
    let mut command = std::process::Command::new("bwrap");
    command
        .args(["--unshare-all", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"])
        .args(["--tmpfs", "/tmp", "--ro-bind"])
        .arg(own)
        .args(["/program", "/program", "__byte"]);
    first_byte(&mut command).map_err(|_| "not installed".to_owned())
}

/// runc mounts its own image for each run. On a host's mounts that would cost us the spare each
/// time, which is thrown away when mounts change; so it has mounts of its own.
fn runc_apart(own: &Path, bundle: &Path) -> Result<Server, String> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(own).arg("__runc").arg(bundle);
    if !rustix::process::geteuid().is_root() {
        return Err("only root gives runc mounts of its own here".into());
    }
    Ok(Server::start(&mut command))
}

fn runc_server(bundle: &Path) -> ExitCode {
    let (mut order, mut run) = ([0u8; 1], 0);
    while rustix::io::read(std::io::stdin(), &mut order).unwrap() == 1 {
        let micros = u64::try_from(runc(bundle, run).as_micros()).unwrap();
        rustix::io::write(std::io::stdout(), &micros.to_le_bytes()).unwrap();
        run += 1;
    }
    ExitCode::SUCCESS
}

fn runc(bundle: &Path, run: usize) -> Duration {
    let name = format!("nanoclaw-bench-{}-{run}", std::process::id());
    let mut command = std::process::Command::new("runc");
    command.args(["run", "--bundle"]).arg(bundle).arg(name).stdin(std::process::Stdio::null());
    first_byte(&mut command).expect("runc made the bundle and runs it")
}

fn first_byte(command: &mut std::process::Command) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    child.stdout.take().unwrap().read_exact(&mut [0; 2])?;
    let time = begun.elapsed();
    child.wait()?;
    Ok(time)
}
