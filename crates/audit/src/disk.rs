//! Everything the log does to its files, as one trait: what stands under it in a test may fail any
//! call, drop and reorder what was not synced, and then go on as after a power cut.
//!
//! ```text
//! log, wal, tiler, tiles, keys ─► Disk ─┬─ Real: the operating system
//!                                       └─ a simulated one (tests/crash)
//! ```
//!
//! 1. No file of a log is written, renamed, cut or removed but through here. Readers of other
//!    processes ([`crate::read`], [`crate::verify`]) have the real files.
//! 2. Nothing here tries again: a failed sync may have dropped the pages, and only the caller knows
//!    what is to be written anew.

use rustix::fs::{FlockOperation, flock};
use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk that the threads of one log share.
pub type SharedDisk = Arc<dyn Disk>;

/// Something held until it is dropped.
pub type Held = Box<dyn Any + Send>;

/// What lies in a folder: its path, and whether it is a folder itself.
pub type Listed = (PathBuf, bool);

/// Permissions of what is nobody else's affair: keys and the log's own notes.
pub(crate) const PRIVATE: u32 = 0o600;

/// Permissions of what strangers may read, if whoever holds the folder lets them in.
pub(crate) const PUBLIC: u32 = 0o644;

/// Where a log lies. Errors of every call are as the operating system has them.
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Disk: Debug + Send + Sync {
    /// Makes a folder for its owner alone, with those above it; that it is there is no error.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Opens a file to write at its end; `new` says that it must not be there yet.
    fn append(&self, path: &Path, new: bool) -> io::Result<Box<dyn Appender>>;

    /// A file's bytes from `offset` on.
    fn reader(&self, path: &Path, offset: u64) -> io::Result<Box<dyn Read + Send>>;

    /// A file's length, bytes.
    fn length(&self, path: &Path) -> io::Result<u64>;

    /// Makes a file's content these bytes, and nothing of what it had. Not synced.
    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()>;

    /// Writes into a file that is there. Not synced.
    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to `length`. Not synced.
    fn cut(&self, path: &Path, length: u64) -> io::Result<()>;

    /// Makes a file's content, or a folder's names, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Makes everything durable that was written since `held`, which [`Disk::lock`] gave; tells of
    /// every write since then that could not be.
    fn sync_all(&self, held: &Held) -> io::Result<()>;

    /// Gives a file another name, in place of what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// What lies in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;

    /// Locks a file, which is made if need be, until what is returned is dropped; `None` when it is
    /// locked already.
    fn lock(&self, path: &Path) -> io::Result<Option<Held>>;
}

/// The end of a file that grows.
#[allow(clippy::missing_errors_doc, reason = "as `Disk`")]
pub trait Appender: Send {
    /// Adds bytes. Not synced.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was added durable, with the length.
    fn sync(&mut self) -> io::Result<()>;
}

/// A whole small file; `None` when there is none.
pub(crate) fn read(disk: &dyn Disk, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match disk.reader(path, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        reader => reader?.take(max).read_to_end(&mut bytes)?,
    };
    Ok(Some(bytes))
}

/// Puts a file in place of what has its name, whole and durable or not at all; meanwhile it has the
/// name `new`.
pub(crate) fn replace(
    disk: &dyn Disk,
    new: &Path,
    path: &Path,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    disk.write(new, bytes, mode)?;
    disk.sync(new)?;
    disk.rename(new, path)?;
    disk.sync(path.parent().unwrap_or(path))
}

/// Opens a regular file to be read. Whoever may write in a log's folder can put a pipe in a file's
/// place, which would be waited for without end.
///
/// # Errors
/// As open(2) says; [`io::ErrorKind::InvalidInput`] where it is no regular file.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true), path)
}

/// The longest file that is read whole: a bundle of 256 of the longest entries is 16.4 MB.
const WHOLE_BYTES_MAX: u64 = 17 << 20;

/// All bytes of a regular file.
///
/// # Errors
/// See [`open_file`]; also where it is longer than any file that is read whole.
pub(crate) fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(WHOLE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > WHOLE_BYTES_MAX {
        let why = "it is longer than such a file of a log ever is";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(bytes)
}

/// Writes a file that is to be new, in whatever stands there: a link there is removed, and what it
/// leads to is not touched.
///
/// # Errors
/// As the operating system has it.
pub(crate) fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path),
    }
}

/// A folder, which is no link, as a path that keeps meaning it whatever is put in its place.
///
/// # Errors
/// As open(2) says; [`io::ErrorKind::NotADirectory`] where it is a link.
pub(crate) fn hold_folder(path: &Path) -> io::Result<(File, PathBuf)> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW;
    let folder =
        OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let held = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    Ok((folder, held))
}

/// A file that is there to be locked, made if need be.
///
/// # Errors
/// See [`open_file`].
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    regular(options.create(true).truncate(false).write(true).mode(PRIVATE), path)
}

/// Removes a file below a log's folder, through folders alone: none of them may be a link.
///
/// # Errors
/// As the operating system has it.
pub(crate) fn remove_beneath(dir: &Path, path: &Path) -> io::Result<()> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "it is not in the log's folder");
    let below = path.strip_prefix(dir).map_err(|_| outside())?;
    let (mut folder, mut held) = hold_folder(&dir.canonicalize()?)?;
    for part in below.parent().into_iter().flat_map(Path::components) {
        (folder, held) = hold_folder(&held.join(part))?;
    }
    let removed = fs::remove_file(held.join(below.file_name().ok_or_else(outside)?));
    drop(folder);
    removed
}

/// Opens what is no link, without waiting for a pipe's other end, and refuses all but regular
/// files.
fn regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Of a regular file the kernel does not look at `O_NONBLOCK` (open(2)).
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            let why = "it is a link, and no file of a log is; remove it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        other => other?,
    };
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        let why =
            "it is a folder, a pipe, a socket or a device, and no file of a log is; remove it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(file)
}

/// The operating system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Real;

struct RealAppender(File);

impl Appender for RealAppender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for Real {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn append(&self, path: &Path, new: bool) -> io::Result<Box<dyn Appender>> {
        let file = regular(OpenOptions::new().append(true).create_new(new), path)?;
        Ok(Box::new(RealAppender(file)))
    }

    fn reader(&self, path: &Path, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut file = open_file(path)?;
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(Box::new(file))
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        regular(&mut options, path)?.write_all(bytes)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        regular(OpenOptions::new().write(true), path)?.write_all_at(bytes, offset)
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        regular(OpenOptions::new().write(true), path)?.set_len(length)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // The key's folder is beside the log's, which has a link to it. Nothing is read or written.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all()
    }

    fn sync_all(&self, held: &Held) -> io::Result<()> {
        // By a descriptor as old as the log is open: `syncfs` tells (since Linux 5.8) of the writes
        // that failed since its descriptor was opened.
        let file = held.downcast_ref::<File>();
        let file = file.ok_or_else(|| io::Error::other("not a lock of this disk"))?;
        Ok(rustix::fs::syncfs(file)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            found.push((entry.path(), entry.file_type()?.is_dir()));
        }
        Ok(found)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Held>> {
        let file = open_lock(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}
