//! A strict, streaming reader of tar archives: ustar, pax and GNU's long names.
//!
//! Pipeline: 512-byte headers ─► checksum ─► extensions (bounded) ─► `Entry`, then its bytes.
//!
//! 1. Nothing is held in memory but one header and its extensions, at most
//!    [`EXTENSION_BYTES_MAX`].
//! 2. What is not exactly understood (sparse files, unknown kinds, bad numbers) is refused: two
//!    readers that disagree about an archive are how files get smuggled.
//! 3. No number of an archive is believed: a file's size beyond what may come out of the whole is
//!    refused where it is read, and no sum of such numbers can wrap.
//!
//! Formats: POSIX.1-2017 pax, and tar(5) of GNU for `L` and `K`.

use crate::error::{Error, Result, shown};
use crate::limits::PATH_BYTES_MAX;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Extended headers carry paths and extended attributes; the latter may be 64 KiB each.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Extensions in front of one entry: a global one, a pax one, a long name, a long link, twice.
const EXTENSIONS_MAX: usize = 8;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    /// A device node or a named pipe.
    Special,
}

/// One entry; its bytes are read from the [`Reader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) link: Vec<u8>,
    /// How many extended attributes came with it.
    pub(crate) attributes: u64,
}

/// What extended headers said of the next entry.
#[derive(Debug, Clone, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
    attributes: u64,
}

/// Reads entries one after the other.
pub(crate) struct Reader<R> {
    inner: R,
    /// The largest file there may be, bytes.
    most: u64,
    /// Bytes of the current entry not yet read, and what fills up its last block.
    left: u64,
    padding: u64,
    global: Extension,
    ended: bool,
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..most).filter(|p| !p.is_empty()) else { return Ok(0) };
        let n = self.inner.read(part)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl<R: Read> Reader<R> {
    /// Of a stream from which at most so many bytes may come: no file can be larger.
    pub(crate) fn new(inner: R, most: u64) -> Self {
        Self { inner, most, left: 0, padding: 0, global: Extension::default(), ended: false }
    }

    /// The next entry, or `None` at the archive's end. Unread bytes of the last one are skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extension = self.global.clone();
        for _ in 0..=EXTENSIONS_MAX {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header, 124, 12, "size")?;
            match header.get(156).copied().unwrap_or(0) {
                b'x' => self.pax(size, &mut extension)?,
                b'g' => {
                    let mut global = self.global.clone();
                    self.pax(size, &mut global)?;
                    self.global = global.clone();
                    extension = global;
                }
                b'L' => extension.path = Some(self.long_name(size)?),
                b'K' => extension.link = Some(self.long_name(size)?),
                flag => return self.entry(&header, flag, size, extension).map(Some),
            }
        }
        Err(Error::refused("the archive has too many headers in front of one entry"))
    }

    /// Reads to the very end, so that a digest covers every byte.
    pub(crate) fn drain(mut self) -> Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop).map_err(|e| bad(&e))
    }

    fn skip_rest(&mut self) -> Result<()> {
        // One after the other, for their sum need not be a number.
        for left in [std::mem::take(&mut self.left), std::mem::take(&mut self.padding)] {
            let skipped = io::copy(&mut (&mut self.inner).take(left), &mut io::sink());
            if skipped.map_err(|e| bad(&e))? < left {
                return Err(Error::refused("the archive is cut off"));
            }
        }
        Ok(())
    }

    /// The next header; `None` at the end marker or at the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let n = fill(&mut self.inner, &mut block)?;
        if n == 0 || (n == BLOCK && block == [0; BLOCK]) {
            self.ended = true;
            return Ok(None);
        }
        if n < BLOCK {
            return Err(Error::refused("the archive is cut off"));
        }
        let told = number(&block, 148, 8, "checksum")?;
        let counted = |(at, byte): (usize, &u8)| {
            if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) }
        };
        if told != block.iter().enumerate().map(counted).sum::<u64>() {
            return Err(Error::refused("the archive has a header with a wrong checksum"));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64, most: u64) -> Result<Vec<u8>> {
        if size > most {
            return Err(Error::refused(format!(
                "the archive has an extended header of {size} bytes"
            )));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(|e| bad(&e))?;
        Ok(bytes)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.extension(size, PATH_BYTES_MAX as u64 + 1)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn pax(&mut self, size: u64, into: &mut Extension) -> Result<()> {
        let bytes = self.extension(size, EXTENSION_BYTES_MAX)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).ok_or_else(|| Error::refused("the archive has a bad pax record"))?;
            rest = after;
            take_record(into, key, value)?;
        }
        Ok(())
    }

    fn entry(&mut self, h: &[u8], flag: u8, size: u64, extension: Extension) -> Result<Entry> {
        let path = extension.path.unwrap_or_else(|| path_of(h));
        let kind = match flag {
            0 | b'0' | b'7' if path.last() == Some(&b'/') => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' | b'6' => Kind::Special,
            b'5' => Kind::Directory,
            b'S' => return Err(sparse(&path)),
            other => {
                let kind = char::from(other).escape_default();
                let cause = format!("{} is of the unknown kind '{kind}'", shown(&path));
                return Err(Error::refused(cause));
            }
        };
        // Only files have bytes behind them, whatever the header says (as in Go's archive/tar).
        let size = if kind == Kind::File { extension.size.unwrap_or(size) } else { 0 };
        if size > self.most {
            let cause = format!("{} has {size} bytes, more than an image may", shown(&path));
            return Err(Error::refused(cause));
        }
        self.begin(size);
        let mtime = match extension.mtime {
            Some(time) => time,
            None => i64::try_from(number(h, 136, 12, "time")?).unwrap_or(0),
        };
        let mode = u32::try_from(number(h, 100, 8, "mode")? & 0o7777).unwrap_or(0);
        let link = extension.link.unwrap_or_else(|| text(h, 157, 100));
        Ok(Entry { path, kind, size, mode, mtime, link, attributes: extension.attributes })
    }
}

