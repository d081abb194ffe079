//! The inbox: messages, taken once each.

use crate::error::StoreError;
use crate::open::{Failure, Store};
use crate::rows::{Id, from_sql, to_sql};
use model::{MessageId, SessionId};
use rusqlite::{OptionalExtension, Row, params};

/// A message as a channel brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Minted by the caller.
    pub id: MessageId,
    /// The channel's name.
    pub channel: String,
    /// The platform's own id of the message, unique in the channel.
    pub platform_id: String,
    /// The conversation (with its thread, if any).
    pub chat: String,
    /// Who wrote it, as the platform names them.
    pub user: String,
    /// What was written.
    pub text: String,
    /// Salt of the digest that stands in the log.
    pub salt: Vec<u8>,
    /// When it came, Unix milliseconds.
    pub received_ms: u64,
    /// The session it belongs to, if known already; else see [`Store::assign`].
    pub session: Option<SessionId>,
}

/// What became of a received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It is stored and queued; the platform may be told.
    New,
    /// It was stored before, under this id; the platform may be told.
    Duplicate(MessageId),
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// Waits for its turn.
    Queued,
    /// A turn works on it.
    Running,
    /// Answered.
    Done,
    /// Given up.
    Failed,
    /// Taken back before it was answered.
    Cancelled,
}

impl MessageState {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "done" => Self::Done,
            "failed" => Self::Failed,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }
}

/// A message as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// The channel's name.
    pub channel: String,
    /// The platform's own id.
    pub platform_id: String,
    /// The conversation.
    pub chat: String,
    /// Who wrote it.
    pub user: String,
    /// What was written.
    pub text: String,
    /// Salt of its digest.
    pub salt: Vec<u8>,
    /// When it came, Unix milliseconds.
    pub received_ms: u64,
    /// Where it stands.
    pub state: MessageState,
    /// Attempts that failed or were lost so far.
    pub attempts: u32,
    /// Its session, once routed.
    pub session: Option<SessionId>,
}

pub(crate) const COLUMNS: &str = "id, channel, platform_id, chat, user, text, salt, received_ms, state, \
                       attempts, session";

pub(crate) fn message(row: &Row<'_>) -> rusqlite::Result<StoredMessage> {
    let state: String = row.get(8)?;
    let state = MessageState::parse(&state).ok_or_else(|| {
        rusqlite::Error::InvalidColumnType(8, "state".into(), rusqlite::types::Type::Text)
    })?;
    Ok(StoredMessage {
        id: row.get::<_, Id<MessageId>>(0)?.0,
        channel: row.get(1)?,
        platform_id: row.get(2)?,
        chat: row.get(3)?,
        user: row.get(4)?,
        text: row.get(5)?,
        salt: row.get(6)?,
        received_ms: from_sql(row.get(7)?),
        state,
        attempts: row.get(9)?,
        session: row.get::<_, Option<Id<SessionId>>>(10)?.map(|id| id.0),
    })
}

