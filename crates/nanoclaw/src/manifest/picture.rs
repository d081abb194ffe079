//! What a mount looked like, and how two looks differ. Pure.
//!
//! 1. Of what is below a folder that this look did not see whole, nothing is said; what was seen
//!    there before is kept, so that the next whole look is compared with it.
//! 2. What the first look did not see is not said to be new when another one does.

use model::FileAct;
use std::collections::{BTreeMap, BTreeSet};

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    File,
    Folder,
    Link,
    Pipe,
    Socket,
    Device,
}

impl Sort {
    /// From a mode (inode(7)).
    pub(super) fn of(mode: u32) -> Self {
        use rustix::fs::FileType;
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Folder,
            FileType::Symlink => Self::Link,
            FileType::Fifo => Self::Pipe,
            FileType::Socket => Self::Socket,
            _ => Self::Device,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "link",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
            Self::Device => "device",
        }
    }
}

/// By what the kernel tells a change. A program can set the time of writing and not that of the
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(super) written: (i64, i64),
    pub(super) changed: (i64, i64),
}

impl Marks {
    pub(super) fn changed_ns(&self) -> i128 {
        i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1)
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sort: Sort,
    pub(super) marks: Marks,
    /// It changed long enough ago that another change would show in its marks.
    pub(super) settled: bool,
    /// Of its contents, where they were read.
    pub(super) digest: Option<[u8; 32]>,
}

impl Seen {
    /// A folder changes with each of its entries, which speak for themselves.
    fn same_as(&self, other: &Self) -> bool {
        let (a, b) = (&self.marks, &other.marks);
        match (self.sort, other.sort) {
            (Sort::Folder, Sort::Folder) => {
                (a.device, a.inode, a.mode, a.owner) == (b.device, b.inode, b.mode, b.owner)
            }
            (one, other) => one == other && a == b,
        }
    }

    pub(super) fn mode(&self) -> String {
        format!("{:04o}", self.marks.mode & 0o7777)
    }
}

/// A mount at one look; paths are below it, without a slash at the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) entries: BTreeMap<Vec<u8>, Seen>,
    /// Folders that were not looked at whole, with the reason. Of their entries those stand here
    /// that an earlier look saw.
    pub(super) missed: BTreeMap<Vec<u8>, String>,
    /// Of these, the ones that no look saw since the first: what is in them may have been there.
    pub(super) unknown: BTreeSet<Vec<u8>>,
    pub(super) looked_at: u64,
}

/// The folders above a path, the mount first.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    std::iter::once(0).filter(|_| !path.is_empty()).chain(ends).map(|end| &path[..end])
}

impl Picture {
    /// Whether it stands below a folder that was not looked at.
    fn hides(&self, path: &[u8]) -> bool {
        !self.missed.is_empty() && above(path).any(|folder| self.missed.contains_key(folder))
    }

    /// Whether it can have been there before the first look.
    fn may_have_had(&self, path: &[u8]) -> bool {
        !self.unknown.is_empty() && above(path).any(|folder| self.unknown.contains(folder))
    }

    /// It is the first: what it missed is not known at all.
    pub(super) fn begin(&mut self) {
        self.unknown = self.missed.keys().cloned().collect();
    }

    /// How this look differs from the one before, by path.
    pub(super) fn since(&self, before: &Self) -> BTreeMap<Vec<u8>, FileAct> {
        let mut all = BTreeMap::new();
        for (path, now) in &self.entries {
            match before.entries.get(path) {
                Some(then) if now.same_as(then) => {}
                Some(_) => drop(all.insert(path.clone(), FileAct::Changed)),
                None if before.may_have_had(path) => {}
                None => drop(all.insert(path.clone(), FileAct::Created)),
            }
        }
        for path in before.entries.keys() {
            if !self.entries.contains_key(path) && !self.hides(path) {
                all.insert(path.clone(), FileAct::Deleted);
            }
        }
        all
    }

    /// Takes over from the look before what this one could not see, and digests of what is the
    /// same.
    pub(super) fn keep_from(&mut self, mut before: Self) {
        let still = |path: &&Vec<u8>| before.unknown.contains(*path) || before.may_have_had(path);
        self.unknown = self.missed.keys().filter(still).cloned().collect();
        for (path, now) in &mut self.entries {
            if let Some(then) = before.entries.remove(path)
                && now.same_as(&then)
            {
                now.digest = then.digest;
            }
        }
        for (path, then) in before.entries {
            if self.hides(&path) {
                self.entries.insert(path, then);
            }
        }
    }
}
