//! Namespaces and mounts.

use super::{
    Expect::*,
    Open::*,
    Probe,
    Wall::{Mounts, Namespaces},
    When::*,
    row,
};
use libc::{EACCES, ENOENT, ENOSYS, EPERM, EROFS, ESRCH};

const OWN: super::Expect = Seen("another namespace than the host's");
const NO: super::Expect = Refused(&[EPERM]);

/// A namespace that must be the sandbox's own.
const fn own(name: &'static str, act: &'static str) -> Probe {
    row(name, Namespaces, act, OWN, Plain, Start)
}

pub(super) const NAMESPACES: &[Probe] = &[
    own("ns-separation-pid", "share the host's processes"),
    own("ns-separation-net", "share the host's network"),
    own("ns-separation-ipc", "share the host's System V objects and queues"),
    own("ns-separation-uts", "share the host's name"),
    own("ns-separation-user", "share the host's user ids"),
    own("ns-separation-mnt", "share the host's mounts"),
    own("ns-separation-cgroup", "share the host's view of control groups"),
    row("uts-host-name", Namespaces, "learn the host's name", Seen("a made-up name"), Plain, Start),
    row("ipc-empty", Namespaces, "see System V objects of the host", Seen("none"), Staged, Start),
    row(
        "host-processes",
        Namespaces,
        "see a process of the host in /proc",
        Seen("none"),
        Staged,
        Inside,
    ),
    row(
        "host-process-signal",
        Namespaces,
        "send a signal to a process of the host",
        Refused(&[ESRCH]),
        Staged,
        Inside,
    ),
    row(
        "host-process-entry",
        Namespaces,
        "read /proc/PID of a process of the host",
        Refused(&[ENOENT]),
        Staged,
        Inside,
    ),
    row("userns-denied", Namespaces, "make a user namespace (unshare)", NO, Plain, Start),
    row("unshare-denied", Namespaces, "make every other namespace (unshare)", NO, Capable, Inside),
    row("setns-denied", Namespaces, "enter another namespace (setns)", NO, Plain, Start),
    row("clone-userns-denied", Namespaces, "make a user namespace (clone)", NO, Plain, Start),
    row("clone-ns-denied", Namespaces, "make every other namespace (clone)", NO, Capable, Inside),
    row(
        "clone-high-bits-denied",
        Namespaces,
        "hide a namespace's flag below bits the kernel ignores",
        NO,
        Plain,
        Inside,
    ),
    row(
        "clone3-hidden",
        Namespaces,
        "clone3, whose flags no filter sees",
        Refused(&[ENOSYS]),
        Plain,
        Start,
    ),
    row("host-name-set-denied", Namespaces, "change the machine's name", NO, Capable, Inside),
    row("domain-name-set-denied", Namespaces, "change the machine's domain", NO, Capable, Inside),
];

/// A call that changes mounts.
const fn change(name: &'static str, act: &'static str, open: super::Open) -> Probe {
    row(name, Mounts, act, NO, open, Inside)
}

pub(super) const MOUNTS: &[Probe] = &[
    row("mount-tmpfs-denied", Mounts, "mount a tmpfs", NO, Capable, Start),
    change("mount-proc-denied", "mount another proc", Capable),
    change("mount-bind-denied", "bind a folder over another", Capable),
    row("mount-remount-denied", Mounts, "remount the root for writing", NO, Capable, Start),
    change("mount-move-denied", "move a mount", Capable),
    change("mount-overlay-denied", "mount an overlay over /usr", Capable),
    change("mount-propagation-denied", "share mounts with another namespace", Capable),
    change("release-agent-denied", "mount a control group with a release agent", Capable),
    row("umount-denied", Mounts, "unmount /proc and see what it covers", NO, Capable, Start),
    row("pivot-root-denied", Mounts, "change the root (pivot_root)", NO, Capable, Start),
    change("chroot-denied", "change the root (chroot)", Capable),
    change("open-tree-denied", "copy a tree of mounts (open_tree)", Plain),
    change("move-mount-denied", "attach a mount (move_mount)", Capable),
    change("fsopen-denied", "open a file system (fsopen)", Capable),
    change("fsconfig-denied", "configure a file system (fsconfig)", Plain),
    change("fsmount-denied", "mount it (fsmount)", Capable),
    change("fspick-denied", "reconfigure a mounted one (fspick)", Capable),
    change("mount-setattr-denied", "change a mount's attributes (mount_setattr)", Plain),
    row(
        "root-read-only",
        Mounts,
        "find the root writable",
        Seen("a read-only mount"),
        Plain,
        Start,
    ),
    row(
        "read-only-places",
        Mounts,
        "make a file in a folder that is not its own",
        Seen("all refused"),
        Staged,
        Start,
    ),
    row(
        "core-pattern-denied",
        Mounts,
        "have the host start a program at a crash (core_pattern)",
        Refused(&[EROFS, EACCES]),
        Root,
        Start,
    ),
    row(
        "no-setuid-effect",
        Mounts,
        "find a mount on which set-uid bits count",
        Seen("every mount is nosuid"),
        Plain,
        Start,
    ),
    row(
        "no-device-effect",
        Mounts,
        "find a mount on which device nodes work",
        Seen("none beside /dev"),
        Plain,
        Start,
    ),
    row(
        "mounts-planned",
        Mounts,
        "find a mount at a place nobody planned",
        Seen("none"),
        Plain,
        Start,
    ),
    row(
        "cgroup-read-only",
        Mounts,
        "find control groups to write",
        Seen("none, or read-only"),
        Plain,
        Inside,
    ),
];
