//! A process that reads other processes' memory for the one that made it (process_vm_readv(2)), and
//! does nothing else.
//!
//! A read waits for the lock of the other's address space (`mmap_lock`), and nothing breaks that
//! off, not even a signal that kills: one thread of that process can hold the lock for a minute.
//! Whoever has others to serve therefore reads by another process, which it can give up.
//!
//! Pipeline: `make_reader` (clone3, confined) ─► request (thread, pieces) ─► read ─► result, bytes.
//!
//! It makes async-signal-safe calls only, for all its life: whoever makes it may have threads.

use super::process::clone3;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Most pieces of one request.
pub(crate) const PIECES_MAX: usize = 128;
/// Most bytes of one answer.
pub(crate) const READ_BYTES_MAX: usize = 32 << 10;
/// Numbers of one request: the thread, and address and length of each piece.
const NUMBERS_MAX: usize = 1 + 2 * PIECES_MAX;
/// `CAP_SYS_PTRACE`: as root it reads by this one.
const MAY_TRACE: u32 = 1 << 19;
/// It could not be confined, or nobody asks it any more.
const EXIT: i32 = 1;

/// A reader, as its maker knows it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// One packet a request, one an answer. It ends when this is closed.
    pub(crate) socket: OwnedFd,
}

/// A request as its packet: at most [`PIECES_MAX`] pieces (address, length).
pub(crate) fn request(thread: i32, pieces: &[(u64, usize)]) -> Vec<u8> {
    let pieces = pieces.iter().flat_map(|(at, len)| [*at, *len as u64]);
    [thread as u64].into_iter().chain(pieces).flat_map(u64::to_ne_bytes).collect()
}

/// Makes one. It holds its socket and nothing else, keeps of its maker's rights the one to trace,
/// makes the calls of `filter`, and dies with the thread that made it.
pub(crate) fn make_reader(filter: &[libc::sock_filter]) -> io::Result<Made> {
    let kind = SocketType::SEQPACKET;
    let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the sets are initialised before use. No handler of the maker may run in the child,
    // where every signal therefore stays blocked; the maker's own mask is put back.
    let before = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let made = clone3(0);
    if matches!(made, Ok(None)) {
        serve(theirs.as_raw_fd(), filter);
    }
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    match made? {
        Some((pid, pidfd)) => Ok(Made { pid, pidfd, socket }),
        // It never comes here.
        None => Err(io::ErrorKind::Other.into()),
    }
}

/// Answers until nobody asks.
fn serve(socket: RawFd, filter: &[libc::sock_filter]) -> ! {
    let mut numbers = [0_u64; NUMBERS_MAX];
    let mut bytes = [0_u8; READ_BYTES_MAX];
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [nothing; PIECES_MAX];
    if !confine(socket, filter) {
        // SAFETY: it ends this process and does not return.
        unsafe { libc::_exit(EXIT) }
    }
    loop {
        // SAFETY: the kernel writes at most the size of `numbers` into it.
        let got = unsafe {
            libc::syscall(libc::SYS_read, socket, numbers.as_mut_ptr(), size_of_val(&numbers))
        };
        let count = usize::try_from(got).unwrap_or(0) / 8;
        let Some((thread, asked)) = numbers.get(..count).and_then(<[u64]>::split_first) else {
            // SAFETY: as above.
            unsafe { libc::_exit(EXIT) }
        };
        let (asked, _) = asked.as_chunks::<2>();
        for (piece, [at, len]) in pieces.iter_mut().zip(asked) {
            piece.iov_base = *at as *mut libc::c_void;
            piece.iov_len = *len as usize;
        }
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let (count, one, none): (libc::c_ulong, libc::c_ulong, libc::c_ulong) =
            (asked.len() as libc::c_ulong, 1, 0);
        let remote = pieces.as_ptr();
        // SAFETY: the kernel writes at most `bytes.len()` bytes into `bytes`; the other addresses
        // are those of another process and are checked by the kernel, which only reads there.
        let read = unsafe {
            let number = libc::SYS_process_vm_readv;
            libc::syscall(number, *thread as i32, &raw const local, one, remote, count, none)
        };
        let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        let result = if read < 0 { -i64::from(failed()) } else { read };
        let there = usize::try_from(result).unwrap_or(0);
        let answer = [
            libc::iovec { iov_base: (&raw const result).cast_mut().cast(), iov_len: 8 },
            libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: there },
        ];
        // SAFETY: both buffers live during the call, which reads them; `there` bytes were written.
        let sent = unsafe { libc::syscall(libc::SYS_writev, socket, answer.as_ptr(), 2) };
        if sent < 0 {
            // SAFETY: as above.
            unsafe { libc::_exit(EXIT) }
        }
    }
}

/// Gives up everything but the socket and the right to trace; whether all of it could be done.
fn confine(socket: RawFd, filter: &[libc::sock_filter]) -> bool {
    let (Ok(own), Ok(len)) = (libc::c_uint::try_from(socket), u16::try_from(filter.len())) else {
        return false;
    };
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let zero: libc::c_ulong = 0;
    let set = |what: libc::c_int, to: libc::c_ulong| {
        // SAFETY: these operations take numbers and touch no memory, but for the name, which is a
        // C string that lives for ever.
        unsafe { libc::syscall(libc::SYS_prctl, what, to, zero, zero, zero) == 0 }
    };
    let close = |first: libc::c_uint, last: libc::c_uint| {
        // SAFETY: this process uses no descriptor but `socket`, and no destructor runs in it.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0 as libc::c_uint) == 0 }
    };
    // What it held it would keep open while it waits: lines whose end others wait for.
    let alone = (own == 0 || close(0, own - 1)) && close(own + 1, libc::c_uint::MAX);
    // SAFETY: the path is a C string that lives for ever.
    let away = unsafe { libc::syscall(libc::SYS_chdir, c"/".as_ptr()) == 0 };
    alone
        && away
        && keep_the_right_to_trace()
        && set(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        && set(libc::PR_SET_NAME, c"memory-reader".as_ptr() as libc::c_ulong)
        && set(libc::PR_SET_DUMPABLE, 0)
        && set(libc::PR_SET_NO_NEW_PRIVS, 1)
        // SAFETY: the kernel copies `len` instructions and checks them; it writes nothing.
        && unsafe {
            let (operation, none) = (libc::SECCOMP_SET_MODE_FILTER, 0 as libc::c_uint);
            libc::syscall(libc::SYS_seccomp, operation, none, &raw const program) == 0
        }
}

fn keep_the_right_to_trace() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0_u32];
    // Two 32-bit halves of effective, permitted, inheritable.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: header and sets have the layout of version 3 (capget(2)) and live during the calls.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) != 0 {
            return false;
        }
        let [[effective, permitted, _], _] = sets;
        sets = [[effective & MAY_TRACE, permitted & MAY_TRACE, 0], [0; 3]];
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0
    }
}
