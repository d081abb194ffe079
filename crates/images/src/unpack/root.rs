//! A folder that is being filled from an archive, and the one way to a place in it.
//!
//! 1. Every access is by a name in an open folder, opened with `RESOLVE_BENEATH` and
//!    `RESOLVE_NO_SYMLINKS`. The kernel never follows a link that an archive made.
//! 2. A link on the way to a place is read and followed here, as if the tree were `/`: its target
//!    is clamped to the tree, as it will be where the image runs. Nothing above is reachable, for
//!    `..` is a step back in a list of names.

use crate::error::{Error, Result, shown};
use crate::limits::{DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::fs::{chmodat, fstat, readlinkat, statat, unlinkat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Links followed on the way to one place; the kernel's own number (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Names gone through on the way to one place, those of links' targets included. The deepest path
/// with every link that may be on it has a thousand when each link has twenty names; what has more
/// was made to take time, and every entry would take it again.
const STEPS_MAX: usize = 1_024;

pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens a folder by its name in another.
pub(crate) fn folder(
    dir: impl AsFd,
    name: impl rustix::path::Arg,
) -> std::result::Result<OwnedFd, Errno> {
    openat2(dir, name, FOLDER, Mode::empty(), BENEATH)
}

/// A name in an open folder of the tree.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dir: Rc<OwnedFd>,
    pub(super) name: CString,
    /// The way from the tree's root, on which no link is.
    pub(super) real: Vec<Vec<u8>>,
}

/// A folder of the tree that was reached.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    pub(super) dir: Rc<OwnedFd>,
    /// As in [`Place`].
    pub(super) real: Vec<Vec<u8>>,
}

/// What may be done on the way to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Links are followed, missing folders made.
    Make,
    /// Links are followed.
    Find,
    /// A link is refused: what is to be hidden is named by its own name (layer.md), and behind a
    /// link it would be something else than what is named.
    Straight,
}

/// The names of a path, checked: no `..`, nothing too long or too deep. Leading slashes mean the
/// tree's own root.
pub(super) fn names(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let refuse = |why: &str| Err(Error::refused(format!("the name {} {why}", shown(path))));
    if path.len() > PATH_BYTES_MAX {
        return refuse("is too long");
    }
    if path.contains(&0) {
        return refuse("has a zero byte");
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refuse("climbs out with '..'"),
            name if name.len() > NAME_BYTES_MAX => return refuse("is too long"),
            name => names.push(name.to_vec()),
        }
    }
    if names.len() > DEPTH_MAX { refuse("is too deep") } else { Ok(names) }
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::refused("a name has a zero byte"))
}

