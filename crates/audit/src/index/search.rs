//! Finding records.

use super::terms::{About, Terms, lower};
use super::{Index, Run, current};
use crate::payload::contains;
use crate::raw::{self, BUNDLE, ScanError};
use crate::read::Stored;
use model::SessionId;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// From so many candidates on, further conditions are looked up in the index too; fewer records are
/// read faster than long lists.
const FEW: usize = 2_048;

/// What is looked for; every condition that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// The session.
    pub session: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// `channel/chat`, a chat of any channel, or whoever decided.
    pub user: Option<String>,
    /// The kind of record.
    pub kind: Option<String>,
    /// The host; `*.suffix` is every host below it.
    pub host: Option<String>,
    /// The file or program; with a slash at its end everything below the folder.
    pub file: Option<String>,
    /// Not before this time, Unix milliseconds.
    pub from_ms: Option<u64>,
    /// Before this time.
    pub to_ms: Option<u64>,
}

/// Whether what was found is what is wanted.
type Is = fn(&str, &str) -> bool;

fn is_user(wanted: &str, user: &str) -> bool {
    user == wanted || user.split_once('/').is_some_and(|(_, chat)| chat == wanted)
}

fn is_host(wanted: &str, host: &str) -> bool {
    match wanted.strip_prefix('*') {
        Some(suffix) => suffix.starts_with('.') && host.ends_with(suffix),
        None => host == wanted,
    }
}

fn is_file(wanted: &str, file: &str) -> bool {
    file == wanted || (wanted.ends_with('/') && file.starts_with(wanted))
}

impl Query {
    /// Whether a record is looked for.
    #[must_use]
    pub fn takes(&self, terms: &Terms) -> bool {
        let same = |wanted: &Option<String>, found: Option<&String>| {
            wanted.as_ref().is_none_or(|wanted| found == Some(wanted))
        };
        let like = |wanted: &Option<String>, found: Option<&String>, is: Is| {
            wanted.as_ref().is_none_or(|wanted| found.is_some_and(|found| is(wanted, found)))
        };
        same(&self.session, terms.session.as_ref())
            && same(&self.agent, terms.agent.as_ref())
            && same(&self.kind, Some(&terms.kind))
            && like(&self.user, terms.user.as_ref(), is_user)
            && like(&self.host.as_deref().map(lower), terms.host.as_ref(), is_host)
            && self.file.as_ref().is_none_or(|w| terms.files.iter().any(|f| is_file(w, f)))
            && self.from_ms.is_none_or(|from| terms.time_ms >= from)
            && self.to_ms.is_none_or(|to| terms.time_ms < to)
    }

    /// Numbers of the records of a run that may be meant; `None` when all may be.
    fn candidates(&self, run: &Run) -> io::Result<Option<Vec<u32>>> {
        let mut found: Option<Vec<u32>> = None;
        // Those that name few records come first.
        let exact: Is = |wanted, found| wanted == found;
        let host = self.host.as_deref().map(lower);
        let conditions: [(About, Option<&str>, Is); 6] = [
            (About::Session, self.session.as_deref(), exact),
            (About::File, self.file.as_deref(), is_file),
            (About::Host, host.as_deref(), is_host),
            (About::User, self.user.as_deref(), is_user),
            (About::Agent, self.agent.as_deref(), exact),
            (About::Kind, self.kind.as_deref(), exact),
        ];
        for (about, wanted, is) in conditions {
            let Some(wanted) = wanted else { continue };
            if found.as_ref().is_some_and(|found| found.len() <= FEW) {
                break;
            }
            let numbers = numbers(run, about, wanted, is)?;
            found = Some(match found {
                None => numbers,
                Some(found) => both(&found, &numbers),
            });
        }
        Ok(found)
    }

    /// Whether any of the records of which these are first and last time may be meant.
    fn within(&self, (from, to): (u64, u64)) -> bool {
        self.from_ms.is_none_or(|f| to >= f) && self.to_ms.is_none_or(|t| from < t)
    }
}

fn numbers(run: &Run, about: About, wanted: &str, is: Is) -> io::Result<Vec<u32>> {
    let whole = about.term(wanted);
    if matches!(about, About::Session | About::Agent | About::Kind) {
        return run.term(&whole)?.map_or(Ok(Vec::new()), |term| run.postings(&term));
    }
    // A folder's files begin with its name; users and hosts are few.
    let prefix = if about == About::File { whole } else { about.term("") };
    let mut all = Vec::new();
    for term in run.terms(&prefix)? {
        let text = std::str::from_utf8(&term.text[1..]).unwrap_or_default();
        // Cut between two characters, it is up to three bytes shorter than it might be.
        let cut = term.text.len() + 3 > super::terms::TERM_BYTES_MAX;
        if cut || is(wanted, text) {
            all.extend(run.postings(&term)?);
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// What two sorted lists have in common.
fn both(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (mut i, mut j, mut common) = (0, 0, Vec::new());
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                common.push(*x);
                (i, j) = (i + 1, j + 1);
            }
        }
    }
    common
}

