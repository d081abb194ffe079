//! Proof that a log is whole: from files and a public key alone, with no process of ours running.
//!
//! ```text
//! vkey ─► checkpoint ─► wal frames ─► chunks of 256 ─► workers: leaf hashes, bundle, tile ─► root
//! ```
//!
//! 1. Every byte up to the signed size counts: a changed byte in `wal/`, `tile/`, `checkpoint` or
//!    `vkey` is a [`Finding`] that names the file and the byte.
//! 2. It reads in a stream; memory does not grow with the log.
//! 3. A log may be written meanwhile: what lies beyond the checkpoint is counted, not judged.

use crate::disk::{open_file, read_whole};
use crate::entry::well_formed;
use crate::epoch::{Epochs, announcement};
mod compare;

pub use crate::finding::{Finding, Sort};
use crate::finding::{finding, io_finding};
use crate::log::read_small;
use crate::merkle::{Hash, TILE_WIDTH, TileTree, leaf_hash, subtree_root};
use crate::note::Checkpoint;
use crate::prune;
use crate::tiles::{self, Kind, TileName, push_entry};
use crate::vouch::{check_manifest, keys};
use crate::wal::{BadFrame, FrameReader, Segment, segments};
use compare::{blame, compare, frame_offset};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Threads that hash. The reading thread feeds about four.
const WORKERS_MAX: usize = 4;

/// Chunks under way at once: bounds memory to this many times 256 entries.
const CHUNKS_MAX: usize = 12;

/// Tries to get a checkpoint together with its partial tiles from a log that is being written.
const HEAD_TRIES: usize = 20;

/// A log that is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The signed head.
    pub checkpoint: Checkpoint,
    /// Who signed it.
    pub vkey: String,
    /// Whether that key was given by the caller; otherwise it came from the log's own folder, and a
    /// forger of the whole folder would have put his own there.
    pub key_was_given: bool,
    /// Records covered by the checkpoint, all checked.
    pub records: u64,
    /// Whole records beyond it: not signed yet.
    pub unsigned_records: u64,
    /// Bytes at the end that are no whole record: a write under way, or torn.
    pub unsigned_bytes: u64,
    /// Number of the first record that is there; of those before it, which were pruned on record,
    /// only the hashes were checked.
    pub first: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Checks the log in `dir` against `vkey`, or against the folder's own.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_dir(dir: &Path, vkey: Option<&str>) -> Result<Report, Finding> {
    verify_dir_as(dir, vkey, false)
}

