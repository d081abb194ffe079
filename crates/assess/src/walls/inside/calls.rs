//! System calls, made raw. Their arguments are such that an open kernel refuses them as wrong
//! (no descriptor, no memory, unknown flags), so that nothing happens where no filter stands.

use super::tools::{at, call, seen};
use super::{Act, Ground};
use crate::walls::{Answer, errno_name};
use libc::c_long;
use sandbox::probe;

/// No descriptor, no process, no memory, every flag.
const BAD: usize = usize::MAX;
/// An address at which nothing can be.
const NOWHERE: usize = 1;
/// A pid that no process has.
const NO_PID: usize = 0x7fff_fffe;
/// What lies above the 32 bits of an argument that the kernel reads.
const HIGH: usize = 1 << 32;

/// A call with its arguments; what is not said is 0.
struct Call {
    name: &'static str,
    number: c_long,
    args: [usize; 6],
}

const fn plain_call(name: &'static str, number: c_long, args: [usize; 6]) -> Call {
    Call { name, number, args }
}

const fn bad(name: &'static str, number: c_long) -> Call {
    plain_call(name, number, [BAD; 6])
}

/// `_IOC` numbers of the terminal (asm-generic/ioctls.h).
const TIOCSTI: usize = 0x5412;
const TIOCLINUX: usize = 0x541c;
const TIOCSETD: usize = 0x5423;
const PR_SET_MM: usize = 35;
const PR_SET_TSC: usize = 26;
const PR_SET_PTRACER: usize = 0x5961_6d61;
const PTRACE_SEIZE: usize = 0x4206;
const ADDR_NO_RANDOMIZE: usize = 0x0004_0000;
const AF_INET: usize = 2;
const AF_NETLINK: usize = 16;
const AF_PACKET: usize = 17;
const AF_ALG: usize = 38;
const AF_VSOCK: usize = 40;
const STREAM: usize = 1;
const RAW: usize = 3;
const SEQPACKET: usize = 5;
/// Every namespace but the user's: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET.
const NAMESPACES: usize = 0x6e02_0000;
const NEW_USER: usize = 0x1000_0000;

const fn netlink(name: &'static str, protocol: usize) -> Call {
    plain_call(name, libc::SYS_socket, [AF_NETLINK, RAW, protocol, 0, 0, 0])
}

