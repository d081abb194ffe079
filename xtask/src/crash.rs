//! `cargo xtask crash-log`: the crash campaign of the record, as long as asked.
//!
//! ```text
//! crates/audit/tests/crash ─┬─ a log on a simulated disk, seeded    ─► every run holds, or a seed
//!                           └─ a real recorder, killed under load   ─► nothing lost; recovery
//! ```
//!
//! Invariants:
//! 1. The campaign is an ordinary test, so that every test run does a fiftieth of it with a seed of
//!    its own; here it is done whole, optimised and with all assertions.
//! 2. A failed run prints its seed, with which it alone is done again.

use crate::product::{Profile, prepare};
use crate::repo::{Failure, Outcome, Repo, host_target, run, step};
use crate::setup;

/// What `--help` shows.
pub(crate) const HELP: &str = "\
cargo xtask crash-log [--runs N] [--kills N] [--seed N] [--json]

10,000 runs on a simulated disk that forgets, tears and reorders what was not synced and fails any
call, and 500 kills of a real recorder under load, unless told otherwise. A failed run prints its
seed: `--runs 1 --kills 0 --seed N` does that one again. --json prints a line for each campaign.

Example: cargo xtask crash-log --runs 1000 --kills 50";

/// Runs on the simulated disk.
const RUNS: &str = "10000";

/// Kills of a real recorder.
const KILLS: &str = "500";

/// What the campaign is told: what was asked, and the numbers of a whole one.
fn told(arguments: &[String]) -> Outcome<Vec<String>> {
    let mut told = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        told.push(word.clone());
        match word.as_str() {
            "--json" => {}
            "--runs" | "--kills" | "--seed" => {
                let value = words.next().filter(|value| value.parse::<u64>().is_ok());
                let value = value.ok_or_else(|| Failure::new(format!("{word} needs a number")))?;
                told.push(value.clone());
            }
            other => {
                return Err(Failure::new(format!(
                    "unexpected argument `{other}`: known here: --runs, --kills, --seed, --json"
                )));
            }
        }
    }
    for (flag, value) in [("--runs", RUNS), ("--kills", KILLS)] {
        if !told.iter().any(|word| word == flag) {
            told.extend([flag.to_owned(), value.to_owned()]);
        }
    }
    Ok(told)
}

/// `cargo xtask crash-log`.
pub(crate) fn crash_log(repo: &Repo, arguments: &[String]) -> Outcome {
    let told = told(arguments)?;
    let host = host_target();
    setup::for_building(repo, &host)?;
    step(format!("crash campaign: {}", told.join(" ")));
    let mut command = repo.cargo(&["test", "--locked", "--quiet", "-p", "nanoclaw-audit"]);
    command.args(["--test", "crash", "--profile", "fuzz", "--target", &host, "--"]);
    command.args(told);
    prepare(&mut command, repo, &host, Profile::Ci)?;
    run(&mut command)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_whole_campaign_unless_told_otherwise() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(told(&[]).unwrap(), words("--runs 10000 --kills 500"));
        let asked = told(&words("--kills 0 --json --seed 7")).unwrap();
        assert_eq!(asked, words("--kills 0 --json --seed 7 --runs 10000"));
        for bad in ["--runs", "--runs x", "--fast"] {
            assert!(told(&words(bad)).is_err(), "{bad}");
        }
    }
}
