//! Three observers of one session, compared at its end: what the gateway put on record, what the
//! kernel reported and counted, and what the agent said it did.
//!
//! ```text
//! the session's records ─┐
//! the kernel's counts ───┼─► relations, each pure ─► findings (`observers_disagree`)
//! the gateway's counts ──┘                           how many relations could be compared
//! ```
//!
//! 1. A relation that cannot be judged is not counted as compared. Where the record says elsewhere
//!    why (no witness, a gateway that was started again) that is all. Where what the session did is
//!    the reason (a gap, what could not be read, more than is compared) it is a finding of its own,
//!    `not_compared`: else whoever has something to hide would only have to be hard to compare.
//! 2. A finding says that two accounts differ. It does not say which one is wrong, and an agent
//!    that tells its calls truly can do what it likes in them.
//! 3. Only an agent that tells its tool calls is held against the kernel; a command has no account
//!    of its own.

mod calls;
#[cfg(test)]
mod tests;
mod totals;

use audit::index::{self, Terms};
use audit::{Stored, entry, payload, raw};
use calls::Calls;
use model::{Body, SessionId, TurnId};
use sandbox::OperationCounts;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// Records that are compared at most: what a session has beyond would take the end of it longer
/// than whoever ends it waits, and memory that nobody expects.
const RECORDS_MAX: usize = 200_000;
/// Bytes of records, and of the arguments of calls that stand beside them, that are compared at
/// most: 200,000 records of the usual size come to half of it.
const BYTES_MAX: usize = 256 << 20;
/// How long may be read for it, whoever ends a session waits so long. The session's own records
/// reach the bounds above before; among those of others, which are hardly looked at, this is the
/// bound.
const READ_TIME_MAX: Duration = Duration::from_secs(20);
/// The finding of what could not be compared.
const NOT_COMPARED: &str = "not_compared";
/// Findings of one kind that are named; the last of them says how many there are.
const NAMED_MAX: usize = 20;
/// As much of an argument or path as a finding shows.
const SHOWN_CHARS: usize = 200;

/// One record of the session.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) index: u64,
    pub(crate) turn: Option<TurnId>,
    pub(crate) body: Body,
}

/// What is known of a session beside its records.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known<'a> {
    /// The gateway's, as the closing record has them.
    pub(crate) counts: Option<&'a BTreeMap<String, u64>>,
    /// The kernel's, of the session's own sandbox.
    pub(crate) operations: Option<OperationCounts>,
    /// Whether an agent tells its tool calls.
    pub(crate) told: bool,
    /// Reports of executions came so late that their place among the calls means nothing.
    pub(crate) late: bool,
}

/// How the accounts compare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Relations that could be judged.
    pub(crate) relations: u64,
    /// Where they do not hold, by kind; some may be counted only.
    pub(crate) findings: Vec<Body>,
    /// All of them but those of what was not compared.
    pub(crate) disagreements: u64,
    /// Relations that should have been judged and could not be.
    pub(crate) left_out: u64,
}

/// Somebody who saw the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observer {
    Kernel,
    Gateway,
    Agent,
    Record,
}

impl Observer {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Gateway => "gateway",
            Self::Agent => "agent",
            Self::Record => "record",
        }
    }
}

/// A difference before it is put into words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    kind: &'static str,
    told_by: Observer,
    not_by: Observer,
    what: String,
    records: Vec<u64>,
}

/// Why a relation has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unjudged {
    /// There is nothing to compare, or one of the accounts is not kept here, as the record says
    /// elsewhere.
    NotHere,
    /// Both should be there, and what happened in the session keeps them from being compared.
    LeftOut(String),
}

/// A relation's outcome.
type Judged = Result<Vec<Finding>, Unjudged>;

/// What the relations compare, in words, those of a transcript last.
const RELATIONS: [&str; 11] = [
    "executions by the kernel and on record",
    "refused calls by the kernel and on record",
    "executions and what became of them",
    "bytes that came back by the gateway and on record",
    "bytes sent by the gateway and on record",
    "tokens by the gateway and on record",
    "executions by the kernel and calls by the agent",
    "commands by the agent and executions by the kernel",
    "files by the agent and by the manifests",
    "tools of the host by the agent and by the gateway",
    "what was let out and calls by the agent",
];
/// How many of them need no transcript.
const WITHOUT_TRANSCRIPT: usize = 6;

