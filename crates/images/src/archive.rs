//! The files of an image archive by their names: a folder, or a tar that is taken apart.
//!
//! Names come from documents inside the image, so a folder is opened beneath only; files of a tar
//! are kept under numbers, whatever they are called.

use crate::error::{Error, Result, shown};
use crate::limits::Limits;
use crate::packing::{self, Packing};
use crate::tar::{Kind, Reader};
use crate::unpack::open_top;
use crate::writer::Writer;
use crate::{Digest, Watch};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the files of an image are.
pub(crate) enum Files {
    Folder(OwnedFd),
    Parts(BTreeMap<Vec<u8>, PathBuf>),
}

impl Files {
    pub(crate) fn folder(path: &Path) -> Result<Self> {
        open_top(path).map(Self::Folder)
    }

    /// Opens one; `None` when it is not there. What is no ordinary file is refused: reading a pipe
    /// or a device could wait for ever, or do something.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>> {
        match self {
            Self::Folder(top) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let told = |e| Error::disk(format!("{name:?} of the image"), e);
                let probe = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let stat = match openat2(top, name, probe, Mode::empty(), beneath) {
                    Err(Errno::NOENT) => return Ok(None),
                    looked => looked.and_then(fstat).map_err(told)?,
                };
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    let cause = format!("{name:?} of the image is no ordinary file");
                    return Err(Error::refused(cause));
                }
                let opened = openat2(top, name, flags, Mode::empty(), beneath);
                opened.map(|fd| Some(File::from(fd))).map_err(told)
            }
            Self::Parts(parts) => match parts.get(name.as_bytes()) {
                Some(path) => {
                    File::open(path).map(Some).map_err(|e| Error::disk(path.display(), e))
                }
                None => Ok(None),
            },
        }
    }

    /// Opens one that must be there.
    pub(crate) fn need(&self, name: &str) -> Result<File> {
        self.open(name)?.ok_or_else(|| Error::refused(format!("the image lacks its file {name:?}")))
    }
}

/// What a tar turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) packing: Packing,
    /// How long the file is, bytes.
    pub(crate) bytes: u64,
    /// Of its bytes, uncompressed.
    pub(crate) unpacked: Digest,
    pub(crate) shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An OCI layout.
    Layout,
    /// What `docker save` wrote before it wrote layouts.
    Docker,
    /// A root file system.
    Plain,
}

/// Reads it once from start to end.
pub(crate) fn scan(path: &Path, limits: &Limits, watch: &dyn Watch) -> Result<Scan> {
    let file = File::open(path).map_err(|e| Error::disk(path.display(), e))?;
    let opened = packing::open(file, limits, watch)?;
    let mut reader = Reader::new(opened.bytes, limits.unpacked_bytes);
    let (mut layout, mut index, mut docker, mut system) = (false, false, false, false);
    let mut entries: u64 = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            return Err(Error::refused("the image has more entries than an image may"));
        }
        match plain(&entry.path) {
            b"oci-layout" => layout = true,
            b"index.json" => index = true,
            b"manifest.json" => docker = true,
            name => system |= matches!(name, b"etc" | b"usr" | b"bin"),
        }
    }
    if entries == 0 {
        let why = format!("{} is empty, or no tar archive", path.display());
        return Err(Error::refused(why));
    }
    reader.drain()?;
    let shape = match (layout && index, docker && !system) {
        (true, _) => Shape::Layout,
        (false, true) => Shape::Docker,
        (false, false) => Shape::Plain,
    };
    let (bytes, unpacked) = (opened.packed.bytes(), opened.unpacked.digest());
    Ok(Scan { packing: opened.packing, bytes, unpacked, shape })
}

/// Takes a tar apart: each of its files under a number in `tmp/`.
pub(crate) fn parts(
    writer: &Writer<'_>,
    path: &Path,
    limits: &Limits,
    watch: &dyn Watch,
) -> Result<Files> {
    let file = File::open(path).map_err(|e| Error::disk(path.display(), e))?;
    let opened = packing::open(file, limits, watch)?;
    let mut reader = Reader::new(opened.bytes, limits.unpacked_bytes);
    let mut parts = BTreeMap::new();
    let mut entries: u64 = 0;
    while let Some(entry) = reader.next_entry()? {
        // Counted anew: the file may have changed since it was looked through.
        entries += 1;
        if entries > limits.entries {
            return Err(Error::refused("the image has more entries than an image may"));
        }
        if entry.kind != Kind::File {
            continue;
        }
        let place = writer.fresh();
        let mut to = File::create(&place).map_err(|e| Error::disk(place.display(), e))?;
        copy(&mut reader, &mut to, &entry.path)?;
        parts.insert(plain(&entry.path).to_vec(), place);
    }
    Ok(Files::Parts(parts))
}

fn copy(from: &mut impl Read, to: &mut File, name: &[u8]) -> Result<()> {
    io::copy(from, to)
        .map(drop)
        .map_err(|e| crate::error::carried(&e).unwrap_or_else(|| Error::disk(shown(name), e)))
}

/// Without `./` in front and `/` behind.
fn plain(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}
