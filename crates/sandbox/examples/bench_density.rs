//! How many sandboxes a second begin and end, and what each of many idle ones takes of memory.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_density [COUNT] [SECONDS] [--json]`
//!
//! The rate: one spawner, and one, two or four threads that begin a sandbox, wait for its end, and
//! begin the next, for SECONDS each. The memory: COUNT sandboxes held at once, each with a program
//! that sleeps (the agent, which is not counted), as far as the machine's memory goes; `Pss` of the
//! first processes, of the spawner and of the client, divided by COUNT, and beside it what the
//! kernel's count of available memory has lost, in which the kernel's own structures are. Only root
//! may look into first processes and spawners.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use model::{
    AgentName, Backend, Command, Limits, Network, RootFs, SandboxSpec, SessionId, Workspace,
};
use nanoclaw_sandbox::{Sandbox, Spawner, SpawnerOptions, Stdio};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sandboxes held at once.
const COUNT: usize = 500;
/// How long the rate is measured with each number of threads, seconds.
const SECONDS: u64 = 4;
/// Threads that begin sandboxes at the same time.
const THREADS: [usize; 3] = [1, 2, 4];
/// Begun and ended before anything is measured.
const WARM_UP: usize = 20;
/// Starts measured while all are held.
const STARTS: usize = 50;
/// What one is taken for when it is asked how many fit; the rest of the machine keeps half.
const ROOM_KIB: u64 = 4 << 10;
/// What the kernel gives back late has had this time.
const SETTLE: Duration = Duration::from_millis(1_500);
/// The least starts a second, and the most memory of one beyond its agent.
const TARGET_RATE: f64 = 150.0;
const TARGET_MIB: f64 = 1.2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some("__end") => return ExitCode::SUCCESS,
        Some("__sleep") => loop {
            std::thread::park();
        },
        _ => {}
    }
    let json = args.iter().any(|a| a == "--json");
    let mut numbers = args.iter().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let count = numbers.next().and_then(|n| usize::try_from(n).ok()).unwrap_or(COUNT);
    let seconds = numbers.next().unwrap_or(SECONDS);
    let bench = Bench::new(json);
    bench.rates(Duration::from_secs(seconds));
    bench.density(count);
    std::fs::remove_dir_all(&bench.dir).unwrap();
    ExitCode::SUCCESS
}

struct Bench {
    dir: PathBuf,
    spawner: Spawner,
    json: bool,
}

