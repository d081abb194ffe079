//! `audit`: reading the record, and proving it to strangers. Needs no daemon and no database. And
//! `audit rotate-key`, which the recorder carries out.

mod consistency;
mod prove;
mod serve;
mod telling;
mod trust;
mod verify;

pub(crate) use consistency::consistency;
pub(crate) use prove::{proof, receipt};
pub(crate) use serve::{serve, walls_for_serving};
pub(crate) use trust::{key_text, log_key};
pub(crate) use verify::{root_hex, verify};

use crate::failure::{Failure, Kind, Result};
use crate::home::Home;
use crate::product;
use crate::ui;
use audit::Finding;
use audit::raw::ScanError;
use audit::read::{Filter, Follow, Reader, Stored};
use model::SessionId;
use serde_json::json;
use std::path::Path;
use telling::Telling;

/// What a verification found, as a failure.
pub(crate) fn failed(finding: &Finding) -> Failure {
    match verify::judged(finding).0 {
        Kind::Unreadable => {
            let cause = format!("{}: {}", finding.file.display(), finding.what);
            Failure::new(Kind::Unreadable, cause).remedy(verify::CANNOT_TELL)
        }
        kind => Failure::new(kind, finding.to_string())
            .remedy("keep what you have as it is, as evidence; ask for it again elsewhere"),
    }
}

/// A log that cannot be read, as a failure.
pub(crate) fn unread(error: &ScanError) -> Failure {
    Failure::new(verify::kind(error.sort()), error)
        .remedy("`nanoclaw audit verify` tells what is wrong with it")
}

fn print(dir: &Path, entry: &Stored, as_json: bool) {
    if as_json {
        ui::json_line(&String::from_utf8_lossy(&entry.bytes));
        return;
    }
    let mut entry = entry.clone();
    audit::payload::fill(dir, &mut entry);
    match &entry.record {
        Ok(record) => ui::line(ui::harmless(&audit::story::line(entry.index, record))),
        Err(e) => ui::line(format!("#{}  (not understood by this version: {e})", entry.index)),
    }
}

fn entries(dir: &Path, filter: Filter) -> Reader {
    Reader::new(dir, filter)
}

/// Tells a session, the newest one unless named; with `all` every record in full, and without a
/// named session those of every session.
pub(crate) fn show(home: &Home, session: Option<&str>, all: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let session = match (session, all) {
        (Some(id), _) => Some(SessionId::parse(id).map_err(Failure::usage)?),
        (None, true) => None,
        (None, false) => newest(&dir)?,
    };
    if session.is_none() && !all {
        ui::note(
            "No session is on record in this home yet; a demo's are in its own: \
                  nanoclaw --home HOME/demo audit show",
        );
        return Ok(0);
    }
    let filter = Filter { session: session.clone(), from: 0 };
    let shown = match &session {
        Some(id) if !all && !as_json => tell(&dir, filter, id)?,
        _ => print_all(&dir, filter, as_json)?,
    };
    if shown == 0
        && let Some(id) = session
    {
        let cause = format!("session {id} is not in the log");
        return Err(
            Failure::new(Kind::Missing, cause).remedy("`audit show --all` lists everything")
        );
    }
    Ok(0)
}

fn print_all(dir: &Path, filter: Filter, as_json: bool) -> Result<u64> {
    let mut shown = 0;
    for entry in entries(dir, filter) {
        print(dir, &entry.map_err(|e| unread(&e))?, as_json);
        shown += 1;
        if ui::closed() {
            break;
        }
    }
    Ok(shown)
}

/// What a person wants to know of a session: what was asked, done, refused and said.
fn tell(dir: &Path, filter: Filter, id: &SessionId) -> Result<u64> {
    let mut told = Telling::default();
    for entry in entries(dir, filter) {
        let mut entry = entry.map_err(|e| unread(&e))?;
        audit::payload::fill(dir, &mut entry);
        let Ok(record) = &entry.record else { continue };
        told.record(entry.index, record, id);
        if ui::closed() {
            break;
        }
    }
    told.flush();
    told.sum_up();
    if told.left_out > 0 {
        ui::note(format!(
            "{} more records (walls, sizes, digests): nanoclaw audit show {id} --all",
            told.left_out
        ));
    }
    Ok(told.records)
}

fn newest(dir: &Path) -> Result<Option<SessionId>> {
    audit::read::newest_session(dir).map_err(|e| unread(&e))
}

/// Has the recorder replace the signing key, and says which verifier key is now to be given out.
pub(crate) fn rotate_key(home: &Home, as_json: bool) -> Result<u8> {
    let recorder = product::recorder(home, "rotate-key")?;
    let record = recorder.rotate_key().map_err(|e| {
        Failure::new(Kind::Audit, format!("the key was not replaced: {e}")).remedy(
            "see `nanoclaw audit verify`, which names the key that signs now; then try again",
        )
    })?;
    recorder.close();
    let path = home.audit().join("vkey");
    let vkey = std::fs::read_to_string(&path).map_err(|e| {
        Failure::new(Kind::Unreadable, format!("{}: {e}", path.display()))
            .remedy("the key was replaced; `nanoclaw audit verify` prints the new one")
    })?;
    let vkey = vkey.trim_end();
    if as_json {
        ui::line(json!({"record": record, "vkey": vkey}).to_string());
    } else {
        ui::line(format!("record #{record} announces the new key, which signs from there on:"));
        ui::line(format!("  {}", ui::harmless(vkey)));
        ui::note(
            "Witnesses of this log must be told: they go on with --log OLDKEY --log NEWKEY. Keep \
             the old key too: proofs under its heads are verified with it.",
        );
    }
    Ok(0)
}

/// The newest records, and what comes.
pub(crate) fn tail(home: &Home, count: u64, follow: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let keep = usize::try_from(count).unwrap_or(usize::MAX);
    let last = audit::read::newest(&dir, keep.max(1)).map_err(|e| unread(&e))?;
    let next = last.last().map_or(0, |entry| entry.index + 1);
    for entry in last.iter().take(keep) {
        print(&dir, entry, as_json);
    }
    if follow {
        let filter = Filter { session: None, from: next };
        let mut more = Follow::new(&dir, filter).map_err(|e| unread(&e))?;
        loop {
            print(&dir, &more.wait().map_err(|e| unread(&e))?, as_json);
            ui::flush();
            if ui::closed() {
                return Ok(0);
            }
        }
    }
    Ok(0)
}
