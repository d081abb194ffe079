//! Limits, another session beside it, and the end.

use super::{
    Expect::*,
    Open::*,
    Probe,
    Wall::{Lifecycle, Limits, Sessions},
    When::*,
    row,
};
use libc::{EAGAIN, ECONNREFUSED, EFBIG, EMFILE, ENOENT, ENOMEM, ENOSPC, EPERM, ESRCH};
use libc::{SIGKILL, SIGXFSZ};

const GONE: super::Expect = Refused(&[ENOENT]);
const FULL: super::Expect = Bounded { errnos: &[ENOMEM], signals: &[SIGKILL] };

const fn limit(name: &'static str, act: &'static str, expect: super::Expect) -> Probe {
    row(name, Limits, act, expect, Staged, Tight)
}

pub(super) const LIMITS: &[Probe] = &[
    limit("fork-bomb", "start processes without end", Refused(&[EAGAIN])),
    limit("thread-bomb", "start threads without end", Refused(&[EAGAIN])),
    Probe { when: Alone, ..limit("memory-bomb", "fill the memory", FULL) },
    limit("tmpfs-bomb", "fill /tmp", Refused(&[ENOSPC])),
    limit("tmpfs-inodes", "have room for files without end in /tmp", Seen("bounded")),
    limit("open-files", "open files without end", Refused(&[EMFILE])),
    limit(
        "file-size",
        "make one file as large as the disk",
        Bounded { errnos: &[EFBIG], signals: &[SIGXFSZ] },
    ),
    limit("cpu-share", "take all of a CPU", Seen("its share")),
];

const fn other(name: &'static str, act: &'static str, expect: super::Expect) -> Probe {
    row(name, Sessions, act, expect, Staged, Inside)
}

pub(super) const SESSIONS: &[Probe] = &[
    other("other-session-file", "read another session's workspace by the host's path", GONE),
    other("other-session-workspace", "find another session's file in /workspace", GONE),
    other("other-session-tmp", "find another session's file in /tmp", GONE),
    other("other-session-shm", "find another session's file in /dev/shm", GONE),
    other("other-session-processes", "see another session's processes", Seen("none")),
    other("other-session-signal", "send another session a signal", Refused(&[ESRCH])),
    other("other-session-loopback", "reach a server of another session", Refused(&[ECONNREFUSED])),
    other("other-session-abstract", "reach its abstract socket", Refused(&[ECONNREFUSED, EPERM])),
    other("other-session-memory", "attach its System V memory", GONE),
    other("other-session-queue", "open its message queue", GONE),
    other("other-session-uid", "be the same user outside as another session", Seen("another uid")),
];

const fn after(name: &'static str, act: &'static str, seen: &'static str) -> Probe {
    row(name, Lifecycle, act, Seen(seen), Staged, Outside)
}

pub(super) const LIFECYCLE: &[Probe] = &[
    row(
        "persistence",
        Lifecycle,
        "leave something that is started later (cron, at, systemd)",
        Seen("no place to leave it"),
        Staged,
        Inside,
    ),
    row(
        "next-session-canary",
        Lifecycle,
        "find what an earlier session left",
        Seen("nothing"),
        Staged,
        Tight,
    ),
    after("double-fork", "outlive the session as an orphan", "dead with the session"),
    after("setsid-daemon", "outlive it as a daemon", "dead with the session"),
    after("stopped-process", "outlive it stopped", "dead with the session"),
    after("deaf-process", "outlive it by ignoring signals", "dead with the session"),
    after("time-out", "go on when its time is over", "dead in time"),
    after("supervisor-kill", "outlive the process that started it", "dead with its keeper"),
    after("residue-processes", "leave a process", "none"),
    after("residue-mounts", "leave a mount on the host", "as many as before"),
    after("residue-cgroups", "leave a control group", "as many as before"),
];
