//! `cargo xtask fuzz-syscalls` and `cargo xtask soak`: the sandbox under what no list of tests
//! thinks of, as long as asked.
//!
//! ```text
//! settings ─► cargo test --test endurance, one test of it ─► what changed, what is left
//! ```
//!
//! Both are ordinary tests of the sandbox, so that every test run gives them a fiftieth; here they
//! get the whole. As root each runs twice, the second time as a plain user.

use crate::product::{Profile, prepare};
use crate::repo::{Failure, Outcome, Repo, host_target, run, step};
use crate::setup;

/// What `fuzz-syscalls --help` shows.
pub(crate) const FUZZ_HELP: &str = "\
cargo xtask fuzz-syscalls [--seconds N] [--seed N]

Debian's `trinity` makes random system calls as the program of real sandboxes (600 seconds unless
told otherwise, as root again as a plain user), while canaries stand on the host: files, a process,
sockets, another session, mounts, control groups, namespaces, host name, clocks, kernel settings. Any
difference fails and names itself.

Example: cargo xtask fuzz-syscalls --seconds 60";

/// What `soak --help` shows.
pub(crate) const SOAK_HELP: &str = "\
cargo xtask soak [--cycles N] [--seed N]

Sandboxes are begun and ended in every way there is (10000 unless told otherwise, as root again as a
plain user); afterwards descriptors, processes, mounts, control groups, folders, session uids and
memory must be as before.

Example: cargo xtask soak --cycles 1000";

/// Debian's package of the fuzzer.
const FUZZER: &str = "trinity";

/// One of the two tests, and how its settings are named.
struct Trial {
    test: &'static str,
    /// The flag that says how much, its variable, and how much otherwise.
    amount: (&'static str, &'static str, &'static str),
}

const FUZZ: Trial = Trial {
    test: "a_fuzzer_of_system_calls_leaves_the_host_alone",
    amount: ("--seconds", "NANOCLAW_CALLS_SECONDS", "600"),
};
const SOAK: Trial = Trial {
    test: "many_starts_and_ends_leave_nothing",
    amount: ("--cycles", "NANOCLAW_SOAK_CYCLES", "10000"),
};

/// `cargo xtask fuzz-syscalls`.
pub(crate) fn fuzz_syscalls(repo: &Repo, arguments: &[String]) -> Outcome {
    let settings = FUZZ.settings(arguments)?;
    setup::for_test(repo, FUZZER)?;
    FUZZ.run(repo, settings)
}

/// `cargo xtask soak`.
pub(crate) fn soak(repo: &Repo, arguments: &[String]) -> Outcome {
    SOAK.run(repo, SOAK.settings(arguments)?)
}

/// A variable that goes to the test, and its value.
type Setting = (&'static str, String);

impl Trial {
    fn settings(&self, arguments: &[String]) -> Outcome<Vec<Setting>> {
        let (flag, variable, otherwise) = self.amount;
        let mut settings = vec![(variable, otherwise.to_owned())];
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let variable = match word.as_str() {
                word if word == flag => variable,
                "--seed" => "NANOCLAW_SEED",
                unknown => {
                    return Err(Failure::new(format!(
                        "unexpected argument `{unknown}`: known here: {flag} N, --seed N"
                    )));
                }
            };
            let value =
                words.next().ok_or_else(|| Failure::new(format!("{word} needs a value")))?;
            if value.parse::<u64>().is_err() {
                return Err(Failure::new(format!("{word} needs a number, not `{value}`")));
            }
            settings.retain(|(name, _)| *name != variable);
            settings.push((variable, value.clone()));
        }
        Ok(settings)
    }

    fn run(&self, repo: &Repo, settings: Vec<Setting>) -> Outcome {
        let host = host_target();
        setup::for_building(repo, &host)?;
        step(format!("{settings:?}"));
        let profile = Profile::Ci.name();
        let mut command = repo.cargo(&["test", "--locked", "--quiet", "-p", "nanoclaw-sandbox"]);
        command.args(["--profile", profile, "--target", &host, "--test", "endurance"]);
        command.args(["--", self.test]).envs(settings);
        prepare(&mut command, repo, &host, Profile::Ci)?;
        run(&mut command)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn how_much_and_which_are_said_or_are_the_whole() {
        let all = SOAK.settings(&[]).unwrap();
        assert_eq!(all, [("NANOCLAW_SOAK_CYCLES", "10000".to_owned())]);
        let all = FUZZ.settings(&words("--seed 7 --seconds 60")).unwrap();
        let wanted = [("NANOCLAW_SEED", "7"), ("NANOCLAW_CALLS_SECONDS", "60")];
        assert_eq!(all, wanted.map(|(name, value)| (name, value.to_owned())));
        for wrong in ["--seconds", "--seconds soon", "--cycles 3", "many"] {
            assert!(FUZZ.settings(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_tests_are_there_under_these_names() {
        let list = include_str!("../../crates/sandbox/tests/endurance/main.rs");
        for trial in [FUZZ, SOAK] {
            assert!(list.contains(&format!("(\"{}\", ", trial.test)), "{}", trial.test);
            assert!(list.contains(trial.amount.1), "{}", trial.amount.1);
        }
    }
}
