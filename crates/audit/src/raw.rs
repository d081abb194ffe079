//! Entries as bytes, in order, from any number on: for whoever reads many and decodes few.
//!
//! ```text
//! tile/entries/N (whole bundles) ─► wal/*.wal (what is newer) ─► each(index, bytes)
//! ```
//!
//! 1. Bundles of the tiles come first: they are found by number, without reading what is before.
//!    [`crate::verify`] proves that they say what the write-ahead log says.
//! 2. Reading proves nothing. The end of the log is no error, even inside a record that is being
//!    written, or before bytes that a crash left there.

use crate::disk::{Real, open_file, read_whole};
use crate::finding::{Finding, Sort, finding, io_finding};
use crate::merkle::TILE_WIDTH;
use crate::replay::is_torn;
use crate::tiles::{Kind, TileName, split_bundle};
use crate::wal::{BadFrame, FrameReader, Segment, segments};
use std::io::{self, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Entries in a whole bundle.
pub(crate) const BUNDLE: u64 = TILE_WIDTH as u64;

/// Why entries cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system refused.
    #[error("cannot read the audit log: {}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// What is there is no entry.
    #[error("{} is damaged at byte {offset}: {why}; run `audit verify`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        why: String,
    },
}

impl ScanError {
    /// Whether that speaks against the log.
    #[must_use]
    pub fn sort(&self) -> Sort {
        match self {
            Self::Io { path, error } => io_finding(path)(error.kind().into()).sort,
            Self::Damaged { .. } => Sort::Tampered,
        }
    }

    /// As a verification has it.
    pub(crate) fn finding(self, _dir: &Path) -> Finding {
        match self {
            Self::Io { path, error } => io_finding(&path)(error),
            Self::Damaged { path, offset, why } => finding(path, offset, why),
        }
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> ScanError {
    let path = path.to_owned();
    move |error| ScanError::Io { path: path.clone(), error }
}

/// A place between two frames of the write-ahead log, from which reading may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// First record of the segment.
    pub(crate) segment: u64,
    /// Byte in it.
    pub(crate) offset: u64,
    /// Number of the record that starts there.
    pub(crate) due: u64,
}

/// The bytes of a whole bundle; `None` when it is not there.
pub(crate) fn bundle(dir: &Path, index: u64) -> Result<Option<Vec<u8>>, ScanError> {
    let name = TileName { kind: Kind::Entries, index, width: TILE_WIDTH as u16 };
    let path = dir.join(name.path());
    match read_whole(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(at(&path)),
    }
}

/// The entries of a whole bundle.
pub(crate) fn entries<'a>(
    dir: &Path,
    index: u64,
    bytes: &'a [u8],
) -> Result<Vec<&'a [u8]>, ScanError> {
    let all = split_bundle(bytes).filter(|all| all.len() == TILE_WIDTH);
    all.ok_or_else(|| {
        let name = TileName { kind: Kind::Entries, index, width: TILE_WIDTH as u16 };
        let why = "it does not hold 256 entries".to_owned();
        ScanError::Damaged { path: dir.join(name.path()), offset: 0, why }
    })
}

/// Gives every entry from `from` on, until `each` has enough. Returns the number of the first that
/// was not given.
///
/// # Errors
/// When a file cannot be read or is damaged.
pub fn scan(
    dir: &Path,
    from: u64,
    mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<u64, ScanError> {
    let mut due = from.max(first(dir)?);
    while let Some(bytes) = bundle(dir, due / BUNDLE)? {
        let skip = (due % BUNDLE) as usize;
        for entry in entries(dir, due / BUNDLE, &bytes)?.into_iter().skip(skip) {
            due += 1;
            if each(due - 1, entry).is_break() {
                return Ok(due);
            }
        }
    }
    Ok(scan_wal(dir, due, None, each)?.0)
}

/// As [`scan`], from the write-ahead log alone; `mark` saves reading what is before it. Returns
/// also a mark of where the record `from` starts.
pub(crate) fn scan_wal(
    dir: &Path,
    from: u64,
    mark: Option<Mark>,
    mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<(u64, Option<Mark>), ScanError> {
    let folder = dir.join("wal");
    let all = match segments(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((from, None)),
        other => other.map_err(at(&folder))?,
    };
    let Some(start) = all.iter().rposition(|s| s.first <= from) else { return Ok((from, None)) };
    let (mut due, mut here) = (from, None);
    for segment in &all[start..] {
        if segment.first > due {
            break; // A segment is just being made, or one is missing: `audit verify` says which.
        }
        let mark = mark.filter(|m| m.segment == segment.first && m.due <= due);
        let (offset, first) = mark.map_or((0, segment.first), |m| (m.offset, m.due));
        let mut file = open_file(&segment.path).map_err(at(&segment.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(at(&segment.path))?;
        let mut frames = FrameReader::new(file, offset, first);
        loop {
            let place = Mark { segment: segment.first, offset: frames.offset(), due: frames.due() };
            let next = match frames.next_frame().map_err(at(&segment.path))? {
                Ok(Some(frame)) if frame.seq < due => continue,
                Ok(Some(frame)) => {
                    here = here.or(Some(place));
                    each(frame.seq, frame.bytes)
                }
                Ok(None) | Err(BadFrame::Short) => {
                    here = here.or(Some(place).filter(|place| place.due == from));
                    break;
                }
                // A mark that is not of this log costs time, nothing else.
                Err(_) if mark.is_some() && place.due == first => {
                    return scan_wal(dir, from, None, each);
                }
                // Nobody was told that these are written; the next recorder cuts them off.
                Err(_) if Some(segment) == all.last() && torn(segment, place)? => break,
                Err(why) => {
                    let (path, why) = (segment.path.clone(), why.to_string());
                    return Err(ScanError::Damaged { path, offset: place.offset, why });
                }
            };
            due = place.due + 1;
            if next.is_break() {
                return Ok((due, here));
            }
        }
    }
    Ok((due, here))
}

fn torn(segment: &Segment, place: Mark) -> Result<bool, ScanError> {
    is_torn(&Real, &segment.path, place.offset, place.due).map_err(at(&segment.path))
}

/// Number of the first record that is there: 0, unless older ones were pruned.
///
/// # Errors
/// When the folder cannot be read.
pub fn first(dir: &Path) -> Result<u64, ScanError> {
    match segments(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        other => {
            let all = other.map_err(at(&dir.join("wal")))?;
            // A copy without write-ahead log has everything from the first record on.
            Ok(all.first().map_or(0, |s| s.first))
        }
    }
}
