//! `cargo xtask fuzz`: the fuzz targets of the crates, each as long as asked.
//!
//! ```text
//! HELP's list ─► cargo test --profile fuzz, the one test fuzz_<target> ─► figures, or the input
//! ```
//!
//! Invariants:
//! 1. A target is an ordinary test, so that every test run gives it seconds; here it gets minutes.
//! 2. [`HELP`] is the list: a target that no test has, or a test that is not listed, fails a test.

use std::process::Stdio;

use crate::product::{Profile, prepare};
use crate::repo::{Failure, Outcome, Repo, host_target, not_started, step};
use crate::setup;

/// What `--help` shows; its indented lines are the targets: name, crate, what is held against what.
pub(crate) const HELP: &str = "\
cargo xtask fuzz [TARGET…] [--seconds N] [--seed N] [--input HEX]

Without a TARGET all of them, one after the other; 60 seconds each unless told otherwise. A failure
prints its input and how to repeat it. Targets:

  tls-hello       gateway  ClientHello: pieces say what the whole says; the name is in the bytes
  http-head       gateway  request heads: another parser sees the same request; written and read again
  http-body       gateway  lengths and chunks: pieces give what a plain reader of the whole gives
  control-frames  gateway  the product's frames: pieces, and written and read again
  mcp-message     gateway  JSON-RPC of tool servers and clients: read, written, read again
  mcp-events      gateway  event streams of tool servers: pieces
  html-text       gateway  pages fetched: bounded, and nothing invisible comes out
  mask            gateway  secrets in answers: pieces, and no spelling of the secret is left
  authority       gateway  host:port, targets, base URLs: another parser finds the same host
  model-body      gateway  requests of all model formats: only what must change does
  model-stream    gateway  answers of all model formats: counts and masking in pieces
  script          gateway  scripted models: files, and requests of all formats
  paths           policy   path patterns: a second, plain matcher; what is permitted can be forbidden
  settings        policy   agent files, nanoclaw.toml, arguments: errors stay in the text
  dns             sandbox  questions to the stub: answers are bounded and are no questions
  image-tar       images   archives of images: pieces, sizes bounded, a complete file is all there
  image-packing   images   compressed layers: bounded by length, ratio and slack, one after another
  audit-frames    audit    the recorder's socket: pieces, and written and read again
  audit-log       audit    write-ahead file, bundles, entries: nothing forged, canonical as elsewhere
  audit-notes     audit    checkpoints, keys, tile names: one spelling a value, no forged head
  audit-proofs    audit    proofs, witness requests, cosignatures: no forged record, line or time
  audit-http      audit    heads of requests and answers, addresses: no path but a tile's
  acp-frames      agent    lines of the agent protocol: bounded, pieces
  acp-updates     agent    updates and permission requests: bounded; a no is no yes
  model-answer    agent    answers of a model's server, from the head on: pieces
  host-tools      agent    tools and results of the host: bounded, marked
  conversation    agent    a meddled conversation file loads into what a model accepts

Example: cargo xtask fuzz tls-hello dns --seconds 600";

/// How long a target runs unless told otherwise.
const SECONDS: &str = "60";

struct Target {
    name: &'static str,
    part: &'static str,
}

fn targets() -> Vec<Target> {
    let lines = HELP.lines().filter_map(|line| line.strip_prefix("  "));
    let target = |line: &'static str| {
        let mut words = line.split_whitespace();
        Some(Target { name: words.next()?, part: words.next()? })
    };
    lines.filter_map(target).collect()
}

/// The test that is a target.
fn test_of(name: &str) -> String {
    format!("fuzz_{}", name.replace('-', "_"))
}

