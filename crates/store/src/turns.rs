//! Turns: one message, worked on by one process, ended in one transaction.

use crate::error::StoreError;
use crate::inbox::wrong_message;
use crate::open::{Failure, Store};
use crate::outbox::{self, NewReply};
use crate::owner::Owner;
use crate::rows::{Id, from_sql, to_sql};
use model::{MessageId, SessionId, TurnId};
use rusqlite::{OptionalExtension, Transaction, params};

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The turn.
    pub turn: TurnId,
    /// In words, as it stands in the log.
    pub outcome: String,
    /// Tokens read by the model.
    pub input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
    /// What to tell the person, if anything: the reply, or why there is none.
    pub reply: Option<NewReply>,
    /// Unix milliseconds.
    pub now_ms: u64,
}

/// What becomes of the message of a failed turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It has failed.
    No,
    /// It is queued again, not to be started before this time (Unix milliseconds).
    At(u64),
}

/// A turn whose process died; its message is queued again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The lost turn.
    pub turn: TurnId,
    /// Its session.
    pub session: SessionId,
    /// Its message.
    pub message: MessageId,
    /// Attempts that failed or were lost so far, this one included.
    pub attempts: u32,
}

/// One exchange of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryItem {
    /// The turn.
    pub turn: TurnId,
    /// Its message.
    pub message: MessageId,
    /// Who wrote it.
    pub user: String,
    /// What was written.
    pub text: String,
    /// `running`, `done`, `failed` or `lost`.
    pub state: String,
    /// In words, once it ended.
    pub outcome: Option<String>,
    /// What was answered.
    pub reply: Option<String>,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Unix milliseconds.
    pub finished_ms: Option<u64>,
}

