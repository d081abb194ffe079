//! Tools of the host that an agent may call, and the servers they come from. Finished data.

use crate::{EgressRule, Limits, Mount, Sha256Hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One tool of the host that an agent's file names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolGrant {
    /// [`ToolGrant::OWN`], or a `[mcp.NAME]` of `nanoclaw.toml`.
    pub server: String,
    /// The tool's name at that server.
    pub tool: String,
    /// Digest of the description a person approved. `None` hides a server's tool; the tools of
    /// [`ToolGrant::OWN`] need none, for their descriptions are part of this program.
    pub pin: Option<Sha256Hex>,
}

impl ToolGrant {
    /// The server of the tools that NanoClaw brings itself.
    pub const OWN: &'static str = "nanoclaw";

    /// The name by which the agent sees the tool. Server names have no `_`, so no two tools of
    /// different servers meet.
    #[must_use]
    pub fn offered_name(&self) -> String {
        if self.server == Self::OWN {
            return self.tool.clone();
        }
        format!("{}__{}", self.server, self.tool)
    }
}

/// Where a server of tools is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum McpReach {
    /// Streamable HTTP.
    Http {
        /// Its endpoint.
        url: String,
        /// The vault's name of the bearer token it wants.
        secret: Option<String>,
        /// Whether private and loopback addresses are meant.
        private: bool,
    },
    /// A program that speaks on its stdin and stdout, in a sandbox of its own.
    Stdio(Box<McpProgram>),
}

/// A server of tools that is a program, and all that its sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpProgram {
    /// What runs; the first item is looked up in the sandbox's PATH.
    pub command: Vec<String>,
    /// Environment variables beside those that every sandbox has.
    pub env: BTreeMap<String, String>,
    /// Folders. Their sources stand as a person wrote them until they are made certain.
    pub mounts: Vec<Mount>,
    /// Hosts. Without any it has no way out at all.
    pub egress: Vec<EgressRule>,
    /// The limits of its sandbox.
    pub limits: Limits,
}

impl McpProgram {
    /// A program with no grant.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        let (env, mounts, egress) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { command, env, mounts, egress, limits: Limits::default() }
    }
}

/// One `[mcp.NAME]` of `nanoclaw.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpServer {
    /// NAME: lower-case letters, digits, inner `-`.
    pub name: String,
    /// Where it is.
    pub reach: McpReach,
    /// How long one call may take, milliseconds; the gateway's own limit where nothing is written.
    #[serde(default)]
    pub call_ms: Option<u64>,
}

/// What a door is given of the host's tools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTools {
    /// The tools, each by name.
    pub grants: Vec<ToolGrant>,
    /// The servers that the grants name.
    pub servers: Vec<McpServer>,
}
