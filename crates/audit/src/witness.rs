//! Witnesses: someone else who remembers how long a log was, and signs only what continues that.
//!
//! ```text
//! log ─► submit::round ─► POST add-checkpoint ─► Keeper: known? signed? continues? ─► on disk
//!            ▲                                                                           │
//!            └──────────────── cosignature (tlog-cosignature) ◄──────────────────────────┘
//! ```
//!
//! A log's keeper can rewrite everything that he alone has signed. What a witness has seen he
//! cannot: the witness refuses another history, and keeps both heads as evidence.

pub mod keeper;
mod request;
pub mod submit;

pub use keeper::{Keeper, Verdict};
pub use request::{AddCheckpoint, REQUEST_BYTES_MAX};
pub use submit::{Outcome, Policy, Round, Target, round};

/// In a log's folder: what concerns its witnesses. The recorder does not write there.
pub const FOLDER: &str = "witness";

/// The newest head that a quorum has cosigned, with the cosignatures.
pub const COSIGNED: &str = "witness/cosigned";

/// Writes a small file whole or not at all, durably.
///
/// # Errors
/// As the operating system has it.
pub(crate) fn replace(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    // Two processes may do so at once; the later one stands then, whole.
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = crate::disk::create_anew(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
