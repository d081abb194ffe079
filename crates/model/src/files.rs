//! Files of a session's writable folders, as the host finds them after a turn.
//!
//! What stands here was looked at from outside, between two moments. It says what is different, not
//! who made it so: whoever else may write in a granted folder can have been it.

use crate::Sha256Hex;
use serde::{Deserialize, Serialize};

/// What became of an entry since the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileAct {
    /// It was not there.
    Created,
    /// The kernel has another time of change, number, size, mode or owner for it, or its contents
    /// are others. Contents can be the same all the same.
    Changed,
    /// It is not there any more.
    Deleted,
}

impl FileAct {
    /// As it stands in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
        }
    }
}

/// One entry of a folder that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Below its mount, without a slash at the beginning; empty for the mount itself. Bytes that
    /// are no UTF-8, control characters and `\` stand as `\xHH`.
    pub path: String,
    /// What became of it.
    pub act: FileAct,
    /// `file`, `folder`, `link`, `pipe`, `socket` or `device`.
    pub sort: String,
    /// Size of a file or of a link's target, bytes; of what was deleted, the last that was seen.
    pub bytes: u64,
    /// Its permissions, four octal digits.
    pub mode: String,
    /// Of a file's contents, or of what a link says; of what was deleted, the last that is known.
    pub sha256: Option<Sha256Hex>,
    /// Why a file has no digest.
    pub unread: Option<String>,
    /// It changed while it was read: size and digest may belong to no moment.
    pub racy: bool,
}

/// What was looked at below one writable mount, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountSeen {
    /// Where it is inside the sandbox.
    pub mount: String,
    /// Entries looked at.
    pub looked_at: u64,
    /// Entries that were not there at the look before.
    pub created: u64,
    /// Entries that are not as they were.
    pub changed: u64,
    /// Entries that are gone.
    pub deleted: u64,
    /// Of those three, how many are only counted here, for want of room.
    pub unlisted: u64,
    /// Files that were to be read and were not: whether their contents changed is not known.
    pub unread: u64,
    /// Folders whose entries were not looked at.
    pub missed: u64,
    /// The first of them, each with the reason.
    pub missed_first: Vec<String>,
}
