//! `probe_on_start`: an agent gets a sandbox only after its walls were tried from inside.
//!
//! Pipeline: `ask` (a step of the plan) ─► prepared, with answers ─► `judge` ─► record ─► go or no.

use crate::failure::{Context, Failure, Kind, Result};
use crate::scribe::Scribe;
use assess::walls::{self, Finding, Verdict};
use model::{Body, Durability, SandboxSpec};
use policy::ResolvedAgent;
use sandbox::{Mode, Report};

/// How many broken probes are named in the message; all are on record.
const NAMED_MAX: usize = 4;
/// What stands in records for the whole battery.
const BATTERY: &str = "probe-on-start";

/// Has the quick battery run in the agent's sandbox, if its file wants that.
pub(crate) fn ask(agent: &ResolvedAgent, spec: &mut SandboxSpec) -> Result<()> {
    if agent.probe_on_start {
        walls::ask_for_probe(spec).context("the probes of the sandbox")?;
    }
    Ok(())
}

/// Refuses a sandbox whose walls are not as they must be. What was found goes on record first.
pub(crate) fn judge(
    agent: &ResolvedAgent,
    report: &Report,
    mode: Mode,
    scribe: &Scribe,
) -> Result<()> {
    if !agent.probe_on_start {
        return Ok(());
    }
    let gaps = walls::known_gaps(&agent.backend, mode, report);
    let findings = walls::probe_on_start(report, &gaps);
    let bodies = records(&findings);
    for body in bodies {
        let written = scribe.write(None, body, Durability::Ordered);
        written.map_err(|e| Failure::new(Kind::Audit, e).remedy("nothing was started"))?;
    }
    verdict(&findings)
}

fn broken(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|f| f.verdict == Verdict::Broken)
}

/// One record for the battery, and one for each probe that found a wall broken.
fn records(findings: &[Finding]) -> Vec<Body> {
    let bad = broken(findings).count();
    let mut all = vec![Body::ProbeObserved {
        probe: BATTERY.to_owned(),
        expected: "every wall as it must be".to_owned(),
        observed: format!("{bad} of {} probes found a wall broken", findings.len()),
        held: bad == 0 && !findings.is_empty(),
    }];
    all.extend(broken(findings).map(|f| Body::ProbeObserved {
        probe: f.probe.to_owned(),
        expected: f.expected.clone(),
        observed: crate::ui::brief(&f.observed, 200),
        held: false,
    }));
    all
}

fn verdict(findings: &[Finding]) -> Result<()> {
    let bad: Vec<&Finding> = broken(findings).collect();
    if bad.is_empty() && !findings.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = bad
        .iter()
        .take(NAMED_MAX)
        .map(|f| format!("{} (expected {}; observed {})", f.probe, f.expected, f.observed))
        .collect();
    let more = bad.len().saturating_sub(NAMED_MAX);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    let cause = format!(
        "the sandbox was not handed over, for its walls are not as they must be: {}{rest}",
        crate::ui::brief(&told.join(", "), 600)
    );
    Err(Failure::new(Kind::Protection, cause)
        .remedy("run `nanoclaw sandbox probe`: it tells every wall and what enforces it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(probes: Option<&str>) -> Report {
        let plan = sandbox::Plan { steps: Vec::new() };
        let probes = probes.map(str::to_owned);
        Report { walls: Vec::new(), limits: Vec::new(), plan, pid: 1, probes }
    }

    /// Fail closed: a sandbox that did not answer is refused, and that is on record.
    #[test]
    fn a_sandbox_that_did_not_answer_is_refused_and_on_record() {
        for said in [None, Some(""), Some("nonsense")] {
            let findings = walls::probe_on_start(&report(said), &[]);
            let failure = verdict(&findings).expect_err("refused");
            assert_eq!(failure.kind, Kind::Protection);
            assert!(failure.cause.contains(" more"), "{}", failure.cause);
            let all = records(&findings);
            assert_eq!(all.len(), findings.len() + 1);
            let held = |b: &Body| matches!(b, Body::ProbeObserved { held: true, .. });
            assert!(!all.iter().any(held));
        }
        assert!(verdict(&[]).is_err(), "nothing looked at is nothing proved");
    }
}
