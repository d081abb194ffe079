//! The second wall around files: Landlock rights by place.
//!
//! Invariants:
//! 1. Every right the chosen ABI knows is handled; what no rule gives is refused.
//! 2. A rule that cannot be added is an error, never skipped.

use ::landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::fs::FileType;
use std::os::fd::BorrowedFd;

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
