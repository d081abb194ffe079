//! One battery from its first bait to its findings.

use super::after::{
    CLEARED_WITHIN, appears, as_before, mounts, mounts_as_before, outlived, sighting,
};
use super::stage::{SHARED, Stage, TIGHT};
use super::{Backend, Boxed, Place, Running, ask_for_probe, probe_on_start, words};
use crate::walls::catalogue;
use crate::walls::inside::watched;
use crate::walls::judge::{Finding, Sighting, judge_all};
use crate::walls::{ACCOMPLICE_ROLE, Answer, Bait, Board, LINGER_ROLE, Other, Verdict};
use model::{Access, Command, DoorSpec, Limit, LimitState, Limits, Mount, Network, SandboxSpec};
use rustix::process::{Pid, Signal, kill_process};
use sandbox::{Mode, OVER_MEMORY, Outcome, Report, StartError, StartErrorKind, Stdio};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a battery inside may take; the tight one, with a quarter of a CPU, takes seconds.
const BATTERY_TIME: Duration = Duration::from_secs(90);
/// How long one step of a session may take: to be ready, to end.
const STEP_TIME: Duration = Duration::from_secs(10);
/// How long what ignores its end is left alone before it is killed.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often it is looked whether a person wants it to stop.
const TICK: Duration = Duration::from_millis(50);
/// Longest line that is read from inside, bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The door's port on the sandbox's own loopback.
const DOOR_PORT: u16 = 3_128;

/// Why a battery has no findings.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A sandbox could not be made.
    #[error("the sandbox was not started: {0}")]
    Start(#[from] StartError),
    /// The host did not let something be laid out.
    #[error("what probes look for could not be laid out: {0}")]
    Io(#[from] io::Error),
    /// It was asked to stop.
    #[error("it was stopped")]
    Stopped,
}

/// A wish to stop, shared with whoever hears it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Wishes it.
    pub fn now(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), ProbeError> {
        if self.0.load(Ordering::SeqCst) { Err(ProbeError::Stopped) } else { Ok(()) }
    }
}

/// What a battery found.
#[derive(Debug, Clone)]
pub struct Run {
    /// The backend, as agent files write it.
    pub backend: &'static str,
    /// With which privilege.
    pub mode: Mode,
    /// Every probe, in the order of the catalogue.
    pub findings: Vec<Finding>,
    /// The limits of the session under test, as measured.
    pub limits: Vec<LimitState>,
    /// By wall.
    pub board: Board,
    /// How long all of it took, milliseconds.
    pub milliseconds: u64,
}

impl Run {
    /// Every probe there is, in several sandboxes, with baits.
    ///
    /// # Errors
    /// When no sandbox can be made, nothing can be laid out, or somebody wishes to stop. Nothing is
    /// left behind then.
    pub fn full(backend: &dyn Backend, place: &Place, stop: &Stop) -> Result<Self, ProbeError> {
        let begun = Instant::now();
        let stage = Stage::set(backend.writer())?;
        backend.settle(&place.spec(backend, "first", waiting_words())?)?;
        let before = mounts();
        let field = Field { backend, place, stage: &stage, stop };
        let (report, mut seen) = field.beside_another()?;
        seen.extend(field.tight()?);
        seen.push(field.memory()?);
        seen.extend(field.time_out()?);
        seen.extend(field.supervisor()?);
        seen.push(mounts_as_before(&before, CLEARED_WITHIN));
        let gaps = backend.gaps(&report);
        let findings = judge_all(catalogue::all(), &seen, &gaps);
        Ok(Self::of(backend, findings, report.limits, begun))
    }

    /// The quick battery, in a sandbox that is prepared and never started: what
    /// `probe_on_start` does before an agent gets its own.
    ///
    /// # Errors
    /// As [`Run::full`].
    pub fn quick(backend: &dyn Backend, place: &Place, stop: &Stop) -> Result<Self, ProbeError> {
        let begun = Instant::now();
        let mut spec = place.spec(backend, "quick", waiting_words())?;
        ask_for_probe(&mut spec)?;
        let prepared = backend.prepare(&spec, Stdio::null()?)?;
        stop.check()?;
        let report = prepared.report();
        let findings = probe_on_start(report, &backend.gaps(report));
        let limits = report.limits.clone();
        Ok(Self::of(backend, findings, limits, begun))
    }

    fn of(
        backend: &dyn Backend,
        findings: Vec<Finding>,
        limits: Vec<LimitState>,
        begun: Instant,
    ) -> Self {
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let board = Board::of(backend, &findings);
        let (backend, mode) = (backend.name(), backend.mode());
        Self { backend, mode, findings, limits, board, milliseconds }
    }

    /// Whether every wall holds, apart from what is known and named.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.findings.is_empty() && self.findings.iter().all(|f| f.verdict != Verdict::Broken)
    }
}

/// What a sandbox runs that is never started.
fn waiting_words() -> Vec<String> {
    vec![LINGER_ROLE.to_owned(), "wait".to_owned()]
}

/// What every part of a full battery needs.
struct Field<'a> {
    backend: &'a dyn Backend,
    place: &'a Place,
    stage: &'a Stage,
    stop: &'a Stop,
}

