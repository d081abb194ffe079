//! The store: what came in, what is being worked on, what goes out. The only place with SQL.
//!
//! ```text
//! receive ─► inbox ─► open_session ─► start_turn ─► finish_turn_with_reply ─► outbox ─► mark_sent
//!              ▲                          │ fail_turn (retry)
//!              └──────── recover ◄────────┘ its process died
//! ```
//!
//! Invariants, each kept by a test:
//! 1. A method that returned `Ok` is on disk (WAL, `synchronous=FULL`). The one exception is
//!    `start_turn`: `kill -9` loses nothing of it either, but a power cut may undo it, whole, and
//!    its message is then queued as before.
//! 2. A message is taken once per `(channel, platform_id)`.
//! 3. One open session per agent and chat; one running turn per session; kept by indexes, so
//!    they hold among processes too.
//! 4. A turn, its message and its reply change state in one transaction.
//! 5. A damaged, newer or foreign file is refused and left as it is.
//! 6. A message that was taken back is never worked on again, whatever becomes of its turn.
//! 7. No clock, no ids: the caller brings both.
//!
//! [`Store`] is `Send`: keep it behind a mutex or in a thread of its own, never on an async
//! worker. Every write but that one waits for the disk.

mod error;
mod inbox;
mod open;
mod outbox;
mod owner;
mod place;
mod rows;
mod sessions;
mod turns;
mod withdraw;

pub use error::StoreError;
pub use inbox::{MessageState, NewMessage, Received, StoredMessage};
pub use open::{SCHEMA_VERSION, Store};
pub use outbox::{NewReply, StoredReply};
pub use owner::Owner;
pub use sessions::{NewSession, Session};
pub use turns::{Finish, HistoryItem, Recovered, Retry};
