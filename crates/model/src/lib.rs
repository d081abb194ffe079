//! The nouns: what every other crate talks about, and nothing that acts.
//!
//! ```text
//! Message ─► Session ─► Turn ─► Reply          Record: what is written down about each step
//!              │
//!              └─► SandboxSpec (what the box is)   EgressRule, ModelConfig (what it may reach)
//! ```
//!
//! Invariants, each kept by a test in `xtask`:
//! 1. No I/O, no async, no clock and no randomness in this crate.
//! 2. Ids are parsed once and stay typed; a string is never an id.
//! 3. No type here can hold the bytes of a secret.

mod egress;
mod files;
mod grant;
mod ids;
mod image;
mod record;
mod sink;
mod spec;
mod tools;

pub use egress::{
    AskTerms, Effect, EgressRule, HostPattern, Injection, PathPattern, PathPatternError,
    RuleLimits, SecretUse, Sight,
};
mod login;

pub use files::{FileAct, FileChange, MountSeen};
pub use grant::{Budget, HostName, HostNameError, KeyPlace, ModelApi, ModelConfig, Price};
pub use ids::{AgentName, IdError, MessageId, SessionId, TurnId};
pub use image::{ImageError, ImageName, ImageRef};
pub use login::{LoginConfig, LoginProvider};
pub use record::{
    Body, Direction, Durability, LimitState, MAX_BESIDE_BYTES, MAX_INLINE_BYTES, Record,
    RequestLine, SaltedDigest, Sha256Hex, WallState,
};
pub use sink::{Done, RecordError, RecordSink, RecordSinkExt};
pub use spec::{
    Access, Backend, Command, DoorSpec, EngineChoice, Limit, Limits, Mount, Network, RootFs,
    SandboxSpec, Strictness, Workspace,
};
pub use tools::{HostTools, McpProgram, McpReach, McpServer, ToolGrant};
