//! Folders that belong to sessions get one fixed owner on disk (root mode).
//!
//! Invariants:
//! 1. Nothing outside NanoClaw's own directories is ever changed, except an empty folder.
//! 2. No symbolic link is followed, no other file system entered.

use crate::plan::DISK_OWNER;
use crate::step::Owner;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchown, fstat,
    openat2, statat,
};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Deeper trees do not come from sane programs; the walk keeps one descriptor a level.
const DEPTH_MAX: usize = 256;

/// Makes the session's folder owned by [`DISK_OWNER`]; returns who owns it afterwards.
pub(super) fn adopt(path: &Path, owner: Owner, private: &[PathBuf]) -> io::Result<Owner> {
    if owner == DISK_OWNER {
        return Ok(owner);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let ours = private.iter().any(|p| path.starts_with(p) && path != p);
    if !ours && !empty(&top)? {
        // Somebody else's folder: it is mapped to the session as it is.
        return Ok(owner);
    }
    let device = fstat(&top)?.st_dev;
    walk(&top, device, 0)?;
    // Last, so that an interrupted walk is begun again.
    fchown(&top, Some(Uid::from_raw(DISK_OWNER.uid)), Some(Gid::from_raw(DISK_OWNER.gid)))?;
    Ok(DISK_OWNER)
}

fn empty(dir: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn walk(dir: &OwnedFd, device: u64, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("the folder is nested too deeply"));
    }
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            walk(&openat2(dir, name, flags, Mode::empty(), resolve)?, device, depth + 1)?;
        }
        let (uid, gid) = (Uid::from_raw(DISK_OWNER.uid), Gid::from_raw(DISK_OWNER.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
