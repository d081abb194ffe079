//! A session's totals against the kernel's: does what the gateway says of a session fit what the
//! kernel counted of its sandbox?
//!
//! ```text
//! gateway: door_up, door_unread, door_down ──┐
//! kernel: bytes that init moved, its network ┴► relations ─► counts of the record, findings
//! ```
//!
//! The relations, and why they hold for an honest gateway:
//! 1. `kernel_door_up == door_up + door_unread`. Every connection to the door is init's, which
//!    writes there with `write` and writes nothing else; the gateway takes connections of no other
//!    process, counts what it reads, and at the end what it left.
//! 2. `kernel_door_down <= door_down`. Init cannot read what was not written. What a program did
//!    not wait for is the difference.
//! 3. `kernel_door_up <= kernel_loopback + OWN_WORDS * door_connections`: what init wrote into the
//!    door it had from programs, over the loopback, but for the words by which it opens a
//!    connection or asks for a name. What came out of the door is no part of it: an answer that a
//!    program leaves unread waits in its socket's buffers, megabytes a connection, and never
//!    crosses the loopback.
//! 4. `kernel_other_packets == 0`: there is no other interface.
//!
//! A gateway that was started again has lost its counts, and a kernel may not count: then nothing
//! is compared, and `totals_compared` is lower in the record. A gateway that is gone has none to
//! tell, which the record says as well (`gateway_counts_missing`).
//!
//! Beside the totals stand the three accounts of what was done, compared by [`crate::observers`].

use crate::observers::{self, Compared, Known};
use crate::scribe::Scribe;
use gateway::control::{ControlError, Door};
use model::{Body, Durability, RecordError, SessionId};
use sandbox::{Ended, NetworkCounts, OperationCounts, Traffic, Usage};
use std::collections::BTreeMap;
use std::path::Path;

/// What a person is told of a finding, up to the session's name.
pub(crate) const DISAGREED: &str = "what was seen of the session does not fit together, or was not \
                                    compared; see `nanoclaw audit show";

/// What init says of its own on one connection: a `CONNECT` or a question for a name, below 600
/// bytes, for each has the name twice and a name at most 253 characters.
const OWN_WORDS: u64 = 1 << 10;

/// Stands in the closing record in place of the gateway's counts when it could not be asked.
const MISSING: &str = "gateway_counts_missing";

/// How many of the records before the closing one (the sandbox's end, findings) were refused.
const REFUSED: &str = "end_unrecorded";

/// The counts of a session, with the kernel's, and what does not fit.
pub(crate) struct Checked {
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) findings: Vec<Body>,
}

/// What is known of how a session lived.
pub(crate) struct Lived {
    /// Index of the record that opened it.
    pub(crate) first: u64,
    /// Its agent tells its tool calls.
    pub(crate) told: bool,
    /// Reports of the kernel came too late once, see [`crate::operations::Reports::late`].
    pub(crate) late: bool,
}

impl Checked {
    /// Compares what gateway, kernel and agent put on record. Everything must be there by now but
    /// the session's end.
    pub(crate) fn observe(&mut self, log: &Path, session: &SessionId, ended: &Ended, how: &Lived) {
        let known = Known {
            counts: Some(&self.counts),
            operations: ended.operations,
            told: how.told,
            late: how.late,
        };
        // A log that cannot be read, or is too long for it, is not compared, and that is a finding.
        let compared = match observers::read(log, session, how.first) {
            Ok(lines) => observers::compare(&lines, &known),
            Err(why) => observers::left_out(&known, &why),
        };
        let Compared { relations, findings, disagreements, left_out } = compared;
        self.counts.insert("observers_compared".into(), relations);
        self.counts.insert("observers_disagree".into(), disagreements);
        if left_out > 0 {
            self.counts.insert("observers_not_compared".into(), left_out);
        }
        self.findings.extend(findings);
    }
}

/// Compares. `counts` are the gateway's, as [`counts`] has them.
pub(crate) fn check(mut counts: BTreeMap<String, u64>, traffic: Option<&Traffic>) -> Checked {
    let traffic = traffic.copied().unwrap_or_default();
    let Traffic { door_up, door_down, network } = traffic;
    let gateway = |name: &str| counts.get(name).copied();
    let whole = !counts.contains_key("gateway_restarts");
    let mut found = Findings(Vec::new());
    let mut compared = 0;
    if let (true, Some(up), Some(read), Some(unread)) =
        (whole, door_up, gateway("door_up"), gateway("door_unread"))
    {
        compared += 1;
        let said = read.saturating_add(unread);
        found.unless(said == up, "bytes that went into the door", "the same", said, up);
    }
    if let (true, Some(down), Some(said)) = (whole, door_down, gateway("door_down")) {
        compared += 1;
        found.unless(down <= said, "bytes that came out of the door", "at most that", said, down);
    }
    if let (true, Some(net), Some(up), Some(n)) =
        (whole, network, door_up, gateway("door_connections"))
    {
        compared += 1;
        let most = net.loopback_bytes.saturating_add(OWN_WORDS.saturating_mul(n));
        let total = "bytes that the first process put into the door for programs";
        found.unless(up <= most, total, "at most that, by its loopback", most, up);
    }
    if let Some(net) = network {
        compared += 1;
        let total = "packets over interfaces that should not be there";
        found.unless(net.other_packets == 0, total, "none", 0, net.other_packets);
    }
    add(&mut counts, door_up, door_down, network);
    counts.insert("totals_compared".into(), compared);
    Checked { counts, findings: found.0 }
}

