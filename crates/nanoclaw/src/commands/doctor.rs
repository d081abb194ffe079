//! `doctor`: what this machine can enforce, found by trying, with the remedy for what is missing;
//! and whether the home is in order.

mod state;

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::ui::{self, Paint};
use sandbox::{Check, Status};
use serde_json::json;

/// Exit code 4 when something required is missing, 5 when the log is not intact. Without a home the
/// machine is looked at all the same.
pub(crate) fn run(home: Result<Home>, as_json: bool) -> Result<u8> {
    let mut machine = sandbox::inspect();
    let (state, log_broken) = match home {
        Ok(home) => {
            machine.push(state::roles(home.path()));
            state::inspect(&home)
        }
        Err(e) => (vec![homeless(e)], false),
    };
    if as_json {
        let all: Vec<_> = machine.iter().chain(&state).map(as_value).collect();
        ui::json_line(&json!(all).to_string());
    } else {
        ui::out(&text(&machine, &state));
    }
    let missing = |checks: &[Check]| checks.iter().any(|c| c.status == Status::Missing);
    Ok(match (missing(&machine) || missing(&state), log_broken) {
        (_, true) => Kind::Audit.exit_code(),
        (true, false) => Kind::Protection.exit_code(),
        (false, false) => 0,
    })
}

/// `--apparmor`: the profile for this very program, to be installed by root.
pub(crate) fn apparmor() -> Result<u8> {
    let own = std::env::current_exe().context("this program's own path")?;
    let usual = "the tarball has the profile for the usual places, apparmor/nanoclaw";
    let profile = sandbox::apparmor_profile(&own).map_err(|e| Failure::usage(e).remedy(usual))?;
    ui::out(&profile);
    if !sandbox::is_roots_alone(&own) {
        ui::note(format!(
            "nanoclaw: warning: others than root can change {}, and so get what the profile grants; \
             install it where root alone writes, e.g. in /usr/local/bin",
            own.display()
        ));
    }
    Ok(0)
}

fn homeless(e: Failure) -> Check {
    let (status, remedy) = (Status::Missing, e.remedy.unwrap_or_default());
    Check { name: "home".to_owned(), status, found: e.cause, remedy }
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

fn lines(checks: &[Check], width: usize, bad: &str) -> String {
    let paint = Paint::auto();
    let mut text = String::new();
    for check in checks {
        let mark = match check.status {
            Status::Ok => paint.green("ok      "),
            Status::Degraded => paint.bold("degraded"),
            Status::Missing => paint.red(bad),
        };
        let (found, remedy) = (ui::harmless(&check.found), ui::harmless(&check.remedy));
        text.push_str(&format!("{mark}  {:width$}  {found}\n", check.name));
        if !remedy.is_empty() {
            text.push_str(&format!("          {:width$}  → {remedy}\n", ""));
        }
    }
    text
}

fn text(machine: &[Check], state: &[Check]) -> String {
    let width = machine.iter().chain(state).map(|c| c.name.len()).max().unwrap_or(0);
    let of = |checks: &[Check], status| checks.iter().filter(|c| c.status == status).count();
    let mut text = lines(machine, width, "MISSING ");
    text.push_str(&match (of(machine, Status::Missing), of(machine, Status::Degraded)) {
        (0, 0) => "\nThis machine can enforce everything.\n\n".to_owned(),
        (0, n) => format!("\nSandboxes can start; {n} protections are in their weaker form.\n\n"),
        (n, _) => {
            format!("\n{n} required protections are missing; no sandbox will be started.\n\n")
        }
    });
    text.push_str(&lines(state, width, "BROKEN  "));
    text.push_str(&match (of(state, Status::Missing), of(state, Status::Degraded)) {
        (0, 0) => "\nThe home is in order.\n".to_owned(),
        (0, n) => format!("\nThe home can be used; {n} things want looking at.\n"),
        (n, _) => format!("\n{n} things in the home must be mended first.\n"),
    });
    text
}
