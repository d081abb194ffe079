//! The tree and its files: tiles, bundles, the signed head, the list of sealed segments.
//!
//! ```text
//! entries ─► Tiles ─┬─ full tiles, at once                     ─► tile/…
//!                   └─ publish: partial tiles ─ sync ─ sign    ─► checkpoint ─► manifest
//! ```
//!
//! 1. Tiles are written before the checkpoint that needs them is signed (and synced, unless they
//!    are many: `SYNCED_TILES_MAX`); the checkpoint is synced under another name, renamed, and its
//!    folder synced.
//! 2. A segment gets into the manifest once everything derived from it is durable: later opens take
//!    it from there.

use crate::disk::{self, Held, PUBLIC, SharedDisk};
use crate::epoch::announced;
use crate::keys::Keys;
use crate::manifest::Manifest;
use crate::merkle::{FullTile, Hash, TILE_WIDTH, TileTree, leaf_hash};
use crate::note::Checkpoint;
use crate::tiles::{self, Kind, TileName};
use crate::wal::Sealed;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest tile file: 256 entries of the largest size, with their lengths.
pub(crate) const TILE_BYTES_MAX: u64 = (TILE_WIDTH * (2 + 65_535)) as u64;

/// Partial tiles of this many earlier checkpoints are kept, for readers that hold one of them.
const OLD_CHECKPOINTS_KEPT: usize = 2;

/// Up to so many new tile files are synced before the head that needs them, which covers any pace
/// of people and agents. More come only in a rush, and syncing them all would hold up the
/// write-ahead log: they are left to the kernel, and if the power fails within its half minute the
/// next open writes them again (they are derived; `audit verify` names them until then).
const SYNCED_TILES_MAX: usize = 8;

/// The tree and its files.
pub(crate) struct Tiles {
    disk: SharedDisk,
    dir: PathBuf,
    /// What the log's lock gave, for `Disk::sync_all`.
    held: Option<Held>,
    tree: TileTree,
    bundle: Vec<u8>,
    full: Vec<FullTile>,
    mode: Mode,
    unsynced: Vec<PathBuf>,
    /// Some tiles were left to the kernel.
    owed: bool,
    partials: VecDeque<Vec<TileName>>,
    /// Vkey of the next epoch, as the last entry has it.
    announced: Option<String>,
    manifest: Manifest,
    /// Segments that the manifest does not list yet.
    sealed: Vec<Sealed>,
}

/// What to do with a finished tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Compare with the file; remember whether any differs.
    Check { differs: bool },
    /// Compare with the file; where it differs keep it as evidence and write the right one. Equal
    /// ones that end after so many records are written again too, for they may stand in memory
    /// alone; those before are durable, and a power cut must not find them half rewritten.
    Repair { durable: u64 },
    /// Write it.
    Write,
}

/// Where a tree begins that is not read from its first record: what the tiles have before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edge {
    pub(crate) tree: TileTree,
    /// Entries of the bundle that is not full there.
    pub(crate) bundle: Vec<u8>,
}

