//! Thousands of sandboxes, each begun and ended in one of all ways, and afterwards nothing is left.
//!
//! Pipeline: warm-up (every way once and more) ─► `Counts` ─► cycles, some overlapping ─► `Counts`.

use crate::counts::{Counts, Place};
use crate::host::{children, groups_of, parent, soon};
use crate::lab::Lab;
use crate::{Verdict, setting};
use model::{Access, Mount, SandboxSpec};
use nanoclaw_sandbox::{Outcome, Sandbox, Spawner, SpawnerOptions, StartErrorKind, Stdio};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use testkit::Rng;

/// Cycles of an ordinary test run: a fiftieth of the ten thousand of a full run.
const CYCLES: u64 = 200;
/// Cycles before the first count: caches are filled, every way was gone.
const WARM_UP: u64 = 60;
/// Sandboxes that run on while others begin and end.
const HELD: usize = 3;
/// What a program that would run for ever is given.
const TIME_LIMIT: Duration = Duration::from_millis(3);
/// Longest wait for an end that must come by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// So often is counted again before something counts as left: threads and namespaces end late.
const LOOKS: u32 = 20;
/// Between two such counts.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// How a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Exits,
    ExitsWithStatus,
    DiesOfSignal,
    NotFound,
    Killed,
    OutOfTime,
    Dropped,
    NeverStarted,
    RefusedBySpec,
    FailsInside,
    Witnessed,
    PausedAndKilled,
    SpawnerDropped,
    SpawnerKilled,
}

/// Each way as often as it stands here: what costs a new spawner is rare.
const WAYS: [(End, usize); 14] = [
    (End::Exits, 20),
    (End::ExitsWithStatus, 8),
    (End::DiesOfSignal, 8),
    (End::NotFound, 5),
    (End::Killed, 12),
    (End::OutOfTime, 10),
    (End::Dropped, 10),
    (End::NeverStarted, 10),
    (End::RefusedBySpec, 5),
    (End::FailsInside, 4),
    (End::Witnessed, 5),
    (End::PausedAndKilled, 4),
    (End::SpawnerDropped, 1),
    (End::SpawnerKilled, 1),
];

/// What is started.
struct Specs {
    exits: SandboxSpec,
    status: SandboxSpec,
    signal: SandboxSpec,
    missing: SandboxSpec,
    lasting: SandboxSpec,
    refused: SandboxSpec,
    failing: SandboxSpec,
    witnessed: SandboxSpec,
}

impl Specs {
    fn new(lab: &Lab, mark: &str) -> Self {
        let mut refused = lab.sh("true");
        refused.limits.open_files = 0;
        let mut failing = lab.sh("true");
        let source = lab.dir.join("shared");
        std::fs::create_dir_all(&source).unwrap();
        // More folders than the root has room for: the check finds nothing wrong with any of them,
        // and the first process fails when half of its steps are done.
        let deep = "/x".repeat(20);
        failing.mounts = (0..60)
            .map(|n| {
                let target = format!("/mnt/{n}{deep}").into();
                Mount { source: source.clone(), target, access: Access::Read }
            })
            .collect();
        let mut witnessed = lab.sh("/bin/true; /bin/true");
        witnessed.witness = true;
        Self {
            exits: lab.sh("true"),
            status: lab.sh("exit 3"),
            signal: lab.sh("kill -9 $$"),
            missing: lab.spec(&["no-such-program-anywhere"]),
            // `sleep` adds its arguments up: the second one is a mark that changes nothing.
            lasting: lab.spec(&["sleep", "1000", mark]),
            refused,
            failing,
            witnessed,
        }
    }
}

struct Cycles<'a> {
    lab: &'a Lab,
    specs: Specs,
    held: VecDeque<Sandbox>,
    /// Spawners that were started beside and are gone.
    others: Vec<u32>,
    ends: BTreeMap<End, u64>,
}

