//! The table of walls: what each is made of, the kernel it needs, whether a sandbox starts without
//! it, and what carries it where the kernel is older.
//!
//! `docs/walls.md` shows these tables; a test compares. Required means that the start is refused
//! without it. A bonus is a second layer, or a convenience, over something that is required.

/// Whether a sandbox starts without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It does not.
    Required,
    /// It does not where the agent's file, or the host, asks for it.
    WhereAsked,
    /// It does.
    Bonus,
}

/// One wall, or a part of one that a kernel may lack by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wall {
    /// As reports and records name it, with the part after a comma.
    pub name: &'static str,
    /// What it is made of.
    pub mechanism: &'static str,
    /// The first Linux that has all of it.
    pub kernel: (u32, u32),
    /// Whether it must be there.
    pub need: Need,
    /// What holds where it is not there.
    pub otherwise: &'static str,
}

const REFUSED: &str = "nothing: the start is refused";

/// Every wall. The names before the comma are those of a report, and each of a report's is here.
pub const WALLS: [Wall; 24] = [
    Wall {
        name: "namespaces",
        mechanism: "mount, PID, network, IPC, UTS by `clone3`; cgroup; user (first as a plain \
                    user, last as root)",
        kernel: (5, 3),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "root",
        mechanism: "a tmpfs, filled by `open_tree` and `move_mount` through descriptors, \
                    `pivot_root`, `mount_setattr`: read-only, nosuid, nodev",
        kernel: (5, 12),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "root, sources without links",
        mechanism: "`openat2` with `RESOLVE_NO_SYMLINKS`",
        kernel: (5, 6),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "root, owners (as root)",
        mechanism: "id-mapped mounts (ext4, FAT, XFS; btrfs since 5.15, overlay's layers \
                    since 5.19, tmpfs since 6.3)",
        kernel: (5, 12),
        need: Need::Required,
        otherwise: "the start is refused for a folder on another file system; as the plain user who \
                    owns it none is needed",
    },
    Wall {
        name: "root, /proc",
        mechanism: "of the new PID namespace, `hidepid=invisible`; entries of the host masked",
        kernel: (5, 8),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "uid",
        mechanism: "one id mapped: as root the session's own, of those set aside, as a plain user \
                    the caller's",
        kernel: (3, 8),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "capabilities",
        mechanism: "all five sets empty, securebits locked",
        kernel: (4, 3),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "no-new-privileges",
        mechanism: "`PR_SET_NO_NEW_PRIVS`",
        kernel: (3, 5),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "seccomp",
        mechanism: "an allow-list by number and argument; foreign architectures end the process",
        kernel: (4, 14),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "landlock",
        mechanism: "rights by place, ABI 1; its further levels are below",
        kernel: (5, 13),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "network",
        mechanism: "a namespace with loopback only; the door is one Unix socket",
        kernel: (5, 3),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "inheritance",
        mechanism: "`close_range` with `CLOSE_RANGE_CLOEXEC`, an environment from empty, `setsid`",
        kernel: (5, 11),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "lifecycle",
        mechanism: "PID namespace, pidfd, `PR_SET_PDEATHSIG`, a line whose end init watches",
        kernel: (5, 3),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "init, own image",
        mechanism: "a sealed memory file that may be executed (`MFD_EXEC`)",
        kernel: (6, 3),
        need: Need::Bonus,
        otherwise: "a sealed memory file without the mark, which older kernels do not ask for",
    },
    Wall {
        name: "limits, memory, CPU, processes",
        mechanism: "control groups: v2 where delegated, v1 as root",
        kernel: (4, 15),
        need: Need::WhereAsked,
        otherwise: "with `limits = \"fallback\"`: `RLIMIT_DATA` and a watchdog, nothing, \
                    `RLIMIT_NPROC`",
    },
    Wall {
        name: "limits, files and /tmp",
        mechanism: "`RLIMIT_FSIZE`, `RLIMIT_NOFILE`, `RLIMIT_CORE` 0, the size of a tmpfs",
        kernel: (2, 6),
        need: Need::Required,
        otherwise: REFUSED,
    },
    Wall {
        name: "limits, disk",
        mechanism: "no quota: what the session keeps is counted, and it is stopped when over",
        kernel: (5, 6),
        need: Need::WhereAsked,
        otherwise: REFUSED,
    },
    Wall {
        name: "limits, peak of memory",
        mechanism: "`memory.peak` of cgroup v2, for the record (v1 has always counted it)",
        kernel: (5, 19),
        need: Need::Bonus,
        otherwise: "the largest single process is on record",
    },
    Wall {
        name: "limits, peak of processes",
        mechanism: "`pids.peak`, for the record",
        kernel: (6, 11),
        need: Need::Bonus,
        otherwise: "left out of the record",
    },
    Wall {
        name: "witness",
        mechanism: "seccomp user notification, answered with an errno or let go on",
        kernel: (5, 5),
        need: Need::WhereAsked,
        otherwise: "`witness = \"off\"`, red in every report",
    },
    Wall {
        name: "witness, signals",
        mechanism: "`WAIT_KILLABLE_RECV`: a call that was taken is not broken off",
        kernel: (5, 19),
        need: Need::Bonus,
        otherwise: "an execution that a signal breaks off is on record twice",
    },
    Wall {
        name: "witness, speed",
        mechanism: "both sides wake each other on one CPU",
        kernel: (6, 6),
        need: Need::Bonus,
        otherwise: "a report takes about ten times as long",
    },
    Wall {
        name: "pause",
        mechanism: "`cgroup.freeze` of cgroup v2",
        kernel: (5, 2),
        need: Need::Bonus,
        otherwise: "pausing is refused, stopping the session is the remedy",
    },
    Wall {
        name: "secrets below a grant",
        mechanism: "an empty, read-only file or folder over each name that holds keys",
        kernel: (5, 12),
        need: Need::Required,
        otherwise: REFUSED,
    },
];