impl Tiles {
    pub(crate) fn new(disk: &SharedDisk, dir: &Path, edge: Edge, mode: Mode) -> Self {
        Self {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            held: None,
            tree: edge.tree,
            bundle: edge.bundle,
            full: Vec::new(),
            mode,
            unsynced: Vec::new(),
            owed: false,
            partials: VecDeque::new(),
            announced: None,
            manifest: Manifest::default(),
            sealed: Vec::new(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    pub(crate) fn root(&self) -> Hash {
        self.tree.root()
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The key that the last entry announced, once.
    pub(crate) fn take_announced(&mut self) -> Option<String> {
        self.announced.take()
    }

    /// These segments are complete.
    pub(crate) fn seal(&mut self, sealed: Vec<Sealed>) {
        self.sealed.extend(sealed);
    }

    /// From checking or repairing to writing.
    ///
    /// Of the partial tiles only those of the signed head were looked at: the others are of earlier
    /// heads, may be torn, and go.
    pub(crate) fn start_writing(
        &mut self,
        held: Held,
        manifest: Manifest,
        signed: u64,
    ) -> io::Result<()> {
        let needed = tiles::partials_of(signed);
        for name in tiles::list_on(&*self.disk, &self.dir)? {
            if usize::from(name.width) < TILE_WIDTH && !needed.contains(&name) {
                self.disk.remove(&self.dir.join(name.path()))?;
            }
        }
        self.partials.push_back(needed);
        self.sealed.retain(|sealed| sealed.first >= manifest.next());
        (self.mode, self.held, self.manifest) = (Mode::Write, Some(held), manifest);
        Ok(())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        tiles::push_entry(&mut self.bundle, bytes);
        self.announced = announced(bytes);
        let mut full = std::mem::take(&mut self.full);
        self.tree.push(leaf_hash(bytes), &mut full);
        if !full.is_empty() {
            let bundle = std::mem::take(&mut self.bundle);
            let index = self.tree.size() / TILE_WIDTH as u64 - 1;
            let width = TILE_WIDTH as u16;
            self.finish(TileName { kind: Kind::Entries, index, width }, &bundle)?;
            self.bundle = bundle;
            self.bundle.clear();
            for tile in full.drain(..) {
                let kind = Kind::Hashes(tile.level);
                self.finish(
                    TileName { kind, index: tile.index, width },
                    tile.hashes.as_flattened(),
                )?;
            }
        }
        self.full = full;
        Ok(())
    }

    fn finish(&mut self, name: TileName, bytes: &[u8]) -> io::Result<()> {
        if self.mode != Mode::Write {
            let path = self.dir.join(name.path());
            let found = disk::read(&*self.disk, &path, TILE_BYTES_MAX)?;
            let same = found.as_deref() == Some(bytes);
            match &mut self.mode {
                Mode::Check { differs } => {
                    *differs |= !same;
                    return Ok(());
                }
                Mode::Repair { durable } if same && name.end() <= *durable => return Ok(()),
                Mode::Repair { .. } if !same && found.is_some() => self.keep_evidence(&path)?,
                _ => {}
            }
        }
        // A head is there already that needs this one, if it is a partial tile.
        let at_once = usize::from(name.width) < TILE_WIDTH;
        self.unsynced.push(tiles::write(&*self.disk, &self.dir, name, bytes, at_once)?);
        Ok(())
    }

    /// The tiles that a head over what is there now needs and that are not full.
    fn partial(&self) -> Vec<(TileName, Vec<u8>)> {
        let width = (self.tree.size() % TILE_WIDTH as u64) as u16;
        let mut made = Vec::new();
        if width > 0 {
            let index = self.tree.size() / TILE_WIDTH as u64;
            made.push((TileName { kind: Kind::Entries, index, width }, self.bundle.clone()));
        }
        for (level, index, hashes) in self.tree.partial_tiles() {
            let name = TileName { kind: Kind::Hashes(level), index, width: hashes.len() as u16 };
            made.push((name, hashes.as_flattened().to_vec()));
        }
        made
    }

    /// Checks or repairs these, too: so many records are signed.
    pub(crate) fn at_head(&mut self) -> io::Result<()> {
        self.partial().into_iter().try_for_each(|(name, bytes)| self.finish(name, &bytes))
    }

    /// Writes partial tiles, syncs, signs, publishes. `last`: nothing comes after it, so what was
    /// left to the kernel is waited for.
    pub(crate) fn publish(&mut self, keys: &Keys, last: bool) -> io::Result<Checkpoint> {
        let made = self.partial();
        for (name, bytes) in &made {
            // An equal one stays as it is: someone may be reading it.
            let path = self.dir.join(name.path());
            let found = disk::read(&*self.disk, &path, TILE_BYTES_MAX);
            if !found.is_ok_and(|found| found.as_ref() == Some(bytes)) {
                tiles::write(&*self.disk, &self.dir, *name, bytes, false)?;
            }
            self.unsynced.push(path);
        }
        let (size, root) = (self.tree.size(), self.tree.root());
        let sealed = self.sealed.iter().filter(|s| s.next <= size).count();
        self.sync(sealed > 0 || last && self.owed)?;
        let note = keys.signer().sign(size, root);
        write_checkpoint(&self.disk, &self.dir, &note)?;
        if sealed > 0 {
            self.manifest.sealed.extend(self.sealed.drain(..sealed));
            self.manifest.write(&*self.disk, &self.dir, keys.signer())?;
        }
        self.drop_old_partials(made.into_iter().map(|(name, _)| name).collect())?;
        Ok(Checkpoint { origin: keys.signer().verifier().name().to_owned(), size, root })
    }

    fn sync(&mut self, all: bool) -> io::Result<()> {
        match &self.held {
            Some(held) if all => {
                self.disk.sync_all(held)?;
                self.owed = false;
            }
            _ if self.unsynced.len() <= SYNCED_TILES_MAX => {
                for path in &self.unsynced {
                    self.disk.sync(path)?;
                    if let Some(folder) = path.parent() {
                        self.disk.sync(folder)?;
                    }
                }
            }
            _ => self.owed = true,
        }
        self.unsynced.clear();
        Ok(())
    }

    fn drop_old_partials(&mut self, new: Vec<TileName>) -> io::Result<()> {
        self.partials.push_back(new);
        while self.partials.len() > OLD_CHECKPOINTS_KEPT + 1 {
            for name in self.partials.pop_front().unwrap_or_default() {
                if self.partials.iter().flatten().any(|kept| *kept == name) {
                    continue;
                }
                let path = self.dir.join(name.path());
                match self.disk.remove(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
                // Stays while it has other widths in it; an empty folder is only untidy.
                let _ = path.parent().map(|folder| self.disk.remove_folder(folder));
            }
        }
        Ok(())
    }

    fn keep_evidence(&self, path: &Path) -> io::Result<()> {
        let evidence = self.dir.join("evidence");
        self.disk.create_folder(&evidence)?;
        let below = path.strip_prefix(&self.dir).unwrap_or(path);
        let below = below.to_string_lossy().replace('/', "_");
        self.disk.rename(path, &evidence.join(below))?;
        self.disk.sync(&evidence)?;
        self.disk.sync(&self.dir)
    }
}

/// Publishes a signed note as the log's head.
pub(crate) fn write_checkpoint(disk: &SharedDisk, dir: &Path, note: &str) -> io::Result<()> {
    let new = dir.join("work/checkpoint.new");
    disk::replace(&**disk, &new, &dir.join("checkpoint"), note.as_bytes(), PUBLIC)
}
