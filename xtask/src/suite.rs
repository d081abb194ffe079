//! `cargo xtask test`: every check that a change must pass, and one line that sums them up.
//!
//! ```text
//! setup ─► lint, tidy, deps, darwin ─► build ─► cargo test ─► N passed, N failed, N skipped
//! ```
//!
//! Invariants:
//! 1. A failing check does not hide a later one: all run, then the command fails.
//! 2. A check counts as one test in the summary; no test run at all is a failure.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::product::{Profile, build_binary, prepare};
use crate::repo::{Failure, Outcome, Repo, host_target, line_of, not_started, step};
use crate::{checks, deps, setup, tidy};

/// What ran and how it ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn check(&mut self, name: &str, outcome: Outcome) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(failure) => {
                println!("error: {name}: {failure}");
                self.failed += 1;
            }
        }
    }

    fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `cargo xtask test [FILTER]`.
pub(crate) fn test(repo: &Repo, arguments: &[String]) -> Outcome {
    let filter = match arguments {
        [] => None,
        [filter] if !filter.starts_with('-') => Some(filter.as_str()),
        _ => return Err(Failure::new("one FILTER at most: `cargo xtask test torn_tail`")),
    };
    setup::for_building(repo, &host_target())?;
    setup::for_tests(repo)?;
    let mut tally = Tally::default();
    if filter.is_none() {
        tally.check("tidy", tidy::tidy(repo, &[]));
        tally.check("deps", deps::deps(repo, &[]));
        tally.check("lint", checks::lint(repo, &[]));
        tally.check("darwin", checks::darwin(repo, &[]));
    }
    match cargo_test(repo, filter) {
        Ok(tests) => tally.add(tests),
        Err(failure) => tally.check("cargo test", Err(failure)),
    }
    println!("\n{}", tally.line());
    if tally.failed > 0 {
        return Err(Failure::new("not every check passed: the first `error` above says which"));
    }
    Ok(())
}

fn cargo_test(repo: &Repo, filter: Option<&str>) -> Outcome<Tally> {
    let target = host_target();
    let binary = build_binary(repo, &target, Profile::Ci)?;
    step("cargo test: the whole workspace");
    let profile = Profile::Ci.name();
    let mut command = repo.cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    command.args(["--profile", profile, "--target", &target]);
    command.args(filter);
    prepare(&mut command, repo, &target, Profile::Ci)?;
    let venv = setup::test_venv(repo);
    command.env("NANOCLAW_BIN", binary);
    command.env("NANOCLAW_VENV", &venv).env("NANOCLAW_MCP_VENV", &venv);
    let go = venv.join("bin/go");
    if go.is_file() {
        command.env("NANOCLAW_GO", go);
    }
    let witness = setup::witness_log_program(repo);
    if witness.is_file() {
        command.env("NANOCLAW_WITNESS_LOG", witness);
    }
    let (tally, succeeded) = counted(&mut command)?;
    if tally.passed + tally.failed == 0 && filter.is_some() {
        return Err(Failure::new("no test has a name that contains the FILTER"));
    }
    if tally.failed == 0 && !succeeded {
        return Err(Failure::new(format!("`{}` failed before its tests ended", line_of(&command))));
    }
    if tally.passed == 0 && tally.failed == 0 {
        return Err(Failure::new("no test ran"));
    }
    Ok(tally)
}

/// Runs a test command, shows its output as it comes and counts the results it reports.
fn counted(command: &mut Command) -> Outcome<(Tally, bool)> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|error| not_started(command, &error))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        // A test may print bytes that are no UTF-8; they are shown, not refused.
        for line in BufReader::new(output).split(b'\n') {
            let line =
                line.map_err(|error| Failure::new(format!("output of the tests: {error}")))?;
            let text = String::from_utf8_lossy(&line);
            println!("{text}");
            tally.add(result_line(&text).unwrap_or_default());
        }
    }
    let status = child.wait().map_err(|error| not_started(command, &error))?;
    Ok((tally, status.success()))
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`, the closing line of a test binary.
pub(crate) fn result_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored").unwrap_or(0),
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_runners_closing_lines_are_summed() {
        let output = "running 4 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut tally = Tally::default();
        output.lines().filter_map(result_line).for_each(|one| tally.add(one));
        tally.check("lint", Err(Failure::new("a sample")));
        tally.check("deps", Ok(()));
        assert_eq!(tally.line(), "14 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_failing_child_is_seen_even_when_it_counts_nothing() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 1 passed; 0 failed'; exit 3"]);
        let (tally, succeeded) = counted(&mut command).unwrap();
        assert_eq!((tally.passed, succeeded), (1, false));
    }
}
