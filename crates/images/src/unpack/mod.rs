//! Layers to one tree.
//!
//! Pipeline: each layer: entries ─► whiteout? remove : make (file, folder, link, hard link).
//!
//! Rules, each told once in [`Report`]:
//! 1. Every entry lies beneath the tree: `..` refused, absolute names taken as the tree's own,
//!    links on the way clamped to it (`root.rs`).
//! 2. Owners are not kept: all belongs to whoever unpacks. Set-uid, set-gid and sticky bits are
//!    dropped, device nodes, pipes and extended attributes are left out. The owner may always read
//!    a file, and enter and change a folder.
//! 3. What an entry replaces is removed first, never written through.
//! 4. A whiteout hides what lower layers brought, never what its own layer did (OCI image
//!    specification, layer.md). What a layer brought is remembered by where it came to lie, not by
//!    how it was called, and a whiteout whose way leads through a link is refused.

mod root;

pub(crate) use root::{folder, list, open_top, remove};

use crate::error::{Error, Result, carried, shown};
use crate::limits::{Limits, PATH_BYTES_MAX};
use crate::packing::CHUNK;
use crate::tar::{Entry, Kind, Reader};
use root::{BENEATH, Place, Root, Way, identity, kind_at, make_folder, names};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::fs::{chmodat, fchmod, futimens, linkat, openat2, symlinkat};
use std::collections::HashSet;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Names of the layer at hand, for whiteouts: as much as a million ordinary ones.
const NAMES_BYTES_MAX: usize = 128 << 20;

/// What was left out, and how much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Entries of all layers.
    pub entries: u64,
    /// Bytes of all files of all layers.
    pub bytes: u64,
    /// Device nodes and pipes that were left out.
    pub devices: u64,
    /// Files and folders whose set-uid, set-gid or sticky bit was dropped.
    pub mode_bits: u64,
    /// Extended attributes that were left out.
    pub attributes: u64,
}

/// A tree being filled.
pub(crate) struct Unpacker<'a> {
    root: Root,
    limits: &'a Limits,
    report: Report,
    /// What this layer brought so far, and how long those names are.
    brought: HashSet<Vec<u8>>,
    /// Folders in which this layer has hidden what was there already: it need be done once, however
    /// often it is said.
    hidden: HashSet<Vec<u8>>,
    names_bytes: usize,
}

impl<'a> Unpacker<'a> {
    /// Into this empty folder.
    pub(crate) fn new(top: OwnedFd, limits: &'a Limits) -> Self {
        Self {
            root: Root::new(top),
            limits,
            report: Report::default(),
            brought: HashSet::new(),
            hidden: HashSet::new(),
            names_bytes: 0,
        }
    }

    /// Applies one layer, and reads its stream, from which at most so many bytes come, to the end.
    pub(crate) fn layer(&mut self, bytes: impl Read, most: u64) -> Result<()> {
        self.brought.clear();
        self.hidden.clear();
        self.names_bytes = 0;
        self.root.forget();
        let mut reader = Reader::new(bytes, most);
        while let Some(entry) = reader.next_entry()? {
            self.report.entries += 1;
            self.report.attributes += entry.attributes;
            self.entry(&entry, &mut reader)?;
            // Folders that no entry named count, too: each costs an inode.
            if self.report.entries.saturating_add(self.root.made) > self.limits.entries {
                return Err(Error::refused("the image has more entries than an image may"));
            }
        }
        reader.drain()
    }

