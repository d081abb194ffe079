//! What a session keeps on the disk, counted by looking: for the limit `disk`.
//!
//! Pipeline: folders (opened, no link followed) ─► walk, a slice at a time ─► files that are
//! deleted and still open ─► bytes.
//!
//! 1. Counted is what the file system has set aside (`st_blocks`), so a sparse file counts for what
//!    is written of it. A file with several names counts once.
//! 2. Nothing is followed out of the folders: every step is relative to an open one, beneath it, on
//!    its own file system.
//! 3. What cannot be counted is an error, never nothing: a session could hide data in it.
//! 4. It is a look at something that moves. What is moved about while it is counted can be counted
//!    twice or not at all; the next look sees it.

use crate::error::{SpecError, SpecErrorKind as Kind};
use model::{SandboxSpec, Workspace};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat, statvfs,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `st_blocks` counts in these, whatever the file system's own blocks are (inode(7)).
const BLOCK_BYTES: u64 = 512;
/// Files from this size on are remembered: one that is renamed or deleted while it is counted must
/// not count twice.
const LARGE_BLOCKS: u64 = (64 << 10) / BLOCK_BYTES;
/// Most files and folders: a project with all its dependencies has some hundred thousand. Each is
/// a system call of about a microsecond.
const ENTRIES_MAX: usize = 2_000_000;
/// Most folders that are known and not looked into yet, for each takes memory here.
const PENDING_MAX: usize = 200_000;
/// Longest path below a folder, with room for its last name (`PATH_MAX` is 4,096).
const PATH_BYTES_MAX: usize = 3_800;

/// Why the bytes of a session are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Uncounted(String);

impl Uncounted {
    fn at(path: &Path, e: Errno) -> Self {
        Self(format!("{path:?} cannot be looked into: {e}"))
    }
}

/// The folders whose bytes count: those that are the session's own.
pub(crate) fn folders(spec: &SandboxSpec) -> Vec<PathBuf> {
    let workspace = match &spec.workspace {
        Workspace::Session(path) => Some(path.clone()),
        Workspace::User(_) => None,
    };
    std::iter::once(spec.home.clone()).chain(workspace).collect()
}

#[derive(Debug)]
struct Root {
    fd: OwnedFd,
    path: PathBuf,
    device: u64,
}

/// A folder that is being read.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    names: Dir,
    root: usize,
    /// Its path below the root.
    path: Arc<Path>,
}

/// One look, which can be taken in slices.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    roots: Vec<Root>,
    /// Number of the root, path of the folder above, name.
    pending: Vec<(usize, Arc<Path>, CString)>,
    open: Option<Open>,
    /// Tasks whose open files are still to be looked at.
    tasks: Vec<PathBuf>,
    /// Files with several names, those without one, and large ones, by device and number.
    seen: HashSet<(u64, u64)>,
    entries: usize,
    bytes: u64,
}

impl Walk {
    /// Opens the folders. `pids` are the processes whose deleted files count as well.
    pub(crate) fn begin(folders: &[PathBuf], pids: &[i32]) -> Result<Self, Uncounted> {
        let mut walk = Self::default();
        for path in folders {
            let failed = |e| Uncounted::at(path, e);
            let resolve = ResolveFlags::NO_SYMLINKS;
            let fd = openat2(CWD, path, FOLDER, Mode::empty(), resolve).map_err(failed)?;
            let stat = fstat(&fd).map_err(failed)?;
            walk.count(&stat);
            walk.pending.push((walk.roots.len(), Path::new("").into(), c".".to_owned()));
            walk.roots.push(Root { fd, path: path.clone(), device: stat.st_dev });
        }
        for pid in pids {
            let all = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            walk.tasks.extend(all.map(|task| task.path().join("fd")));
        }
        Ok(walk)
    }

