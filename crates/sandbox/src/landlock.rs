//! The second wall around files: Landlock rights by place.
//!
//! Invariants:
//! 1. Every right the chosen ABI knows is handled; what no rule gives is refused.
//! 2. A rule that cannot be added is an error, never skipped.

use crate::role::RoleWalls;
use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// A level in words, with what else holds what it lacks. What a sandbox really has is measured:
/// [`measured`].
pub(crate) fn told(level: u32) -> String {
    let lacks = crate::wall::lacking(level);
    if lacks.is_empty() { format!("ABI {level}") } else { format!("ABI {level}: {lacks}") }
}

fn abi(level: u32) -> Option<ABI> {
    Some(match level {
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        7 => ABI::V7,
        _ => return None,
    })
}

/// What one act gave before this thread was confined and after: 0, or the error's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tried {
    before: i32,
    after: i32,
}

/// What was found by trying, in the confined thread itself: the kernel shows of no thread whether
/// it is confined, nor how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Felt {
    /// Opening for writing what no rule lets write. Refused since ABI 1.
    write: Tried,
    /// Truncating it. Refused since ABI 3.
    truncate: Tried,
    /// Connecting to an abstract socket of somebody outside. Refused since ABI 6.
    abstract_socket: Tried,
}

/// The levels that [`Felt`] tells apart: writing, truncating (Linux 6.2), scopes.
pub(crate) const FELT_SINCE: [u32; 3] = [1, 3, SCOPES_SINCE];

impl Felt {
    /// What is to be said of a thread that was confined at this level, with what else holds what
    /// the level lacks; an error where something was not refused that had to be.
    fn judge(&self, level: u32) -> Result<String, String> {
        let acts = [
            ("writing", self.write, libc::EACCES),
            ("truncating", self.truncate, libc::EACCES),
            ("abstract sockets outside", self.abstract_socket, libc::EPERM),
        ];
        let (mut held, mut untried) = (Vec::new(), Vec::new());
        for ((what, Tried { before, after }, errno), since) in acts.into_iter().zip(FELT_SINCE) {
            match (level >= since, before, after) {
                (false, _, _) => {}
                (true, 0, after) if after == errno => held.push(what),
                (true, 0, after) => {
                    return Err(format!("{what} gave {after} where {errno} had to come"));
                }
                // It was refused before already, so the same refusal afterwards says nothing.
                (true, _, _) => untried.push(what),
            }
        }
        let mut text = format!("ABI {level}");
        for (list, how) in [(held, "tried and refused"), (untried, "could not be tried")] {
            if !list.is_empty() {
                text.push_str(&format!(", {how}: {}", list.join(", ")));
            }
        }
        let lacks = crate::wall::lacking(level);
        if !lacks.is_empty() {
            text.push_str(&format!("; {lacks}"));
        }
        Ok(text)
    }
}

/// What is to be said of a sandbox whose first process was confined at this level and tried it; an
/// error, what was found instead. Whoever made the other walls, this one is made inside.
pub(crate) fn measured(felt: Option<&Felt>, level: u32) -> Result<String, String> {
    felt.map_or_else(|| Err("not tried".to_owned()), |felt| felt.judge(level))
}

/// A file of this thread's own that it may write, in a place where nothing else refuses it.
const OWN_FILE: &str = "/proc/thread-self/comm";

/// The acts of [`Felt`], prepared before the thread is confined.
struct Trial {
    listener: Option<OwnedFd>,
    address: Option<SocketAddrUnix>,
    before: [i32; 3],
}

fn errno<T>(result: rustix::io::Result<T>) -> i32 {
    result.err().map_or(0, rustix::io::Errno::raw_os_error)
}

