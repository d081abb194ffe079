//! The engine: the front door of the orchestrator.

use crate::port::{AgentHost, Listener, Progress, World};
use crate::worker::{self, Wake, WorkerHandle};
use model::{
    AgentName, Body, Direction, Durability, MessageId, Record, RecordError, RecordSink,
    RecordSinkExt, SaltedDigest, SessionId, Sha256Hex, TurnId,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{
    HistoryItem, MessageState, NewMessage, NewSession, Received, Store, StoreError, StoredMessage,
    StoredReply,
};

/// A message as a channel hands it over.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The channel's name.
    pub channel: String,
    /// The conversation on it.
    pub chat: String,
    /// The platform's id of the message, for deduplication.
    pub platform_id: String,
    /// Who wrote it.
    pub user: String,
    /// What was written.
    pub text: String,
    /// Which agent it is for.
    pub agent: AgentName,
}

/// What became of a message.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// Its id.
    pub message: MessageId,
    /// Its session.
    pub session: SessionId,
    /// It had been taken before; nothing was done again.
    pub duplicate: bool,
}

/// Why a message was not taken. It was not acknowledged; the channel should offer it again.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log refused; nothing goes on without a record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What engine and workers share.
pub(crate) struct Shared {
    store: Mutex<Store>,
    pub(crate) sink: Arc<dyn RecordSink>,
    pub(crate) host: Arc<dyn AgentHost>,
    pub(crate) world: Arc<dyn World>,
    listener: Listener,
}

impl Shared {
    /// The store. A panic elsewhere leaves no transaction open, so a poisoned lock is usable.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, session: &SessionId, progress: Progress) {
        (self.listener)(session, progress);
    }

    pub(crate) fn message_id(&self) -> MessageId {
        MessageId::mint(self.world.now_ms(), self.world.random())
    }

    /// Hands one record over without waiting. Only for what is followed, before any effect, by a
    /// durable record through the same sink: records keep their order, so that one fails if this
    /// one could not be written, and nothing happens.
    pub(crate) fn record_ahead(&self, about: &About<'_>, body: Body) {
        let record = self.about(about, body);
        self.sink.submit(record, Durability::Ordered, Box::new(drop));
    }

    fn about(&self, about: &About<'_>, body: Body) -> Record {
        Record {
            time_ms: self.world.now_ms(),
            session: Some(about.session.clone()),
            agent: Some(about.agent.clone()),
            turn: about.turn.cloned(),
            body,
        }
    }

    /// Writes one record that no turn is behind, durably.
    fn record_of(
        &self,
        session: Option<&SessionId>,
        agent: &AgentName,
        body: Body,
    ) -> Result<u64, RecordError> {
        let time_ms = self.world.now_ms();
        let (session, agent) = (session.cloned(), Some(agent.clone()));
        let record = Record { time_ms, session, agent, turn: None, body };
        self.sink.append(record, Durability::Durable)
    }

    /// Writes one record about a session and waits as its class demands.
    pub(crate) fn record(
        &self,
        about: &About<'_>,
        body: Body,
        durability: Durability,
    ) -> Result<u64, RecordError> {
        self.sink.append(self.about(about, body), durability)
    }
}

/// What a record is about.
pub(crate) struct About<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) agent: &'a AgentName,
    pub(crate) turn: Option<&'a TurnId>,
}

/// `SHA-256(salt ‖ text)` with the text's length.
pub(crate) fn digest(salt: &[u8], text: &str) -> SaltedDigest {
    let bytes = [salt, text.as_bytes()].concat();
    let hash = audit::merkle::sha256(&bytes);
    let hex = hash.iter().map(|b| format!("{b:02x}")).collect();
    SaltedDigest { sha256: Sha256Hex(hex), bytes: text.len() as u64 }
}

/// Takes messages, runs sessions, hands out replies.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Mutex<HashMap<SessionId, WorkerHandle>>,
}

impl Engine {
    /// Puts an engine together. Nothing runs until a message or [`Engine::resume`] comes.
    #[must_use]
    pub fn new(
        store: Store,
        sink: Arc<dyn RecordSink>,
        host: Arc<dyn AgentHost>,
        world: Arc<dyn World>,
        listener: Listener,
    ) -> Self {
        let shared = Arc::new(Shared { store: Mutex::new(store), sink, host, world, listener });
        Self { shared, workers: Mutex::new(HashMap::new()) }
    }

