//! Reading a log's entries, now or as they come, without the recorder.
//!
//! ```text
//! wal/*.wal ─► Reader ─► Stored { index, record }      Follow: the same, and waits by inotify
//! ```
//!
//! 1. Reading proves nothing: [`crate::verify`] does. It does check every checksum and number.
//! 2. The end of the log is not an error, even inside a record that is being written, or before
//!    bytes that a crash left there.

use crate::disk::{Real, open_file};
use crate::entry::{DecodeError, decode};
use crate::index::Terms;
use crate::raw::{self, ScanError};
use crate::replay::is_torn;
use crate::wal::{BadFrame, FrameReader, segments};
use model::{Record, SessionId};
use rustix::fs::inotify;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// One entry as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its index.
    pub index: u64,
    /// Its bytes: one line of canonical JSON.
    pub bytes: Vec<u8>,
    /// What they say, if this version knows the kind.
    pub record: Result<Record, DecodeError>,
}

/// Which entries to give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this session.
    pub session: Option<SessionId>,
    /// Only those from this index on.
    pub from: u64,
}

impl Filter {
    fn takes(&self, record: &Result<Record, DecodeError>) -> bool {
        match (&self.session, record) {
            (None, _) => true,
            (Some(session), Ok(record)) => record.session.as_ref() == Some(session),
            (Some(_), Err(_)) => false,
        }
    }
}

/// Whether a session's id stands in an entry at all.
fn names(entry: &[u8], session: &SessionId) -> bool {
    crate::payload::contains(entry, session.as_str().as_bytes())
}

struct Open {
    path: PathBuf,
    frames: FrameReader<File>,
}

/// Reads entries in order. At the end it gives `None`, and later what came meanwhile.
pub struct Reader {
    dir: PathBuf,
    filter: Filter,
    due: u64,
    open: Option<Open>,
    broken: bool,
}

impl Reader {
    /// A reader of the log in `dir` (see [`crate::log_dir`]). A log that does not exist yet is
    /// empty.
    #[must_use]
    pub fn new(dir: &Path, filter: Filter) -> Self {
        Self { dir: dir.to_owned(), filter, due: 0, open: None, broken: false }
    }

    /// The next entry that the filter takes; `None` when there is none yet.
    ///
    /// # Errors
    /// When a file cannot be read or a record is damaged.
    pub fn next_entry(&mut self) -> Result<Option<Stored>, ScanError> {
        loop {
            if self.open.is_none() && !self.open_segment()? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            let io_error = |error| ScanError::Io { path: open.path.clone(), error };
            let offset = open.frames.offset();
            match open.frames.next_frame().map_err(io_error)? {
                Ok(Some(frame)) => {
                    self.due = frame.seq + 1;
                    if frame.seq < self.filter.from {
                        continue;
                    }
                    // Looking for an id costs a tenth of what decoding does.
                    if self.filter.session.as_ref().is_some_and(|s| !names(frame.bytes, s)) {
                        continue;
                    }
                    let record = decode(frame.bytes);
                    if self.filter.takes(&record) {
                        let bytes = frame.bytes.to_vec();
                        return Ok(Some(Stored { index: frame.seq, bytes, record }));
                    }
                }
                Ok(None) => {
                    if !self.open_segment()? {
                        return Ok(None);
                    }
                }
                Err(BadFrame::Short) => return Ok(None),
                Err(why) => {
                    let path = open.path.clone();
                    return match self.at_torn_end(&path, offset)? {
                        true => Ok(None),
                        false => Err(ScanError::Damaged { path, offset, why: why.to_string() }),
                    };
                }
            }
        }
    }

    /// Whether what is no record there is a write at the very end that a crash cut off.
    fn at_torn_end(&self, path: &Path, offset: u64) -> Result<bool, ScanError> {
        let last = segments(&self.dir).map(|all| all.last().is_some_and(|s| s.path == path));
        last.and_then(|last| Ok(last && is_torn(&Real, path, offset, self.due)?))
            .map_err(|error| ScanError::Io { path: path.to_owned(), error })
    }

