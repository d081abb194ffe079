//! Root file systems from OCI images, without a daemon.
//!
//! ```text
//! archive, folder ─► import ─┐
//! registry ────────► pull ───┴─► blobs, by digest ─► layers unpacked into one tree ─► seal ─► name
//!                                                                                       │
//!                          sandbox ◄── read-only, looked at again before each use ◄─────┘
//! ```
//!
//! 1. Everything an image says is a stranger's: digests are checked over every byte, sizes and
//!    counts bounded, and every file access is beneath a folder of the store, no link followed.
//! 2. Nothing is half there: what is written goes to `tmp/`, is synced and renamed; names come
//!    last.
//! 3. The digest of the manifest names an image. A name may come to mean another; agent files pin
//!    both.
//! 4. This crate knows nothing of sandboxes, policy or the log.

mod archive;
mod digest;
mod error;
#[cfg(test)]
mod fuzz;
mod import;
mod limits;
mod oci;
mod pack;
mod packing;
mod pull;
mod seal;
mod store;
mod tar;
mod top;
mod unpack;
mod writer;

pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use limits::{Event, Limits, Unwatched, Watch};
pub use store::{Image, Store, Tree};
pub use unpack::Report;
