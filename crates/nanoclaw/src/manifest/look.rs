//! Looking at a mount from outside, while whoever writes there may mean no good.
//!
//! 1. No link is followed, none on the way either: every folder is opened below the mount with
//!    `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`, and no other file system is entered.
//! 2. Nothing is opened for reading but what is a file: first without any effect (`O_PATH`), then,
//!    if it is still the one that was looked at, through that descriptor, and without waiting for
//!    whoever holds a lease on it.
//! 3. Entries, paths, bytes and time are bounded for each mount. A folder that was not looked at
//!    whole is left out whole, with the reason.

use super::names::escaped;
use super::picture::{Marks, Picture, Seen, Sort};
use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, Stat};
use rustix::fs::{fstat, fstatfs, openat, openat2, readlinkat, statat};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// What is looked at and read of one mount for one manifest at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Entries.
    pub(crate) entries: u64,
    /// Contents of files, bytes.
    pub(crate) bytes: u64,
    /// For looking, and as long again for reading.
    pub(crate) time: Duration,
    /// Changes that are named.
    pub(crate) listed: usize,
}

impl Bounds {
    /// A large project has 100,000 files; looking at as many takes about half a second and, while
    /// the session lives, some 20 MB. A reply waits for a manifest, so two seconds are the most
    /// for each half of it, in which 128 MiB are read on any machine of today.
    pub(crate) const USUAL: Self =
        Self { entries: 100_000, bytes: 128 << 20, time: Duration::from_secs(2), listed: 10_000 };
}

/// Longest path below a mount that is entered: the kernel takes 4,095 bytes (`PATH_MAX`), and a
/// name of 255 may follow.
const PATH_BYTES_MAX: usize = 3_800;
/// A file that changed so lately can change again without another time: clocks of file systems
/// tick every 1 to 10 ms, before Linux 6.13 on all of them.
const FRESH: Duration = Duration::from_millis(20);
/// File systems that note the time of a change when a program writes through a mapping, by their
/// magic number (statfs(2)): the kernel asks each of them before a page of a file becomes writable
/// (`page_mkwrite`), and again after each write-back. tmpfs and ramfs are never asked, an overlay
/// has the times of what lies below it, and a server's times are its own affair, so whatever does
/// not stand here is read instead.
const NOTING: [u32; 4] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0xF2F5_2010, // f2fs
];
/// Read at once.
const PIECE: usize = 128 << 10;

const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_EFFECT: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A mount as the host has it, held by a descriptor from before the program runs.
#[derive(Debug)]
pub(crate) struct Place {
    top: OwnedFd,
    folder: bool,
    /// What is written through a mapping shows in the marks, at the latest with its write-back.
    notes_mapped: bool,
}

impl Place {
    /// Opens it; a link on the way is refused.
    pub(crate) fn open(source: &Path) -> Result<Self, Errno> {
        let links = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
        let top = openat2(CWD, source, NO_EFFECT, Mode::empty(), links)?;
        let folder = Sort::of(fstat(&top)?.st_mode) == Sort::Folder;
        // Of a file system that does not say what it is nothing is known.
        let notes_mapped = fstatfs(&top).is_ok_and(|stat| notes_mapped(stat.f_type));
        Ok(Self { top, folder, notes_mapped })
    }

    /// As if it lay on a file system that does or does not note what is written through a mapping.
    #[cfg(test)]
    pub(super) fn noting(self, notes_mapped: bool) -> Self {
        Self { notes_mapped, ..self }
    }

    /// Whether the marks of a file tell of what was written through a mapping.
    pub(super) fn notes_mapped(&self) -> bool {
        self.notes_mapped
    }
}

/// Whether a file system with this magic number notes writes through a mapping.
// Magic numbers have 32 bits; the field is wider on some platforms and signed on others.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn notes_mapped(magic: rustix::fs::FsWord) -> bool {
    NOTING.contains(&(magic as u32))
}

/// What is left of the bounds.
pub(super) struct Left {
    entries: u64,
    bounds: Bounds,
    until: Instant,
    pub(super) bytes: u64,
}

impl Left {
    pub(super) fn new(bounds: Bounds) -> Self {
        let until = Instant::now() + bounds.time;
        Self { entries: bounds.entries, bounds, until, bytes: bounds.bytes }
    }

    /// From now on files are read, with as much time again.
    pub(super) fn turn_to_reading(&mut self) {
        self.until = Instant::now() + self.bounds.time;
    }

    fn time(&self) -> Result<(), String> {
        let more = Instant::now() < self.until;
        let limit = self.bounds.time.as_millis();
        if more { Ok(()) } else { Err(format!("there was no time left of {limit} ms")) }
    }

    fn entry(&mut self) -> Result<(), String> {
        self.time()?;
        let limit = self.bounds.entries;
        let no_room = || format!("there are more than {limit} entries");
        self.entries = self.entries.checked_sub(1).ok_or_else(no_room)?;
        Ok(())
    }
}

