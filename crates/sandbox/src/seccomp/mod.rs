//! The system-call allow-list as a classic BPF program.
//!
//! Pipeline: names ─► numbers ─► ranges ─► binary search tree ─► `sock_filter`s, built once.
//! A tree keeps the worst case at a dozen instructions; the kernel evaluates the filter for
//! every call number when it is loaded, so a linear list would cost a third of a millisecond at
//! each start.
//!
//! Invariants:
//! 1. What is not named is refused with `EPERM`; a foreign architecture or the x32 numbers kill.
//! 2. Arguments are compared in 32 bits where the kernel reads 32 bits (ioctl requests, socket
//!    families), so that high garbage bits cannot slip past.
//! 3. A program that reports hands calls to whoever holds its descriptor (`spawner::operations`)
//!    instead of allowing executions and connections or refusing sockets; it allows nothing that
//!    the other one refuses, for what is handed over is refused as well.
//! 4. No set-uid or set-gid bit can be put on a file: in folders that belong to root on disk it
//!    would outlive the sandbox.

mod build;
mod oci;
mod reader;
mod role;
mod table;

pub(crate) use build::{decode, encode, program_of};
pub(crate) use oci::profile as oci_profile;
pub(crate) use reader::rules as reader_rules;
pub(crate) use role::rules as role_rules;

use libc::c_long;

