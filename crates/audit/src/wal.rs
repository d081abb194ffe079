//! The write-ahead log: append-only segment files, one frame a record.
//!
//! ```text
//! wal/<first seq, 16 hex>.wal    frame = u32 length ‖ u32 crc32c ‖ u64 seq ‖ bytes, little-endian
//! ```
//!
//! 1. Sequence numbers are dense over all segments; a segment is named by its first one.
//! 2. The top bit of `length` says: everything before this frame was synced when it was written. So
//!    a bad frame with such a frame behind it is damage, and one without is a write that a power
//!    cut tore; only the second may be cut off, and what is cut is kept as evidence.
//! 3. A new segment is created, synced, and its folder synced before a frame goes into it.
//! 4. A failed write or sync is never tried again: the kernel may have dropped the pages (Rebello
//!    et al., "Can Applications Recover from fsync Failures?", ATC'20). The caller stops.

use crate::disk::{Appender, Disk, Real, SharedDisk};
use crate::entry::{ENTRY_BYTES_MAX, Entry};
pub use crate::replay::{Replayed, Sealed, Span, Torn, WalError, cut, replay};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes before the entry in a frame.
pub const HEADER_BYTES: usize = 16;

/// A segment is followed by a new one once it is this long: small enough to copy and to scan whole,
/// large enough that a folder sync is rare.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Top bit of the length field, see invariant 2.
const SYNCED_BEFORE: u32 = 1 << 31;

/// Read buffer; must hold the largest frame.
const READ_BYTES: usize = 1 << 20;

/// One frame as read.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the record, which is its index in the log.
    pub seq: u64,
    /// The entry.
    pub bytes: &'a [u8],
}

/// Why a frame cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The file ends inside it.
    #[error("the file ends inside a record")]
    Short,
    /// Its length is not possible.
    #[error("a record's length is not possible")]
    Length,
    /// Its checksum does not match.
    #[error("a record's checksum does not match its bytes")]
    Checksum,
    /// It has another number than the one that is due.
    #[error("a record's number is {found}, but {due} is due")]
    Sequence {
        /// The number there.
        found: u64,
        /// The number that should be there.
        due: u64,
    },
}

/// Entries on their way to the file, end to end: frames that have their length, and get number and
/// checksum when they are written.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: usize,
}

impl Batch {
    /// Adds one entry (which is never empty, and no longer than [`ENTRY_BYTES_MAX`]).
    pub fn push(&mut self, entry: &Entry) {
        // In range: an entry has at most 64,000 bytes.
        let len = entry.bytes().len() as u32;
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(entry.bytes());
        self.count += 1;
    }

    /// Entries in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that it takes in the file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Empties it; keeps its memory for the next one, up to `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep);
        self.count = 0;
    }

    /// Numbers the frames from `first` on and sums them up. The first one says whether everything
    /// before it is synced; the others follow it unsynced.
    fn seal(&mut self, first: u64, synced_before: bool) {
        let (mut rest, mut seq) = (self.bytes.as_mut_slice(), first);
        while let Some((head, tail)) = rest.split_first_chunk_mut::<HEADER_BYTES>() {
            let [a, b, c, d, ..] = *head;
            let len = u32::from_le_bytes([a, b, c, d]);
            let synced = if seq == first && synced_before { SYNCED_BEFORE } else { 0 };
            let (bytes, next) = tail.split_at_mut((len as usize).min(tail.len()));
            let crc = checksum(len | synced, seq, bytes);
            head[..4].copy_from_slice(&(len | synced).to_le_bytes());
            head[4..8].copy_from_slice(&crc.to_le_bytes());
            head[8..].copy_from_slice(&seq.to_le_bytes());
            (rest, seq) = (next, seq + 1);
        }
    }
}

fn checksum(len: u32, seq: u64, bytes: &[u8]) -> u32 {
    let mut head = [0; 12];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..].copy_from_slice(&seq.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), bytes)
}

struct Header {
    len: usize,
    synced_before: bool,
    seq: u64,
    word: u32,
    crc: u32,
}

/// What the start of `bytes` says of a frame there; nothing of it is checked but its length.
pub(crate) struct Claim {
    /// Its number.
    pub(crate) seq: u64,
    /// Bytes of its entry: 1 to [`ENTRY_BYTES_MAX`], and all of them are there.
    pub(crate) len: usize,
    /// Whether everything before it was synced.
    pub(crate) synced_before: bool,
}

/// The frame that may stand at the start of `bytes`.
pub(crate) fn claimed(bytes: &[u8]) -> Option<Claim> {
    let h = header(bytes)?;
    let fits = (1..=ENTRY_BYTES_MAX).contains(&h.len) && bytes.len() - HEADER_BYTES >= h.len;
    fits.then_some(Claim { seq: h.seq, len: h.len, synced_before: h.synced_before })
}

/// Whether a frame, of whatever length, stands at the start of `bytes`: its sum is right.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let entry = |h: &Header| bytes.get(HEADER_BYTES..HEADER_BYTES.saturating_add(h.len));
    header(bytes)
        .filter(|h| h.len > 0)
        .is_some_and(|h| entry(&h).is_some_and(|entry| checksum(h.word, h.seq, entry) == h.crc))
}

