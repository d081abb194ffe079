//! Removing old records without a proof being lost (C2SP tlog-tiles, "Pruning").
//!
//! ```text
//! plan: whole segments, all of whose records are older ─► record of it, durable, signed
//!   ─► work/prune (from here on it is finished, now or at the next open)
//!   ─► manifest without them ─► their payloads ─► segments ─► entry bundles
//! ```
//!
//! 1. Hash tiles stay, all of them: every proof of a later record, every proof that was handed out,
//!    and consistency with every head ever signed can still be made and verified.
//! 2. What goes is what the records said. Their number, order and hashes stay; whoever has a record
//!    elsewhere can still prove that it stood there.
//! 3. Nothing goes before the record of it is signed. Records that are missing without one are
//!    tampering ([`crate::verify`], [`crate::log::Log::open`]).
//! 4. Segments go whole, and the newest sealed one stays; a segment that announces a key stays with
//!    everything after it, for without it nobody could follow the keys.

use crate::disk::{self, Disk, open_file, read_whole};
use crate::entry::{Uids, decode, encode};
use crate::epoch;
use crate::finding::{Finding, finding, io_finding};
use crate::index::Terms;
use crate::log::{Log, OpenError};
use crate::manifest::Manifest;
use crate::merkle::{Hash, TILE_WIDTH, leaf_hash};
use crate::note::Signer;
use crate::payload;
use crate::raw::{BUNDLE, ScanError};
use crate::tiles::{self, Kind, TileName, split_bundle};
use crate::wal::{FrameReader, Segment, segments};
use model::{Body, Durability, Record, RecordError};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// How the entry of a [`Body::RecordsPruned`] begins: only what was deleted is of this class with
/// this activity.
const BEGINNING: &[u8] = b"{\"activity_id\":4,\"category_uid\":6,\"class_uid\":6003,";

/// Says which pruning is to be finished: the number of the first record that stays.
const INTENT: &str = "work/prune";

/// Segments at the end that stay whatever their age: the one that is written, and a sealed one.
const SEGMENTS_KEPT: usize = 2;

/// The first record that stays, if this entry says that those before it were removed.
pub(crate) fn announced(entry: &[u8]) -> Option<u64> {
    if !entry.starts_with(BEGINNING) {
        return None;
    }
    match decode(entry).ok()?.body {
        Body::RecordsPruned { first, .. } => Some(first),
        _ => None,
    }
}

/// What a pruning would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Number of the first record that is there now.
    pub from: u64,
    /// Number of the first that would stay.
    pub first: u64,
    /// Bytes of the segments that would go.
    pub bytes: u64,
    /// Payloads that would go.
    pub payloads: u64,
    /// Why it ends there, when there are older records that stay.
    pub ends: Option<String>,
}

/// Looks what could be removed of the records before a time (Unix milliseconds); changes nothing.
///
/// # Errors
/// When the log cannot be read.
pub fn plan(dir: &Path, before_ms: u64) -> Result<Plan, ScanError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |error| ScanError::Io { path, error }
    };
    let all = match segments(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Plan::default()),
        other => other.map_err(io_at(&dir.join("wal")))?,
    };
    let from = all.first().map_or(0, |s| s.first);
    let mut plan = Plan { from, first: from, ..Plan::default() };
    let can = all.len().saturating_sub(SEGMENTS_KEPT);
    for (segment, next) in all.iter().zip(all.iter().skip(1)).take(can) {
        let (mut newer, mut key, mut payloads) = (false, false, 0);
        read_segment(segment, |entry| {
            newer |= Terms::of(entry).time_ms >= before_ms;
            key |= epoch::announced(entry).is_some();
            let named = payload::named_by(entry);
            let there = named.values().filter(|d| payload::place(dir, &d.sha256.0).exists());
            payloads += there.count() as u64;
        })
        .map_err(io_at(&segment.path))?;
        if newer || key {
            plan.ends = key
                .then(|| format!("records {} to {} announce a key", segment.first, next.first - 1));
            return Ok(plan);
        }
        plan.first = next.first;
        plan.payloads += payloads;
        plan.bytes += fs::metadata(&segment.path).map_err(io_at(&segment.path))?.len();
    }
    plan.ends =
        Some("the newest segments always stay (64 MiB each, when they are full)".to_owned());
    Ok(plan)
}

fn read_segment(segment: &Segment, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut frames = FrameReader::new(open_file(&segment.path)?, 0, segment.first);
    loop {
        match frames.next_frame()? {
            Ok(Some(frame)) => each(frame.bytes),
            Ok(None) => return Ok(()),
            Err(why) => return Err(io::Error::other(format!("{why}; run `audit verify`"))),
        }
    }
}

/// Why nothing was removed, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The log cannot be opened, e.g. because it is being written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be put on record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// It is on record, and what failed came after that.
    #[error("record {record} says that it is done, but {error}")]
    OnRecord {
        /// Number of the record.
        record: u64,
        /// What failed.
        error: Box<PruneError>,
    },
}

