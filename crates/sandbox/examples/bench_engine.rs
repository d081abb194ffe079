//! Sandboxes of real container engines beside the engine's own `run` of the same command.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_engine [RUNS] [--json]`. It starts
//! engines of its own, which needs root and their programs; what is missing is named. Both kinds
//! take turns, so that noise of the machine hits both alike; ratios are of the same run's medians.
//! The peer is `docker run --rm` (or podman's) with neither network nor walls of its own choice:
//! what an engine gives anybody. Two times each: to the first byte, and until nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use model::{
    AgentName, Backend, Command, EngineChoice, Limits, Network, RootFs, SandboxSpec, SessionId,
    Workspace,
};
use nanoclaw_sandbox::{EngineOptions, Spawner, SpawnerOptions, Stdio};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use testkit::{ENGINES, EngineDaemon};

/// Runs thrown away first.
const WARM_UP: usize = 3;
/// A sandbox of an engine takes at most so many times its plain run, to the first byte and in all.
const AIM: f64 = 1.1;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some("__byte") => {
            std::io::stdout().write_all(b"x\n").unwrap();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let runs = args.get(1).and_then(|a| a.parse().ok()).unwrap_or(20);
    let json = args.iter().any(|a| a == "--json");
    for (name, program) in ENGINES {
        match EngineDaemon::find(program) {
            _ if !rustix::process::geteuid().is_root() => missing(name, "it needs root", json),
            None => missing(name, &format!("{program} is not installed"), json),
            Some(path) => bench(name, &path, runs, json),
        }
    }
    ExitCode::SUCCESS
}

fn missing(name: &str, why: &str, json: bool) {
    let line = serde_json::json!({ "name": name, "missing": why });
    println!("{}", if json { line.to_string() } else { format!("{name:<32} {why}") });
}

fn bench(name: &str, program: &Path, runs: usize, json: bool) {
    let dir = std::env::temp_dir().join(format!("nanoclaw-bench-{}-{name}", std::process::id()));
    for part in ["home", "workspace", "engine"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    let daemon = EngineDaemon::start(name, program).unwrap();
    let socket = EngineDaemon::socket(name);
    let mut engines = EngineOptions::of(dir.join("engine"));
    let choice = EngineChoice::default();
    let backend = if name == "docker" {
        engines.docker = Some(socket.clone());
        Backend::Docker(choice)
    } else {
        engines.podman = Some(socket.clone());
        Backend::Podman(choice)
    };
    let options = SpawnerOptions { engines, ..SpawnerOptions::default() };
    let spawner = Spawner::launch(options).unwrap();
    let spec = spec(&dir, backend);
    let mut ours = [Vec::new(), Vec::new()];
    let mut plain = [Vec::new(), Vec::new()];
    for run in 0..runs + WARM_UP {
        // Ours first: it imports the image that the plain run uses.
        let mine = sandbox(&spawner, &spec);
        let theirs = run_plain(name, &socket);
        if run >= WARM_UP {
            for at in 0..2 {
                ours[at].push(mine[at]);
                plain[at].push(theirs[at]);
            }
        }
    }
    for (at, what) in ["first byte", "until nothing is left"].into_iter().enumerate() {
        let (mine, theirs) = (median(&mut ours[at]), median(&mut plain[at]));
        let (ratio, ok) = (mine / theirs, mine / theirs <= AIM);
        if json {
            let line = serde_json::json!({
                "name": format!("{name}, {what}"), "value_ms": mine, "floor_ms": theirs,
                "floor": format!("{name} run"), "ratio": ratio, "aim": AIM, "ok": ok,
            });
            println!("{line}");
        } else {
            let missed = if ok { "" } else { "  MISSED" };
            println!("{name}, {what:<24} ours {mine:7.1} ms  plain run {theirs:7.1} ms");
            println!("{:>34}at most {AIM} x plain run: {ratio:.2}{missed}", "");
        }
    }
    drop(spawner);
    drop(daemon);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn spec(dir: &Path, backend: Backend) -> SandboxSpec {
    SandboxSpec {
        session: SessionId::parse("bench").unwrap(),
        agent: AgentName::parse("bench").unwrap(),
        backend,
        rootfs: RootFs::HostUsr,
        workspace: Workspace::Session(dir.join("workspace")),
        home: dir.join("home"),
        mounts: Vec::new(),
        network: Network::None,
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        probe: Vec::new(),
        command: Command::Builtin(vec!["__byte".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
        witness: true,
    }
}

fn sandbox(spawner: &Spawner, spec: &SandboxSpec) -> [Duration; 2] {
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let begun = Instant::now();
    let mut prepared = spawner.prepare(spec, stdio).unwrap();
    // Taken as the product takes them, so that the window never fills.
    let operations = prepared.operations();
    let sandbox = prepared.start().unwrap();
    pipes.stdout.read_exact(&mut [0; 2]).unwrap();
    let first = begun.elapsed();
    let _ = sandbox.wait();
    drop(operations);
    [first, begun.elapsed()]
}

/// The engine's own command line, on the image that ours imported.
fn run_plain(name: &str, socket: &Path) -> [Duration; 2] {
    let own = std::fs::read_link("/proc/self/exe").unwrap();
    let image = image(name, socket);
    let begun = Instant::now();
    let mut command = client(name, socket);
    command.args(["run", "--rm", "--network", "none", "-v", "/usr:/usr:ro", "-v"]);
    command.arg(format!("{}:/program:ro", own.display()));
    if name == "podman" {
        // Its own defaults are more than a service without all of root's rights may set.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
    }
    let mut child = command
        .arg(image)
        .args(["/program", "__byte"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
    let first = begun.elapsed();
    assert!(child.wait().unwrap().success());
    [first, begun.elapsed()]
}

fn client(name: &str, socket: &Path) -> std::process::Command {
    let url = format!("unix://{}", socket.display());
    let mut command = std::process::Command::new(name);
    match name {
        "docker" => command.args(["--host", &url]),
        _ => command.args(["--remote", "--url", &url]),
    };
    command
}

/// The image that our first start imported; asked for once.
fn image(name: &str, socket: &Path) -> &'static str {
    static IMAGES: std::sync::Mutex<Vec<(PathBuf, &'static str)>> =
        std::sync::Mutex::new(Vec::new());
    let mut images = IMAGES.lock().unwrap();
    if let Some((_, id)) = images.iter().find(|(of, _)| of == socket) {
        return id;
    }
    let output = client(name, socket).args(["images", "-q"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let id: &'static str = text.lines().next().expect("ours was imported").to_owned().leak();
    images.push((socket.to_owned(), id));
    id
}