/// One level of Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LandlockLevel {
    /// Its number.
    pub abi: u32,
    /// The first Linux that has it.
    pub kernel: (u32, u32),
    /// What it adds to the one before.
    pub adds: &'static str,
    /// What carries that where the kernel stops below this level.
    pub otherwise: &'static str,
    /// The same in the few words of a report; `None` where sandboxes use nothing of it, or do not
    /// start without.
    pub lacking: Option<&'static str>,
    /// How the level is measured in each sandbox before its program runs.
    pub measured: &'static str,
}

/// Every level whose rights are used, one after the other. Only the first is required.
pub const LANDLOCK_LEVELS: [LandlockLevel; 7] = [
    LandlockLevel {
        abi: 1,
        kernel: (5, 13),
        adds: "reading, writing, executing, making and removing by place",
        otherwise: REFUSED,
        lacking: None,
        measured: "opening a file for writing that no rule lets write: `EACCES`, where it was open \
                   before",
    },
    LandlockLevel {
        abi: 2,
        kernel: (5, 19),
        adds: "moving and linking files between folders, where both may be written",
        otherwise: "ABI 1 refuses it everywhere: stricter, and some programs copy instead",
        lacking: Some("moves between folders are refused altogether"),
        measured: "not by itself",
    },
    LandlockLevel {
        abi: 3,
        kernel: (6, 2),
        adds: "truncating",
        otherwise: "read-only mounts, and that nothing else is in the private root",
        lacking: Some("truncation is held by read-only mounts"),
        measured: "truncating such a file: `EACCES`, where it could be done before",
    },
    LandlockLevel {
        abi: 4,
        kernel: (6, 7),
        adds: "TCP ports; not used in sandboxes, in the gateway and the recorder only",
        otherwise: "in sandboxes the network namespace; in the recorder seccomp",
        lacking: None,
        measured: "not by itself",
    },
    LandlockLevel {
        abi: 5,
        kernel: (6, 10),
        adds: "`ioctl` on devices",
        otherwise: "seccomp refuses the requests that matter; there are six harmless devices and the \
                    sandbox's own terminals",
        lacking: Some("ioctl on devices by seccomp and the choice of devices"),
        measured: "not by itself",
    },
    LandlockLevel {
        abi: 6,
        kernel: (6, 12),
        adds: "signals and abstract sockets stay inside",
        otherwise: "PID namespace and network namespace",
        lacking: Some("signals and abstract sockets are kept apart by namespaces alone"),
        measured: "connecting to an abstract socket made before: `EPERM`, where it could be done \
                   before",
    },
    LandlockLevel {
        abi: 7,
        kernel: (6, 15),
        adds: "nothing that is used (flags for the kernel's own audit log)",
        otherwise: "nothing is missing",
        lacking: None,
        measured: "not by itself",
    },
];

