//! The checks that other tools make: rustfmt, clippy, cargo-deny; and `full`, which is everything.

use std::path::Path;
use std::time::Instant;

use crate::product::{Profile, prepare};
use crate::repo::{Failure, Outcome, Repo, capture, host_target, run, step, warn};
use crate::{bench, crash, cross, dist, endure, kernel, only_flags, setup, suite, tamper, walls};

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// `cargo xtask lint`.
pub(crate) fn lint(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    step("cargo fmt --check");
    run(&mut repo.cargo(&["fmt", "--all", "--check"]))?;
    step("cargo clippy, warnings denied");
    let target = host_target();
    setup::for_building(repo, &target)?;
    // The tests' own profile, so that C code is compiled once for both.
    let profile = Profile::Ci.name();
    let mut clippy = repo.cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--quiet"]);
    clippy.args(["--profile", profile, "--target", &target, "--", "-D", "warnings"]);
    prepare(&mut clippy, repo, &target, Profile::Ci)?;
    run(&mut clippy)
}

/// Crates that need neither Linux nor an Apple SDK: those that a Mac must be able to compile.
const PORTABLE: &[&str] = &["nanoclaw-model", "nanoclaw-policy", "nanoclaw-apple"];
/// The only machines that Apple's `container` runs on.
const MAC: &str = "aarch64-apple-darwin";

/// `cargo xtask darwin`: the portable crates compile for macOS, where the toolchain has the
/// libraries of that target. Where it has not, that is said, and nothing fails.
pub(crate) fn darwin(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    let names = PORTABLE.join(", ");
    step(format!("cargo check for {MAC}: {names}"));
    let printed = ["--print", "target-libdir", "--target", MAC];
    let folder = capture(repo.command("rustc").args(printed))?;
    if !Path::new(folder.trim()).is_dir() {
        warn(format!("not checked: this toolchain has no {MAC} (rustup target add {MAC})"));
        return Ok(());
    }
    let mut check = repo.cargo(&["check", "--locked", "--quiet", "--target", MAC]);
    check.args(PORTABLE.iter().flat_map(|name| ["-p", *name]));
    run(&mut check)
}

/// `cargo xtask deny`: cargo-deny is built once, into the target folder.
pub(crate) fn deny(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    let home = repo.target_dir.join("tools").join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = home.join("bin/cargo-deny");
    if !program.is_file() {
        step("cargo install cargo-deny: once, some minutes");
        let wanted = ["install", "cargo-deny", "--locked", "--version", CARGO_DENY_VERSION];
        run(repo.cargo(&wanted).args(["--no-default-features", "--root"]).arg(&home))?;
    }
    step("cargo deny check");
    // The advisory database is a git repository: it needs a network that CI may not have. What can
    // be decided from this checkout alone is what is checked here.
    run(repo.command(program).args(["--workspace", "check", "licenses", "bans", "sources"]))
}

/// What `full --help` shows.
pub(crate) const FULL_HELP: &str = "\
cargo xtask full [--from STEP]

Everything that can be checked on one machine, alone on it: about three hours on two cores. It ends at
the first step that fails; mend it and go on with --from, on the same commit.
Steps: test, walls, tamper, crash-log, fuzz-syscalls, soak, kernel, bench, deny, build-aarch64, dist.

Example: cargo xtask full --from kernel";

/// A step of [`full`]: a command of this program with its arguments.
type Step = (&'static str, fn(&Repo, &[String]) -> Outcome, &'static [&'static str]);

/// In the order in which they say most for their time.
const FULL: [Step; 11] = [
    ("test", suite::test, &[]),
    ("walls", walls::walls, &["--check"]),
    ("tamper", tamper::tamper, &["--check"]),
    ("crash-log", crash::crash_log, &[]),
    ("fuzz-syscalls", endure::fuzz_syscalls, &[]),
    ("soak", endure::soak, &[]),
    ("kernel", kernel::kernel, &["--json"]),
    ("bench", bench::bench, &["--json"]),
    ("deny", deny, &[]),
    ("build-aarch64", cross::build_aarch64, &[]),
    ("dist", dist::dist, &["--check-reproducible"]),
];

/// `cargo xtask full`.
pub(crate) fn full(repo: &Repo, arguments: &[String]) -> Outcome {
    let from = match arguments {
        [] => 0,
        [flag, name] if flag == "--from" => {
            let found = FULL.iter().position(|(step, ..)| step == name);
            found.ok_or_else(|| Failure::new(format!("no step `{name}`; see `full --help`")))?
        }
        _ => return Err(Failure::new("known here: --from STEP")),
    };
    for (name, act, words) in &FULL[from..] {
        step(format!("full: {name}"));
        let begun = Instant::now();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        act(repo, &words).map_err(|failure| {
            Failure::new(format!("{failure}\n       once mended: cargo xtask full --from {name}"))
        })?;
        step(format!("full: {name} passed in {} s", begun.elapsed().as_secs()));
    }
    Ok(())
}
