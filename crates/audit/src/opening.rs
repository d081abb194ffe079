//! What an open looks at before it lets anybody write: the newest part of the log read whole and
//! held against the signed head and the tiles; what is older, by the manifest and the tree.
//!
//! ```text
//! manifest: names, lengths ─► Start ─► tiles there: the tree's edge ─► replay ─► the signed root?
//! ```
//!
//! 1. Nothing is changed here.
//! 2. The edge of the tree is proved by the signed root at the end of the replay: tiles that were
//!    changed, or lost in a power cut, only make the open read the log from its first record.
//! 3. What announces a key and is under no head of the old one is believed by nobody: everyone who
//!    can write the folder can put it there, and the recorder acknowledges nothing from there on
//!    before it is covered. It is set aside, and a rotation that a crash ended so did not happen.
//! 4. A log within [`CHECKED_BYTES`] is always read whole. In a longer one the records of older
//!    segments are not read, and what is wrong with them is found by `audit verify`.

use crate::disk::{self, Disk, SharedDisk};
use crate::keys::Keys;
use crate::log::OpenError;
use crate::manifest::Manifest;
use crate::merkle::{TILE_WIDTH, TileTree, empty_root, leaf_hash};
use crate::note::Checkpoint;
use crate::prune;
use crate::tiles::{Kind, TileName, push_entry, split_bundle};
use crate::tilestore::{Edge, Mode, TILE_BYTES_MAX, Tiles};
use crate::wal::{self, HEADER_BYTES, Replayed, Span, Torn, segments_on};
use std::io;
use std::path::Path;

/// Bytes at the end of the log that every open reads, at the least, and with whole segments at most
/// twice as many: a fraction of a second's work.
pub(crate) const CHECKED_BYTES: u64 = 64 << 20;

/// A log that may be opened.
pub(crate) struct Checked {
    pub(crate) tiles: Tiles,
    pub(crate) replayed: Replayed,
    /// Where the reading began, and with what.
    start: Start,
    /// Numbers of the records that announce a key and that no head covers.
    announced: Vec<u64>,
    /// The last record of the newest epoch that has ended, if it was read.
    pub(crate) ended: Option<Vec<u8>>,
    /// The newest entry; empty when none was read.
    pub(crate) last_entry: Vec<u8>,
    /// Prunings on record among what was read: numbers of the first records that stayed.
    pub(crate) pruned: Vec<u64>,
}

#[derive(Clone, Default)]
struct Start {
    from: u64,
    edge: Edge,
}

fn mismatch(dir: &Path, what: String) -> OpenError {
    OpenError::Mismatch { dir: dir.to_owned(), what }
}

/// Replays the log against the signed head and the tiles.
pub(crate) fn check(
    disk: &SharedDisk,
    dir: &Path,
    keys: &Keys,
    head: &Checkpoint,
    manifest: &Manifest,
    checked_bytes: u64,
) -> Result<Checked, OpenError> {
    let start = start(disk, dir, head, manifest, checked_bytes)?;
    if start.from > 0 {
        match check_from(disk, dir, keys, head, &start) {
            Err(OpenError::Mismatch { .. }) => {}
            other => return other,
        }
    }
    let wal = dir.join("wal");
    let segments = segments_on(&**disk, dir).map_err(|error| OpenError::Io { path: wal, error })?;
    let first = segments.first().map_or(0, |s| s.first);
    if first == 0 {
        return check_from(disk, dir, keys, head, &Start::default());
    }
    let gone = |why| mismatch(dir, format!("the records before {first} are not there, and {why}"));
    let edge =
        edge(&**disk, dir, first, head.size).ok_or_else(|| gone("neither are their tiles"))?;
    let found = check_from(disk, dir, keys, head, &Start { from: first, edge })?;
    // A list that is signed may begin here; else the log itself must say so.
    let listed = manifest.sealed.first().is_some_and(|s| s.first == first);
    if listed || found.pruned.contains(&first) {
        return Ok(found);
    }
    Err(gone("no pruning is on record"))
}

