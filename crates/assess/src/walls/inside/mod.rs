//! The battery inside: every act in a copy of this process, one line of JSON each.
//!
//! Pipeline: `__walls quick|full|tight|memory BAIT` ─► its probes ─► copy ─► act ─► line.
//!
//! 1. One thread, so that copies can be made of it.
//! 2. Nothing is left behind, except by the full battery, which says so and waits for a word.
//! 3. Every act is bounded in time, processes, memory and bytes: it is safe without walls, too.

mod calls;
mod files;
mod limits;
mod linger;
mod privileges;
mod sessions;
mod sockets;
mod spaces;
mod tools;

pub(in crate::walls) use linger::watched;
pub use linger::{accomplice_main, linger_main};

use super::catalogue::{self, Probe, When};
use super::{Answer, Bait, Sighting};
use sandbox::probe::{self, End};
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// When an act counts as stuck. The slowest, making processes at a quarter of a CPU, takes a
/// second, and on an emulated machine more than ten.
const ACT_TIME: Duration = Duration::from_secs(40);

/// What an act knows: the bait, and what this process was born with.
struct Ground {
    bait: Bait,
    born: Born,
}

/// What stood open and in the environment when this process began.
struct Born {
    /// Descriptors beyond the three streams.
    descriptors: Vec<String>,
    /// Names of variables.
    variables: Vec<String>,
}

impl Born {
    fn now() -> Self {
        let listed: Vec<_> = std::fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        // The list itself stood open while it was read.
        let open = |n: &String| std::fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_ok();
        let beyond = |n: &String| n.parse::<u32>().is_ok_and(|n| n > 2);
        let descriptors = listed.into_iter().filter(|n| beyond(n) && open(n)).collect();
        let variables = std::env::vars_os().map(|(n, _)| n.to_string_lossy().into_owned());
        Self { descriptors, variables: variables.collect() }
    }
}

type Act = fn(&Ground) -> Answer;
/// An act, with what it needs of the table of plain calls.
type Attempt = Box<dyn Fn(&Ground) -> Answer>;

/// Every act, by the name of its probe.
const ACTS: &[&[(&str, Act)]] = &[
    spaces::ACTS,
    files::ACTS,
    calls::ACTS,
    sockets::ACTS,
    privileges::ACTS,
    limits::ACTS,
    sessions::ACTS,
];

/// What carries out the probe of that name, if it is tried inside.
fn act(name: &str) -> Option<Attempt> {
    if let Some((_, act)) = ACTS.iter().copied().flatten().find(|(n, _)| *n == name) {
        return Some(Box::new(*act) as Attempt);
    }
    let plain = calls::plain(name)?;
    Some(Box::new(move |_: &Ground| plain()))
}

/// Runs a battery: `args` are its kind (`quick`, `full`, `tight`, or `one` and a probe's name) and
/// the [`Bait`] as JSON. Prints one [`Sighting`] a line. Exit code 0 when every probe of it gave an
/// answer, 2 for a battery that there is not.
#[must_use]
pub fn battery_main(args: &[String]) -> ExitCode {
    let born = Born::now();
    let Some((probes, bait)) = selected(args) else { return ExitCode::from(2) };
    let ground = Ground { bait, born };
    for probe in probes {
        let sighting = attempt(probe, &ground);
        if !say(&serde_json::to_string(&sighting).unwrap_or_default()) {
            return ExitCode::FAILURE;
        }
    }
    if args.first().is_some_and(|kind| kind == "full") {
        linger::leave(&ground.bait.left);
        say("{}");
        // Until whoever started it has looked, and closes its input.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
    }
    ExitCode::SUCCESS
}

fn selected(args: &[String]) -> Option<(Vec<&'static Probe>, Bait)> {
    let (kind, rest) = args.split_first()?;
    let of = |when: &[When]| catalogue::all().filter(|p| when.contains(&p.when)).collect();
    let (probes, bait): (Vec<_>, _) = match (kind.as_str(), rest) {
        ("quick", [bait]) => (of(&[When::Start]), bait),
        ("full", [bait]) => (of(&[When::Start, When::Inside]), bait),
        ("tight", [bait]) => (of(&[When::Tight]), bait),
        ("memory", [bait]) => (of(&[When::Alone]), bait),
        ("one", [name, bait]) => (vec![catalogue::find(name)?], bait),
        _ => return None,
    };
    Some((probes, serde_json::from_str(bait).ok()?))
}

/// One line out; false when nobody reads any more.
fn say(line: &str) -> bool {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

fn attempt(probe: &Probe, ground: &Ground) -> Sighting {
    let begun = Instant::now();
    let answer = match act(probe.name) {
        None => Answer::Failed("nothing inside carries it out".into()),
        Some(act) => apart(|| act(ground)),
    };
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    Sighting { probe: probe.name.to_owned(), answer, micros }
}

/// The answer of an act that is carried out in a copy of this process.
fn apart(act: impl FnOnce() -> Answer) -> Answer {
    let said = || serde_json::to_string(&act()).unwrap_or_default();
    match probe::apart(ACT_TIME, said) {
        Ok(End::Said(line)) => serde_json::from_str(&line)
            .unwrap_or_else(|e| Answer::Failed(format!("its answer cannot be read: {e}"))),
        Ok(End::Signal(signal)) => Answer::Signal(signal),
        Ok(End::Status(status)) => Answer::Failed(format!("it ended with status {status}")),
        Ok(End::TimedOut) => Answer::Failed(format!("it took over {} s", ACT_TIME.as_secs())),
        Err(e) => Answer::Failed(format!("no copy of this process can be made: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever adds a probe adds its act, and none is carried out that nobody judges.
    #[test]
    fn every_probe_inside_has_its_act_and_every_act_its_probe() {
        for probe in catalogue::all() {
            let inside = probe.when != When::Outside;
            assert_eq!(act(probe.name).is_some(), inside, "{}", probe.name);
        }
        let named = ACTS.iter().copied().flatten().map(|(name, _)| *name);
        for name in named.chain(calls::names()) {
            assert!(catalogue::find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_battery_that_there_is_not_is_refused() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        for text in ["", "quick", "loud {}", "one", "one no-such-probe {}", "quick {x", "full"] {
            assert!(selected(&words(text)).is_none(), "{text:?}");
        }
        let quick = selected(&words("quick {}")).map(|(p, _)| p.len());
        let full = selected(&words("full {}")).map(|(p, _)| p.len());
        assert!(quick < full, "{quick:?} {full:?}");
    }
}