/// Compares.
pub(crate) fn compare(lines: &[Line], known: &Known<'_>) -> Compared {
    let mut all: Vec<Judged> = vec![
        totals::executions(lines, known),
        totals::refusals(lines, known),
        totals::images(lines, known),
        totals::bytes_down(lines, known),
        totals::bytes_up(lines, known),
        totals::tokens(lines, known),
    ];
    if known.told {
        let calls = Calls::of(lines);
        all.extend([
            calls.executions(lines, known),
            calls.commands(lines, known),
            calls.files(lines),
            calls.host_tools(lines),
            calls.egress(lines),
        ]);
    }
    let (mut relations, mut found) = (0, Vec::new());
    let mut missing: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for (judged, name) in all.into_iter().zip(RELATIONS) {
        match judged {
            Ok(findings) => {
                relations += 1;
                found.extend(findings);
            }
            Err(Unjudged::NotHere) => {}
            Err(Unjudged::LeftOut(why)) => missing.entry(why).or_default().push(name),
        }
    }
    let disagreements = found.len() as u64;
    let left_out = missing.values().map(Vec::len).sum::<usize>() as u64;
    found.extend(missing.into_iter().map(|(why, names)| not_compared(&why, &names)));
    Compared { relations, disagreements, left_out, findings: named(found) }
}

/// What there is to say of a session whose records could not be had.
pub(crate) fn left_out(known: &Known<'_>, why: &str) -> Compared {
    let count = if known.told { RELATIONS.len() } else { WITHOUT_TRANSCRIPT };
    let findings = named(vec![not_compared(why, &["any account of it"])]);
    Compared { left_out: count as u64, findings, ..Compared::default() }
}

fn not_compared(why: &str, names: &[&str]) -> Finding {
    Finding {
        kind: NOT_COMPARED,
        told_by: Observer::Record,
        not_by: Observer::Record,
        what: format!("{}: {}", brief(why), names.join("; ")),
        records: Vec::new(),
    }
}

/// The first of each kind, each with the number of its kind.
fn named(found: Vec<Finding>) -> Vec<Body> {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for finding in &found {
        *counts.entry(finding.kind).or_default() += 1;
    }
    let mut shown: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for finding in found {
        let so_far = shown.entry(finding.kind).or_default();
        *so_far += 1;
        if *so_far <= NAMED_MAX {
            all.push(Body::ObserversDisagree {
                finding: finding.kind.to_owned(),
                told_by: finding.told_by.name().to_owned(),
                not_by: finding.not_by.name().to_owned(),
                what: finding.what,
                count: counts.get(finding.kind).copied().unwrap_or(1),
                records: finding.records,
            });
        }
    }
    all
}

/// A text as findings show it.
fn brief(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short}{more}")
}

/// Whether a program that serves tools ran in the session: its records stand among the session's,
/// and its counts do not.
fn has_servers(lines: &[Line]) -> bool {
    lines.iter().any(|line| match &line.body {
        Body::SandboxStarted { program, .. } => program.starts_with(crate::servers::LABEL),
        _ => false,
    })
}

/// The records of a session from the one that opened it.
///
/// # Errors
/// Why they are not compared, for the finding: they cannot be read, or are more than the bounds
/// take.
pub(crate) fn read(log: &Path, session: &SessionId, first: u64) -> Result<Vec<Line>, String> {
    read_within(log, session, first, RECORDS_MAX, READ_TIME_MAX)
}

fn read_within(
    log: &Path,
    session: &SessionId,
    first: u64,
    most: usize,
    time: Duration,
) -> Result<Vec<Line>, String> {
    if raw::first(log).map_err(|e| e.to_string())? > first {
        return Err("records of it were removed while it lived".to_owned());
    }
    let (mut lines, mut bytes, mut bad) = (Vec::new(), 0, None);
    let whole = index::of_session(log, session, first, Instant::now() + time, |index, entry| {
        let line = match line(log, session, index, entry) {
            Ok(Some(line)) => line,
            Ok(None) => return ControlFlow::Continue(()),
            Err(why) => {
                bad = Some(why);
                return ControlFlow::Break(());
            }
        };
        bytes += entry.len();
        if let Body::ToolCalled { arguments, .. } = &line.body {
            bytes += arguments.len();
        }
        if lines.len() == most {
            bad = Some(format!("it has more than {most} records"));
        } else if bytes > BYTES_MAX {
            bad = Some(format!("its records have more than {BYTES_MAX} bytes"));
        } else {
            lines.push(line);
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(())
    });
    match (whole.map_err(|e| e.to_string())?, bad) {
        (_, Some(why)) => Err(why),
        (false, None) => Err(format!("reading its records took longer than {time:?}")),
        (true, None) => Ok(lines),
    }
}

/// An entry, if it is one of the session's; a call with its arguments, wherever they stand.
fn line(log: &Path, session: &SessionId, index: u64, entry: &[u8]) -> Result<Option<Line>, String> {
    let unread = |e| format!("record {index} cannot be read: {e}");
    let mut record = match entry::decode(entry) {
        Ok(record) if record.session.as_ref() == Some(session) => record,
        Err(e) if Terms::of(entry).session.as_deref() == Some(session.as_str()) => {
            return Err(unread(e));
        }
        _ => return Ok(None),
    };
    if matches!(&record.body, Body::ToolCalled { arguments, .. } if arguments.is_empty()) {
        let mut stored = Stored { index, bytes: entry.to_vec(), record: Ok(record) };
        payload::fill(log, &mut stored);
        record = stored.record.map_err(unread)?;
    }
    Ok(Some(Line { index, turn: record.turn, body: record.body }))
}
