//! `__sandbox-init`: the first process of a sandbox, from empty namespaces to a running program.
//!
//! Pipeline: jobs (steps + numbers) ─► done ─► measured ─► go ─► fork, exec ─► relay, reap ─► exit.
//!
//! Invariants:
//! 1. Single-threaded from start to end.
//! 2. Executes exactly the plan's steps, in order; the first failure ends it.
//! 3. From `Verify` on it is as confined as the program: same identity, no capability, Landlock,
//!    seccomp. It holds nothing that the program may not have.
//! 4. Where operations are witnessed, the filter reports from `Seccomp` on, and the spawner answers
//!    from `Probing` or `Measured` on: before that nothing is called that is reported.
//! 5. Ends when the spawner's end of the line closes, whatever the program does.

mod door;
mod execute;
mod identity;
mod measure;
mod mounts;
mod probe;
mod run;

pub(crate) use door::NAME_PORT;
pub(crate) use measure::namespaces;

use crate::error::{StartError, StartErrorKind as Kind};
use crate::step::Step;
use crate::wire::{self, Job, Order, Word};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// Where the spawner puts things, behind standard streams that lead nowhere yet.
const LINE_FD: i32 = 3;
const IMAGE_FD: i32 = 4;
const FILTER_FD: i32 = 5;

/// Exit status when the sandbox could not be built; the reason went over the line.
const EXIT_NOT_BUILT: u8 = 125;

/// Entry point of `argv[1] == INIT_ROLE`. Not for people: without a spawner it ends at once.
#[must_use]
pub fn init_main() -> ExitCode {
    let Ok(line) = crate::sys::inherit(LINE_FD) else {
        return ExitCode::from(EXIT_NOT_BUILT);
    };
    match build(&line) {
        Ok(ready) => ready.run(line),
        Err((step, error)) => {
            // The spawner sees the end of the line if even this fails.
            let _ = wire::send(&line, &Word::Failed { step, error }, &[]);
            ExitCode::from(EXIT_NOT_BUILT)
        }
    }
}

fn internal(e: io::Error) -> (String, StartError) {
    ("take over the job".into(), StartError::spawner(e.to_string()))
}

/// Carries out every step up to `Verify`, in one job or two, and waits for the word to go.
fn build(line: &OwnedFd) -> Result<run::Ready, (String, StartError)> {
    let image = crate::sys::inherit(IMAGE_FD).map_err(internal)?;
    let io = measure::own_io();
    let mut machine = execute::Machine::new(line);
    let (mut program, mut probe) = (None, None);
    while program.is_none() {
        let (job, fds) = next_job(line).map_err(internal)?;
        machine.take(&job, fds).map_err(internal)?;
        for step in &job.steps {
            if let Step::Run { argv, builtin, cwd, environment } = step {
                program = Some(run::Program::new(argv, *builtin, cwd, environment));
                continue;
            }
            if let Step::Probe { argv } = step {
                probe = Some((step.to_string(), argv.clone()));
                continue;
            }
            machine.step(step).map_err(|error| (step.to_string(), error))?;
        }
    }
    let Some(program) = program else {
        return Err(internal(io::Error::other("the plan runs nothing")));
    };
    let probes = match probe {
        None => None,
        Some((step, argv)) => {
            let listener = machine.listener.take();
            wire::send(line, &Word::Probing, &descriptors(None, listener.as_ref()))
                .map_err(internal)?;
            drop(listener);
            let said = probe::run(&image, &argv, &program);
            Some(said.map_err(|e| (step, failed(Kind::Verification, "the probe", e)))?)
        }
    };
    measure_and_wait(line, io, probes, machine.listener.take()).map_err(internal)?;
    Ok(run::Ready { image, program, door: machine.door })
}

/// Waits for the next job and what came with it.
fn next_job(line: &OwnedFd) -> io::Result<(Job, Vec<OwnedFd>)> {
    match wire::receive::<Order>(line, &mut Vec::new())? {
        Some((Order::Work(job), fds)) => Ok((*job, fds)),
        Some(_) => Err(io::Error::other("an order came before its time")),
        None => Err(io::Error::other("the spawner let go")),
    }
}

/// The listener goes to the spawner and stays nowhere here: who holds it answers for every process
/// of the sandbox.
fn measure_and_wait(
    line: &OwnedFd,
    io: Option<std::fs::File>,
    probes: Option<String>,
    listener: Option<OwnedFd>,
) -> io::Result<()> {
    let mut measured = measure::measure(io.as_ref())?;
    measured.probes = probes;
    let fds = descriptors(io.as_ref(), listener.as_ref());
    wire::send(line, &Word::Measured(measured), &fds)?;
    drop((io, listener));
    let mut buffer = vec![0; wire::ORDER_MAX];
    loop {
        match wire::receive::<Order>(line, &mut buffer)? {
            Some((Order::Go, _)) => return Ok(()),
            Some(_) => {}
            None => return Err(io::Error::other("the spawner let go")),
        }
    }
}

/// What goes with a word, the listener last.
fn descriptors<'a>(
    io: Option<&'a std::fs::File>,
    listener: Option<&'a OwnedFd>,
) -> Vec<BorrowedFd<'a>> {
    io.map(AsFd::as_fd).into_iter().chain(listener.map(AsFd::as_fd)).collect()
}

/// An error of one step, with the general remedy.
fn failed(kind: Kind, what: &str, e: impl std::fmt::Display) -> StartError {
    StartError::new(kind, format!("{what}: {e}"), "run `nanoclaw doctor` to see what is missing")
}
