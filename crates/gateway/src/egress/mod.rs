//! Ways to other hosts.
//!
//! ```text
//! CONNECT ──► connect ─┬─ tcp ───────────────────────────────► tunnel
//!                      ├─ tunnel ─► server name looked at ───► tunnel
//!                      └─ requests ─► intercept (TLS ends) ─┐
//! http://… ─────────────────────────────────────────────────┴─► exchange, one request at a time:
//!   verdict ─► limits ─► credentials ─► ask ─► intent (durable) ─► resolve, judge, pin
//!   ─► secret injected ─► sent ─► streamed back, masked ─► result
//! ```
//!
//! Invariants, each with a test:
//! 1. One function lets requests out, [`start::start`]; whoever forwards anything goes through it.
//! 2. The address that was judged is the address that is dialled.
//! 3. A secret goes to a host, an agent and a connection that its rule names, and never in clear
//!    over a network.
//! 4. No name is looked up before the intent is durable: below a `*.suffix` the name itself is the
//!    agent's words, and a question to a name server carries them away.
//! 5. Requests are built anew; no byte of framing is passed on.

pub(crate) mod carried;
pub(crate) mod connect;
mod credentials;
pub(crate) mod exchange;
mod fetch;
mod fields;
mod intercept;
pub(crate) mod link;
pub(crate) mod name;
pub(crate) mod plain;
mod reach;
mod refusal;
mod request;
mod shared;
mod start;
mod stream_back;
mod tunnel;
mod upload;
mod websocket;

pub(crate) use fetch::{Fetched, fetch};
pub(crate) use refusal::Refusal;
pub(crate) use request::Origin;
