//! `__sandbox-init`: the first process of a sandbox, from empty namespaces to a running program.
//!
//! Pipeline: jobs (steps + numbers) ─► done ─► measured ─► go ─► fork, exec ─► relay, reap ─► exit.
//!
//! The spawner starts it with its line, image and filter as descriptors. A container engine starts
//! it with nothing but the path of a socket: what the spawner would have given comes over it, the
//! program's streams too, and the steps are those that the engine left to do.
//!
//! Invariants:
//! 1. Single-threaded from start to end.
//! 2. Executes exactly the plan's steps, in order; the first failure ends it.
//! 3. From `Verify` on it is as confined as the program: same identity, no capability, Landlock,
//!    seccomp. It holds nothing that the program may not have.
//! 4. Where operations are witnessed, the filter reports from `Seccomp` on, and whoever has the
//!    other end of the line answers from `Probing` or `Measured` on: before that nothing is called
//!    that is reported.
//! 5. Ends when the other end of the line closes, whatever the program does.

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
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// Where the spawner puts things, behind standard streams that lead nowhere yet.
const LINE_FD: i32 = 3;
const IMAGE_FD: i32 = 4;
const FILTER_FD: i32 = 5;

/// Where a container's command names the socket to call, behind the program and its role.
const LINE_ARGUMENT: usize = 2;

/// Exit status when the sandbox could not be built; the reason went over the line.
const EXIT_NOT_BUILT: u8 = 125;

/// Entry point of `argv[1] == INIT_ROLE`. Not for people: without a spawner it ends at once.
#[must_use]
pub fn init_main() -> ExitCode {
    let begun = match std::env::args_os().nth(LINE_ARGUMENT) {
        None => Start::inherited(),
        Some(path) => Start::contained(std::path::Path::new(&path)),
    };
    let Ok(start) = begun else { return ExitCode::from(EXIT_NOT_BUILT) };
    match build(start) {
        Ok((ready, line)) => ready.run(line),
        Err((step, error, line)) => {
            // The other side sees the end of the line if even this fails.
            let _ = wire::send(&line, &Word::Failed { step, error }, &[]);
            ExitCode::from(EXIT_NOT_BUILT)
        }
    }
}

/// What the first process begins with.
struct Start {
    line: OwnedFd,
    image: OwnedFd,
    filter: OwnedFd,
    /// An engine made the walls around it.
    contained: bool,
}

impl Start {
    fn inherited() -> io::Result<Self> {
        let [line, image, filter] = [LINE_FD, IMAGE_FD, FILTER_FD].map(crate::sys::inherit);
        Ok(Self { line: line?, image: image?, filter: filter?, contained: false })
    }

    /// Descriptors that a runtime left open by mistake would lead out: all are closed first.
    fn contained(path: &std::path::Path) -> io::Result<Self> {
        crate::sys::close_inherited()?;
        let kind = SocketType::SEQPACKET;
        let line = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&line, &SocketAddrUnix::new(path)?)?;
        let Some((Order::Kit, fds)) = wire::receive::<Order>(&line, &mut Vec::new())? else {
            return Err(io::Error::other("something else than the kit came"));
        };
        let [image, filter] = <[OwnedFd; 2]>::try_from(fds)
            .map_err(|_| io::Error::other("the kit is not complete"))?;
        Ok(Self { line, image, filter, contained: true })
    }
}

type Built = Result<(run::Ready, OwnedFd), (String, StartError, OwnedFd)>;

fn build(start: Start) -> Built {
    let Start { line, image, filter, contained } = start;
    match carry_out(&line, &image, filter, contained) {
        Ok((program, door)) => Ok((run::Ready { image, program, door, contained }, line)),
        Err((step, error)) => Err((step, error, line)),
    }
}

fn internal(e: io::Error) -> (String, StartError) {
    ("take over the job".into(), StartError::spawner(e.to_string()))
}

/// Carries out every step up to `Verify`, in one job or two, and waits for the word to go.
fn carry_out(
    line: &OwnedFd,
    image: &OwnedFd,
    filter: OwnedFd,
    contained: bool,
) -> Result<(run::Program, Option<door::Door>), (String, StartError)> {
    let (io, shared) = (measure::own_io(), measure::shared_memory());
    let mut machine = execute::Machine::new(line, filter, contained);
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
            wire::send(line, &Word::Probing, &descriptors(&[], listener.as_ref()))
                .map_err(internal)?;
            drop(listener);
            let said = probe::run(image, &argv, &program);
            Some(said.map_err(|e| (step, failed(Kind::Verification, "the probe", e)))?)
        }
    };
    let execute::Machine { door, listener, places, shown, felt, .. } = machine;
    let mut measured = measure::measure(io.as_ref()).map_err(internal)?;
    (measured.probes, measured.places, measured.shown) = (probes, places, shown);
    measured.felt = felt;
    // Whoever hears it tells by this whether the counter is among what comes with it.
    let io = io.filter(|_| measured.moved.is_some());
    let files: Vec<OwnedFd> = shared.into_iter().chain(io).map(OwnedFd::from).collect();
    tell_and_wait(line, measured, files, listener).map_err(internal)?;
    Ok((program, door))
}

/// Waits for the next job and what came with it.
fn next_job(line: &OwnedFd) -> io::Result<(Job, Vec<OwnedFd>)> {
    match wire::receive::<Order>(line, &mut Vec::new())? {
        Some((Order::Work(job), fds)) => Ok((*job, fds)),
        Some(_) => Err(io::Error::other("an order came before its time")),
        None => Err(io::Error::other("the spawner let go")),
    }
}

/// Tells what was measured and waits for the word to go. The listener goes to the other end and
/// stays nowhere here: who holds it answers for every process of the sandbox.
fn tell_and_wait(
    line: &OwnedFd,
    measured: wire::Measured,
    files: Vec<OwnedFd>,
    listener: Option<OwnedFd>,
) -> io::Result<()> {
    let fds = descriptors(&files, listener.as_ref());
    wire::send(line, &Word::Measured(measured), &fds)?;
    drop((files, listener));
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
fn descriptors<'a>(files: &'a [OwnedFd], listener: Option<&'a OwnedFd>) -> Vec<BorrowedFd<'a>> {
    files.iter().chain(listener).map(AsFd::as_fd).collect()
}

/// An error of one step, with the general remedy.
fn failed(kind: Kind, what: &str, e: impl std::fmt::Display) -> StartError {
    StartError::new(kind, format!("{what}: {e}"), "run `nanoclaw doctor` to see what is missing")
}
