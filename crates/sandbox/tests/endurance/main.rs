//! Endurance: a fuzzer of system calls inside while canaries stand outside, and thousands of starts
//! and ends after which nothing may be left. As root and as a plain user.
//!
//! Pipeline: canaries seen ─► trinity in fresh sandboxes until the time is over ─► canaries seen
//! again; counts ─► cycles with a mix of ends ─► counts again. Every canary and every count is also
//! changed on purpose, and must then be named.
//!
//! 1. Not libtest: the spawner runs `/proc/self/exe`, so this program answers to the inner roles,
//!    and it starts itself again as a plain user.
//! 2. `NANOCLAW_CALLS_SECONDS`, `NANOCLAW_SOAK_CYCLES` and `NANOCLAW_SEED` say how long, how many,
//!    and which; `cargo xtask fuzz-syscalls` and `soak` set them. Without them it is a fiftieth of
//!    the whole, with a fresh seed that is printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod beside;
mod canary;
mod counts;
mod eyes;
mod fuzz;
mod host;
#[allow(dead_code)] // shared with the other tests of this crate, which need all of it
#[path = "../sandbox/lab.rs"]
mod lab;
mod open;
mod soak;

use lab::Lab;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The name of the account made for the second run; the crate's other tests make the same.
const PLAIN_USER: &str = "nanoclaw-test";
const AS_USER: &str = "--as-user";
/// What the second run is told of the first one's environment.
const PASSED_ON: [&str; 4] =
    ["CI", "NANOCLAW_CALLS_SECONDS", "NANOCLAW_SOAK_CYCLES", "NANOCLAW_SEED"];

pub(crate) type Test = (&'static str, fn(&Lab) -> Verdict);

/// How a test ended that did not panic.
pub(crate) enum Verdict {
    Passed,
    /// This machine cannot do it, for this reason.
    Skipped(String),
}

const TESTS: &[Test] = &[
    ("a_changed_canary_is_named", open::canaries),
    ("what_is_left_is_named", open::leftovers),
    ("a_fuzzer_of_system_calls_leaves_the_host_alone", fuzz::fuzz),
    ("many_starts_and_ends_leave_nothing", soak::soak),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some(open::ROLE) => return open::main(),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let as_user = args.iter().any(|a| a == AS_USER);
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let mut failed = run_all(&filter, if as_user { "user" } else { "self" });
    if !as_user {
        failed += again_as_user(&filter);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(filter: &str, mode: &str) -> usize {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
        let begun = Instant::now();
        let lab = Lab::new(name);
        let verdict = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        let time = begun.elapsed().as_millis();
        match verdict {
            Ok(Verdict::Passed) => {
                passed += 1;
                println!("test {mode}::{name} ... ok ({time} ms)");
            }
            Ok(Verdict::Skipped(why)) if std::env::var_os("CI").is_none() => {
                skipped += 1;
                println!("test {mode}::{name} ... skipped: {why}");
            }
            Ok(Verdict::Skipped(why)) => {
                failed += 1;
                println!("test {mode}::{name} ... FAILED: {why}");
            }
            Err(_) => {
                failed += 1;
                println!("test {mode}::{name} ... FAILED");
            }
        }
    }
    // The line that runners of tests read.
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; {skipped} ignored");
    failed
}

/// Outside CI a machine that cannot do it is told; in CI it is a failure.
fn skip(why: &str) -> usize {
    if std::env::var_os("CI").is_some() {
        println!("test user::* ... FAILED: {why}");
        return 1;
    }
    println!("test user::* ... skipped: {why}");
    0
}

fn again_as_user(filter: &str) -> usize {
    if !rustix::process::geteuid().is_root() {
        return skip("already a plain user; root mode was not tested");
    }
    let known = Command::new("id").arg("-u").arg(PLAIN_USER).output();
    if !known.is_ok_and(|o| o.status.success()) {
        let made = Command::new("useradd").args(["--create-home", PLAIN_USER]).status();
        if !made.is_ok_and(|s| s.success()) {
            return skip("useradd cannot make the test account");
        }
    }
    let dir = testkit::TempDir::new("endurance-user").unwrap();
    lab::set_mode(dir.path(), 0o755);
    let program = dir.join("endurance-tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    lab::set_mode(&program, 0o755);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", PLAIN_USER, "--regid", PLAIN_USER, "--init-groups", "--"])
        .arg(&program)
        .args([AS_USER, filter])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .envs(PASSED_ON.iter().filter_map(|n| std::env::var_os(n).map(|v| (*n, v))))
        .current_dir("/");
    usize::from(!eyes::lend(command))
}

/// A number from the environment.
pub(crate) fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Err(_) => otherwise,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
    }
}