/// The tree's root.
pub(super) struct Root {
    fd: Rc<OwnedFd>,
    /// The folder of the entry before, and what it was called: archives keep a folder's files
    /// together.
    last: Option<(Vec<Vec<u8>>, Reached)>,
    /// Folders made that no entry of an archive named.
    pub(super) made: u64,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd: Rc::new(fd), last: None, made: 0 }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Must be called after anything but a file was made or removed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Where an entry goes; `None` when a folder on the way is missing, or a file.
    pub(super) fn place(&mut self, names: &[Vec<u8>], how: Way) -> Result<Option<Place>> {
        let Some((name, above)) = names.split_last() else {
            return Err(Error::refused("an entry has no name"));
        };
        let Some(Reached { dir, mut real }) = self.reach(above, how)? else { return Ok(None) };
        real.push(name.clone());
        Ok(Some(Place { dir, name: c_name(name)?, real }))
    }

    /// A folder; `None` when it is missing, or one on the way, or a file.
    pub(super) fn reach(&mut self, names: &[Vec<u8>], how: Way) -> Result<Option<Reached>> {
        if let Some((path, reached)) = &self.last
            && path == names
            && (how != Way::Straight || reached.real == names)
        {
            return Ok(Some(reached.clone()));
        }
        let Some(reached) = self.walk(names, how)? else { return Ok(None) };
        self.last = Some((names.to_vec(), reached.clone()));
        Ok(Some(reached))
    }

    fn walk(&mut self, names: &[Vec<u8>], how: Way) -> Result<Option<Reached>> {
        let path = || shown(&names.join(&b'/'));
        let mut todo: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut way: Vec<(Vec<u8>, Rc<OwnedFd>)> = Vec::new();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if name == b".." {
                way.pop();
                continue;
            }
            let here = Rc::clone(way.last().map_or(&self.fd, |(_, fd)| fd));
            let c = c_name(&name)?;
            match folder(&here, &c) {
                Ok(fd) => way.push((name, Rc::new(fd))),
                Err(Errno::NOENT) if how == Way::Make => {
                    make_folder(&here, &c, 0o755)?;
                    self.made += 1;
                    todo.push_front(name);
                }
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let Some(target) = link_target(&here, &c)? else {
                        let cause = format!("{} needs a folder where a file is", path());
                        return if how == Way::Make {
                            Err(Error::refused(cause))
                        } else {
                            Ok(None)
                        };
                    };
                    if how == Way::Straight {
                        let cause = format!("a whiteout in {} leads through a link", path());
                        return Err(Error::refused(cause));
                    }
                    links += 1;
                    if target.first() == Some(&b'/') {
                        way.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        if !matches!(part, b"" | b".") {
                            todo.push_front(part.to_vec());
                        }
                    }
                }
                Err(e) => return Err(Error::disk(path(), e)),
            }
            // What is still to do counts, too: a link's target is not gone through to be refused.
            if links > LINKS_MAX || way.len() >= DEPTH_MAX || steps + todo.len() > STEPS_MAX {
                let cause = format!("{} goes through too many links or folders", path());
                return Err(Error::refused(cause));
            }
        }
        let dir = Rc::clone(way.last().map_or(&self.fd, |(_, fd)| fd));
        Ok(Some(Reached { dir, real: way.into_iter().map(|(name, _)| name).collect() }))
    }
}

/// The target of a link; `None` for what is no link.
fn link_target(dir: &OwnedFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    match readlinkat(dir, name, Vec::new()) {
        Ok(target) => Ok(Some(target.into_bytes())),
        Err(Errno::INVAL) => Ok(None),
        Err(e) => Err(Error::disk("a link", e)),
    }
}

/// Makes a folder with exactly this mode, whatever the umask.
pub(super) fn make_folder(dir: &OwnedFd, name: &CStr, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode);
    let made = mkdirat(dir, name, mode);
    // Just made by us, in a folder that nobody else can reach: no link.
    made.and_then(|()| chmodat(dir, name, mode, AtFlags::empty()))
        .map_err(|e| Error::disk(format!("the folder {}", shown(name.to_bytes())), e))
}

/// What stands there, no link followed.
pub(super) fn kind_at(dir: &OwnedFd, name: &CStr) -> Result<Option<FileType>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(Error::disk(shown(name.to_bytes()), e)),
    }
}

/// Names in a folder.
pub(crate) fn list(dir: BorrowedFd<'_>) -> std::result::Result<Vec<CString>, Errno> {
    let mut all = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            all.push(entry.file_name().to_owned());
        }
    }
    Ok(all)
}

/// Removes a file, or a folder with all in it; that it is not there is no error. Trees made here
/// are at most [`DEPTH_MAX`] deep, so the recursion is, too.
pub(crate) fn remove(dir: impl AsFd, name: &CStr) -> std::result::Result<(), Errno> {
    let dir = dir.as_fd();
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EISDIR on Linux; EPERM is what POSIX says (unlink(2)).
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let inner = folder(dir, name)?;
    for entry in list(inner.as_fd())? {
        remove(&inner, &entry)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Device and inode, to see whether two names are one file.
pub(super) fn identity(dir: &OwnedFd, name: &CStr) -> Option<(u64, u64)> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Opens the folder of a tree that was just made or is to be looked at, by its path on the host.
pub(crate) fn open_top(path: &std::path::Path) -> Result<OwnedFd> {
    let opened = rustix::fs::open(path, FOLDER, Mode::empty());
    let fd = opened.map_err(|e| Error::disk(path.display(), e))?;
    fstat(&fd).map_err(|e| Error::disk(path.display(), e))?;
    Ok(fd)
}