    /// Writes everything to the disk and tells what was done.
    pub(crate) fn finish(self) -> Result<Report> {
        rustix::fs::syncfs(self.root.fd()).map_err(|e| Error::disk("the new tree", e))?;
        Ok(self.report)
    }

    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<()> {
        let mut names = names(&entry.path)?;
        let Some(last) = names.last() else {
            // The tree's root itself; its mode is ours to say.
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(Error::refused("an entry other than a folder is named '/'")),
            };
        };
        if let Some(hidden) = last.strip_prefix(b".wh.") {
            let hidden = hidden.to_vec();
            names.pop();
            return self.whiteout(names, hidden);
        }
        if entry.kind == Kind::Special {
            self.report.devices += 1;
            return Ok(());
        }
        if entry.mode & 0o7000 != 0 {
            self.report.mode_bits += 1;
        }
        let Some(place) = self.root.place(&names, Way::Make)? else {
            return Err(Error::refused(format!("{} has no place", shown(&entry.path))));
        };
        self.remember(&place.real)?;
        match entry.kind {
            Kind::Directory => self.directory(&place, entry),
            Kind::File => self.file(&place, entry, content),
            Kind::Symlink => self.symlink(&place, entry),
            Kind::HardLink => self.hard_link(&place, entry),
            Kind::Special => Ok(()),
        }
    }

    /// This layer brought what lies here, and so every folder above.
    fn remember(&mut self, real: &[Vec<u8>]) -> Result<()> {
        for length in (1..=real.len()).rev() {
            let path = real.get(..length).unwrap_or_default().join(&b'/');
            let bytes = path.len();
            if !self.brought.insert(path) {
                break;
            }
            self.names_bytes = self.names_bytes.saturating_add(bytes);
        }
        self.bounded()
    }

    fn bounded(&self) -> Result<()> {
        if self.names_bytes > NAMES_BYTES_MAX {
            return Err(Error::refused("a layer's names are longer than those of an image may be"));
        }
        Ok(())
    }

    /// Removes what stands there, unless it is a folder and one may stay.
    fn clear(&mut self, place: &Place, keep_folder: bool) -> Result<Option<FileType>> {
        let kind = kind_at(&place.dir, &place.name)?;
        if kind.is_none() || (keep_folder && kind == Some(FileType::Directory)) {
            return Ok(kind);
        }
        if kind != Some(FileType::RegularFile) {
            self.root.forget();
        }
        let told = || shown(place.name.to_bytes());
        remove(&*place.dir, &place.name).map_err(|e| Error::disk(told(), e))?;
        Ok(None)
    }

    fn directory(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let mode = entry.mode & 0o777 | 0o700;
        if self.clear(place, true)?.is_none() {
            return make_folder(&place.dir, &place.name, mode);
        }
        // It is a folder, and nobody but us is here to make it a link.
        chmodat(&*place.dir, &place.name, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|e| Error::disk(shown(&entry.path), e))
    }

    fn file(&mut self, place: &Place, entry: &Entry, content: &mut impl Read) -> Result<()> {
        let disk = |e: rustix::io::Errno| Error::disk(shown(&entry.path), e);
        self.clear(place, false)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let owner_only = Mode::from_raw_mode(0o600);
        let fd = openat2(&*place.dir, &place.name, flags, owner_only, BENEATH).map_err(disk)?;
        let mut file = std::fs::File::from(fd);
        let copied = self.copy(content, &mut file, entry)?;
        if copied != entry.size {
            return Err(Error::refused(format!("{} is cut off", shown(&entry.path))));
        }
        fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777 | 0o400)).map_err(disk)?;
        let at = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
        // A time beyond what the file system keeps is cut by the kernel; none is worth failing for.
        let _ = futimens(&file, &Timestamps { last_access: at, last_modification: at });
        Ok(())
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut std::fs::File, entry: &Entry) -> Result<u64> {
        let mut buffer = vec![0; CHUNK.min(usize::try_from(entry.size).unwrap_or(CHUNK).max(1))];
        let mut copied = 0;
        loop {
            let n = from.read(&mut buffer).map_err(|e| {
                carried(&e)
                    .unwrap_or_else(|| Error::refused(format!("{}: {e}", shown(&entry.path))))
            })?;
            let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else { return Ok(copied) };
            to.write_all(part).map_err(|e| Error::disk(shown(&entry.path), e))?;
            copied += n as u64;
            self.report.bytes += n as u64;
        }
    }

    fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let bad = entry.link.is_empty() || entry.link.len() > PATH_BYTES_MAX;
        let target = CString::new(entry.link.clone());
        let Some(target) = target.ok().filter(|_| !bad) else {
            return Err(Error::refused(format!(
                "the link {} has a bad target",
                shown(&entry.path)
            )));
        };
        self.clear(place, false)?;
        self.root.forget();
        // Its target is a name inside the image; nothing here ever follows it.
        symlinkat(&target, &*place.dir, &place.name).map_err(|e| Error::disk(shown(&entry.path), e))
    }

    fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let refuse = |why: &str| {
            let (path, link) = (shown(&entry.path), shown(&entry.link));
            Err(Error::refused(format!("the hard link {path} to {link} {why}")))
        };
        let Some(source) = self.root.place(&names(&entry.link)?, Way::Find)? else {
            return refuse("leads nowhere");
        };
        match kind_at(&source.dir, &source.name)? {
            Some(FileType::RegularFile | FileType::Symlink) => {}
            Some(_) => return refuse("leads to no file"),
            None => return refuse("leads nowhere"),
        }
        let same = identity(&source.dir, &source.name);
        if same.is_some() && same == identity(&place.dir, &place.name) {
            return Ok(());
        }
        self.clear(place, false)?;
        self.root.forget();
        linkat(&*source.dir, &source.name, &*place.dir, &place.name, AtFlags::empty())
            .map_err(|e| Error::disk(shown(&entry.path), e))
    }

    fn whiteout(&mut self, mut above: Vec<Vec<u8>>, hidden: Vec<u8>) -> Result<()> {
        if hidden == b".wh..opq" {
            return self.opaque(&above);
        }
        if hidden.starts_with(b".wh.") {
            // Bookkeeping of AUFS, which means nothing here.
            return Ok(());
        }
        if matches!(hidden.as_slice(), b"" | b"." | b"..") {
            return Err(Error::refused("a whiteout names no file"));
        }
        above.push(hidden);
        let Some(place) = self.root.place(&above, Way::Straight)? else { return Ok(()) };
        if self.brought.contains(&place.real.join(&b'/')) {
            return Ok(());
        }
        self.clear(&place, false).map(drop)
    }

    /// Removes what lower layers put into a folder.
    fn opaque(&mut self, above: &[Vec<u8>]) -> Result<()> {
        let Some(top) = self.root.reach(above, Way::Straight)? else { return Ok(()) };
        let path = top.real.join(&b'/');
        let bytes = path.len();
        if !self.hidden.insert(path.clone()) {
            return Ok(());
        }
        self.names_bytes = self.names_bytes.saturating_add(bytes);
        self.bounded()?;
        self.root.forget();
        self.hide(&top.dir, &path)
    }

    fn hide(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        for name in list(dir.as_fd()).map_err(|e| Error::disk(shown(path), e))? {
            let mut inner = path.to_vec();
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend(name.to_bytes());
            if !self.brought.contains(&inner) {
                remove(dir, &name).map_err(|e| Error::disk(shown(&inner), e))?;
            } else if kind_at(dir, &name)? == Some(FileType::Directory) {
                let opened = folder(dir, &name).map_err(|e| Error::disk(shown(&inner), e))?;
                self.hide(&opened, &inner)?;
            }
        }
        Ok(())
    }
}
