//! `audit erase`: texts beside the log, removed on record.
//!
//! ```text
//! plan ─► asked ─► record, durable ─► removed ─► every text and every byte of the log checked
//! ```

use super::{agreed, unread, when};
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::product;
use crate::ui;
use crate::world::now_ms;
use audit::payload::{self, Plan, Scope};
use model::{Durability, Record, RecordSinkExt, SessionId};
use serde_json::json;

pub(super) fn scope(records: &[u64], session: Option<&str>, before: Option<&str>) -> Result<Scope> {
    match (records, session, before) {
        ([], Some(id), None) => {
            let id = SessionId::parse(id).map_err(Failure::usage)?;
            Ok(Scope::Session(id.as_str().to_owned()))
        }
        ([], None, Some(time)) => Ok(Scope::Before(when::parse(time)?)),
        ([], ..) => Err(Failure::usage("nothing is named that is to be erased")
            .remedy("name records, --session ID, --before TIME or --unnamed")),
        (some, ..) => Ok(Scope::Records(some.iter().copied().collect())),
    }
}

pub(super) fn erase(home: &Home, scope: &Scope, yes: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let plan = payload::plan(&dir, scope).map_err(|e| unread(&e))?;
    let (texts, bytes) = plan.sum();
    if texts == 0 && *scope == Scope::Unnamed {
        let cause = "there is no text that no record names, or it is not an hour old".to_owned();
        return Err(Failure::new(Kind::Missing, cause)
            .remedy("`audit verify` counts them; the record of a new one may be on its way"));
    }
    if texts == 0 {
        let cause = format!(
            "nothing stands beside the log to be erased: {} records of {}, {} texts erased before",
            plan.records,
            scope.words(),
            plan.gone
        );
        return Err(Failure::new(Kind::Missing, cause)
            .remedy("what stands in records themselves stays; see docs/records.md"));
    }
    if !as_json {
        ui::line(match plan.there.len() {
            0 => format!("{texts} {} ({bytes} bytes) would be removed.", scope.words()),
            records => format!(
                "{texts} texts of {records} records ({bytes} bytes, {}) would be removed; their \
                 digests stay.",
                scope.words()
            ),
        });
    }
    if !yes && !agreed("Erase them? There is no way back.")? {
        ui::note("Nothing was changed.");
        return Ok(1);
    }
    let on_record = put_on_record(home, scope, &plan)?;
    payload::remove(&dir, &plan)
        .context("the texts are on record as erased, but not all are gone")?;
    proved(home, &plan, &on_record, as_json)
}

fn put_on_record(home: &Home, scope: &Scope, plan: &Plan) -> Result<Vec<u64>> {
    let sink = product::recorder(home, "erase")?;
    let mut numbers = Vec::new();
    for body in plan.bodies(scope) {
        let record = Record { time_ms: now_ms(), session: None, agent: None, turn: None, body };
        numbers.push(sink.append(record, Durability::Durable).map_err(|e| {
            Failure::new(Kind::Audit, format!("it cannot be put on record: {e}"))
                .remedy("no text was removed")
        })?);
    }
    sink.close();
    Ok(numbers)
}

/// That what was named is gone, that nothing else is, and that the log is what was signed.
fn proved(home: &Home, plan: &Plan, on_record: &[u64], as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let bad = |finding: audit::Finding| {
        Failure::new(Kind::Audit, format!("after the erasure: {finding}"))
            .remedy("keep the folder as it is, as evidence")
    };
    let kept = payload::check(&dir).map_err(bad)?;
    let report = audit::verify_dir(&dir, None).map_err(bad)?;
    let (texts, bytes) = plan.sum();
    if kept.unfinished > 0 {
        let cause = format!("{} texts on record as erased are still there", kept.unfinished);
        return Err(Failure::new(Kind::Audit, cause).remedy("run it again"));
    }
    if as_json {
        let records: Vec<&u64> = plan.there.keys().collect();
        let value = json!({"erased": texts, "bytes": bytes, "records": records,
            "on_record": on_record, "texts_kept": kept.whole, "texts_erased_in_all": kept.erased,
            "intact_records": report.records});
        ui::json_line(&value.to_string());
    } else {
        let numbers: Vec<String> = on_record.iter().map(|n| format!("#{n}")).collect();
        ui::line(format!(
            "Erased: {texts} texts, {bytes} bytes; on record as {}.",
            numbers.join(", ")
        ));
        ui::line(format!(
            "Checked: they are gone, the other {} texts are there and whole, and the log is intact \
             ({} records).",
            kept.whole, report.records
        ));
    }
    Ok(0)
}
