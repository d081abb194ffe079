//! The life of a session, as a pure function.
//!
//! ```text
//!            Queued          Started(ok)         Taken(turn)
//!   Cold ───────────► Starting ───────► Warm ────────────────► Running
//!    ▲                   │ Started(err)   ▲ Ended(done|failed)    │
//!    │                   ▼                └───────────────────────┤ Ended(retry)
//!    └── LinkLost ──  Waiting ◄───────────────────────────────────┘
//! ```

/// How long a failed attempt waits before the next, milliseconds; the last repeats. A model
/// server restarting takes seconds, a provider's outage minutes.
pub const RETRY_AFTER_MS: [u64; 5] = [2_000, 5_000, 15_000, 60_000, 300_000];

/// After this many attempts a message is given up, with a clear word to the person.
pub const ATTEMPTS_MAX: u32 = 8;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No sandbox.
    Cold,
    /// A sandbox is being started.
    Starting,
    /// A sandbox is there and idle.
    Warm,
    /// A turn runs.
    Running,
    /// The last attempt failed for a passing reason; tried again at `until_ms`.
    Waiting {
        /// Unix milliseconds.
        until_ms: u64,
        /// Whether the sandbox is still there.
        warm: bool,
    },
}

/// A session's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Where it stands.
    pub phase: Phase,
    /// Failed attempts at the message at the head of its queue.
    pub attempts: u32,
}

impl Session {
    /// A session nobody has started yet.
    pub const NEW: Self = Self { phase: Phase::Cold, attempts: 0 };
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With a reply.
    Done,
    /// Because a person stopped it.
    Cancelled,
    /// For a passing reason, before anything had an effect.
    Retry,
    /// For good.
    Failed,
    /// The agent or its sandbox died under it.
    LinkLost,
}

/// What can happen to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A message was committed to its queue (or the worker began).
    Queued,
    /// The sandbox is there, or could not be made; `retry` when trying again may help.
    Started(Result<(), Retryable>),
    /// The queue was asked for its head: there was the one put back last, or none.
    Taken(bool),
    /// The same, and the message is another than the one put back last.
    TakenOther,
    /// The turn ended.
    Ended(Ended),
    /// The time of a retry has come.
    Due,
    /// The session is to end.
    Stop,
}

/// Whether a failed start may succeed later by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retryable(pub bool);

/// What the executor is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox; answer with [`Event::Started`].
    Start,
    /// Take the head of the queue; answer with [`Event::Taken`].
    Take,
    /// Give the taken message to the agent; answer with [`Event::Ended`].
    Prompt,
    /// Commit the reply, the end of the turn and the message, in one transaction.
    Finish,
    /// Commit the failure as the reply, so that the person hears of it.
    FinishFailed,
    /// Put the message back and tell the person when it is tried again.
    Requeue {
        /// Unix milliseconds.
        at_ms: u64,
    },
    /// Fail the messages waiting, for the sandbox cannot be had.
    FailQueue,
    /// End the sandbox.
    StopLink,
}

/// The whole logic. `now_ms` is Unix milliseconds.
#[must_use]
pub fn step(session: &mut Session, event: Event, now_ms: u64) -> Vec<Action> {
    match (session.phase, event) {
        (phase, Event::Stop) => {
            session.phase = Phase::Cold;
            let warm = matches!(phase, Phase::Warm | Phase::Running | Phase::Starting)
                || matches!(phase, Phase::Waiting { warm: true, .. });
            if warm { vec![Action::StopLink] } else { vec![] }
        }
        (Phase::Cold, Event::Queued) => to(session, Phase::Starting, vec![Action::Start]),
        (Phase::Warm, Event::Queued) => vec![Action::Take],
        (Phase::Starting, Event::Started(Ok(()))) => to(session, Phase::Warm, vec![Action::Take]),
        (Phase::Starting, Event::Started(Err(Retryable(false)))) => {
            session.attempts = 0;
            to(session, Phase::Cold, vec![Action::FailQueue])
        }
        (Phase::Starting, Event::Started(Err(Retryable(true)))) => retry(session, now_ms, false),
        (Phase::Warm, Event::Taken(true)) => to(session, Phase::Running, vec![Action::Prompt]),
        (Phase::Warm, Event::TakenOther) => {
            // What was attempted has been taken back meanwhile; this one begins anew.
            session.attempts = 0;
            to(session, Phase::Running, vec![Action::Prompt])
        }
        (Phase::Warm, Event::Taken(false)) => {
            // Whatever was attempted is no longer in the queue.
            session.attempts = 0;
            vec![]
        }
        (Phase::Running, Event::Ended(ended)) => after_turn(session, ended, now_ms),
        (Phase::Waiting { warm, .. }, Event::Due) => {
            if warm {
                to(session, Phase::Warm, vec![Action::Take])
            } else {
                to(session, Phase::Starting, vec![Action::Start])
            }
        }
        // A message that arrives meanwhile is in the queue and is met there.
        _ => vec![],
    }
}

fn to(session: &mut Session, phase: Phase, actions: Vec<Action>) -> Vec<Action> {
    session.phase = phase;
    actions
}

