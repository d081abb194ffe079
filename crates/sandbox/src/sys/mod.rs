//! The system calls that `rustix` does not offer safely. The only module of the project that may
//! say `unsafe`; each block says why it is sound.
//!
//! Invariants:
//! 1. Every function here is safe to call with any argument; wrong ones give an `io::Error`.
//! 2. Between `clone3`/`fork` and `execveat` in a child only async-signal-safe calls are made.
//! 3. No function here decides anything; policy stands in the callers.
#![allow(unsafe_code)]

pub mod attempt;
mod notify;
pub mod probe;
mod process;
mod reader;
mod security;

pub(crate) use notify::{
    Notification, is_listener, is_waiting, let_go, load_reporting_filter, receive, refuse,
    wake_in_turns,
};
pub(crate) use process::{
    Reaped, await_end, clone_exec, cloned_pause, exec_fd, exec_path, fork, fork_into, kill_others,
    reap, replace_streams, reset_signals, signal_fd, stop, take_signal,
};
pub(crate) use reader::{Made, PIECES_MAX, READ_BYTES_MAX, make_reader, request};
pub(crate) use security::{
    bring_up, landlock_abi, load_filter, lock_byte, map_mount, mount_attributes, truncate,
    unlock_byte, unshare,
};

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over an inherited descriptor. Call once for each number; a closed one is an error.
pub(crate) fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD changes a flag and touches no memory; it fails for a closed descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the descriptor is open (checked) and, by this function's contract, owned by no one
    // else in this freshly executed process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor beyond the standard streams. For a freshly executed process only, in
/// which nobody owns one yet.
pub(crate) fn close_inherited() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    let no_flags: libc::c_uint = 0;
    // SAFETY: by this function's contract no `OwnedFd` exists for what is closed; no memory is
    // touched.
    check(unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, no_flags) })
        .map(drop)
}

/// Turns the C convention into a result.
fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
