//! What a run of the guest comes to: one row a part, green only if the part shows what it is there
//! for.
//!
//! Invariants:
//! 1. Pure. A part that is missing, has no end or ended with a failure is red.
//! 2. The guest is not taken at the host's word: kernel, control groups and Landlock's level are
//!    those that the guest itself read or tried, and other ones are red.

use serde_json::{Value, json};

use super::console::{Console, Part};
use crate::suite::result_line;

/// Debian 12's kernel, as `uname -r` begins.
const KERNEL: &str = "6.1.";
/// Landlock of that kernel, as `doctor` says it.
const LANDLOCK: &str = "ABI 2: ";

/// What a part is there for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Facts,
    /// `doctor`, with what must hold memory.
    Doctor(&'static str),
    Probe,
    Tests,
    Left,
}

const GROUPS: &str = "cgroup v2";
const WITHOUT: &str = "RLIMIT_DATA and a watchdog";

/// Every part that there must be: its mark, how it is shown, its kind.
const WANTED: &[(&str, &str, Kind)] = &[
    ("facts", "the machine", Kind::Facts),
    ("doctor-root", "doctor, root", Kind::Doctor(GROUPS)),
    ("probe-root", "probes, root", Kind::Probe),
    ("tests-root", "tests, root", Kind::Tests),
    ("doctor-user", "doctor, plain user", Kind::Doctor(WITHOUT)),
    ("probe-user", "probes, plain user", Kind::Probe),
    ("doctor-delegated", "doctor, plain user with a group", Kind::Doctor(GROUPS)),
    ("probe-delegated", "probes, plain user with a group", Kind::Probe),
    ("tests-delegated", "tests, plain user with a group", Kind::Tests),
    ("left", "nothing is left", Kind::Left),
];

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) part: &'static str,
    pub(super) green: bool,
    /// In one line.
    pub(super) told: String,
    /// What a reader should see besides: names of what failed, what was left out.
    pub(super) notes: Vec<String>,
    pub(super) seconds: u64,
}

impl Row {
    pub(super) fn json(&self) -> Value {
        let Self { part, green, told, notes, seconds } = self;
        json!({"part": part, "green": green, "told": told, "notes": notes, "seconds": seconds})
    }
}

/// The rows, in the order of the table.
pub(super) fn rows(console: &Console) -> Vec<Row> {
    let row = |(mark, title, kind): &(&str, &'static str, Kind)| {
        let Some(part) = console.parts.iter().find(|part| part.name == *mark) else {
            let told = "the guest did not come to it".to_owned();
            return Row { part: title, green: false, told, notes: Vec::new(), seconds: 0 };
        };
        let judged = match kind {
            Kind::Facts => facts(part),
            Kind::Doctor(memory) => doctor(part, memory),
            Kind::Probe => probe(part),
            Kind::Tests => tests(part),
            Kind::Left => left(part),
        };
        let (holds, told, notes) = judged;
        let (green, told) = match part.status {
            Some(0) => (holds, told),
            Some(124 | 137) => (false, format!("took too long; {told}")),
            Some(status) => (false, format!("ended with {status}; {told}")),
            None => (false, format!("did not end; {told}")),
        };
        Row { part: title, green, told, notes, seconds: part.took.as_secs() }
    };
    WANTED.iter().map(row).collect()
}

/// Whether it holds, in one line, and what stands below that.
type Judged = (bool, String, Vec<String>);

fn facts(part: &Part) -> Judged {
    let fact = |name: &str| {
        let value = |line: &String| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        part.lines.iter().find_map(value).unwrap_or_default()
    };
    let (kernel, controllers) = (fact("kernel"), fact("controllers"));
    let mut notes = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            notes.push(what);
        }
    };
    must(kernel.starts_with(KERNEL), format!("the kernel is {kernel:?}, not {KERNEL}…"));
    let (v2, v1) = (fact("cgroup"), fact("cgroup_v1"));
    must(v2 == "cgroup2fs" && v1 == "0", format!("control groups are {v2:?} with {v1} of v1"));
    for name in ["cpu", "memory", "pids"] {
        let has = controllers.split(' ').any(|c| c == name);
        must(has, format!("there is no controller {name}"));
    }
    let told = format!("{kernel}, cgroup v2 alone ({controllers}), {} CPUs", fact("cpus"));
    (notes.is_empty(), told, notes)
}

