//! An index of the log: who, where and what, without reading every record.
//!
//! ```text
//! entries ─► terms (session, agent, user, kind, host, file) ─► index/<first>-<count>.idx   runs
//! query ─► runs ─► numbers of records ─► bundles ─► looked at again ─► found
//!                     and what is newer than the runs, read as it stands
//! ```
//!
//! 1. It is derived: removing the folder costs time, never a record. Nobody signs it and
//!    `audit verify` does not read it.
//! 2. Every record that it leads to is held against the query again, so a wrong index gives no
//!    wrong answer. It could hide a record; every part of it has a checksum, a run belongs to one
//!    log by the hash of its last record, and without the index every record is looked at.
//! 3. Readers need no lock. One writer at a time brings it up to date; whoever cannot (a read-only
//!    copy, another writer) reads what it has and scans the rest.

mod run;
mod search;
mod terms;

pub(crate) use search::tally;
pub use search::{Found, Query, of_session, search};
pub(crate) use terms::About;
pub use terms::Terms;

use crate::disk::{create_anew, hold_folder, open_file, open_lock, read_whole};
use crate::merkle::leaf_hash;
use crate::raw::{self, BUNDLE, Mark, ScanError};
use run::{Builder, Run};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Folder below the log's.
pub const FOLDER: &str = "index";

/// Records of a whole run: its numbers fit into memory many times over, and a log of ten million
/// records has ten of them.
const RUN_RECORDS: u64 = 1 << 20;

/// So many new records are worth writing: fewer are scanned at every search, in milliseconds.
const WORTH_WRITING: u64 = 2_048;

/// The runs of a log, in order and without a gap.
pub(crate) struct Index {
    dir: PathBuf,
    pub(crate) runs: Vec<Run>,
    mark: Option<Mark>,
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> ScanError {
    let path = path.to_owned();
    move |error| ScanError::Io { path: path.clone(), error }
}

impl Index {
    /// What there is of an index of the log in `dir`; what is damaged or of another is left out.
    pub(crate) fn open(dir: &Path) -> Self {
        let folder = dir.join(FOLDER);
        let mut named: Vec<(u64, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some((first, count)) = run::numbers(&path) {
                named.push((first, count, path));
            }
        }
        // Of two that begin together the longer one: the other is about to be removed.
        named.sort_by_key(|(first, count, _)| (*first, u64::MAX - count));
        let (mut runs, mut due): (Vec<Run>, Option<u64>) = (Vec::new(), None);
        for (first, count, path) in named {
            if due.is_some_and(|due| due != first) {
                continue;
            }
            let Ok(Some(run)) = Run::open(&path) else { continue };
            if run.last_leaf != leaf_of(dir, first + count - 1) {
                continue;
            }
            due = Some(first + count);
            runs.push(run);
        }
        let start = raw::first(dir).unwrap_or(0);
        if runs.first().is_some_and(|r| r.first > start) {
            // Its beginning is lost: records there would never be found.
            runs.clear();
        }
        let mark = read_whole(&folder.join("mark")).ok();
        let mark = mark.and_then(|text| parse_mark(std::str::from_utf8(&text).ok()?));
        Self { dir: dir.to_owned(), runs, mark }
    }

    /// Number of the first record that no run has.
    pub(crate) fn next(&self) -> u64 {
        self.runs.last().map_or(0, |r| r.first + r.count)
    }

