//! Sessions: one conversation of an agent each.

use crate::error::StoreError;
use crate::open::Store;
use crate::rows::{Id, from_sql, to_sql};
use model::{AgentName, SessionId};
use rusqlite::{OptionalExtension, Row, params};

/// What a session is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// The id it gets, should there be none open; minted by the caller.
    pub id: SessionId,
    /// Which agent.
    pub agent: AgentName,
    /// On which channel.
    pub channel: String,
    /// In which conversation.
    pub chat: String,
    /// The name (not path) of the folder that holds its workspace and home.
    pub workspace: String,
    /// Unix milliseconds.
    pub now_ms: u64,
}

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its agent.
    pub agent: AgentName,
    /// Its channel.
    pub channel: String,
    /// Its conversation.
    pub chat: String,
    /// Open, or archived.
    pub open: bool,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub last_active_ms: u64,
    /// The name of its folder.
    pub workspace: String,
}

const COLUMNS: &str = "id, agent, channel, chat, state, created_ms, last_active_ms, workspace";

fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session {
        id: row.get::<_, Id<SessionId>>(0)?.0,
        agent: row.get::<_, Id<AgentName>>(1)?.0,
        channel: row.get(2)?,
        chat: row.get(3)?,
        open: row.get::<_, String>(4)? == "open",
        created_ms: from_sql(row.get(5)?),
        last_active_ms: from_sql(row.get(6)?),
        workspace: row.get(7)?,
    })
}

impl Store {
    /// The open session of an agent in a chat, made if there is none; `true` if it was made.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub fn open_session(&mut self, new: &NewSession) -> Result<(Session, bool), StoreError> {
        self.write(|tx| {
            let found = tx
                .query_row(
                    &format!(
                        "SELECT {COLUMNS} FROM sessions
                         WHERE agent = ?1 AND channel = ?2 AND chat = ?3 AND state = 'open'"
                    ),
                    params![new.agent.as_str(), new.channel, new.chat],
                    session,
                )
                .optional()?;
            if let Some(found) = found {
                return Ok((found, false));
            }
            tx.execute(
                "INSERT INTO sessions (id, agent, channel, chat, state, created_ms,
                                       last_active_ms, workspace)
                 VALUES (?1, ?2, ?3, ?4, 'open', ?5, ?5, ?6)",
                params![
                    new.id.as_str(),
                    new.agent.as_str(),
                    new.channel,
                    new.chat,
                    to_sql(new.now_ms),
                    new.workspace,
                ],
            )?;
            let made = Session {
                id: new.id.clone(),
                agent: new.agent.clone(),
                channel: new.channel.clone(),
                chat: new.chat.clone(),
                open: true,
                created_ms: new.now_ms,
                last_active_ms: new.now_ms,
                workspace: new.workspace.clone(),
            };
            Ok((made, true))
        })
    }

    /// Archives an open session. Its queued messages become unrouted, for the next session.
    ///
    /// # Errors
    /// If it does not exist, is archived already, or a turn is running in it.
    pub fn archive_session(&mut self, id: &SessionId, now_ms: u64) -> Result<(), StoreError> {
        self.write(|tx| {
            let (what, action) = ("session", "be archived");
            let wrong = |state: &str| StoreError::WrongState {
                what,
                id: id.to_string(),
                state: state.to_owned(),
                action,
            };
            let state: Option<String> = tx
                .query_row("SELECT state FROM sessions WHERE id = ?1", [id.as_str()], |r| r.get(0))
                .optional()?;
            match state.as_deref() {
                None => return Err(StoreError::Missing { what, id: id.to_string() }.into()),
                Some("open") => {}
                Some(other) => return Err(wrong(other).into()),
            }
            let running: bool = tx.query_row(
                "SELECT EXISTS (SELECT 1 FROM turns WHERE session = ?1 AND state = 'running')",
                [id.as_str()],
                |row| row.get(0),
            )?;
            if running {
                return Err(wrong("in the middle of a turn").into());
            }
            tx.execute(
                "UPDATE sessions SET state = 'archived', last_active_ms = ?2 WHERE id = ?1",
                params![id.as_str(), to_sql(now_ms)],
            )?;
            tx.execute(
                "UPDATE inbox SET session = NULL WHERE session = ?1 AND state = 'queued'",
                [id.as_str()],
            )?;
            Ok(())
        })
    }

    /// A session by its id.
    ///
    /// # Errors
    /// If there is none, or the store cannot be read.
    pub fn session(&self, id: &SessionId) -> Result<Session, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM sessions WHERE id = ?1");
        let found = self.read(|c| c.query_row(&sql, [id.as_str()], session).optional())?;
        found.ok_or_else(|| StoreError::Missing { what: "session", id: id.to_string() })
    }

    /// All sessions, the most recently active first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn sessions(&self) -> Result<Vec<Session>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM sessions ORDER BY last_active_ms DESC, id DESC");
        self.read(|c| c.prepare(&sql)?.query_map([], session)?.collect())
    }
}