impl Trial {
    /// The socket's name is in the sandbox's own network namespace.
    fn new() -> Self {
        let address = SocketAddrUnix::new_abstract_name(b"nanoclaw-landlock").ok();
        let listener = address.as_ref().and_then(|address| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, CLOSED, None).ok()?;
            rustix::net::bind(&socket, address).ok()?;
            rustix::net::listen(&socket, 2).ok()?;
            Some(socket)
        });
        let mut trial = Self { listener, address, before: [0; 3] };
        trial.before = trial.act();
        trial
    }

    fn act(&self) -> [i32; 3] {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let write = errno(rustix::fs::open(OWN_FILE, flags, Mode::empty()));
        let cut = crate::sys::truncate(OWN_FILE).err().and_then(|e| e.raw_os_error());
        let connect = match (&self.listener, &self.address) {
            (Some(_), Some(address)) => {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, CLOSED, None);
                errno(socket.and_then(|socket| rustix::net::connect(&socket, address)))
            }
            _ => libc::ENOTSOCK,
        };
        [write, cut.unwrap_or(0), connect]
    }

    fn felt(&self) -> Felt {
        let after = self.act();
        let tried = |n: usize| Tried { before: self.before[n], after: after[n] };
        Felt { write: tried(0), truncate: tried(1), abstract_socket: tried(2) }
    }
}

const CLOSED: SocketFlags = SocketFlags::CLOEXEC;