/// As [`verify_dir`]; with `strict` every entry must also be in canonical form (RFC 8785), and a
/// record of a kind that this version knows.
///
/// # Errors
/// As [`verify_dir`].
pub fn verify_dir_as(dir: &Path, vkey: Option<&str>, strict: bool) -> Result<Report, Finding> {
    let begun = Instant::now();
    let (keys, head) = head(dir, vkey)?;
    check_manifest(dir, &keys, &head.checkpoint)?;
    let (first, (unsigned_records, unsigned_bytes)) = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let (to_workers, work) = sync_channel::<Chunk>(CHUNKS_MAX);
        let (answer, answers) = channel();
        let work = std::sync::Arc::new(Mutex::new(work));
        for _ in 0..workers {
            let (work, answer, head) = (work.clone(), answer.clone(), &head);
            scope.spawn(move || check_chunks(dir, head, strict, &work, &answer));
        }
        drop((answer, work));
        let mut assembly = Assembly::new(dir, &head, &keys, answers);
        assembly.read(to_workers).map(|beyond| (assembly.first, beyond))
    })?;
    Ok(Report {
        records: head.checkpoint.size,
        checkpoint: head.checkpoint,
        vkey: keys.current.vkey(),
        key_was_given: vkey.is_some(),
        unsigned_records,
        unsigned_bytes,
        first,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if a == b {
        return None;
    }
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    Some(same as u64)
}

/// The checkpoint and what belongs to it.
struct Head {
    checkpoint: Checkpoint,
    /// Partial tiles that it needs, read at the same moment.
    needed: BTreeMap<TileName, Vec<u8>>,
    /// Other partial tiles lying about: widths by kind and index.
    others: BTreeMap<(Kind, u64), Vec<u16>>,
}

fn head(dir: &Path, given: Option<&str>) -> Result<(Epochs, Head), Finding> {
    let path = dir.join("checkpoint");
    let mut last = None;
    for _ in 0..HEAD_TRIES {
        let all = keys(dir, given)?;
        let note = read_small(&path).map_err(io_finding(&path))?;
        let note = note.ok_or_else(|| finding(&path, 0, "it is missing"))?;
        let checkpoint = match all.open(&note) {
            Ok(checkpoint) => checkpoint,
            // A key was just being replaced.
            Err(_) if keys(dir, given)? != all => continue,
            Err(e) => return Err(finding(&path, e.offset(), e.to_string())),
        };
        let mut needed = BTreeMap::new();
        let mut missing = None;
        for name in tiles::partials_of(checkpoint.size) {
            let file = dir.join(name.path());
            match read_whole(&file) {
                Ok(bytes) => drop(needed.insert(name, bytes)),
                Err(e) => missing = missing.or(Some(io_finding(&file)(e))),
            }
        }
        let Some(missing) = missing else {
            let mut others: BTreeMap<_, Vec<u16>> = BTreeMap::new();
            let tile = dir.join("tile");
            for name in tiles::list(dir).map_err(io_finding(&tile))? {
                if usize::from(name.width) < TILE_WIDTH && !needed.contains_key(&name) {
                    others.entry((name.kind, name.index)).or_default().push(name.width);
                }
            }
            return Ok((all, Head { checkpoint, needed, others }));
        };
        // Gone because a newer checkpoint is there already? Then take that one.
        if last.as_ref() == Some(&checkpoint) {
            return Err(missing);
        }
        last = Some(checkpoint);
    }
    Err(finding(&path, 0, "it changes faster than it can be read; try again"))
}

/// Up to 256 entries in the form of a bundle, and what the workers make of them.
#[derive(Default)]
struct Chunk {
    index: u64,
    bundle: Vec<u8>,
    leaves: Vec<Hash>,
    root: Hash,
    width: usize,
    /// Keys that its entries announce: index, old key, new key.
    announced: Vec<(u64, (String, String))>,
    /// Its records were pruned: only their hashes are there.
    pruned: bool,
    /// The first record that stayed, if one of its entries tells of a pruning.
    pruning: Option<u64>,
}

fn check_chunks(
    dir: &Path,
    head: &Head,
    strict: bool,
    work: &Mutex<Receiver<Chunk>>,
    answer: &Sender<Result<Chunk, Finding>>,
) {
    let mut buffer = Vec::new();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(chunk) = next else { return };
        if answer.send(check_chunk(dir, head, strict, chunk, &mut buffer)).is_err() {
            return;
        }
    }
}

fn check_chunk(
    dir: &Path,
    head: &Head,
    strict: bool,
    mut chunk: Chunk,
    buffer: &mut Vec<u8>,
) -> Result<Chunk, Finding> {
    chunk.leaves.clear();
    if chunk.pruned {
        chunk.leaves = prune::leaves(dir, chunk.index)?;
        chunk.root = subtree_root(&chunk.leaves);
        return Ok(chunk);
    }
    let mut rest = chunk.bundle.as_slice();
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let (entry, tail) = tail.split_at(usize::from(u16::from_be_bytes(*len)).min(tail.len()));
        if let Some(keys) = announcement(entry) {
            let index = chunk.index * TILE_WIDTH as u64 + chunk.leaves.len() as u64;
            chunk.announced.push((index, keys));
        }
        chunk.pruning = prune::announced(entry).max(chunk.pruning);
        if strict && let Err(why) = well_formed(entry) {
            let index = chunk.index * TILE_WIDTH as u64 + chunk.leaves.len() as u64;
            let (file, offset) = frame_offset(dir, index).unwrap_or((dir.join("wal"), 0));
            return Err(finding(file, offset, format!("record {index}: {why}")));
        }
        chunk.leaves.push(leaf_hash(entry));
        rest = tail;
    }
    chunk.root = subtree_root(&chunk.leaves);
    let hashes = chunk.leaves.as_flattened();
    let level0 = compare(dir, head, Kind::Hashes(0), chunk.index, chunk.width, hashes, buffer);
    compare(dir, head, Kind::Entries, chunk.index, chunk.width, &chunk.bundle, buffer)
        .map_err(|e| blame(dir, &chunk, level0.is_ok(), e))?;
    level0?;
    Ok(chunk)
}

