//! A folder of the host to a tar: the layer of an image made from it.
//!
//! Sorted, without owners, times in whole seconds: the same folder gives the same bytes. Links are
//! packed as links; sockets, pipes, devices and other file systems are left out.

use crate::error::{Error, Result, shown};
use crate::limits::{DEPTH_MAX, PATH_BYTES_MAX, Watch};
use crate::packing::CHUNK;
use crate::unpack::list;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat,
};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

const BLOCK: usize = 512;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Writes the archive of everything below `top`.
pub(crate) fn pack(top: &OwnedFd, out: &mut impl Write, watch: &dyn Watch) -> Result<()> {
    let device = rustix::fs::fstat(top).map_err(|e| Error::disk("the folder", e))?.st_dev;
    let mut packer = Packer { out, watch, device };
    packer.folder(top, &mut Vec::new(), 0)?;
    packer.write(&[0; 2 * BLOCK])
}

struct Packer<'a, W> {
    out: &'a mut W,
    watch: &'a dyn Watch,
    device: u64,
}

impl<W: Write> Packer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::disk("the store of images", e))
    }

    fn folder(&mut self, dir: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX || path.len() > PATH_BYTES_MAX {
            return Err(Error::refused(format!("{} is too deep", shown(path))));
        }
        let mut names = list(dir.as_fd()).map_err(|e| Error::disk(shown(path), e))?;
        names.sort();
        for name in names {
            if self.watch.cancelled() {
                return Err(Error::cancelled());
            }
            let before = path.len();
            if before > 0 {
                path.push(b'/');
            }
            path.extend(name.to_bytes());
            let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| Error::disk(shown(path), e))?;
            if stat.st_dev == self.device {
                self.entry(dir, &name, path, &stat, depth)?;
            }
            path.truncate(before);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &mut Vec<u8>,
        stat: &Stat,
        depth: usize,
    ) -> Result<()> {
        let told = shown(path);
        let disk = |e: rustix::io::Errno| Error::disk(&told, e);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.header(path, stat, b'5', 0, b"")?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let inner = openat2(dir, name, flags, Mode::empty(), BENEATH).map_err(disk)?;
                self.folder(&inner, path, depth + 1)
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(disk)?;
                self.header(path, stat, b'2', 0, target.to_bytes())
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let fd = openat2(dir, name, flags, Mode::empty(), BENEATH).map_err(disk)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.header(path, stat, b'0', size, b"")?;
                self.content(File::from(fd), size, path)
            }
            _ => Ok(()),
        }
    }

    fn content(&mut self, file: File, size: u64, path: &[u8]) -> Result<()> {
        let mut from = file.take(size);
        let mut buffer = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let n = match from.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|e| Error::disk(shown(path), e))?,
            };
            if n == 0 {
                return Err(Error::refused(format!("{} changed while it was read", shown(path))));
            }
            self.write(buffer.get(..n).unwrap_or_default())?;
            left -= n as u64;
        }
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.write(&[0; BLOCK][..usize::try_from(padding).unwrap_or(0)])
    }

    fn header(&mut self, path: &[u8], stat: &Stat, kind: u8, size: u64, link: &[u8]) -> Result<()> {
        let mut records = Vec::new();
        for (key, value, most) in [("path", path, 100), ("linkpath", link, 100)] {
            if value.len() > most {
                record(&mut records, key, value);
            }
        }
        if size >= 1 << 33 {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        if !records.is_empty() {
            self.block(b"pax", 0o644, 0, records.len() as u64, b'x', b"")?;
            let padding = (BLOCK - records.len() % BLOCK) % BLOCK;
            records.resize(records.len() + padding, 0);
            self.write(&records)?;
        }
        self.block(path, stat.st_mode & 0o7777, stat.st_mtime.max(0), size, kind, link)
    }

    fn block(
        &mut self,
        path: &[u8],
        mode: u32,
        mtime: i64,
        size: u64,
        kind: u8,
        link: &[u8],
    ) -> Result<()> {
        let mut block = [0; BLOCK];
        // What does not fit stands in a pax record in front.
        let size = if size < 1 << 33 { size } else { 0 };
        let mtime = mtime.min((1 << 33) - 1);
        put(&mut block, 0, path.get(..path.len().min(100)).unwrap_or_default());
        put(&mut block, 100, format!("{mode:07o}").as_bytes());
        put(&mut block, 108, b"0000000");
        put(&mut block, 116, b"0000000");
        put(&mut block, 124, format!("{size:011o}").as_bytes());
        put(&mut block, 136, format!("{mtime:011o}").as_bytes());
        put(&mut block, 148, b"        ");
        put(&mut block, 156, &[kind]);
        put(&mut block, 157, link.get(..link.len().min(100)).unwrap_or_default());
        put(&mut block, 257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.write(&block)
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(place) = block.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// `LENGTH key=value\n`, whose length counts its own digits.
fn record(into: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    into.extend(format!("{length} {key}=").as_bytes());
    into.extend(value);
    into.push(b'\n');
}
