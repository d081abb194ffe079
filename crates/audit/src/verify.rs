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

pub use crate::finding::{Finding, Sort};
use crate::finding::{finding, io_finding};
use crate::log::read_small;
use crate::merkle::{Hash, TILE_WIDTH, TileTree, leaf_hash, subtree_root};
use crate::note::{Checkpoint, Verifier};
use crate::tiles::{self, Kind, TileName, push_entry, split_bundle};
use crate::wal::{BadFrame, FrameReader, HEADER_BYTES, Segment, segments};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
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
    /// How long it took.
    pub seconds: f64,
}

/// Checks the log in `dir` against `vkey`, or against the folder's own.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_dir(dir: &Path, vkey: Option<&str>) -> Result<Report, Finding> {
    let begun = Instant::now();
    let verifier = verifier(dir, vkey)?;
    let head = head(dir, &verifier)?;
    let (unsigned_records, unsigned_bytes) = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let (to_workers, work) = sync_channel::<Chunk>(CHUNKS_MAX);
        let (answer, answers) = channel();
        let work = std::sync::Arc::new(Mutex::new(work));
        for _ in 0..workers {
            let (work, answer, head) = (work.clone(), answer.clone(), &head);
            scope.spawn(move || check_chunks(dir, head, &work, &answer));
        }
        drop((answer, work));
        let mut assembly = Assembly::new(dir, &head, answers);
        assembly.read(to_workers)
    })?;
    Ok(Report {
        records: head.checkpoint.size,
        checkpoint: head.checkpoint,
        vkey: verifier.vkey(),
        key_was_given: vkey.is_some(),
        unsigned_records,
        unsigned_bytes,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn verifier(dir: &Path, given: Option<&str>) -> Result<Verifier, Finding> {
    let path = dir.join("vkey");
    let bad = |e: String| Finding { sort: Sort::BadKey, ..finding("(the key given)", 0, e) };
    let given = given
        .map(|text| Verifier::parse(text.trim_end()).map_err(|e| bad(e.to_string())))
        .transpose()?;
    let found = read_small(&path).map_err(io_finding(&path))?;
    let Some(bytes) = found else {
        return given
            .ok_or_else(|| finding(&path, 0, "it is missing, and no verifier key was given"));
    };
    let own = std::str::from_utf8(&bytes).unwrap_or_default();
    let parsed = Verifier::parse(own.trim_end_matches('\n'))
        .map_err(|e| finding(&path, 0, e.to_string()))?;
    let written = format!("{}\n", parsed.vkey());
    if let Some(at) = first_difference(&bytes, written.as_bytes()) {
        return Err(finding(&path, at, "the verifier key is not written the one right way"));
    }
    match given {
        Some(given) if given != parsed => Err(finding(
            &path,
            0,
            "it is not the verifier key that was given: another log, or a forged one",
        )),
        _ => Ok(parsed),
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
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

fn needed_partials(size: u64) -> Vec<TileName> {
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

fn head(dir: &Path, verifier: &Verifier) -> Result<Head, Finding> {
    let path = dir.join("checkpoint");
    let mut last = None;
    for _ in 0..HEAD_TRIES {
        let note = read_small(&path).map_err(io_finding(&path))?;
        let note = note.ok_or_else(|| finding(&path, 0, "it is missing"))?;
        let checkpoint =
            verifier.open(&note).map_err(|e| finding(&path, e.offset(), e.to_string()))?;
        let mut needed = BTreeMap::new();
        let mut missing = None;
        for name in needed_partials(checkpoint.size) {
            let file = dir.join(name.path());
            match fs::read(&file) {
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
            return Ok(Head { checkpoint, needed, others });
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
}

fn check_chunks(
    dir: &Path,
    head: &Head,
    work: &Mutex<Receiver<Chunk>>,
    answer: &Sender<Result<Chunk, Finding>>,
) {
    let mut buffer = Vec::new();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(chunk) = next else { return };
        if answer.send(check_chunk(dir, head, chunk, &mut buffer)).is_err() {
            return;
        }
    }
}

fn check_chunk(
    dir: &Path,
    head: &Head,
    mut chunk: Chunk,
    buffer: &mut Vec<u8>,
) -> Result<Chunk, Finding> {
    chunk.leaves.clear();
    let mut rest = chunk.bundle.as_slice();
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let (entry, tail) = tail.split_at(usize::from(u16::from_be_bytes(*len)).min(tail.len()));
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

/// A bundle differs from the write-ahead log. Whose side is the hash tile on?
fn blame(dir: &Path, chunk: &Chunk, hashes_agree: bool, bundle: Finding) -> Finding {
    if hashes_agree {
        return bundle;
    }
    let found = fs::read(&bundle.file).unwrap_or_default();
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

fn frame_offset(dir: &Path, index: u64) -> Option<(PathBuf, u64)> {
    let segment = segments(dir).ok()?.into_iter().rev().find(|s| s.first <= index)?;
    let mut frames = FrameReader::new(File::open(&segment.path).ok()?, 0, segment.first);
    while frames.due() < index {
        frames.next_frame().ok()?.ok()??;
    }
    Some((segment.path, frames.offset()))
}

/// Compares every file that holds this tile, whole or in part, with what it should hold.
fn compare(
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
            let read = File::open(&path).and_then(|mut f| f.read_to_end(buffer));
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
        let found = match fs::read(&path) {
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

/// Puts the workers' chunks together, in order.
struct Assembly<'a> {
    dir: &'a Path,
    head: &'a Head,
    answers: Receiver<Result<Chunk, Finding>>,
    early: BTreeMap<u64, Chunk>,
    under_way: usize,
    tree: TileTree,
    spare: Vec<Chunk>,
    buffer: Vec<u8>,
}

impl<'a> Assembly<'a> {
    fn new(dir: &'a Path, head: &'a Head, answers: Receiver<Result<Chunk, Finding>>) -> Self {
        let (tree, early) = (TileTree::default(), BTreeMap::new());
        Self {
            dir,
            head,
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
        let (mut due, mut chunk, mut loose) = (0, Chunk::default(), 0);
        for (i, segment) in all.iter().enumerate() {
            if segment.first != due {
                if due >= size {
                    break;
                }
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
        let file = File::open(&segment.path).map_err(&to_finding)?;
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
        chunk.width = 0;
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

    /// All records are in: the upper partial tiles, and the root.
    fn finish(&mut self) -> Result<(), Finding> {
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