/// How a search went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Records given.
    pub records: u64,
    /// Records that the index covers.
    pub indexed: u64,
    /// Records that were read.
    pub read: u64,
}

/// Gives the records that are looked for, in the order of the log, until `each` has enough. With
/// `by_index` off every record is looked at.
///
/// # Errors
/// When the log cannot be read.
pub fn search(
    dir: &Path,
    query: &Query,
    by_index: bool,
    mut each: impl FnMut(Stored) -> ControlFlow<()>,
) -> Result<Found, ScanError> {
    let mut found = Found::default();
    let mut look = |found: &mut Found, index: u64, entry: &[u8]| {
        found.read += 1;
        if !query.takes(&Terms::of(entry)) {
            return ControlFlow::Continue(());
        }
        found.records += 1;
        let record = crate::entry::decode(entry);
        each(Stored { index, bytes: entry.to_vec(), record })
    };
    if !by_index {
        raw::scan(dir, 0, |index, entry| look(&mut found, index, entry))?;
        return Ok(found);
    }
    let index = current(dir)?;
    found.indexed = index.next();
    for run in &index.runs {
        if in_run(dir, query, run, |i, entry| look(&mut found, i, entry))?.is_break() {
            return Ok(found);
        }
    }
    index.newer(|i, entry| look(&mut found, i, entry))?;
    Ok(found)
}

/// Gives every entry from `from` on in which the session's id stands, in the order of the log,
/// until `each` has enough; entries in which it stands as part of a text can be among them. Uses
/// what there is of an index and makes none, for whoever cannot wait. Returns whether it came to an
/// end before `until`; where `each` had enough, it did.
///
/// # Errors
/// When the log cannot be read.
pub fn of_session(
    dir: &Path,
    session: &SessionId,
    from: u64,
    until: Instant,
    mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<bool, ScanError> {
    let id = session.as_str();
    let query = Query { session: Some(id.to_owned()), ..Query::default() };
    let mut in_time = true;
    let mut look = |index: u64, entry: &[u8]| {
        if Instant::now() > until {
            in_time = false;
            return ControlFlow::Break(());
        }
        // Looking for an id costs a tenth of what decoding does.
        if index < from || !contains(entry, id.as_bytes()) {
            return ControlFlow::Continue(());
        }
        each(index, entry)
    };
    let index = Index::open(dir);
    let mut ended = ControlFlow::Continue(());
    for run in index.runs.iter().filter(|run| run.first + run.count > from) {
        ended = in_run(dir, &query, run, &mut look)?;
        if ended.is_break() {
            break;
        }
    }
    if ended.is_continue() {
        raw::scan(dir, index.next().max(from), &mut look)?;
    }
    Ok(in_time)
}

fn in_run(
    dir: &Path,
    query: &Query,
    run: &Run,
    mut look: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ScanError> {
    // A part that is damaged is as good as none: everything of the run is looked at.
    let numbers = match query.candidates(run) {
        Ok(numbers) => numbers,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
        Err(error) => return Err(ScanError::Io { path: run.path.clone(), error }),
    };
    let numbers: Box<dyn Iterator<Item = u64>> = match &numbers {
        Some(some) => Box::new(some.iter().map(|n| u64::from(*n)).filter(|n| *n < run.count)),
        None => Box::new(0..run.count),
    };
    let first = raw::first(dir)?;
    let mut open: Option<(u64, Vec<u8>)> = None;
    for number in numbers {
        let time = run.times.get((number / super::run::TIME_RECORDS) as usize);
        let index = run.first + number;
        if index < first || time.is_some_and(|time| !query.within(*time)) {
            continue;
        }
        if open.as_ref().is_none_or(|(at, _)| *at != index / BUNDLE) {
            let Some(bytes) = raw::bundle(dir, index / BUNDLE)? else { continue };
            open = Some((index / BUNDLE, bytes));
        }
        let Some((at, bytes)) = &open else { continue };
        let Some(entry) = nth(bytes, index % BUNDLE) else {
            raw::entries(dir, *at, bytes)?;
            continue;
        };
        if look(index, entry).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// One entry of a bundle.
fn nth(mut bundle: &[u8], n: u64) -> Option<&[u8]> {
    for _ in 0..n {
        let (len, rest) = bundle.split_first_chunk::<2>()?;
        bundle = rest.get(usize::from(u16::from_be_bytes(*len))..)?;
    }
    let (len, rest) = bundle.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*len)))
}

/// How many records have each term of a sort, over the whole log.
pub(crate) fn tally(
    index: &Index,
    about: About,
    counts: &mut std::collections::BTreeMap<String, u64>,
) -> Result<(), ScanError> {
    for run in &index.runs {
        let io_error = |error| ScanError::Io { path: run.path.clone(), error };
        for term in run.terms(&about.term("")).map_err(io_error)? {
            let text = String::from_utf8_lossy(&term.text[1..]).into_owned();
            *counts.entry(text).or_default() += u64::from(term.count);
        }
    }
    Ok(())
}
