//! What became of the files of a session's writable mounts: looked at before its program runs,
//! after each turn and after its end.
//!
//! ```text
//! mount ─► look: every entry's marks ─► since the look before ─► contents of what changed ─► list
//! ```
//!
//! 1. What the kernel notes of a file tells that it changed: nothing that did not is read, so a
//!    manifest costs one look at each entry. Two things need more. A file that had just changed
//!    is read, for it can change again within one tick of the clock. One that a program keeps
//!    mapped into its memory can change unnoted until the kernel writes it back: what changed in
//!    a session is read once more at its end, when nothing of it runs. Where the file system is not
//!    known to note such writes at all, every file is read before and after, see [`look`].
//! 2. Every bound that is reached is told, with where.
//! 3. It is told what is different, not who did it: others may write in a granted folder.

mod look;
mod names;
mod picture;
#[cfg(test)]
mod tests;

pub(crate) use look::Bounds;
use look::{Left, Place, contents};
use model::{FileAct, FileChange, MountSeen};
pub(crate) use names::shown as shown_path;
use picture::{Picture, Seen, Sort};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Folders not looked at that are named; the others are counted.
const MISSED_NAMED_MAX: usize = 16;
/// As much of a reason as is kept.
const REASON_CHARS_MAX: usize = 200;

/// The mounts of one sandbox, and what they looked like last.
#[derive(Debug)]
pub(crate) struct Manifests {
    mounts: Vec<Mount>,
}

#[derive(Debug)]
struct Mount {
    inside: String,
    /// Or why it cannot be opened.
    place: Result<Place, String>,
    last: Picture,
}

/// What one manifest found.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Each mount with its changes, in the order of their paths.
    pub(crate) mounts: Vec<(MountSeen, Vec<FileChange>)>,
    /// Contents read.
    pub(crate) read_bytes: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Manifests {
    /// The first look, before the program runs. `mounts`: where each is inside, and on the host.
    pub(crate) fn start(mounts: Vec<(String, PathBuf)>, bounds: Bounds) -> (Self, Looked) {
        let opened = mounts.into_iter().map(|(inside, source)| {
            let place = Place::open(&source).map_err(|e| format!("it cannot be opened: {e}"));
            Mount { inside, place, last: Picture::default() }
        });
        let mut all = Self { mounts: opened.collect() };
        let looked = all.each(bounds, Mount::first);
        (all, looked)
    }

    /// What is different since the last look. `ended`: nothing of the session runs any more.
    pub(crate) fn next(&mut self, ended: bool, bounds: Bounds) -> Looked {
        self.each(bounds, |mount, left| mount.next(ended, bounds, left))
    }

    fn each(
        &mut self,
        bounds: Bounds,
        one: impl Fn(&mut Mount, &mut Left) -> (MountSeen, Vec<FileChange>),
    ) -> Looked {
        let begun = Instant::now();
        let mut looked = Looked::default();
        for mount in &mut self.mounts {
            let mut left = Left::new(bounds);
            looked.mounts.push(one(mount, &mut left));
            looked.read_bytes += bounds.bytes - left.bytes;
        }
        looked.took = begun.elapsed();
        looked
    }
}

impl Mount {
    fn look(&self, left: &mut Left) -> Picture {
        match &self.place {
            Ok(place) => look::look(place, left),
            Err(why) => {
                Picture { missed: [(Vec::new(), why.clone())].into(), ..Picture::default() }
            }
        }
    }

    fn first(&mut self, left: &mut Left) -> (MountSeen, Vec<FileChange>) {
        self.last = self.look(left);
        self.last.begin();
        left.turn_to_reading();
        let all = self.blind();
        let unread = self.settle(left, all, &BTreeMap::new());
        (MountSeen { unread, ..self.seen() }, Vec::new())
    }

    /// Whether files can have other contents although the kernel noted nothing.
    fn blind(&self) -> bool {
        self.place.as_ref().is_ok_and(|place| !place.notes_mapped())
    }

    fn next(
        &mut self,
        ended: bool,
        bounds: Bounds,
        left: &mut Left,
    ) -> (MountSeen, Vec<FileChange>) {
        let last_of_blind = ended && self.blind();
        let mut now = self.look(left);
        let mut acts = now.since(&self.last);
        let before = std::mem::take(&mut self.last);
        let unchanged = before.entries.iter().filter(|(path, then)| {
            then.sort == Sort::File && now.entries.contains_key(*path) && !acts.contains_key(*path)
        });
        // With nothing to compare, reading again would tell nothing.
        let (unknown, unchanged): (Vec<_>, Vec<_>) =
            unchanged.partition(|(_, then)| last_of_blind && then.digest.is_none());
        let unknown = unknown.len() as u64;
        // Read again although their marks are the same, see above.
        let doubtful: Vec<Vec<u8>> = unchanged
            .into_iter()
            .filter(|(_, then)| !then.settled || (ended && then.digest.is_some()))
            .map(|(path, _)| path.clone())
            .collect();
        let gone = before_of_deleted(&before, &acts);
        now.keep_from(before);
        self.last = now;
        left.turn_to_reading();
        let mut reading = Reading::default();
        let mut told = self.read_changes(&acts, gone, bounds.listed, left, &mut reading);
        for path in doubtful {
            if self.differs(&path, left, &mut reading) {
                acts.insert(path.clone(), FileAct::Changed);
                if told.len() < bounds.listed
                    && let Some(entry) = self.last.entries.get(&path)
                {
                    told.insert(path.clone(), describe(&path, FileAct::Changed, entry));
                }
            }
        }
        // Behind the last look nothing is compared, and what has no digest is counted.
        let unsettled = if last_of_blind { 0 } else { self.settle(left, false, &told) };
        let count = |act| acts.values().filter(|a| **a == act).count() as u64;
        let seen = MountSeen {
            created: count(FileAct::Created),
            changed: count(FileAct::Changed),
            deleted: count(FileAct::Deleted),
            unlisted: (acts.len() - told.len()) as u64,
            unread: reading.unread + unknown + unsettled,
            ..self.seen()
        };
        (seen, told.into_values().collect())
    }