/// Where to begin, by the manifest, whose segments must be there as it has them.
fn start(
    disk: &SharedDisk,
    dir: &Path,
    head: &Checkpoint,
    manifest: &Manifest,
    checked_bytes: u64,
) -> Result<Start, OpenError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    if manifest.next() > head.size {
        return Err(mismatch(
            dir,
            format!(
                "the manifest lists {} records, but the signed head covers {}",
                manifest.next(),
                head.size
            ),
        ));
    }
    let mut segments = segments_on(&**disk, dir).map_err(io_at(&dir.join("wal")))?;
    if let Some(sealed) = manifest.sealed.first() {
        // Older ones are being pruned.
        segments.retain(|segment| segment.first >= sealed.first);
    }
    let mut lengths = Vec::with_capacity(segments.len());
    for segment in &segments {
        lengths.push(disk.length(&segment.path).map_err(io_at(&segment.path))?);
    }
    for (at, sealed) in manifest.sealed.iter().enumerate() {
        let (first, bytes) = (segments.get(at).map(|s| s.first), lengths.get(at).copied());
        if (first, bytes) != (Some(sealed.first), Some(sealed.bytes)) {
            return Err(mismatch(
                dir,
                format!(
                    "the segment with records {} to {}, {} bytes, is listed as sealed, but is not \
                     there as it was",
                    sealed.first,
                    sealed.next - 1,
                    sealed.bytes
                ),
            ));
        }
    }
    let (mut from, mut bytes) = (manifest.next(), lengths.iter().sum::<u64>());
    bytes -= manifest.sealed.iter().map(|s| s.bytes).sum::<u64>();
    for sealed in manifest.sealed.iter().rev() {
        if bytes >= checked_bytes {
            break;
        }
        (from, bytes) = (sealed.first, bytes + sealed.bytes);
    }
    let edge = if from == 0 { None } else { edge(&**disk, dir, from, head.size) };
    Ok(edge.map_or_else(Start::default, |edge| Start { from, edge }))
}

/// The tree over the first `size` records, as the tiles have it; `None` when they do not do.
fn edge(disk: &dyn Disk, dir: &Path, size: u64, signed: u64) -> Option<Edge> {
    let width = TILE_WIDTH as u64;
    let tile = |kind, level: u32, index: u64| {
        let have = (signed >> (8 * level)).saturating_sub(index << 8).min(width);
        let full = TileName { kind, index, width: TILE_WIDTH as u16 };
        let exact = TileName { width: have as u16, ..full };
        let found = [exact, full].into_iter().find_map(|name| {
            disk::read(disk, &dir.join(name.path()), TILE_BYTES_MAX).ok().flatten()
        });
        found.unwrap_or_default()
    };
    let mut levels = Vec::new();
    for level in 0..8u8 {
        let count = size >> (8 * u32::from(level));
        if count == 0 {
            break;
        }
        let mut hashes = Vec::new();
        if !count.is_multiple_of(width) {
            let bytes = tile(Kind::Hashes(level), u32::from(level), count / width);
            hashes.extend(bytes.as_chunks::<32>().0.get(..(count % width) as usize)?);
        }
        levels.push(hashes);
    }
    let mut bundle = Vec::new();
    if !size.is_multiple_of(width) {
        let bytes = tile(Kind::Entries, 0, size / width);
        let entries = split_bundle(&bytes)?;
        let entries = entries.get(..(size % width) as usize)?;
        if !entries.iter().map(|e| leaf_hash(e)).eq(levels.first()?.iter().copied()) {
            return None;
        }
        entries.iter().for_each(|entry| push_entry(&mut bundle, entry));
    }
    Some(Edge { tree: TileTree::restore(size, levels), bundle })
}