/// Looks at all of it, shallow folders first.
pub(super) fn look(place: &Place, left: &mut Left) -> Picture {
    let mut picture = Picture::default();
    match fstat(&place.top) {
        Ok(stat) => drop(picture.entries.insert(Vec::new(), seen(&stat))),
        Err(e) => drop(picture.missed.insert(Vec::new(), e.to_string())),
    }
    let mut due = VecDeque::new();
    if place.folder {
        due.push_back(Vec::new());
    } else {
        picture.looked_at = 1;
    }
    while let Some(path) = due.pop_front() {
        match folder(place, &path, left) {
            Ok(found) => {
                picture.looked_at += found.len() as u64;
                for (name, entry) in found {
                    let inner = below(&path, &name);
                    if entry.sort == Sort::Folder {
                        due.push_back(inner.clone());
                    }
                    picture.entries.insert(inner, entry);
                }
            }
            Err(why) => drop(picture.missed.insert(path, why)),
        }
    }
    picture
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [path, slash, name].concat()
}

fn folder(place: &Place, path: &[u8], left: &mut Left) -> Result<BTreeMap<Vec<u8>, Seen>, String> {
    left.time()?;
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("its path is longer than {PATH_BYTES_MAX} bytes"));
    }
    let name: &[u8] = if path.is_empty() { b"." } else { path };
    let opened = openat2(&place.top, name, FOLDER, Mode::empty(), BELOW).map_err(why)?;
    let mut found = BTreeMap::new();
    for entry in Dir::read_from(&opened).map_err(why)? {
        let entry = entry.map_err(why)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        left.entry()?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statat(&opened, name, flags) {
            Ok(stat) => drop(found.insert(name.to_bytes().to_vec(), seen(&stat))),
            // Gone meanwhile.
            Err(Errno::NOENT) => {}
            Err(e) => return Err(format!("{}: {e}", escaped(name.to_bytes()))),
        }
    }
    Ok(found)
}

fn why(error: Errno) -> String {
    match error {
        Errno::XDEV => "another file system is mounted there".into(),
        Errno::LOOP | Errno::NOTDIR | Errno::NOENT => "it was replaced or removed meanwhile".into(),
        other => other.to_string(),
    }
}

fn seen(stat: &Stat) -> Seen {
    let marks = marks(stat);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (now, fresh) = (now.as_nanos() as i128, FRESH.as_nanos() as i128);
    let settled = marks.changed_ns().saturating_add(fresh) < now;
    Seen { sort: Sort::of(stat.st_mode), marks, settled, digest: None }
}

// Widths of these fields differ between architectures.
#[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
fn marks(stat: &Stat) -> Marks {
    Marks {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode as u32,
        owner: (stat.st_uid as u32, stat.st_gid as u32),
        written: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    }
}

/// What was read of a file or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) sha256: [u8; 32],
    pub(super) bytes: u64,
    /// It was not the same before and after.
    pub(super) racy: bool,
}

/// Reads what a file holds or a link says; an error is the reason why not.
pub(super) fn contents(
    place: &Place,
    path: &[u8],
    entry: &Seen,
    left: &mut Left,
) -> Result<Contents, String> {
    left.time()?;
    let fd = if path.is_empty() {
        place.top.try_clone().map_err(|e| e.to_string())?
    } else {
        openat2(&place.top, path, NO_EFFECT, Mode::empty(), BELOW).map_err(why)?
    };
    let before = fstat(&fd).map_err(why)?;
    let (sort, now) = (Sort::of(before.st_mode), marks(&before));
    if sort != entry.sort || (now.device, now.inode) != (entry.marks.device, entry.marks.inode) {
        return Err("it was replaced or removed meanwhile".into());
    }
    if sort == Sort::Link {
        let says = readlinkat(&fd, "", Vec::new()).map_err(why)?.into_bytes();
        let bytes = says.len() as u64;
        let sha256 = audit::merkle::sha256(&says);
        return Ok(Contents { sha256, bytes, racy: now != entry.marks });
    }
    if now.size > left.bytes {
        return Err(format!("more than {} bytes would be read in all", left.bounds.bytes));
    }
    // The number of an open descriptor of our own: the file itself, wherever its name leads by now.
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, own, flags, Mode::empty()).map_err(|e| e.to_string())?;
    let file = File::from(opened);
    let (sha256, bytes) = hash(&file, left)?;
    let after = marks(&fstat(&file).map_err(why)?);
    Ok(Contents { sha256, bytes, racy: now != entry.marks || after != now })
}

/// A file can grow while it is read: no more than what is left.
fn hash(mut file: &File, left: &mut Left) -> Result<([u8; 32], u64), String> {
    let mut hash = Context::new(&SHA256);
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    loop {
        left.time()?;
        let n = match file.read(&mut piece) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.to_string()),
        };
        if n == 0 {
            break;
        }
        hash.update(&piece[..n]);
        bytes += n as u64;
        let limit = left.bounds.bytes;
        let too_much = || format!("more than {limit} bytes would be read in all");
        left.bytes = left.bytes.checked_sub(n as u64).ok_or_else(too_much)?;
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(hash.finish().as_ref());
    Ok((sha256, bytes))
}
