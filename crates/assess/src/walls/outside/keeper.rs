//! A process that has one container made and may be killed for it: the battery itself keeps its
//! containers, and must outlive them.
//!
//! Pipeline: `Order` (JSON argument) ─► `__walls-keeper` ─► report, one line ─► any line: the
//! program runs ─► end of input, or killed.
//!
//! 1. Whoever started it kills it, at the latest when it drops what it holds.
//! 2. Its container's streams lead nowhere.

use super::{Backend, Boxed, Engine, Running};
use crate::walls::KEEPER_ROLE;
use model::SandboxSpec;
use sandbox::{Ended, EngineOptions, Outcome, Report, StartError, StartErrorKind, Stdio, Usage};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio as Streams};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest report that is read: its plan names every mount and file.
const REPORT_BYTES_MAX: u64 = 4 << 20;
/// How often is looked whether it has ended.
const TICK: Duration = Duration::from_millis(5);

/// What it is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    spec: SandboxSpec,
    folder: Option<PathBuf>,
    docker: Option<PathBuf>,
    podman: Option<PathBuf>,
    private: Vec<PathBuf>,
}

impl Order {
    pub(super) fn new(spec: &SandboxSpec, engines: &EngineOptions, private: &[PathBuf]) -> Self {
        // A machine has its own keeper: no battery is kept in one.
        let EngineOptions { folder, docker, podman, apple: _ } = engines.clone();
        Self { spec: spec.clone(), folder, docker, podman, private: private.to_vec() }
    }
}

/// Something of ours that should have been there was not.
pub(super) fn lost(why: &str) -> StartError {
    StartError {
        kind: StartErrorKind::Engine,
        cause: format!("the keeper of a container was lost: {why}"),
        remedy: "try again; if it repeats, report this defect".to_owned(),
    }
}

/// The role: `args` are an order as JSON. Not for people.
#[must_use]
pub fn keeper_main(args: &[String]) -> ExitCode {
    let order = args.first().and_then(|text| serde_json::from_str::<Order>(text).ok());
    let Some(order) = order else { return ExitCode::from(2) };
    match keep(order) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever started it has left.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep(order: Order) -> io::Result<()> {
    let Order { spec, folder, docker, podman, private } = order;
    let engines = EngineOptions { folder, docker, podman, apple: None };
    let engine = Engine::launch(spec.backend.clone(), engines, private);
    let prepared = engine.and_then(|engine| {
        let streams = Stdio::null().map_err(|e| lost(&e.to_string()))?;
        let boxed = engine.prepare(&spec, streams)?;
        Ok((engine, boxed))
    });
    let (_engine, boxed) = match prepared {
        Ok(both) => both,
        Err(e) => return say(&Err(e)),
    };
    say(&Ok(boxed.report().clone()))?;
    let mut input = io::stdin().lock().lines();
    let Some(word) = input.next() else { return Ok(()) };
    word?;
    let running = boxed.start().map_err(io::Error::other)?;
    // The end of input is the end of it.
    for line in input {
        line?;
    }
    drop(running);
    Ok(())
}

fn say(answer: &Result<Report, StartError>) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    out.flush()
}

/// Has a container made by a process of its own.
pub(super) fn prepare(order: &Order) -> Result<Kept, StartError> {
    let order = serde_json::to_string(order).map_err(|e| lost(&e.to_string()))?;
    let mut command = Command::new("/proc/self/exe");
    command.args([KEEPER_ROLE, &order]);
    command.stdin(Streams::piped()).stdout(Streams::piped()).stderr(Streams::null());
    let child = command.spawn().map_err(|e| lost(&e.to_string()))?;
    let held = Held(Mutex::new(child));
    let (input, output) = held.streams();
    let (Some(input), Some(output)) = (input, output) else { return Err(lost("no streams")) };
    let mut line = String::new();
    let read = BufReader::new(output.take(REPORT_BYTES_MAX)).read_line(&mut line);
    read.map_err(|e| lost(&e.to_string()))?;
    let answer: Result<Report, StartError> =
        serde_json::from_str(&line).map_err(|e| lost(&format!("it told no report: {e}")))?;
    Ok(Kept { report: answer?, input, held })
}

/// The process; killed and waited for when dropped.
struct Held(Mutex<Child>);

impl Held {
    fn child(&self) -> MutexGuard<'_, Child> {
        // Nothing that is done with it can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        let mut child = self.child();
        (child.stdin.take(), child.stdout.take())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut child = self.child();
        // One that was killed already needs only to be waited for.
        drop(child.kill());
        drop(child.wait());
    }
}

/// A container that waits, kept by another process.
pub(super) struct Kept {
    report: Report,
    input: ChildStdin,
    held: Held,
}

impl Kept {
    /// The process that keeps it.
    pub(super) fn pid(&self) -> u32 {
        self.held.child().id()
    }
}

impl Boxed for Kept {
    fn report(&self) -> &Report {
        &self.report
    }

    fn start(self: Box<Self>) -> Result<Box<dyn Running>, StartError> {
        let Self { mut input, held, .. } = *self;
        input.write_all(b"go\n").map_err(|e| lost(&e.to_string()))?;
        Ok(Box::new(KeptRunning { _input: input, held }))
    }
}

/// The same, running.
struct KeptRunning {
    /// Closed, it would end.
    _input: ChildStdin,
    held: Held,
}

impl Running for KeptRunning {
    fn wait_timeout(&self, limit: Duration) -> Option<Ended> {
        let end = Instant::now() + limit;
        loop {
            if !matches!(self.held.child().try_wait(), Ok(None)) {
                let outcome = Outcome::Killed("its keeper is gone".to_owned());
                let usage = Usage::default();
                return Some(Ended { outcome, usage, traffic: None, operations: None });
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(TICK);
        }
    }

    fn kill(&self) -> Result<(), StartError> {
        self.held.child().kill().map_err(|e| lost(&e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_cannot_be_read_is_refused() {
        for words in [vec![], vec![String::new()], vec!["{}".to_owned()]] {
            let ended = format!("{:?}", keeper_main(&words));
            assert_eq!(ended, format!("{:?}", ExitCode::from(2)));
        }
    }
}
