//! Which client is asked: a question's session ─► the client that opened its door ─► the answer.
//!
//! 1. Only who was asked may answer.
//! 2. A question taken back keeps its place until its client says that it is over: what a client
//!    shows at a time is bounded, however fast a session asks and leaves.

use super::server::Sender;
use super::wire::{FromGateway, encode};
use crate::asks::{Answer, Approver, Question};
use crate::usage::Notice;
use model::SessionId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Questions of one client that wait for an answer, also those taken back of which it has not said
/// that it no longer shows them: each is a thread there.
const QUESTIONS_MAX: usize = 64;

type Waiting = Box<dyn FnOnce(Answer) + Send>;

#[derive(Default)]
struct Routes {
    /// Which client a session belongs to.
    sessions: HashMap<SessionId, (u64, Sender)>,
    /// Questions that their client has not answered.
    questions: HashMap<u64, Asked>,
    next: u64,
}

/// A question at a client.
struct Asked {
    client: u64,
    to: Sender,
    /// The question's own name.
    id: String,
    /// Nobody, when it was taken back.
    waiting: Option<Waiting>,
}

/// Carries questions and notices to the client whose session they are about.
#[derive(Default)]
pub struct Approvals(Mutex<Routes>);

impl Approvals {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the client of the notice's session; without one there is nobody to tell.
    pub fn notice(&self, notice: Notice) {
        let to = self.lock().sessions.get(&notice.session).map(|(_, to)| to.clone());
        if let (Some(to), Ok(frame)) = (to, encode(&FromGateway::Notice { notice })) {
            // A client that does not read is told nothing more.
            let _ = to.try_send(frame);
        }
    }

    /// From now on people are asked about this session at this client.
    pub(super) fn came(&self, session: SessionId, client: u64, to: Sender) {
        self.lock().sessions.insert(session, (client, to));
    }

    /// What a client says to a question; only who was asked may answer.
    pub(super) fn answered(&self, client: u64, ask: u64, answer: Answer) {
        let mut routes = self.lock();
        let own = routes.questions.get(&ask).is_some_and(|asked| asked.client == client);
        let asked = if own { routes.questions.remove(&ask) } else { None };
        drop(routes);
        if let Some(waiting) = asked.and_then(|asked| asked.waiting) {
            waiting(answer);
        }
    }

    /// Forgets a client; what it was asked counts as not answered.
    pub(super) fn left(&self, client: u64) {
        let mut routes = self.lock();
        routes.sessions.retain(|_, (who, _)| *who != client);
        let gone: Vec<u64> = routes
            .questions
            .iter()
            .filter(|(_, asked)| asked.client == client)
            .map(|(n, _)| *n)
            .collect();
        let unanswered: Vec<_> = gone.iter().filter_map(|n| routes.questions.remove(n)).collect();
        drop(routes);
        drop(unanswered);
    }
}

impl Approver for Approvals {
    fn ask(&self, question: Question, answer: Waiting) {
        let mut routes = self.lock();
        let Some((client, to)) = routes.sessions.get(&question.session).cloned() else { return };
        if routes.questions.values().filter(|a| a.client == client).count() >= QUESTIONS_MAX {
            return;
        }
        let ask = routes.next;
        routes.next += 1;
        let id = question.id.clone();
        let Ok(frame) = encode(&FromGateway::Ask { ask, question }) else { return };
        if to.try_send(frame).is_ok() {
            routes.questions.insert(ask, Asked { client, to, id, waiting: Some(answer) });
        }
    }

    fn withdraw(&self, id: &str) {
        let mut routes = self.lock();
        let found = routes.questions.iter_mut().find(|(_, asked)| asked.id == id);
        let Some((ask, asked)) = found else { return };
        let frame = encode(&FromGateway::Withdraw { ask: *ask });
        let waiting = asked.waiting.take();
        if let Ok(frame) = frame {
            // A client that does not read is told nothing more.
            let _ = asked.to.try_send(frame);
        }
        drop(routes);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::decode;
    use std::time::Duration;
    use tokio::sync::mpsc::{Receiver, channel};

    fn question(n: usize) -> Question {
        Question {
            id: format!("q{n}"),
            session: SessionId::parse("s1").expect("an id"),
            agent: model::AgentName::parse("a").expect("a name"),
            rule: "r".into(),
            by: "owner".into(),
            timeout: Duration::from_secs(1),
            summary: "GET http://x/".into(),
            shown_sha256: model::Sha256Hex(String::new()),
        }
    }

    fn next(from: &mut Receiver<Vec<u8>>) -> Option<FromGateway> {
        from.try_recv().ok().map(|frame| decode(&frame[4..]).expect("a message"))
    }

    #[test]
    fn a_question_taken_back_keeps_its_place_until_its_client_is_done_with_it() {
        let (approvals, (to, mut from)) = (Approvals::default(), channel(4 * QUESTIONS_MAX));
        approvals.came(question(0).session, 1, to);
        for n in 0..QUESTIONS_MAX {
            approvals.ask(question(n), Box::new(|_| panic!("nobody waits for it")));
            assert!(matches!(next(&mut from), Some(FromGateway::Ask { .. })));
            approvals.withdraw(&format!("q{n}"));
            let taken_back = next(&mut from);
            assert!(matches!(taken_back, Some(FromGateway::Withdraw { ask }) if ask == n as u64));
        }
        let asked = |n| {
            approvals.ask(question(n), Box::new(|_| {}));
        };
        asked(100);
        assert!(next(&mut from).is_none(), "there is no place");
        approvals.answered(2, 0, Answer::None);
        asked(101);
        assert!(next(&mut from).is_none(), "another client has no say");
        approvals.answered(1, 0, Answer::Allow { by: "owner".into() });
        asked(102);
        assert!(matches!(next(&mut from), Some(FromGateway::Ask { .. })));
    }
}
