//! What the files that people write mean: text → typed, resolved values, or an error that points
//! at the character.
//!
//! ```text
//! nanoclaw.toml ──► Config ───────────────┐
//! agents/x.toml ──► AgentFile ─► resolve ─┴─► ResolvedAgent ─► verdicts
//! --mount, --allow, --env, --memory … ────────┘
//! ```
//!
//! Invariants, each kept by a test:
//! 1. Deny by default: what no line grants does not exist in a [`ResolvedAgent`].
//! 2. A rule whose mechanism this version lacks is refused, never ignored.
//! 3. Every error names file, line and column (or the argument), the cause and the remedy; no
//!    error repeats a value that may be a secret.
//! 4. Parsing and verdicts are total and pure. Only [`load`] touches the file system.
//! 5. Equal meaning gives equal [`ResolvedAgent::policy_bytes`].

mod agent_file;
mod arguments;
mod canonical;
mod config;
pub mod credential;
mod environment;
mod error;
mod keys;
pub mod load;
mod mounts;
mod reader;
mod resolve;
mod sandbox_section;
mod units;
mod url;
mod verdict;

pub use agent_file::{AgentFile, BUILTIN_TOOLS, Instructions, Runtime};
pub use arguments::{parse_allow, parse_env, parse_memory, parse_mount, parse_timeout};
pub use config::{Config, Warning};
pub use error::{Place, PolicyError, Problem};
pub use keys::SCHEMA_VERSION;
pub use mounts::MountContext;
pub use resolve::{Additions, ResolveContext, ResolvedAgent};
pub use sandbox_section::DEFAULT_TURN_TIMEOUT;
pub use units::{format_duration, format_size, parse_duration, parse_size};
pub use verdict::{
    ConnectVerdict, DEFAULT_DENY, Denial, Verdict, connect_verdict, request_verdict,
};
