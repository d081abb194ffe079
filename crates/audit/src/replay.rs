//! Reading the write-ahead log back after whatever happened to it.
//!
//! ```text
//! wal/*.wal ─► replay ─► frames ─► Replayed ─► cut (torn bytes to evidence/) ─► settle ─► Wal
//! ```
//!
//! 1. Reading changes nothing; what is cut off is kept first.
//! 2. What a former process wrote and nobody signed may stand in memory alone, as clean pages that
//!    a failed sync left behind: a sync would say yes to them and do nothing. [`settle`] writes
//!    them again (Rebello et al., "Can Applications Recover from fsync Failures?", ATC'20).

use crate::disk::{Disk, PRIVATE};
use crate::wal::{
    BadFrame, Claim, Frame, FrameReader, SEGMENT_BYTES, Segment, claimed, is_whole, segments_on,
};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// How far a frame's number may be ahead when looking for one behind a bad frame.
const SEQ_WINDOW: u64 = 1 << 32;

/// Bytes of frames that are summed up when looking for one behind a bad frame: about a second's
/// work. Chance makes almost none of them look like a frame; somebody who wants to hold up every
/// reader can make each byte look like the start of a long one.
const SUMMED_BYTES_MAX: usize = 8 << 30;

/// Is there, anywhere in `rest`, a whole frame that is `wanted` by what it says of
/// itself? Also yes where there is more that looks like one than is summed up: nothing is cut off
/// that was not looked at.
fn any_frame(rest: &[u8], wanted: impl Fn(&Claim) -> bool) -> bool {
    let mut left = SUMMED_BYTES_MAX;
    for at in 0..rest.len() {
        let Some(claim) = claimed(&rest[at..]).filter(|claim| wanted(claim)) else { continue };
        let Some(less) = left.checked_sub(claim.len) else { return true };
        left = less;
        if is_whole(&rest[at..]) {
            return true;
        }
    }
    false
}

/// The longest end that a cut-off write can leave: what was not synced is never twice a segment.
/// One that is longer was put there.
const TORN_BYTES_MAX: u64 = 2 * SEGMENT_BYTES;

/// The bytes from `offset` to the end; `None` where they are more than any write leaves.
fn torn_end(disk: &dyn Disk, path: &Path, offset: u64) -> io::Result<Option<Vec<u8>>> {
    if disk.length(path)?.saturating_sub(offset) > TORN_BYTES_MAX {
        return Ok(None);
    }
    read_from(disk, path, offset).map(Some)
}

fn is_behind(seq: u64, due: u64) -> bool {
    seq > due && seq - due < SEQ_WINDOW
}

/// Is there, anywhere in `rest`, a frame numbered after `due` that says the bytes before it were
/// synced?
fn synced_frame_behind(rest: &[u8], due: u64) -> bool {
    any_frame(rest, |claim| claim.synced_before && is_behind(claim.seq, due))
}

/// Whether bytes of the last segment that are no frame, from `offset` on, are the end to whoever
/// reads, for a write was cut off there: no whole frame stands there or behind. Number `due` was
/// due. A recorder goes further ([`replay`]) and sets aside whatever nobody says was synced.
pub(crate) fn is_torn(disk: &dyn Disk, path: &Path, offset: u64, due: u64) -> io::Result<bool> {
    let Some(rest) = torn_end(disk, path, offset)? else { return Ok(false) };
    // One too long for a record was put there whole, by no recorder and no power cut.
    Ok(!is_whole(&rest) && !any_frame(&rest, |claim| is_behind(claim.seq, due)))
}

/// A write that a power cut tore, at the very end of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Segment it is in.
    pub segment: Segment,
    /// Byte where it starts.
    pub offset: u64,
    /// Number of the record that was due there.
    pub seq: u64,
    /// Bytes from there to the end of the file.
    pub bytes: u64,
}

/// Why the write-ahead log cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// A record in the middle is damaged.
    #[error(
        "{} is damaged at byte {offset}: {why}. Nothing was changed; restore this file from a \
         backup, or keep it as evidence and start a new log in an empty folder",
        path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the bad record starts.
        offset: u64,
        /// What is wrong with it.
        why: BadFrame,
    },
}

/// A segment that is followed by another: nothing is added to it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Number of its first record.
    pub first: u64,
    /// Number of the first record of the one that follows.
    pub next: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

/// What a replay found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Number of the next record.
    pub next: u64,
    /// The last segment, if there is any, and the byte where its last good frame ends.
    pub last: Option<(Segment, u64)>,
    /// Byte of the last segment where the records start that nobody signed.
    pub unsigned: u64,
    /// The segments before the last one that were read.
    pub sealed: Vec<Sealed>,
    /// What is to be cut off.
    pub torn: Option<Torn>,
}

