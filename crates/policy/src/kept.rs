//! What a session was granted, in a form that is kept until the next one, and what differs between
//! two of them.
//!
//! ```text
//! agent as resolved, models, servers of tools ─► Kept ─► file … file ─► Kept ─► gained, lost
//! ```
//!
//! 1. Kept is what was in force, not the files it came from: a link that leads elsewhere by now, or
//!    an argument of the command line, is a difference like any other.
//! 2. Values of environment variables are not kept, only what the caller makes of them to compare.
//! 3. What another version kept is read as a whole or not at all.

use crate::agent_file::Runtime;
use crate::describe;
use crate::diff::{self, Diff, gained};
use crate::resolve::ResolvedAgent;
use model::{McpProgram, McpReach, McpServer, ModelApi, ModelConfig, Sha256Hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The form below; another is not read.
const SCHEMA: u32 = 1;

/// All that a session was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    schema: u32,
    /// Of its policy, as its opening has it on record.
    pub policy_sha256: Sha256Hex,
    agent: ResolvedAgent,
    models: Vec<ModelConfig>,
    servers: Vec<McpServer>,
}

impl Kept {
    /// What a session of `agent` is granted, with these models and servers of tools. `veil` makes
    /// of a variable's value what is kept of it: the same for the same value, and no way back.
    #[must_use]
    pub fn of(
        policy_sha256: Sha256Hex,
        agent: &ResolvedAgent,
        models: &[ModelConfig],
        servers: &[McpServer],
        veil: &dyn Fn(&str) -> String,
    ) -> Self {
        let (mut agent, mut servers) = (agent.clone(), servers.to_vec());
        agent.policy_bytes = Vec::new();
        agent.instructions = None;
        let hide = |env: &mut BTreeMap<String, String>| {
            env.values_mut().for_each(|value| *value = veil(value));
        };
        hide(&mut agent.env);
        for server in &mut servers {
            if let McpReach::Stdio(program) = &mut server.reach {
                hide(&mut program.env);
            }
        }
        Self { schema: SCHEMA, policy_sha256, agent, models: models.to_vec(), servers }
    }

    /// As it is kept.
    ///
    /// # Errors
    /// If it cannot be written as JSON: a folder's name that is no UTF-8.
    pub fn to_json(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map_err(|e| e.to_string())
    }

    /// What was kept.
    ///
    /// # Errors
    /// If it is something else, also what another version kept; says what, and no value.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let place = |e: serde_json::Error| {
            format!(
                "it is not of the form of this version (line {}, column {})",
                e.line(),
                e.column()
            )
        };
        let kept: Self = serde_json::from_slice(bytes).map_err(place)?;
        if kept.schema == SCHEMA {
            return Ok(kept);
        }
        Err(format!("it is of the form {}, and this version reads {SCHEMA}", kept.schema))
    }

    /// Everything that is granted, one line each. For what was just made by [`Kept::of`]: grants in
    /// words are not kept.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let mut lines = self.agent.grants_text.clone();
        lines.extend(self.models.iter().map(model));
        lines.extend(self.servers.iter().flat_map(describe::server_grants));
        lines
    }

    /// What became possible, and what is possible no longer, since `old` was kept.
    #[must_use]
    pub fn since(&self, old: &Self) -> Diff {
        let mut all = diff::diff(&old.agent, &self.agent);
        all.gained.extend(more(old, self));
        all.lost.extend(more(self, old));
        all.gained.extend(settings(old, self));
        all
    }
}

/// What `new` has of models and servers that `old` has not.
fn more(old: &Kept, new: &Kept) -> Vec<String> {
    let known = |m: &&ModelConfig| !old.models.iter().any(|o| model(o) == model(m));
    let mut lines: Vec<String> = new.models.iter().filter(known).map(model).collect();
    for server in &new.servers {
        match old.servers.iter().find(|o| o.name == server.name) {
            None => lines.extend(describe::server_grants(server)),
            Some(before) => lines.extend(of_server(before, server, &new.agent)),
        }
    }
    lines
}

/// What a server of tools may do that it could not before. `base` is any agent: only what differs
/// between two is looked at.
fn of_server(old: &McpServer, new: &McpServer, base: &ResolvedAgent) -> Vec<String> {
    let (McpReach::Stdio(before), McpReach::Stdio(after)) = (&old.reach, &new.reach) else {
        return if old.reach == new.reach { Vec::new() } else { vec![reached(new)] };
    };
    let name = &new.name;
    let lines = gained(&as_agent(base, before), &as_agent(base, after));
    // What a person must not overlook stays at the beginning of its line.
    let owned = |line: String| match line.strip_prefix(describe::LOUD) {
        Some(rest) => format!("{}server of tools {name}: {rest}", describe::LOUD),
        None => format!("server of tools {name}: {line}"),
    };
    lines.into_iter().map(owned).collect()
}

fn as_agent(base: &ResolvedAgent, program: &McpProgram) -> ResolvedAgent {
    let program = program.clone();
    ResolvedAgent {
        runtime: Runtime::Command(program.command),
        env: program.env,
        mounts: program.mounts,
        egress: program.egress,
        limits: program.limits,
        ..base.clone()
    }
}

/// A server, with all that decides what is reached as whom.
fn reached(server: &McpServer) -> String {
    let McpReach::Http { secret, private, .. } = &server.reach else {
        return describe::server_grants(server).join("; ");
    };
    let mut line = describe::server_grants(server).join("; ");
    if let Some(secret) = secret {
        line.push_str(&format!(", secret {secret} as bearer token"));
    }
    line.push_str(if *private { ", private addresses allowed" } else { "" });
    line
}

/// A model, with all that decides who is asked and as whom.
fn model(m: &ModelConfig) -> String {
    let formats: Vec<&str> = std::iter::once(&m.api).chain(&m.also).map(|a| a.name()).collect();
    let place = match (&m.api, &m.script) {
        (ModelApi::Script, Some(path)) => format!("the script {}", path.display()),
        _ => format!("{} at {} ({})", m.model, m.base_url, formats.join(", ")),
    };
    let secret = m.secret.as_ref().map(|s| format!(", secret {s}")).unwrap_or_default();
    let login = m.login.as_ref().map(|l| format!(", login {}", l.name)).unwrap_or_default();
    format!("model {}: {place}{secret}{login}", m.name)
}

/// What has the same words as before and is not the same: neither more nor less for certain, so it
/// counts as gained.
fn settings(old: &Kept, new: &Kept) -> Vec<String> {
    let mut lines = Vec::new();
    for m in &new.models {
        let Some(before) = old.models.iter().find(|o| model(o) == model(m)) else { continue };
        let parts = [
            ("login", before.login != m.login),
            ("max_tokens", before.max_tokens != m.max_tokens),
            ("context_tokens", before.context_tokens != m.context_tokens),
            ("fallbacks", before.fallbacks != m.fallbacks),
            ("price", before.price != m.price),
        ];
        let parts: Vec<&str> = parts.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        if !parts.is_empty() {
            lines.push(format!("model {} with another {}", m.name, parts.join(", ")));
        }
    }
    for server in &new.servers {
        let before = old.servers.iter().find(|o| o.name == server.name);
        if before.is_some_and(|o| o.call_ms != server.call_ms) {
            lines.push(format!("server of tools {} with another timeout", server.name));
        }
    }
    lines
}
