//! Errors of the store: kind, cause, remedy.

use std::path::PathBuf;

/// Why the store did not do something. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder is on a file system on which SQLite's WAL loses data.
    #[error(
        "{p}: this is {kind}, on which the database's locks and shared memory do not work; \
         put NanoClaw's state on a local disk (--home DIR or NANOCLAW_HOME)", p = .path.display())]
    FileSystem {
        /// The folder.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The folder or file is open to others, or not of the right kind.
    #[error("{p}: {why}; {remedy}", p = .path.display())]
    Unsafe {
        /// Folder or file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
        /// What to do.
        remedy: String,
    },
    /// The folder or file cannot be made, read or written.
    #[error("{p}: cannot {action}; check that the folder exists, is yours and is writable", p = .path.display())]
    Access {
        /// Folder or file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        #[source]
        cause: std::io::Error,
    },
    /// A newer NanoClaw wrote the file.
    #[error(
        "{p}: the database has version {found}, this program knows up to {known}; update \
         NanoClaw, or restore the copy made before the update", p = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another program's database.
    #[error("{p}: this is another program's database; move it away or choose another --home", p = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged. It was not changed.
    #[error(
        "{p}: the database is damaged ({cause}); nothing was overwritten: stop NanoClaw, copy \
         the file and its -wal and -shm neighbours to a safe place, then restore a backup, or run \
         `sqlite3 FILE .recover` on the copy, or move the file away to start afresh", p = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// The disk, or the permission to write, is missing.
    #[error("{p}: the database cannot be written ({cause}); free space or make it writable", p = .path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        cause: String,
    },
    /// Another process held the database for longer than the time-out.
    #[error("{p}: the database is locked by another process; end it or try again", p = .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// There is no such row.
    #[error("there is no {what} {id}; list what there is, and name one of those")]
    Missing {
        /// What was sought.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The row is not in a state that allows this.
    #[error("{what} {id} is {state}, so it cannot {action}; reload its state first")]
    WrongState {
        /// What it is.
        what: &'static str,
        /// Its id.
        id: String,
        /// Its state.
        state: String,
        /// What was tried.
        action: &'static str,
    },
    /// Anything else SQLite reports.
    #[error("{p}: the database refused; this is a defect, please report it with the cause", p = .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        #[source]
        cause: rusqlite::Error,
    },
}
