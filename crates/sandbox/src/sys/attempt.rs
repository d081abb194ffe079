//! Acts that the walls must refuse, as safe calls: what probes try from inside.

use super::check;
use std::io;

/// Attaches to a process as a debugger would, and lets go again at once.
///
/// # Errors
/// With the kernel's answer when it refuses (ptrace(2)).
pub fn ptrace_attach(pid: i32) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes a pid and no memory of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) })?;
    // SAFETY: as above; detaching ends what seizing began, whatever it answers.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, none) };
    Ok(())
}

/// Makes a user namespace, in which the caller would have every capability.
///
/// # Errors
/// With the kernel's answer when it refuses (unshare(2)).
pub fn new_user_namespace() -> io::Result<()> {
    super::unshare(libc::CLONE_NEWUSER)
}

/// Sets up an `io_uring`, whose operations no system-call filter sees.
///
/// # Errors
/// With the kernel's answer when it refuses (io_uring_setup(2)).
pub fn io_uring() -> io::Result<()> {
    // `struct io_uring_params` has 120 bytes (linux/io_uring.h); zero means all defaults.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes at most the 120 bytes of the buffer.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, parameters.as_mut_ptr()) })?;
    // SAFETY: the descriptor was made just now and is closed once.
    unsafe { libc::close(i32::try_from(fd).unwrap_or(-1)) };
    Ok(())
}

/// Asks the kernel to execute a program without a name, which it can never do: who may execute
/// hears that there is no such file, who may not, that it is not permitted.
///
/// # Errors
/// Always, with the kernel's answer (execve(2)).
pub fn exec_nothing() -> io::Result<()> {
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: an empty path names no file, so the call cannot replace this process; path and the
    // two empty, null-terminated lists live during the call.
    check(unsafe { libc::execve(c"".as_ptr(), none.as_ptr(), none.as_ptr()) }.into()).map(drop)
}

/// Takes the place of whoever is told of this process' system calls: a filter that reports to a
/// descriptor of its own. There can be only one in a process and its forebears. Where it is
/// permitted it stays, for ever, with this process.
///
/// # Errors
/// With the kernel's answer when it refuses (seccomp(2)).
pub fn listen_to_own_calls() -> io::Result<()> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let k = libc::SECCOMP_RET_ALLOW;
    rustix::thread::set_no_new_privs(true)?;
    super::load_reporting_filter(&[libc::sock_filter { code: RETURN, jt: 0, jf: 0, k }]).map(drop)
}
