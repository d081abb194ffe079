//! Containers of real engines: every wall holds, or is a gap that is named with its reason.
//!
//! Each engine is started with a data folder of its own, which needs root and its program.

use crate::native::{left_over, told};
use crate::skip;
use model::{Backend, EngineChoice};
use nanoclaw_assess::walls::{Engine, Finding, Place, Run, Stop, Verdict};
use sandbox::EngineOptions;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::{ENGINES, EngineDaemon, TempDir};

/// Until what ended has been removed.
const REMOVED: Duration = Duration::from_secs(20);
/// What ends containers, looked at from outside: none of it may go without an answer.
const ENDS: [&str; 5] =
    ["time-out", "supervisor-kill", "residue-processes", "residue-mounts", "residue-cgroups"];

pub(crate) fn docker() {
    every_wall_holds_or_is_named("docker");
}

pub(crate) fn podman() {
    every_wall_holds_or_is_named("podman");
}

fn skipped(name: &str, why: &str) {
    assert_eq!(skip(&format!("walls of {name}"), why), 0, "CI does not skip");
}

fn every_wall_holds_or_is_named(name: &str) {
    if !rustix::process::geteuid().is_root() {
        return skipped(name, "starting an engine needs root");
    }
    let program = ENGINES.iter().find(|(n, _)| *n == name).map(|(_, program)| *program);
    let program = program.expect("an engine");
    let Some(path) = EngineDaemon::find(program) else {
        return skipped(name, &format!("{program} is not installed"));
    };
    let _daemon = EngineDaemon::start(name, &path).expect("an engine");
    let dir = TempDir::new("engine-walls").expect("a folder");
    crate::place::open_to_all(dir.path());
    let folder = dir.join("engine");
    let engine = launch(name, &folder, dir.path());
    let place = Place { root: dir.join("sessions") };
    let run = Run::full(&engine, &place, &Stop::default()).expect("a battery");
    judge(name, &run);
    let quick = Run::quick(&engine, &place, &Stop::default()).expect("a battery");
    assert!(quick.passed(), "{}", told(&quick.findings));
    let micros: u64 = quick.findings.iter().map(|f| f.micros).sum();
    println!("  the quick battery took {micros} us inside, {} ms in all", quick.milliseconds);
    assert_eq!(left_over(), 0);
    drop(engine);
    assert!(soon(|| entries(&folder) == 0), "{} left of what was shown", entries(&folder));
}

fn launch(name: &str, folder: &Path, private: &Path) -> Engine {
    let socket = Some(EngineDaemon::socket(name));
    let engines = EngineOptions::of(folder.to_owned());
    let choice = EngineChoice::default();
    let (backend, engines) = match name {
        "docker" => (Backend::Docker(choice), EngineOptions { docker: socket, ..engines }),
        _ => (Backend::Podman(choice), EngineOptions { podman: socket, ..engines }),
    };
    Engine::launch(backend, engines, vec![private.to_owned()]).expect("a spawner")
}

fn judge(name: &str, run: &Run) {
    assert!(run.passed(), "{}", told(&run.findings));
    assert!(run.findings.len() >= 200, "{}", run.findings.len());
    let of = |verdict: Verdict| -> Vec<&Finding> {
        run.findings.iter().filter(|f| f.verdict == verdict).collect()
    };
    let open = of(Verdict::Open);
    for finding in &open {
        assert!(finding.gap.as_ref().is_some_and(|g| !g.is_empty()), "{}", finding.probe);
        println!("  {}: {}; {:?}", finding.probe, finding.observed, finding.gap);
    }
    // Of root's engine this is known, and a battery that does not see it looks at something else.
    assert!(open.iter().any(|f| f.probe == "ns-separation-user"), "{open:?}");
    let absent: Vec<&str> = of(Verdict::Absent).iter().map(|f| f.probe).collect();
    for probe in ENDS {
        assert!(!absent.contains(&probe), "{probe} was not looked at");
    }
    let held = of(Verdict::Held).len();
    println!("  {name}: {held} held in {} ms; absent: {absent:?}", run.milliseconds);
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).into_iter().flatten().count()
}

fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + REMOVED;
    while Instant::now() < until {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}
