//! Making, replacing and reaping processes.

use super::check;
use std::ffi::CString;
use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Exit status of a child that could not even execute our own image.
const EXIT_NO_EXEC: i32 = 125;
/// Inherited descriptors are first parked from this number on, so that none is overwritten.
const PARKING: libc::c_int = 128;

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

pub(super) fn clone3(flags: u64) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no CLONE_VM, so the child gets its own copy of memory, as with fork; `args` and
    // `pidfd` live until the call returns. The callers are single-threaded processes, or make
    // only async-signal-safe calls in the child.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: CLONE_PIDFD stored a fresh descriptor that nobody else knows.
    Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })))
}

/// Starts `image` (a descriptor of an executable) in new namespaces, with exactly `fds` as its
/// descriptors 0, 1, 2 … and an empty environment.
pub(crate) fn clone_exec(
    flags: u64,
    image: BorrowedFd<'_>,
    argv: &[CString],
    fds: &[BorrowedFd<'_>],
) -> io::Result<(i32, OwnedFd)> {
    let argv = pointers(argv);
    let envp = pointers(&[]);
    let mut raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let image = image.as_raw_fd();
    if let Some(parent) = clone3(flags)? {
        return Ok(parent);
    }
    // SAFETY: we are the child with a private copy of memory; only async-signal-safe system
    // calls follow, on memory prepared before the clone, and the process ends in exec or _exit.
    unsafe {
        let mut sigset: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut sigset);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const sigset, std::ptr::null_mut());
        let image = libc::fcntl(image, libc::F_DUPFD, PARKING);
        for fd in &mut raw {
            *fd = libc::fcntl(*fd, libc::F_DUPFD, PARKING);
        }
        for (target, fd) in raw.iter().enumerate() {
            if libc::dup2(*fd, target as libc::c_int) < 0 {
                libc::_exit(EXIT_NO_EXEC);
            }
        }
        let close = libc::CLOSE_RANGE_CLOEXEC;
        if flags & libc::CLONE_NEWUSER as u64 != 0 {
            keep_capabilities();
        }
        if libc::syscall(libc::SYS_close_range, raw.len(), libc::c_uint::MAX, close) < 0 {
            libc::_exit(EXIT_NO_EXEC);
        }
        execveat(image, &argv, &envp);
        libc::_exit(EXIT_NO_EXEC)
    }
}

/// Makes the capabilities of a fresh user namespace survive the coming exec: nobody there is
/// root, so the kernel would drop them. They are ambient until init drops every set.
///
/// # Safety
/// Only async-signal-safe calls; for a child between clone and exec.
unsafe fn keep_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    const EFFECTIVE: usize = 0;
    const PERMITTED: usize = 1;
    const INHERITABLE: usize = 2;
    let header = [VERSION_3, 0u32];
    // Two 32-bit halves of effective, permitted, inheritable.
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: header and sets have the layout of version 3 (capget(2)) and live during the calls.
    unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        for half in &mut sets {
            half[INHERITABLE] = half[PERMITTED];
            half[EFFECTIVE] = half[PERMITTED];
        }
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        for capability in 0..64 as libc::c_ulong {
            let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
            let zero: libc::c_ulong = 0;
            if libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, zero, zero) < 0 {
                break;
            }
        }
    }
}

/// A child in a new user namespace that does nothing but wait to be killed: it only keeps the
/// namespace alive until a descriptor of it is open.
pub(crate) fn cloned_pause() -> io::Result<(i32, OwnedFd)> {
    if let Some(parent) = clone3(libc::CLONE_NEWUSER as u64)? {
        return Ok(parent);
    }
    loop {
        // SAFETY: in the child; `pause` and `prctl` are async-signal-safe and touch no memory.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::pause();
        }
    }
}

/// As [`fork`], into new namespaces. For the start-up floor only: it shares every descriptor.
pub(crate) fn fork_into(flags: libc::c_int) -> io::Result<Option<(i32, OwnedFd)>> {
    clone3(flags as u64)
}

/// Forks a single-threaded process. `None` in the child.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the callers (init, doctor's helper) are single-threaded, so the child's copy of
    // every lock and allocator is consistent.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// # Safety
/// `argv` and `envp` must be null-terminated arrays of valid C strings.
unsafe fn execveat(
    fd: RawFd,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> io::Error {
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: by the contract above; the empty path is a static C string.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), flags);
    }
    io::Error::last_os_error()
}