/// How much of a log is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Number of the first record; a segment starts with it.
    pub from: u64,
    /// How many records of the log are signed.
    pub signed: u64,
}

/// Reads the log in order, to its end, and changes nothing.
///
/// # Errors
/// When a file cannot be read, or is damaged elsewhere than at the very end.
pub fn replay(
    disk: &dyn Disk,
    dir: &Path,
    span: Span,
    mut each: impl FnMut(Frame<'_>),
) -> Result<Replayed, WalError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |error| WalError::Io { path, error }
    };
    let mut all = segments_on(disk, dir).map_err(io_at(&dir.join("wal")))?;
    all.retain(|segment| segment.first >= span.from);
    let mut found = Replayed { next: span.from, ..Replayed::default() };
    for (i, segment) in all.iter().enumerate() {
        let damaged = |offset, why| WalError::Damaged { path: segment.path.clone(), offset, why };
        if segment.first != found.next {
            let why = BadFrame::Sequence { found: segment.first, due: found.next };
            return Err(damaged(0, why));
        }
        let file = disk.reader(&segment.path, 0).map_err(io_at(&segment.path))?;
        let mut frames = FrameReader::new(file, 0, segment.first);
        found.unsigned = 0;
        let bad = loop {
            match frames.next_frame().map_err(io_at(&segment.path))? {
                Ok(Some(frame)) => each(frame),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
            if frames.due() <= span.signed {
                found.unsigned = frames.offset();
            }
        };
        let (offset, due) = (frames.offset(), frames.due());
        found.next = due;
        found.last = Some((segment.clone(), offset));
        let is_last = i + 1 == all.len();
        if let Some(why) = bad {
            let rest = torn_end(disk, &segment.path, offset).map_err(io_at(&segment.path))?;
            let rest = rest.filter(|rest| is_last && !synced_frame_behind(rest, due));
            let Some(rest) = rest else { return Err(damaged(offset, why)) };
            let bytes = rest.len() as u64;
            found.torn = Some(Torn { segment: segment.clone(), offset, seq: due, bytes });
        }
        if !is_last {
            found.sealed.push(Sealed { first: segment.first, next: due, bytes: offset });
        }
    }
    Ok(found)
}

fn read_from(disk: &dyn Disk, path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    disk.reader(path, offset)?.read_to_end(&mut rest)?;
    Ok(rest)
}

/// Copies the torn bytes to `evidence/`, syncs the copy, then cuts them off.
///
/// # Errors
/// As the system has it; nothing is cut unless the copy is safe.
pub fn cut(disk: &dyn Disk, dir: &Path, torn: &Torn) -> io::Result<PathBuf> {
    let evidence = dir.join("evidence");
    disk.create_folder(&evidence)?;
    let rest = read_from(disk, &torn.segment.path, torn.offset)?;
    let digest = crc32c::crc32c(&rest);
    let kept = evidence.join(format!("torn-{:016x}-{digest:08x}.bin", torn.seq));
    disk.write(&kept, &rest, PRIVATE)?;
    disk.sync(&kept)?;
    disk.sync(&evidence)?;
    disk.sync(dir)?;
    disk.cut(&torn.segment.path, torn.offset)?;
    disk.sync(&torn.segment.path)?;
    Ok(kept)
}

/// Makes what was found durable, torn bytes cut already: what nobody signed is written again as it
/// stands, since it may have been a failed sync that left it (see above). A power cut meanwhile
/// finds the old bytes or the same new ones.
///
/// # Errors
/// As the system has it.
pub(crate) fn settle(disk: &dyn Disk, dir: &Path, found: &Replayed) -> io::Result<()> {
    if let Some((segment, end)) = &found.last {
        let mut bytes = read_from(disk, &segment.path, found.unsigned)?;
        bytes.truncate(usize::try_from(end - found.unsigned).unwrap_or(usize::MAX));
        if !bytes.is_empty() {
            disk.write_at(&segment.path, found.unsigned, &bytes)?;
        }
        // Nor would a cut be believed whose sync failed.
        disk.cut(&segment.path, *end)?;
        disk.sync(&segment.path)?;
    }
    disk.sync(&dir.join("wal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Bytes of which every sixteenth begins a frame of the longest sort, by its own words.
    #[test]
    fn what_only_looks_like_frames_holds_nobody_up_and_is_not_cut_off() {
        let claim = [&64_000_u32.to_le_bytes()[..], &[0; 4], &8_u64.to_le_bytes()].concat();
        let claims = claim.repeat(200_000);
        let begun = Instant::now();
        assert!(any_frame(&claims, |claim| is_behind(claim.seq, 7)));
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        // Looked at to the end where there are few of them, or none that is wanted.
        assert!(!any_frame(&claims[..1 << 20], |claim| is_behind(claim.seq, 7)));
        assert!(!any_frame(&claims, |claim| is_behind(claim.seq, 8)));
    }
}
