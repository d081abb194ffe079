//! The program and PID 1's life beside it: relay, pass signals on, reap, end.

use super::door::Door;
use crate::sys;
use crate::wire::{self, Order, Word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::CString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

/// As a shell says it: found, but not executable.
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// As a shell says it: not found.
const EXIT_NOT_FOUND: i32 = 127;
/// Where programs are looked up when the environment has no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// What runs.
pub(super) struct Program {
    argv: Vec<CString>,
    envp: Vec<CString>,
    builtin: bool,
    cwd: String,
    path: String,
}

impl Program {
    pub(super) fn new(
        argv: &[String],
        builtin: bool,
        cwd: &str,
        environment: &[(String, String)],
    ) -> Self {
        // The spec was checked for NUL bytes; a string that still has one is left out.
        let c = |s: String| CString::new(s).ok();
        let path = environment.iter().find(|(n, _)| n == "PATH").map(|(_, v)| v.clone());
        let own = builtin.then(|| "nanoclaw".to_owned());
        Self {
            argv: own.into_iter().chain(argv.iter().cloned()).filter_map(c).collect(),
            envp: environment.iter().filter_map(|(n, v)| c(format!("{n}={v}"))).collect(),
            builtin,
            cwd: cwd.to_owned(),
            path: path.unwrap_or_else(|| PATH.to_owned()),
        }
    }

    /// A session of its own: no controlling terminal of the host, and a group for signals.
    fn settle(&self) -> io::Result<()> {
        let _ = rustix::process::setsid();
        if rustix::termios::isatty(io::stdin()) {
            let _ = rustix::process::ioctl_tiocsctty(io::stdin());
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::chdir(self.cwd.as_str())?;
        sys::reset_signals();
        Ok(())
    }

    /// Becomes our own image with other arguments, in the program's place and environment; returns
    /// the exit status when that fails.
    pub(super) fn exec_own(&self, image: &OwnedFd, argv: &[CString]) -> i32 {
        if self.settle().is_ok() {
            sys::exec_fd(image.as_fd(), argv, &self.envp);
        }
        EXIT_NOT_EXECUTABLE
    }

    /// Becomes the program; returns the exit status when that fails.
    fn exec(&self, image: &OwnedFd) -> i32 {
        if let Err(e) = self.settle() {
            return complain(&format!("cannot enter {:?}: {e}", self.cwd), EXIT_NOT_EXECUTABLE);
        }
        let name = self.argv.first().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if self.builtin {
            let e = sys::exec_fd(image.as_fd(), &self.argv, &self.envp);
            return complain(&format!("cannot execute the own image: {e}"), EXIT_NOT_EXECUTABLE);
        }
        let candidates: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            self.path.split(':').map(|dir| format!("{dir}/{name}")).collect()
        };
        let mut refused = None;
        // What is not there is not tried: each attempt would be on record.
        let there = |path: &String| {
            let found = rustix::fs::access(path, rustix::fs::Access::EXISTS);
            !matches!(found, Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR))
        };
        let candidates = candidates.into_iter().filter(there);
        for path in candidates.filter_map(|p| CString::new(p).ok()) {
            let e = sys::exec_path(&path, &self.argv, &self.envp);
            if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
                refused = Some(e);
            }
        }
        match refused {
            Some(e) => complain(&format!("cannot execute {name:?}: {e}"), EXIT_NOT_EXECUTABLE),
            None => complain(&format!("{name:?} is not in this sandbox"), EXIT_NOT_FOUND),
        }
    }
}

/// Tells the person at the other end of standard error.
fn complain(what: &str, status: i32) -> i32 {
    let _ = writeln!(io::stderr(), "nanoclaw: {what}");
    status
}

/// Everything is in place.
pub(super) struct Ready {
    pub(super) image: OwnedFd,
    pub(super) program: Program,
    pub(super) door: Option<Door>,
    /// Started by an engine, whose accounts of a container end with its first process.
    pub(super) contained: bool,
}

impl Ready {
    /// Starts the program and stays until it has ended. Returning ends the PID namespace and so
    /// everything left in it.
    pub(super) fn run(self, line: OwnedFd) -> ExitCode {
        let contained = self.contained;
        match self.supervise(&line) {
            Ok(status) => {
                if contained {
                    sys::kill_others();
                }
                // If nobody listens any more, nobody needs to know.
                if wire::send(&line, &Word::Finished { status }, &[]).is_ok() {
                    await_kill(&line);
                }
                let code = if libc::WIFSIGNALED(status) {
                    128 + libc::WTERMSIG(status)
                } else {
                    libc::WEXITSTATUS(status)
                };
                ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
            }
            Err(_) => ExitCode::from(super::EXIT_NOT_BUILT),
        }
    }

    fn supervise(self, line: &OwnedFd) -> io::Result<i32> {
        let children = sys::signal_fd(&[libc::SIGCHLD])?;
        let Some(main) = sys::fork()? else {
            let status = self.program.exec(&self.image);
            std::process::exit(status);
        };
        let Self { image, door, .. } = self;
        drop(image);
        // Our copies of the streams would keep their other ends from seeing the end.
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        sys::replace_streams([null.as_fd(); 3])?;
        let mut door = door.map(Door::settled);
        let mut buffer = vec![0; wire::ORDER_MAX];
        loop {
            let mut fds =
                vec![PollFd::new(line, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
            if let Some(door) = &door {
                door.interests(&mut fds);
            }
            let until = door.as_ref().and_then(Door::deadline).map(left);
            match poll(&mut fds, until.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if events.first().is_some_and(|e| !e.is_empty()) {
                match wire::receive::<Order>(line, &mut buffer)? {
                    None => return Err(io::Error::other("the spawner is gone")),
                    Some((Order::Signal(signal), _)) => forward(main, signal),
                    Some(_) => {}
                }
            }
            if events.get(1).is_some_and(|e| !e.is_empty())
                && let Some(status) = reap(main)?
            {
                return Ok(status);
            }
            if let Some(door) = &mut door {
                door.turn(events.get(2..).unwrap_or_default());
            }
        }
    }
}

/// The other side reads what the kernel counted of this process, which it may not show of one that
/// has ended, and what a container's control groups say, which are gone with it; then it kills this
/// process or lets go of the line. Returns when the line has ended.
fn await_kill(line: &OwnedFd) {
    let mut buffer = vec![0; wire::ORDER_MAX];
    while let Ok(Some(_)) = wire::receive::<Order>(line, &mut buffer) {}
}

/// How long until then.
fn left(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    let seconds = left.as_secs().try_into().unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() }
}

fn forward(main: i32, signal: i32) {
    let (Some(pid), Ok(signal)) = (rustix::process::Pid::from_raw(main), u32::try_from(signal))
    else {
        return;
    };
    // The program leads its own group; one that has just ended needs no signal.
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
        let group = rustix::process::kill_process_group(pid, signal);
        if group.is_err() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Collects every child that has ended; the main program's wait status if it was among them.
fn reap(main: i32) -> io::Result<Option<i32>> {
    // Several signals are one event, and waiting below finds all.
    while sys::take_signal(&[libc::SIGCHLD]) {}
    let mut status = None;
    loop {
        match sys::reap(-1, false) {
            Ok(Some(child)) if child.pid == main => status = Some(child.status),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(status),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(status),
            Err(e) => return Err(e),
        }
    }
}
