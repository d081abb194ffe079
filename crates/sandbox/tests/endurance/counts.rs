//! What starts and ends may leave behind, counted.
//!
//! Pipeline: settle (only the spare is there) ─► `Counts::take` ─► … ─► settle ─► `Counts::take` ─►
//! `against`: numbers must be the same, memory may have grown by a bound.

use crate::eyes;
use crate::host::{
    SETTLES_WITHIN, Seen, children, differences, groups_of, has_children, marked, read, soon,
};
use crate::lab::Lab;
use std::path::Path;

/// How much more memory a spawner may hold after any number of sandboxes: room for a heap in
/// pieces, and in 10,000 sandboxes for no leak of more than 50 bytes each.
const SPAWNER_GROWTH_KIB: u64 = 512;
/// The same for the process that asks for them; its threads and their stacks are in it.
const CLIENT_GROWTH_KIB: u64 = 4_096;

/// What everything begins with: the families that a test changes one by one.
pub(crate) const FAMILIES: [&str; 9] = [
    "client descriptors",
    "client threads",
    "spawner descriptors",
    "spawner children",
    "processes",
    "mounts",
    "control groups",
    "run folder",
    "session uids",
];

/// One count of everything.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    pub(crate) seen: Seen,
    /// Memory of client and spawner, KiB; the latter's where it can be seen.
    pub(crate) client_kib: u64,
    pub(crate) spawner_kib: Option<u64>,
}

/// What is counted, and where.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) spawner: u32,
    /// An argument of every program that is started.
    pub(crate) mark: &'a str,
}

impl Counts {
    /// Waits until nothing but the spare is left, or time is over, and counts.
    pub(crate) fn take(place: Place<'_>) -> Self {
        let Place { spawner, mark, .. } = place;
        // Who waits in vain finds out what is there.
        soon(|| marked(mark).is_empty());
        has_children(spawner, 1, SETTLES_WITHIN);
        Self::now(place)
    }

    /// Counts what is there at this moment.
    pub(crate) fn now(place: Place<'_>) -> Self {
        let Place { lab, spawner, mark } = place;
        let mut seen = Seen::new();
        let mut tell = |name: &str, value: String| drop(seen.insert(name.to_owned(), value));
        let count = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count).to_string();
        let own = std::process::id();
        tell("client descriptors", by_line(&eyes::descriptors(own).unwrap_or_default()));
        tell("client threads", count("/proc/self/task"));
        let inside = eyes::look(spawner);
        let descriptors = inside.as_ref().map_or("not seen", |i| &i.descriptors);
        tell("spawner descriptors", by_line(descriptors));
        tell("spawner children", children(spawner).len().to_string());
        tell("processes", marked(mark).len().to_string());
        tell("mounts", read("/proc/self/mountinfo"));
        tell("control groups", groups_of(spawner).len().to_string());
        tell("run folder", entries(&lab.dir).to_string());
        tell("session uids", locks(spawner).to_string());
        let client = eyes::look(own).map_or(0, |i| i.kib);
        Self { seen, client_kib: client, spawner_kib: inside.map(|i| i.kib) }
    }

    /// Everything that is more, less or other than before.
    pub(crate) fn against(&self, before: &Self) -> Vec<String> {
        let mut found = differences(&before.seen, &self.seen);
        let mut memory = |who: &str, was: u64, is: u64, most: u64| {
            if is > was + most {
                found.push(format!("{who}: memory was {was} KiB, is {is} KiB"));
            }
        };
        memory("client", before.client_kib, self.client_kib, CLIENT_GROWTH_KIB);
        let (was, is) = (before.spawner_kib.unwrap_or(0), self.spawner_kib.unwrap_or(0));
        memory("spawner", was, is, SPAWNER_GROWTH_KIB);
        found
    }
}

/// A kind a line, so that a difference shows the kind. Id mappings are kept to be used again
/// (`spawner::mapping`), as many as session uids were seen, which other spawners on the machine
/// move: of them only the bound is held.
fn by_line(descriptors: &str) -> String {
    const MAPPING: &str = " user:[]";
    const MAPPINGS_MAX: u32 = 256;
    let kinds = descriptors.split(", ").filter(|kind| {
        let count = kind.strip_suffix(MAPPING).and_then(|count| count.parse::<u32>().ok());
        count.is_none_or(|count| count > MAPPINGS_MAX)
    });
    kinds.collect::<Vec<_>>().join("\n")
}

/// Everything below a folder.
fn entries(folder: &Path) -> usize {
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |e: std::fs::DirEntry| {
        1 + if e.file_type().is_ok_and(|t| t.is_dir()) { entries(&e.path()) } else { 0 }
    };
    below.map(count).sum()
}

/// Session uids that the spawner holds: a locked byte each (`spawner::slots`); adjacent bytes are
/// one line of the kernel's, so bytes are counted.
fn locks(spawner: u32) -> u64 {
    let bytes = |line: &str| -> Option<u64> {
        // "1: OFDLCK ADVISORY WRITE -1 00:1a:1097 0 0": no pid stands in it, for the open file
        // holds it; the descriptor's own list names what this one holds.
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "OFDLCK" || *w == "POSIX")?;
        let (first, last) = (words.get(at + 5)?, words.get(at + 6)?);
        Some(last.parse::<u64>().ok()? - first.parse::<u64>().ok()? + 1)
    };
    let infos =
        std::fs::read_dir(format!("/proc/{spawner}/fdinfo")).into_iter().flatten().flatten();
    let lines = infos.flat_map(|e| {
        let text = std::fs::read_to_string(e.path()).unwrap_or_default();
        text.lines().filter(|l| l.starts_with("lock:")).map(str::to_owned).collect::<Vec<_>>()
    });
    lines.filter_map(|line| bytes(&line)).sum()
}