/// Calls that every architecture has.
const CALLS: &[Call] = &[
    plain_call("userns-denied", libc::SYS_unshare, [NEW_USER, 0, 0, 0, 0, 0]),
    plain_call("unshare-denied", libc::SYS_unshare, [NAMESPACES, 0, 0, 0, 0, 0]),
    bad("setns-denied", libc::SYS_setns),
    plain_call("clone3-hidden", libc::SYS_clone3, [0; 6]),
    bad("host-name-set-denied", libc::SYS_sethostname),
    bad("domain-name-set-denied", libc::SYS_setdomainname),
    bad("open-tree-denied", libc::SYS_open_tree),
    bad("move-mount-denied", libc::SYS_move_mount),
    bad("fsopen-denied", libc::SYS_fsopen),
    bad("fsconfig-denied", libc::SYS_fsconfig),
    bad("fsmount-denied", libc::SYS_fsmount),
    bad("fspick-denied", libc::SYS_fspick),
    bad("mount-setattr-denied", libc::SYS_mount_setattr),
    plain_call("io-uring-setup", libc::SYS_io_uring_setup, [1, NOWHERE, 0, 0, 0, 0]),
    bad("io-uring-enter", libc::SYS_io_uring_enter),
    bad("io-uring-register", libc::SYS_io_uring_register),
    plain_call("openat2-hidden", libc::SYS_openat2, [0; 6]),
    plain_call("ptrace", libc::SYS_ptrace, [PTRACE_SEIZE, NO_PID, 0, 0, 0, 0]),
    plain_call("ptrace-traceme", libc::SYS_ptrace, [0; 6]),
    bad("process-vm-readv", libc::SYS_process_vm_readv),
    bad("process-vm-writev", libc::SYS_process_vm_writev),
    bad("pidfd-getfd", libc::SYS_pidfd_getfd),
    plain_call("kcmp", libc::SYS_kcmp, [NO_PID, NO_PID, 0, 0, 0, 0]),
    bad("bpf", libc::SYS_bpf),
    bad("perf-event-open", libc::SYS_perf_event_open),
    bad("userfaultfd", libc::SYS_userfaultfd),
    bad("keyctl", libc::SYS_keyctl),
    bad("add-key", libc::SYS_add_key),
    bad("request-key", libc::SYS_request_key),
    bad("kexec-load", libc::SYS_kexec_load),
    bad("kexec-file-load", KEXEC_FILE_LOAD),
    plain_call("init-module", libc::SYS_init_module, [0; 6]),
    bad("finit-module", libc::SYS_finit_module),
    bad("delete-module", libc::SYS_delete_module),
    plain_call("tiocsti", libc::SYS_ioctl, [BAD, TIOCSTI, NOWHERE, 0, 0, 0]),
    plain_call("tiocsti-high-bits", libc::SYS_ioctl, [BAD, TIOCSTI | HIGH, NOWHERE, 0, 0, 0]),
    plain_call("tioclinux", libc::SYS_ioctl, [BAD, TIOCLINUX, NOWHERE, 0, 0, 0]),
    plain_call("tiocsetd", libc::SYS_ioctl, [BAD, TIOCSETD, NOWHERE, 0, 0, 0]),
    plain_call("personality", libc::SYS_personality, [ADDR_NO_RANDOMIZE, 0, 0, 0, 0, 0]),
    plain_call("prctl-set-mm", libc::SYS_prctl, [PR_SET_MM, BAD, BAD, BAD, BAD, 0]),
    plain_call("prctl-set-ptracer", libc::SYS_prctl, [PR_SET_PTRACER, 0, 0, 0, 0, 0]),
    plain_call("prctl-set-tsc", libc::SYS_prctl, [PR_SET_TSC, BAD, 0, 0, 0, 0]),
    bad("quotactl", libc::SYS_quotactl),
    bad("quotactl-fd", QUOTACTL_FD),
    bad("swapon", libc::SYS_swapon),
    bad("swapoff", libc::SYS_swapoff),
    bad("reboot", libc::SYS_reboot),
    plain_call("settimeofday", libc::SYS_settimeofday, [NOWHERE, NOWHERE, 0, 0, 0, 0]),
    plain_call("clock-settime", libc::SYS_clock_settime, [0, NOWHERE, 0, 0, 0, 0]),
    plain_call("clock-adjtime", libc::SYS_clock_adjtime, [0, NOWHERE, 0, 0, 0, 0]),
    plain_call("adjtimex", libc::SYS_adjtimex, [NOWHERE, 0, 0, 0, 0, 0]),
    plain_call("acct", libc::SYS_acct, [NOWHERE, 0, 0, 0, 0, 0]),
    bad("name-to-handle-at", libc::SYS_name_to_handle_at),
    bad("open-by-handle-at", libc::SYS_open_by_handle_at),
    bad("lookup-dcookie", libc::SYS_lookup_dcookie),
    bad("nfsservctl", libc::SYS_nfsservctl),
    bad("syslog", libc::SYS_syslog),
    bad("fanotify-init", libc::SYS_fanotify_init),
    bad("fanotify-mark", libc::SYS_fanotify_mark),
    bad("memfd-secret", MEMFD_SECRET),
    bad("move-pages", libc::SYS_move_pages),
    plain_call("migrate-pages", libc::SYS_migrate_pages, [NO_PID, 0, 0, 0, 0, 0]),
    bad("process-mrelease", PROCESS_MRELEASE),
    plain_call("io-setup", libc::SYS_io_setup, [0, NOWHERE, 0, 0, 0, 0]),
    bad("remap-file-pages", libc::SYS_remap_file_pages),
    bad("statmount", STATMOUNT),
    bad("listmount", LISTMOUNT),
    bad("lsm-set-self-attr", LSM_SET_SELF_ATTR),
    plain_call("af-packet", libc::SYS_socket, [AF_PACKET, RAW, 0, 0, 0, 0]),
    plain_call("af-vsock", libc::SYS_socket, [AF_VSOCK, STREAM, 0, 0, 0, 0]),
    plain_call("af-alg", libc::SYS_socket, [AF_ALG, SEQPACKET, 0, 0, 0, 0]),
    netlink("netlink-audit", 9),
    netlink("netlink-uevent", 15),
    netlink("netlink-netfilter", 12),
    netlink("netlink-generic", 16),
    netlink("netlink-sock-diag", 4),
    netlink("netlink-xfrm", 6),
    plain_call("socket-high-bits", libc::SYS_socket, [AF_NETLINK | HIGH, RAW, 9, 0, 0, 0]),
    plain_call("socketpair-families", libc::SYS_socketpair, [AF_INET, STREAM, 0, NOWHERE, 0, 0]),
    plain_call("setuid-root-denied", libc::SYS_setresuid, [0; 6]),
    plain_call("setgid-root-denied", libc::SYS_setresgid, [0; 6]),
    plain_call("setgroups-call-denied", libc::SYS_setgroups, [0; 6]),
    plain_call("nice-denied", libc::SYS_setpriority, [0, 0, (-20_isize).cast_unsigned(), 0, 0, 0]),
    plain_call("ioprio-realtime-denied", libc::SYS_ioprio_set, [1, 0, REALTIME, 0, 0, 0]),
];

/// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_RT, 0)` (linux/ioprio.h).
const REALTIME: usize = 1 << 13;
/// The same numbers on every architecture (linux/syscalls.h); the last three are newer than
/// what libc names.
const QUOTACTL_FD: c_long = 443;
const MEMFD_SECRET: c_long = 447;
const PROCESS_MRELEASE: c_long = 448;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_SET_SELF_ATTR: c_long = 460;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;

/// Calls that only x86_64 has.
const OLD: [&str; 7] =
    ["iopl", "ioperm", "modify-ldt", "uselib", "ustat", "sysfs-call", "sysctl-call"];

#[cfg(target_arch = "x86_64")]
fn old(name: &str) -> Answer {
    let number = match name {
        "iopl" => libc::SYS_iopl,
        "ioperm" => libc::SYS_ioperm,
        "modify-ldt" => libc::SYS_modify_ldt,
        "uselib" => libc::SYS_uselib,
        "ustat" => libc::SYS_ustat,
        "sysfs-call" => libc::SYS_sysfs,
        _ => libc::SYS__sysctl,
    };
    call(number, [BAD; 6])
}
#[cfg(not(target_arch = "x86_64"))]
fn old(_: &str) -> Answer {
    Answer::Absent("this architecture has no such call".into())
}

/// Calls that need more than a number and six words.
pub(super) const ACTS: &[(&str, Act)] = &[
    ("clone-userns-denied", |_| clone(NEW_USER)),
    ("clone-ns-denied", |_| clone(NAMESPACES)),
    ("clone-high-bits-denied", |_| clone(NEW_USER | HIGH)),
    ("seccomp-sweep", |_| sweep()),
    ("x32-killed", |_| x32()),
    ("i386-killed", |_| i386()),
    ("mount-tmpfs-denied", |_| mount(c"none", GONE, Some(c"tmpfs"), 0, None)),
    ("mount-proc-denied", |_| mount(c"none", GONE, Some(c"proc"), 0, None)),
    ("mount-bind-denied", |_| mount(c"/usr", GONE, None, MS_BIND, None)),
    ("mount-remount-denied", |_| mount(c"none", GONE, None, MS_REMOUNT | MS_BIND, None)),
    ("mount-move-denied", |_| mount(c"/tmp", GONE, None, MS_MOVE, None)),
    ("mount-overlay-denied", |_| mount(c"none", GONE, Some(c"overlay"), 0, None)),
    ("mount-propagation-denied", |_| mount(c"none", GONE, None, MS_SHARED, None)),
    ("release-agent-denied", |_| mount(c"none", GONE, Some(c"cgroup"), 0, None)),
    ("umount-denied", |_| call(libc::SYS_umount2, [at(GONE), DETACH, 0, 0, 0, 0])),
    ("pivot-root-denied", |_| call(libc::SYS_pivot_root, [at(GONE), at(GONE), 0, 0, 0, 0])),
    ("chroot-denied", |_| call(libc::SYS_chroot, [at(c"/tmp"), 0, 0, 0, 0, 0])),
    ("init-ptrace", init_ptrace),
];