impl Store {
    /// Begins a turn on a queued message: message and turn become `running`, owned by this
    /// process.
    ///
    /// It does not wait for the disk: a power cut may undo it, and then the message is queued, as
    /// it was committed, and is answered again like that of a lost turn; [`Store::recover`] marks
    /// it.
    ///
    /// # Errors
    /// If the message is not queued or not routed, or its session has a running turn.
    pub fn start_turn(
        &mut self,
        turn: &TurnId,
        message: &MessageId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let owner = self.owner.clone();
        self.write_ahead(|tx| {
            let session = tx
                .query_row(
                    "SELECT session FROM inbox
                     WHERE id = ?1 AND state = 'queued' AND session IS NOT NULL",
                    [message.as_str()],
                    |row| row.get::<_, Id<SessionId>>(0),
                )
                .optional()?;
            let Some(Id(session)) = session else {
                return Err(wrong_message(tx, message, "begin a turn")?);
            };
            let busy =
                "SELECT EXISTS (SELECT 1 FROM turns WHERE session = ?1 AND state = 'running')";
            if tx.query_row(busy, [session.as_str()], |row| row.get(0))? {
                let state = "in the middle of another turn".to_owned();
                let (what, id, action) = ("session", session.to_string(), "begin a turn");
                return Err(StoreError::WrongState { what, id, state, action }.into());
            }
            tx.execute("UPDATE inbox SET state = 'running' WHERE id = ?1", [message.as_str()])?;
            tx.execute(
                "UPDATE sessions SET last_active_ms = max(last_active_ms, ?2) WHERE id = ?1",
                params![session.as_str(), to_sql(now_ms)],
            )?;
            tx.execute(
                "INSERT INTO turns (id, session, message, state, started_ms,
                                    owner_boot, owner_pid, owner_start)
                 VALUES (?1, ?2, ?3, 'running', ?4, ?5, ?6, ?7)",
                params![
                    turn.as_str(),
                    session.as_str(),
                    message.as_str(),
                    to_sql(now_ms),
                    owner.boot,
                    owner.pid,
                    to_sql(owner.start),
                ],
            )?;
            Ok(())
        })
    }

    /// Ends a turn well: turn and message become `done` and the reply enters the outbox, all or
    /// nothing.
    ///
    /// # Errors
    /// If the turn is not running.
    pub fn finish_turn_with_reply(&mut self, finish: &Finish) -> Result<(), StoreError> {
        self.write(|tx| {
            let message = end_turn(tx, finish, "done")?;
            tx.execute("UPDATE inbox SET state = 'done' WHERE id = ?1", [message.as_str()])?;
            Ok(())
        })
    }

    /// Ends a turn that a person stopped: its message is `cancelled` and never worked on again.
    ///
    /// # Errors
    /// If the turn is not running.
    pub fn cancel_turn(&mut self, finish: &Finish) -> Result<(), StoreError> {
        self.write(|tx| {
            let message = end_turn(tx, finish, "done")?;
            tx.execute("UPDATE inbox SET state = 'cancelled' WHERE id = ?1", [message.as_str()])?;
            Ok(())
        })
    }

    /// Ends a turn badly; `retry` says whether its message is tried again (never, when it was taken
    /// back meanwhile). A reply, if any, tells the person.
    ///
    /// # Errors
    /// If the turn is not running.
    pub fn fail_turn(&mut self, finish: &Finish, retry: Retry) -> Result<(), StoreError> {
        self.write(|tx| {
            let message = end_turn(tx, finish, "failed")?;
            let (state, not_before) = match retry {
                Retry::No => ("failed", 0),
                Retry::At(ms) => ("queued", to_sql(ms)),
            };
            tx.execute(
                "UPDATE inbox SET state = ?2, attempts = attempts + 1, not_before_ms = ?3
                 WHERE id = ?1 AND state <> 'cancelled'",
                params![message.as_str(), state, not_before],
            )?;
            Ok(())
        })
    }

    /// Takes back the running turns of processes that are gone: each turn is `lost`, its message
    /// queued again. Turns of living processes are left alone.
    ///
    /// A message at the head of its queue since an earlier boot counts as attempted: a power cut
    /// may have undone the beginning of its turn, but not what that turn did.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn recover(&mut self, now_ms: u64) -> Result<Vec<Recovered>, StoreError> {
        let boot = self.owner.boot.clone();
        self.write(|tx| {
            tx.execute(
                "UPDATE inbox SET attempts = 1
                 WHERE attempts = 0 AND state = 'queued' AND boot <> ?1
                   AND seq = (SELECT min(seq) FROM inbox AS i
                              WHERE i.session = inbox.session AND i.state = 'queued')",
                [&boot],
            )?;
            let running: Vec<(TurnId, SessionId, MessageId, Owner)> = tx
                .prepare(
                    "SELECT id, session, message, owner_boot, owner_pid, owner_start
                     FROM turns WHERE state = 'running' ORDER BY started_ms",
                )?
                .query_map([], |row| {
                    let start = from_sql(row.get(5)?);
                    let owner = Owner { boot: row.get(3)?, pid: row.get(4)?, start };
                    Ok((
                        row.get::<_, Id<TurnId>>(0)?.0,
                        row.get::<_, Id<SessionId>>(1)?.0,
                        row.get::<_, Id<MessageId>>(2)?.0,
                        owner,
                    ))
                })?
                .collect::<rusqlite::Result<_>>()?;
            let mut all = Vec::new();
            for (turn, session, message, owner) in running {
                if owner.is_alive() {
                    continue;
                }
                tx.execute(
                    "UPDATE turns SET state = 'lost', finished_ms = ?2,
                            outcome = 'its process ended' WHERE id = ?1",
                    params![turn.as_str(), to_sql(now_ms)],
                )?;
                let attempts: rusqlite::Result<u32> = tx.query_row(
                    "UPDATE inbox SET state = 'queued', attempts = attempts + 1
                     WHERE id = ?1 AND state = 'running' RETURNING attempts",
                    [message.as_str()],
                    |row| row.get(0),
                );
                // One that was taken back is lost with its turn, and stays so.
                if let Some(attempts) = attempts.optional()? {
                    all.push(Recovered { turn, session, message, attempts });
                }
            }
            Ok(all)
        })
    }

    /// The exchanges of a session, oldest first, lost attempts included.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn history(&self, session: &SessionId) -> Result<Vec<HistoryItem>, StoreError> {
        self.read(|c| {
            c.prepare(
                "SELECT t.id, m.id, m.user, m.text, t.state, t.outcome, o.text, t.started_ms,
                        t.finished_ms
                 FROM turns AS t JOIN inbox AS m ON m.id = t.message
                 LEFT JOIN outbox AS o ON o.turn = t.id
                 WHERE t.session = ?1 ORDER BY t.started_ms, t.rowid",
            )?
            .query_map([session.as_str()], |row| {
                Ok(HistoryItem {
                    turn: row.get::<_, Id<TurnId>>(0)?.0,
                    message: row.get::<_, Id<MessageId>>(1)?.0,
                    user: row.get(2)?,
                    text: row.get(3)?,
                    state: row.get(4)?,
                    outcome: row.get(5)?,
                    reply: row.get(6)?,
                    started_ms: from_sql(row.get(7)?),
                    finished_ms: row.get::<_, Option<i64>>(8)?.map(from_sql),
                })
            })?
            .collect()
        })
    }
}

/// Ends a running turn and commits its reply; returns its message.
fn end_turn(
    tx: &Transaction<'_>,
    finish: &Finish,
    state: &'static str,
) -> Result<MessageId, Failure> {
    let turn = finish.turn.as_str();
    let message = tx
        .query_row(
            "UPDATE turns SET state = ?2, finished_ms = ?3, outcome = ?4, input_tokens = ?5,
                    output_tokens = ?6
             WHERE id = ?1 AND state = 'running' RETURNING message",
            params![
                turn,
                state,
                to_sql(finish.now_ms),
                finish.outcome,
                to_sql(finish.input_tokens),
                to_sql(finish.output_tokens),
            ],
            |row| row.get::<_, Id<MessageId>>(0),
        )
        .optional()?;
    let Some(Id(message)) = message else {
        let state: Option<String> = tx
            .query_row("SELECT state FROM turns WHERE id = ?1", [turn], |row| row.get(0))
            .optional()?;
        let (what, id, action) = ("turn", turn.to_owned(), "end");
        return Err(Failure::Store(match state {
            Some(state) => StoreError::WrongState { what, id, state, action },
            None => StoreError::Missing { what, id },
        }));
    };
    if let Some(reply) = &finish.reply {
        outbox::insert(tx, &finish.turn, reply, finish.now_ms)?;
    }
    tx.execute(
        "UPDATE sessions SET last_active_ms = max(last_active_ms, ?2)
         WHERE id = (SELECT session FROM turns WHERE id = ?1)",
        params![turn, to_sql(finish.now_ms)],
    )?;
    Ok(message)
}