    /// Gives every entry that is newer than the runs.
    pub(crate) fn newer(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ScanError> {
        let mut due = self.next().max(raw::first(&self.dir)?);
        while let Some(bytes) = raw::bundle(&self.dir, due / BUNDLE)? {
            let skip = (due % BUNDLE) as usize;
            for entry in raw::entries(&self.dir, due / BUNDLE, &bytes)?.into_iter().skip(skip) {
                due += 1;
                if each(due - 1, entry).is_break() {
                    return Ok(());
                }
            }
        }
        raw::scan_wal(&self.dir, due, self.mark, each).map(drop)
    }

    /// Takes in what is new, if that is worth it (or `all` of it), and returns whether anything was
    /// written. Only whole bundles are taken in.
    fn update(&mut self, all: bool) -> Result<bool, ScanError> {
        let folder = self.dir.join(FOLDER);
        let start = raw::first(&self.dir)?;
        let mut due = if self.runs.is_empty() { start / BUNDLE * BUNDLE } else { self.next() };
        let worth = if all { 1 } else { WORTH_WRITING.div_ceil(BUNDLE) };
        let far = due / BUNDLE + worth - 1;
        if raw::bundle(&self.dir, far)?.is_none() {
            return Ok(false);
        }
        let Some((_lock, held)) = lock(&folder) else { return Ok(false) };
        // Another one may have been at it meanwhile.
        let fresh = Self::open(&self.dir);
        if fresh.next() > due {
            *self = fresh;
            due = self.next();
        }
        let last = self.runs.pop_if(|run| run.count < RUN_RECORDS);
        let mut builder = match last.as_ref().map(|run| (run, Builder::from_run(run))) {
            None => Builder::new(due),
            Some((_, Ok(builder))) => builder,
            // Damaged: made again from its first record on.
            Some((run, Err(e))) if e.kind() == io::ErrorKind::InvalidData => {
                due = run.first;
                Builder::new(due)
            }
            Some((run, Err(e))) => return Err(io_error(&run.path)(e)),
        };
        let mut old = last.map(|run| run.path);
        let mut leaf = None;
        while let Some(bytes) = raw::bundle(&self.dir, due / BUNDLE)? {
            let entries = raw::entries(&self.dir, due / BUNDLE, &bytes)?;
            for entry in &entries {
                builder.push(&Terms::of(entry));
            }
            leaf = entries.last().map(|entry| leaf_hash(entry));
            due += BUNDLE;
            if builder.count() >= RUN_RECORDS {
                let full = std::mem::replace(&mut builder, Builder::new(due));
                self.write(&held, full, leaf.take(), old.take())?;
            }
        }
        if builder.count() > 0 {
            self.write(&held, builder, leaf, old)?;
        }
        let (_, mark) = raw::scan_wal(&self.dir, due, self.mark, |_, _| ControlFlow::Continue(()))?;
        if let Some(m) = mark {
            let text = format!("{} {} {}\n", m.segment, m.offset, m.due);
            write_mark(&held, &text).map_err(io_error(&folder))?;
            self.mark = Some(m);
        }
        Ok(true)
    }

    fn write(
        &mut self,
        held: &Path,
        builder: Builder,
        leaf: Option<[u8; 32]>,
        old: Option<PathBuf>,
    ) -> Result<(), ScanError> {
        let Some(leaf) = leaf else { return Ok(()) };
        let folder = self.dir.join(FOLDER);
        let path = builder.write(held, leaf).map_err(io_error(&folder))?;
        let path = folder.join(path.file_name().unwrap_or_default());
        if let Some(old) = old.filter(|old| *old != path) {
            fs::remove_file(&old).map_err(io_error(&old))?;
        }
        if let Ok(Some(run)) = Run::open(&path) {
            self.runs.push(run);
        }
        Ok(())
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|r| fs::metadata(&r.path).map_or(0, |m| m.len())).sum()
    }
}

/// Hash of a record as the tiles have it; of zeros where they do not.
fn leaf_of(dir: &Path, index: u64) -> [u8; 32] {
    use crate::tiles::{Kind, TileName};
    use std::os::unix::fs::FileExt;
    let name = TileName { kind: Kind::Hashes(0), index: index / BUNDLE, width: BUNDLE as u16 };
    let mut leaf = [0; 32];
    let read = open_file(&dir.join(name.path()))
        .and_then(|file| file.read_exact_at(&mut leaf, 32 * (index % BUNDLE)));
    if read.is_ok() { leaf } else { [0; 32] }
}

/// The right to write the index, as long as the first is kept, and its folder. Whoever writes in it
/// may have more rights than who can put links there: what is written is new, in a folder that is
/// none.
fn lock(folder: &Path) -> Option<([File; 2], PathBuf)> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let (open, held) = hold_folder(folder).ok()?;
    let file = open_lock(&held.join("lock")).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(([open, file], held))
}

fn write_mark(held: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let new = held.join("mark.new");
    create_anew(&new)?.write_all(text.as_bytes())?;
    fs::rename(new, held.join("mark"))
}

fn parse_mark(text: &str) -> Option<Mark> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some(Mark { segment: number()?, offset: number()?, due: number()? })
}

/// Brings the index of a log up to date, or makes it anew with `afresh`; returns records in it and
/// its bytes.
///
/// # Errors
/// When the log cannot be read or the index cannot be written.
pub fn update(dir: &Path, afresh: bool) -> Result<(u64, u64), ScanError> {
    if afresh {
        remove(dir)?;
    }
    let mut index = Index::open(dir);
    index.update(true)?;
    Ok((index.next(), index.bytes()))
}

/// Removes the index of a log.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(dir: &Path) -> Result<(), ScanError> {
    let folder = dir.join(FOLDER);
    match fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(&folder)(e)),
        _ => Ok(()),
    }
}

/// The index, brought up to date as far as that is worth it and can be done.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn current(dir: &Path) -> Result<Index, ScanError> {
    let mut index = Index::open(dir);
    match index.update(false) {
        Ok(_) => Ok(index),
        // A copy on a read-only disk, or a full disk: what is missing is scanned.
        Err(ScanError::Io { path, .. }) if path.starts_with(dir.join(FOLDER)) => {
            Ok(Index::open(dir))
        }
        Err(e) => Err(e),
    }
}