/// Replaces this process by the executable behind a descriptor. Returns only on failure.
pub(crate) fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> io::Error {
    // SAFETY: `pointers` made null-terminated arrays of strings that outlive the call.
    unsafe { execveat(fd.as_raw_fd(), &pointers(argv), &pointers(envp)) }
}

/// Replaces this process by the program at `path`. Returns only on failure.
pub(crate) fn exec_path(path: &CString, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: null-terminated arrays of strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Every signal back to its default action, none blocked: Rust's runtime ignores SIGPIPE, and a
/// program must not inherit that.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: setting a default action or an empty mask installs no code of ours; numbers
        // that cannot be changed (KILL, STOP, libc's own) just fail.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: as above; the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Blocks these signals and returns a descriptor that becomes readable for them.
pub(crate) fn signal_fd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; signalfd makes a fresh descriptor.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes one pending signal of these, blocked ones, off the queue; false when there is none. Unlike
/// reading it from [`signal_fd`] this does not count as bytes read.
pub(crate) fn take_signal(signals: &[libc::c_int]) -> bool {
    // SAFETY: the set is initialised before use; no information about the signal is asked for; a
    // time-out of zero never waits.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        let at_once: libc::timespec = zeroed();
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const at_once) > 0
    }
}

/// Stops a child, so that it stands still; false when it has ended, or did not stop in time.
pub(crate) fn stop(pid: i32, pidfd: &OwnedFd, time: Duration) -> bool {
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    const LOOK: Duration = Duration::from_micros(50);
    let Some(pid) = Pid::from_raw(pid) else { return false };
    if pidfd_send_signal(pidfd, Signal::STOP).is_err() {
        return false;
    }
    let how = WaitIdOptions::STOPPED
        | WaitIdOptions::EXITED
        | WaitIdOptions::NOWAIT
        | WaitIdOptions::NOHANG;
    let until = Instant::now() + time;
    while Instant::now() < until {
        match waitid(WaitId::Pid(pid), how) {
            Ok(Some(status)) => return status.stopped(),
            Ok(None) | Err(rustix::io::Errno::INTR) => std::thread::sleep(LOOK),
            Err(_) => return false,
        }
    }
    false
}

/// Kills every process that this one may signal, but itself. For the first process of a PID
/// namespace, whose namespace is all that it can reach; anywhere else it does nothing.
pub(crate) fn kill_others() {
    // SAFETY: neither call touches memory; the check keeps the signal inside the namespace.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, libc::SIGKILL);
        }
    }
}

/// Waits until a child has ended and leaves it to be reaped: what the kernel counted for it can
/// still be read.
pub(crate) fn await_end(pid: i32) -> io::Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let how = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    rustix::io::retry_on_intr(|| rustix::process::waitid(rustix::process::WaitId::Pid(pid), how))?;
    Ok(())
}

/// Puts these in the place of the three standard streams.
pub(crate) fn replace_streams(fds: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for (target, fd) in (0..).zip(fds) {
        // SAFETY: dup2 touches no memory; nothing in this process owns descriptors 0 to 2 as an
        // `OwnedFd` (they are only ever used through the standard streams).
        check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into())?;
    }
    Ok(())
}

/// A child that is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    /// Its pid, free to be used again from now on.
    pub(crate) pid: i32,
    /// The raw wait status.
    pub(crate) status: i32,
    /// User and system time of it and of all descendants it waited for.
    pub(crate) cpu: Duration,
    /// Largest resident set of any one process of them, bytes.
    pub(crate) peak_rss: u64,
}

/// Reaps `pid` (-1: any child). Without `block`, `None` when none has ended.
pub(crate) fn reap(pid: i32, block: bool) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    // SAFETY: all-zero is a valid `rusage`; both out-pointers live during the call.
    let (got, usage) = unsafe {
        let mut usage: libc::rusage = zeroed();
        (libc::wait4(pid, &raw mut status, flags, &raw mut usage), usage)
    };
    match got {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Reaped {
            pid,
            status,
            cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
            peak_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        })),
    }
}

fn duration(t: libc::timeval) -> Duration {
    Duration::new(
        u64::try_from(t.tv_sec).unwrap_or(0),
        u32::try_from(t.tv_usec).unwrap_or(0) * 1000,
    )
}
