//! What policy refused during a run, for the person: the program may have kept it to itself.
//!
//! Pipeline: log, from the session's first record ─► refusals, each once ─► standard error.

use crate::home::Home;
use crate::ui::{self, Paint, brief, harmless};
use audit::read::{Filter, Reader};
use model::{Body, SessionId};
use sandbox::Plan;
use std::collections::BTreeMap;

/// Refusals shown; the record has all.
const SHOWN_MAX: usize = 8;
/// Different refusals told apart; a program that is refused more often than that is looping.
const KNOWN_MAX: usize = 1_000;
/// Characters of a target that are shown.
const TARGET: usize = 160;
/// Characters of a reason that are shown: long enough for the remedy in it.
const REASON: usize = 300;

/// Tells which places of what was granted are covered inside: an empty `.env` would puzzle.
pub(super) fn covered(plan: &Plan) {
    let places: Vec<String> = plan.masks().map(|mask| brief(&mask.path, TARGET)).collect();
    if let Some(first) = places.first() {
        let more = match places.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        ui::note(format!("nanoclaw: {first}{more} may hold keys and is empty inside"));
    }
}

/// Tells what was refused to the session whose first record is `first`, each once.
pub(super) fn tell(home: &Home, session: &SessionId, first: u64) {
    let filter = Filter { session: Some(session.clone()), from: first };
    let mut order: Vec<(String, String)> = Vec::new();
    let mut times: BTreeMap<String, u64> = BTreeMap::new();
    // A log that cannot be read is said where it matters: nothing was withheld here.
    for record in Reader::new(&home.audit(), filter).flatten().filter_map(|e| e.record.ok()) {
        let Body::EgressRefused { target, reason, request, .. } = record.body else { continue };
        let what = match request {
            Some(line) => brief(&format!("{} {target}{}", line.method, line.path), TARGET),
            None => brief(&target, TARGET),
        };
        if times.len() >= KNOWN_MAX && !times.contains_key(&what) {
            continue;
        }
        let count = times.entry(what.clone()).or_default();
        *count += 1;
        if *count == 1 {
            order.push((what, reason));
        }
    }
    if order.is_empty() {
        return;
    }
    let paint = Paint::auto();
    ui::note(paint.bold("nanoclaw: refused by policy during this run:"));
    for (what, reason) in order.iter().take(SHOWN_MAX) {
        let often = match times.get(what) {
            Some(n @ 2..) => format!("  ({n} times)"),
            _ => String::new(),
        };
        ui::note(format!("  {what}{often}"));
        ui::note(paint.dim(&format!("    {}", harmless(&brief(reason, REASON)))));
    }
    if let Some(more @ 1..) = order.len().checked_sub(SHOWN_MAX) {
        ui::note(format!("  and {more} more"));
    }
    ui::note(format!(
        "  on record: `nanoclaw audit show {session}`; rules for it: `nanoclaw policy learn {session}`"
    ));
}
