//! The outbox: replies, committed with their turn, delivered with an idempotency key.

use crate::error::StoreError;
use crate::open::Store;
use crate::rows::{Id, from_sql, to_sql};
use model::{MessageId, SessionId, TurnId};
use rusqlite::{OptionalExtension, Row, Transaction, params};

/// A reply to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReply {
    /// Minted by the caller; also the idempotency key.
    pub id: MessageId,
    /// What is said.
    pub text: String,
    /// Salt of the digest that stands in the log.
    pub salt: Vec<u8>,
}

/// A reply as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReply {
    /// Its id.
    pub id: MessageId,
    /// Its session.
    pub session: SessionId,
    /// The turn that made it.
    pub turn: TurnId,
    /// Where it goes.
    pub channel: String,
    /// To which conversation.
    pub chat: String,
    /// What is said.
    pub text: String,
    /// Salt of its digest.
    pub salt: Vec<u8>,
    /// Given to platforms that can deduplicate.
    pub idempotency_key: String,
    /// Deliveries begun so far. Above zero the platform may have it already: on one that cannot
    /// deduplicate, mark the text as a possible repetition.
    pub attempts: u32,
    /// Unix milliseconds.
    pub created_ms: u64,
}

const COLUMNS: &str = "id, session, turn, channel, chat, text, salt, idempotency_key, attempts, \
                       created_ms";

fn reply(row: &Row<'_>) -> rusqlite::Result<StoredReply> {
    Ok(StoredReply {
        id: row.get::<_, Id<MessageId>>(0)?.0,
        session: row.get::<_, Id<SessionId>>(1)?.0,
        turn: row.get::<_, Id<TurnId>>(2)?.0,
        channel: row.get(3)?,
        chat: row.get(4)?,
        text: row.get(5)?,
        salt: row.get(6)?,
        idempotency_key: row.get(7)?,
        attempts: row.get(8)?,
        created_ms: from_sql(row.get(9)?),
    })
}

/// Adds a reply of a turn, addressed to the chat of its session.
pub(crate) fn insert(
    tx: &Transaction<'_>,
    turn: &TurnId,
    new: &NewReply,
    now_ms: u64,
) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO outbox (id, session, turn, channel, chat, text, salt, created_ms, state,
                             idempotency_key)
         SELECT ?1, s.id, t.id, s.channel, s.chat, ?3, ?4, ?5, 'pending', ?1
         FROM turns AS t JOIN sessions AS s ON s.id = t.session WHERE t.id = ?2",
        params![new.id.as_str(), turn.as_str(), new.text, new.salt, to_sql(now_ms)],
    )?;
    Ok(())
}

impl Store {
    /// Replies of a channel that are not delivered, oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn pending_replies(&self, channel: &str) -> Result<Vec<StoredReply>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM outbox WHERE channel = ?1 AND state = 'pending' ORDER BY seq"
        );
        self.read(|c| c.prepare(&sql)?.query_map([channel], reply)?.collect())
    }

    /// Notes that a delivery begins, before the platform is called.
    ///
    /// # Errors
    /// If the reply does not exist or is not pending.
    pub fn mark_attempt(&mut self, id: &MessageId) -> Result<(), StoreError> {
        self.change_reply(id, "be delivered", "pending", 1, None)
    }

    /// The platform has it.
    ///
    /// # Errors
    /// If the reply does not exist or is not pending.
    pub fn mark_sent(&mut self, id: &MessageId) -> Result<(), StoreError> {
        self.change_reply(id, "be marked as sent", "sent", 0, None)
    }

    /// The platform will never take it; `error` says why, for people.
    ///
    /// # Errors
    /// If the reply does not exist or is not pending.
    pub fn mark_failed(&mut self, id: &MessageId, error: &str) -> Result<(), StoreError> {
        self.change_reply(id, "be marked as failed", "failed", 0, Some(error))
    }

    fn change_reply(
        &mut self,
        id: &MessageId,
        action: &'static str,
        state: &'static str,
        attempts: u32,
        error: Option<&str>,
    ) -> Result<(), StoreError> {
        self.write(|tx| {
            let changed = tx.execute(
                "UPDATE outbox SET state = ?2, attempts = attempts + ?3, error = ?4
                 WHERE id = ?1 AND state = 'pending'",
                params![id.as_str(), state, attempts, error],
            )?;
            if changed == 1 {
                return Ok(());
            }
            let state: Option<String> = tx
                .query_row("SELECT state FROM outbox WHERE id = ?1", [id.as_str()], |r| r.get(0))
                .optional()?;
            let (what, id) = ("reply", id.to_string());
            Err(match state {
                Some(state) => StoreError::WrongState { what, id, state, action },
                None => StoreError::Missing { what, id },
            }
            .into())
        })
    }
}