fn bad(e: &io::Error) -> Error {
    match crate::error::carried(e) {
        Some(error) => error,
        None => Error::refused(format!("the archive cannot be read: {e}")),
    }
}

fn sparse(path: &[u8]) -> Error {
    let cause = format!("{} is a sparse file, which is not read here", shown(path));
    Error::new(
        crate::ErrorKind::Refused,
        cause,
        "nothing was stored; pack it without --sparse (as docker and buildah do)",
    )
}

fn take_record(into: &mut Extension, key: &[u8], value: &[u8]) -> Result<()> {
    match key {
        b"path" | b"linkpath" => {
            if value.len() > PATH_BYTES_MAX {
                return Err(Error::refused(format!("the name {} is too long", shown(value))));
            }
            let place = if key == b"path" { &mut into.path } else { &mut into.link };
            *place = Some(value.to_vec());
        }
        b"size" => {
            let size = decimal(value).ok_or_else(|| Error::refused("a pax size is no number"))?;
            into.size = Some(size);
        }
        b"mtime" => {
            // Fractions of a second are left out; times before 1970 become 1970.
            let whole = value.split(|b| *b == b'.').next().unwrap_or_default();
            into.mtime = Some(decimal(whole).and_then(|t| i64::try_from(t).ok()).unwrap_or(0));
        }
        key if key.starts_with(b"GNU.sparse.") => return Err(sparse(key)),
        key if key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.") => {
            into.attributes += 1;
        }
        _ => {}
    }
    Ok(())
}

/// `LENGTH key=value\n`, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((body.get(..equals)?, body.get(equals + 1..)?, bytes.get(length..)?))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if plain { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

/// Reads until full or the end.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut n = 0;
    while let Some(rest) = buffer.get_mut(n..).filter(|r| !r.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(bad(&e)),
        }
    }
    Ok(n)
}

/// A field up to its first zero.
fn text(header: &[u8], at: usize, length: usize) -> Vec<u8> {
    let field = header.get(at..at + length).unwrap_or_default();
    field.iter().copied().take_while(|b| *b != 0).collect()
}

/// Prefix (ustar only; GNU's old format keeps times there) and name.
fn path_of(header: &[u8]) -> Vec<u8> {
    let name = text(header, 0, 100);
    let posix = header.get(257..263) == Some(b"ustar\0");
    let mut path = if posix { text(header, 345, 155) } else { Vec::new() };
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
    path
}

/// Octal with blanks around it, or base 256 where the highest bit is set.
fn number(header: &[u8], at: usize, length: usize, what: &str) -> Result<u64> {
    let refuse = || Error::refused(format!("the archive has a header with a bad {what}"));
    let field = header.get(at..at + length).unwrap_or_default();
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Negative numbers (0xff…) and more than 64 bits mean nothing here.
        let high = u64::from(first & 0x7f);
        return rest.iter().try_fold(high, |sum, byte| {
            sum.checked_mul(256).and_then(|s| s.checked_add(u64::from(*byte))).ok_or_else(refuse)
        });
    }
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|b| *b == b' ')
        .take_while(|b| !matches!(b, 0 | b' '))
        .collect();
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8).map(|s| s + u64::from(digit - b'0')).ok_or_else(refuse),
        _ => Err(refuse()),
    })
}