/// A place that there is not: without a filter the kernel gets as far as looking for it, and
/// nothing is mounted, moved or taken away even where root runs this on a bare host.
const GONE: Text = c"/no-such-folder-of-any-machine";
const MS_REMOUNT: usize = 32;
const MS_BIND: usize = 4_096;
const MS_MOVE: usize = 8_192;
const MS_SHARED: usize = 1 << 20;
const DETACH: usize = 2;

type Text = &'static std::ffi::CStr;

fn mount(
    source: Text,
    target: Text,
    kind: Option<Text>,
    flags: usize,
    data: Option<Text>,
) -> Answer {
    let or_null = |text: Option<Text>| text.map_or(0, at);
    let args = [at(source), at(target), or_null(kind), flags, or_null(data), 0];
    call(libc::SYS_mount, args)
}

fn clone(flags: usize) -> Answer {
    match probe::clone(flags as u64) {
        Ok(_) => Answer::Done("a process was made in it".into()),
        Err(code) => Answer::Errno(code),
    }
}

fn init_ptrace(ground: &Ground) -> Answer {
    let pid = usize::try_from(ground.bait.init).unwrap_or(NO_PID);
    call(libc::SYS_ptrace, [PTRACE_SEIZE, pid, 0, 0, 0, 0])
}

/// The plain call of that name, ready to be made.
pub(super) fn plain(name: &str) -> Option<impl Fn() -> Answer + use<>> {
    let known = CALLS.iter().find(|c| c.name == name);
    let old_name = OLD.iter().copied().find(|n| *n == name);
    let found = known.is_some() || old_name.is_some();
    found.then_some(move || match (known, old_name) {
        (Some(c), _) => call(c.number, c.args),
        (None, name) => old(name.unwrap_or_default()),
    })
}

/// Names of all of those.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CALLS.iter().map(|c| c.name).chain(OLD)
}

/// Above the last number of any kernel so far.
const SWEEP_LAST: u32 = 512;
/// `vhangup` acts without an argument. `uretprobe` and `uprobe` the kernel lets pass every filter
/// (Linux 6.14); they do something only where the kernel itself put them.
const NOT_SWEPT: [c_long; 3] = [libc::SYS_vhangup, 335, 336];

/// Stops at the first call that is not answered as the filter's rule says.
fn sweep() -> Answer {
    let mut count = 0;
    for (number, errno) in sandbox::refused_syscalls(SWEEP_LAST) {
        if NOT_SWEPT.contains(&c_long::from(number)) {
            continue;
        }
        count += 1;
        match probe::raw(number.into(), [BAD; 6]) {
            Err(code) if code == errno => {}
            Err(code) => {
                let told = format!("number {number} came as far as {}", errno_name(code));
                return Answer::Tripped(told);
            }
            Ok(_) => return Answer::Tripped(format!("number {number} was carried out")),
        }
    }
    seen(count > 0, format!("{count} numbers, each refused as its rule says"))
}

/// `getpid` by its x32 number (asm/unistd.h: `__X32_SYSCALL_BIT`).
fn x32() -> Answer {
    const BIT: c_long = 0x4000_0000;
    if cfg!(target_arch = "x86_64") {
        return call(BIT | libc::SYS_getpid, [0; 6]);
    }
    Answer::Absent("this architecture has no such numbers".into())
}

fn i386() -> Answer {
    if !cfg!(target_arch = "x86_64") {
        return Answer::Absent("this architecture has no such entry".into());
    }
    match probe::entry_32_bit() {
        Ok(value) => Answer::Done(format!("the call answered {value}")),
        Err(code) => Answer::Errno(code),
    }
}