/// The gateway's counts for a closing record, which says so where they could not be had.
pub(crate) fn counts(said: Result<BTreeMap<String, u64>, ControlError>) -> BTreeMap<String, u64> {
    said.unwrap_or_else(|_| BTreeMap::from([(MISSING.to_owned(), 1)]))
}

/// Closes the door of a sandbox that is gone and compares what went through.
pub(crate) fn settle(door: &Door, ended: &Ended) -> Checked {
    let mut checked = check(counts(door.settle()), ended.traffic.as_ref());
    if let Some(operations) = ended.operations {
        witnessed(&mut checked.counts, operations);
    }
    checked
}

/// How a sandbox ended and what it used, for the record.
pub(crate) fn stopped(outcome: String, usage: &Usage) -> Body {
    Body::SandboxStopped {
        outcome,
        cpu_ms: usage.cpu_ms,
        peak_memory_bytes: usage.peak_memory_bytes,
        peak_pids: usage.peak_pids,
        disk_bytes: usage.disk_bytes,
    }
}

/// What the kernel reported, as the spawner counted it: a record that is missing shows in it.
fn witnessed(counts: &mut BTreeMap<String, u64>, operations: OperationCounts) {
    let OperationCounts { executions, refusals, lost } = operations;
    for (name, count) in [
        ("kernel_executions", executions),
        ("kernel_refusals", refusals),
        ("kernel_unrecorded", lost),
    ] {
        counts.insert(name.to_owned(), count);
    }
}

/// Puts a session's end on record: `stopped`, what does not fit, the totals. Whatever is refused of
/// the former is counted in the latter, which stands there in any case: a session whose end is
/// missing looks like one that goes on.
///
/// # Errors
/// When the closing record cannot be written.
pub(crate) fn record(
    scribe: &Scribe,
    Checked { mut counts, findings }: Checked,
    stopped: Body,
    reason: String,
) -> Result<u64, RecordError> {
    let mut refused = 0;
    for body in std::iter::once(stopped).chain(findings) {
        refused += u64::from(scribe.write(None, body, Durability::Ordered).is_err());
    }
    if refused > 0 {
        counts.insert(REFUSED.to_owned(), refused);
    }
    scribe.write(None, Body::SessionClosed { reason, counts }, Durability::Durable)
}

fn add(
    counts: &mut BTreeMap<String, u64>,
    up: Option<u64>,
    down: Option<u64>,
    network: Option<NetworkCounts>,
) {
    let mut put = |name: &str, n: Option<u64>| {
        if let Some(n) = n {
            counts.insert(format!("kernel_{name}"), n);
        }
    };
    put("door_up", up);
    put("door_down", down);
    put("loopback", network.map(|n| n.loopback_bytes));
    put("other_packets", network.map(|n| n.other_packets));
    put("unroutable", network.map(|n| n.unroutable));
    put("udp_datagrams", network.map(|n| n.udp_datagrams));
    put("icmp_messages", network.map(|n| n.icmp_messages));
}

struct Findings(Vec<Body>);

