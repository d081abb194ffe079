//! The floor that start-up is measured against: the least that any sandbox with these namespaces
//! must do. Not a sandbox; only benches call it.

use crate::sys;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Bare `clone3` with mount, PID, network, IPC and UTS namespaces (and user, when not root), a
/// tmpfs with `/usr` as root by `pivot_root`, then exec of `image` with `argv`. Returns the pid.
/// The calling process must have one thread.
///
/// # Errors
/// When `clone3` fails.
pub fn start(image: &OwnedFd, argv: &[CString], scratch: &Path) -> io::Result<i32> {
    let mut flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if !rustix::process::geteuid().is_root() {
        flags |= libc::CLONE_NEWUSER;
    }
    if let Some((pid, _)) = sys::fork_into(flags)? {
        return Ok(pid);
    }
    if root(scratch).is_ok() {
        sys::exec_fd(std::os::fd::AsFd::as_fd(image), argv, &[]);
    }
    std::process::exit(125)
}

fn root(scratch: &Path) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", scratch, "tmpfs", MountFlags::NOSUID, None)?;
    std::fs::create_dir(scratch.join("usr"))?;
    mount_bind_recursive("/usr", scratch.join("usr"))?;
    rustix::process::chdir(scratch)?;
    rustix::process::pivot_root(".", ".")?;
    Ok(unmount(".", UnmountFlags::DETACH)?)
}

/// Waits for a process of [`start`] to end.
///
/// # Errors
/// When there is no such child.
pub fn wait(pid: i32) -> io::Result<()> {
    sys::reap(pid, true).map(drop)
}

/// The very filter that a sandbox loads whose operations are not witnessed, as the kernel's
/// `struct sock_filter`s one after the other: what a floor in another language loads too.
#[must_use]
pub fn filter() -> Vec<u8> {
    const LENGTH: usize = size_of::<u64>();
    let all = crate::seccomp::encode();
    let Some((length, programs)) = all.split_first_chunk::<LENGTH>() else { return Vec::new() };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    programs.get(..length).unwrap_or_default().to_vec()
}
