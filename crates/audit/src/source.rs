//! Where a log's public files come from: a folder, or a server.
//!
//! ```text
//! Folder ─┐
//! Remote ─┴─► Source::read("checkpoint" | "tile/…") ─► tile(), entry(), SourceNodes ─► proofs
//! ```
//!
//! 1. Nothing that comes from a source is believed: whoever asks holds it against a signed head.
//! 2. Sizes are bounded before anything is read.
//! 3. Where a partial tile is gone because a fuller one is there, its beginning serves as well.

use crate::disk::open_file;
use crate::finding::{Finding, finding, io_finding};
use crate::merkle::{Hash, Nodes, TILE_WIDTH, subtree_root};
use crate::note::NOTE_BYTES_MAX;
use crate::tiles::{Kind, TileName, split_bundle};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest bundle of any log: 256 entries of 65,535 bytes, each with its length.
pub const BUNDLE_BYTES_MAX: u64 = 256 * (2 + 65_535);

/// A full tile of hashes, bytes.
pub const TILE_BYTES: u64 = 256 * 32;

/// Hash tiles kept in memory while a proof is made: 32 MiB at most.
const TILES_KEPT: usize = 4_096;

/// Something that has a log's public files.
pub trait Source {
    /// What people call the file: its path or address.
    fn place(&self, path: &str) -> PathBuf;

    /// The bytes of a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be had, or is longer than `most` bytes.
    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, Finding>;

    /// The fullest partial tile that it has in place of this one, which is gone; `None` when it has
    /// none, or cannot tell.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn fuller(&self, _name: TileName) -> Result<Option<Vec<u8>>, Finding> {
        Ok(None)
    }
}

/// A log's folder, or a copy of its public part.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Source for Folder {
    fn place(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, Finding> {
        let path = self.0.join(path);
        read_file(&path, most)
    }

    fn fuller(&self, name: TileName) -> Result<Option<Vec<u8>>, Finding> {
        let full = TileName { width: TILE_WIDTH as u16, ..name }.path();
        let Ok(there) = fs::read_dir(self.0.join(format!("{full}.p"))) else { return Ok(None) };
        let width = |entry: io::Result<fs::DirEntry>| {
            let text = entry.ok()?.file_name().into_string().ok()?;
            TileName::parse(&format!("{full}.p/{text}")).map(|tile| tile.width)
        };
        match there.filter_map(width).max() {
            Some(width) if width > name.width => {
                self.read(&TileName { width, ..name }.path(), most(name.kind))
            }
            _ => Ok(None),
        }
    }
}

/// Largest tile of that kind, bytes.
fn most(kind: Kind) -> u64 {
    match kind {
        Kind::Hashes(_) => TILE_BYTES,
        Kind::Entries => BUNDLE_BYTES_MAX,
    }
}

/// A file of at most so many bytes; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is longer.
pub fn read_file(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Finding> {
    let file = match open_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_finding(path))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(io_finding(path))?;
    if bytes.len() as u64 > most {
        return Err(finding(path, most, "it is longer than such a file ever is"));
    }
    Ok(Some(bytes))
}

/// The signed head.
///
/// # Errors
/// When it cannot be had.
pub fn checkpoint(source: &dyn Source) -> Result<Vec<u8>, Finding> {
    let found = source.read("checkpoint", NOTE_BYTES_MAX)?;
    found.ok_or_else(|| finding(source.place("checkpoint"), 0, "it is missing"))
}

/// The first `name.width` hashes or entries of a tile, from its own file or a fuller one's.
///
/// # Errors
/// When none is there, or it is too short.
pub fn tile(source: &dyn Source, name: TileName) -> Result<Vec<u8>, Finding> {
    let found = tile_there(source, name)?;
    found.ok_or_else(|| finding(source.place(&name.path()), 0, "it is missing"))
}

/// As [`tile`]; `None` when none is there.
///
/// # Errors
/// When it cannot be had, or is too short.
pub fn tile_there(source: &dyn Source, name: TileName) -> Result<Option<Vec<u8>>, Finding> {
    let path = name.path();
    let (most, full) = (most(name.kind), TileName { width: TILE_WIDTH as u16, ..name });
    let found = match source.read(&path, most)? {
        None if full != name => match source.read(&full.path(), most)? {
            None => source.fuller(name)?,
            found => found,
        },
        found => found,
    };
    let Some(bytes) = found else { return Ok(None) };
    beginning(name, bytes).map(Some).ok_or_else(|| {
        finding(source.place(&path), 0, format!("it does not hold {} of them", name.width))
    })
}

/// The first `name.width` of a tile's hashes or entries; `None` when it has not so many.
#[must_use]
pub fn beginning(name: TileName, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let width = usize::from(name.width);
    let end = match name.kind {
        Kind::Hashes(_) => 32 * width,
        Kind::Entries => {
            let entries = split_bundle(&bytes)?;
            entries.get(..width)?.iter().map(|entry| 2 + entry.len()).sum()
        }
    };
    if bytes.len() < end {
        return None;
    }
    bytes.truncate(end);
    Some(bytes)
}

/// The name of the tile with hash or entry `index` of its level, which has `count` of them.
#[must_use]
pub fn tile_of(kind: Kind, index: u64, count: u64) -> TileName {
    let tile = index >> 8;
    let width = count.saturating_sub(tile << 8).min(TILE_WIDTH as u64);
    TileName { kind, index: tile, width: width as u16 }
}

/// Entry `index` of a log of `size` entries, as the source has it.
///
/// # Errors
/// As [`tile`].
pub fn entry(source: &dyn Source, index: u64, size: u64) -> Result<Vec<u8>, Finding> {
    let name = tile_of(Kind::Entries, index, size);
    let bundle = tile(source, name)?;
    let found = split_bundle(&bundle).and_then(|all| Some(all.get(index as usize & 255)?.to_vec()));
    found.ok_or_else(|| finding(source.place(&name.path()), 0, format!("it lacks record {index}")))
}

/// Reads complete subtrees' hashes for proofs.
pub struct SourceNodes<'a> {
    source: &'a dyn Source,
    size: u64,
    kept: RefCell<BTreeMap<(u8, u64), Vec<Hash>>>,
}

impl<'a> SourceNodes<'a> {
    /// A reader of the tree of `size` entries.
    #[must_use]
    pub fn new(source: &'a dyn Source, size: u64) -> Self {
        Self { source, size, kept: RefCell::default() }
    }
}

impl Nodes for SourceNodes<'_> {
    type Error = Finding;

    fn node(&self, level: u8, index: u64) -> Result<Hash, Finding> {
        let (tile_level, height) = (level / 8, u32::from(level % 8));
        let first = index << height;
        let key = (tile_level, first >> 8);
        let name =
            tile_of(Kind::Hashes(tile_level), first, self.size >> (8 * u32::from(tile_level)));
        let mut kept = self.kept.borrow_mut();
        if !kept.contains_key(&key) {
            let bytes = tile(self.source, name)?;
            if kept.len() >= TILES_KEPT {
                kept.clear();
            }
            kept.insert(key, bytes.as_chunks::<32>().0.to_vec());
        }
        let start = (first & 0xff) as usize;
        let part = kept.get(&key).and_then(|hashes| hashes.get(start..start + (1 << height)));
        let part = part.ok_or_else(|| {
            finding(self.source.place(&name.path()), 0, "it is shorter than the tree says")
        })?;
        Ok(subtree_root(part))
    }
}
