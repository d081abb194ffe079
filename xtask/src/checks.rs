//! The checks that other tools make: rustfmt, clippy, cargo-deny; and `full`, which is everything.

use crate::product::{Profile, prepare};
use crate::repo::{Outcome, Repo, host_target, run, step};
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
