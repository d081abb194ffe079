//! `cargo xtask bench`: every benchmark of the crates, on one page.
//!
//! ```text
//! crates/*/examples/bench_*.rs ─► cargo run --release ─► its output  +  its JSON lines in one file
//! ```
//!
//! A benchmark is an example program: it measures its own floor in the same run and prints both. A
//! line that is a JSON object is a figure for machines, any other line is for people.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::product::{Profile, build_binary, prepare};
use crate::repo::{Failure, Outcome, Repo, at, capture, host_target, step};
use crate::{only_flags, setup};

/// One benchmark program.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bench {
    /// The crate's folder name.
    part: String,
    /// The example's name.
    name: String,
}

/// `cargo xtask bench [--json]`.
pub(crate) fn bench(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--json"])?;
    let target = host_target();
    setup::for_building(repo, &target)?;
    let benches = find(&repo.root.join("crates"))?;
    if benches.is_empty() {
        return Err(Failure::new("no crates/*/examples/bench_*.rs"));
    }
    let binary = build_binary(repo, &target, Profile::Release)?;
    let mut figures = Vec::new();
    for bench in &benches {
        step(format!("bench: {} / {}", bench.part, bench.name));
        let package = package_name(repo, &bench.part)?;
        let mut cargo = repo.cargo(&["run", "--quiet", "--locked", "--release", "-p", &package]);
        cargo.args(["--target", &target, "--example", &bench.name]);
        prepare(&mut cargo, repo, &target, Profile::Release)?;
        let output = capture(cargo.env("NANOCLAW_BIN", &binary))?;
        print!("{output}");
        figures.extend(json_lines(bench, &output));
    }
    if !arguments.is_empty() {
        let path = repo.target_dir.join("bench.json");
        let text = serde_json::to_string_pretty(&figures)
            .map_err(|error| Failure::new(format!("bench.json: {error}")))?;
        fs::write(&path, text + "\n").map_err(at(&path))?;
        step(format!("figures: {}", path.display()));
    }
    Ok(())
}

/// The benchmarks of all crates, sorted.
fn find(crates: &Path) -> Outcome<Vec<Bench>> {
    let mut benches = Vec::new();
    for entry in fs::read_dir(crates).map_err(at(crates))? {
        let folder = entry.map_err(at(crates))?.path();
        let part = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(examples) = fs::read_dir(folder.join("examples")) else { continue };
        for example in examples {
            let path = example.map_err(at(&folder))?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("bench_") && path.extension().is_some_and(|end| end == "rs") {
                benches.push(Bench { part: part.clone(), name });
            }
        }
    }
    benches.sort();
    Ok(benches)
}

/// The package in `crates/<part>`, from its manifest.
fn package_name(repo: &Repo, part: &str) -> Outcome<String> {
    let path = repo.root.join("crates").join(part).join("Cargo.toml");
    let manifest = fs::read_to_string(&path).map_err(at(&path))?;
    manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(format!("{}: no package name", path.display())))
}

/// The lines that are JSON objects, each with where it came from.
fn json_lines(bench: &Bench, output: &str) -> Vec<Value> {
    let objects = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    objects
        .filter(Value::is_object)
        .map(|figure| json!({ "crate": bench.part, "bench": bench.name, "figure": figure }))
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn figures_are_the_lines_that_are_json_objects() {
        let bench = Bench { part: "audit".to_owned(), name: "bench_append".to_owned() };
        let output = "appends 100\n{\"p50_ms\": 1.5}\n12\n[1]\n{broken\n";
        let figures = json_lines(&bench, output);
        assert_eq!(figures.len(), 1);
        assert_eq!(figures[0]["crate"], "audit");
        assert_eq!(figures[0]["figure"]["p50_ms"], 1.5);
    }

    #[test]
    fn only_examples_named_bench_are_found() {
        let crates = std::env::temp_dir().join(format!("xtask-bench-{}", std::process::id()));
        for file in ["a/examples/bench_x.rs", "a/examples/show.rs", "b/src/bench_y.rs"] {
            let path = crates.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let wanted = [Bench { part: "a".to_owned(), name: "bench_x".to_owned() }];
        assert_eq!(find(&crates).unwrap(), wanted);
        fs::remove_dir_all(&crates).unwrap();
    }
}
