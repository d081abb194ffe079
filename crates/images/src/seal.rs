//! Whether a tree is still what was unpacked.
//!
//! Pipeline: tree ─► walk, sorted ─► two digests: of what it holds, and of how the file system
//! describes it.
//!
//! 1. The second digest (sizes, modes, inodes, times of change) is enough to say "untouched"
//!    without reading a file: an ordinary program cannot set a file's time of change.
//! 2. Where it differs (a backup was put back, the folder was copied) the first one decides, and
//!    every byte is read.

use crate::digest::{Digest, Hash};
use crate::error::{Error, ErrorKind, Result, shown};
use crate::limits::{DEPTH_MAX, Watch};
use crate::packing::CHUNK;
use crate::unpack::{folder, list};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat,
};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Both digests, as they are kept beside a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    /// Of names, kinds, modes, targets and bytes.
    pub(crate) content: String,
    /// Of names and what stat(2) tells.
    pub(crate) stat: String,
}

/// What a walk looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Stat,
    Content,
}

impl Seal {
    /// Of this tree, now.
    pub(crate) fn of(top: &OwnedFd, watch: &dyn Watch) -> Result<Self> {
        let content = digest(top, Look::Content, watch)?.hex().to_owned();
        Ok(Self { content, stat: digest(top, Look::Stat, watch)?.hex().to_owned() })
    }

    /// Whether the tree is as it was; if only the file system tells otherwise, the seal to keep
    /// from now on.
    pub(crate) fn check(&self, top: &OwnedFd, watch: &dyn Watch) -> Result<Option<Self>> {
        let stat = digest(top, Look::Stat, watch)?.hex().to_owned();
        if stat == self.stat {
            return Ok(None);
        }
        let content = digest(top, Look::Content, watch)?;
        if content.hex() != self.content {
            return Err(changed("its files are not those that were unpacked"));
        }
        Ok(Some(Self { content: self.content.clone(), stat }))
    }
}

/// A tree that is not what it was.
pub(crate) fn changed(why: &str) -> Error {
    let remedy = "nothing was started; `nanoclaw image remove` it, then pull or import it again";
    Error::new(ErrorKind::Changed, format!("the stored image was changed: {why}"), remedy)
}

fn digest(top: &OwnedFd, look: Look, watch: &dyn Watch) -> Result<Digest> {
    let mut hash = Hash::default();
    walk(top, &mut Vec::new(), 0, look, watch, &mut hash)?;
    Ok(hash.digest())
}

fn walk(
    dir: &OwnedFd,
    path: &mut Vec<u8>,
    depth: usize,
    look: Look,
    watch: &dyn Watch,
    hash: &mut Hash,
) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(changed("its folders are too deep"));
    }
    if watch.cancelled() {
        return Err(Error::cancelled());
    }
    let mut names = list(dir.as_fd()).map_err(|e| Error::disk(shown(path), e))?;
    names.sort();
    for name in names {
        let before = path.len();
        path.push(b'/');
        path.extend(name.to_bytes());
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::disk(shown(path), e))?;
        hash.add(&(path.len() as u64).to_le_bytes());
        hash.add(path);
        match look {
            Look::Stat => hash.add(described(&stat).as_bytes()),
            Look::Content => content(dir, &name, &stat, watch, hash).map_err(|e| {
                if watch.cancelled() { Error::cancelled() } else { Error::disk(shown(path), e) }
            })?,
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let inner = folder(dir, &name).map_err(|e| Error::disk(shown(path), e))?;
            walk(&inner, path, depth + 1, look, watch, hash)?;
        }
        path.truncate(before);
    }
    Ok(())
}

/// A folder's size and number of links are the file system's own affair.
fn described(stat: &Stat) -> String {
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let size = if folder { 0 } else { stat.st_size };
    format!(
        " {:o} {size} {}:{} {} {}.{:09} {}.{:09}\n",
        stat.st_mode,
        stat.st_uid,
        stat.st_gid,
        stat.st_ino,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec
    )
}

fn content(
    dir: &OwnedFd,
    name: &CStr,
    stat: &Stat,
    watch: &dyn Watch,
    hash: &mut Hash,
) -> std::io::Result<()> {
    hash.add(format!(" {:o}\n", stat.st_mode).as_bytes());
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(dir, name, Vec::new())?.into_bytes();
            hash.add(&(target.len() as u64).to_le_bytes());
            hash.add(&target);
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let mut file = std::fs::File::from(openat2(dir, name, flags, Mode::empty(), resolve)?);
            let mut own = Hash::default();
            let mut buffer = vec![0; CHUNK];
            loop {
                if watch.cancelled() {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                let n = file.read(&mut buffer)?;
                let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
                own.add(part);
            }
            hash.add(own.digest().hex().as_bytes());
        }
        _ => {}
    }
    Ok(())
}
