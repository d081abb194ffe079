//! How many records a session may cause, so that one that floods harms no other.
//!
//! ```text
//! record of a session ─► debt of time, which the clock pays ─┬─ within the bound ─► the log
//!                                                            └─ beyond ─► refused; a gap on record
//! ```
//!
//! 1. Nothing is dropped unsaid: whoever submits is told, and the first refusal is a record before
//!    the second one comes. How many they were is another, when the session is heard again, when it
//!    ends, or when its client or the recorder does.
//! 2. After a refusal a session is heard again once half of its debt is paid: a flood makes few
//!    gaps, not one between every two records.
//! 3. What ends a session is always taken, and so is what is found at its end: whoever floods must
//!    not be able to keep a finding off the record.

use model::{AgentName, Body, Record, SessionId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a record adds to its session's debt: 5,000 small ones a second can go on for ever, which is
/// ten times what a build that starts programs without end was seen to cause.
const COST: Duration = Duration::from_micros(200);

/// Every so many bytes of it cost as much again.
const COST_BYTES: usize = 2_048;

/// The largest debt: 50,000 small records at once, or some 100 MB of the largest.
const DEBT_MAX: Duration = Duration::from_secs(10);

/// Sessions remembered before those without debt are forgotten.
const SESSIONS_KEPT: usize = 1_024;

/// Why a record is refused.
pub(crate) const REASON: &str = "its session submits more records than any may";

struct Account {
    /// When the debt is paid.
    paid: Instant,
    refusing: bool,
    /// Refused since the last record that says how many.
    lost: u64,
    agent: Option<AgentName>,
}

/// A gap that is to go on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) session: SessionId,
    pub(crate) agent: Option<AgentName>,
    pub(crate) lost: u64,
    /// It may grow.
    pub(crate) open: bool,
}

/// What is to be done with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) take: bool,
    /// Goes on record before it.
    pub(crate) gap: Option<Gap>,
}

/// Every session's account.
#[derive(Default)]
pub(crate) struct Accounts {
    all: Mutex<HashMap<SessionId, Account>>,
}

/// Whether a record ends something, or is a finding at an end: there are few of these, however much
/// a session does, and without them a story has no end, or one that looks better than it was.
fn ends(body: &Body) -> bool {
    matches!(
        body,
        Body::SessionClosed { .. }
            | Body::SandboxStopped { .. }
            | Body::TotalsDisagree { .. }
            | Body::ObserversDisagree { .. }
    )
}

impl Accounts {
    /// Judges a record whose entry has so many bytes.
    pub(crate) fn judge(&self, record: &Record, bytes: usize, now: Instant) -> Verdict {
        let Some(session) = &record.session else { return Verdict { take: true, gap: None } };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SESSIONS_KEPT && !all.contains_key(session) {
            all.retain(|_, account| account.lost > 0 || account.paid > now);
        }
        let account = all.entry(session.clone()).or_insert_with(|| Account {
            paid: now,
            refusing: false,
            lost: 0,
            agent: record.agent.clone(),
        });
        // At most 33 times: an entry has no more than 64,000 bytes.
        let cost = COST * (1 + bytes.min(1 << 16) / COST_BYTES) as u32;
        let debt = account.paid.saturating_duration_since(now);
        let most = if account.refusing { DEBT_MAX / 2 } else { DEBT_MAX };
        let gap = |lost, open| {
            Some(Gap { session: session.clone(), agent: account.agent.clone(), lost, open })
        };
        if debt + cost <= most || ends(&record.body) {
            let gap = if account.lost > 0 { gap(account.lost, false) } else { None };
            account.refusing &= debt + cost > most;
            account.lost = 0;
            account.paid = now.max(account.paid) + cost;
            return Verdict { take: true, gap };
        }
        let gap = if account.refusing { None } else { gap(1, true) };
        account.refusing = true;
        account.lost += 1;
        Verdict { take: false, gap }
    }

