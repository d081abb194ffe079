//! The crash campaign: a log on a simulated disk that forgets and fails, and a real recorder killed
//! under load. `crash [--runs N] [--kills N] [--seed S] [--json]`.
//!
//! This file is its own runner, for the program killed is this very file, started again as
//! `__recorder HOME`, and its load as `__writer HOME`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod disk;
mod kill;
mod simulate;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;
use testkit::Rng;

/// Runs of an ordinary test run: a fiftieth of the campaign.
const RUNS: u64 = 200;

/// Kills of an ordinary test run: a fiftieth of the campaign.
const KILLS: u64 = 10;

struct Asked {
    runs: u64,
    kills: u64,
    seed: Option<u64>,
    json: bool,
    filter: Option<String>,
}

type Test = fn(&Asked, &mut Rng) -> bool;

fn asked(args: &[String]) -> Option<Asked> {
    let mut asked = Asked { runs: RUNS, kills: KILLS, seed: None, json: false, filter: None };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse().ok();
        match word.as_str() {
            "--runs" => asked.runs = number()?,
            "--kills" => asked.kills = number()?,
            "--seed" => asked.seed = Some(number()?),
            "--json" => asked.json = true,
            // What a test runner is told otherwise.
            word if word.starts_with('-') => {}
            word => asked.filter = Some(word.to_owned()),
        }
    }
    Some(asked)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("__recorder") => {
            let ready = rustix::io::dup(std::io::stdout()).unwrap();
            return nanoclaw_audit::recorder_main(Path::new(&args[1]), ready);
        }
        Some("__writer") => return kill::writer(Path::new(&args[1])),
        _ => {}
    }
    let Some(asked) = asked(&args) else {
        println!("error: --runs, --kills and --seed need a number each");
        return ExitCode::FAILURE;
    };
    let runs = |name: &str| asked.filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
    let mut rng = asked.seed.map_or_else(Rng::from_env, Rng::new);
    let (mut passed, mut failed) = (0, 0);
    let tests: [(&str, Test); 2] = [
        ("a_simulated_disk_that_forgets_and_fails_loses_nothing_acknowledged", simulations),
        ("a_recorder_killed_under_load_loses_nothing_acknowledged", |asked, rng| {
            kill::campaign(asked.kills, rng, asked.json)
        }),
    ];
    for (name, test) in tests {
        if runs(name) {
            let ok = test(&asked, &mut rng);
            println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
            if ok { passed += 1 } else { failed += 1 }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the simulations, on every processor; each failure prints the seed of its run.
fn simulations(asked: &Asked, rng: &mut Rng) -> bool {
    let begun = Instant::now();
    // A single run is repeated with the very seed that it printed.
    let first = match asked.seed {
        Some(seed) if asked.runs == 1 => seed,
        _ => rng.next_u64(),
    };
    let (next, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(simulate::Done::default());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while next.load(Ordering::Relaxed) < asked.runs {
                    let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
                    match simulate::run(seed) {
                        Ok(done) => sum.lock().unwrap().add(&done),
                        Err(why) => {
                            failures.fetch_add(1, Ordering::Relaxed);
                            println!("FAILED: --runs 1 --seed {seed}: {why}");
                        }
                    }
                }
            });
        }
    });
    let (sum, failures) = (sum.into_inner().unwrap(), failures.into_inner());
    let (runs, seconds) = (asked.runs, begun.elapsed().as_secs_f64());
    if asked.json {
        println!(
            "{}",
            serde_json::json!({"campaign": "simulated disk", "runs": runs, "first_seed": first,
                "failures": failures, "lives": sum.lives, "faults": sum.faults,
                "power_cuts": sum.power_cuts, "torn": sum.torn, "refused": sum.refused,
                "rotations": sum.rotations, "acknowledged": sum.acknowledged,
                "seconds": (seconds * 10.0).round() / 10.0})
        );
    } else {
        println!("  {runs} runs from seed {first} in {seconds:.1} s, {failures} failed: {sum:?}");
    }
    failures == 0
}
