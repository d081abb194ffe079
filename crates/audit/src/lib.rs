//! The record of what agents did, that nobody can quietly rewrite.
//!
//! ```text
//! any process                     __recorder (own process, own key)                 anyone
//! Client ─ records ─► socket ─► entry ─► wal ─ fdatasync ─► answer                  verify
//!                                         └─► tiles ─► signed checkpoint ─ files ─► read, story
//! ```
//!
//! Formats are those of C2SP (tlog-tiles, signed-note, tlog-checkpoint), RFC 6962 and RFC 8785, so
//! that verifiers nobody here wrote can check a log. A log's folder:
//!
//! ```text
//! wal/<first seq, 16 hex>.wal   the truth: frames with length, checksum, number
//! tile/…  checkpoint  vkey      derived from it, for strangers
//! private/                      signing key and lock, 0600 in 0700
//! evidence/                     what was found broken and set aside
//! ```
//!
//! 1. A record that cannot be written is an error to whoever submits it; nothing is dropped.
//! 2. Only the recorder can write, and it can only append; readers need no process of ours.
//! 3. Nothing is signed that is not durable, and nothing is answered `Durable` that is not.
//! 4. Any changed byte of the public files is found and named.
//! 5. No async runtime, no timers while idle, and no panic on whatever others send or write.

mod body;
pub mod canonical;
pub mod client;
mod commit;
mod connection;
pub mod entry;
#[cfg(test)]
mod fuzz;
mod finding;
pub mod log;
pub mod merkle;
pub mod note;
pub mod read;
pub mod recorder;
pub mod story;
mod tail;
pub mod tiler;
pub mod tiles;
pub mod verify;
pub mod wal;
mod wire;

pub use client::{Client, start_recorder};
pub use log::Log;
pub use read::{Filter, Follow, Reader, Stored};
pub use recorder::recorder_main;
pub use story::story;
pub use verify::{Finding, Report, verify_dir};
pub use wire::{FRAME_BYTES_MAX, log_dir, socket_path};
