//! Who the sandbox is: uid, user namespace, capabilities, resource limits.

use crate::sys;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid};
use std::fs;
use std::io;
use std::os::fd::AsFd;

/// Highest capability number of any kernel so far is 40 (CHECKPOINT_RESTORE); the bounding set
/// is read back afterwards, so a newer one would be noticed.
const CAPABILITIES: u32 = 63;

/// Instances of inotify that one sandbox of a plain user may have. The kernel counts them for the
/// user (128 as a rule), whose other programs need some too, and below that for each user namespace
/// (namespaces(7), `/proc/sys/user`). A program has one or two.
const WATCHERS: u32 = 32;

fn write_maps(inside: u32, uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"))
}

/// Plain-user mode: this process is alone in a new user namespace and maps its one id.
pub(super) fn map_caller(inside: u32, caller: (u32, u32)) -> io::Result<()> {
    write_maps(inside, caller.0, caller.1)?;
    // Where somebody made /proc/sys read-only it stays as it was: no report claims this bound.
    let _ = fs::write("/proc/sys/user/max_inotify_instances", WATCHERS.to_string());
    Ok(())
}

/// Root mode: from root to the session's uid, in a user namespace that knows only it. The mounts
/// stay owned by the initial namespace, so not even a capability regained inside could change
/// them.
pub(super) fn become_session(id: u32, inside: u32) -> io::Result<()> {
    if id == 0 {
        return Err(io::Error::other("no session uid was allocated"));
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        // A terminal of the session is the session's: else /dev/stdout could not be opened.
        if rustix::termios::isatty(stream) {
            rustix::fs::fchown(stream, Some(uid), Some(gid))?;
        }
    }
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // Systems that restrict user namespaces still grant them to this capability.
    let admin = CapabilitySet::SYS_ADMIN;
    let sets =
        CapabilitySets { effective: admin, permitted: admin, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    // A changed uid made /proc/self root's; nothing foreign runs in here yet.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    sys::unshare(libc::CLONE_NEWUSER)?;
    write_maps(inside, id, id)
}

/// Empties every set and locks the door behind.
pub(super) fn drop_capabilities() -> io::Result<()> {
    use CapabilitiesSecureBits as Bits;
    for number in 0..=CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities_secure_bits(
        Bits::NO_ROOT
            | Bits::NO_ROOT_LOCKED
            | Bits::NO_SETUID_FIXUP
            | Bits::NO_SETUID_FIXUP_LOCKED
            | Bits::KEEP_CAPS_LOCKED
            | Bits::NO_CAP_AMBIENT_RAISE
            | Bits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Lowers one limit, soft and hard. One that is already lower stays: it cannot be raised
/// without privilege, and lower is safe.
pub(super) fn limit(name: &str, value: u64) -> io::Result<()> {
    let resource = match name {
        "fsize" => Resource::Fsize,
        "nofile" => Resource::Nofile,
        "core" => Resource::Core,
        "nproc" => Resource::Nproc,
        "data" => Resource::Data,
        other => return Err(io::Error::other(format!("unknown limit {other}"))),
    };
    let hard = getrlimit(resource).maximum.map_or(value, |h| h.min(value));
    Ok(setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?)
}

/// The last changes before measuring: unreadable to others, and gone when the spawner goes. Below
/// an engine the parent is the engine's, and the kernel takes the end of any one of its threads for
/// the parent's: there the line alone tells.
pub(super) fn seal(with_parent: bool) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // After the last change of uid, which would have cleared it. That the spawner is still there
    // shows on the line: its end closes with it.
    let signal = with_parent.then_some(Signal::KILL);
    Ok(rustix::process::set_parent_process_death_signal(signal)?)
}
