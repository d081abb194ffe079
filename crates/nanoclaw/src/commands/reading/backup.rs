//! `audit backup`.

use crate::failure::{Failure, Kind, Result};
use crate::ui;
use audit::backup::{self, BackupError};
use serde_json::json;
use std::path::Path;

pub(super) fn backup(dir: &Path, to: &Path, as_json: bool) -> Result<u8> {
    let made = backup::backup(dir, to).map_err(|e| match &e {
        BackupError::NotEmpty(_) => {
            Failure::usage(&e).remedy("name a folder that is not there yet")
        }
        BackupError::NoLog(_) => {
            Failure::new(Kind::Missing, &e).remedy("`nanoclaw run -- true` writes one")
        }
        BackupError::Io { .. } => Failure::new(Kind::Unreadable, &e)
            .remedy("no backup was made; what was copied to a new folder, if anything, is none"),
        BackupError::NotIntact(_) => Failure::new(Kind::Audit, &e)
            .remedy("`nanoclaw audit verify` tells whether the log itself is; keep both"),
    })?;
    if as_json {
        let value = json!({"records": made.report.records, "texts": made.kept.whole,
            "files": made.files, "bytes": made.bytes, "vkey": made.report.vkey,
            "root": crate::commands::audit::root_hex(&made.report)});
        ui::json_line(&value.to_string());
        return Ok(0);
    }
    ui::line(format!(
        "{} records and {} texts copied to {} ({} files, {} bytes) and verified there, every byte.",
        made.report.records,
        made.kept.whole,
        to.display(),
        made.files,
        made.bytes
    ));
    ui::line(format!("  key   {}", made.report.vkey));
    ui::note(
        "The signing key is not in it; who has the copy can prove what is there, and add nothing.",
    );
    Ok(0)
}
