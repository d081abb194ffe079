//! Removing folders that a sandbox has written: as deep, as many and as locked as it likes.
//!
//! Pipeline: top folder ─► each entry: files are unlinked, folders moved up to the top ─► again.
//!
//! 1. Nothing is followed: every step is relative to an open folder, with `O_NOFOLLOW`.
//! 2. Depth does not matter, for folders are moved to the top before they are looked into, so at
//!    most three are open at a time.

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fchmod, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Removes `path` and all below it. That it is not there is no error.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    let Some(top) = folder(open(path, FOLDER, Mode::empty()))? else { return Ok(()) };
    let mut moved = 0_u64;
    while let Some(name) = first_folder(&top)? {
        let Some(inner) = folder(openat(&top, &name, FOLDER, Mode::empty()))? else { continue };
        for entry in names(inner.as_fd())? {
            if unlink(inner.as_fd(), &entry)? {
                continue;
            }
            // A folder changes its own "..", so it must be writable to be moved.
            open_up(inner.as_fd(), &entry)?;
            moved += 1;
            let new = CString::new(format!(".removed-{moved}"))?;
            renameat(&inner, &entry, &top, &new)?;
        }
        unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
    }
    rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An opened folder that its owner may change; `None` when it is gone.
fn folder(opened: Result<OwnedFd, Errno>) -> std::io::Result<Option<OwnedFd>> {
    match opened {
        Ok(fd) => {
            fchmod(&fd, Mode::RWXU)?;
            Ok(Some(fd))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Unlinks what is no folder; `false` for a folder.
fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> std::io::Result<bool> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // EISDIR on Linux; EPERM is what POSIX says (unlink(2)).
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn names(dir: BorrowedFd<'_>) -> std::io::Result<Vec<CString>> {
    let entries = Dir::read_from(dir)?;
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            all.push(entry.file_name().to_owned());
        }
    }
    Ok(all)
}

/// Unlinks the top's files and names one of its folders, if any is left.
fn first_folder(top: &OwnedFd) -> std::io::Result<Option<CString>> {
    for name in names(top.as_fd())? {
        if !unlink(top.as_fd(), &name)? {
            // Made its owner's to change before it is opened for reading.
            open_up(top.as_fd(), &name)?;
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A folder of mode 0 cannot be opened by its owner until its mode is changed by name. The name
/// may have become a link meanwhile only if somebody else writes here, and nobody does: the
/// sandbox is gone.
fn open_up(dir: BorrowedFd<'_>, name: &CStr) -> std::io::Result<()> {
    rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::remove_tree;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn locked_deep_and_linked_trees_are_removed_and_links_not_followed() {
        let temp = testkit::TempDir::new("removal").unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let root = temp.path().join("root");
        let mut deep = root.clone();
        for _ in 0..300 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&root).unwrap();
    }
}
