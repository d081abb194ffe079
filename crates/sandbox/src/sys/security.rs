//! Namespaces, mounts' attributes, filters, locks.

use super::check;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// New namespaces for this (single-threaded) process.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: without CLONE_FILES or CLONE_VM nothing that Rust relies on changes.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Adds `set` to the attributes of a mount (`MOUNT_ATTR_*`), recursively if asked.
pub(crate) fn mount_attributes(fd: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    setattr(fd, set, None, recursive)
}

/// Makes a detached mount id-mapped by the mapping of a user namespace.
pub(crate) fn map_mount(
    fd: BorrowedFd<'_>,
    set: u64,
    userns: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    setattr(fd, set | libc::MOUNT_ATTR_IDMAP, Some(userns), recursive)
}

fn setattr(
    fd: BorrowedFd<'_>,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid `mount_attr`.
    let mut attr: libc::mount_attr = unsafe { zeroed() };
    attr.attr_set = set;
    attr.userns_fd = userns.map_or(0, |u| u.as_raw_fd() as u64);
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string, `attr` lives during the call, its size is true.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// The Landlock ABI of the running kernel; 0 when it is missing or switched off.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: with the version flag the kernel takes no pointer and creates nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

/// Cuts the file at `path` to nothing, by its name alone.
pub(crate) fn truncate(path: &str) -> io::Result<()> {
    let path = std::ffi::CString::new(path)?;
    // SAFETY: the path is a valid C string that outlives the call, which touches no memory.
    check(unsafe { libc::truncate(path.as_ptr(), 0) }.into()).map(drop)
}

/// Puts this thread and all it will become under a filter, for ever.
pub(crate) fn load_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from `filter` (which it does not write to)
    // and checks them before use.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0 as libc::c_uint,
            &raw const program,
        )
    })
    .map(drop)
}

/// Brings a network interface up.
pub(crate) fn bring_up(socket: impl AsFd, name: &str) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives during the call.
    check(
        unsafe {
            libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
        }
        .into(),
    )
    .map(drop)
}

fn lock_request(kind: libc::c_int, byte: u32) -> libc::flock {
    // SAFETY: all-zero is a valid `flock`.
    let mut lock: libc::flock = unsafe { zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte.into();
    lock.l_len = 1;
    lock
}

/// Takes an exclusive lock of one byte that belongs to this open file and dies with it.
/// `false` when another open file holds it.
pub(crate) fn lock_byte(fd: impl AsFd, byte: u32) -> io::Result<bool> {
    let lock = lock_request(libc::F_WRLCK, byte);
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one `flock`, which lives during the call.
    match check(unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) }.into()) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives a lock of [`lock_byte`] back.
pub(crate) fn unlock_byte(fd: impl AsFd, byte: u32) {
    let lock = lock_request(libc::F_UNLCK, byte);
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: as above; unlocking an own lock cannot fail in a way that matters.
    unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) };
}
