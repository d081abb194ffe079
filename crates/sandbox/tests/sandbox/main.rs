//! Real sandboxes, as root and as a plain user.
//!
//! Not libtest: the spawner runs `/proc/self/exe`, so this program must answer to the two inner
//! roles itself, and it starts itself again as an ordinary user. `cargo test -p nanoclaw-sandbox
//! --test sandbox [FILTER]`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bad_input;
mod dockerd;
mod engines;
mod gateway;
mod lab;
mod lifecycle;
mod limits;
mod machines;
mod programs;
mod roles;
mod stalled;
mod still;
mod transparent;
mod walls;
mod witness;

use lab::Lab;
use std::process::{Command, ExitCode};

/// The name of the account made for the second run.
const PLAIN_USER: &str = "nanoclaw-test";
const AS_USER: &str = "--as-user";
/// Runs as who it is started as, and as nobody else.
const ONE_USER: &str = "--one-user";

pub(crate) type Test = (&'static str, fn(&Lab));

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|own| own.ends_with("/container")) {
        return testkit::container_main();
    }
    match args.get(1).map(String::as_str) {
        Some(nanoclaw_sandbox::SPAWNER_ROLE) => return nanoclaw_sandbox::spawner_main(),
        Some(nanoclaw_sandbox::INIT_ROLE) => return nanoclaw_sandbox::init_main(),
        Some(nanoclaw_sandbox::GUEST_ROLE) => return nanoclaw_sandbox::guest_main(),
        Some("__hold") => return lifecycle::hold(),
        Some(dockerd::HOLD) => return dockerd::hold(&args[2..]),
        Some("__builtin") => return programs::builtin(&args[2..]),
        Some(roles::ROLE) => return roles::acts(&args[2..]),
        Some("__resolve") => return transparent::resolve(&args[2..]),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let as_user = args.iter().any(|a| a == AS_USER);
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let tests = [
        bad_input::TESTS,
        walls::TESTS,
        limits::TESTS,
        lifecycle::TESTS,
        programs::TESTS,
        roles::TESTS,
        still::TESTS,
        transparent::TESTS,
        witness::TESTS,
        stalled::TESTS,
        engines::TESTS,
        machines::TESTS,
    ]
    .concat();
    let mode = if as_user { "user" } else { "self" };
    let mut failed = run_all(&tests, &filter, mode, &Lab::new);
    if !as_user && !args.iter().any(|a| a == ONE_USER) {
        failed += dockerd::run(&filter);
        failed += again_as_user(&filter);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a test is meant: by its own name, or with the mode before it (`docker::hello`).
pub(crate) fn meant(mode: &str, name: &str, filter: &str) -> bool {
    format!("{mode}::{name}").contains(filter)
}

/// Runs the tests that `filter` means, each in a lab of its own.
pub(crate) fn run_all(
    tests: &[Test],
    filter: &str,
    mode: &str,
    lab: &dyn Fn(&str) -> Lab,
) -> usize {
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests.iter().filter(|(name, _)| meant(mode, name, filter)) {
        let started = std::time::Instant::now();
        // A spawner that does not start fails this test and hides no other.
        let run = || test(&lab(name));
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(()) => {
                passed += 1;
                println!("test {mode}::{name} ... ok ({} ms)", started.elapsed().as_millis());
            }
            Err(_) => {
                println!("test {mode}::{name} ... FAILED");
                failed.push(*name);
            }
        }
    }
    println!("{mode}: {failed:?} failed");
    // The line that runners of tests read.
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {} failed; 0 ignored", failed.len());
    failed.len()
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
    let dir = std::env::temp_dir().join(format!("nanoclaw-plain-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let program = dir.join("sandbox-tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    lab::set_mode(&dir, 0o755);
    lab::set_mode(&program, 0o755);
    let status = Command::new("setpriv")
        .args(["--reuid", PLAIN_USER, "--regid", PLAIN_USER, "--init-groups", "--"])
        .arg(&program)
        .args([AS_USER, filter])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .envs(["CI", testkit::SLOW].into_iter().filter_map(|n| Some((n, std::env::var_os(n)?))))
        .current_dir("/")
        .status();
    std::fs::remove_dir_all(&dir).unwrap();
    usize::from(!status.is_ok_and(|s| s.success()))
}
