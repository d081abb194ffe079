//! `cargo xtask kernel`: product, probes and the sandbox's tests on Debian 12's own kernel, in an
//! emulated machine.
//!
//! ```text
//! fetch (apt) ─► vmlinux, packages ─► disk (initrd, root.ext4) ─► guest (QEMU) ─► console ─► judge
//! ```
//!
//! What that kernel has and a developer's machine may not: control groups of version 2 alone, with
//! all controllers, also delegated to a plain user; and Landlock of ABI 2.
//!
//! Invariants:
//! 1. What is red fails the command: a wall, a test, a part that did not run, another machine than
//!    was meant, anything left behind.
//! 2. The guest has no network and no folder of the host, and ends within a bound.
//! 3. What is missing on this machine fails in CI and is named outside CI.

mod console;
mod disk;
mod fetch;
mod guest;
mod judge;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::product::{Profile, build_binary, prepare};
use crate::repo::{
    Failure, Outcome, Repo, at, host_target, in_ci, line_of, not_started, step, warn,
};
use crate::{only_flags, setup};

use judge::Row;

/// The guest's architecture; Debian's kernel of another one is another matrix.
const ARCHITECTURE: &str = "x86_64";

/// `cargo xtask kernel [--json]`.
pub(crate) fn kernel(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--json"])?;
    match ready(repo) {
        Ok(()) => {}
        Err(failure) if in_ci() => return Err(failure),
        Err(failure) => {
            warn(format!("{failure}\n         SKIPPED kernel: the matrix was not run"));
            return Ok(());
        }
    }
    let place = repo.target_dir.join("kernel");
    let log = place.join("console.log");
    let (release, console) = run(repo, &place, &log)?;
    let rows = judge::rows(&console);
    println!("\n{}", table(&rows));
    if !arguments.is_empty() {
        let path = place.join("matrix.json");
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let text = json!({"kernel": release, "rows": rows});
        fs::write(&path, format!("{text:#}\n")).map_err(at(&path))?;
        step(format!("rows: {}", path.display()));
    }
    let red: Vec<&str> = rows.iter().filter(|row| !row.green).map(|row| row.part).collect();
    let why = match (&console.broken, console.done) {
        (Some(why), _) => format!("the guest: {why}"),
        (None, false) => "the guest ended before it was done".to_owned(),
        (None, true) if red.is_empty() => return Ok(()),
        (None, true) => format!("red: {}", red.join("; ")),
    };
    Err(Failure::new(format!("{why}\n       everything it said: {}", log.display())))
}

/// Whether the matrix can be run here.
fn ready(repo: &Repo) -> Outcome {
    if std::env::consts::ARCH != ARCHITECTURE {
        let here = std::env::consts::ARCH;
        return Err(Failure::new(format!("the guest is {ARCHITECTURE}, this machine {here}")));
    }
    setup::for_kernel(repo)
}

fn run(repo: &Repo, place: &Path, log: &Path) -> Outcome<(String, console::Console)> {
    let target = host_target();
    setup::for_building(repo, &target)?;
    let product = build_binary(repo, &target, Profile::Ci)?;
    let tests = build_tests(repo, &target)?;
    let pieces = fetch::pieces(repo, place)?;
    step(format!("the guest: Linux {}, emulated; about a quarter of an hour", pieces.release));
    let initrd = disk::initrd(repo, &pieces, place)?;
    let programs: [(&str, &Path); 2] = [("nanoclaw", &product), ("sandbox-tests", &tests)];
    let root = disk::root(repo, &pieces, &programs, place)?;
    let boot = guest::Boot { vmlinux: &pieces.vmlinux, initrd: &initrd, root: &root };
    Ok((pieces.release, guest::run(repo, &boot, log)?))
}

/// The sandbox's own tests, built and not run.
fn build_tests(repo: &Repo, target: &str) -> Outcome<PathBuf> {
    step("cargo build: the tests of the sandbox");
    let wanted = ["test", "--locked", "--no-run", "-p", "nanoclaw-sandbox", "--test", "sandbox"];
    let mut cargo = repo.cargo(&wanted);
    cargo.args(["--profile", Profile::Ci.name(), "--target", target]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    prepare(&mut cargo, repo, target, Profile::Ci)?;
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| not_started(&cargo, &error))?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{}` ended with {}", line_of(&cargo), output.status)));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    executable(&said).ok_or_else(|| Failure::new("cargo named no test program of the sandbox"))
}

/// The test program in cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    let values = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = |value: &Value| {
        let kinds = value["target"]["kind"].as_array();
        let test = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        test && value["target"]["name"] == "sandbox"
    };
    let path = |value: Value| value["executable"].as_str().map(PathBuf::from);
    values.filter(ours).find_map(path)
}

fn table(rows: &[Row]) -> String {
    let wide = rows.iter().map(|row| row.part.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mark = if row.green { "ok " } else { "RED" };
        text.push_str(&format!("{mark}  {:wide$}  {:>4} s  {}\n", row.part, row.seconds, row.told));
        for note in &row.notes {
            text.push_str(&format!("     {:wide$}          {note}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_test_program_is_found_among_cargos_messages() {
        let message = |kind: &str, name: &str, executable: Value| {
            json!({"reason": "compiler-artifact", "target": {"kind": [kind], "name": name},
                "executable": executable})
            .to_string()
        };
        let messages = [
            message("lib", "sandbox", Value::Null),
            message("test", "plan", json!("/t/plan")),
            "no JSON".to_owned(),
            message("test", "sandbox", json!("/t/sandbox")),
        ];
        assert_eq!(executable(&messages.join("\n")), Some(PathBuf::from("/t/sandbox")));
        assert_eq!(executable(&messages[..3].join("\n")), None);
    }

    #[test]
    fn the_table_shows_what_is_red_and_every_note() {
        let row = |part, green, notes: &[&str]| Row {
            part,
            green,
            told: "told".to_owned(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
            seconds: 7,
        };
        let text = table(&[row("a", true, &[]), row("longer", false, &["why", "and"])]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok   a          7 s  told");
        assert_eq!(lines[1], "RED  longer     7 s  told");
        assert!(lines[2].ends_with("  why") && lines[3].ends_with("  and"));
    }
}
