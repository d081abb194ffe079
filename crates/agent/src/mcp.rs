//! Tools of the host, over the Model Context Protocol at the door's `/mcp`: for the built-in agent,
//! and as a stdio server for agents that know only those.
//!
//! Source: modelcontextprotocol.io, revision 2026-07-28 (stateless requests over streamable HTTP).

mod client;
mod shim;

pub(crate) use client::HostTools;
pub use shim::{MCP_ROLE, mcp_main};

use serde_json::Value;

/// Where the tools are on the door.
const PATH: &str = "/mcp";
/// The version the agent speaks: each request for itself.
const VERSION: &str = "2026-07-28";
/// Where a request says its version.
const VERSION_FIELD: &str = "io.modelcontextprotocol/protocolVersion";
/// What both answers may be; the door gives JSON.
const ACCEPT: (&str, &str) = ("accept", "application/json, text/event-stream");

/// The fields of the head that repeat a stateless request's body; none for older versions. `None`
/// when what they must repeat fits no header.
fn mirrored(method: &str, params: &Value) -> Option<Vec<(&'static str, String)>> {
    let version = params.get("_meta").and_then(|meta| meta.get(VERSION_FIELD));
    let Some(version) = version.and_then(Value::as_str) else { return Some(Vec::new()) };
    let mut fields = vec![("mcp-protocol-version", version), ("mcp-method", method)];
    if let Some(name) = params.get("name").and_then(Value::as_str) {
        fields.push(("mcp-name", name));
    }
    let fits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let fits = fields.iter().all(|(_, value)| fits(value));
    fits.then(|| fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
}
