//! Files of the host and of the kernel.

use super::{Expect::*, Open::*, Probe, Wall::Files, When::*, row};
use libc::{EACCES, ENOENT, EOPNOTSUPP, EPERM, EROFS, EXDEV};

const GONE: super::Expect = Refused(&[ENOENT]);
const NO: super::Expect = Refused(&[EPERM]);

/// An entry of `/proc` that tells of or changes the host.
const fn masked(name: &'static str, act: &'static str) -> Probe {
    row(name, Files, act, Seen("covered by nothing"), Plain, Start)
}

pub(super) const FILES: &[Probe] = &[
    row("host-file", Files, "read a file of the host", GONE, Staged, Inside),
    row("cwd-escape", Files, "climb out of the working directory by ..", GONE, Staged, Inside),
    row(
        "leaked-directory-fd",
        Files,
        "climb out by a directory that was left open",
        Seen("no way leads to it"),
        Staged,
        Inside,
    ),
    row("symlink-escape", Files, "read a file of the host by a link", GONE, Staged, Inside),
    row(
        "symlink-swap-race",
        Files,
        "swap a folder for a link while it is opened",
        Seen("never reached it"),
        Staged,
        Inside,
    ),
    row("host-accounts", Files, "open /etc/shadow", GONE, Plain, Start),
    row("home-of-root", Files, "look into /root", GONE, Plain, Inside),
    row(
        "root-listing",
        Files,
        "find something in / that nobody planned",
        Seen("nothing"),
        Plain,
        Start,
    ),
    row(
        "sysfs-absent",
        Files,
        "look into /sys",
        Seen("not there, or covered by nothing"),
        Plain,
        Start,
    ),
    row(
        "dev-minimal",
        Files,
        "find a device nobody planned",
        Seen("harmless devices only"),
        Plain,
        Start,
    ),
    row("dev-kernel-log", Files, "open the kernel's log (/dev/kmsg)", GONE, Plain, Inside),
    row("dev-disks", Files, "find a disk in /dev", Seen("no block device"), Staged, Inside),
    row("device-node-block", Files, "make a node of a disk", NO, Root, Inside),
    row("device-node-char", Files, "make a node of the machine's memory", NO, Root, Inside),
    row("setuid-bit", Files, "put a set-uid bit on a file (chmod)", NO, Plain, Start),
    row("setgid-bit", Files, "put a set-gid bit on a file (fchmod)", NO, Plain, Inside),
    row("setuid-bit-at-birth", Files, "make a file with a set-uid bit (open)", NO, Plain, Inside),
    row("setuid-bit-mknod", Files, "make a file with a set-uid bit (mknod)", NO, Plain, Inside),
    row(
        "file-capability",
        Files,
        "put a capability on a file",
        Refused(&[EPERM, EOPNOTSUPP]),
        Capable,
        Inside,
    ),
    row(
        "hardlink-to-read-only",
        Files,
        "link a read-only file to a place of its own",
        Refused(&[EXDEV, EROFS, EACCES]),
        Staged,
        Inside,
    ),
    row(
        "proc-self-exe-overwrite",
        Files,
        "overwrite the program it was started from",
        Seen("sealed or read-only"),
        Plain,
        Start,
    ),
    row("machine-id", Files, "learn the host's machine id", Seen("a made-up id"), Plain, Start),
    row(
        "landlock-comm",
        Files,
        "write outside its places where only Landlock refuses (/proc/self/comm)",
        Refused(&[EACCES]),
        Plain,
        Start,
    ),
    row(
        "landlock-oom-score",
        Files,
        "tell the kernel whom to kill when memory runs out",
        Refused(&[EACCES]),
        Plain,
        Inside,
    ),
    masked("procfs-mask-kcore", "read the machine's memory (/proc/kcore)"),
    masked("procfs-mask-kmsg", "read the kernel's log (/proc/kmsg)"),
    masked("procfs-mask-keys", "read the kernel's keys (/proc/keys)"),
    masked("procfs-mask-key-users", "read who has keys (/proc/key-users)"),
    masked("procfs-mask-timer-list", "read the kernel's timers (/proc/timer_list)"),
    masked("procfs-mask-sched-debug", "read the scheduler's state (/proc/sched_debug)"),
    masked("procfs-mask-sysrq", "give the kernel orders (/proc/sysrq-trigger)"),
    masked("procfs-mask-latency", "read latencies (/proc/latency_stats)"),
    masked("procfs-mask-interrupts", "watch keystrokes (/proc/interrupts)"),
    masked("procfs-mask-cmdline", "read how the host was booted (/proc/cmdline)"),
    masked("procfs-mask-acpi", "look into /proc/acpi"),
    masked("procfs-mask-scsi", "look into /proc/scsi"),
    masked("procfs-mask-firmware", "look into /proc/firmware"),
];