/// What the other session says of itself.
#[derive(Deserialize)]
struct Ready {
    tcp_port: u16,
    uid_map: String,
}

impl Field<'_> {
    /// The session under test, with another one beside it.
    fn beside_another(&self) -> Result<(Report, Vec<Sighting>), ProbeError> {
        let (mut companion, mut other) = self.other()?;
        let ready = companion.lines_until(self.stop, STEP_TIME, |_| true)?;
        let ready: Option<Ready> = ready.last().and_then(|l| serde_json::from_str(l).ok());
        let Some(ready) = ready else {
            let why = format!("the other session is not ready: {}", companion.complaint());
            return Err(io::Error::other(why).into());
        };
        other.pid = companion.report.pid;
        (other.tcp_port, other.uid_map) = (ready.tcp_port, ready.uid_map);
        let name = other.name.clone();
        let prepared = self.under_test(other)?;
        companion.say("go\n")?;
        companion.lines_until(self.stop, STEP_TIME, |_| true)?;
        let mut session = prepared.start()?;
        let report = session.report.clone();
        let groups = self.backend.groups(report.pid);
        let lines = session.lines_until(self.stop, BATTERY_TIME, |line| line == "{}")?;
        let mut seen = sightings(&lines);
        let marks = watched(&self.stage.word);
        let there: Vec<bool> = marks.iter().map(|(_, mark)| appears(mark, STEP_TIME)).collect();
        session.end();
        companion.end();
        for ((probe, mark), was_there) in marks.iter().zip(there) {
            seen.push(outlived(probe, mark, was_there));
        }
        seen.push(outlived("residue-processes", &name, true));
        seen.push(match groups {
            None => sighting("residue-cgroups", Answer::Failed("none could be seen".into())),
            Some(count) => as_before("residue-cgroups", 0, CLEARED_WITHIN, count),
        });
        Ok((report, seen))
    }

    /// Another session, running, and what it was told to have. Where the file system cannot be
    /// shared, nothing is.
    fn other(&self) -> Result<(Session, Other), ProbeError> {
        let start = |shared: bool| -> Result<(Session, Other), ProbeError> {
            let other = self.stage.other(self.place, shared);
            let words = vec![
                ACCOMPLICE_ROLE.to_owned(),
                serde_json::to_string(&other).map_err(io::Error::from)?,
            ];
            let mut spec = self.place.spec(self.backend, "other", words)?;
            spec.mounts = self.shared(shared);
            Ok((Waiting::make(self.backend, &spec)?.start()?, other))
        };
        match start(true) {
            Err(ProbeError::Start(e)) if e.kind == StartErrorKind::IdMap => start(false),
            other => other,
        }
    }

    fn shared(&self, shared: bool) -> Vec<Mount> {
        let mount =
            Mount { source: self.stage.shared(), target: SHARED.into(), access: Access::Write };
        if shared { vec![mount] } else { Vec::new() }
    }

    fn under_test(&self, other: Other) -> Result<Waiting, ProbeError> {
        let mut spec = self.place.spec(self.backend, "full", Vec::new())?;
        spec.mounts = self.shared(!other.shared.is_empty());
        spec.network = Network::Door(DoorSpec {
            socket: self.stage.door.path().clone(),
            port: DOOR_PORT,
            ports: Vec::new(),
            trust: None,
        });
        let door = DoorSpec::INSIDE.to_owned();
        let bait = Bait { door, door_port: DOOR_PORT, ..self.stage.bait(&spec, other)? };
        spec.command = Command::Builtin(words("full", &bait)?);
        let waiting = Waiting::make(self.backend, &spec)?;
        self.stage.door.only_from(waiting.boxed.report().pid);
        Ok(waiting)
    }

    /// A sandbox whose limits are reached, one after the other.
    fn tight(&self) -> Result<Vec<Sighting>, ProbeError> {
        let mut session = self.limited("tight")?;
        let lines = session.lines_until(self.stop, BATTERY_TIME, |_| false)?;
        session.end();
        Ok(sightings(&lines))
    }

    /// One whose memory is filled. Where no cgroup holds it, the whole of it is killed, and nobody
    /// inside is left to tell of that.
    fn memory(&self) -> Result<Sighting, ProbeError> {
        let mut session = self.limited("memory")?;
        let lines = session.lines_until(self.stop, BATTERY_TIME, |_| false)?;
        let ended = session.running.wait_timeout(STEP_TIME).map(|ended| ended.outcome);
        session.end();
        Ok(sightings(&lines).pop().unwrap_or_else(|| {
            let answer = match ended {
                Some(Outcome::OutOfMemory) => Answer::Signal(Signal::KILL.as_raw()),
                Some(Outcome::Killed(why)) if why == OVER_MEMORY => {
                    Answer::Signal(Signal::KILL.as_raw())
                }
                other => Answer::Failed(format!("no answer, and it ended so: {other:?}")),
            };
            sighting("memory-bomb", answer)
        }))
    }

    fn limited(&self, battery: &str) -> Result<Session, ProbeError> {
        let mut spec = self.place.spec(self.backend, battery, Vec::new())?;
        spec.limits = Limits {
            memory_bytes: Limit::default_of(TIGHT.memory_bytes),
            cpu_milli: Limit::default_of(TIGHT.cpu_milli),
            pids: Limit::default_of(TIGHT.pids),
            file_bytes: TIGHT.file_bytes,
            open_files: TIGHT.open_files,
            tmp_bytes: TIGHT.tmp_bytes,
            ..Limits::default()
        };
        let bait = self.stage.bait(&spec, Other::default())?;
        spec.command = Command::Builtin(words(battery, &bait)?);
        Waiting::make(self.backend, &spec)?.start()
    }

    /// What does not end when its time is over is ended.
    fn time_out(&self) -> Result<Vec<Sighting>, ProbeError> {
        let mark = format!("{}-late", self.stage.word);
        let session = self.lingering(self.backend, "late", "deaf", &mark)?;
        let there = appears(&mark, STEP_TIME);
        let ran_on = session.running.wait_timeout(PATIENCE).is_none();
        session.running.kill()?;
        Ok(vec![outlived("time-out", &mark, there && ran_on)])
    }

    /// Whoever keeps sandboxes takes them with it when it is killed: the spawner, or, where an
    /// engine makes them, the process that asked for them.
    fn supervisor(&self) -> Result<Vec<Sighting>, ProbeError> {
        let mark = format!("{}-kept", self.stage.word);
        let second = self.backend.another()?;
        let session = self.lingering(second.as_ref(), "kept", "stay", &mark)?;
        let there = appears(&mark, STEP_TIME);
        let keeper = second.keeper(session.report.pid).and_then(|p| i32::try_from(p).ok());
        let Some(keeper) = keeper.and_then(Pid::from_raw) else {
            let why = Answer::Absent("nobody here is to be killed".into());
            return Ok(vec![sighting("supervisor-kill", why)]);
        };
        kill_process(keeper, Signal::KILL).map_err(io::Error::from)?;
        let seen = outlived("supervisor-kill", &mark, there);
        drop(session);
        drop(second);
        self.backend.tidy();
        Ok(vec![seen])
    }

    fn lingering(
        &self,
        backend: &dyn Backend,
        name: &str,
        way: &str,
        mark: &str,
    ) -> Result<Session, ProbeError> {
        self.stop.check()?;
        let words = [LINGER_ROLE, way, mark].map(str::to_owned).into();
        Waiting::make(backend, &self.place.spec(backend, name, words)?)?.start()
    }
}