    /// The open session of an agent in a chat, made when there is none; `true` when it was made.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn session(
        &self,
        agent: &AgentName,
        channel: &str,
        chat: &str,
    ) -> Result<(SessionId, bool), EngineError> {
        let now_ms = self.shared.world.now_ms();
        let id = SessionId::mint(now_ms, self.shared.world.random());
        let new = NewSession {
            workspace: id.to_string(),
            id,
            agent: agent.clone(),
            channel: channel.to_owned(),
            chat: chat.to_owned(),
            now_ms,
        };
        let (session, created) = self.shared.store().open_session(&new)?;
        Ok((session.id, created))
    }

    /// Takes a message: committed to the inbox and on record when this returns.
    ///
    /// # Errors
    /// When it cannot be committed or recorded; it then counts as not received.
    pub fn submit(&self, incoming: &Incoming) -> Result<Submitted, EngineError> {
        let (session, created) =
            self.session(&incoming.agent, &incoming.channel, &incoming.chat)?;
        let shared = &self.shared;
        let salt = shared.world.salt();
        let message = shared.message_id();
        let new = NewMessage {
            id: message.clone(),
            channel: incoming.channel.clone(),
            platform_id: incoming.platform_id.clone(),
            chat: incoming.chat.clone(),
            user: incoming.user.clone(),
            text: incoming.text.clone(),
            salt: salt.to_vec(),
            received_ms: shared.world.now_ms(),
            session: Some(session.clone()),
        };
        let received = shared.store().receive(&new)?;
        if let Received::Duplicate(message) = received {
            return Ok(Submitted { message, session, duplicate: true });
        }
        let about = About { session: &session, agent: &incoming.agent, turn: None };
        let body = Body::Message {
            direction: Direction::In,
            message: message.clone(),
            channel: incoming.channel.clone(),
            chat: incoming.chat.clone(),
            digest: digest(&salt, &incoming.text),
        };
        shared.record(&about, body, Durability::Ordered)?;
        self.wake(&session, &incoming.agent, !created);
        Ok(Submitted { message, session, duplicate: false })
    }

    /// Takes up what a session has waiting, e.g. after a restart.
    pub fn resume(&self, session: &SessionId, agent: &AgentName) {
        self.wake(session, agent, true);
    }

    /// Prepares a session's sandbox before its first message. Does nothing when it is warm.
    pub fn warm(&self, session: &SessionId, agent: &AgentName, resumed: bool) {
        self.wake(session, agent, resumed);
    }

    fn wake(&self, session: &SessionId, agent: &AgentName, resumed: bool) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = workers.entry(session.clone()).or_insert_with(|| {
            let shared = Arc::clone(&self.shared);
            worker::start(shared, session.clone(), agent.clone(), resumed)
        });
        worker.send(Wake::Queued);
    }

    /// Takes back the turns of processes that are gone. Their messages are queued again.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn recover(&self) -> Result<usize, EngineError> {
        let now_ms = self.shared.world.now_ms();
        Ok(self.shared.store().recover(now_ms)?.len())
    }

    /// Replies of a channel that were committed but perhaps never seen.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn undelivered(&self, channel: &str) -> Result<Vec<StoredReply>, EngineError> {
        Ok(self.shared.store().pending_replies(channel)?)
    }

    /// Marks such a reply as shown.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn delivered(&self, reply: &MessageId) -> Result<(), EngineError> {
        Ok(self.shared.store().mark_sent(reply)?)
    }

    /// The exchanges of a session, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn history(&self, session: &SessionId) -> Result<Vec<HistoryItem>, EngineError> {
        Ok(self.shared.store().history(session)?)
    }

    /// The unanswered messages of a channel for an agent, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn waiting(
        &self,
        channel: &str,
        agent: &AgentName,
    ) -> Result<Vec<StoredMessage>, EngineError> {
        Ok(self.shared.store().waiting(channel, agent)?)
    }

    /// Takes a message back, on record: it is never worked on again, and its turn, if one runs, is
    /// stopped. `false` when it was over already.
    ///
    /// # Errors
    /// When the log or the store refuses; the message then stays as it is.
    pub fn withdraw(
        &self,
        message: &StoredMessage,
        agent: &AgentName,
        reason: &str,
    ) -> Result<bool, EngineError> {
        let over = |s| !matches!(s, MessageState::Queued | MessageState::Running);
        let mut store = self.shared.store();
        if over(store.message(&message.id)?.state) {
            return Ok(false);
        }
        let body =
            Body::MessageWithdrawn { message: message.id.clone(), reason: reason.to_owned() };
        // The store is held meanwhile, so that its turn neither begins nor ends here in between.
        self.shared.record_of(message.session.as_ref(), agent, body)?;
        let before = store.withdraw(&message.id)?;
        drop(store);
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = message.session.as_ref().and_then(|s| workers.get(s)) {
            if before == MessageState::Running {
                worker.cancel();
            }
            worker.send(Wake::Withdrawn);
        }
        Ok(!over(before))
    }

    /// A message by its id.
    ///
    /// # Errors
    /// When there is none, or the store cannot be read.
    pub fn message(&self, id: &MessageId) -> Result<StoredMessage, EngineError> {
        Ok(self.shared.store().message(id)?)
    }

    /// Stops the running turn of a session, if there is one.
    pub fn cancel(&self, session: &SessionId) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.get(session) {
            worker.cancel();
        }
    }

    /// Ends a session's sandbox and archives the session; the next message opens a fresh one.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn archive(&self, session: &SessionId) -> Result<(), EngineError> {
        let worker = self.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
        if let Some(worker) = worker {
            worker.stop("archived", false);
        }
        let now_ms = self.shared.world.now_ms();
        Ok(self.shared.store().archive_session(session, now_ms)?)
    }

    /// Ends every sandbox, in order and on record.
    pub fn shutdown(&self, reason: &str) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<WorkerHandle> = workers.drain().map(|(_, worker)| worker).collect();
        drop(workers);
        for worker in all {
            worker.stop(reason, true);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown("the engine ended");
    }
}
