//! Seccomp user notifications (seccomp_unotify(2)).

use super::check;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Wakes whoever waits on the same CPU and at once: both sides take turns anyway (Linux 6.6).
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` of linux/seccomp.h.
const SYNC_WAKE_UP: u64 = 1;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notification {
    /// Names it to the kernel.
    pub(crate) id: u64,
    /// The thread that made it, as this process sees it.
    pub(crate) thread: i32,
    /// Number of the call.
    pub(crate) number: libc::c_long,
    /// Its arguments, as they were in the registers.
    pub(crate) arguments: [u64; 6],
}

/// Puts this thread and all it will become under a filter, for ever, and returns the descriptor
/// at which the calls that the filter hands over are answered.
pub(crate) fn load_reporting_filter(filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // A call that was received is not broken off by a signal's handler, so that none is reported
    // twice (Linux 5.19; the argument is invalid before).
    match load(filter, listen | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => load(filter, listen),
        result => result,
    }
}

fn load(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies `len` instructions from `filter` (which it does not write to) and
    // checks them before use.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) })?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: with the flag for a listener the call returns a fresh descriptor (close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this is such a descriptor: only those know that nothing has the number 0.
pub(crate) fn is_listener(fd: BorrowedFd<'_>) -> bool {
    let id = 0_u64;
    // SAFETY: the request reads one u64, which lives during the call.
    let answer = check(
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) }
            .into(),
    );
    answer.is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT))
}

/// Asks for wake-ups on the same CPU; kernels that cannot do it go on without.
pub(crate) fn wake_in_turns(listener: BorrowedFd<'_>) {
    let number = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
    // SAFETY: the flags are passed by value; no memory is touched.
    unsafe { libc::ioctl(listener.as_raw_fd(), number, SYNC_WAKE_UP) };
}

/// Takes the next call. `None` when whoever made it is gone already. Waits when none is there.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: all-zero is a valid `seccomp_notif`, and the only one the kernel takes.
    let mut got: libc::seccomp_notif = unsafe { zeroed() };
    let number = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the request carries the size of `seccomp_notif`; the kernel writes one of these.
    match check(unsafe { libc::ioctl(listener.as_raw_fd(), number, &raw mut got) }.into()) {
        Ok(_) => Ok(Some(Notification {
            id: got.id,
            thread: i32::try_from(got.pid).unwrap_or(0),
            number: got.data.nr.into(),
            arguments: got.data.args,
        })),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the call still waits: if so, what was read just before was read from its thread, and
/// not from another that has its number by now.
pub(crate) fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    let number = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
    // SAFETY: the request reads one u64, which lives during the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), number, &raw const id) }.into()).is_ok()
}

/// Lets the kernel carry the call out as if nothing had been asked.
pub(crate) fn let_go(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    // 1, so it fits.
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    respond(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags })
}

/// Answers the call with an error; it is not carried out.
pub(crate) fn refuse(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let error = -errno.abs();
    respond(listener, libc::seccomp_notif_resp { id, val: 0, error, flags: 0 })
}

fn respond(listener: BorrowedFd<'_>, mut answer: libc::seccomp_notif_resp) -> io::Result<()> {
    let number = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the request carries the size of `seccomp_notif_resp`, which lives during the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), number, &raw mut answer) }.into()).map(drop)
}