/// Puts the workers' chunks together, in order.
struct Assembly<'a> {
    dir: &'a Path,
    head: &'a Head,
    keys: &'a Epochs,
    announced: Vec<(u64, (String, String))>,
    /// The first record that is there, and the first that has to be, by what is on record.
    first: u64,
    pruned_to: u64,
    answers: Receiver<Result<Chunk, Finding>>,
    early: BTreeMap<u64, Chunk>,
    under_way: usize,
    tree: TileTree,
    spare: Vec<Chunk>,
    buffer: Vec<u8>,
}

impl<'a> Assembly<'a> {
    fn new(
        dir: &'a Path,
        head: &'a Head,
        keys: &'a Epochs,
        answers: Receiver<Result<Chunk, Finding>>,
    ) -> Self {
        let (tree, early) = (TileTree::default(), BTreeMap::new());
        Self {
            dir,
            head,
            keys,
            announced: Vec::new(),
            first: 0,
            pruned_to: 0,
            answers,
            early,
            under_way: 0,
            tree,
            spare: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Reads all segments; returns the records and the bytes beyond the signed size.
    fn read(&mut self, work: SyncSender<Chunk>) -> Result<(u64, u64), Finding> {
        let size = self.head.checkpoint.size;
        let folder = self.dir.join("wal");
        let all = segments(self.dir).map_err(io_finding(&folder))?;
        self.first = all.first().map_or(0, |s| s.first);
        let (mut due, mut chunk, mut loose) = (self.first, self.before(&work)?, 0);
        for (i, segment) in all.iter().enumerate() {
            // Also beyond what is signed: no crash leaves a gap between two segments, and no
            // recorder goes on behind one.
            if segment.first != due {
                let why = BadFrame::Sequence { found: segment.first, due };
                return Err(finding(&segment.path, 0, why.to_string()));
            }
            let (next, end) = self.read_segment(segment, &mut chunk, &work)?;
            due = next;
            if i + 1 == all.len() {
                loose = end;
            }
        }
        if due < size {
            let what = format!("it covers {size} records, but only {due} are there");
            return Err(finding(self.dir.join("checkpoint"), 0, what));
        }
        if chunk.width > 0 {
            self.send(chunk, &work)?;
        }
        drop(work);
        while self.under_way > 0 {
            self.take()?;
        }
        self.finish()?;
        Ok((due - size, loose))
    }

    /// What was pruned before the first record, by its hashes; returns the chunk that is begun.
    fn before(&mut self, work: &SyncSender<Chunk>) -> Result<Chunk, Finding> {
        let (index, width) = (self.first / TILE_WIDTH as u64, self.first % TILE_WIDTH as u64);
        for index in 0..index {
            let width = TILE_WIDTH;
            self.send(Chunk { index, width, pruned: true, ..Chunk::default() }, work)?;
        }
        let mut chunk = Chunk { index, width: width as usize, ..Chunk::default() };
        if width > 0 {
            chunk.bundle = prune::beginning(self.dir, index, chunk.width)?;
        }
        Ok(chunk)
    }

    /// Reads one segment to its end, or to the first bytes beyond the signed size that are no
    /// record; returns the number that is due next, and how many such bytes there are.
    fn read_segment(
        &mut self,
        segment: &Segment,
        chunk: &mut Chunk,
        work: &SyncSender<Chunk>,
    ) -> Result<(u64, u64), Finding> {
        let size = self.head.checkpoint.size;
        let to_finding = io_finding(&segment.path);
        let file = open_file(&segment.path).map_err(&to_finding)?;
        let mut frames = FrameReader::new(file, 0, segment.first);
        loop {
            let (at, due) = (frames.offset(), frames.due());
            match frames.next_frame().map_err(&to_finding)? {
                Ok(Some(frame)) if frame.seq < size => {
                    push_entry(&mut chunk.bundle, frame.bytes);
                    chunk.width += 1;
                    if chunk.width == TILE_WIDTH {
                        let next = Chunk { index: chunk.index + 1, ..self.spare() };
                        self.send(std::mem::replace(chunk, next), work)?;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok((due, 0)),
                Err(why) if due < size => {
                    return Err(finding(&segment.path, at, format!("record {due}: {why}")));
                }
                Err(_) => {
                    let end = fs::metadata(&segment.path).map_err(&to_finding)?.len();
                    return Ok((due, end.saturating_sub(at)));
                }
            }
        }
    }

    fn spare(&mut self) -> Chunk {
        let mut chunk = self.spare.pop().unwrap_or_default();
        chunk.bundle.clear();
        (chunk.width, chunk.pruned, chunk.pruning) = (0, false, None);
        chunk
    }

    fn send(&mut self, chunk: Chunk, work: &SyncSender<Chunk>) -> Result<(), Finding> {
        while self.under_way >= CHUNKS_MAX {
            self.take()?;
        }
        self.under_way += 1;
        work.send(chunk).map_err(|_| finding(self.dir, 0, "a checking thread broke off"))
    }

    /// Takes one answer, and joins what is in order.
    fn take(&mut self) -> Result<(), Finding> {
        let answer = self.answers.recv();
        let chunk = answer.map_err(|_| finding(self.dir, 0, "a checking thread broke off"))??;
        self.under_way -= 1;
        self.early.insert(chunk.index, chunk);
        while let Some(mut chunk) = self.early.remove(&(self.tree.size() / TILE_WIDTH as u64)) {
            let mut full = Vec::new();
            self.check_epochs(&chunk)?;
            self.announced.append(&mut chunk.announced);
            self.pruned_to = self.pruned_to.max(chunk.pruning.unwrap_or(0));
            if chunk.width < TILE_WIDTH {
                for leaf in &chunk.leaves {
                    self.tree.push(*leaf, &mut full);
                }
                break;
            }
            let leaves = std::mem::take(&mut chunk.leaves);
            self.tree.push_tile(leaves, chunk.root, &mut full);
            for tile in full.iter().filter(|t| t.level > 0) {
                let (kind, bytes) = (Kind::Hashes(tile.level), tile.hashes.as_flattened());
                let buffer = &mut self.buffer;
                compare(self.dir, self.head, kind, tile.index, TILE_WIDTH, bytes, buffer)?;
            }
            self.spare.push(chunk);
        }
        Ok(())
    }

    /// Epochs that end within a chunk, which comes next: their notes are of this very tree.
    fn check_epochs(&self, chunk: &Chunk) -> Result<(), Finding> {
        let before = self.tree.size();
        for epoch in &self.keys.past {
            let within =
                epoch.closing.size.checked_sub(before).and_then(|n| usize::try_from(n).ok());
            let Some(leaves) = within.and_then(|n| chunk.leaves.get(..n)).filter(|l| !l.is_empty())
            else {
                continue;
            };
            let (mut tree, mut full) = (self.tree.clone(), Vec::new());
            leaves.iter().for_each(|leaf| tree.push(*leaf, &mut full));
            if tree.root() != epoch.closing.root {
                let why = "the records there do not hash to the root that its key signed last";
                return Err(finding(&epoch.path, 0, why));
            }
        }
        Ok(())
    }

    /// All records are in: the keys, the upper partial tiles, and the root.
    fn finish(&mut self) -> Result<(), Finding> {
        let fits = self.keys.check(&self.announced, self.head.checkpoint.size);
        fits.map_err(|(file, why)| {
            finding(file.unwrap_or_else(|| self.dir.join("checkpoint")), 0, why)
        })?;
        if self.first > self.pruned_to {
            let what = format!(
                "the records before {} are not there, and no pruning is on record",
                self.first
            );
            return Err(finding(self.dir.join("wal"), 0, what));
        }
        for (level, index, hashes) in self.tree.partial_tiles().filter(|(level, ..)| *level > 0) {
            let (kind, bytes) = (Kind::Hashes(level), hashes.as_flattened());
            compare(self.dir, self.head, kind, index, hashes.len(), bytes, &mut self.buffer)?;
        }
        let Checkpoint { origin, size, root } = &self.head.checkpoint;
        if self.tree.root() == *root {
            return Ok(());
        }
        let at = origin.len() + 1 + size.to_string().len() + 1;
        let what =
            format!("the {size} records there do not hash to the signed root: they were rewritten");
        Err(finding(self.dir.join("checkpoint"), at as u64, what))
    }
}
