//! Building and running the product.
//!
//! ```text
//! setup ─► cargo build (flags below) ─► target/<target>/<profile>/nanoclaw ─► demo | run
//! ```
//!
//! Invariants:
//! 1. A release build holds no path of the machine that made it, so two clones give the same bytes.
//! 2. `run` becomes the product: signals and the exit code are the product's own.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cross;
use crate::repo::{
    Failure, Outcome, Repo, capture, host_target, not_started, run as run_child, step,
};
use crate::{only_flags, setup};

/// The cargo profiles that a command here uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What is shipped, demonstrated and measured.
    Release,
    /// What the tests run: quick to build, with all assertions.
    Ci,
}

impl Profile {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Ci => "ci",
        }
    }
}

/// `cargo xtask build`: prints the path of the binary as the last line.
pub(crate) fn build(repo: &Repo, arguments: &[String]) -> Outcome {
    let target = target_of(arguments, &[])?;
    setup::for_building(repo, &target)?;
    let binary = build_binary(repo, &target, Profile::Release)?;
    println!("{}", binary.display());
    Ok(())
}

/// `cargo xtask demo`: the product at work, then the command that comes next.
pub(crate) fn demo(repo: &Repo, arguments: &[String]) -> Outcome {
    let binary = release_for_host(repo)?;
    step("nanoclaw demo");
    run_child(Command::new(&binary).arg("demo").args(arguments))?;
    println!("\nThe same with a real model (see README.md for keys and local models):");
    println!("  cargo xtask run chat");
    Ok(())
}

/// `cargo xtask run`: replaces this process by the product, in the reader's own folder.
pub(crate) fn run(repo: &Repo, arguments: &[String]) -> Outcome {
    let binary = release_for_host(repo)?;
    let mut command = Command::new(binary);
    command.args(arguments);
    let error = command.exec();
    Err(not_started(&command, &error))
}

fn release_for_host(repo: &Repo) -> Outcome<PathBuf> {
    let target = host_target();
    setup::for_building(repo, &target)?;
    build_binary(repo, &target, Profile::Release)
}

/// Builds the product for `target`; the tools must be there already ([`setup::for_building`]).
pub(crate) fn build_binary(repo: &Repo, target: &str, profile: Profile) -> Outcome<PathBuf> {
    step(format!("cargo build: nanoclaw, profile {}, {target}", profile.name()));
    let arguments =
        ["build", "--locked", "-p", "nanoclaw", "--profile", profile.name(), "--target", target];
    let mut command = repo.cargo(&arguments);
    prepare(&mut command, repo, target, profile)?;
    run_child(&mut command)?;
    Ok(repo.target_dir.join(target).join(profile.name()).join("nanoclaw"))
}

/// Sets what every cargo call for the product needs: the C compiler, and for a release the flags
/// that keep this machine's paths out of the bytes.
pub(crate) fn prepare(
    command: &mut Command,
    repo: &Repo,
    target: &str,
    profile: Profile,
) -> Outcome {
    command.envs(cross::toolchain(repo, target)?);
    if profile == Profile::Release {
        command.envs(reproducible_env(repo, target)?);
    }
    Ok(())
}

/// Folders of this machine that a compiler may write into the binary, and what stands for them.
/// Order matters: both compilers let the last match win, and the target folder is inside the root.
fn path_map(repo: &Repo) -> Outcome<Vec<(PathBuf, &'static str)>> {
    let sysroot = capture(repo.command("rustc").args(["--print", "sysroot"]))?;
    Ok(vec![
        (repo.root.clone(), "/nanoclaw"),
        (repo.target_dir.clone(), "/target"),
        (cargo_home()?, "/cargo"),
        (PathBuf::from(sysroot.trim()), "/rust"),
    ])
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> Outcome<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = env::var_os("HOME")
        .ok_or_else(|| Failure::new("neither CARGO_HOME nor HOME is set: set one of them"))?;
    Ok(Path::new(&home).join(".cargo"))
}

fn reproducible_env(repo: &Repo, target: &str) -> Outcome<Vec<(String, OsString)>> {
    let map = path_map(repo)?;
    let flags = |option: &str| {
        let mut all = OsString::new();
        for (index, (folder, instead)) in map.iter().enumerate() {
            // \x1f separates encoded rustflags, so a folder's name may hold a space.
            all.push(if index == 0 { "" } else { separator(option) });
            all.push(option);
            all.push("=");
            all.push(folder);
            all.push("=");
            all.push(instead);
        }
        all
    };
    Ok(vec![
        ("CARGO_ENCODED_RUSTFLAGS".to_owned(), flags("--remap-path-prefix")),
        (format!("CFLAGS_{}", target.replace('-', "_")), flags("-ffile-prefix-map")),
        ("SOURCE_DATE_EPOCH".to_owned(), source_date_epoch(repo)?.to_string().into()),
    ])
}

fn separator(option: &str) -> &'static str {
    if option.starts_with("--remap") { "\x1f" } else { " " }
}

/// The one moment that a release knows: `SOURCE_DATE_EPOCH`, else the last commit's, in seconds
/// since 1970 (reproducible-builds.org/specs/source-date-epoch).
pub(crate) fn source_date_epoch(repo: &Repo) -> Outcome<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => capture(repo.command("git").args(["log", "-1", "--format=%ct"]))?,
    };
    text.trim().parse().map_err(|_| {
        Failure::new(format!("SOURCE_DATE_EPOCH: `{}` is no number of seconds", text.trim()))
    })
}

/// Reads `--target T` out of a command's arguments; the other flags must be among `flags`.
pub(crate) fn target_of(arguments: &[String], flags: &[&str]) -> Outcome<String> {
    let mut rest = Vec::new();
    let mut target = host_target();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--target" {
            target = words.next().cloned().ok_or_else(|| {
                Failure::new(format!("--target needs a value, such as {}", host_target()))
            })?;
        } else {
            rest.push(word.clone());
        }
    }
    only_flags(&rest, flags)?;
    cross::supported(&target)?;
    Ok(target)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_target_is_the_hosts_unless_named() {
        assert_eq!(target_of(&[], &[]).unwrap(), host_target());
        let arm = "aarch64-unknown-linux-musl";
        assert_eq!(target_of(&words(&format!("--target {arm} --x")), &["--x"]).unwrap(), arm);
        assert!(target_of(&words("--target"), &[]).is_err());
        assert!(target_of(&words("--target sparc-sun-solaris"), &[]).is_err());
    }
}