fn header(b: &[u8]) -> Option<Header> {
    let (len, rest) = b.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (seq, _) = rest.split_first_chunk::<8>()?;
    let word = u32::from_le_bytes(*len);
    Some(Header {
        len: (word & !SYNCED_BEFORE) as usize,
        synced_before: word & SYNCED_BEFORE != 0,
        seq: u64::from_le_bytes(*seq),
        word,
        crc: u32::from_le_bytes(*crc),
    })
}

/// Reads the frames of one segment.
pub struct FrameReader<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    due: u64,
}

impl<R: Read> FrameReader<R> {
    /// Frames of `source`, which starts at byte `offset` of its file with number `due`.
    pub fn new(source: R, offset: u64, due: u64) -> Self {
        Self { source, buffer: vec![0; READ_BYTES], start: 0, end: 0, offset, due }
    }

    /// Byte of the file where the next frame starts.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Number that the next frame should have.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due
    }

    /// Makes sure that `want` bytes are in the buffer, if the file has them.
    fn fill(&mut self, want: usize) -> io::Result<bool> {
        if self.end - self.start >= want {
            return Ok(true);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < want {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The next frame; `None` at the end of the file. After an inner error the reader stays where
    /// the bad frame starts, and the same call gives the same error (or the frame, if a writer has
    /// finished it meanwhile).
    ///
    /// # Errors
    /// The outer one as the system has it, the inner one when the bytes there are not a frame.
    pub fn next_frame(&mut self) -> io::Result<Result<Option<Frame<'_>>, BadFrame>> {
        if !self.fill(HEADER_BYTES)? {
            return Ok(if self.start == self.end { Ok(None) } else { Err(BadFrame::Short) });
        }
        let Some(h) = header(&self.buffer[self.start..self.end]) else {
            return Ok(Err(BadFrame::Short));
        };
        if h.len == 0 || h.len > ENTRY_BYTES_MAX {
            return Ok(Err(BadFrame::Length));
        }
        let whole = HEADER_BYTES + h.len;
        if !self.fill(whole)? {
            return Ok(Err(BadFrame::Short));
        }
        let bytes = self.start + HEADER_BYTES..self.start + whole;
        if checksum(h.word, h.seq, &self.buffer[bytes.clone()]) != h.crc {
            return Ok(Err(BadFrame::Checksum));
        }
        if h.seq != self.due {
            return Ok(Err(BadFrame::Sequence { found: h.seq, due: self.due }));
        }
        self.start += whole;
        self.offset += whole as u64;
        self.due += 1;
        Ok(Ok(Some(Frame { seq: h.seq, bytes: &self.buffer[bytes] })))
    }
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of its first record.
    pub first: u64,
    /// Its file.
    pub path: PathBuf,
}

pub(crate) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join("wal").join(format!("{first:016x}.wal"))
}

/// The segments of a log, in order.
///
/// # Errors
/// As the system has it; `InvalidData`, naming the file, when something else lies among them.
pub fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    segments_on(&Real, dir)
}

/// As [`segments`], on any disk.
pub(crate) fn segments_on(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for (path, _) in disk.list(&dir.join("wal"))? {
        let first = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(".wal"))
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        match first {
            Some(first) if segment_path(dir, first) == path => found.push(Segment { first, path }),
            _ => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, path.display().to_string()));
            }
        }
    }
    found.sort_by_key(|s| s.first);
    Ok(found)
}

/// The writing end.
pub struct Wal {
    disk: SharedDisk,
    dir: PathBuf,
    file: Box<dyn Appender>,
    written: u64,
    next: u64,
    segment_bytes: u64,
    synced: bool,
}

impl Wal {
    /// Goes on after `replayed` (torn bytes cut already), whose records are durable
    /// ([`crate::replay::settle`]).
    ///
    /// # Errors
    /// As the system has it.
    pub fn resume(
        disk: &SharedDisk,
        dir: &Path,
        replayed: &Replayed,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let (file, written) = match &replayed.last {
            None => (create_segment(&**disk, dir, replayed.next)?, 0),
            Some((segment, end)) => (disk.append(&segment.path, false)?, *end),
        };
        let (disk, dir, next) = (Arc::clone(disk), dir.to_owned(), replayed.next);
        Ok(Self { disk, dir, file, written, next, segment_bytes, synced: true })
    }

    /// Number of the next record.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Writes a batch, not synced. Its entries get the numbers from [`Wal::next`] on.
    ///
    /// # Errors
    /// As the system has it; then the log must not be used any more.
    pub fn append(&mut self, batch: &mut Batch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        if self.written >= self.segment_bytes && self.synced {
            self.file = create_segment(&*self.disk, &self.dir, self.next)?;
            self.written = 0;
        }
        batch.seal(self.next, self.synced);
        self.synced = false;
        self.next += batch.len() as u64;
        self.file.write(&batch.bytes)?;
        self.written += batch.bytes() as u64;
        Ok(())
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// As the system has it; then the log must not be used any more (invariant 4).
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.synced = true;
        Ok(())
    }
}

fn create_segment(disk: &dyn Disk, dir: &Path, first: u64) -> io::Result<Box<dyn Appender>> {
    let path = segment_path(dir, first);
    let file = disk.append(&path, true)?;
    disk.sync(&path)?;
    disk.sync(&dir.join("wal"))?;
    Ok(file)
}
