//! From a reply to the records behind it.
//!
//! ```text
//! message id ─► its records ─► their turns ─► messages those answered ─► everything of those turns
//!                                         └─► how the session was opened, and its sandbox before
//! ```
//!
//! Reading proves nothing: whoever hands a receipt on makes a proof of each record.

use crate::raw::ScanError;
use crate::read::{Filter, Reader, Stored};
use model::{Body, MessageId, Record, SessionId, TurnId};
use std::collections::BTreeSet;
use std::path::Path;

/// The records behind a message, in the order of the log; none when the log does not know it.
///
/// # Errors
/// When the log cannot be read.
pub fn behind(dir: &Path, message: &MessageId) -> Result<Vec<Stored>, ScanError> {
    let mut search = Search { messages: [message.clone()].into(), ..Search::default() };
    // Twice at most: from a reply to its turn and the message it answers, and from that message to
    // the other attempts at it.
    loop {
        let before = search.known();
        for stored in Reader::new(dir, Filter::default()) {
            if let Ok(record) = &stored?.record {
                search.learn(record);
            }
        }
        if search.known() == before {
            break;
        }
    }
    let mut found = Vec::new();
    let mut opening = Opening::default();
    for stored in Reader::new(dir, Filter::default()) {
        let stored = stored?;
        let Ok(record) = &stored.record else { continue };
        if search.of_it(record) {
            found.append(&mut opening.take());
            found.push(stored);
        } else if record.session.is_some() && record.session == search.session {
            opening.see(stored);
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Search {
    messages: BTreeSet<MessageId>,
    turns: BTreeSet<TurnId>,
    session: Option<SessionId>,
}

impl Search {
    fn known(&self) -> (usize, usize) {
        (self.messages.len(), self.turns.len())
    }

    fn learn(&mut self, record: &Record) {
        let named = match &record.body {
            Body::Message { message, .. }
            | Body::MessageWithdrawn { message, .. }
            | Body::TurnStarted { message } => Some(message),
            _ => None,
        };
        let Some(named) = named else { return };
        let turn_known = record.turn.as_ref().is_some_and(|turn| self.turns.contains(turn));
        if !turn_known && !self.messages.contains(named) {
            return;
        }
        self.messages.insert(named.clone());
        self.turns.extend(record.turn.clone());
        self.session = record.session.clone().or(self.session.take());
    }

    fn of_it(&self, record: &Record) -> bool {
        let of_message = match &record.body {
            Body::Message { message, .. } | Body::MessageWithdrawn { message, .. } => {
                self.messages.contains(message)
            }
            _ => false,
        };
        of_message || record.turn.as_ref().is_some_and(|turn| self.turns.contains(turn))
    }
}

/// The last opening of the session, and the last start of its sandbox, before what was found.
#[derive(Default)]
struct Opening {
    opened: Option<Stored>,
    started: Option<Stored>,
}

impl Opening {
    fn see(&mut self, stored: Stored) {
        match stored.record.as_ref().map(|record| &record.body) {
            // The sandbox of before was another.
            Ok(Body::SessionOpened { .. }) => (self.opened, self.started) = (Some(stored), None),
            Ok(Body::SandboxStarted { .. }) => self.started = Some(stored),
            _ => {}
        }
    }

    fn take(&mut self) -> Vec<Stored> {
        let mut all: Vec<Stored> =
            self.opened.take().into_iter().chain(self.started.take()).collect();
        all.sort_by_key(|stored| stored.index);
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_session_s_receipt_has_no_sandbox_of_before() {
        let stored = |index, body| {
            let record = Record { time_ms: 1, session: None, agent: None, turn: None, body };
            Stored { index, bytes: Vec::new(), record: Ok(record) }
        };
        let digest = || model::Sha256Hex("ab".repeat(32));
        let opened = |index| {
            let backend = "native".to_owned();
            let (policy_sha256, grants) = (digest(), Vec::new());
            stored(
                index,
                Body::SessionOpened { backend, policy_sha256, grants, resumed: index > 0 },
            )
        };
        let started = |index| {
            let (plan_sha256, program) = (digest(), "x".to_owned());
            let (walls, limits) = (Vec::new(), Vec::new());
            stored(index, Body::SandboxStarted { plan_sha256, program, walls, limits })
        };
        let mut opening = Opening::default();
        [opened(0), started(1), opened(2)].into_iter().for_each(|one| opening.see(one));
        let taken = |opening: &mut Opening| -> Vec<u64> {
            opening.take().iter().map(|stored| stored.index).collect()
        };
        assert_eq!(taken(&mut opening), [2]);
        opening.see(started(3));
        assert_eq!(taken(&mut opening), [3]);
    }
}