fn after_turn(session: &mut Session, ended: Ended, now_ms: u64) -> Vec<Action> {
    match ended {
        Ended::Done | Ended::Cancelled => {
            session.attempts = 0;
            to(session, Phase::Warm, vec![Action::Finish, Action::Take])
        }
        Ended::Failed => {
            session.attempts = 0;
            to(session, Phase::Warm, vec![Action::FinishFailed, Action::Take])
        }
        Ended::Retry => retry(session, now_ms, true),
        Ended::LinkLost => {
            session.attempts = 0;
            to(session, Phase::Cold, vec![Action::FinishFailed, Action::StopLink])
        }
    }
}

fn retry(session: &mut Session, now_ms: u64, warm: bool) -> Vec<Action> {
    session.attempts += 1;
    if session.attempts >= ATTEMPTS_MAX {
        session.attempts = 0;
        return if warm {
            to(session, Phase::Warm, vec![Action::FinishFailed, Action::Take])
        } else {
            to(session, Phase::Cold, vec![Action::FailQueue])
        };
    }
    let last = RETRY_AFTER_MS.len() - 1;
    let wait = RETRY_AFTER_MS[usize::try_from(session.attempts - 1).unwrap_or(last).min(last)];
    let until_ms = now_ms + wait;
    to(session, Phase::Waiting { until_ms, warm }, vec![Action::Requeue { at_ms: until_ms }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(events: &[Event]) -> (Session, Vec<Action>) {
        let mut session = Session::NEW;
        let mut all = Vec::new();
        for event in events {
            all.extend(step(&mut session, *event, 1_000));
        }
        (session, all)
    }

    #[test]
    fn another_message_has_its_own_attempts() {
        let failed = [Event::Taken(true), Event::Ended(Ended::Retry), Event::Due];
        let mut events = vec![Event::Queued, Event::Started(Ok(()))];
        events.extend(failed.repeat(2));
        events.extend([Event::TakenOther, Event::Ended(Ended::Retry)]);
        let (_, actions) = run(&events);
        let requeued: Vec<_> =
            actions.iter().filter(|a| matches!(a, Action::Requeue { .. })).collect();
        let at = |wait: u64| Action::Requeue { at_ms: 1_000 + wait };
        assert_eq!(requeued, [&at(2_000), &at(5_000), &at(2_000)]);
    }

    #[test]
    fn one_message_goes_the_whole_way() {
        let (session, actions) = run(&[
            Event::Queued,
            Event::Started(Ok(())),
            Event::Taken(true),
            Event::Ended(Ended::Done),
            Event::Taken(false),
        ]);
        assert_eq!(session, Session { phase: Phase::Warm, attempts: 0 });
        use Action::{Finish, Prompt, Start, Take};
        assert_eq!(actions, [Start, Take, Prompt, Finish, Take]);
    }

    #[test]
    fn a_passing_failure_waits_longer_each_time_and_ends_with_a_word() {
        let mut session = Session { phase: Phase::Running, attempts: 0 };
        let mut waits = Vec::new();
        loop {
            match step(&mut session, Event::Ended(Ended::Retry), 0).as_slice() {
                [Action::Requeue { at_ms }] => waits.push(*at_ms),
                other => {
                    assert_eq!(other, [Action::FinishFailed, Action::Take]);
                    break;
                }
            }
            assert_eq!(step(&mut session, Event::Due, 0), [Action::Take]);
            session.phase = Phase::Running;
        }
        assert_eq!(waits.len(), usize::try_from(ATTEMPTS_MAX).unwrap() - 1);
        assert!(waits.is_sorted());
    }

    #[test]
    fn a_dead_agent_is_reported_and_never_run_again_by_itself() {
        let mut session = Session { phase: Phase::Running, attempts: 3 };
        let actions = step(&mut session, Event::Ended(Ended::LinkLost), 0);
        assert_eq!(actions, [Action::FinishFailed, Action::StopLink]);
        assert_eq!(session, Session::NEW);
    }

    /// Whatever happens in whatever order: a prompt follows a take of exactly that message, and
    /// every prompt is followed by exactly one end before the next prompt.
    #[test]
    fn any_history_keeps_one_turn_at_a_time() {
        let events = [
            Event::Queued,
            Event::Started(Ok(())),
            Event::Started(Err(Retryable(true))),
            Event::Started(Err(Retryable(false))),
            Event::Taken(true),
            Event::Taken(false),
            Event::Ended(Ended::Done),
            Event::Ended(Ended::Retry),
            Event::Ended(Ended::Failed),
            Event::Ended(Ended::LinkLost),
            Event::Due,
            Event::Stop,
        ];
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..20_000 {
            let mut session = Session::NEW;
            let mut running = false;
            for _ in 0..40 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let event = events[usize::try_from(seed % 12).unwrap()];
                for action in step(&mut session, event, 0) {
                    match action {
                        Action::Prompt => {
                            assert!(!running);
                            running = true;
                        }
                        Action::Finish | Action::FinishFailed | Action::StopLink => running = false,
                        Action::Requeue { .. } => running = false,
                        _ => {}
                    }
                }
                assert_eq!(running, session.phase == Phase::Running);
            }
        }
    }
}