fn check_from(
    disk: &SharedDisk,
    dir: &Path,
    keys: &Keys,
    head: &Checkpoint,
    start: &Start,
) -> Result<Checked, OpenError> {
    let mut tiles = Tiles::new(disk, dir, start.edge.clone(), Mode::Check { differs: false });
    let mut root_there = match head.size {
        0 => Some(empty_root()),
        size if size == start.from => Some(tiles.root()),
        _ => None,
    };
    let (mut failed, mut announced): (Option<io::Error>, _) = (None, Vec::new());
    let (mut last_entry, mut pruned, mut ended) = (Vec::new(), Vec::new(), None);
    if tiles.size() == head.size {
        failed = tiles.at_head().err();
    }
    let span = Span { from: start.from, signed: head.size };
    let replayed = wal::replay(&**disk, dir, span, |frame| {
        if failed.is_none() {
            last_entry.clear();
            last_entry.extend_from_slice(frame.bytes);
            failed = tiles.push(frame.bytes).err();
            pruned.extend(prune::announced(frame.bytes));
            if tiles.size() == keys.closed() {
                ended = Some(frame.bytes.to_vec());
            }
            if tiles.take_announced().is_some() && tiles.size() > keys.closed() {
                announced.push(frame.seq);
            }
            if tiles.size() == head.size && failed.is_none() {
                root_there = Some(tiles.root());
                failed = tiles.at_head().err();
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(OpenError::Io { path: dir.join("tile"), error });
    }
    if let Some(record) = announced.iter().find(|record| **record < head.size) {
        return Err(mismatch(
            dir,
            format!("record {record} announces another key, but the one before it signed on"),
        ));
    }
    match root_there {
        None => Err(mismatch(
            dir,
            format!(
                "the signed head covers {} records, but only {} are there",
                head.size, replayed.next
            ),
        )),
        Some(root) if root != head.root => Err(mismatch(
            dir,
            format!("the first {} records are not those that were signed", head.size),
        )),
        Some(_) => {
            tiles.seal(replayed.sealed.clone());
            let start = start.clone();
            Ok(Checked { tiles, replayed, start, announced, ended, last_entry, pruned })
        }
    }
}

impl Checked {
    /// A record that announces a key and that no head covers, as what is to be cut off.
    pub(crate) fn unfounded(&self, disk: &dyn Disk, dir: &Path) -> Result<Option<Torn>, OpenError> {
        let Some(record) = self.announced.first() else { return Ok(None) };
        let frame = (HEADER_BYTES + self.last_entry.len()) as u64;
        let place =
            self.replayed.last.as_ref().filter(|(segment, _)| {
                record + 1 == self.replayed.next && segment.first <= *record
            });
        let found = place.and_then(|(segment, end)| Some((segment, end.checked_sub(frame)?)));
        let Some((segment, offset)) = found else {
            return Err(mismatch(
                dir,
                format!(
                    "record {record} announces another key, no head covers it, and records follow \
                     that nobody wrote before one did"
                ),
            ));
        };
        let length = disk.length(&segment.path);
        let length = length.map_err(|error| OpenError::Io { path: segment.path.clone(), error })?;
        let (segment, bytes) = (segment.clone(), length.saturating_sub(offset));
        Ok(Some(Torn { segment, offset, seq: *record, bytes }))
    }

    /// Writes the tiles again that differ, and of the others all that end after `durable` records.
    pub(crate) fn repair(
        &mut self,
        disk: &SharedDisk,
        dir: &Path,
        head: &Checkpoint,
        durable: u64,
    ) -> Result<(), OpenError> {
        let mut tiles = Tiles::new(disk, dir, self.start.edge.clone(), Mode::Repair { durable });
        let mut failed = if tiles.size() == head.size { tiles.at_head().err() } else { None };
        wal::replay(&**disk, dir, Span { from: self.start.from, signed: 0 }, |frame| {
            if failed.is_none() {
                failed = tiles.push(frame.bytes).err();
                if tiles.size() == head.size && failed.is_none() {
                    failed = tiles.at_head().err();
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(OpenError::Io { path: dir.join("tile"), error });
        }
        tiles.seal(self.replayed.sealed.clone());
        self.tiles = tiles;
        Ok(())
    }
}
