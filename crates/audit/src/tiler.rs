//! From durable entries to tiles and a signed head, on a thread of its own.
//!
//! ```text
//! committer ─ durable number ─► Tail ─► Tiles (tree, files)
//!                                         └─ quiet, or a second later ─► checkpoint
//! ```
//!
//! 1. Only entries that are synced in the write-ahead log come here; so nothing is signed that a
//!    power cut could take back.
//! 2. Tiles are written before the checkpoint that needs them is signed (and synced, unless they
//!    are many: `SYNCED_TILES_MAX`); the checkpoint is synced under another name, renamed, and its
//!    folder synced.
//! 3. There is a timer only while an entry waits for a signature: an idle log never wakes up.
//! 4. In a rush it lags behind and holds nobody up: the committer only raises a number.

use crate::merkle::{FullTile, Hash, TILE_WIDTH, TileTree, leaf_hash};
use crate::note::{Checkpoint, Signer};
use crate::tail::Tail;
use crate::tiles::{self, Kind, TileName};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Partial tiles of this many earlier checkpoints are kept, for readers that hold one of them.
const OLD_CHECKPOINTS_KEPT: usize = 2;

/// Up to so many new tile files are synced before the head that needs them, which covers any pace
/// of people and agents. More come only in a rush, and syncing them all would hold up the
/// write-ahead log: they are left to the kernel, and if the power fails within its half minute the
/// next open writes them again (they are derived; `audit verify` names them until then).
const SYNCED_TILES_MAX: usize = 8;

/// Records taken in before the clock is looked at again: a fraction of a second's work.
const STEP: u64 = 16_384;

/// When to sign.
#[derive(Debug, Clone, Copy)]
pub struct SignAfter {
    /// So long after the last entry, when no other comes.
    pub quiet: Duration,
    /// At the latest so long after the first unsigned entry.
    pub at_most: Duration,
}

impl Default for SignAfter {
    /// A tenth of a second after the last entry, so that no signature stands in the way of a turn;
    /// one second at most, so that a busy log has a fresh head.
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), at_most: Duration::from_secs(1) }
    }
}

/// What the committer tells the tiler.
pub(crate) struct Inbox {
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    /// Number of the first record that is not durable yet.
    durable: u64,
    /// Those who want a head over everything that is durable now.
    sign: Vec<Sender<Checkpoint>>,
    /// One of the two threads has left.
    closed: bool,
}

impl Inbox {
    pub(crate) fn new(durable: u64) -> Self {
        let news = News { durable, ..News::default() };
        Self { news: Mutex::new(news), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything below this number is durable.
    pub(crate) fn durable(&self, next: u64) {
        self.lock().durable = next;
        self.changed.notify_one();
    }

    /// Asks for a head. Whoever asks after the tiler has left learns it by the sender's end.
    pub(crate) fn sign(&self, tell: Sender<Checkpoint>) {
        let mut news = self.lock();
        if !news.closed {
            news.sign.push(tell);
        }
        drop(news);
        self.changed.notify_one();
    }

    /// Held by the committer: says that it has left, even by a panic.
    pub(crate) fn close_when_done(&self) -> Leaving<'_> {
        Leaving { inbox: self, tiler: false }
    }

    /// Held by the tiler: nobody answers from then on.
    pub(crate) fn refuse_when_done(&self) -> Leaving<'_> {
        Leaving { inbox: self, tiler: true }
    }

    /// Waits for news about more than the `done` records, `left` at most.
    fn take(&self, done: u64, left: Option<Duration>) -> (News, bool) {
        let (mut news, mut timed_out) = (self.lock(), false);
        while news.durable <= done && news.sign.is_empty() && !news.closed && !timed_out {
            news = match left {
                None => self.changed.wait(news).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.changed.wait_timeout(news, left);
                    let (news, result) = waited.unwrap_or_else(PoisonError::into_inner);
                    timed_out = result.timed_out();
                    news
                }
            };
        }
        let sign = std::mem::take(&mut news.sign);
        (News { durable: news.durable, sign, closed: news.closed }, timed_out)
    }
}

/// Says on drop that a thread has left.
pub(crate) struct Leaving<'a> {
    inbox: &'a Inbox,
    tiler: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut news = self.inbox.lock();
        news.closed = true;
        if self.tiler {
            news.sign.clear();
        }
        drop(news);
        self.inbox.changed.notify_one();
    }
}

/// The tree and its files.
pub(crate) struct Tiles {
    dir: PathBuf,
    tree: TileTree,
    bundle: Vec<u8>,
    full: Vec<FullTile>,
    mode: Mode,
    unsynced: Vec<PathBuf>,
    partials: VecDeque<Vec<TileName>>,
}

