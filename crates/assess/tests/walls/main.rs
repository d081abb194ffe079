//! The battery of the walls, both ways: in open places every probe must trip, in a native sandbox
//! every wall must hold, as root and as a plain user, and in containers of real engines it must
//! hold or be named.
//!
//! Pipeline: this very file as `__walls one NAME BAIT` in the open place that the catalogue names
//! ─► it must be broken ─► a real sandbox ─► nothing may be.
//!
//! 1. Not libtest: spawner, init and batteries run `/proc/self/exe`, so this program answers to
//!    their roles, and it starts itself again as a plain user.
//! 2. Where a machine cannot be open enough for a probe, that is said by name, and fails in CI.
//! 3. Everything is bounded and touches only what it made itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod engines;
mod native;
mod open;
mod place;

use nanoclaw_assess::walls;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The account made for the second run; the sandbox's own tests make the same.
const PLAIN_USER: &str = "nanoclaw-test";
const AS_USER: &str = "--as-user";

pub(crate) type Test = (&'static str, fn());

/// What every start runs.
const TESTS: &[Test] = &[
    ("every_probe_trips_in_its_open_place", open::every_probe_trips_in_its_open_place),
    ("a_host_without_walls_is_refused", open::a_host_without_walls_is_refused),
    ("every_native_wall_holds", native::every_native_wall_holds),
    ("the_quick_battery_leaves_nothing", native::the_quick_battery_leaves_nothing),
    ("a_wish_to_stop_leaves_nothing", native::a_wish_to_stop_leaves_nothing),
];

/// What one start runs, as who it is started as: engines are started by root.
const ENGINES: &[Test] = &[
    ("every_wall_of_docker_holds_or_is_named", engines::docker),
    ("every_wall_of_podman_holds_or_is_named", engines::podman),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(sandbox::SPAWNER_ROLE) => return sandbox::spawner_main(),
        Some(sandbox::INIT_ROLE) => return sandbox::init_main(),
        Some(walls::WALLS_ROLE) => return walls::battery_main(&args[2..]),
        Some(walls::ACCOMPLICE_ROLE) => return walls::accomplice_main(&args[2..]),
        Some(walls::LINGER_ROLE) => return walls::linger_main(&args[2..]),
        Some(walls::KEEPER_ROLE) => return walls::keeper_main(&args[2..]),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let as_user = args.iter().any(|a| a == AS_USER);
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let mut failed = run_all(TESTS, &filter, if as_user { "user" } else { "self" });
    if !as_user {
        failed += run_all(ENGINES, &filter, "engine");
        failed += again_as_user(&filter);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(tests: &[Test], filter: &str, mode: &str) -> usize {
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(filter)) {
        let begun = Instant::now();
        let fine = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let word = if fine { "ok" } else { "FAILED" };
        println!("test {mode}::{name} ... {word} ({} ms)", begun.elapsed().as_millis());
        if fine { passed += 1 } else { failed += 1 }
    }
    // The line that runners of tests read.
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    failed
}

/// Outside CI a machine that cannot do it is told; in CI it is a failure.
pub(crate) fn skip(name: &str, why: &str) -> usize {
    if std::env::var_os("CI").is_some() {
        println!("test {name} ... FAILED: {why}");
        return 1;
    }
    println!("test {name} ... skipped: {why}");
    0
}

fn again_as_user(filter: &str) -> usize {
    if !rustix::process::geteuid().is_root() {
        return skip("user::*", "already a plain user; root mode was not tested");
    }
    let known = Command::new("id").arg("-u").arg(PLAIN_USER).output();
    if !known.is_ok_and(|o| o.status.success()) {
        let made = Command::new("useradd").args(["--create-home", PLAIN_USER]).status();
        if !made.is_ok_and(|s| s.success()) {
            return skip("user::*", "useradd cannot make the test account");
        }
    }
    let dir = testkit::TempDir::new("walls-user").unwrap();
    place::open_to_all(dir.path());
    let program = dir.join("walls-tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    place::open_to_all(&program);
    let status = Command::new("setpriv")
        .args(["--reuid", PLAIN_USER, "--regid", PLAIN_USER, "--init-groups", "--"])
        .arg(&program)
        .args([AS_USER, filter])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("SOMETHING_OF_THE_HOST", "1")
        .envs(std::env::var_os("CI").map(|v| ("CI", v)))
        .current_dir("/")
        .status();
    usize::from(!status.is_ok_and(|s| s.success()))
}
