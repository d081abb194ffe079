//! `audit search | stats`.

use super::unread;
use crate::failure::Result;
use crate::ui;
use audit::index::{self, Query};
use audit::stats;
use audit::story::{line, utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Most names of a sort that are listed for a person.
const LISTED_MAX: usize = 12;

/// How to search and print.
pub(super) struct How {
    pub(super) by_index: bool,
    pub(super) rebuild: bool,
    pub(super) as_json: bool,
}

pub(super) fn search(dir: &Path, query: &Query, count: Option<u64>, how: &How) -> Result<u8> {
    if how.rebuild {
        let (records, bytes) = index::update(dir, true).map_err(|e| unread(&e))?;
        ui::note(format!("The index has {records} records in {bytes} bytes."));
    }
    let mut left = count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(0);
    }
    let found = index::search(dir, query, how.by_index, |mut stored| {
        if how.as_json {
            // An entry is JSON as it stands.
            let entry = String::from_utf8_lossy(&stored.bytes);
            ui::json_line(&format!("{{\"index\":{},\"entry\":{entry}}}", stored.index));
        } else {
            audit::payload::fill(dir, &mut stored);
            match &stored.record {
                Ok(record) => ui::line(ui::harmless(&line(stored.index, record))),
                Err(e) => ui::line(format!("#{}  (not understood: {e})", stored.index)),
            }
        }
        left -= 1;
        if left == 0 || ui::closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|e| unread(&e))?;
    if found.records == 0 && !how.as_json {
        ui::note("No record is like that; docs/records.md lists the kinds there are.");
    }
    Ok(0)
}

pub(super) fn stats(dir: &Path, query: &Query, as_json: bool) -> Result<u8> {
    let found = stats::of(dir, query).map_err(|e| unread(&e))?;
    if as_json {
        let times = found.times.map_or(Value::Null, |(from, to)| json!([from, to]));
        let value = json!({"records": found.records, "first": found.first, "times_ms": times,
            "sessions": found.sessions, "kinds": found.kinds, "agents": found.agents,
            "hosts": found.hosts, "users": found.users, "wal_bytes": found.wal_bytes,
            "tile_bytes": found.tile_bytes, "index_bytes": found.index_bytes,
            "payloads": found.payloads, "payload_bytes": found.payload_bytes});
        ui::json_line(&value.to_string());
        return Ok(0);
    }
    ui::line(format!("{} records of {} sessions", found.records, found.sessions));
    if let Some((from, to)) = found.times {
        ui::line(format!("from {} to {}", utc(from), utc(to)));
    }
    if found.first > 0 {
        ui::line(format!("the records before #{} were pruned", found.first));
    }
    list("kinds", &found.kinds);
    list("agents", &found.agents);
    list("hosts", &found.hosts);
    list("users", &found.users);
    if *query == Query::default() {
        ui::line(format!(
            "on disk: log {}, tiles {}, index {}, {} texts beside it {}",
            size(found.wal_bytes),
            size(found.tile_bytes),
            size(found.index_bytes),
            found.payloads,
            size(found.payload_bytes)
        ));
    }
    Ok(0)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn list(what: &str, counts: &BTreeMap<String, u64>) {
    if counts.is_empty() {
        return;
    }
    let mut sorted: Vec<(&String, &u64)> = counts.iter().collect();
    sorted.sort_by_key(|(name, n)| (u64::MAX - **n, (*name).clone()));
    ui::line(format!("{what}:"));
    for (name, n) in sorted.iter().take(LISTED_MAX) {
        ui::line(ui::harmless(&format!("  {n:>9}  {}", audit::story::visible(name))));
    }
    if sorted.len() > LISTED_MAX {
        ui::line(format!("  and {} more; --json lists all", sorted.len() - LISTED_MAX));
    }
}