fn sightings(lines: &[String]) -> Vec<Sighting> {
    lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A sandbox that is built, with the other ends of its streams.
struct Waiting {
    boxed: Box<dyn Boxed>,
    pipes: sandbox::Pipes,
}

impl Waiting {
    fn make(backend: &dyn Backend, spec: &SandboxSpec) -> Result<Self, ProbeError> {
        let (stdio, pipes) = Stdio::piped()?;
        Ok(Self { boxed: backend.prepare(spec, stdio)?, pipes })
    }

    fn start(self) -> Result<Session, ProbeError> {
        let Self { boxed, pipes } = self;
        let report = boxed.report().clone();
        let running = boxed.start()?;
        let (tell, lines) = channel();
        std::thread::Builder::new().name("battery".into()).spawn(move || {
            let mut reader = BufReader::new(pipes.stdout);
            loop {
                let mut line = String::new();
                match reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
                    Ok(1..) if tell.send(line.trim_end().to_owned()).is_ok() => {}
                    _ => return,
                }
            }
        })?;
        Ok(Session { running, report, stdin: Some(pipes.stdin), lines, stderr: pipes.stderr })
    }
}

/// A running sandbox, killed when dropped.
struct Session {
    running: Box<dyn Running>,
    report: Report,
    stdin: Option<File>,
    lines: Receiver<String>,
    /// Complaints from inside; few, so that nobody need read them meanwhile.
    stderr: File,
}

impl Session {
    /// Lines up to the one that `last` says, the end of output, or the end of the time. What is
    /// missing then is noticed by whoever judges.
    fn lines_until(
        &mut self,
        stop: &Stop,
        limit: Duration,
        last: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ProbeError> {
        let end = Instant::now() + limit;
        let mut all = Vec::new();
        while Instant::now() < end {
            stop.check()?;
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    let done = last(&line);
                    all.push(line);
                    if done {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(all)
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(text.as_bytes()))
    }

    /// Ends it and says what it complained of last.
    fn complaint(self) -> String {
        let mut said = Vec::new();
        if let Ok(stderr) = self.stderr.try_clone() {
            self.end();
            // What cannot be read says nothing.
            drop(stderr.take(LINE_BYTES_MAX).read_to_end(&mut said));
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// Closes its input, on which it ends; what does not is killed.
    fn end(mut self) {
        self.stdin = None;
        if self.running.wait_timeout(STEP_TIME / 2).is_none() {
            // A keeper that is gone has killed it already.
            drop(self.running.kill());
            drop(self.running.wait_timeout(STEP_TIME));
        }
    }
}
