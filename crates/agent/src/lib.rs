//! The built-in agent, and the client by which the host drives it or any other ACP agent.
//!
//! ```text
//! host: orchestrator ─► client ═ ACP over pipes ═► server ─► turn ─► wire ─► door (gateway, model)
//!                                                            ├─► tools      :sandbox
//!                                                            └─► mcp ─► door (host tools)
//! any agent that knows only stdio servers ─► mcp::shim ─► door (host tools)
//! ```
//!
//! Invariants:
//! 1. The agent holds no key and opens no connection but the door's socket.
//! 2. No input, from host, model, tools or disk, makes it panic or grow without bound.
//! 3. No async runtime: plain threads, which exist only while a turn or a background job runs.

mod acp;
mod cancel;
pub mod client;
mod config;
mod context;
mod conversation;
mod mcp;
mod prompt;
mod rpc;
mod server;
mod tools;
mod turn;
mod wire;

#[cfg(test)]
mod testing;

use std::io::Write;
use std::process::ExitCode;

pub use mcp::{MCP_ROLE, mcp_main};

/// The role `nanoclaw __agent`: speaks ACP on stdin and stdout until stdin ends. Settings come
/// from the environment: `NANOCLAW_MODEL`, `NANOCLAW_MODEL_API` (`anthropic` or `openai`), `HOME`;
/// optionally `NANOCLAW_MAX_TOKENS`, `NANOCLAW_CONTEXT_TOKENS`, `NANOCLAW_INSTRUCTIONS`,
/// `NANOCLAW_PLACEHOLDER`, `NANOCLAW_DOOR`, `NANOCLAW_TOOLS` (its own tools, with commas between),
/// `NANOCLAW_HOST_TOOLS` (`true` when the host has tools for it).
///
/// Exit codes: 0 when stdin ended, 1 when the streams failed, 2 when a setting is missing or
/// wrong (the reason goes to stderr).
#[must_use]
pub fn agent_main() -> ExitCode {
    // What the agent's tools start must not read its memory or write to its streams. A kernel that
    // refuses has the sandbox's walls all the same.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let config = match config::Config::read(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "nanoclaw agent: {e}");
            return ExitCode::from(2);
        }
    };
    match server::serve(config, std::io::stdin().lock(), server::Out::new(std::io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "nanoclaw agent: its input failed: {e}");
            ExitCode::FAILURE
        }
    }
}
