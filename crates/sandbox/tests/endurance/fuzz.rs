//! `trinity`, the fuzzer of system calls that Debian has, as the program of real sandboxes, while
//! canaries stand on the host and another session runs beside.
//!
//! Pipeline: `Watched::begin` ─► rounds, each a fresh sandbox with another seed ─► after each round
//! every canary again ─► the first difference names itself and the round.
//!
//! The fuzzer may kill itself, its own sandbox or its memory: then the next round begins at once.
//! One that never makes a call proves nothing, and fails.

use crate::beside::Beside;
use crate::canary::{Field, Look, missing};
use crate::host::{SETTLES_WITHIN, children, groups_of, has_children, parent};
use crate::lab::{Lab, set_mode};
use crate::{Verdict, setting};
use model::{Limit, SandboxSpec};
use nanoclaw_sandbox::{Outcome, Pipes, Stdio};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::Rng;

/// How long in an ordinary test run, seconds: a fiftieth of the ten minutes of a full run.
const SECONDS: u64 = 12;
/// One sandbox lives at most so long: a fuzzer wears its own process out.
const ROUND: Duration = Duration::from_secs(6);
/// How long it may take to end by itself and say how much it did.
const FAREWELL: Duration = Duration::from_secs(4);
/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Rounds one after the other without a single call, after which it is said to be broken.
const IDLE_ROUNDS_MAX: u32 = 20;
/// Calls that a whole run must have made at least, a second: a machine makes thousands.
const CALLS_A_SECOND_MIN: u64 = 50;
/// Lines of its output that are kept to be shown.
const LINES_KEPT: usize = 12;
/// Longest line that is read of it, bytes.
const LINE_BYTES_MAX: u64 = 4_096;

/// Eight processes of it; little to say; no files of what it did, for each call would be synced to
/// the disk before it is made. It makes descriptors first: of `perf_event_open`, which is refused,
/// it tries for minutes, and when a family of sockets cannot be had it crashes; the calls that make
/// both are among those it makes later.
const COMMON: [&str; 6] = ["-q", "-C8", "-l", "off", "--disable-fds=perf", "--disable-fds=sockets"];
/// What differs between rounds: the words for the fuzzer, and where in the sandbox it works.
/// `-a 64`: calls of the other architecture kill the process that makes them, so most rounds do
/// without; the rest meet that rule.
const WAYS: [(&[&str], &str); 6] = [
    (&["-a", "64"], "/tmp"),
    (&[], "/workspace"),
    (&["-a", "64", "-V", "/proc"], "/workspace"),
    (&["-a", "64", "-V", "/dev"], "/home/agent"),
    (&["-a", "64", "-g", "vm"], "/tmp"),
    (&["-a", "64", "-g", "vfs", "-V", "/workspace"], "/workspace"),
];

/// The host with canaries, a spawner and a session that must stay as they are.
pub(crate) struct Watched<'a> {
    lab: &'a Lab,
    pub(crate) field: Field,
    pub(crate) beside: Beside,
    spawner: u32,
    before: Look,
    /// How long what was ended may take to be gone.
    pub(crate) patience: Duration,
}

impl<'a> Watched<'a> {
    pub(crate) fn begin(lab: &'a Lab) -> Self {
        let mut beside = Beside::start(lab);
        let spawner = parent(beside.sandbox.report().pid);
        let field = Field::set(&lab.dir);
        // Its first answer creates what later ones find.
        beside.state();
        let before = field.look();
        let mut watched = Self { lab, field, beside, spawner, before, patience: SETTLES_WITHIN };
        watched.before = watched.look();
        assert_eq!(missing(&watched.before), [""; 0], "a look without these proves nothing");
        watched
    }

