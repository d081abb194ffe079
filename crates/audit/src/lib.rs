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
//! manifest                      its sealed segments, signed: what an open need not read again
//! epochs/<number>               keys that were replaced, each with its closing note
//! private/                      signing key, 0600 in 0700; of a home, a folder beside the log
//! work/                         lock, and what is written whole before it gets its name
//! payload/                      long and private texts, by salted digest; can be erased
//! index/                        what to find records by; derived, for nobody's proof
//! evidence/                     what was found broken and set aside
//! ```
//!
//! 1. A record that cannot be written is an error to whoever submits it; nothing is dropped.
//! 2. Only the recorder can write, and it can only append; readers need no process of ours.
//! 3. Nothing is signed that is not durable, and nothing is answered `Durable` that is not.
//! 4. Any changed byte of the public files is found and named.
//! 5. No async runtime, no timers while idle, and no panic on whatever others send or write.

pub mod backup;
mod body;
pub mod canonical;
pub mod catalogue;
pub mod chain;
pub mod client;
mod commit;
mod connection;
pub mod cosign;
pub mod disk;
pub mod entry;
mod epoch;
pub mod export;
mod finding;
mod flood;
#[cfg(test)]
mod fuzz;
pub mod http;
pub mod index;
mod keys;
pub mod log;
mod manifest;
pub mod merkle;
pub mod note;
mod opening;
pub mod payload;
pub mod proof;
pub mod prune;
pub mod raw;
pub mod read;
pub mod receipt;
pub mod recorder;
mod replay;
pub mod scan;
pub mod schema;
pub mod seen;
pub mod serve;
pub mod source;
pub mod stats;
pub mod story;
mod submitted;
mod tail;
pub mod tiler;
pub mod tiles;
mod tilestore;
pub mod verify;
mod vouch;
pub mod wal;
mod wire;
pub mod witness;

pub use client::{Client, start_recorder};
pub use log::Log;
pub use proof::Proof;
pub use read::{Filter, Follow, Reader, Stored};
pub use recorder::recorder_main;
pub use story::story;
pub use verify::{Finding, Report, verify_dir};
pub use wire::{FRAME_BYTES_MAX, key_dir, log_dir, socket_path};
