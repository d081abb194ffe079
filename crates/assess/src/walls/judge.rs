//! From what a probe saw to whether its wall holds. Pure.

use super::catalogue::{Expect, Probe};
use super::errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What came of one act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The call was refused with this error number (errno(3)).
    Errno(i32),
    /// The kernel ended the process with this signal (signal(7)).
    Signal(i32),
    /// The act was done, or came further than it may.
    Done(String),
    /// What was looked at is as a wall leaves it.
    Held(String),
    /// What was looked at is not.
    Tripped(String),
    /// This kernel or architecture has no such thing, so there is nothing to wall off.
    Absent(String),
    /// The probe could not find out.
    Failed(String),
}

/// One line of a battery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Name of the probe.
    pub probe: String,
    /// What came of it.
    pub answer: Answer,
    /// How long it took, microseconds.
    pub micros: u64,
}

/// Whether a wall holds, as far as one probe can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As expected.
    Held,
    /// There is nothing to wall off here.
    Absent,
    /// It does not hold, which is known of this backend and privilege, and named.
    Open,
    /// It does not hold, or the probe gave no answer.
    Broken,
}

impl Verdict {
    /// As it stands in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Absent => "absent",
            Self::Open => "not enforced",
            Self::Broken => "BROKEN",
        }
    }
}

/// A wall that a backend is known not to have, with the reason as people are told it.
pub type Gap = (&'static str, String);

/// One probe with its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the probe.
    pub probe: &'static str,
    /// Name of its wall.
    pub wall: &'static str,
    /// What was tried.
    pub act: &'static str,
    /// What a walled sandbox answers.
    pub expected: String,
    /// What was answered.
    pub observed: String,
    /// The error number among that, if it was one.
    pub errno: Option<i32>,
    /// How an open place answers, which the tests try.
    pub open: &'static str,
    /// Whether it holds.
    pub verdict: Verdict,
    /// Why it does not hold, where that is known.
    pub gap: Option<String>,
    /// How long it took, microseconds; 0 for what was judged from outside.
    pub micros: u64,
}

/// Whether an answer is as expected. Another refusal than the expected one is not: then something
/// else than the wall answered.
#[must_use]
pub fn judge(expect: Expect, answer: &Answer) -> Verdict {
    let as_expected = match (expect, answer) {
        (_, Answer::Absent(_)) => return Verdict::Absent,
        (Expect::Refused(all), Answer::Errno(code)) => all.contains(code),
        (Expect::Killed(all), Answer::Signal(signal)) => all.contains(signal),
        (Expect::Bounded { errnos, .. }, Answer::Errno(code)) => errnos.contains(code),
        (Expect::Bounded { signals, .. }, Answer::Signal(signal)) => signals.contains(signal),
        (Expect::Seen(_), Answer::Held(_)) => true,
        _ => false,
    };
    if as_expected { Verdict::Held } else { Verdict::Broken }
}

/// What was observed, in words.
pub(super) fn words(answer: &Answer) -> String {
    match answer {
        Answer::Errno(code) => errno::name(*code),
        Answer::Signal(signal) => format!("killed by signal {signal}"),
        Answer::Done(what) => format!("done: {what}"),
        Answer::Held(what) | Answer::Tripped(what) => what.clone(),
        Answer::Absent(why) => format!("not here: {why}"),
        Answer::Failed(why) => format!("no answer: {why}"),
    }
}

/// Every probe of `probes` with what was seen of it. A probe nobody saw is broken; what is among
/// `gaps` and does not hold is open.
#[must_use]
pub fn judge_all<'a>(
    probes: impl Iterator<Item = &'a Probe>,
    seen: &[Sighting],
    gaps: &[Gap],
) -> Vec<Finding> {
    let by_name: BTreeMap<&str, &Sighting> = seen.iter().map(|s| (s.probe.as_str(), s)).collect();
    let silent = Answer::Failed("the battery ended before it".into());
    probes
        .map(|probe| {
            let sighting = by_name.get(probe.name).copied();
            let answer = sighting.map_or(&silent, |s| &s.answer);
            let gap = gaps.iter().find(|(name, _)| *name == probe.name).map(|(_, why)| why.clone());
            let verdict = match (judge(probe.expect, answer), &gap) {
                (Verdict::Broken, Some(_)) => Verdict::Open,
                (verdict, _) => verdict,
            };
            Finding {
                probe: probe.name,
                wall: probe.wall.name(),
                act: probe.act,
                expected: probe.expect.words(),
                observed: words(answer),
                errno: if let Answer::Errno(code) = answer { Some(*code) } else { None },
                open: probe.open.words(),
                verdict,
                gap: gap.filter(|_| verdict == Verdict::Open),
                micros: sighting.map_or(0, |s| s.micros),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::all;
    use super::*;

    const EPERM: i32 = 1;
    const EINVAL: i32 = 22;

    #[test]
    fn only_the_expected_answer_holds() {
        let refused = Expect::Refused(&[EPERM]);
        for (answer, verdict) in [
            (Answer::Errno(EPERM), Verdict::Held),
            (Answer::Errno(EINVAL), Verdict::Broken),
            (Answer::Done("it".into()), Verdict::Broken),
            (Answer::Held("so".into()), Verdict::Broken),
            (Answer::Signal(31), Verdict::Broken),
            (Answer::Failed("late".into()), Verdict::Broken),
            (Answer::Absent("old".into()), Verdict::Absent),
        ] {
            assert_eq!(judge(refused, &answer), verdict, "{answer:?}");
        }
        assert_eq!(judge(Expect::Killed(&[31]), &Answer::Signal(31)), Verdict::Held);
        assert_eq!(judge(Expect::Killed(&[31]), &Answer::Errno(EPERM)), Verdict::Broken);
        let bounded = Expect::Bounded { errnos: &[12], signals: &[9] };
        assert_eq!(judge(bounded, &Answer::Signal(9)), Verdict::Held);
        assert_eq!(judge(bounded, &Answer::Errno(12)), Verdict::Held);
        assert_eq!(judge(bounded, &Answer::Signal(11)), Verdict::Broken);
        assert_eq!(judge(Expect::Seen("x"), &Answer::Tripped("y".into())), Verdict::Broken);
    }

    /// Silence, a wrong name and a gap that is not meant are no way to a green report.
    #[test]
    fn silence_is_broken_and_a_gap_excuses_its_own_probe_only() {
        let probes = || all().take(3);
        let names: Vec<&str> = probes().map(|p| p.name).collect();
        let silent = judge_all(probes(), &[], &[]);
        assert!(silent.iter().all(|f| f.verdict == Verdict::Broken), "{silent:?}");
        let gaps = [(names[1], "known".to_owned())];
        let found = judge_all(probes(), &[], &gaps);
        let verdicts: Vec<Verdict> = found.iter().map(|f| f.verdict).collect();
        assert_eq!(verdicts, [Verdict::Broken, Verdict::Open, Verdict::Broken]);
        assert_eq!(found[1].gap.as_deref(), Some("known"));
        assert_eq!(found[0].gap, None);
    }
}
