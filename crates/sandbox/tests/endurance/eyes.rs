//! Looking into a spawner: its descriptors and its memory. It is not dumpable, so only root can;
//! the run as a plain user asks the run as root that started it.
//!
//! ```text
//! plain user ── "look PID", its output ─► root ── "KIB DESCRIPTORS", its input
//! ```

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Set for a run that may ask.
const VARIABLE: &str = "NANOCLAW_TEST_EYES";
const QUESTION: &str = "look ";

/// What a process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inside {
    /// How many of each kind, so that the kind of one too many is told.
    pub(crate) descriptors: String,
    /// Its share of memory (`Pss` of proc_pid_smaps_rollup), KiB.
    pub(crate) kib: u64,
}

/// Looks, or asks; `None` where nobody may.
pub(crate) fn look(pid: u32) -> Option<Inside> {
    if let Some(seen) = own(pid) {
        return Some(seen);
    }
    std::env::var_os(VARIABLE)?;
    println!("{QUESTION}{pid}");
    std::io::stdout().flush().ok()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).ok()?;
    let (kib, descriptors) = line.trim().split_once(' ')?;
    Some(Inside { descriptors: descriptors.to_owned(), kib: kib.parse().ok()? })
}

fn own(pid: u32) -> Option<Inside> {
    let descriptors = descriptors(pid)?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    Some(Inside { descriptors, kib: line.trim().strip_suffix("kB")?.trim().parse().ok()? })
}

/// Open descriptors by kind; the numbers that make each one another are left out.
pub(crate) fn descriptors(pid: u32) -> Option<String> {
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        // One that was closed meanwhile is none.
        let Ok(to) = std::fs::read_link(entry.path()) else { continue };
        let to = to.to_string_lossy().into_owned();
        *kinds.entry(to.replace(|c: char| c.is_ascii_digit(), "")).or_insert(0_u32) += 1;
    }
    let kinds = kinds.into_iter().map(|(kind, count)| format!("{count} {kind}"));
    Some(kinds.collect::<Vec<_>>().join(", "))
}

/// Runs the command, shows what it says, and answers what it asks; whether it succeeded.
pub(crate) fn lend(mut command: Command) -> bool {
    command.env(VARIABLE, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return false };
    let mut answers = child.stdin.take().unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let Some(pid) = line.strip_prefix(QUESTION).and_then(|pid| pid.parse().ok()) else {
            println!("{line}");
            continue;
        };
        let answer =
            own(pid).map_or("nothing".to_owned(), |i| format!("{} {}", i.kib, i.descriptors));
        if writeln!(answers, "{answer}").is_err() {
            break;
        }
    }
    child.wait().is_ok_and(|status| status.success())
}