    /// Looks at about so many entries; the bytes when all were looked at.
    pub(crate) fn go(&mut self, slice: usize) -> Result<Option<u64>, Uncounted> {
        let mut left = slice;
        while left > 0 {
            left -= 1;
            if let Some(mut open) = self.open.take() {
                if let Some(entry) = open.names.next() {
                    let failed = |e| Uncounted::at(&self.shown(open.root, &open.path), e);
                    let name = entry.map_err(failed)?.file_name().to_owned();
                    self.entry(&open, &name)?;
                    self.open = Some(open);
                }
            } else if let Some((root, above, name)) = self.pending.pop() {
                self.open = self.enter(root, &above, &name)?;
            } else if let Some(task) = self.tasks.pop() {
                left = left.saturating_sub(self.held(&task));
            } else {
                return Ok(Some(self.bytes));
            }
        }
        Ok(None)
    }

    fn shown(&self, root: usize, path: &Path) -> PathBuf {
        self.roots.get(root).map(|r| r.path.join(path)).unwrap_or_default()
    }

    /// Opens a folder that was named; `None` when it is gone, or something else by now.
    fn enter(&self, root: usize, above: &Path, name: &CStr) -> Result<Option<Open>, Uncounted> {
        let Some(Root { fd: top, .. }) = self.roots.get(root) else { return Ok(None) };
        let path = match name.to_bytes() {
            b"." => PathBuf::from("."),
            bytes => above.join(OsStr::from_bytes(bytes)),
        };
        let failed = |e| Uncounted::at(&self.shown(root, &path), e);
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(failed(Errno::NAMETOOLONG));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = match openat2(top, &path, FOLDER, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let names = Dir::read_from(&fd).map_err(failed)?;
        let path = if path == Path::new(".") { PathBuf::new() } else { path };
        Ok(Some(Open { fd, names, root, path: path.into() }))
    }

    fn entry(&mut self, open: &Open, name: &CStr) -> Result<(), Uncounted> {
        if matches!(name.to_bytes(), b"." | b"..") {
            return Ok(());
        }
        self.entries += 1;
        if self.entries > ENTRIES_MAX || self.pending.len() > PENDING_MAX {
            let most = if self.entries > ENTRIES_MAX { ENTRIES_MAX } else { PENDING_MAX };
            return Err(Uncounted(format!("there are more than {most} files or folders in it")));
        }
        let stat = match statat(&open.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Uncounted::at(&self.shown(open.root, &open.path), e)),
        };
        if self.roots.get(open.root).is_none_or(|root| root.device != stat.st_dev) {
            return Ok(());
        }
        self.count(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.pending.push((open.root, Arc::clone(&open.path), name.to_owned()));
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat) {
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        // A folder's links are those of the folders in it: it has one name all the same.
        let once = folder || (stat.st_nlink < 2 && blocks < LARGE_BLOCKS);
        if once || self.seen.insert((stat.st_dev, stat.st_ino)) {
            self.add(blocks);
        }
    }

    fn add(&mut self, blocks: u64) {
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }

    /// Files that were deleted, or never had a name, and are open in this task: they take room
    /// until it lets go of them. Returns how many descriptors it looked at. A task that does not
    /// show them (an undumpable one, to a plain user) is left out.
    fn held(&mut self, descriptors: &Path) -> usize {
        let mut looked = 0;
        for entry in fs::read_dir(descriptors).into_iter().flatten().flatten() {
            looked += 1;
            // Only these are asked: a file of a network's file system might not answer.
            let named = fs::read_link(entry.path());
            if !named.is_ok_and(|to| to.as_os_str().as_bytes().ends_with(b" (deleted)")) {
                continue;
            }
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            let here = self.roots.iter().any(|root| root.device == meta.dev());
            if here
                && meta.is_file()
                && meta.nlink() == 0
                && self.seen.insert((meta.dev(), meta.ino()))
            {
                self.add(meta.blocks());
            }
        }
        looked
    }
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Refuses a session that has more than its limit already, or a limit that is none because the
/// whole file system is smaller. Takes as long as counting takes.
pub(crate) fn refuse(spec: &SandboxSpec) -> Result<(), SpecError> {
    let Some(limit) = spec.limits.disk_bytes else { return Ok(()) };
    let bad = |cause: String, remedy: &str| Err(SpecError::new(Kind::Limit, cause, remedy));
    if let Ok(found) = statvfs(&spec.home) {
        let has = found.f_blocks.saturating_mul(found.f_frsize);
        if limit > has {
            let cause = format!("the limit disk is {limit} bytes, and its file system has {has}");
            return bad(cause, "write a smaller `disk`");
        }
    }
    match Walk::begin(&folders(spec), &[]).and_then(|mut walk| walk.go(usize::MAX)) {
        Ok(Some(bytes)) if bytes <= limit => Ok(()),
        Ok(bytes) => {
            let bytes = bytes.unwrap_or(u64::MAX);
            let cause = format!("the session keeps {bytes} bytes, over its disk limit of {limit}");
            bad(cause, "remove files of it, begin another session, or write a larger `disk`")
        }
        Err(e) => {
            let cause = format!("what the session keeps cannot be counted: {e}");
            bad(cause, "make it readable or remove it, or do without the limit `disk`")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nanoclaw-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn bytes(&self) -> u64 {
            let mut walk = Walk::begin(std::slice::from_ref(&self.0), &[]).unwrap();
            walk.go(usize::MAX).unwrap().unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_written_counts_once_and_nothing_else_does() {
        let (folder, outside) = (Folder::new("counted"), Folder::new("elsewhere"));
        fs::create_dir_all(folder.0.join("a/b")).unwrap();
        let empty = folder.bytes();
        fs::write(folder.0.join("a/b/big"), vec![1; MIB as usize]).unwrap();
        let one = folder.bytes() - empty;
        assert!((MIB..MIB + MIB / 8).contains(&one), "{one}");
        // Another name for it is no second file, and a hole takes no room.
        fs::hard_link(folder.0.join("a/b/big"), folder.0.join("again")).unwrap();
        fs::File::create(folder.0.join("hole")).unwrap().set_len(100 * MIB).unwrap();
        // What a link leads to is not counted, be it file or folder.
        fs::write(outside.0.join("big"), vec![1; 4 * MIB as usize]).unwrap();
        symlink(outside.0.join("big"), folder.0.join("link")).unwrap();
        symlink(&outside.0, folder.0.join("a/folder")).unwrap();
        let more = folder.bytes() - empty;
        assert!(more < one + MIB / 8, "{more} where it was {one}");
        fs::write(folder.0.join("second"), vec![1; MIB as usize]).unwrap();
        assert!(folder.bytes() - empty >= 2 * MIB);
    }

    #[test]
    fn slices_come_to_the_same() {
        let folder = Folder::new("sliced");
        for number in 0..50 {
            let inner = folder.0.join(format!("d{number}"));
            fs::create_dir(&inner).unwrap();
            fs::write(inner.join("file"), vec![1; 5_000]).unwrap();
        }
        let mut walk = Walk::begin(std::slice::from_ref(&folder.0), &[]).unwrap();
        let mut slices = 0;
        let bytes = loop {
            slices += 1;
            if let Some(bytes) = walk.go(7).unwrap() {
                break bytes;
            }
        };
        assert_eq!(bytes, folder.bytes());
        assert!(slices > 10, "{slices}");
    }

    #[test]
    fn a_deleted_file_that_is_open_counts() {
        let folder = Folder::new("deleted");
        let path = folder.0.join("gone");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![1; MIB as usize]).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(folder.bytes() < MIB);
        let own = i32::try_from(std::process::id()).unwrap();
        let with = || {
            let mut walk = Walk::begin(std::slice::from_ref(&folder.0), &[own]).unwrap();
            walk.go(usize::MAX).unwrap().unwrap()
        };
        let found = with();
        assert!((MIB..2 * MIB).contains(&found), "once, though every thread has it: {found}");
        drop(file);
        assert!(with() < MIB);
    }

    #[test]
    fn what_cannot_be_looked_into_is_an_error_and_not_nothing() {
        let folder = Folder::new("deep");
        // Deeper than a path can say: made step by step, as a session would.
        let mut at = rustix::fs::open(&folder.0, FOLDER, Mode::empty()).unwrap();
        let name = "d".repeat(250);
        for _ in 0..20 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, FOLDER, Mode::empty()).unwrap();
        }
        let mut walk = Walk::begin(std::slice::from_ref(&folder.0), &[]).unwrap();
        let error = walk.go(usize::MAX).unwrap_err().to_string();
        assert!(error.contains("cannot be looked into"), "{error}");
    }
}