/// What an allowed call's arguments must satisfy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Always allowed.
    Allow,
    /// `ENOSYS`.
    NotImplemented,
    /// Argument `.0` must have none of the bits `.1`.
    NoBits(u8, u32),
    /// Of argument `.0` the bits `.1` must not be exactly `.2`.
    NotThese(u8, u32, u32),
    /// Argument `.0` must be one of these.
    OneOf(u8, &'static [u32]),
    /// Argument `.0` must be none of these.
    NoneOf(u8, &'static [u32]),
    /// Argument 0 must be this, and argument 1 not the first process.
    OfOthers(u32),
    /// A `clone` that makes a thread, and neither a process nor a namespace.
    Thread,
    /// `AF_NETLINK` only with protocol 0 (route), else one of the plain families, and raw ones
    /// never.
    Socket,
    /// As [`Rule::Socket`], and what is refused is reported.
    ReportedSocket,
    /// Reported, and carried out or refused by whoever is told.
    Reported,
}

/// `CLONE_NEW*`, all that `clone` can be given.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// `CLONE_THREAD`.
const THREAD: u32 = 0x0001_0000;
/// S_ISUID | S_ISGID.
const SET_ID_BITS: u32 = 0o6000;
/// `TIOCSTI` and `TIOCLINUX` type into the terminal; `TIOCSETD` loads line disciplines;
/// `FS_IOC_SETFLAGS`-like requests stay, the file system checks them.
const IOCTLS: &[u32] = &[0x5412, 0x541c, 0x5423];
/// PER_LINUX and "tell me".
const PERSONALITIES: &[u32] = &[0, 0xffff_ffff];
/// AF_UNIX for socketpair.
const PAIRS: &[u32] = &[1];
/// `PR_SET_MM` lets a process pose as another, `PR_MCE_KILL` and `PR_SET_TSC` change what the
/// machine does, `PR_SET_PTRACER` opens a process to another.
const PRCTLS: &[u32] = &[35, 33, 26, 0x5961_6d61];
/// The first process of a sandbox, as every process in it sees it; it has one thread. It has the
/// same uid, so whoever set its limits could have the kernel kill it (`RLIMIT_CPU` of 0), with it
/// the sandbox, and for a plain user's spawner the counts that only a process which is still there
/// shows. Whoever set its priority could keep it from running, and so from ending when it is
/// killed.
const FIRST: u32 = 1;
/// As a list.
const FIRST_PROCESS: &[u32] = &[FIRST];
/// `PRIO_PROCESS` of setpriority(2): by group or by user the first process could be meant, too.
const PRIO_PROCESS: u32 = 0;
/// `IOPRIO_WHO_PROCESS` of ioprio_set(2).
const IOPRIO_WHO_PROCESS: u32 = 1;

/// Kinds of sockets of the Internet that see or make whole packets: `SOCK_RAW`, and `SOCK_PACKET`,
/// a way to `AF_PACKET` from before there was one, which musl does not name.
const RAW_KINDS: [u32; 2] = [libc::SOCK_RAW as u32, 10];
/// Bits of the kind of a socket; the rest of the argument is flags.
const SOCKET_KINDS: u32 = 0xf;

/// Calls allowed only with some arguments.
const FILTERED: &[(table::Call, Rule)] = &[
    (("SYS_clone", libc::SYS_clone), Rule::NoBits(0, NEW_NAMESPACES)),
    (("SYS_socket", libc::SYS_socket), Rule::Socket),
    (("SYS_socketpair", libc::SYS_socketpair), Rule::OneOf(0, PAIRS)),
    (("SYS_ioctl", libc::SYS_ioctl), Rule::NoneOf(1, IOCTLS)),
    (("SYS_prctl", libc::SYS_prctl), Rule::NoneOf(0, PRCTLS)),
    (("SYS_prlimit64", libc::SYS_prlimit64), Rule::NoneOf(0, FIRST_PROCESS)),
    (("SYS_sched_setaffinity", libc::SYS_sched_setaffinity), Rule::NoneOf(0, FIRST_PROCESS)),
    (("SYS_sched_setattr", libc::SYS_sched_setattr), Rule::NoneOf(0, FIRST_PROCESS)),
    (("SYS_sched_setparam", libc::SYS_sched_setparam), Rule::NoneOf(0, FIRST_PROCESS)),
    (("SYS_sched_setscheduler", libc::SYS_sched_setscheduler), Rule::NoneOf(0, FIRST_PROCESS)),
    (("SYS_setpriority", libc::SYS_setpriority), Rule::OfOthers(PRIO_PROCESS)),
    (("SYS_ioprio_set", libc::SYS_ioprio_set), Rule::OfOthers(IOPRIO_WHO_PROCESS)),
    (("SYS_personality", libc::SYS_personality), Rule::OneOf(0, PERSONALITIES)),
    (("SYS_fchmod", libc::SYS_fchmod), Rule::NoBits(1, SET_ID_BITS)),
    (("SYS_fchmodat", libc::SYS_fchmodat), Rule::NoBits(2, SET_ID_BITS)),
    (("SYS_fchmodat2", FCHMODAT2), Rule::NoBits(2, SET_ID_BITS)),
    (("SYS_openat", libc::SYS_openat), Rule::NoBits(3, SET_ID_BITS)),
    // Only FIFOs, sockets and plain files can be made without privilege anyway.
    (("SYS_mknodat", libc::SYS_mknodat), Rule::NoBits(2, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (("SYS_chmod", libc::SYS_chmod), Rule::NoBits(1, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (("SYS_open", libc::SYS_open), Rule::NoBits(2, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (("SYS_creat", libc::SYS_creat), Rule::NoBits(1, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (("SYS_mknod", libc::SYS_mknod), Rule::NoBits(1, SET_ID_BITS)),
];
/// The same number on every architecture (Linux 6.6).
const FCHMODAT2: c_long = 452;

/// Calls that are reported where operations are witnessed. A socket is reported only if it is
/// refused; whom `connect` means stands in memory, where no filter can look.
const REPORTED: &[(c_long, Rule)] = &[
    (libc::SYS_execve, Rule::Reported),
    (libc::SYS_execveat, Rule::Reported),
    (libc::SYS_connect, Rule::Reported),
    (libc::SYS_socket, Rule::ReportedSocket),
];

/// Every call with its rule, as written.
fn written() -> impl Iterator<Item = (table::Call, Rule)> {
    let allowed = table::COMMON.iter().chain(table::ARCHITECTURE).map(|c| (*c, Rule::Allow));
    let missing = table::NOT_IMPLEMENTED.iter().map(|c| (*c, Rule::NotImplemented));
    allowed.chain(missing).chain(FILTERED.iter().copied())
}

/// Every call that has a rule, sorted by number, each once.
pub(crate) fn rules() -> Vec<(u32, Rule)> {
    sorted(written().map(|((_, number), rule)| (number, rule)))
}

/// As [`rules`], where operations are witnessed.
pub(crate) fn reporting_rules() -> Vec<(u32, Rule)> {
    let reported = |number: u32| {
        let same = |(n, _): &&(c_long, Rule)| u32::try_from(*n).is_ok_and(|n| n == number);
        REPORTED.iter().find(same).map(|(_, rule)| *rule)
    };
    rules().into_iter().map(|(n, rule)| (n, reported(n).unwrap_or(rule))).collect()
}

fn sorted(rules: impl Iterator<Item = (c_long, Rule)>) -> Vec<(u32, Rule)> {
    let mut all: Vec<(u32, Rule)> =
        rules.filter_map(|(n, rule)| Some((u32::try_from(n).ok()?, rule))).collect();
    all.sort_by_key(|(n, _)| *n);
    all.dedup_by_key(|(n, _)| *n);
    all
}

/// How many system calls a sandboxed program can reach at all, with some arguments or any.
#[must_use]
pub fn reachable_syscalls() -> usize {
    // Asked for twice at every start; sorting the list each time would cost more than some walls.
    static COUNT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| rules().iter().filter(|(_, rule)| *rule != Rule::NotImplemented).count())
}

/// Every number up to `last` that the filter refuses whatever its arguments, with the error it
/// answers: what a probe that tries all of them compares with.
#[must_use]
pub fn refused_syscalls(last: u32) -> Vec<(u32, i32)> {
    let rules: std::collections::BTreeMap<u32, Rule> = rules().into_iter().collect();
    (0..=last)
        .filter_map(|number| match rules.get(&number) {
            None => Some((number, libc::EPERM)),
            Some(Rule::NotImplemented) => Some((number, libc::ENOSYS)),
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