    /// The canaries, the session beside, and what the spawner has; after what was ended is gone.
    pub(crate) fn look(&mut self) -> Look {
        // The session beside and the spare.
        let settled = has_children(self.spawner, 2, self.patience);
        let mut look = self.field.look();
        let mut tell = |name: &str, value: String| {
            look.seen.insert(name.to_owned(), value);
        };
        tell("session beside: state", self.beside.state());
        let ended = self.beside.sandbox.wait_timeout(Duration::ZERO);
        tell("session beside: ended", format!("{:?}", ended.map(|e| e.outcome)));
        let had = children(self.spawner).len();
        tell("sandboxes: of the spawner", if settled { "2".into() } else { had.to_string() });
        tell("sandboxes: control groups", groups_of(self.spawner).len().to_string());
        look
    }

    /// Everything that is no more as it was at the beginning.
    pub(crate) fn changed(&mut self) -> Vec<String> {
        let now = self.look();
        now.against(&self.before)
    }
}

/// What all rounds did.
#[derive(Default)]
struct Total {
    rounds: u32,
    calls: u64,
    executions: u64,
    refused: u64,
    ends: BTreeMap<String, u32>,
}

pub(crate) fn fuzz(lab: &Lab) -> Verdict {
    if testkit::need("trinity").is_none() {
        return Verdict::Skipped("trinity is not installed (Debian's package of that name)".into());
    }
    let mut rng = Rng::from_env();
    let whole = Duration::from_secs(setting("NANOCLAW_CALLS_SECONDS", SECONDS));
    let mut watched = Watched::begin(lab);
    let (begun, mut idle, mut total) = (Instant::now(), 0, Total::default());
    let mut said = VecDeque::new();
    while let Some(left) = whole.checked_sub(begun.elapsed()).filter(|l| !l.is_zero()) {
        // The fuzzer takes a number of 32 bits.
        let seed = rng.next_u64() >> 33;
        let (words, place) = WAYS[total.rounds as usize % WAYS.len()];
        let round = Round { words, place, seed, time: left.min(ROUND), begun, whole };
        let done = round.run(watched.lab, &mut total);
        idle = if done.calls == 0 { idle + 1 } else { 0 };
        said = done.said;
        assert!(
            idle < IDLE_ROUNDS_MAX,
            "the fuzzer makes no call; it ended {:?} and said: {said:#?}",
            total.ends
        );
        let changed = watched.changed();
        assert!(changed.is_empty(), "{round:?} changed the host: {changed:#?}");
    }
    println!(
        "  fuzz-syscalls: {} calls in {} sandboxes in {:?}; witnessed: {} executions, {} refusals; \
         ends: {:?}",
        total.calls, total.rounds, whole, total.executions, total.refused, total.ends
    );
    let least = CALLS_A_SECOND_MIN * whole.as_secs();
    assert!(total.calls >= least, "{} calls prove nothing; it said: {said:#?}", total.calls);
    Verdict::Passed
}

#[derive(Debug)]
struct Round {
    words: &'static [&'static str],
    place: &'static str,
    seed: u64,
    time: Duration,
    begun: Instant,
    whole: Duration,
}

struct Done {
    calls: u64,
    said: VecDeque<String>,
}

impl Round {
    fn spec(&self, lab: &Lab) -> SandboxSpec {
        let seed = format!("-s{}", self.seed);
        let mut words = vec!["trinity", &seed];
        words.extend(COMMON);
        words.extend(self.words);
        let mut spec = lab.spec(&words);
        spec.witness = true;
        spec.cwd = self.place.into();
        spec.limits.memory_bytes = Limit::default_of(512 << 20);
        spec.limits.cpu_milli = Limit::default_of(1_500);
        spec.limits.pids = Limit::default_of(64);
        spec.limits.file_bytes = 4 << 20;
        spec.limits.open_files = 512;
        spec.limits.tmp_bytes = 32 << 20;
        spec
    }

