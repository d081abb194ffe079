//! Opening: place, damage, version, migration.

use crate::error::StoreError;
use crate::owner::Owner;
use crate::place;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database version this program writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// `PRAGMA application_id`: the letters `nclw`. Tells our files from other programs'.
const APPLICATION_ID: i64 = 0x6E63_6C77;

/// Step `n` leads from version `n` to `n + 1`. Never changed once released, only added to.
const MIGRATIONS: [&str; 3] = [
    include_str!("0001_init.sql"),
    include_str!("0002_boot.sql"),
    include_str!("0003_cancelled.sql"),
];

/// How long a write waits for another process: longer than any transaction here by far.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest file that is checked whole at every start; a larger one would delay it noticeably, and
/// its damage is found on use.
const CHECK_BYTES_MAX: u64 = 64 << 20;

/// An open store.
#[derive(Debug)]
pub struct Store {
    pub(crate) conn: Connection,
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
    /// The connection is at `synchronous=NORMAL`, left so by [`Store::write_ahead`].
    relaxed: bool,
}

impl Store {
    /// Opens the database, making folder and file if they are not there. Several processes may
    /// have the same file open.
    ///
    /// # Errors
    /// When the place is unsuitable, or the file is damaged, newer, or another program's. It is
    /// then left as it is.
    pub fn open(path: &Path, owner: Owner) -> Result<Self, StoreError> {
        place::prepare(path)?;
        // No URI parsing and no following of symlinks: the path is a path. One thread at a time
        // uses the connection, which `&mut self` and the absence of `Sync` already ensure.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let conn = Connection::open_with_flags(path, flags).map_err(|e| error(path, e))?;
        let mut store = Self { conn, path: path.to_path_buf(), owner, relaxed: false };
        store.prepare_connection()?;
        store.migrate()?;
        let on = store.conn.pragma_update(None, "foreign_keys", "ON");
        on.map_err(|e| error(path, e))?;
        Ok(store)
    }

    /// The database's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn prepare_connection(&mut self) -> Result<(), StoreError> {
        let set = |name: &str, value: &str| {
            self.conn.pragma_update(None, name, value).map_err(|e| error(&self.path, e))
        };
        self.conn.busy_timeout(BUSY_TIMEOUT).map_err(|e| error(&self.path, e))?;
        // Reading comes first: a file that is not ours must not be changed by a pragma.
        self.check()?;
        set("journal_mode", "WAL")?;
        set("synchronous", "FULL")?;
        // A step of the migration may make a table anew to which others refer.
        set("foreign_keys", "OFF")?;
        // Deleted private text is overwritten, not left in free pages.
        set("secure_delete", "ON")?;
        set("trusted_schema", "OFF")
    }

    fn pragma(&self, name: &str) -> Result<i64, StoreError> {
        let read = self.conn.pragma_query_value(None, name, |row| row.get(0));
        read.map_err(|e| error(&self.path, e))
    }

    fn check(&self) -> Result<(), StoreError> {
        let tables: i64 = self
            .conn
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|e| error(&self.path, e))?;
        let application = self.pragma("application_id")?;
        let version = self.pragma("user_version")?;
        let fresh = tables == 0 && application == 0 && version == 0;
        if !fresh && application != APPLICATION_ID {
            return Err(StoreError::Foreign { path: self.path.clone() });
        }
        if version > SCHEMA_VERSION {
            let path = self.path.clone();
            return Err(StoreError::Newer { path, found: version, known: SCHEMA_VERSION });
        }
        let size = self.path.metadata().map_or(0, |m| m.len());
        if fresh || size > CHECK_BYTES_MAX {
            return Ok(());
        }
        let verdict: String = self
            .conn
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|e| error(&self.path, e))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Corrupt { path: self.path.clone(), cause: verdict })
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        if self.pragma("user_version")? == SCHEMA_VERSION {
            return Ok(());
        }
        self.write(|tx| {
            // Read again under the lock: another process may just have done it.
            let at: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
            for step in MIGRATIONS.iter().skip(usize::try_from(at).unwrap_or(usize::MAX)) {
                tx.execute_batch(step)?;
            }
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            Ok(())
        })
    }

    /// Runs one immediate transaction; it is on disk when this returns `Ok`.
    pub(crate) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.relax(false)?;
        self.transact(work)
    }

    /// Runs one immediate transaction that no one waits to be on disk: a killed process loses
    /// nothing of it, a power cut may undo it (whole, as the write-ahead log keeps its order) until
    /// the next [`Store::write`]. Only for what is started over, from a state that is on disk.
    pub(crate) fn write_ahead<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.relax(true)?;
        self.transact(work)
    }

    /// Chooses whether commits wait for the disk. The way back is taken by the next write that
    /// needs it, before it begins, so that none can be left without.
    fn relax(&mut self, relaxed: bool) -> Result<(), StoreError> {
        if self.relaxed != relaxed {
            let value = if relaxed { "NORMAL" } else { "FULL" };
            let set = self.conn.pragma_update(None, "synchronous", value);
            set.map_err(|e| error(&self.path, e))?;
            self.relaxed = relaxed;
        }
        Ok(())
    }

    fn transact<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let path = &self.path;
        let tx = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| error(path, e))?;
        let done = work(&tx).map_err(|failure| match failure {
            Failure::Sql(e) => error(path, e),
            Failure::Store(e) => e,
        })?;
        tx.commit().map_err(|e| error(path, e))?;
        Ok(done)
    }

    /// Runs a reading query.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.conn).map_err(|e| error(&self.path, e))
    }
}