/// What a sandbox lacks at this level, each with what holds it instead; empty where nothing is.
pub(crate) fn lacking(level: u32) -> String {
    let later = LANDLOCK_LEVELS.iter().filter(|later| later.abi > level);
    later.filter_map(|later| later.lacking).collect::<Vec<_>>().join(", ")
}

fn linux((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// The newest kernel that something required needs: the floor of a sandbox.
#[must_use]
pub fn kernel_floor() -> (u32, u32) {
    let required = WALLS.iter().filter(|w| w.need == Need::Required);
    required.map(|w| w.kernel).max().unwrap_or((0, 0))
}

/// Both tables as Markdown, as `docs/walls.md` has them.
#[must_use]
pub fn walls_table() -> String {
    let mut text = String::from(
        "| wall | made of | Linux | needed | where it is not there |\n|---|---|---|---|---|\n",
    );
    for wall in &WALLS {
        let need = match wall.need {
            Need::Required => "required",
            Need::WhereAsked => "where asked for",
            Need::Bonus => "bonus",
        };
        let Wall { name, mechanism, otherwise, .. } = wall;
        let kernel = linux(wall.kernel);
        text.push_str(&format!("| {name} | {mechanism} | {kernel} | {need} | {otherwise} |\n"));
    }
    text.push_str(&format!(
        "\nThe floor: Linux {}. Landlock by level:\n\n\
         | ABI | Linux | adds | where the kernel stops below it | measured at each start by |\n\
         |---|---|---|---|---|\n",
        linux(kernel_floor())
    ));
    for level in &LANDLOCK_LEVELS {
        let LandlockLevel { abi, adds, otherwise, measured, .. } = level;
        let kernel = linux(level.kernel);
        text.push_str(&format!("| {abi} | {kernel} | {adds} | {otherwise} | {measured} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BEGIN: &str = "<!-- walls: begin -->\n";
    const END: &str = "<!-- walls: end -->";

    #[test]
    fn the_document_shows_this_table() {
        let document = include_str!("../../../docs/walls.md");
        let (_, rest) = document.split_once(BEGIN).unwrap();
        let (shown, _) = rest.split_once(END).unwrap();
        assert_eq!(shown, walls_table(), "docs/walls.md must read:\n{}", walls_table());
    }

    #[test]
    fn levels_and_floor_are_those_of_the_code() {
        assert_eq!(kernel_floor(), (5, 13), "Landlock is the newest of what is required");
        let levels: Vec<u32> = LANDLOCK_LEVELS.iter().map(|l| l.abi).collect();
        let vetted: Vec<u32> = (1..=crate::facts::LANDLOCK_VETTED).collect();
        assert_eq!(levels, vetted);
        assert!(LANDLOCK_LEVELS.is_sorted_by(|a, b| a.kernel < b.kernel));
        // What says that it is measured is, from that level on, and nothing else.
        let measured: Vec<u32> = LANDLOCK_LEVELS
            .iter()
            .filter(|l| l.measured != "not by itself")
            .map(|l| l.abi)
            .collect();
        assert_eq!(measured, crate::landlock::FELT_SINCE);
    }
}
