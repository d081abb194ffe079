//! `doctor`: what this machine can enforce, found by trying, with the remedy for what is missing.

use crate::failure::{Kind, Result};
use crate::ui::{self, Paint};
use sandbox::{Check, Status};
use serde_json::json;

/// Exit code 4 when something required is missing.
pub(crate) fn run(as_json: bool) -> Result<u8> {
    let checks = sandbox::inspect();
    if as_json {
        let all: Vec<_> = checks.iter().map(as_value).collect();
        ui::line(json!(all).to_string());
    } else {
        ui::out(&text(&checks));
    }
    let missing = checks.iter().any(|c| c.status == Status::Missing);
    Ok(if missing { Kind::Protection.exit_code() } else { 0 })
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}

fn as_value(check: &Check) -> serde_json::Value {
    json!({"name": check.name, "status": word(check.status), "found": check.found,
        "remedy": check.remedy})
}

fn text(checks: &[Check]) -> String {
    let paint = Paint::auto();
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let mark = match check.status {
            Status::Ok => paint.green("ok      "),
            Status::Degraded => paint.bold("degraded"),
            Status::Missing => paint.red("MISSING "),
        };
        text.push_str(&format!("{mark}  {:width$}  {}\n", check.name, check.found));
        if !check.remedy.is_empty() {
            text.push_str(&format!("          {:width$}  → {}\n", "", check.remedy));
        }
    }
    let missing = checks.iter().filter(|c| c.status == Status::Missing).count();
    let degraded = checks.iter().filter(|c| c.status == Status::Degraded).count();
    text.push_str(&match (missing, degraded) {
        (0, 0) => "\nThis machine can enforce everything.\n".to_owned(),
        (0, n) => format!("\nSandboxes can start; {n} protections are in their weaker form.\n"),
        (n, _) => format!("\n{n} required protections are missing; no sandbox will be started.\n"),
    });
    text
}
