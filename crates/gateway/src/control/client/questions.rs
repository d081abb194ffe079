//! Questions on their way to a human, and their being taken back.

use super::Shared;
use crate::asks::{Answer, Question};
use crate::control::link::Link;
use crate::control::wire::ToGateway;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Says whether a question was taken back: who asked has left or waited long enough, its session
/// ended, or the gateway is gone.
#[derive(Debug, Clone, Default)]
pub struct Withdrawn(Arc<AtomicBool>);

impl Withdrawn {
    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes it back.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    /// Puts a question to the human, on a thread of its own.
    pub(super) fn put(self: &Arc<Self>, link: &Arc<Link>, ask: u64, question: Question) {
        let withdrawn = Withdrawn::default();
        self.lock().asked.insert(ask, withdrawn.clone());
        let (shared, to) = (Arc::clone(self), Arc::clone(link));
        let asked = thread::Builder::new().name("gateway-ask".into()).spawn(move || {
            let answer = shared.settings.watcher.ask(question, &withdrawn);
            let mut state = shared.lock();
            // One taken back is not there any more; the next gateway may use its number again.
            if !withdrawn.is_set() {
                state.asked.remove(&ask);
            }
            drop(state);
            // A gateway that is gone asks no more.
            drop(to.send(&ToGateway::Answer { ask, answer }, None));
        });
        if asked.is_err() {
            self.lock().asked.remove(&ask);
            // Without a thread nobody is asked. A gateway that is gone need not know.
            drop(link.send(&ToGateway::Answer { ask, answer: Answer::None }, None));
        }
    }

    /// The gateway says that nobody waits for it any more.
    pub(super) fn take_back(&self, ask: u64) {
        let mut state = self.lock();
        if let Some(withdrawn) = state.asked.remove(&ask) {
            withdrawn.set();
        }
    }
}