    /// Goes to the segment with the record that is due, if that is another one than the open one.
    fn open_segment(&mut self) -> Result<bool, ScanError> {
        let folder = self.dir.join("wal");
        let all = match segments(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|error| ScanError::Io { path: folder, error })?,
        };
        // The first one may be entered before its end: skip what lies wholly before `from`.
        let wanted = if self.open.is_none() { self.filter.from.max(self.due) } else { self.due };
        // None is open and none begins early enough: what was asked for was pruned, and the first
        // record that is there comes next.
        let found = all.iter().rev().find(|s| s.first <= wanted);
        let found = found.or_else(|| all.first().filter(|_| self.open.is_none()));
        let Some(segment) = found.cloned() else { return Ok(false) };
        if self.open.as_ref().is_some_and(|open| open.path == segment.path) {
            return Ok(false);
        }
        let file = open_file(&segment.path)
            .map_err(|error| ScanError::Io { path: segment.path.clone(), error })?;
        self.due = segment.first;
        let frames = FrameReader::new(file, 0, segment.first);
        self.open = Some(Open { path: segment.path, frames });
        Ok(true)
    }
}

impl Iterator for Reader {
    type Item = Result<Stored, ScanError>;

    /// As [`Reader::next_entry`]; ends after an error, which would only come again.
    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let next = self.next_entry().transpose();
        self.broken = matches!(next, Some(Err(_)));
        next
    }
}

/// A reader that waits for what comes.
pub struct Follow {
    reader: Reader,
    watch: OwnedFd,
}

impl Follow {
    /// Follows the log in `dir`, which must exist.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn new(dir: &Path, filter: Filter) -> Result<Self, ScanError> {
        let path = dir.join("wal");
        let io_error = |e: rustix::io::Errno| ScanError::Io { path: path.clone(), error: e.into() };
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(io_error)?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        inotify::add_watch(&watch, &path, what).map_err(io_error)?;
        Ok(Self { reader: Reader::new(dir, filter), watch })
    }

    /// The next entry; sleeps until there is one.
    ///
    /// # Errors
    /// As [`Reader::next_entry`].
    pub fn wait(&mut self) -> Result<Stored, ScanError> {
        loop {
            if let Some(entry) = self.reader.next_entry()? {
                return Ok(entry);
            }
            // Events are only a wake-up; what they say does not matter, nor does a signal.
            let mut events = [0u8; 4096];
            match rustix::io::read(&self.watch, &mut events) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    let path = self.reader.dir.join("wal");
                    return Err(ScanError::Io { path, error: e.into() });
                }
            }
        }
    }
}

/// The newest `count` entries, oldest first, found from the end of the log.
///
/// # Errors
/// When a file cannot be read or a record is damaged.
pub fn newest(dir: &Path, count: usize) -> Result<Vec<Stored>, ScanError> {
    let mut kept: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    for from in starts(dir)? {
        kept.clear();
        raw::scan(dir, from, |index, entry| {
            kept.push_back((index, entry.to_vec()));
            if kept.len() > count {
                kept.pop_front();
            }
            ControlFlow::Continue(())
        })?;
        if kept.len() >= count {
            break;
        }
    }
    let stored = |(index, bytes): (u64, Vec<u8>)| {
        let record = decode(&bytes);
        Stored { index, bytes, record }
    };
    Ok(kept.into_iter().map(stored).collect())
}

/// The session that was on record last.
///
/// # Errors
/// As [`newest`].
pub fn newest_session(dir: &Path) -> Result<Option<SessionId>, ScanError> {
    for from in starts(dir)? {
        let mut found = None;
        raw::scan(dir, from, |_, entry| {
            found = Terms::of(entry).session.or_else(|| found.take());
            ControlFlow::Continue(())
        })?;
        if let Some(session) = found.and_then(|s| SessionId::parse(&s).ok()) {
            return Ok(Some(session));
        }
    }
    Ok(None)
}

/// Numbers to read from, each further back than the one before, down to the first record: whoever
/// looks for the newest reads little of a long log.
fn starts(dir: &Path) -> Result<Vec<u64>, ScanError> {
    let first = raw::first(dir)?;
    let io_error = |error| ScanError::Io { path: dir.join("wal"), error };
    let last = match segments(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![first]),
        other => other.map_err(io_error)?.last().map_or(first, |s| s.first),
    };
    // The last segment holds tens of thousands of records; tiles lead further back.
    let mut all = vec![last];
    let mut step = BACKWARDS;
    while all.last().is_some_and(|from| *from > first) {
        all.push(last.saturating_sub(step).max(first));
        step = step.saturating_mul(16);
    }
    Ok(all)
}

/// Records before the last segment that are read first.
const BACKWARDS: u64 = 4_096;