/// What to do with a finished tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Compare with the file; remember whether any differs.
    Check { differs: bool },
    /// Compare with the file; where it differs keep it as evidence and write the right one.
    Repair,
    /// Write it.
    Write,
}

impl Tiles {
    pub(crate) fn new(dir: &Path, mode: Mode) -> Self {
        Self {
            dir: dir.to_owned(),
            tree: TileTree::default(),
            bundle: Vec::new(),
            full: Vec::new(),
            mode,
            unsynced: Vec::new(),
            partials: VecDeque::new(),
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

    /// From checking or repairing to writing. Partial tiles left from before go with the first
    /// checkpoints.
    pub(crate) fn start_writing(&mut self) -> io::Result<()> {
        let width = TILE_WIDTH as u16;
        let old = tiles::list(&self.dir)?.into_iter().filter(|t| t.width < width).collect();
        self.partials.push_back(old);
        self.mode = Mode::Write;
        Ok(())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        tiles::push_entry(&mut self.bundle, bytes);
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
            match fs::read(&path) {
                Ok(found) if found == bytes => return Ok(()),
                Ok(_) if self.mode == Mode::Repair => keep_evidence(&self.dir, &path)?,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            if let Mode::Check { differs } = &mut self.mode {
                *differs = true;
                return Ok(());
            }
        }
        self.unsynced.push(tiles::write(&self.dir, name, bytes)?);
        Ok(())
    }

    /// Writes partial tiles, syncs, signs, publishes.
    fn publish(&mut self, signer: &Signer) -> io::Result<Checkpoint> {
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
        for (name, bytes) in &made {
            // An equal one stays as it is: someone may be reading it.
            let path = self.dir.join(name.path());
            if !fs::read(&path).is_ok_and(|found| found == *bytes) {
                tiles::write(&self.dir, *name, bytes)?;
            }
            self.unsynced.push(path);
        }
        self.sync()?;
        let (size, root) = (self.tree.size(), self.tree.root());
        write_checkpoint(&self.dir, &signer.sign(size, root))?;
        self.drop_old_partials(made.into_iter().map(|(name, _)| name).collect())?;
        Ok(Checkpoint { origin: signer.verifier().name().to_owned(), size, root })
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.unsynced.len() <= SYNCED_TILES_MAX {
            for path in &self.unsynced {
                File::open(path)?.sync_all()?;
                if let Some(folder) = path.parent() {
                    File::open(folder)?.sync_all()?;
                }
            }
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
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
                // Stays while it has other widths in it; an empty folder is only untidy.
                let _ = path.parent().map(fs::remove_dir);
            }
        }
        Ok(())
    }
}

/// Publishes a signed note as the log's head.
pub(crate) fn write_checkpoint(dir: &Path, note: &str) -> io::Result<()> {
    let new = dir.join("private/checkpoint.new");
    let mut file = File::create(&new)?;
    file.write_all(note.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join("checkpoint"))?;
    File::open(dir)?.sync_all()
}

fn keep_evidence(dir: &Path, path: &Path) -> io::Result<()> {
    let evidence = dir.join("evidence");
    fs::create_dir_all(&evidence)?;
    let below = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().replace('/', "_");
    fs::rename(path, evidence.join(below))
}

/// The thread: takes in what is durable until the committer has left, then signs the last head.
pub(crate) fn run(
    mut tiles: Tiles,
    mut tail: Tail,
    signer: &Signer,
    mut signed: u64,
    after: SignAfter,
    inbox: &Inbox,
) -> io::Result<()> {
    let mut since = (tiles.size() != signed).then(Instant::now);
    loop {
        let left =
            since.map(|first| after.quiet.min(after.at_most.saturating_sub(first.elapsed())));
        let (news, timed_out) = inbox.take(tiles.size(), left);
        let at_once = news.closed || !news.sign.is_empty();
        let until = if at_once { news.durable } else { news.durable.min(tiles.size() + STEP) };
        if until > tiles.size() {
            tail.read(until, |bytes| tiles.push(bytes))?;
            since = since.or_else(|| Some(Instant::now()));
        }
        let due = timed_out || since.is_some_and(|first| first.elapsed() >= after.at_most);
        if (at_once || due) && tiles.size() != signed || !news.sign.is_empty() {
            let head = tiles.publish(signer)?;
            (signed, since) = (head.size, None);
            for tell in news.sign {
                // Whoever asked may have gone; the head is published all the same.
                let _ = tell.send(head.clone());
            }
        }
        if news.closed {
            return Ok(());
        }
    }
}
