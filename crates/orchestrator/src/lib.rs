//! The conductor: takes messages in, gives every session its turn, and hands replies out.
//!
//! ```text
//! submit ─► inbox (committed) ─► session worker: step(state, event, now) ─► actions ─► executor
//!                                                                              │
//!                     outbox (committed, on record) ◄── reply ◄── agent link ◄─┘
//! ```
//!
//! 1. [`machine::step`] is pure: no clock, no I/O. The executor in [`worker`] does what it says.
//! 2. A message is acknowledged only after its inbox row is committed.
//! 3. A turn that may have had effects is never run again without saying so.
//! 4. Nothing polls: a worker sleeps until an event or its own retry time.

mod engine;
pub mod machine;
mod port;
mod worker;

pub use engine::{Engine, EngineError, Incoming, Submitted};
pub use port::{
    AgentHost, AgentLink, Cancel, Failure, FailureKind, Listener, Progress, SessionSeed, TurnDone,
    World,
};