impl Cycles<'_> {
    fn cycle(&mut self, end: End) {
        *self.ends.entry(end).or_default() += 1;
        match end {
            End::Exits => self.ends_by_itself(&self.specs.exits, &Outcome::Exited(0)),
            End::ExitsWithStatus => self.ends_by_itself(&self.specs.status, &Outcome::Exited(3)),
            End::DiesOfSignal => self.ends_by_itself(&self.specs.signal, &Outcome::Signaled(9)),
            End::NotFound => self.ends_by_itself(&self.specs.missing, &Outcome::Exited(127)),
            End::Killed => {
                let sandbox = self.lasting();
                sandbox.kill().unwrap();
                killed(&sandbox);
            }
            End::OutOfTime => {
                let sandbox = self.lasting();
                assert!(sandbox.wait_timeout(TIME_LIMIT).is_none(), "it ended by itself");
                sandbox.kill().unwrap();
                killed(&sandbox);
            }
            End::Dropped => {
                let sandbox = self.lasting();
                self.held.push_back(sandbox);
                while self.held.len() > HELD {
                    drop(self.held.pop_front());
                }
            }
            End::NeverStarted => drop(self.prepare(&self.specs.lasting)),
            End::RefusedBySpec => {
                let error = self.refused(&self.specs.refused);
                assert!(matches!(error, StartErrorKind::Spec(_)), "{error:?}");
            }
            End::FailsInside => {
                let error = self.refused(&self.specs.failing);
                assert_eq!(error, StartErrorKind::Mount, "it failed elsewhere");
            }
            End::Witnessed => self.witnessed(),
            End::PausedAndKilled => {
                let sandbox = self.lasting();
                // Where there is no cgroup v2 it runs on, and is killed all the same.
                drop(sandbox.pause());
                sandbox.kill().unwrap();
                killed(&sandbox);
            }
            End::SpawnerDropped | End::SpawnerKilled => self.other(end == End::SpawnerKilled),
        }
    }

    fn prepare(&self, spec: &SandboxSpec) -> nanoclaw_sandbox::Prepared {
        self.lab.spawner.prepare(spec, Stdio::null().unwrap()).unwrap()
    }

    fn lasting(&self) -> Sandbox {
        self.prepare(&self.specs.lasting).start().unwrap()
    }

    fn refused(&self, spec: &SandboxSpec) -> StartErrorKind {
        match self.lab.spawner.prepare(spec, Stdio::null().unwrap()) {
            Ok(_) => panic!("it was not refused"),
            Err(error) => error.kind,
        }
    }

    fn ends_by_itself(&self, spec: &SandboxSpec, how: &Outcome) {
        let sandbox = self.prepare(spec).start().unwrap();
        let ended = sandbox.wait_timeout(PATIENCE).expect("it ends by itself");
        assert_eq!(&ended.outcome, how);
    }

    fn witnessed(&self) {
        let mut prepared = self.prepare(&self.specs.witnessed);
        let operations = prepared.operations().expect("it is witnessed");
        let sandbox = prepared.start().unwrap();
        while let Some(batch) = operations.next_batch() {
            operations.taken(&batch);
        }
        let ended = sandbox.wait_timeout(PATIENCE).expect("it ends by itself");
        assert_eq!(ended.outcome, Outcome::Exited(0));
        assert!(ended.operations.is_some_and(|o| o.executions >= 2), "{:?}", ended.operations);
    }

    /// Another spawner, which ends while it has a sandbox and a spare.
    fn other(&mut self, by_force: bool) {
        let other = Spawner::launch(SpawnerOptions::default()).unwrap();
        let spec = &self.specs.lasting;
        let prepared = other.prepare(spec, Stdio::null().unwrap()).unwrap();
        let pid = parent(prepared.report().pid);
        let sandbox = prepared.start().unwrap();
        self.others.push(pid);
        if by_force {
            let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            killed(&sandbox);
            // What it could not give back itself is what the next spawner sweeps.
            nanoclaw_sandbox::sweep();
        }
    }
}

fn killed(sandbox: &Sandbox) {
    let ended = sandbox.wait_timeout(PATIENCE).expect("what is killed ends");
    assert!(matches!(ended.outcome, Outcome::Killed(_)), "{:?}", ended.outcome);
}

/// The process that makes the sandboxes of this lab.
pub(crate) fn spawner_of(lab: &Lab) -> u32 {
    let prepared = lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap();
    parent(prepared.report().pid)
}

pub(crate) fn soak(lab: &Lab) -> Verdict {
    let mut rng = Rng::from_env();
    let ways: Vec<End> = WAYS.iter().flat_map(|(end, often)| vec![*end; *often]).collect();
    let mark = format!("0.{:010}", std::process::id());
    let spawner = spawner_of(lab);
    let place = Place { lab, spawner, mark: &mark };
    let (specs, ends) = (Specs::new(lab, &mark), BTreeMap::new());
    let mut cycles = Cycles { lab, specs, held: VecDeque::new(), others: Vec::new(), ends };
    WAYS.iter().for_each(|(end, _)| cycles.cycle(*end));
    for _ in 0..WARM_UP {
        cycles.cycle(*rng.pick(&ways).expect("there are some"));
    }
    cycles.held.clear();
    let before = counted(place, None);
    if before.spawner_kib.is_none() {
        println!("  soak: memory and descriptors of the spawner are root's to see: not counted");
    }
    cycles.ends.clear();
    let whole = setting("NANOCLAW_SOAK_CYCLES", CYCLES);
    let (begun, mut told) = (Instant::now(), Instant::now());
    for number in 1..=whole {
        cycles.cycle(*rng.pick(&ways).expect("there are some"));
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            println!("  soak: {number} cycles of {whole}, {} s", begun.elapsed().as_secs());
        }
    }
    let took = begun.elapsed();
    cycles.held.clear();
    let after = counted(place, Some(&before));
    println!(
        "  soak: {whole} cycles in {took:.1?}; client {} to {} KiB, spawner {:?} to {:?} KiB; {:?}",
        before.client_kib, after.client_kib, before.spawner_kib, after.spawner_kib, cycles.ends
    );
    let left = after.against(&before);
    assert!(left.is_empty(), "{whole} cycles left: {left:#?}");
    for other in cycles.others {
        assert!(soon(|| children(other).is_empty()), "sandboxes of spawner {other} are left");
        let gone = soon(|| {
            nanoclaw_sandbox::sweep();
            groups_of(other).is_empty()
        });
        assert!(gone, "control groups of spawner {other} are left: {:?}", groups_of(other));
    }
    Verdict::Passed
}

/// Counts, again and again while there is more than before, for what ends late.
fn counted(place: Place<'_>, before: Option<&Counts>) -> Counts {
    let mut counts = Counts::take(place);
    for _ in 0..LOOKS {
        std::thread::sleep(BETWEEN_LOOKS);
        match before {
            // The first count is taken when two in a row are the same.
            None => {
                let next = Counts::take(place);
                if next.seen == counts.seen {
                    return next;
                }
                counts = next;
            }
            Some(before) if counts.against(before).is_empty() => return counts,
            Some(_) => counts = Counts::take(place),
        }
    }
    counts
}
