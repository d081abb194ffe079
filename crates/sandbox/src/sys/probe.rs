//! What the probes of the walls need of the system: a copy of this process to try something in, and
//! there any system call by its number.
//!
//! Pipeline: `apart` (fork) ─► the act, with [`raw`] calls ─► its words, or what ended it.
//!
//! Invariants:
//! 1. [`raw`] and its relatives work in a copy made by [`apart`] only; elsewhere they refuse. A
//!    copy has memory of its own, says one thing and ends: whatever such a call does to it,
//!    nobody else meets.
//! 2. A copy is made of a process with one thread only, so that no lock is held for ever in it.
//! 3. A copy that takes too long is killed; none outlives [`apart`], nor its parent.

use super::check;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a copy may say, bytes: a line, and far less than a pipe takes without a reader.
const SAID_BYTES_MAX: u64 = 16 << 10;
/// Exit status of a copy that panicked.
const EXIT_PANICKED: i32 = 101;

/// Whether this process is a copy.
static APART: AtomicBool = AtomicBool::new(false);

/// How a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// In order, with these words.
    Said(String),
    /// By this signal.
    Signal(i32),
    /// With this status and nothing to say.
    Status(i32),
    /// It had to be killed after its time.
    TimedOut,
}

/// Does `act` in a copy of this process and waits for it, `limit` at most.
///
/// # Errors
/// When this process has several threads, or no copy can be made of it.
pub fn apart(limit: Duration, act: impl FnOnce() -> String) -> io::Result<End> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads is not copied"));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(pid) = super::fork()? else {
        drop(read);
        APART.store(true, Ordering::SeqCst);
        // A parent that dies meanwhile closes the pipe; the copy then ends at its time limit.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let status = match catch_unwind(AssertUnwindSafe(act)) {
            Ok(said) => {
                let _ = std::fs::File::from(write).write_all(said.as_bytes());
                0
            }
            Err(_) => EXIT_PANICKED,
        };
        // SAFETY: ends this copy at once, without running what its original registered.
        unsafe { libc::_exit(status) }
    };
    drop(write);
    let in_time = ended_within(pid, limit);
    if !matches!(in_time, Ok(true)) {
        // SAFETY: kill touches no memory; the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let status = super::reap(pid, true)?.map_or(0, |r| r.status);
    if !in_time? {
        return Ok(End::TimedOut);
    }
    if libc::WIFSIGNALED(status) {
        return Ok(End::Signal(libc::WTERMSIG(status)));
    }
    // What it left running may hold the pipe open: its end is not waited for.
    rustix::io::ioctl_fionbio(&read, true)?;
    let mut said = Vec::new();
    match std::fs::File::from(read).take(SAID_BYTES_MAX).read_to_end(&mut said) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
        _ => {}
    }
    match libc::WEXITSTATUS(status) {
        0 => Ok(End::Said(String::from_utf8_lossy(&said).into_owned())),
        other => Ok(End::Status(other)),
    }
}

fn ended_within(pid: i32, limit: Duration) -> io::Result<bool> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&timeout))? > 0)
}

/// One system call by its number, with these six arguments as they are.
///
/// # Errors
/// With the number of the error that the kernel answers (errno(3)); with `ENOTRECOVERABLE` outside
/// of a copy made by [`apart`], where nothing is called.
pub fn raw(number: i64, args: [usize; 6]) -> Result<i64, i32> {
    if !APART.load(Ordering::SeqCst) {
        return Err(libc::ENOTRECOVERABLE);
    }
    let [a, b, c, d, e, f] = args;
    // SAFETY: this is a copy of a process (checked), whose memory nobody else sees and which only
    // writes one line before it ends (invariant 1). Calls that come back twice have functions of
    // their own, below.
    let value = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
    check(value).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// `clone` with these flags, in the old form whose flags a filter can see. What is made ends at
/// once.
///
/// # Errors
/// As [`raw`].
pub fn clone(flags: u64) -> Result<i64, i32> {
    let flags = usize::try_from(flags).unwrap_or(usize::MAX) | libc::SIGCHLD as usize;
    let pid = raw(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])?;
    if pid == 0 {
        // SAFETY: this is the child of the copy; nothing of it has run yet.
        unsafe { libc::_exit(0) }
    }
    let _ = super::reap(i32::try_from(pid).unwrap_or(-1), true);
    Ok(pid)
}

/// `getpid` through the 32-bit entry (`int 0x80`), whose numbers are other calls.
///
/// # Errors
/// As [`raw`]; with `ENOSYS` where the architecture has no such entry.
pub fn entry_32_bit() -> Result<i64, i32> {
    if !APART.load(Ordering::SeqCst) {
        return Err(libc::ENOTRECOVERABLE);
    }
    #[cfg(target_arch = "x86_64")]
    {
        const GETPID: i64 = 20;
        let mut value = GETPID;
        // SAFETY: the call takes no argument and writes no memory; the kernel may clear r8 to r11
        // (entry_64_compat.S), which are given as lost.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") value, out("r8") _, out("r9") _,
                out("r10") _, out("r11") _);
        }
        // The 32-bit answer: errors are the last 4095 numbers.
        let value = value as i32;
        if value < 0 { Err(-value) } else { Ok(value.into()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err(libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runner of tests has threads: no copy is made of it, and no call.
    #[test]
    fn nothing_is_tried_in_a_process_with_threads() {
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || told.recv());
            assert!(apart(Duration::from_secs(1), String::new).is_err());
            drop(tell);
        });
        assert_eq!(raw(libc::SYS_getpid, [0; 6]), Err(libc::ENOTRECOVERABLE));
        assert_eq!(clone(0), Err(libc::ENOTRECOVERABLE));
        assert_eq!(entry_32_bit(), Err(libc::ENOTRECOVERABLE));
    }
}
