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
use rustix::fs::FileType;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// What newer levels add around a sandbox, since which, and what holds it before that. Kernel:
/// Documentation/userspace-api/landlock.rst, "Previous limitations".
const LATER: [(u32, &str, &str); 4] = [
    (2, "moves between folders", "are refused altogether"),
    (3, "truncation", "is held by read-only mounts"),
    (5, "ioctl on devices", "by seccomp and the choice of devices"),
    (SCOPES_SINCE, "signals and abstract sockets", "are kept apart by namespaces alone"),
];

/// A level in words, with what else holds what it lacks.
pub(crate) fn told(level: u32) -> String {
    let later = LATER.iter().filter(|(since, ..)| level < *since);
    let lacks: Vec<String> = later.map(|(_, what, by)| format!("{what} {by}")).collect();
    let level = format!("ABI {level}");
    if lacks.is_empty() { level } else { format!("{level}: {}", lacks.join(", ")) }
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

/// Confines this thread for ever. `terminals` are descriptors of ttys among the standard streams:
/// their nodes lie outside the new root, and reopening `/dev/stdout` must work.
pub(crate) fn restrict(
    level: u32,
    write: &[String],
    devices: &[String],
    scopes: bool,
    terminals: &[BorrowedFd<'_>],
) -> Result<(), String> {
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
    Ok(())
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
mod tests {
    #[test]
    fn an_older_level_says_what_holds_what_it_lacks() {
        assert_eq!(super::told(7), "ABI 7");
        assert_eq!(super::told(6), "ABI 6");
        let debian_12 = super::told(2);
        assert!(debian_12.starts_with("ABI 2: truncation is held by read-only mounts, "));
        assert!(debian_12.ends_with("kept apart by namespaces alone"), "{debian_12}");
        assert!(super::told(1).contains("moves between folders are refused"));
        assert!(!super::told(5).contains("ioctl"));
    }
}