    fn run(&self, lab: &Lab, total: &mut Total) -> Done {
        let spec = self.spec(lab);
        let (stdio, pipes) = Stdio::piped().unwrap();
        let mut prepared = lab.spawner.prepare(&spec, stdio).unwrap();
        let operations = prepared.operations().expect("it is witnessed");
        let taker = std::thread::spawn(move || {
            while let Some(batch) = operations.next_batch() {
                operations.taken(&batch);
            }
        });
        let listener = Listener::start(pipes);
        let sandbox = prepared.start().unwrap();
        let end = Instant::now() + self.time;
        let mut ended = None;
        while ended.is_none() && Instant::now() < end {
            let until = end.saturating_duration_since(Instant::now()).min(TELL_EVERY);
            ended = sandbox.wait_timeout(until);
            if ended.is_none() {
                self.tell(total, listener.calls());
            }
        }
        let by_itself = ended.is_some();
        if !by_itself {
            // It says what it did when it is interrupted; if it does not listen it is killed.
            drop(sandbox.signal(2));
            ended = sandbox.wait_timeout(FAREWELL);
            drop(sandbox.kill());
        }
        let ended = ended.unwrap_or_else(|| sandbox.wait());
        drop(sandbox);
        taker.join().unwrap();
        let done = listener.end();
        remove(&lab.dir.join("state").join(spec.session.as_str()));
        total.rounds += 1;
        total.calls += done.calls;
        if let Some(counts) = ended.operations {
            total.executions += counts.executions;
            total.refused += counts.refusals;
        }
        *total.ends.entry(told(&ended.outcome, by_itself)).or_default() += 1;
        done
    }

    fn tell(&self, total: &Total, now: u64) {
        println!(
            "  fuzz-syscalls: {} s of {}, sandbox {}, {} calls, no canary changed, seed {}",
            self.begun.elapsed().as_secs(),
            self.whole.as_secs(),
            total.rounds + 1,
            total.calls + now,
            self.seed,
        );
    }
}

fn told(outcome: &Outcome, by_itself: bool) -> String {
    let when = if by_itself { "early" } else { "at its time" };
    format!("{when}, {outcome}")
}

/// Reads what the fuzzer says and how many calls it counts.
struct Listener {
    calls: Arc<AtomicU64>,
    said: Arc<Mutex<VecDeque<String>>>,
    threads: [std::thread::JoinHandle<()>; 2],
}

impl Listener {
    fn start(pipes: Pipes) -> Self {
        let Pipes { stdin, stdout, stderr } = pipes;
        drop(stdin);
        let (calls, said) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let threads = [stdout, stderr].map(|from| {
            let (calls, said) = (Arc::clone(&calls), Arc::clone(&said));
            std::thread::spawn(move || listen(from, &calls, &said))
        });
        Self { calls, said, threads }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn end(self) -> Done {
        for thread in self.threads {
            thread.join().unwrap();
        }
        let calls = self.calls.load(Ordering::Relaxed);
        Done { calls, said: std::mem::take(&mut *self.said.lock().unwrap()) }
    }
}

fn listen(from: std::fs::File, calls: &AtomicU64, said: &Mutex<VecDeque<String>>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    // What it says is hostile like everything inside: bounded, and no more than a number is taken.
    while matches!(from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if let Some(count) = counted(&text) {
            calls.fetch_max(count, Ordering::Relaxed);
        }
        let mut said = said.lock().unwrap();
        if said.len() == LINES_KEPT {
            said.pop_front();
        }
        said.push_back(text);
        line.clear();
    }
}

/// `[main] 31337 iterations. [F:…` as it goes on, `Ran 31337 syscalls. Successes: …` at its end.
fn counted(line: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "iterations." || *w == "syscalls.")?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

/// Removes what a hostile program left: folders that nobody may open are opened first. It does not
/// run any more, so nothing changes meanwhile.
fn remove(path: &Path) {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        set_mode(path, 0o700);
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            remove(&entry.path());
        }
        std::fs::remove_dir(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
}

/// What [`counted`] must and must not take; checked at every start of the open acts.
pub(crate) fn counts_are_read() {
    assert_eq!(counted("[main] 31337 iterations. [F:20 S:11 HI:3]"), Some(31_337));
    assert_eq!(counted("[main] Ran 5 syscalls. Successes: 1  Failures: 4"), Some(5));
    assert_eq!(counted("syscalls. and nothing else"), None);
    assert_eq!(counted("many iterations."), None);
}
