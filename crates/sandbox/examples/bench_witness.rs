//! What witnessing costs: the same work outside, in a sandbox without reports, and in one with.
//!
//! `cargo run --release -p nanoclaw-sandbox --example bench_witness [FILES] [ROUNDS] [--json]`
//!
//! Two kinds of work. A loop that starts programs and does nothing else is the worst case.
//! Compiling many small C files, each by the four programs of a compiler, is what builds do. All
//! take turns, so that noise of the machine hits all alike; ratios are of the same run's medians.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use model::{AgentName, Command, Limits, Network, RootFs, SandboxSpec, SessionId, Workspace};
use nanoclaw_sandbox::{Operation, Spawner, SpawnerOptions, Stdio};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Files compiled, each some lines long.
const FILES: usize = 200;
/// Rounds; one more is thrown away first.
const ROUNDS: usize = 3;
/// Programs started by the loop.
const STARTS: usize = 500;
/// The most that a compile inside may cost, in those outside.
const TARGET_ON: f64 = 1.05;
const TARGET_OFF: f64 = 1.02;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        _ => {}
    }
    let json = args.iter().any(|a| a == "--json");
    let mut numbers = args.iter().skip(1).filter_map(|a| a.parse().ok());
    let files = numbers.next().unwrap_or(FILES);
    let rounds = numbers.next().unwrap_or(ROUNDS);
    let dir = std::env::temp_dir().join(format!("nanoclaw-bench-witness-{}", std::process::id()));
    let bench = Bench::new(dir.clone(), files);
    let start = format!("i=0; while [ $i -lt {STARTS} ]; do /bin/true; i=$((i+1)); done");
    bench.run("start 500 programs", &start, rounds, [None, None], json);
    if Path::new("/usr/bin/cc").exists() {
        let compile = "for f in *.c; do /usr/bin/cc -O1 -c $f || exit 1; done; rm *.o";
        let name = format!("compile {files} files");
        bench.run(&name, compile, rounds, [Some(TARGET_OFF), Some(TARGET_ON)], json);
    } else {
        println!("SKIPPED: there is no /usr/bin/cc to compile with");
    }
    drop(bench);
    std::fs::remove_dir_all(&dir).unwrap();
    ExitCode::SUCCESS
}

struct Bench {
    dir: PathBuf,
    spawner: Spawner,
}

/// Where the work is done.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    Unwitnessed,
    Witnessed,
}

impl Bench {
    fn new(dir: PathBuf, files: usize) -> Self {
        for part in ["state/home", "state/workspace", "outside"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        for folder in ["state/workspace", "outside"] {
            for n in 0..files {
                let text = format!(
                    "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
                     int work{n}(const char *s) {{ return (int)strlen(s) * {n} + atoi(s); }}\n\
                     void say{n}(int i) {{ printf(\"%d %d\\n\", i, work{n}(\"{n}\")); }}\n"
                );
                std::fs::write(dir.join(folder).join(format!("f{n}.c")), text).unwrap();
            }
        }
        let private = vec![dir.join("state")];
        let options = SpawnerOptions { private, ..SpawnerOptions::default() };
        Self { dir, spawner: Spawner::launch(options).unwrap() }
    }

    fn spec(&self, script: &str, witness: bool) -> SandboxSpec {
        let mut limits = Limits::default();
        // The machine is the limit here, as it is outside.
        limits.cpu_milli.value = 64_000;
        SandboxSpec {
            session: SessionId::parse("bench").unwrap(),
            agent: AgentName::parse("bench").unwrap(),
            backend: model::Backend::Native,
            rootfs: RootFs::HostUsr,
            workspace: Workspace::Session(self.dir.join("state/workspace")),
            home: self.dir.join("state/home"),
            mounts: Vec::new(),
            network: Network::None,
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            command: Command::Program(["/bin/sh", "-c", script].map(str::to_owned).into()),
            cwd: "/workspace".into(),
            limits,
            witness,
            probe: Vec::new(),
        }
    }

    /// The time of the work alone, and how many executions and images were reported.
    fn once(&self, place: Place, script: &str) -> (Duration, usize, usize) {
        if place == Place::Outside {
            let begun = Instant::now();
            let status = std::process::Command::new("/bin/sh")
                .args(["-c", script])
                .current_dir(self.dir.join("outside"))
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .status();
            assert!(status.unwrap().success());
            return (begun.elapsed(), 0, 0);
        }
        let spec = self.spec(script, place == Place::Witnessed);
        let mut prepared = self.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
        let taker = prepared.operations().map(|operations| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                while let Some(batch) = operations.next_batch() {
                    operations.taken(&batch);
                    all.extend(batch);
                }
                all
            })
        });
        let begun = Instant::now();
        let ended = prepared.start().unwrap().wait();
        let time = begun.elapsed();
        assert_eq!(ended.outcome.code(), 0, "{:?}", ended.outcome);
        let all = taker.map(|t| t.join().unwrap()).unwrap_or_default();
        let executed = all.iter().filter(|o| matches!(o, Operation::Executed(_))).count();
        let seen = |o: &&Operation| matches!(o, Operation::Image(image) if image.seen.is_ok());
        (time, executed, all.iter().filter(seen).count())
    }

    fn run(&self, name: &str, script: &str, rounds: usize, targets: [Option<f64>; 2], json: bool) {
        let places = [Place::Outside, Place::Unwitnessed, Place::Witnessed];
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        let (mut executed, mut seen) = (0, 0);
        for round in 0..=rounds {
            for (place, times) in places.iter().zip(&mut times) {
                let (time, executions, images) = self.once(*place, script);
                if round > 0 {
                    times.push(time);
                    (executed, seen) = (executed + executions, seen + images);
                }
            }
        }
        let [outside, off, on] = times.map(median);
        for (what, time, target) in
            [("witness off", off, targets[0]), ("witness on", on, targets[1])]
        {
            let ratio = time / outside;
            let ok = target.is_none_or(|t| ratio <= t);
            if json {
                let line = serde_json::json!({
                    "name": format!("{name}, {what}"), "value_ms": time, "floor_ms": outside,
                    "ratio": ratio, "target": target, "ok": ok,
                });
                println!("{line}");
            } else {
                let over = if ok { "" } else { "  over the target" };
                println!("{name}, {what}: {time:.1} ms, {ratio:.3} x outside{over}");
            }
        }
        let each = (on - off) * 1e3 * rounds as f64 / executed.max(1) as f64;
        if !json {
            println!(
                "  {executed} executions reported, {each:.0} us each; the image of {seen} was seen"
            );
        }
    }
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
