//! System calls that must not reach the kernel.

use super::{Expect::*, Open::*, Probe, Wall::SystemCalls, When::*, row};
use libc::{ENOSYS, EPERM, SIGSEGV, SIGSYS};

const NO: super::Expect = Refused(&[EPERM]);
const UNKNOWN: super::Expect = Refused(&[ENOSYS]);

const fn call(name: &'static str, act: &'static str) -> Probe {
    row(name, SystemCalls, act, NO, Plain, Inside)
}

/// One that without a filter needs the host's root to come any further.
const fn roots(name: &'static str, act: &'static str) -> Probe {
    row(name, SystemCalls, act, NO, Root, Inside)
}

/// One of the quick battery.
const fn first(name: &'static str, act: &'static str) -> Probe {
    row(name, SystemCalls, act, NO, Plain, Start)
}

pub(super) const CALLS: &[Probe] = &[
    row(
        "seccomp-sweep",
        SystemCalls,
        "every number that is not allowed, one after the other",
        Seen("each refused as its rule says"),
        Plain,
        Start,
    ),
    row("x32-killed", SystemCalls, "a call by its x32 number", Killed(&[SIGSYS]), Plain, Start),
    // Where the kernel has no such entry at all, the processor refuses it.
    row(
        "i386-killed",
        SystemCalls,
        "a call by the 32-bit entry (int 0x80)",
        Killed(&[SIGSYS, SIGSEGV]),
        Plain,
        Start,
    ),
    row(
        "io-uring-setup",
        SystemCalls,
        "make an io_uring, whose operations no filter sees",
        UNKNOWN,
        Plain,
        Start,
    ),
    row("io-uring-enter", SystemCalls, "use an io_uring", UNKNOWN, Plain, Inside),
    row("io-uring-register", SystemCalls, "register with an io_uring", UNKNOWN, Plain, Inside),
    row(
        "openat2-hidden",
        SystemCalls,
        "openat2, whose flags no filter sees",
        UNKNOWN,
        Plain,
        Inside,
    ),
    first("ptrace", "trace another process"),
    call("ptrace-traceme", "be traced by its parent"),
    first("process-vm-readv", "read another process's memory"),
    call("process-vm-writev", "write another process's memory"),
    first("pidfd-getfd", "take a descriptor of another process"),
    call("kcmp", "compare what two processes share"),
    roots("bpf", "load a program into the kernel (bpf)"),
    first("perf-event-open", "measure other processes (perf_event_open)"),
    first("userfaultfd", "stop the kernel in the middle of a copy (userfaultfd)"),
    first("keyctl", "use the kernel's keyrings (keyctl)"),
    call("add-key", "put a key into a keyring"),
    call("request-key", "have the host start a program for a key"),
    roots("kexec-load", "boot another kernel (kexec_load)"),
    roots("kexec-file-load", "boot another kernel (kexec_file_load)"),
    roots("init-module", "load a kernel module"),
    roots("finit-module", "load a kernel module from a file"),
    roots("delete-module", "unload a kernel module"),
    first("tiocsti", "type into a terminal (TIOCSTI)"),
    call("tiocsti-high-bits", "the same below bits the kernel ignores"),
    call("tioclinux", "paste into a console (TIOCLINUX)"),
    call("tiocsetd", "load a line discipline (TIOCSETD)"),
    call("personality", "switch address randomisation off"),
    call("prctl-set-mm", "pose as another program (PR_SET_MM)"),
    call("prctl-set-ptracer", "open itself to another's tracing (PR_SET_PTRACER)"),
    call("prctl-set-tsc", "change how time is read (PR_SET_TSC)"),
    call("quotactl", "change quotas"),
    call("quotactl-fd", "change quotas by a descriptor"),
    call("swapon", "swap to a file"),
    roots("swapoff", "switch swapping off"),
    row("reboot", SystemCalls, "restart the machine", NO, Capable, Inside),
    call("settimeofday", "set the clock"),
    call("clock-settime", "set a clock"),
    call("clock-adjtime", "adjust a clock"),
    call("adjtimex", "adjust the clock"),
    roots("acct", "account all processes to a file"),
    call("iopl", "reach I/O ports (iopl)"),
    call("ioperm", "reach I/O ports (ioperm)"),
    call("name-to-handle-at", "get a file's handle"),
    row("open-by-handle-at", SystemCalls, "open any file by its handle", NO, Root, Start),
    roots("lookup-dcookie", "find a path by its cookie"),
    call("nfsservctl", "speak to the kernel's NFS server"),
    call("modify-ldt", "change segments (modify_ldt)"),
    call("uselib", "map a library the old way"),
    call("ustat", "ask of a file system by its device"),
    call("sysfs-call", "list file systems the old way"),
    call("sysctl-call", "change the kernel's settings the old way"),
    roots("syslog", "read the kernel's log"),
    roots("fanotify-init", "watch all of a file system"),
    call("fanotify-mark", "choose what to watch"),
    call("memfd-secret", "hide memory from the kernel"),
    call("move-pages", "move another process's memory"),
    call("migrate-pages", "move all memory of a process"),
    call("process-mrelease", "take a dying process's memory"),
    call("io-setup", "asynchronous I/O in the kernel"),
    call("remap-file-pages", "remap pages the old way"),
    call("statmount", "ask of mounts elsewhere"),
    call("listmount", "list mounts elsewhere"),
    call("lsm-set-self-attr", "change its security label"),
];
