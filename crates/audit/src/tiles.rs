//! C2SP tlog-tiles v0.1.0: where tiles and entry bundles lie and what stands in them.
//!
//! ```text
//! tile/<level>/<index>[.p/<width>]     width × 32 bytes of hashes
//! tile/entries/<index>[.p/<width>]     width × (u16 big-endian length ‖ entry)
//! index: three digits a folder, every one but the last with an 'x': 1234067 is x001/x234/067
//! ```
//!
//! 1. Everything here is derived from the write-ahead log and can be rebuilt from it.
//! 2. A full tile never changes; a partial one is a prefix of the full one.

use crate::disk::{Disk, PUBLIC, Real, read_whole};
use crate::merkle::{Hash, Nodes, TILE_WIDTH, subtree_root};
use std::io;
use std::path::{Path, PathBuf};

/// What a tile file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Hashes of a tile level.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// The name of one tile file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TileName {
    /// Hashes or entries.
    pub kind: Kind,
    /// Position in its level.
    pub index: u64,
    /// Hashes or entries in it, 1 to 256; 256 is a full tile.
    pub width: u16,
}

impl TileName {
    /// Path below the log's directory, e.g. `tile/0/x001/067.p/12`.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = match self.kind {
            Kind::Hashes(level) => format!("tile/{level}/"),
            Kind::Entries => "tile/entries/".to_owned(),
        };
        path.push_str(&index_path(self.index));
        if usize::from(self.width) < TILE_WIDTH {
            path.push_str(&format!(".p/{}", self.width));
        }
        path
    }

    /// Number of the first entry that it says nothing about.
    #[must_use]
    pub fn end(&self) -> u64 {
        let height = match self.kind {
            Kind::Hashes(level) => 8 * u32::from(level),
            Kind::Entries => 0,
        };
        let end = (self.index << 8).saturating_add(u64::from(self.width));
        end.checked_shl(height).unwrap_or(u64::MAX)
    }

    /// Parses what [`TileName::path`] writes; `None` for anything else.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let kind = match kind {
            "entries" => Kind::Entries,
            level => Kind::Hashes(level.parse().ok()?),
        };
        let (index, width) = match rest.split_once(".p/") {
            None => (rest, TILE_WIDTH as u16),
            Some((index, width)) => (index, width.parse().ok()?),
        };
        let digits: String = index.split('/').map(|p| p.strip_prefix('x').unwrap_or(p)).collect();
        let made = Self { kind, index: digits.parse().ok()?, width };
        (made.path() == path).then_some(made)
    }
}

/// The partial tiles that belong to a head over `size` entries.
pub(crate) fn partials_of(size: u64) -> Vec<TileName> {
    let mut names = Vec::new();
    let mut add = |kind, count: u64| {
        let (index, width) = (count / TILE_WIDTH as u64, (count % TILE_WIDTH as u64) as u16);
        if width > 0 {
            names.push(TileName { kind, index, width });
        }
    };
    add(Kind::Entries, size);
    for level in 0..8 {
        add(Kind::Hashes(level), size >> (8 * u32::from(level)));
    }
    names
}

fn index_path(index: u64) -> String {
    let mut path = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    path
}

/// Appends one entry to a bundle. The entry is at most 64,000 bytes
/// ([`crate::entry::ENTRY_BYTES_MAX`]).
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let len = u16::try_from(entry.len()).unwrap_or(u16::MAX);
    bundle.extend(len.to_be_bytes());
    bundle.extend(entry);
}

/// Splits a bundle into its entries; `None` when it does not come out even, or has too many.
#[must_use]
pub fn split_bundle(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let (len, rest) = bundle.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        if entries.len() == TILE_WIDTH {
            return None;
        }
        entries.push(entry);
        bundle = rest;
    }
    Some(entries)
}

/// Writes one tile file, folders included; its bytes are synced before it has its name only with
/// `synced` (see [`crate::log`]).
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &Path,
    name: TileName,
    bytes: &[u8],
    synced: bool,
) -> io::Result<PathBuf> {
    let path = dir.join(name.path());
    // Whole or not at all: a torn tile, left by a full disk or a kill, would not verify.
    let new = dir.join("work/tile.new");
    disk.write(&new, bytes, PUBLIC)?;
    if synced {
        disk.sync(&new)?;
    }
    match disk.rename(&new, &path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                disk.create_folder(parent)?;
            }
            disk.rename(&new, &path)?;
        }
        other => other?,
    }
    Ok(path)
}

/// Every file below `tile/`, by name; a file that is not a tile's is an error naming it.
///
/// # Errors
/// `InvalidData` with the path of a file that has no business there, or as the system has it.
pub fn list(dir: &Path) -> io::Result<Vec<TileName>> {
    list_on(&Real, dir)
}

/// As [`list`], on any disk.
pub(crate) fn list_on(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<TileName>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.join("tile")];
    while let Some(folder) = todo.pop() {
        let entries = match disk.list(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for (path, is_folder) in entries {
            if is_folder {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str).and_then(TileName::parse);
            found.push(name.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, path.display().to_string())
            })?);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The tiles of a log on disk, as of one size: what proofs are made from.
#[derive(Debug, Clone)]
pub struct TileNodes {
    dir: PathBuf,
    size: u64,
}

impl TileNodes {
    /// Tiles below `dir`, of the tree of `size` entries.
    #[must_use]
    pub fn new(dir: &Path, size: u64) -> Self {
        Self { dir: dir.to_owned(), size }
    }

    fn tile(&self, level: u8, index: u64) -> io::Result<Vec<Hash>> {
        let have = (self.size >> (8 * u32::from(level))).saturating_sub(index << 8);
        let kind = Kind::Hashes(level);
        let full = TileName { kind, index, width: TILE_WIDTH as u16 };
        let exact = TileName { width: have.min(TILE_WIDTH as u64) as u16, ..full };
        let bytes = match read_whole(&self.dir.join(exact.path())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                read_whole(&self.dir.join(full.path()))?
            }
            other => other?,
        };
        let (hashes, _) = bytes.as_chunks::<32>();
        Ok(hashes.to_vec())
    }
}

impl Nodes for TileNodes {
    type Error = io::Error;

    fn node(&self, level: u8, index: u64) -> io::Result<Hash> {
        let (tile_level, height) = (level / 8, u32::from(level % 8));
        let first = index << height;
        let hashes = self.tile(tile_level, first >> 8)?;
        let start = (first & 0xff) as usize;
        let part = hashes.get(start..start + (1 << height)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a tile is shorter than the tree says")
        })?;
        Ok(subtree_root(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_only_one_spelling_is_taken() {
        let name = TileName { kind: Kind::Entries, index: 1_234_067, width: 256 };
        assert_eq!(name.path(), "tile/entries/x001/x234/067");
        assert_eq!(TileName::parse(&name.path()), Some(name));
        let part = TileName { kind: Kind::Hashes(1), index: 5, width: 12 };
        assert_eq!(part.path(), "tile/1/005.p/12");
        assert_eq!(TileName::parse(&part.path()), Some(part));
        for bad in [
            "tile/1/5",
            "tile/01/005",
            "tile/1/005.p/256",
            "tile/1/005.p/012",
            "tile/1/x000/005",
            "x",
        ] {
            assert_eq!(TileName::parse(bad), None, "{bad}");
        }
    }
}
