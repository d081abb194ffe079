//! The checks that other tools make: rustfmt, clippy, cargo-deny; and `full`, which is everything.

use std::path::Path;

use crate::product::{Profile, prepare};
use crate::repo::{Outcome, Repo, capture, host_target, run, step, warn};
use crate::{bench, cross, dist, kernel, only_flags, setup, suite};

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

/// `cargo xtask full`.
pub(crate) fn full(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    suite::test(repo, &[])?;
    deny(repo, &[])?;
    cross::build_aarch64(repo, &[])?;
    kernel::kernel(repo, &["--json".to_owned()])?;
    dist::dist(repo, &["--check-reproducible".to_owned()])?;
    bench::bench(repo, &["--json".to_owned()])
}
