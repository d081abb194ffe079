//! What a sandbox's processes may do, what they got, and their first process.

use super::{
    Expect::*,
    Open::*,
    Probe,
    Wall::{Inheritance, Init, Privileges},
    When::*,
    row,
};
use libc::{EACCES, EINVAL, ENOENT, ENXIO, EPERM};

const NO: super::Expect = Refused(&[EPERM]);
const EMPTY: super::Expect = Seen("empty");
const HIDDEN: super::Expect = Refused(&[ENOENT, EACCES, EPERM]);

const fn set(name: &'static str, act: &'static str, open: super::Open) -> Probe {
    row(name, Privileges, act, EMPTY, open, Start)
}

pub(super) const PRIVILEGES: &[Probe] = &[
    set("caps-zero-effective", "have an effective capability", Capable),
    set("caps-zero-permitted", "have a permitted capability", Capable),
    set("caps-zero-inheritable", "have an inheritable capability", Staged),
    set("caps-zero-bounding", "have a capability in the bounding set", Capable),
    set("caps-zero-ambient", "have an ambient capability", Staged),
    row("capset-denied", Privileges, "take every capability (capset)", NO, Capable, Inside),
    row(
        "nnp-set",
        Privileges,
        "gain privileges by a program (no_new_privs)",
        Seen("set"),
        Plain,
        Start,
    ),
    row("seccomp-mode", Privileges, "run without a filter", Seen("a filter"), Plain, Start),
    row(
        "securebits-locked",
        Privileges,
        "have root's uid mean something (securebits)",
        Seen("locked"),
        Plain,
        Start,
    ),
    row(
        "uid-unprivileged",
        Privileges,
        "be root inside",
        Seen("its own uid in all four places"),
        Capable,
        Start,
    ),
    row("uid-map-single", Privileges, "have more than one uid", Seen("one uid"), Plain, Start),
    row("gid-map-single", Privileges, "have more than one gid", Seen("one gid"), Plain, Start),
    row(
        "setgroups-denied",
        Privileges,
        "have setgroups permitted by the map",
        Seen("deny"),
        Plain,
        Start,
    ),
    row(
        "groups-none",
        Privileges,
        "have a supplementary group of the host",
        Seen("none beside its own"),
        Root,
        Start,
    ),
    row(
        "setuid-root-denied",
        Privileges,
        "become root (setresuid)",
        Refused(&[EINVAL, EPERM]),
        Capable,
        Start,
    ),
    row(
        "setgid-root-denied",
        Privileges,
        "join root's group (setresgid)",
        Refused(&[EINVAL, EPERM]),
        Capable,
        Inside,
    ),
    row("setgroups-call-denied", Privileges, "change its groups (setgroups)", NO, Root, Inside),
    row(
        "chown-root-denied",
        Privileges,
        "give a file to root",
        Refused(&[EINVAL, EPERM]),
        Capable,
        Inside,
    ),
    row(
        "nice-denied",
        Privileges,
        "take the CPU before others (nice)",
        Refused(&[EACCES, EPERM]),
        Root,
        Inside,
    ),
    row(
        "ioprio-realtime-denied",
        Privileges,
        "take the disk before others (ioprio)",
        NO,
        Root,
        Inside,
    ),
    row("core-limit", Privileges, "be allowed a core dump", Seen("0 bytes"), Staged, Start),
    row("core-dump", Privileges, "leave a core dump", Seen("none was made"), Staged, Inside),
    row("core-limit-raise-denied", Privileges, "raise the limit of core dumps", NO, Staged, Inside),
];

pub(super) const INHERITANCE: &[Probe] = &[
    row(
        "fd-inheritance",
        Inheritance,
        "find a descriptor beyond the three streams",
        Seen("none"),
        Staged,
        Start,
    ),
    row(
        "inherited-env",
        Inheritance,
        "find a variable that nobody granted",
        Seen("none"),
        Staged,
        Start,
    ),
    row(
        "host-variable",
        Inheritance,
        "find a variable of the host in any environment",
        Seen("none"),
        Staged,
        Inside,
    ),
    row(
        "controlling-terminal",
        Inheritance,
        "open the host's terminal (/dev/tty)",
        Refused(&[ENXIO]),
        Staged,
        Start,
    ),
];

const fn init(name: &'static str, act: &'static str) -> Probe {
    row(name, Init, act, HIDDEN, Staged, Inside)
}

pub(super) const INIT: &[Probe] = &[
    row("init-mem-read", Init, "read init's memory (/proc/1/mem)", HIDDEN, Staged, Start),
    init("init-mem-write", "write init's memory"),
    init("init-maps", "learn where init's memory is"),
    init("init-environ", "read init's environment"),
    row("init-exe", Init, "open init's executable (/proc/1/exe)", HIDDEN, Staged, Start),
    row("init-fd", Init, "list init's descriptors (/proc/1/fd)", HIDDEN, Staged, Start),
    init("init-root", "look at init's root (/proc/1/root)"),
    init("init-cwd", "look at init's working directory (/proc/1/cwd)"),
    init("init-namespaces", "learn init's namespaces (/proc/1/ns)"),
    row("init-ptrace", Init, "trace init", NO, Staged, Inside),
    row("init-pidfd-getfd", Init, "take the door's connection from init", NO, Staged, Inside),
    row("init-signals", Init, "kill, stop or interrupt init", Seen("it goes on"), Staged, Inside),
];
