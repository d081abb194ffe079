//! A sandbox that is to stand still: asked for, under way, reached.
//!
//! Pipeline: `ask` ─► frozen, gathered ─► `turn` until the kernel says that all stand ─► answer.
//!
//! 1. It answers each request once, and waits for nothing. The client asks one thing at a time.
//! 2. What cannot be stopped in time runs on.

use super::watchdog;
use crate::cgroup::Group;
use crate::error::PauseError;
use crate::wire::{Answer, BoxId};
use std::io;
use std::time::{Duration, Instant};

/// Standing still takes microseconds a process; one in the middle of a slow disk's call takes as
/// long as that.
const TIME: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

const REMEDY: &str = "stop the session instead: it goes on from its record when it is next written \
                      to";

/// Whether it stands.
#[derive(Debug, Default)]
pub(super) enum Still {
    /// It runs, or stands and has said so.
    #[default]
    Settled,
    /// It has been asked to, until then.
    Stopping { until: Instant, next: Instant },
}

impl Still {
    /// Stops the processes below `init`, or lets them run on; the answer, if there is one already.
    pub(super) fn ask(
        &mut self,
        id: BoxId,
        frozen: bool,
        group: Option<&mut Group>,
        init: i32,
    ) -> Option<Answer> {
        let Some(group) = group else {
            if !frozen {
                // It has never stood still.
                return Some(answer(id, None));
            }
            let cause = "no control group holds this sandbox, so it cannot stand still";
            return Some(answer(id, Some(PauseError::new(cause, REMEDY))));
        };
        *self = Self::Settled;
        if let Err(e) = group.freeze(frozen, || watchdog::processes(init)) {
            // What was half done is undone; where there is no such file there is nothing to undo.
            let _ = group.freeze(false, Vec::new);
            return Some(answer(id, Some(failed(&e))));
        }
        if !frozen {
            return Some(answer(id, None));
        }
        let now = Instant::now();
        *self = Self::Stopping { until: now + TIME, next: now };
        self.turn(id, Some(group), now)
    }

    /// When [`Still::turn`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Settled => None,
            Self::Stopping { next, .. } => Some(*next),
        }
    }

    /// Looks whether it stands; the answer once that is known.
    pub(super) fn turn(
        &mut self,
        id: BoxId,
        group: Option<&mut Group>,
        now: Instant,
    ) -> Option<Answer> {
        let Self::Stopping { until, next } = self else { return None };
        let group = group.filter(|_| *next <= now)?;
        if group.is_frozen() {
            *self = Self::Settled;
            return Some(answer(id, None));
        }
        if now < *until {
            *next = now + LOOK;
            return None;
        }
        *self = Self::Settled;
        let _ = group.freeze(false, Vec::new);
        let cause = format!("it does not stand still within {} s", TIME.as_secs());
        Some(answer(id, Some(PauseError::new(cause, REMEDY))))
    }
}

fn answer(id: BoxId, error: Option<PauseError>) -> Answer {
    Answer::Frozen { id, error }
}

fn failed(e: &io::Error) -> PauseError {
    let cause = match e.kind() {
        io::ErrorKind::Unsupported => {
            "this host has no cgroup v2 in which this sandbox could stand still".to_owned()
        }
        _ => format!("its control group cannot be stopped: {e}"),
    };
    PauseError::new(cause, REMEDY)
}
