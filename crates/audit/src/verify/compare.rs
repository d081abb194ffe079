//! What a verification finds in tiles, held against what stands in the write-ahead log.

use super::{Chunk, Head, first_difference};
use crate::disk::{open_file, read_whole};
use crate::finding::{Finding, finding, io_finding};
use crate::merkle::TILE_WIDTH;
use crate::tiles::{Kind, TileName, split_bundle};
use crate::wal::{FrameReader, HEADER_BYTES, segments};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A bundle differs from the write-ahead log. Whose side is the hash tile on?
pub(super) fn blame(dir: &Path, chunk: &Chunk, hashes_agree: bool, bundle: Finding) -> Finding {
    if hashes_agree {
        return bundle;
    }
    let found = read_whole(&bundle.file).unwrap_or_default();
    let (Some(theirs), Some(ours)) = (split_bundle(&found), split_bundle(&chunk.bundle)) else {
        return bundle;
    };
    let Some(at) = ours.iter().zip(&theirs).position(|(a, b)| a != b) else { return bundle };
    let index = chunk.index * TILE_WIDTH as u64 + at as u64;
    match frame_offset(dir, index) {
        Some((file, offset)) => finding(
            file,
            offset + HEADER_BYTES as u64 + first_difference(ours[at], theirs[at]).unwrap_or(0),
            format!("record {index} is not the one that the tiles hold"),
        ),
        None => bundle,
    }
}

pub(super) fn frame_offset(dir: &Path, index: u64) -> Option<(PathBuf, u64)> {
    let segment = segments(dir).ok()?.into_iter().rev().find(|s| s.first <= index)?;
    let mut frames = FrameReader::new(open_file(&segment.path).ok()?, 0, segment.first);
    while frames.due() < index {
        frames.next_frame().ok()?.ok()??;
    }
    Some((segment.path, frames.offset()))
}

/// Compares every file that holds this tile, whole or in part, with what it should hold.
pub(super) fn compare(
    dir: &Path,
    head: &Head,
    kind: Kind,
    index: u64,
    width: usize,
    should: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), Finding> {
    let name = TileName { kind, index, width: width as u16 };
    let path = dir.join(name.path());
    let what = |width| format!("it differs from the {width} records that it is derived from");
    let found = match head.needed.get(&name) {
        Some(bytes) => bytes,
        None => {
            buffer.clear();
            let read = open_file(&path).and_then(|mut f| f.read_to_end(buffer));
            read.map_err(io_finding(&path))?;
            buffer
        }
    };
    if let Some(at) = first_difference(found, should) {
        return Err(finding(path, at, what(width)));
    }
    for &part in head.others.get(&(kind, index)).into_iter().flatten() {
        if usize::from(part) >= width {
            continue; // Belongs to a later checkpoint.
        }
        let path = dir.join(TileName { kind, index, width: part }.path());
        let found = match read_whole(&path) {
            // The writer removes those of older checkpoints.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io_finding(&path))?,
        };
        let prefix = prefix(kind, should, usize::from(part));
        if let Some(at) = first_difference(&found, prefix) {
            return Err(finding(path, at, what(usize::from(part))));
        }
    }
    Ok(())
}

fn prefix(kind: Kind, bytes: &[u8], width: usize) -> &[u8] {
    let end = match kind {
        Kind::Hashes(_) => 32 * width,
        Kind::Entries => {
            let entries = split_bundle(bytes).unwrap_or_default();
            entries.iter().take(width).map(|e| 2 + e.len()).sum()
        }
    };
    &bytes[..end.min(bytes.len())]
}
