//! What is left of a session, seen from the host.

use crate::search;
use crate::walls::{Answer, Sighting};
use std::time::{Duration, Instant};

/// How long the kernel may take to end what was killed: milliseconds, and more where several
/// programs want each CPU.
const DEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long an engine may take to clear away what it made; only a bound, for nothing can be done
/// with that any more.
pub(super) const CLEARED_WITHIN: Duration = Duration::from_secs(20);
/// How often is looked.
const TICK: Duration = Duration::from_millis(5);

/// A sighting from outside; it has no time of its own.
pub(super) fn sighting(probe: &str, answer: Answer) -> Sighting {
    Sighting { probe: probe.to_owned(), answer, micros: 0 }
}

/// Processes of this machine that have `mark` as one of their arguments, zombies left out.
pub(super) fn alive(mark: &str) -> Vec<u32> {
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|argument| argument == mark.as_bytes())
    };
    search::pids().into_iter().filter(has).collect()
}

/// Waits until `mark` is seen; whether it was.
pub(super) fn appears(mark: &str, limit: Duration) -> bool {
    until(limit, || !alive(mark).is_empty())
}

/// Whether what was there before the end is gone after it. What was never there proves nothing.
pub(super) fn outlived(probe: &str, mark: &str, was_there: bool) -> Sighting {
    outlived_by(DEAD_WITHIN, probe, mark, was_there)
}

fn outlived_by(limit: Duration, probe: &str, mark: &str, was_there: bool) -> Sighting {
    let answer = if !was_there {
        Answer::Failed("it was not there to begin with".into())
    } else if until(limit, || alive(mark).is_empty()) {
        Answer::Held("dead".into())
    } else {
        Answer::Tripped(format!("alive: {:?}", alive(mark)))
    };
    sighting(probe, answer)
}

/// Whether there are as many as before, after what takes its time has had it.
pub(super) fn as_before(
    probe: &str,
    before: usize,
    limit: Duration,
    mut now: impl FnMut() -> usize,
) -> Sighting {
    let settled = until(limit, || now() <= before);
    let count = now();
    let told = format!("{before} before, {count} after");
    sighting(probe, if settled { Answer::Held(told) } else { Answer::Tripped(told) })
}

/// Where something is mounted on the host.
pub(super) fn mounts() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// Whether the host has no more mounts than before; else which are new, for others may mount too.
pub(super) fn mounts_as_before(before: &[String], limit: Duration) -> Sighting {
    let seen = as_before("residue-mounts", before.len(), limit, || mounts().len());
    let Answer::Tripped(told) = seen.answer else { return seen };
    let new: Vec<String> = mounts().into_iter().filter(|place| !before.contains(place)).collect();
    sighting("residue-mounts", Answer::Tripped(format!("{told}: {}", new.join(", "))))
}

fn until(limit: Duration, mut true_now: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if true_now() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walls::{Verdict, catalogue, judge};
    use std::process::{Command, Stdio};

    /// No time at all for what does not end.
    const AT_ONCE: Duration = Duration::ZERO;

    fn verdict(sighting: &Sighting) -> Verdict {
        judge(catalogue::find(&sighting.probe).expect("known").expect, &sighting.answer)
    }

    /// The open reference of what is judged from outside: here nothing ends anything.
    #[test]
    fn what_stays_is_seen_and_what_was_never_there_proves_nothing() {
        let mark = format!("probe-mark-{}", std::process::id());
        for probe in ["double-fork", "setsid-daemon", "stopped-process", "deaf-process"] {
            assert_eq!(verdict(&outlived(probe, &mark, false)), Verdict::Broken);
        }
        let mut child = Command::new("sh")
            .args(["-c", "read line", &mark])
            .stdin(Stdio::piped())
            .spawn()
            .expect("started");
        assert!(appears(&mark, Duration::from_secs(2)));
        for probe in ["time-out", "supervisor-kill", "residue-processes"] {
            let seen = outlived_by(AT_ONCE, probe, &mark, true);
            assert_eq!(verdict(&seen), Verdict::Broken, "{probe}");
        }
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert_eq!(verdict(&outlived("double-fork", &mark, true)), Verdict::Held);
    }

    #[test]
    fn one_more_than_before_is_seen() {
        let before = mounts();
        assert_eq!(verdict(&mounts_as_before(&before, CLEARED_WITHIN)), Verdict::Held);
        let seen = mounts_as_before(&[], AT_ONCE);
        assert_eq!(verdict(&seen), Verdict::Broken);
        assert!(format!("{:?}", seen.answer).contains("/proc"), "{:?}", seen.answer);
        for (now, wanted) in [(3, Verdict::Held), (4, Verdict::Broken)] {
            assert_eq!(verdict(&as_before("residue-cgroups", 3, AT_ONCE, || now)), wanted);
        }
    }
}