/// A variable that goes to the targets, and its value.
type Setting = (&'static str, String);

/// What was asked for: targets, and the settings that go to them.
fn asked(arguments: &[String]) -> Outcome<(Vec<Target>, Vec<Setting>)> {
    let (mut chosen, mut settings) = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let variable = match word.as_str() {
            "--seconds" => "NANOCLAW_FUZZ_SECONDS",
            "--seed" => "NANOCLAW_FUZZ_SEED",
            "--input" => "NANOCLAW_FUZZ_INPUT",
            name => {
                let target = targets().into_iter().find(|target| target.name == name);
                chosen.push(target.ok_or_else(|| {
                    Failure::new(format!(
                        "no target `{name}`: `cargo xtask fuzz --help` lists them"
                    ))
                })?);
                continue;
            }
        };
        let value = words.next().ok_or_else(|| Failure::new(format!("{word} needs a value")))?;
        if word != "--input" && value.parse::<u64>().is_err() {
            return Err(Failure::new(format!("{word} needs a number, not `{value}`")));
        }
        settings.push((variable, value.clone()));
    }
    if chosen.is_empty() {
        chosen = targets();
    }
    if settings.iter().any(|(name, _)| name.ends_with("INPUT")) && chosen.len() > 1 {
        return Err(Failure::new("--input is for one target: name it"));
    }
    Ok((chosen, settings))
}

/// `cargo xtask fuzz`.
pub(crate) fn fuzz(repo: &Repo, arguments: &[String]) -> Outcome {
    let (chosen, settings) = asked(arguments)?;
    let host = host_target();
    setup::for_building(repo, &host)?;
    let mut failed = Vec::new();
    for target in &chosen {
        let package = format!("nanoclaw-{}", target.part);
        step(format!("fuzz: {} ({package})", target.name));
        let mut command = repo.cargo(&["test", "--locked", "--quiet", "--lib", "-p", &package]);
        command.args(["--profile", "fuzz", "--target", &host, "--", "--nocapture"]);
        command.arg(test_of(target.name));
        prepare(&mut command, repo, &host, Profile::Ci)?;
        command.env("NANOCLAW_FUZZ_SECONDS", SECONDS).envs(settings.iter().cloned());
        // The figures come on standard error; what the test runner says about them is not wanted.
        let status = command.stdout(Stdio::null()).status();
        if !status.map_err(|error| not_started(&command, &error))?.success() {
            failed.push(target.name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("not clean: {}; the inputs stand above", failed.join(", "))))
}

#[cfg(test)]
mod unit {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Every test named as a target, with the crate it stands in.
    fn tests_in(folder: &Path, part: &str, found: &mut BTreeSet<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                tests_in(&path, part, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.lines().filter_map(|line| line.trim().strip_prefix("fn fuzz_"));
                let names = names.filter_map(|rest| rest.split('(').next());
                found.extend(names.map(|name| (format!("fuzz_{name}"), part.to_owned())));
            }
        }
    }

    #[test]
    fn the_targets_of_the_help_are_the_tests_there_are() {
        let crates = Repo::find().unwrap().root.join("crates");
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&crates).unwrap() {
            let folder = entry.unwrap().path();
            let part = folder.file_name().unwrap().to_string_lossy().into_owned();
            tests_in(&folder.join("src"), &part, &mut found);
        }
        let listed: BTreeSet<_> =
            targets().iter().map(|t| (test_of(t.name), t.part.to_owned())).collect();
        assert_eq!(listed, found);
        for (test, _) in &listed {
            assert_eq!(listed.iter().filter(|(other, _)| other.contains(&**test)).count(), 1);
        }
    }

    #[test]
    fn settings_are_numbers_and_an_input_needs_its_target() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (chosen, settings) = asked(&words("dns --seconds 600 mask --seed 5")).unwrap();
        assert_eq!((chosen.len(), settings.len()), (2, 2));
        assert_eq!(asked(&words("--seconds 1")).unwrap().0.len(), targets().len());
        for bad in ["dsn", "--seconds", "--seconds x", "dns --seed -1", "--input 00"] {
            assert!(asked(&words(bad)).is_err(), "{bad}");
        }
    }
}