impl Store {
    /// Takes a message in, once. On disk when it returns: only then tell the platform.
    ///
    /// # Errors
    /// If it cannot be stored; then the platform must deliver it again.
    pub fn receive(&mut self, new: &NewMessage) -> Result<Received, StoreError> {
        let boot = self.owner.boot.clone();
        self.write(|tx| {
            let earlier = tx
                .query_row(
                    "SELECT id FROM inbox WHERE channel = ?1 AND platform_id = ?2",
                    params![new.channel, new.platform_id],
                    |row| row.get::<_, Id<MessageId>>(0),
                )
                .optional()?;
            if let Some(Id(earlier)) = earlier {
                return Ok(Received::Duplicate(earlier));
            }
            tx.execute(
                "INSERT INTO chats (channel, chat, first_ms, last_ms) VALUES (?1, ?2, ?3, ?3)
                 ON CONFLICT DO UPDATE SET last_ms = max(last_ms, excluded.last_ms)",
                params![new.channel, new.chat, to_sql(new.received_ms)],
            )?;
            tx.execute(
                "INSERT INTO inbox (id, channel, platform_id, chat, user, text, salt,
                                    received_ms, state, session, boot)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'queued', ?9, ?10)",
                params![
                    new.id.as_str(),
                    new.channel,
                    new.platform_id,
                    new.chat,
                    new.user,
                    new.text,
                    new.salt,
                    to_sql(new.received_ms),
                    new.session.as_ref().map(SessionId::as_str),
                    boot,
                ],
            )?;
            Ok(Received::New)
        })
    }

    /// Routes a queued message to a session.
    ///
    /// # Errors
    /// If the message is not queued or does not exist.
    pub fn assign(&mut self, id: &MessageId, session: &SessionId) -> Result<(), StoreError> {
        self.write(|tx| {
            let changed = tx.execute(
                "UPDATE inbox SET session = ?2 WHERE id = ?1 AND state = 'queued'",
                params![id.as_str(), session.as_str()],
            )?;
            if changed == 1 {
                return Ok(());
            }
            Err(wrong_message(tx, id, "be routed")?)
        })
    }

    /// A message by its id.
    ///
    /// # Errors
    /// If there is none, or the store cannot be read.
    pub fn message(&self, id: &MessageId) -> Result<StoredMessage, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM inbox WHERE id = ?1");
        let found = self.read(|c| c.query_row(&sql, [id.as_str()], message).optional())?;
        found.ok_or_else(|| StoreError::Missing { what: "message", id: id.to_string() })
    }

    /// Queued messages that no session has: taken in just before a crash, or left by an archived
    /// session. Oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn unrouted(&self) -> Result<Vec<StoredMessage>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM inbox WHERE state = 'queued' AND session IS NULL ORDER BY seq"
        );
        self.read(|c| c.prepare(&sql)?.query_map([], message)?.collect())
    }

    /// The next message of a session: the oldest queued one, once its time has come. A younger
    /// message never overtakes one that waits for a retry.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn next_queued(
        &self,
        session: &SessionId,
        now_ms: u64,
    ) -> Result<Option<StoredMessage>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, not_before_ms FROM inbox
             WHERE session = ?1 AND state = 'queued' ORDER BY seq LIMIT 1"
        );
        let first = self.read(|c| {
            c.query_row(&sql, [session.as_str()], |row| Ok((message(row)?, from_sql(row.get(11)?))))
                .optional()
        })?;
        Ok(first.filter(|(_, not_before)| *not_before <= now_ms).map(|(message, _)| message))
    }

    /// Sessions with queued messages, and from when (Unix milliseconds, 0 for at once) the first
    /// of them may run. For the start after a crash and for arming one timer; not for polling.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn sessions_with_queued(&self) -> Result<Vec<(SessionId, u64)>, StoreError> {
        self.read(|c| {
            c.prepare(
                "SELECT session, not_before_ms FROM inbox AS i
                 WHERE state = 'queued' AND session IS NOT NULL
                   AND seq = (SELECT min(seq) FROM inbox
                              WHERE session = i.session AND state = 'queued')
                 ORDER BY seq",
            )?
            .query_map([], |row| Ok((row.get::<_, Id<SessionId>>(0)?.0, from_sql(row.get(1)?))))?
            .collect()
        })
    }
}

/// Why a message could not change: absent, or in another state.
pub(crate) fn wrong_message(
    tx: &rusqlite::Transaction<'_>,
    id: &MessageId,
    action: &'static str,
) -> Result<Failure, Failure> {
    let state: Option<String> = tx
        .query_row("SELECT state FROM inbox WHERE id = ?1", [id.as_str()], |row| row.get(0))
        .optional()?;
    let (what, id) = ("message", id.to_string());
    Ok(Failure::Store(match state {
        Some(state) => StoreError::WrongState { what, id, state, action },
        None => StoreError::Missing { what, id },
    }))
}
