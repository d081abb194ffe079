//! Messages that wait, and taking them back.

use crate::error::StoreError;
use crate::inbox::{COLUMNS, MessageState, StoredMessage, message};
use crate::open::Store;
use crate::rows::Id;
use model::{AgentName, MessageId};
use rusqlite::{OptionalExtension, params};

impl Store {
    /// The unanswered messages of a channel for an agent, oldest first: queued ones, and those that
    /// a turn works on. Those that no session has are everybody's.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn waiting(
        &self,
        channel: &str,
        agent: &AgentName,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM inbox
             WHERE channel = ?1 AND state IN ('queued', 'running')
               AND (session IS NULL
                    OR EXISTS (SELECT 1 FROM sessions AS s
                               WHERE s.id = inbox.session AND s.agent = ?2))
             ORDER BY seq"
        );
        let of = params![channel, agent.as_str()];
        self.read(|c| c.prepare(&sql)?.query_map(of, message)?.collect())
    }

    /// Takes a message back: from now on it is `cancelled`, and no turn begins on it. Returns the
    /// state it was in; one that is over (`Done`, `Failed`, `Cancelled`) stays as it is. A turn
    /// that is running is not stopped by this.
    ///
    /// # Errors
    /// If there is no such message, or the store cannot be written.
    pub fn withdraw(&mut self, id: &MessageId) -> Result<MessageState, StoreError> {
        let before = self.message(id)?.state;
        let changed = self.write(|tx| {
            let changed = tx.query_row(
                "UPDATE inbox SET state = 'cancelled'
                 WHERE id = ?1 AND state IN ('queued', 'running') RETURNING id",
                [id.as_str()],
                |row| row.get::<_, Id<MessageId>>(0),
            );
            Ok(changed.optional()?)
        })?;
        match changed {
            Some(_) => Ok(before),
            None => Ok(self.message(id)?.state),
        }
    }
}