/// Confines this thread for ever, and tries it. `terminals` are descriptors of ttys among the
/// standard streams: their nodes lie outside the new root, and reopening `/dev/stdout` must work.
pub(crate) fn restrict(
    level: u32,
    write: &[String],
    devices: &[String],
    scopes: bool,
    terminals: &[BorrowedFd<'_>],
) -> Result<Felt, String> {
    let trial = Trial::new();
    let abi = abi(level).ok_or("the kernel has no Landlock")?;
    let tell = |e: &dyn std::error::Error| format!("Landlock: {e}");
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .map_err(|e| tell(&e))?;
    if scopes {
        rules = rules.scope(Scope::from_all(abi)).map_err(|e| tell(&e))?;
    }
    let mut rules = rules.create().map_err(|e| tell(&e))?;
    let all = AccessFs::from_all(abi);
    let use_device =
        (AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev) & all;
    let places = std::iter::once(("/", read))
        .chain(write.iter().map(|p| (p.as_str(), all)))
        .chain(devices.iter().map(|p| (p.as_str(), use_device)));
    for (path, rights) in places {
        let fd = PathFd::new(path).map_err(|e| tell(&e))?;
        let mode = rustix::fs::fstat(&fd).map_err(|e| tell(&e))?.st_mode;
        let rights = if FileType::from_raw_mode(mode) == FileType::Directory {
            rights
        } else {
            rights & AccessFs::from_file(abi)
        };
        rules = rules.add_rule(PathBeneath::new(fd, rights)).map_err(|e| tell(&e))?;
    }
    for fd in terminals {
        let rights: BitFlags<AccessFs> = use_device & AccessFs::from_file(abi);
        rules = rules.add_rule(PathBeneath::new(fd, rights)).map_err(|e| tell(&e))?;
    }
    rules.restrict_self().map_err(|e| tell(&e))?;
    Ok(trial.felt())
}

/// Network rights exist from this ABI on (Linux 6.7).
const NETWORK_SINCE: u32 = 4;
/// Scopes (signals and abstract sockets of others) exist from this ABI on (Linux 6.12).
const SCOPES_SINCE: u32 = 6;

/// Confines this thread, a role of the product, for ever: below `read` it may read, below `keep`
/// also make, change and remove plain files and folders; nothing else. It may not listen for TCP,
/// and connect only with `connect`. What of `read` does not exist is left out, which only takes
/// away.
pub(crate) fn restrict_role(level: u32, walls: &RoleWalls) -> Result<(), String> {
    let RoleWalls { read, keep, sockets, connect, .. } = walls;
    let abi = abi(level).ok_or("the kernel has no Landlock")?;
    let tell = |e: &dyn std::error::Error| format!("Landlock: {e}");
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .map_err(|e| tell(&e))?;
    if level >= NETWORK_SINCE {
        rules = rules.handle_access(AccessNet::BindTcp).map_err(|e| tell(&e))?;
        if !*connect {
            rules = rules.handle_access(AccessNet::ConnectTcp).map_err(|e| tell(&e))?;
        }
    }
    if level >= SCOPES_SINCE {
        rules = rules.scope(Scope::from_all(abi)).map_err(|e| tell(&e))?;
    }
    let mut rules = rules.create().map_err(|e| tell(&e))?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let changing = AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for path in read.iter().filter(|p| p.exists()) {
        rules = beneath(rules, abi, path, reading)?;
    }
    for path in keep {
        rules = beneath(rules, abi, path, reading | changing)?;
    }
    for path in sockets {
        let own = AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile;
        rules = beneath(rules, abi, path, own)?;
    }
    rules.restrict_self().map_err(|e| tell(&e))?;
    Ok(())
}

fn beneath(
    rules: RulesetCreated,
    abi: ABI,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, String> {
    let tell = |e: &dyn std::error::Error| format!("Landlock: {}: {e}", path.display());
    let fd = PathFd::new(path).map_err(|e| tell(&e))?;
    let mode = rustix::fs::fstat(&fd).map_err(|e| tell(&e))?.st_mode;
    let folder = FileType::from_raw_mode(mode) == FileType::Directory;
    let known = if folder { AccessFs::from_all(abi) } else { AccessFs::from_file(abi) };
    rules.add_rule(PathBeneath::new(fd, rights & known)).map_err(|e| tell(&e))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Of a thread that is confined at the newest level.
    pub(crate) fn confined() -> Felt {
        felt(REFUSED, REFUSED, SCOPED)
    }

    fn felt(write: (i32, i32), truncate: (i32, i32), socket: (i32, i32)) -> Felt {
        let tried = |(before, after)| Tried { before, after };
        let abstract_socket = tried(socket);
        Felt { write: tried(write), truncate: tried(truncate), abstract_socket }
    }

    const REFUSED: (i32, i32) = (0, libc::EACCES);
    const SCOPED: (i32, i32) = (0, libc::EPERM);
    const OPEN: (i32, i32) = (0, 0);

    #[test]
    fn a_level_is_believed_only_as_far_as_it_was_felt() {
        let all = confined().judge(7).unwrap();
        assert_eq!(all, "ABI 7, tried and refused: writing, truncating, abstract sockets outside");
        // Debian 12: what ABI 2 does not handle is not claimed.
        let old = felt(REFUSED, OPEN, OPEN).judge(2).unwrap();
        let (tried, lacks) = old.split_once("; ").unwrap();
        assert_eq!(tried, "ABI 2, tried and refused: writing");
        assert!(lacks.starts_with("truncation is held by read-only mounts, "), "{old}");
        for (level, open) in [
            (1, felt(OPEN, OPEN, OPEN)),
            (3, felt(REFUSED, OPEN, OPEN)),
            (6, felt(REFUSED, REFUSED, OPEN)),
            (6, felt(REFUSED, REFUSED, (0, libc::ECONNREFUSED))),
        ] {
            assert!(open.judge(level).is_err(), "{level}: {open:?}");
        }
        // A refusal that was there before proves nothing, and is not taken for a proof.
        let blind = felt((libc::EACCES, libc::EACCES), REFUSED, SCOPED).judge(6).unwrap();
        assert!(blind.ends_with("could not be tried: writing"), "{blind}");
        assert_eq!(measured(None, 6).unwrap_err(), "not tried");
    }

    #[test]
    fn an_older_level_says_what_holds_what_it_lacks() {
        assert_eq!(told(7), "ABI 7");
        assert_eq!(told(6), "ABI 6");
        let debian_12 = told(2);
        assert!(debian_12.starts_with("ABI 2: truncation is held by read-only mounts, "));
        assert!(debian_12.ends_with("kept apart by namespaces alone"), "{debian_12}");
        assert!(told(1).contains("moves between folders are refused"));
        assert!(!told(5).contains("ioctl"));
    }
}
