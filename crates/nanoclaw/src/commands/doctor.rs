//! `doctor`: what this machine can enforce, found by trying, with the remedy for what is missing.

use crate::failure::{Kind, Result};
use crate::home::Home;
use crate::ui::{self, Paint};
use gateway::vault::{KeySource, key_source};
use sandbox::{Check, Status};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Exit code 4 when something required is missing.
pub(crate) fn run(given: Option<&Path>, as_json: bool) -> Result<u8> {
    let mut checks = sandbox::inspect();
    // Whoever has no home yet still learns what the machine can do.
    if let Ok(home) = Home::place(given) {
        checks.extend([roles(&home), vault_key(&home)]);
    }
    if as_json {
        let all: Vec<_> = checks.iter().map(as_value).collect();
        ui::line(json!(all).to_string());
    } else {
        ui::out(&text(&checks));
    }
    let missing = checks.iter().any(|c| c.status == Status::Missing);
    Ok(if missing { Kind::Protection.exit_code() } else { 0 })
}

/// Which uids hold the vault and the log, as their folders' owners tell, and which one this is.
fn roles(home: &Path) -> Check {
    let own = rustix::process::geteuid().as_raw();
    let owner = |part: &str| std::fs::metadata(home.join(part)).ok().map(|meta| meta.uid());
    let (vault, log) = (owner("vault"), owner("audit"));
    let mut uids: Vec<u32> = [Some(own), vault, log].into_iter().flatten().collect();
    uids.sort_unstable();
    uids.dedup();
    let (status, found) = match (uids.len(), vault.is_some() && log.is_some()) {
        (1, there) => {
            let yet = if there { "" } else { " (as far as there is a vault and a log yet)" };
            let found = format!(
                "same-uid: gateway, recorder and the rest are all uid {own}{yet}; around the \
                 gateway stand Landlock, seccomp and memory that cannot be read"
            );
            (Status::Degraded, found)
        }
        _ => {
            let said =
                |uid: Option<u32>| uid.map_or_else(|| "nobody yet".into(), |u| u.to_string());
            let (vault, log) = (said(vault), said(log));
            (
                Status::Ok,
                format!("this is uid {own}; the vault belongs to {vault}, the log to {log}"),
            )
        }
    };
    let remedy = "run nothing else as this user that you do not trust";
    check("roles", status, found, remedy)
}

/// Where the vault's key comes from: loaded, not believed.
fn vault_key(home: &Path) -> Check {
    match key_source(home) {
        Err(e) => {
            check("vault key", Status::Degraded, e.to_string(), "secrets cannot be used until then")
        }
        Ok(source @ KeySource::Elsewhere { .. }) => {
            let remedy =
                "restore the file, or run doctor inside the service that has the credential";
            check("vault key", Status::Degraded, source.to_string(), remedy)
        }
        Ok(source) => check("vault key", Status::Ok, source.to_string(), ""),
    }
}

fn check(name: &str, status: Status, found: String, remedy: &str) -> Check {
    let remedy = if status == Status::Ok { "" } else { remedy };
    Check { name: name.to_owned(), status, found, remedy: remedy.to_owned() }
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
