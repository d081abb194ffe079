//! Tools of the host, over the Model Context Protocol, at `/mcp` of every door.
//!
//! ```text
//! POST /mcp ─► head, body ─► rpc ─► era ─┬─ tools/list ─► what the grants name
//!                                        └─ tools/call ─► grant? ─► on record, durably
//!     ─► web_fetch | a server of nanoclaw.toml (HTTP, or a program in a sandbox) ─► on record
//! ```
//!
//! Invariants, each with a test:
//! 1. Identity is the door: what an agent is offered and may call is its grants and nothing else,
//!    and what it asks for beside them is refused and on record.
//! 2. No call acts before its record is durable.
//! 3. A server's tool whose description is not the one a person approved is neither shown nor
//!    called.
//! 4. Arguments, results, time and calls at once are bounded, for agent and server alike.
//! 5. One session never meets another's connection to a server.

mod call;
mod door;
mod entity;
mod fetch;
mod http;
mod link;
mod pins;
mod protocol;
mod rpc;
mod serve;
mod sse;
mod stdio;
mod text;
mod upstream;

pub use link::McpError;
pub use pins::{Described, Pins, PinsError};
pub use stdio::{Duplex, NoStdioServers, Opening, StdioAsk, StdioServers};

pub(crate) use door::DoorTools;
pub(crate) use http::Reach;
pub(crate) use serve::serve;
pub(crate) use upstream::{Means, describe};

/// Where the tools are on a door.
pub(crate) const PATH: &str = "/mcp";