/// Carries a plan out; nobody else may be writing the log. Returns the number of the record of it.
///
/// # Errors
/// See [`PruneError`]. Once it is on record and begun, the next open of the log finishes it; one
/// that is on record and not begun can be repeated.
pub fn carry_out(dir: &Path, plan: &Plan, before_ms: u64, now_ms: u64) -> Result<u64, PruneError> {
    let log = Log::open(dir)?;
    let body = Body::RecordsPruned { before_ms, first: plan.first, texts: plan.payloads };
    let record = Record { time_ms: now_ms, session: None, agent: None, turn: None, body };
    let mut random = [0; 8];
    let io_at = |path: PathBuf| move |error| PruneError::Io { path, error };
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io_at(dir.to_owned())(e.into()))?;
    let uid = Uids::new(u64::from_ne_bytes(random)).next(now_ms);
    let entry = encode(&record, &uid).map_err(|e| RecordError::Invalid { why: e.to_string() })?;
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    log.submit(&entry, Durability::Durable, done);
    let gone = |_| RecordError::Gone { cause: "the log gave no answer".to_owned() };
    let index = told.recv().map_err(gone)??;
    let removed = remove(dir, log, plan.first);
    removed.map_err(|error| PruneError::OnRecord { record: index, error: Box::new(error) })?;
    Ok(index)
}

/// What follows the record: the order to remove everything before `first`, and an open, which
/// carries it out.
fn remove(dir: &Path, log: Log, first: u64) -> Result<(), PruneError> {
    log.sign()?;
    let (intent, new) = (dir.join(INTENT), dir.join("work/prune.new"));
    disk::replace(&disk::Real, &new, &intent, format!("{first}\n").as_bytes(), disk::PRIVATE)
        .map_err(|error| PruneError::Io { path: intent, error })?;
    log.close()?;
    Log::open(dir)?.close()?;
    Ok(())
}

/// Finishes a pruning that was begun, if the log has it on record. `on_record` are the prunings
/// that were found in it.
pub(crate) fn finish(
    disk: &dyn Disk,
    dir: &Path,
    signer: &Signer,
    manifest: &mut Manifest,
    on_record: &[u64],
) -> io::Result<()> {
    let intent = dir.join(INTENT);
    let Some(text) = disk::read(disk, &intent, 64)? else { return Ok(()) };
    let first: Option<u64> = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok());
    let known = |first: &u64| {
        on_record.contains(first) && manifest.sealed.iter().any(|s| s.first == *first)
    };
    // One that the log does not know of is nobody's order. It stays where it is, as evidence.
    let Some(first) = first.filter(known) else { return Ok(()) };
    manifest.sealed.retain(|sealed| sealed.first >= first);
    manifest.write(disk, dir, signer)?;
    for segment in segments(dir)?.into_iter().filter(|s| s.first < first) {
        remove_texts(disk, dir, &segment)?;
        disk.remove(&segment.path)?;
    }
    disk.sync(&dir.join("wal"))?;
    for name in tiles::list_on(disk, dir)? {
        if name.kind == Kind::Entries && (name.index + 1) * BUNDLE <= first {
            let path = dir.join(name.path());
            disk.remove(&path)?;
            // Stays while there are others in it.
            let _ = path.parent().map(|folder| disk.remove_folder(folder));
        }
    }
    disk.remove(&intent)?;
    disk.sync(&dir.join("work"))
}

/// Removes the texts that a segment's records name, for good: once those are gone no command knows
/// of a text that a power cut brought back.
fn remove_texts(disk: &dyn Disk, dir: &Path, segment: &Segment) -> io::Result<()> {
    let there = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let (mut folders, mut removed) = (BTreeSet::new(), Ok(()));
    read_segment(segment, |entry| {
        for digest in payload::named_by(entry).into_values() {
            let text = payload::place(dir, &digest.sha256.0);
            if removed.is_ok() {
                removed = there(disk.remove(&text));
            }
            folders.extend(text.parent().map(Path::to_owned));
        }
    })?;
    removed?;
    folders.iter().try_for_each(|folder| there(disk.sync(folder)))
}

/// The leaf hashes of 256 records that were pruned, from their tile. An entry bundle that is still
/// there must fit them.
pub(crate) fn leaves(dir: &Path, index: u64) -> Result<Vec<Hash>, Finding> {
    let name = TileName { kind: Kind::Hashes(0), index, width: TILE_WIDTH as u16 };
    let path = dir.join(name.path());
    let bytes = read_whole(&path).map_err(io_finding(&path))?;
    let (hashes, rest) = bytes.as_chunks::<32>();
    if hashes.len() != TILE_WIDTH || !rest.is_empty() {
        return Err(finding(path, 0, "it does not hold 256 hashes"));
    }
    let bundle = dir.join(TileName { kind: Kind::Entries, ..name }.path());
    match read_whole(&bundle) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => {
            let bytes = other.map_err(io_finding(&bundle))?;
            let entries = split_bundle(&bytes).unwrap_or_default();
            if !entries.iter().map(|e| leaf_hash(e)).eq(hashes.iter().copied()) {
                return Err(finding(bundle, 0, "it does not hold the records of its tile"));
            }
        }
    }
    Ok(hashes.to_vec())
}

/// The beginning of a bundle some of whose records were pruned: the first `count` entries.
pub(crate) fn beginning(dir: &Path, index: u64, count: usize) -> Result<Vec<u8>, Finding> {
    let full = TileName { kind: Kind::Entries, index, width: TILE_WIDTH as u16 };
    // Not full yet where the log has little more than what stays; then any long enough part.
    let widths = (count..=TILE_WIDTH).rev();
    let mut paths = widths.map(|w| dir.join(TileName { width: w as u16, ..full }.path()));
    let path = paths.find(|path| path.is_file()).unwrap_or_else(|| dir.join(full.path()));
    let bytes = read_whole(&path).map_err(io_finding(&path))?;
    let entries = split_bundle(&bytes).unwrap_or_default();
    let Some(some) = entries.get(..count) else {
        return Err(finding(path, 0, format!("it does not hold {count} entries")));
    };
    let mut made = Vec::new();
    some.iter().for_each(|entry| tiles::push_entry(&mut made, entry));
    Ok(made)
}

#[cfg(test)]
mod tests;