impl Findings {
    fn unless(&mut self, holds: bool, total: &str, relation: &str, gateway: u64, kernel: u64) {
        if !holds {
            let (total, relation) = (total.to_owned(), relation.to_owned());
            self.0.push(Body::TotalsDisagree { total, relation, gateway, kernel });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(up: u64, unread: u64, down: u64) -> BTreeMap<String, u64> {
        [("door_up", up), ("door_unread", unread), ("door_down", down), ("door_connections", 1)]
            .into_iter()
            .map(|(name, n)| (name.to_owned(), n))
            .collect()
    }

    fn counted(up: u64, down: u64) -> Traffic {
        let network = NetworkCounts { loopback_bytes: up + down + 400, ..NetworkCounts::default() };
        Traffic { door_up: Some(up), door_down: Some(down), network: Some(network) }
    }

    fn totals(checked: &Checked) -> Vec<&str> {
        let total = |body: &'_ Body| match body {
            Body::TotalsDisagree { .. } => body.kind(),
            _ => "something else",
        };
        checked.findings.iter().map(total).collect()
    }

    #[test]
    fn what_fits_is_no_finding() {
        for (gateway, kernel) in [
            (said(100, 0, 50), counted(100, 50)),
            // It left some of a request unread; a program left some of an answer.
            (said(60, 40, 50), counted(100, 20)),
        ] {
            let checked = check(gateway, Some(&kernel));
            assert!(checked.findings.is_empty(), "{:?}", checked.findings);
            assert_eq!(
                (checked.counts["totals_compared"], checked.counts["kernel_door_up"]),
                (4, 100)
            );
        }
    }

    #[test]
    fn answers_left_unread_are_no_finding_however_long() {
        let network = NetworkCounts { loopback_bytes: 500, ..NetworkCounts::default() };
        let down = 1 << 30;
        let kernel = Traffic { door_up: Some(300), door_down: Some(down), network: Some(network) };
        let checked = check(said(300, 0, down), Some(&kernel));
        assert!(checked.findings.is_empty(), "{:?}", checked.findings);
        assert_eq!(checked.counts["totals_compared"], 4);
    }

    #[test]
    fn init_has_a_few_words_of_its_own_and_not_one_more() {
        let network = NetworkCounts { loopback_bytes: 500, ..NetworkCounts::default() };
        for (up, findings) in [(500 + OWN_WORDS, 0), (501 + OWN_WORDS, 1)] {
            let kernel = Traffic { door_up: Some(up), door_down: Some(0), network: Some(network) };
            assert_eq!(totals(&check(said(up, 0, 0), Some(&kernel))).len(), findings, "{up}");
        }
    }

    #[test]
    fn one_byte_more_or_less_on_either_side_is_a_finding() {
        for (up, down) in [(99, 50), (101, 50), (100, 49)] {
            let checked = check(said(up, 0, down), Some(&counted(100, 50)));
            assert_eq!(totals(&checked), ["totals_disagree"], "{up} {down}");
        }
    }

    #[test]
    fn what_no_program_sent_and_what_went_elsewhere_is_a_finding() {
        let mut lonely = counted(1 << 20, 0);
        lonely.network = Some(NetworkCounts::default());
        assert_eq!(totals(&check(said(1 << 20, 0, 0), Some(&lonely))).len(), 1);
        let mut escaped = counted(1, 1);
        escaped.network = escaped.network.map(|n| NetworkCounts { other_packets: 1, ..n });
        assert_eq!(totals(&check(said(1, 0, 1), Some(&escaped))).len(), 1);
    }

    #[test]
    fn what_cannot_be_compared_is_said_and_no_finding() {
        let mut restarted = said(1, 0, 1);
        restarted.insert("gateway_restarts".into(), 1);
        let checked = check(restarted, Some(&counted(100, 50)));
        assert_eq!((checked.findings.len(), checked.counts["totals_compared"]), (0, 1));
        let checked = check(said(1, 0, 1), None);
        assert_eq!((checked.findings.len(), checked.counts["totals_compared"]), (0, 0));
        assert!(!checked.counts.contains_key("kernel_door_up"), "unknown is not zero");
    }

    #[test]
    fn what_the_kernel_reported_is_counted_where_it_was_witnessed() {
        let mut counts = BTreeMap::new();
        witnessed(&mut counts, OperationCounts { executions: 3, refusals: 2, lost: 0 });
        assert_eq!((counts["kernel_executions"], counts["kernel_refusals"]), (3, 2));
        assert_eq!(counts["kernel_unrecorded"], 0, "nothing was lost, and that is said");
    }

    #[test]
    fn a_gateway_that_cannot_be_asked_is_said() {
        let gone = Err(ControlError::Gone { cause: "it stopped".into() });
        let checked = check(counts(gone), Some(&counted(100, 50)));
        assert_eq!((checked.findings.len(), checked.counts["totals_compared"]), (0, 1));
        assert_eq!((checked.counts[MISSING], checked.counts["kernel_door_up"]), (1, 100));
        assert!(!counts(Ok(said(1, 0, 1))).contains_key(MISSING));
    }

    /// Refuses the kinds it names; keeps the others.
    struct Refusing(&'static [&'static str], std::sync::Mutex<Vec<Body>>);

    impl model::RecordSink for Refusing {
        fn submit(&self, record: model::Record, _: Durability, done: model::Done) {
            let mut kept = self.1.lock().unwrap();
            if self.0.contains(&record.body.kind()) {
                return done(Err(RecordError::Flood { why: "too many".into() }));
            }
            kept.push(record.body);
            done(Ok(kept.len() as u64));
        }
    }

    #[test]
    fn a_session_s_end_is_on_record_whatever_of_it_is_refused() {
        const ALL: [&str; 2] = ["sandbox_stopped", "totals_disagree"];
        for (refused, unrecorded) in [(&ALL[..0], None), (&ALL[1..], Some(1)), (&ALL, Some(2))] {
            let sink = std::sync::Arc::new(Refusing(refused, std::sync::Mutex::default()));
            let scribe = Scribe {
                sink: sink.clone(),
                session: SessionId::mint(5, 6),
                agent: model::AgentName::parse("triage").unwrap(),
            };
            let checked = check(said(99, 0, 50), Some(&counted(100, 50)));
            let (usage, reason) = (Usage::default(), "done".to_owned());
            record(&scribe, checked, stopped("x".into(), &usage), reason).unwrap();
            let kept = sink.1.lock().unwrap();
            let Some(Body::SessionClosed { counts, .. }) = kept.last() else {
                panic!("no end: {kept:?}")
            };
            assert_eq!(counts.get(REFUSED).copied(), unrecorded, "{refused:?}");
            assert_eq!(kept.len(), 3 - refused.len());
        }
    }
}
