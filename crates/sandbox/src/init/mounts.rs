//! The private root: a small tmpfs, filled through its descriptor, then pivoted to.

use crate::step::{Bind, Step};
use crate::sys;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// No mount event of the host reaches us, none of ours reaches the host.
pub(super) fn make_private() -> io::Result<()> {
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

fn new_mount(kind: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(fs.as_fd(), *key, *value)?;
    }
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn tmpfs(bytes: u64, inodes: u64) -> io::Result<OwnedFd> {
    let (size, inodes) = (bytes.to_string(), inodes.to_string());
    let options = [("size", size.as_str()), ("nr_inodes", &inodes), ("mode", "0755")];
    new_mount("tmpfs", &options, NO_SUID | NO_DEV)
}

fn clone_tree(dir: impl AsFd, path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(dir, path, flags)?)
}

/// `/a/b` is `a/b` below the root's descriptor.
fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The new root while it is built.
pub(super) struct Root(OwnedFd);

impl Root {
    /// Makes it and mounts it over the host's root, where it covers nothing: this process keeps
    /// seeing the host by path until it pivots.
    pub(super) fn new(bytes: u64, inodes: u64) -> io::Result<Self> {
        let root = tmpfs(bytes, inodes)?;
        move_mount(root.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(Self(root))
    }

    fn place(&self, tree: &OwnedFd, target: &str) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(tree.as_fd(), "", self.0.as_fd(), relative(target), flags)?)
    }

    pub(super) fn step(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::Directory { path, mode } => self.directory(path, *mode),
            Step::File { path, contents } => self.file(path, contents.as_bytes()),
            Step::Symlink { path, to } => {
                Ok(rustix::fs::symlinkat(to.as_str(), &self.0, relative(path))?)
            }
            Step::OwnBinary { source, target } => self.own_binary(source, target),
            Step::Proc => {
                let options = [("hidepid", "invisible")];
                self.place(&new_mount("proc", &options, NO_SUID | NO_DEV | NO_EXEC)?, "/proc")
            }
            Step::ProcReadOnly { path } => {
                let tree = clone_tree(&self.0, relative(path), true)?;
                sys::mount_attributes(tree.as_fd(), READ_ONLY, true)?;
                self.place(&tree, path)
            }
            Step::ProcMask { path, directory } => self.mask(path, *directory),
            Step::Mask(mask) => self.cover(&mask.path, mask.directory),
            Step::Terminals => {
                let options = [("ptmxmode", "0666"), ("mode", "0620")];
                self.place(&new_mount("devpts", &options, NO_SUID | NO_EXEC)?, "/dev/pts")
            }
            Step::Pivot => self.pivot(),
            Step::SealRoot => {
                sys::mount_attributes(self.0.as_fd(), READ_ONLY | NO_SUID | NO_DEV, false)
            }
            other => Err(io::Error::other(format!("not a mount step: {other}"))),
        }
    }

    fn directory(&self, path: &str, mode: u32) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.0, relative(path), Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn file(&self, path: &str, contents: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = openat(&self.0, relative(path), flags | OFlags::NOFOLLOW, mode)?;
        io::Write::write_all(&mut std::fs::File::from(file), contents)
    }

    /// Makes what a mount goes onto; the directories above it only when they are missing. A link
    /// in its place is not followed: the mount then fails.
    fn mount_point(&self, path: &str, directory: bool) -> io::Result<()> {
        let make = || if directory { self.directory(path, 0o755) } else { self.file(path, b"") };
        match make() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.parents(path)?;
                make()
            }
            made => made,
        }
    }

    /// Makes the directories above `path`.
    fn parents(&self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            self.directory(path.get(..at).unwrap_or_default(), 0o755)?;
        }
        Ok(())
    }

    pub(super) fn bind(
        &self,
        bind: &Bind,
        mapping: Option<&OwnedFd>,
        recursive: bool,
    ) -> io::Result<()> {
        let tree = if bind.strict {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let source = openat2(CWD, bind.source.as_str(), flags, Mode::empty(), resolve)?;
            clone_tree(&source, "", recursive)?
        } else {
            clone_tree(CWD, &bind.source, recursive)?
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode);
        let mut attributes = NO_SUID;
        attributes |= if bind.devices { NO_EXEC } else { NO_DEV };
        if bind.read_only {
            attributes |= READ_ONLY;
        }
        match mapping {
            Some(userns) => sys::map_mount(tree.as_fd(), attributes, userns.as_fd(), recursive)?,
            None => sys::mount_attributes(tree.as_fd(), attributes, recursive)?,
        }
        self.mount_point(&bind.target, kind == FileType::Directory)?;
        self.place(&tree, &bind.target)
    }

    fn own_binary(&self, source: &str, target: &str) -> io::Result<()> {
        let tree = clone_tree(CWD, source, false)?;
        sys::mount_attributes(tree.as_fd(), READ_ONLY | NO_SUID | NO_DEV, false)?;
        self.file(target, b"")?;
        self.place(&tree, target)
    }

    /// One tmpfs, shown in several places. It is first mounted where `/proc` will cover it:
    /// only an attached mount can be cloned in parts.
    pub(super) fn scratch(
        &self,
        bytes: u64,
        inodes: u64,
        places: &[String],
        identity: u32,
    ) -> io::Result<()> {
        let scratch = tmpfs(bytes, inodes)?;
        self.place(&scratch, "/proc")?;
        for (number, place) in places.iter().enumerate() {
            let name = number.to_string();
            // A place below /run/user is one user's own; the others are for everybody inside.
            let own = place.starts_with("/run/user/");
            let mode = Mode::from_raw_mode(if own { 0o700 } else { 0o1777 });
            rustix::fs::mkdirat(&scratch, &name, mode)?;
            if own && identity != 0 {
                let uid = rustix::fs::Uid::from_raw(identity);
                let gid = rustix::fs::Gid::from_raw(identity);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&scratch, &name, Some(uid), Some(gid), flags)?;
            }
            self.place(&clone_tree(&scratch, &name, false)?, place)?;
        }
        Ok(())
    }

    fn mask(&self, path: &str, directory: bool) -> io::Result<()> {
        let source = if directory { "run/empty" } else { "dev/null" };
        let tree = clone_tree(&self.0, source, false)?;
        sys::mount_attributes(tree.as_fd(), READ_ONLY | NO_SUID | NO_EXEC, false)?;
        self.place(&tree, path)
    }

    /// Covers a place in somebody's folder. Nothing on the way there may be a link, for it would
    /// lead the cover elsewhere. What the sandbox cannot get to either needs none.
    fn cover(&self, path: &str, directory: bool) -> io::Result<()> {
        let source = if directory { "run/empty" } else { relative(crate::plan::MASK) };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let at = match openat2(&self.0, relative(path), flags, Mode::empty(), resolve) {
            Err(Errno::ACCESS) => return Ok(()),
            opened => opened?,
        };
        let tree = clone_tree(&self.0, source, false)?;
        sys::mount_attributes(tree.as_fd(), READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, false)?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(tree.as_fd(), "", at.as_fd(), "", flags)?)
    }

    fn pivot(&self) -> io::Result<()> {
        rustix::process::fchdir(&self.0)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir("/")?)
    }
}
