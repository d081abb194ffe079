//! Our own image, run once inside before anything of the session: what it prints goes out with the
//! measured walls.
//!
//! Invariants:
//! 1. It is as confined as the program will be: same parent, identity, filters, environment.
//! 2. It has no way to the session's streams: it reads nothing, and only what it prints counts.
//! 3. Whatever ends it early (time, length, a status) fails the start.

use super::run::Program;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest time it may take; it takes a tenth of a second.
const TIME: Duration = Duration::from_secs(5);
/// Most it may print, bytes: with the rest of the measured it must fit one packet, even escaped.
const BYTES_MAX: usize = 48 << 10;

/// Runs it and returns what it printed.
pub(super) fn run(image: &OwnedFd, argv: &[String], program: &Program) -> io::Result<String> {
    let own = std::iter::once("nanoclaw".to_owned()).chain(argv.iter().cloned());
    let argv: Vec<CString> = own.filter_map(|word| CString::new(word).ok()).collect();
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(pid) = sys::fork()? else {
        let set = sys::replace_streams([null.as_fd(), write.as_fd(), null.as_fd()]);
        let status = set.map_or(EXIT_NO_STREAMS, |()| program.exec_own(image, &argv));
        std::process::exit(status);
    };
    drop(write);
    let said = listen(read);
    if said.is_err() {
        kill(pid);
    }
    let status = sys::reap(pid, true)?.map_or(0, |r| r.status);
    let said = said?;
    if status != 0 {
        return Err(io::Error::other(format!("it ended with wait status {status:#x}")));
    }
    String::from_utf8(said).map_err(|_| io::Error::other("it printed no text"))
}

/// Exit status of a child that could not even get its streams.
const EXIT_NO_STREAMS: i32 = 125;

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // One that is gone already is only reaped.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Everything until the other end closes.
fn listen(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let until = Instant::now() + TIME;
    let mut pipe = File::from(pipe);
    let (mut said, mut piece) = (Vec::new(), [0_u8; 4_096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(io::Error::other(format!("it took over {} s", TIME.as_secs()))),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        match pipe.read(&mut piece)? {
            0 => return Ok(said),
            n => said.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
        if said.len() > BYTES_MAX {
            return Err(io::Error::other(format!("it printed over {BYTES_MAX} bytes")));
        }
    }
}
