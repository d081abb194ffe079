//! Writes a door's records: each carries the session, agent and current turn.

use crate::counters::Counters;
use model::{
    AgentName, Body, Durability, Record, RecordError, RecordSink, RequestLine, SessionId, TurnId,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The turn a session is in, shared between whoever runs turns and the door.
#[derive(Clone, Default)]
pub struct TurnCell(Arc<Mutex<Option<TurnId>>>);

impl TurnCell {
    /// Says which turn runs from now on.
    pub fn set(&self, turn: Option<TurnId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    /// The turn that runs now.
    #[must_use]
    pub fn get(&self) -> Option<TurnId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The identity of one door, and where its records go.
pub(crate) struct Scribe {
    pub(crate) sink: Arc<dyn RecordSink>,
    pub(crate) clock: Clock,
    pub(crate) session: SessionId,
    pub(crate) agent: AgentName,
    pub(crate) turn: TurnCell,
    pub(crate) counters: Arc<Counters>,
}

impl Scribe {
    fn record(&self, turn: Option<TurnId>, body: Body) -> Record {
        Record {
            time_ms: (self.clock)(),
            session: Some(self.session.clone()),
            agent: Some(self.agent.clone()),
            turn,
            body,
        }
    }

    /// Submits and waits until the record counts as written.
    pub(crate) async fn write(
        &self,
        body: Body,
        durability: Durability,
    ) -> Result<(), RecordError> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let record = self.record(self.turn.get(), body);
        self.sink.submit(record, durability, Box::new(move |result| drop(tx.send(result))));
        match rx.await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(RecordError::Gone { cause: "no answer".into() }),
        }
    }

    /// Submits without waiting, under the turn it began in; for results, which follow an effect
    /// that already happened.
    pub(crate) fn note(&self, turn: Option<TurnId>, body: Body) {
        self.sink.submit(self.record(turn, body), Durability::Ordered, Box::new(|_| ()));
    }

    /// Records a refusal. Waits, so that a flood of refusals is as slow as the log. That it could
    /// not be written changes nothing: a refusal has no effect to hold back.
    pub(crate) async fn refused(&self, target: String, rule: &str, reason: String) {
        self.refused_request(target, rule, reason, None).await;
    }

    /// The same for a request that was read.
    pub(crate) async fn refused_request(
        &self,
        target: String,
        rule: &str,
        reason: String,
        request: Option<RequestLine>,
    ) {
        Counters::add(&self.counters.refused, 1);
        let body = Body::EgressRefused { target, rule: rule.to_owned(), reason, request };
        let _ = self.write(body, Durability::Ordered).await;
    }
}
