//! What the files that people write mean: text → typed, resolved values, or an error that points
//! at the character.
//!
//! ```text
//! nanoclaw.toml ──► Config ───────────────┐
//! agents/x.toml ──► AgentFile ─► resolve ─┴─► ResolvedAgent ─► verdicts, explain, diff, learn
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
//! 6. Nothing that becomes possible is missed by [`diff()`], nor by [`Kept::since`].
//! 7. What [`learn`] proposes grants nothing.

mod agent_file;
mod arguments;
mod ask_section;
mod budget;
mod canonical;
mod config;
pub mod credential;
mod describe;
mod diff;
mod egress_section;
mod environment;
mod error;
mod explain;
#[cfg(test)]
mod fuzz;
mod host;
mod kept;
mod keys;
pub mod learn;
pub mod load;
mod login_section;
mod mcp_section;
mod mounts;
mod path;
mod reader;
mod resolve;
mod sandbox_section;
mod tools_section;
mod units;
mod url;
mod verdict;
mod witness_section;

pub use agent_file::{AgentFile, BUILTIN_TOOLS, Instructions, Runtime};
pub use arguments::{parse_allow, parse_env, parse_memory, parse_mount, parse_timeout};
pub use budget::format_usd;
pub use config::{Config, Warning};
pub use describe::{LOUD, says_unwitnessed, server_grants};
pub use diff::{Diff, diff};
pub use error::{Place, PolicyError, Problem};
pub use explain::{Explanation, Near, Outcome, explain, unasked};
pub use host::{parse_host_name, parse_host_pattern};
pub use kept::Kept;
pub use keys::SCHEMA_VERSION;
pub use mounts::MountContext;
pub use resolve::{Additions, ResolveContext, ResolvedAgent};
pub use sandbox_section::{DEFAULT_TURN_TIMEOUT, Machine};
pub use tools_section::{HOST_TOOLS, PROVIDER_TOOLS, has_host_tools, host_tools, sandbox_tools};
pub use units::{format_duration, format_size, parse_duration, parse_size};
pub use verdict::{
    ConnectVerdict, DEFAULT_DENY, Denial, Verdict, connect_verdict, request_verdict,
};
pub use witness_section::{WITNESSES_MAX, Witness, Witnesses};