    /// Gaps that no record gives the size of yet.
    pub(crate) fn take_gaps(&self) -> Vec<Gap> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = all.iter_mut().filter(|(_, account)| account.lost > 0);
        lost.map(|(session, account)| Gap {
            session: session.clone(),
            agent: account.agent.clone(),
            lost: std::mem::take(&mut account.lost),
            open: true,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(session: u32, body: Body) -> Record {
        let session = Some(SessionId::mint(5, session));
        Record { time_ms: 1, session, agent: None, turn: None, body }
    }

    fn message() -> Body {
        Body::TurnFinished { outcome: "x".into(), duration_ms: 1 }
    }

    #[test]
    fn a_flood_is_refused_counted_and_heard_again_and_nobody_else_is_touched() {
        let (accounts, now) = (Accounts::default(), Instant::now());
        let (flood, other) = (record(1, message()), record(2, message()));
        let (mut taken, mut refused, mut opened) = (0, 0, Vec::new());
        for _ in 0..1_000_000 {
            let verdict = accounts.judge(&flood, 500, now);
            if verdict.take {
                taken += 1
            } else {
                refused += 1
            }
            opened.extend(verdict.gap);
        }
        assert_eq!((taken, taken + refused), (50_000, 1_000_000));
        assert_eq!(opened.len(), 1, "{opened:?}");
        assert_eq!((opened[0].lost, opened[0].open), (1, true));
        assert_eq!(accounts.judge(&other, 500, now), Verdict { take: true, gap: None });
        // Its end is taken, and says what was lost.
        let closed = Body::SessionClosed { reason: "done".into(), counts: [].into() };
        let verdict = accounts.judge(&record(1, closed), 500, now);
        assert!(verdict.take && verdict.gap.is_some_and(|g| g.lost == 950_000 && !g.open));
        // Still in debt; half of it paid it is heard again.
        assert!(!accounts.judge(&flood, 500, now + DEBT_MAX / 4).take);
        assert_eq!(accounts.take_gaps().iter().map(|g| g.lost).sum::<u64>(), 1);
        let later = accounts.judge(&flood, 500, now + DEBT_MAX / 2 + 2 * COST);
        assert_eq!(later, Verdict { take: true, gap: None });
    }

    #[test]
    fn the_end_of_a_session_and_what_is_found_at_it_are_taken_however_it_floods() {
        let (accounts, now) = (Accounts::default(), Instant::now());
        while accounts.judge(&record(1, message()), 500, now).take {}
        let text = || String::from("x");
        let ends = [
            Body::SandboxStopped {
                outcome: text(),
                cpu_ms: 1,
                peak_memory_bytes: 1,
                peak_pids: None,
                disk_bytes: None,
            },
            Body::TotalsDisagree { total: text(), relation: text(), gateway: 1, kernel: 2 },
            Body::ObserversDisagree {
                finding: text(),
                told_by: text(),
                not_by: text(),
                what: text(),
                count: 1,
                records: Vec::new(),
            },
            Body::SessionClosed { reason: text(), counts: [].into() },
        ];
        for body in ends {
            let kind = body.kind();
            assert!(accounts.judge(&record(1, body), 500, now).take, "{kind}");
            assert!(!accounts.judge(&record(1, message()), 500, now).take, "after {kind}");
        }
    }

    #[test]
    fn a_large_record_costs_more_and_old_accounts_are_forgotten() {
        let (accounts, now) = (Accounts::default(), Instant::now());
        let taken = (0..50_000).filter(|_| accounts.judge(&record(1, message()), 64_000, now).take);
        assert_eq!(taken.count(), 50_000 / 32);
        for session in 10..5_000 {
            let later = now + DEBT_MAX * 2 + COST * 2 * session;
            assert!(accounts.judge(&record(session, message()), 1, later).take);
        }
        assert!(accounts.all.lock().unwrap().len() <= SESSIONS_KEPT);
    }
}
