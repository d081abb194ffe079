//! `audit prune`: looked at here, carried out by a recorder of its own, which alone may write.

use super::{agreed, unread};
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::ui;
use crate::world::now_ms;
use audit::prune::{self, PruneError};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What stands after `--home DIR __recorder` for this: `prune BEFORE_MS`.
pub(crate) const WORD: &str = "prune";

pub(super) fn prune(home: &Home, before_ms: u64, yes: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let plan = prune::plan(&dir, before_ms).map_err(|e| unread(&e))?;
    let records = plan.first - plan.from;
    if records == 0 {
        let why = plan.ends.unwrap_or_else(|| "the oldest segment has newer records".to_owned());
        return Err(Failure::new(Kind::Missing, format!("nothing can be pruned: {why}")).remedy(
            "`nanoclaw audit erase --before TIME` removes texts that stand beside the log",
        ));
    }
    if !as_json {
        ui::line(format!(
            "{records} records (#{} to #{}), {} bytes and {} texts would be removed.",
            plan.from,
            plan.first - 1,
            plan.bytes,
            plan.payloads
        ));
        ui::line(
            "What they said could no longer be shown. Later records stay provable, and proofs that \
             were handed out stay valid.",
        );
    }
    if !yes && !agreed("Remove them? There is no way back.")? {
        ui::note("Nothing was changed.");
        return Ok(1);
    }
    if !as_json {
        ui::note("Removing them, and verifying what stays: some seconds for every 100 MB of log.");
    }
    let exe = std::env::current_exe().context("this program")?;
    let ran = Command::new(exe)
        .arg("--home")
        .arg(home.path())
        .args([crate::recordkeeper::ROLE, WORD, &before_ms.to_string()])
        .output()
        .context("the recorder")?;
    let said = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
    let done: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
    if !ran.status.success() || done["record"].is_null() {
        return Err(undone(&done));
    }
    let report = audit::verify_dir(&dir, None).map_err(|finding| {
        Failure::new(Kind::Audit, format!("after the pruning: {finding}"))
            .remedy("keep the folder as it is, as evidence")
    })?;
    if as_json {
        let value = json!({"pruned": records, "first": plan.first, "bytes": plan.bytes,
            "texts": plan.payloads, "on_record": done["record"], "intact_records": report.records});
        ui::json_line(&value.to_string());
    } else {
        ui::line(format!("Removed; on record as #{}. The log is intact.", done["record"]));
    }
    Ok(0)
}

/// What the recorder said when it did not end well: before the record nothing was touched.
fn undone(said: &Value) -> Failure {
    let why = said["error"].as_str().unwrap_or_default();
    match (why, said["record"].as_u64()) {
        ("", _) => Failure::new(Kind::Audit, "the recorder broke off in the middle of the pruning")
            .remedy("`nanoclaw audit verify` tells what is there; then prune again"),
        (why, Some(record)) => {
            let cause = format!("the pruning is on record as #{record} and not finished: {why}");
            Failure::new(Kind::Audit, cause).remedy(
                "mend that; the next command that writes the record goes on where this ended. If \
                 the records are still there then, prune again",
            )
        }
        (why, None) => Failure::new(Kind::Audit, format!("nothing was pruned: {why}"))
            .remedy("end every chat and run of this home, then try again"),
    }
}

/// Carries it out, behind the recorder's walls. `home` is the log's home.
pub(crate) fn role(home: &Path, before_ms: &str) -> ExitCode {
    let dir = audit::log_dir(home);
    let unbegun = |e: &dyn std::fmt::Display| json!({"error": e.to_string()});
    let done = before_ms.parse::<u64>().map_err(|e| unbegun(&e)).and_then(|before_ms| {
        let plan = prune::plan(&dir, before_ms).map_err(|e| unbegun(&e))?;
        if plan.first == plan.from {
            return Err(unbegun(&"nothing is old enough"));
        }
        prune::carry_out(&dir, &plan, before_ms, now_ms()).map_err(|e| match e {
            PruneError::OnRecord { record, error } => {
                json!({"record": record, "error": error.to_string()})
            }
            e => unbegun(&e),
        })
    });
    match done {
        Ok(record) => {
            ui::line(json!({"record": record}).to_string());
            ExitCode::SUCCESS
        }
        Err(e) => {
            ui::line(e.to_string());
            ExitCode::FAILURE
        }
    }
}
