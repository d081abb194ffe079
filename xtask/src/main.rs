//! The repository's own rules, as code: what a person or CI does to this project is one command.
//!
//! ```text
//! setup ─► build ─► demo | run          fmt, clippy, tidy, deps ─► tests ─► one summary line
//!             └──► dist ─► check-reproducible
//! ```
//!
//! Invariants:
//! 1. Builds in seconds on a fresh clone: one dependency, for JSON.
//! 2. CI calls a command of this program and nothing else of substance.
//! 3. Every command is idempotent, says what it does, and fails with a remedy.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to a person")]

mod bench;
mod bom;
mod checks;
mod crash;
mod cross;
mod deps;
mod dist;
mod endure;
mod fuzz;
mod kernel;
mod licences;
mod product;
mod repo;
mod setup;
mod source;
mod suite;
mod tamper;
mod tarball;
mod tidy;
mod walls;

use std::process::ExitCode;

use repo::{Failure, Outcome, Repo};

/// One command: its name, what it does, an example, and the function that does it.
struct Task {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    act: fn(&Repo, &[String]) -> Outcome,
}

const TASKS: &[Task] = &[
    Task {
        name: "demo",
        summary: "build what is needed and show the product at work, without a key",
        help: "cargo xtask demo [ARGS…]\n\nArguments go to `nanoclaw demo`.\n\n\
               Example: cargo xtask demo --report target/demo.html",
        act: product::demo,
    },
    Task {
        name: "test",
        summary: "every check of CI: format, lints, rules, dependencies, all tests",
        help: "cargo xtask test [FILTER]\n\nWith FILTER only the tests whose names contain it, and \
               no other check.\nEnds with one line `N passed, N failed, N skipped`.\n\n\
               Example: cargo xtask test torn_tail",
        act: suite::test,
    },
    Task {
        name: "setup",
        summary: "bring what a build needs; --tests also what the tests need",
        help: "cargo xtask setup [--tests]\n\nAs root it installs missing Debian packages; as \
               another user it names the command to give.\n\nExample: cargo xtask setup --tests",
        act: setup::setup,
    },
    Task {
        name: "build",
        summary: "the release binary, static and reproducible",
        help: "cargo xtask build [--target T]\n\nPrints the path of the binary.\n\n\
               Example: cargo xtask build --target aarch64-unknown-linux-musl",
        act: product::build,
    },
    Task {
        name: "run",
        summary: "build, then run the product with the arguments given",
        help: "cargo xtask run [ARGS…]\n\nExample: cargo xtask run doctor",
        act: product::run,
    },
    Task {
        name: "lint",
        summary: "format and clippy, warnings denied",
        help: "cargo xtask lint\n\nExample: cargo xtask lint",
        act: checks::lint,
    },
    Task {
        name: "tidy",
        summary: "the written rules of this repository, checked on every file",
        help: "cargo xtask tidy\n\nThe rules and their limits: docs/development.md.\n\n\
               Example: cargo xtask tidy",
        act: tidy::tidy,
    },
    Task {
        name: "deps",
        summary: "who may depend on whom, one crypto provider, allowed licences",
        help: "cargo xtask deps [--table]\n\nWith --table prints what the code map of \
               ARCHITECTURE.md must say.\n\nExample: cargo xtask deps --table",
        act: deps::deps,
    },
    Task {
        name: "darwin",
        summary: "the crates that need no Linux compile for macOS, where that can be tried",
        help: "cargo xtask darwin\n\nWithout the target's libraries it says so and checks \
               nothing.\n\nExample: cargo xtask darwin",
        act: checks::darwin,
    },
    Task {
        name: "deny",
        summary: "cargo-deny: advisories, licences, bans, sources",
        help: "cargo xtask deny\n\nInstalls cargo-deny under target/ the first time (minutes).\n\n\
               Example: cargo xtask deny",
        act: checks::deny,
    },
    Task {
        name: "dist",
        summary: "static tarball, checksums, bill of materials",
        help: "cargo xtask dist [--target T] [--check-reproducible]\n\n--check-reproducible clones \
               HEAD into two folders, builds both and compares every byte.\n\n\
               Example: SOURCE_DATE_EPOCH=1767225600 cargo xtask dist",
        act: dist::dist,
    },
    Task {
        name: "bench",
        summary: "every crate's benchmark, on one page",
        help: "cargo xtask bench [--json]\n\n--json also writes target/bench.json.\n\n\
               Example: cargo xtask bench --json",
        act: bench::bench,
    },
    Task {
        name: "fuzz",
        summary: "the fuzz targets of the parsers, as long as asked",
        help: fuzz::HELP,
        act: fuzz::fuzz,
    },
    Task {
        name: "crash-log",
        summary: "the record on a disk that fails, and its recorder killed, as often as asked",
        help: crash::HELP,
        act: crash::crash_log,
    },
    Task {
        name: "fuzz-syscalls",
        summary: "a fuzzer of system calls inside, canaries outside, as long as asked",
        help: endure::FUZZ_HELP,
        act: endure::fuzz_syscalls,
    },
    Task {
        name: "soak",
        summary: "thousands of sandboxes begun and ended, and nothing left",
        help: endure::SOAK_HELP,
        act: endure::soak,
    },
    Task {
        name: "walls",
        summary: "try every wall and write the tables of SPECIFICATION.md from that",
        help: "cargo xtask walls [--check]\n\nAs root all columns are written, those of Docker and \
               Podman by engines that are started for it;\nwhat could not be run is named. With \
               --check nothing is written, and tables that are not this run's are a\nfailure.\n\n\
               Example: cargo xtask walls",
        act: walls::walls,
    },
    Task {
        name: "tamper",
        summary: "attack a real log in every way and write the matrix of SPECIFICATION.md from that",
        help: "cargo xtask tamper [--check]\n\nWith --check nothing is written, and a matrix that is \
               not this run's is a failure.\n\nExample: cargo xtask tamper",
        act: tamper::tamper,
    },
    Task {
        name: "kernel",
        summary: "product, probes and the sandbox's tests on Debian 12's kernel, emulated",
        help: "cargo xtask kernel [--json]\n\nBoots Linux 6.1 in QEMU, without a network or a \
               folder of this machine. --json also writes target/kernel/matrix.json; everything \
               the guest said is in target/kernel/console.log.\n\nExample: cargo xtask kernel",
        act: kernel::kernel,
    },
    Task {
        name: "build-aarch64",
        summary: "check that the product builds and links for 64-bit Arm",
        help: "cargo xtask build-aarch64\n\nExample: cargo xtask build-aarch64",
        act: cross::build_aarch64,
    },
    Task {
        name: "full",
        summary: "everything: tests, walls, campaigns, other kernels, benchmarks, releases",
        help: checks::FULL_HELP,
        act: checks::full,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Outcome {
    let Some((name, rest)) = arguments.split_first() else {
        println!("{}", overview());
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        println!("{}", overview());
        return Ok(());
    }
    let task = TASKS.iter().find(|task| task.name == name).ok_or_else(|| {
        Failure::new(format!("no command `{name}`: `cargo xtask help` lists them"))
    })?;
    // Only the first word asks xtask: `run -- --help` and `demo … --help` belong to the product.
    if matches!(rest.first().map(String::as_str), Some("--help" | "-h")) {
        println!("{}\n\n{}", task.summary, task.help);
        return Ok(());
    }
    (task.act)(&Repo::find()?, rest)
}

fn overview() -> String {
    let mut page = String::from("cargo xtask COMMAND [ARGS]   (COMMAND --help for an example)\n");
    for task in TASKS {
        page.push_str(&format!("\n  {:<14} {}", task.name, task.summary));
    }
    page
}

/// The flags of a command that knows only these; anything else is refused by name.
fn only_flags(arguments: &[String], known: &[&str]) -> Outcome {
    match arguments.iter().find(|argument| !known.contains(&argument.as_str())) {
        None => Ok(()),
        Some(unknown) if known.is_empty() => {
            Err(Failure::new(format!("unexpected argument `{unknown}`: this command takes none")))
        }
        Some(unknown) => Err(Failure::new(format!(
            "unexpected argument `{unknown}`: known here: {}",
            known.join(", ")
        ))),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_command_shows_an_example() {
        for task in TASKS {
            assert!(task.help.contains("Example: "), "{}", task.name);
            assert!(overview().contains(task.summary));
        }
    }

    #[test]
    fn an_unknown_command_or_flag_is_refused_by_name() {
        let failure = dispatch(&["frobnicate".to_owned()]).unwrap_err().to_string();
        assert!(failure.contains("`frobnicate`"), "{failure}");
        let failure = only_flags(&["--fast".to_owned()], &["--tests"]).unwrap_err().to_string();
        assert!(failure.contains("--fast") && failure.contains("--tests"), "{failure}");
    }
}