    /// Reads what was created or changed, as far as it is named.
    fn read_changes(
        &mut self,
        acts: &BTreeMap<Vec<u8>, FileAct>,
        mut gone: BTreeMap<Vec<u8>, Seen>,
        listed: usize,
        left: &mut Left,
        reading: &mut Reading,
    ) -> BTreeMap<Vec<u8>, FileChange> {
        let mut told = BTreeMap::new();
        for (path, act) in acts.iter().take(listed) {
            let entry = match act {
                FileAct::Deleted => gone.remove(path),
                _ => self.last.entries.get(path).cloned(),
            };
            let Some(entry) = entry else { continue };
            let mut change = describe(path, *act, &entry);
            if *act != FileAct::Deleted && matches!(entry.sort, Sort::File | Sort::Link) {
                match self.contents(path, left) {
                    Ok(found) => {
                        change.bytes = found.bytes;
                        change.sha256 = Some(names::hex(&found.sha256));
                        change.racy = found.racy;
                    }
                    Err(why) => {
                        change.unread = Some(why.chars().take(REASON_CHARS_MAX).collect());
                        reading.unread += 1;
                    }
                }
            }
            told.insert(path.clone(), change);
        }
        told
    }

    /// Reads an entry and keeps its digest.
    fn contents(&mut self, path: &[u8], left: &mut Left) -> Result<look::Contents, String> {
        let place = self.place.as_ref().map_err(Clone::clone)?;
        let Some(entry) = self.last.entries.get_mut(path) else {
            return Err("it was removed meanwhile".into());
        };
        let found = contents(place, path, entry, left);
        entry.digest = found.as_ref().ok().map(|c| c.sha256);
        found
    }

    /// Whether a file whose marks are the same has other contents than were read before.
    fn differs(&mut self, path: &[u8], left: &mut Left, reading: &mut Reading) -> bool {
        let then = self.last.entries.get(path).and_then(|entry| entry.digest);
        match self.contents(path, left) {
            Ok(found) => then.is_some_and(|then| then != found.sha256),
            Err(_) => {
                reading.unread += 1;
                // What was known of it stays known.
                if let Some(entry) = self.last.entries.get_mut(path) {
                    entry.digest = then;
                }
                false
            }
        }
    }

    /// Reads files that changed so lately that their marks would not tell of another change, or
    /// `all`, but for those that were tried; tells how many could not be.
    fn settle(&mut self, left: &mut Left, all: bool, tried: &BTreeMap<Vec<u8>, FileChange>) -> u64 {
        let fresh = |(path, entry): (&Vec<u8>, &Seen)| {
            let doubtful = all || !entry.settled;
            let due = entry.sort == Sort::File && doubtful && entry.digest.is_none();
            (due && !tried.contains_key(path)).then(|| path.clone())
        };
        let due: Vec<Vec<u8>> = self.last.entries.iter().filter_map(fresh).collect();
        due.iter().filter(|path| self.contents(path, left).is_err()).count() as u64
    }

    /// What was looked at, and what was not.
    fn seen(&self) -> MountSeen {
        let named = self.last.missed.iter().take(MISSED_NAMED_MAX).map(|(path, why)| {
            let path = if path.is_empty() { ".".to_owned() } else { names::shown(path) };
            let why: String = why.chars().take(REASON_CHARS_MAX).collect();
            format!("{path}: {why}")
        });
        MountSeen {
            mount: self.inside.clone(),
            looked_at: self.last.looked_at,
            missed: self.last.missed.len() as u64,
            missed_first: named.collect(),
            ..MountSeen::default()
        }
    }
}

#[derive(Debug, Default)]
struct Reading {
    unread: u64,
}

fn before_of_deleted(
    before: &Picture,
    acts: &BTreeMap<Vec<u8>, FileAct>,
) -> BTreeMap<Vec<u8>, Seen> {
    let deleted = acts.iter().filter(|(_, act)| **act == FileAct::Deleted);
    deleted
        .filter_map(|(path, _)| Some((path.clone(), before.entries.get(path)?.clone())))
        .collect()
}

fn describe(path: &[u8], act: FileAct, entry: &Seen) -> FileChange {
    FileChange {
        path: names::shown(path),
        act,
        sort: entry.sort.name().to_owned(),
        bytes: if matches!(entry.sort, Sort::File | Sort::Link) { entry.marks.size } else { 0 },
        mode: entry.mode(),
        sha256: entry.digest.as_ref().map(names::hex),
        unread: None,
        racy: false,
    }
}