/// The first line that is a JSON object or list.
fn json_of(part: &Part) -> Option<Value> {
    let lines = part.lines.iter().filter(|line| line.starts_with(['{', '[']));
    lines.filter_map(|line| serde_json::from_str(line).ok()).next()
}

fn without_json(part: &Part) -> Judged {
    /// Enough to see what it was.
    const LINES: usize = 5;
    let said = part.lines.iter().filter(|line| !line.is_empty());
    (false, "printed no JSON".to_owned(), said.take(LINES).cloned().collect())
}

fn doctor(part: &Part, memory: &str) -> Judged {
    let Some(Value::Array(checks)) = json_of(part) else { return without_json(part) };
    let word = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let found = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.map_or_else(String::new, |check| word(check, "found"))
    };
    let mut notes: Vec<String> = checks
        .iter()
        .filter(|check| check["status"] == "missing")
        .map(|check| format!("{}: {}", word(check, "name"), word(check, "found")))
        .collect();
    for (name, wanted) in [("landlock", LANDLOCK), ("memory limit", memory)] {
        let there = found(name);
        if !there.starts_with(wanted) {
            notes.push(format!("{name} is {there:?}, not {wanted:?}"));
        }
    }
    let weaker = checks.iter().filter(|check| check["status"] == "degraded");
    let weaker: Vec<String> = weaker.map(|check| word(check, "name")).collect();
    let fine = checks.iter().filter(|check| check["status"] == "ok").count();
    (notes.is_empty(), format!("{fine} ok, weaker: {}", weaker.join(", ")), notes)
}

fn probe(part: &Part) -> Judged {
    let Some(run) = json_of(part) else { return without_json(part) };
    let names = |verdict: &str| -> Vec<String> {
        let all = run["probes"].as_array().into_iter().flatten();
        let of = all.filter(|probe| probe["verdict"] == verdict);
        let text = |probe: &Value, key: &str| probe[key].as_str().unwrap_or("?").to_owned();
        of.map(|p| format!("{}: {}", text(p, "probe"), text(p, "observed"))).collect()
    };
    let (held, broken, open) = (names("held").len(), names("broken"), names("open"));
    let told = format!("{held} held, {} broken, {} not enforced", broken.len(), open.len());
    let gaps = open.iter().filter_map(|line| line.split(':').next());
    let gaps = gaps.map(|name| format!("not enforced: {name}"));
    let green = run["passed"] == true && broken.is_empty() && held > 0;
    (green, told, broken.iter().map(|b| format!("BROKEN {b}")).chain(gaps).collect())
}

fn tests(part: &Part) -> Judged {
    let results: Vec<_> = part.lines.iter().filter_map(|line| result_line(line)).collect();
    let failed = part.lines.iter().filter(|l| l.starts_with("test ") && l.ends_with("FAILED"));
    let left_out = |line: &&String| {
        let words = ["SKIPPED", "... skipped", "was not tried"];
        words.iter().any(|word| line.contains(word))
    };
    let skipped: Vec<&String> = part.lines.iter().filter(left_out).collect();
    let (passed, red) = results.iter().fold((0, 0), |(p, f), r| (p + r.passed, f + r.failed));
    let told = format!("{passed} passed, {red} failed, {} left out", skipped.len());
    let notes = failed.chain(skipped.iter().copied()).map(|line| line.trim().to_owned());
    // One closing line: the run of one user.
    (results.len() == 1 && passed > 0 && red == 0, told, notes.collect())
}

fn left(part: &Part) -> Judged {
    let found: Vec<String> = part.lines.iter().filter(|line| !line.is_empty()).cloned().collect();
    let told = match found.len() {
        0 => "no process, control group, folder or mount".to_owned(),
        n => format!("{n} things are left"),
    };
    (found.is_empty(), told, found)
}

#[cfg(test)]
mod unit;