/// One figure: what it must be, if anything, at least or at most.
enum Aim {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Bench {
    fn new(json: bool) -> Self {
        let dir =
            std::env::temp_dir().join(format!("nanoclaw-bench-density-{}", std::process::id()));
        for part in ["state/home", "state/workspace"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let options =
            SpawnerOptions { private: vec![dir.join("state")], ..SpawnerOptions::default() };
        let bench = Self { dir, spawner: Spawner::launch(options).unwrap(), json };
        for _ in 0..WARM_UP {
            let _ = bench.begin("__end").wait();
        }
        bench
    }

    fn tell(&self, name: &str, value: f64, unit: &str, aim: &Aim) {
        let (target, ok) = match aim {
            Aim::None => (None, true),
            Aim::AtLeast(least) => (Some(*least), value >= *least),
            Aim::AtMost(most) => (Some(*most), value <= *most),
        };
        if self.json {
            let line = serde_json::json!({
                "name": name, "value": value, "unit": unit, "target": target, "ok": ok,
            });
            println!("{line}");
            return;
        }
        let word = match aim {
            Aim::None => String::new(),
            Aim::AtLeast(least) => format!("  at least {least}"),
            Aim::AtMost(most) => format!("  at most {most}"),
        };
        println!("{name:<44} {value:9.2} {unit}{word}{}", if ok { "" } else { "  MISSED" });
    }

    /// A sandbox of the installation's own program; sessions are alike, so they share folders.
    fn begin(&self, word: &str) -> Sandbox {
        let spec = SandboxSpec {
            session: SessionId::parse("bench").unwrap(),
            agent: AgentName::parse("bench").unwrap(),
            backend: Backend::Native,
            rootfs: RootFs::HostUsr,
            workspace: Workspace::Session(self.dir.join("state/workspace")),
            home: self.dir.join("state/home"),
            mounts: Vec::new(),
            network: Network::None,
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            probe: Vec::new(),
            command: Command::Builtin(vec![word.into()]),
            cwd: "/workspace".into(),
            limits: Limits::default(),
            witness: true,
        };
        let mut prepared = self.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
        // One execution each: nobody need take its report.
        drop(prepared.operations());
        prepared.start().unwrap()
    }

    fn rates(&self, time: Duration) {
        let mut best = 0.0_f64;
        for threads in THREADS {
            let made = AtomicU64::new(0);
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while begun.elapsed() < time {
                            assert_eq!(self.begin("__end").wait().outcome.code(), 0);
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            #[allow(clippy::cast_precision_loss)] // some thousands
            let rate = made.into_inner() as f64 / begun.elapsed().as_secs_f64();
            best = best.max(rate);
            let name = format!("starts and ends, {threads} at a time");
            self.tell(&name, rate, "a second", &Aim::None);
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let name = format!("starts and ends, the best, {cpus} CPUs");
        self.tell(&name, best, "a second", &Aim::AtLeast(TARGET_RATE));
    }

    fn density(&self, wanted: usize) {
        let first = self.begin("__sleep");
        let spawner = parent(first.report().pid);
        drop(first);
        std::thread::sleep(SETTLE);
        // What a spawner keeps: its spare, and who reads memory for it.
        let kept = children(spawner).len();
        let fit = usize::try_from(available_kib() / 2 / ROOM_KIB).unwrap_or(wanted);
        let count = wanted.min(fit);
        let before = (available_kib(), pss_kib(spawner), pss_kib(std::process::id()));
        let begun = Instant::now();
        let held: Vec<Sandbox> = (0..count).map(|_| self.begin("__sleep")).collect();
        let took = begun.elapsed();
        std::thread::sleep(SETTLE);
        let after = (available_kib(), pss_kib(spawner), pss_kib(std::process::id()));
        let inits: Vec<u32> = held.iter().map(|s| s.report().pid).collect();
        let total = |pids: &[u32]| pids.iter().map(|p| pss_kib(*p)).sum::<Option<u64>>();
        let agents: Vec<u32> = inits.iter().flat_map(|pid| children(*pid)).collect();
        assert_eq!(agents.len(), count, "each has its program");
        self.memory(count, before, after, total(&inits), total(&agents));
        self.tell("held at once", number(count), "sandboxes", &Aim::None);
        self.tell("begun one after the other", took.as_secs_f64(), "s", &Aim::None);
        let mut starts: Vec<Duration> = (0..STARTS).map(|_| self.start()).collect();
        starts.sort();
        let median = starts[STARTS / 2].as_secs_f64() * 1e3;
        self.tell("one more start and end meanwhile, p50", median, "ms", &Aim::None);
        let begun = Instant::now();
        held.iter().for_each(|s| s.kill().unwrap());
        held.iter().for_each(|s| drop(s.wait()));
        self.tell("all ended", begun.elapsed().as_secs_f64(), "s", &Aim::None);
        drop(held);
        std::thread::sleep(SETTLE);
        let left = number(children(spawner).len()) - number(kept);
        self.tell("left of them", left, "processes", &Aim::AtMost(0.0));
    }

    fn memory(
        &self,
        count: usize,
        before: (u64, Option<u64>, Option<u64>),
        after: (u64, Option<u64>, Option<u64>),
        inits: Option<u64>,
        agents: Option<u64>,
    ) {
        let each = |kib: f64| kib / 1024.0 / number(count);
        let grown = |was: Option<u64>, is: Option<u64>| Some(kib(is?) - kib(was?));
        let parts = inits.map(kib).zip(grown(before.1, after.1)).zip(grown(before.2, after.2));
        let Some(((inits, spawner), client)) = parts else {
            println!("memory of each: only root may see it");
            return;
        };
        let agents = agents.map_or(0.0, kib);
        for (name, value) in [("first process", inits), ("spawner", spawner), ("client", client)] {
            self.tell(&format!("each, {name}"), each(value), "MiB", &Aim::None);
        }
        let whole = each(inits + spawner + client);
        self.tell("each, beyond the agent (Pss)", whole, "MiB", &Aim::AtMost(TARGET_MIB));
        let lost = kib(before.0) - kib(after.0) - agents;
        let name = "each, beyond the agent (available memory)";
        self.tell(name, each(lost), "MiB", &Aim::AtMost(TARGET_MIB));
        self.tell("each, the agent", each(agents), "MiB", &Aim::None);
    }

    fn start(&self) -> Duration {
        let begun = Instant::now();
        let _ = self.begin("__end").wait();
        begun.elapsed()
    }
}

#[allow(clippy::cast_precision_loss)] // some thousands
fn number(count: usize) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)] // less than 2^52 KiB
fn kib(count: u64) -> f64 {
    count as f64
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn available_kib() -> u64 {
    field(Path::new("/proc/meminfo"), "MemAvailable:").unwrap_or(0)
}

fn pss_kib(pid: u32) -> Option<u64> {
    field(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

fn parent(pid: u32) -> u32 {
    let status = field(Path::new(&format!("/proc/{pid}/status")), "PPid:").unwrap();
    u32::try_from(status).unwrap()
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|c| c.parse().unwrap()).collect()
}
