//! What there is in a log, in numbers.

use crate::index::{self, Query, Terms, tally};
use crate::payload;
use crate::raw::{self, ScanError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

/// Numbers of a log, or of the part of it that a query takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records.
    pub records: u64,
    /// Number of the first record that is there; those before it were pruned.
    pub first: u64,
    /// Time of the earliest and of the latest record, Unix milliseconds.
    pub times: Option<(u64, u64)>,
    /// Records by kind.
    pub kinds: BTreeMap<String, u64>,
    /// Records by agent.
    pub agents: BTreeMap<String, u64>,
    /// Records by host.
    pub hosts: BTreeMap<String, u64>,
    /// Records by user.
    pub users: BTreeMap<String, u64>,
    /// Sessions.
    pub sessions: u64,
    /// Bytes of the write-ahead log, of the tiles with their bundles, of the index.
    pub wal_bytes: u64,
    /// See above.
    pub tile_bytes: u64,
    /// See above.
    pub index_bytes: u64,
    /// Payload files, and their bytes.
    pub payloads: u64,
    /// See above.
    pub payload_bytes: u64,
}

impl Stats {
    fn take(&mut self, terms: &Terms, sessions: &mut BTreeSet<String>) {
        self.records += 1;
        self.note_times((terms.time_ms, terms.time_ms));
        let count = |map: &mut BTreeMap<String, u64>, text: Option<&String>| {
            if let Some(text) = text {
                *map.entry(text.clone()).or_default() += 1;
            }
        };
        count(&mut self.kinds, Some(&terms.kind));
        count(&mut self.agents, terms.agent.as_ref());
        count(&mut self.hosts, terms.host.as_ref());
        count(&mut self.users, terms.user.as_ref());
        sessions.extend(terms.session.clone());
    }

    fn note_times(&mut self, (from, to): (u64, u64)) {
        let (a, b) = self.times.unwrap_or((from, to));
        self.times = Some((a.min(from), b.max(to)));
    }
}

/// Counts a whole log, by its index as far as that reaches.
///
/// # Errors
/// When the log cannot be read.
pub fn whole(dir: &Path) -> Result<Stats, ScanError> {
    let mut stats = Stats { first: raw::first(dir)?, ..Stats::default() };
    let index = index::current(dir)?;
    let mut sessions = BTreeSet::new();
    if stats.first == 0 {
        for (about, map) in [
            (index::About::Kind, &mut stats.kinds),
            (index::About::Agent, &mut stats.agents),
            (index::About::Host, &mut stats.hosts),
            (index::About::User, &mut stats.users),
        ] {
            tally(&index, about, map)?;
        }
        let mut named = BTreeMap::new();
        tally(&index, index::About::Session, &mut named)?;
        sessions.extend(named.into_keys());
        stats.records = index.next();
        for run in &index.runs {
            run.times.iter().for_each(|times| stats.note_times(*times));
        }
        index.newer(|_, entry| {
            stats.take(&Terms::of(entry), &mut sessions);
            ControlFlow::Continue(())
        })?;
    } else {
        // The index may still have what was pruned: read what is there.
        raw::scan(dir, 0, |_, entry| {
            stats.take(&Terms::of(entry), &mut sessions);
            ControlFlow::Continue(())
        })?;
    }
    stats.sessions = sessions.len() as u64;
    stats.index_bytes = index.bytes();
    stats.wal_bytes = bytes_below(&dir.join("wal")).1;
    stats.tile_bytes = bytes_below(&dir.join("tile")).1;
    (stats.payloads, stats.payload_bytes) = bytes_below(&dir.join(payload::FOLDER));
    Ok(stats)
}

/// Counts the records that a query takes; sizes of files are those of the whole log.
///
/// # Errors
/// As [`whole`].
pub fn of(dir: &Path, query: &Query) -> Result<Stats, ScanError> {
    if *query == Query::default() {
        return whole(dir);
    }
    let mut stats = Stats { first: raw::first(dir)?, ..Stats::default() };
    let mut sessions = BTreeSet::new();
    index::search(dir, query, true, |stored| {
        stats.take(&Terms::of(&stored.bytes), &mut sessions);
        ControlFlow::Continue(())
    })?;
    stats.sessions = sessions.len() as u64;
    Ok(stats)
}

/// Files and bytes below a folder; what cannot be looked at counts as nothing.
fn bytes_below(folder: &Path) -> (u64, u64) {
    let (mut files, mut bytes, mut todo) = (0, 0, vec![folder.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => (files, bytes) = (files + 1, bytes + meta.len()),
                Err(_) => {}
            }
        }
    }
    (files, bytes)
}
