//! A proposal as a file: what was learned, for a person to read and for `policy accept`.

use super::Learned;
use crate::egress_section;
use crate::error::{PolicyError, Problem, quote};
use crate::keys;
use crate::reader::{Section, Source};
use model::{AgentName, EgressRule, SessionId};
use std::fmt::Write;

/// A proposal, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// For which agent.
    pub agent: AgentName,
    /// From which session.
    pub session: SessionId,
    /// What accepting it adds.
    pub rules: Vec<EgressRule>,
}

/// The text of a proposal. Everything that came from the agent is escaped; comments have no line
/// of its making.
#[must_use]
pub fn text(learned: &Learned, agent: &AgentName, session: &SessionId) -> String {
    let mut out = format!(
        "# LEARNED from session {session} of agent {agent}. It grants nothing until\n\
         # `nanoclaw policy accept` has shown the difference and a person agreed.\n\
         # The agent chose what it asked for: read every line.\n\
         schema = 1\nagent = \"{agent}\"\nsession = \"{session}\"\n"
    );
    for rule in &learned.rules {
        out.push_str(&block(rule));
    }
    let mut comment = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(out, "\n# {title}\n");
            for line in lines {
                let _ = writeln!(out, "#   {}", line.escape_debug());
            }
        }
    };
    let narrower = learned
        .narrower
        .iter()
        .map(|(wide, rule)| {
            let requests = crate::describe::requests(rule);
            let port = rule.port.unwrap_or_default();
            let blind = if rule.websocket { ", with WebSockets" } else { "" };
            format!("{wide} was used only for {}:{port}{requests}{blind}", rule.host)
        })
        .collect();
    comment("Wider than was needed; narrow the agent file by hand:", narrower);
    comment("Never used in this session; remove what it does not need:", learned.unused.clone());
    let left = learned.left_out.iter().map(|l| format!("{}: {}", l.what, l.why)).collect();
    comment("Left out:", left);
    out
}

/// One `[[egress]]` table of a learned rule.
fn block(rule: &EgressRule) -> String {
    // JSON strings of printable ASCII are TOML strings too.
    let string = |text: &str| serde_json::Value::from(text).to_string();
    let list = |items: Vec<String>| -> String {
        let items: Vec<String> = items.iter().map(|i| string(i)).collect();
        format!("[{}]", items.join(", "))
    };
    let mut out = format!("\n[[egress]]\nhost = {}\n", string(&rule.host.to_string()));
    if let Some(port) = rule.port.filter(|p| *p != egress_section::HTTPS_PORT) {
        out.push_str(&format!("port = {port}\n"));
    }
    if !rule.methods.is_empty() {
        out.push_str(&format!("methods = {}\n", list(rule.methods.clone())));
    }
    if rule.paths.is_empty() {
        out.push_str("# only the connection was seen; the next run shows the paths\n");
    } else {
        let paths = rule.paths.iter().map(|p| p.as_str().to_owned()).collect();
        out.push_str(&format!("paths = {}\n", list(paths)));
    }
    if rule.websocket {
        out.push_str("# blind: any bytes pass both ways, nothing is looked into\n");
        out.push_str("websocket = true\n");
    }
    out
}

/// Reads a proposal; `file` is how errors call it.
///
/// # Errors
/// With file, line and column, for everything that is not exactly understood, and for every key
/// that would grant more than hosts, ports, methods, paths and WebSockets.
pub fn parse(file: &str, text: &str) -> Result<Proposal, PolicyError> {
    let source = Source { file, text };
    let root = source.parse()?;
    let top = Section::top(&source, &root, &keys::PROPOSAL)?;
    let bad = |key: &'static str, text: &str, why: &str| {
        let remedy = "use a proposal as `nanoclaw policy learn` wrote it";
        Problem::bad(key, format!("is {}: {why}", quote(text)), remedy)
    };
    let agent = top.parsed("agent", "agent = \"triage\"", |text| {
        AgentName::parse(text).map_err(|e| bad("agent", text, e.why))
    })?;
    let session = top.parsed("session", "session = \"s1\"", |text| {
        SessionId::parse(text).map_err(|e| bad("session", text, e.why))
    })?;
    Ok(Proposal {
        agent: agent.ok_or_else(|| top.missing("agent", "agent = \"triage\""))?.value,
        session: session.ok_or_else(|| top.missing("session", "session = \"s1\""))?.value,
        rules: egress_section::read_plain(&top, &keys::PROPOSED)?,
    })
}

/// The text of an agent file with the rules of a proposal at its end.
#[must_use]
pub fn append(agent_file: &str, proposal: &Proposal) -> String {
    let mut out = agent_file.to_owned();
    if out.is_empty() {
        out.push_str("schema = 1\n");
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(&format!("\n# Learned from session {}:", proposal.session));
    for rule in &proposal.rules {
        out.push_str(&block(rule));
    }
    out
}
