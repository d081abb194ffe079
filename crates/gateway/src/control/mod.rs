//! The gateway's control socket: how the product, which holds no secret, directs the gateway
//! process, which holds them all.
//!
//! ```text
//! product ─ ControlClient ═ <home>/run/gateway.sock ═ serve ─ Gateway ─► doors
//!            │ grant + listening socket ─────────────►│ accepts on it: the session's only exit
//!            │ ◄──────────── question ────────────────┤ a rule says ask
//!            │ EOF: start it again, hand every door over again, say so
//! ```
//!
//! Invariants, each with a test:
//! 1. Only the same user or root is heard, on both sides (`SO_PEERCRED`).
//! 2. No secret crosses: one is named here and written by the gateway into a pipe it was given,
//!    which ends in a sandbox.
//! 3. A door belongs to the connection that opened it and closes with it; nobody else can name it.
//! 4. Every frame is bounded; what does not parse, or brings a descriptor nobody asked for, ends
//!    the connection.
//! 5. A program is started by the client whose session needs it, from what that client granted; the
//!    gateway names it and no more.
//! 6. A question for whose answer nobody waits any more is taken back.
//! 7. When the gateway is gone, nothing goes out; the listening sockets stay with the product, so
//!    that a sandbox finds the same door in front of the next gateway.

mod approvals;
mod client;
mod deliver;
mod frames;
mod link;
mod programs;
mod server;
mod tracked;
mod wire;

pub use approvals::Approvals;
pub use client::{
    ControlClient, ControlError, Door, Doors, Event, NoPrograms, Programs, Settings, Wanted,
    Watcher, Withdrawn,
};
pub use server::serve;
pub use tracked::Tracked;

use std::path::{Path, PathBuf};

/// What a gateway writes to its ready descriptor once it listens.
pub const READY: &str = "ready\n";

/// Exit code of a gateway that found another one running.
pub const EXIT_RUNNING: u8 = 3;

/// The control socket below a home.
#[must_use]
pub fn socket_path(home: &Path) -> PathBuf {
    home.join("run/gateway.sock")
}

/// Where the gateway keeps what must survive it (quotas, usage), below a home.
#[must_use]
pub fn state_dir(home: &Path) -> PathBuf {
    home.join("gateway")
}