/// What ends a transaction: SQLite, or a rule of ours. Either way it is rolled back.
pub(crate) enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sql(e)
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// SQLite's error as ours.
pub(crate) fn error(path: &Path, cause: rusqlite::Error) -> StoreError {
    let path = path.to_path_buf();
    match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, cause: cause.to_string() }
        }
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure,
        ) => StoreError::NotWritable { path, cause: cause.to_string() },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { path },
        _ => match cause {
            // A value that does not parse was not written by us.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..) => {
                StoreError::Corrupt { path, cause: cause.to_string() }
            }
            cause => StoreError::Sqlite { path, cause },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{APPLICATION_ID, MIGRATIONS, Owner, Store};
    use rusqlite::Connection;

    #[test]
    fn a_store_of_version_2_is_taken_over_with_what_refers_to_its_messages() {
        let folder = std::env::temp_dir().join(format!("nanoclaw-v2-{}", std::process::id()));
        let path = folder.join("s.db");
        crate::place::prepare(&path).unwrap();
        let old = Connection::open(&path).unwrap();
        old.execute_batch(&MIGRATIONS[..2].concat()).unwrap();
        old.execute_batch(
            "INSERT INTO chats VALUES ('c', 'x', 1, 1);
             INSERT INTO sessions VALUES ('s00000000001-00000001', 'a', 'c', 'x', 'open', 1, 1, 'w');
             INSERT INTO inbox VALUES (7, 'm00000000001-00000001', 'c', 'p', 'x', 'me', 'hello',
                                       x'07', 1, 'running', 3, 0, 's00000000001-00000001', 'b');
             INSERT INTO turns VALUES ('t', 's00000000001-00000001', 'm00000000001-00000001',
                                       'running', 1, NULL, NULL, 0, 0, 'b', 1, 1);",
        )
        .unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 2).unwrap();
        drop(old);
        let store = Store::open(&path, Owner::this_process().unwrap()).unwrap();
        assert_eq!(store.pragma("foreign_keys").unwrap(), 1);
        let broken: Option<String> = store
            .conn
            .query_row("PRAGMA foreign_key_check", [], |row| row.get(0))
            .map_or(None, Some);
        assert_eq!(broken, None);
        let text: String = store
            .conn
            .query_row(
                "SELECT i.text || i.attempts || i.seq FROM turns JOIN inbox AS i ON i.id = message",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(text, "hello37");
        let cancel = "UPDATE inbox SET state = 'cancelled'";
        assert_eq!(store.conn.execute(cancel, []).unwrap(), 1);
        assert!(store.conn.execute("DELETE FROM inbox", []).is_err(), "a turn refers to it");
        drop(store);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn only_a_write_ahead_does_not_wait_for_the_disk() {
        let folder = std::env::temp_dir().join(format!("nanoclaw-ahead-{}", std::process::id()));
        let mut store = Store::open(&folder.join("s.db"), Owner::this_process().unwrap()).unwrap();
        // 1 is NORMAL, 2 is FULL.
        let level = |store: &Store| store.pragma("synchronous").unwrap();
        assert_eq!(level(&store), 2);
        store.write_ahead(|_| Ok(())).unwrap();
        assert_eq!(level(&store), 1);
        let inside: i64 = store
            .write(|tx| Ok(tx.pragma_query_value(None, "synchronous", |row| row.get(0))?))
            .unwrap();
        assert_eq!(inside, 2);
        drop(store);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
