//! `__guest`: the first process of a virtual machine, which makes the sandbox in it.
//!
//! Pipeline: calls over the line ─► tells its version ─► spec ─► spawner, sandbox, as natively made
//! ─► report ─► start ─► passes orders in and reports out ─► the end.
//!
//! It has all rights in the machine and nothing of the host but the line: what the spec grants is
//! shown to the machine at its own paths, so the spec means here what it meant there. What runs in
//! the sandbox is behind the same walls as anywhere, and behind the machine's.
//!
//! Invariants:
//! 1. When the line ends, everything here ends.
//! 2. Its own copies of the program's streams are closed once the sandbox has them.
//! 3. Every report goes out before the end is told.

use crate::backend::Serve;
use crate::operation::Operation;
use crate::wire::{self, Answer, BoxId, Request};
use crate::{Prepared, Sandbox, Spawner, SpawnerOptions, Stdio};
use apple::line;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

/// The number of the one sandbox of a machine, in the words of the spawner's protocol.
pub(crate) const BOX: BoxId = 1;
/// Where the command names the line, behind the program and its role.
const LINE_ARGUMENT: usize = 2;
/// Exit status when there was nobody to work for.
const EXIT_NO_LINE: u8 = 125;

/// The first thing that is said over the line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// Of this program.
    pub(crate) version: String,
}

/// Entry point of `argv[1] == GUEST_ROLE`. Not for people: without a line it ends at once.
#[must_use]
pub fn guest_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_NO_LINE),
    }
}

/// To the host, from several threads.
#[derive(Debug, Clone)]
struct Host(Arc<Mutex<UnixStream>>);

impl Host {
    fn tell(&self, what: &impl Serialize) -> io::Result<()> {
        let bytes = wire::encode(what)?;
        // A frame is written whole or the line is of no use any more.
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line::write(&mut *to, &bytes)
    }
}

fn next(from: &mut UnixStream) -> io::Result<Option<Request>> {
    let Some(bytes) = line::read(from)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn serve() -> io::Result<()> {
    let path = std::env::args_os().nth(LINE_ARGUMENT);
    let path = path.ok_or_else(|| io::Error::other("no line is named"))?;
    crate::sys::close_inherited()?;
    let mut from = UnixStream::connect(path)?;
    let host = Host(Arc::new(Mutex::new(from.try_clone()?)));
    host.tell(&Greeting { version: env!("CARGO_PKG_VERSION").to_owned() })?;
    let Some(Request::Prepare { spec, .. }) = next(&mut from)? else {
        return Err(io::Error::other("something else than the spec came"));
    };
    let stdio = streams()?;
    let prepared = Spawner::launch(SpawnerOptions::default())
        .and_then(|spawner| spawner.prepare(&spec, stdio));
    match prepared {
        Err(error) => host.tell(&Answer::Failed { id: BOX, error }),
        Ok(prepared) => attend(prepared, &mut from, &host),
    }
}

/// The program's streams, which this process gives away.
fn streams() -> io::Result<Stdio> {
    let stdio = Stdio {
        stdin: io::stdin().as_fd().try_clone_to_owned()?,
        stdout: io::stdout().as_fd().try_clone_to_owned()?,
        stderr: io::stderr().as_fd().try_clone_to_owned()?,
    };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    crate::sys::replace_streams([null.as_fd(); 3])?;
    Ok(stdio)
}

/// From the report to the end.
fn attend(mut prepared: Prepared, from: &mut UnixStream, host: &Host) -> io::Result<()> {
    let operations = prepared.operations().map(crate::Operations::split);
    let report = Box::new(prepared.report().clone());
    host.tell(&Answer::Prepared { id: BOX, report })?;
    let (reports, server) = operations.unzip();
    match next(from)? {
        Some(Request::Start { .. }) => {}
        // Dropping what is prepared ends it.
        _ => return Ok(()),
    }
    let gone = |e: crate::StartError| io::Error::other(e.to_string());
    let sandbox = Arc::new(prepared.start().map_err(gone)?);
    let (waited, told) = (Arc::clone(&sandbox), host.clone());
    let end = move || tell_end(&waited, reports, &told);
    std::thread::Builder::new().name("end".into()).spawn(end)?;
    while let Some(request) = next(from)? {
        if obey(&request, &sandbox, server.as_deref(), host).is_err() {
            break;
        }
    }
    // The host is gone, or wants no more: returning ends the machine.
    let _ = sandbox.kill();
    Ok(())
}

/// Passes reports out until there are no more, then tells the end.
fn tell_end(sandbox: &Sandbox, reports: Option<Receiver<Operation>>, host: &Host) {
    for operation in reports.into_iter().flatten() {
        if host.tell(&Answer::Operation { id: BOX, operation }).is_err() {
            // What cannot be reported is not executed.
            let _ = sandbox.kill();
            break;
        }
    }
    let ended = sandbox.wait();
    if host.tell(&Answer::Ended { id: BOX, ended }).is_err() {
        // Wakes the thread that hears the host, and so ends the machine.
        let to = host.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Carries out one order. An error is the line's.
fn obey(
    request: &Request,
    sandbox: &Sandbox,
    server: Option<&dyn Serve>,
    host: &Host,
) -> io::Result<()> {
    match request {
        // One that has ended needs neither, and its end is told.
        Request::Signal { signal, .. } => drop(sandbox.signal(*signal)),
        Request::Kill { .. } => drop(sandbox.kill()),
        Request::Mark { .. } => drop(sandbox.mark()),
        Request::Taken { count, .. } => {
            if let Some(server) = server {
                server.taken(*count);
            }
        }
        Request::Usage { .. } => {
            if let Ok(usage) = sandbox.usage() {
                host.tell(&Answer::Usage { id: BOX, usage })?;
            }
        }
        Request::Freeze { frozen, .. } => {
            let done = if *frozen { sandbox.pause() } else { sandbox.resume() };
            host.tell(&Answer::Frozen { id: BOX, error: done.err() })?;
        }
        // Anything else has no meaning here.
        _ => {}
    }
    Ok(())
}
