//! `policy learn | accept`: rules from what a session did, inert until a person has agreed.
//!
//! ```text
//! log ─► learn ─► <home>/proposals/AGENT-SESSION.toml ─► accept: difference, y/N, record, rename
//! ```
//!
//! The record of an acceptance is durable before the file changes.

use super::{resolve_text, show_diff};
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::product;
use crate::scribe::sha256_hex;
use crate::ui::{self, Paint};
use crate::world::now_ms;
use audit::read::{Filter, Reader};
use model::{AgentName, Body, Durability, Record, RecordSinkExt, SessionId};
use policy::learn::{self, Proposal, Seen};
use policy::{Additions, load};
use serde_json::json;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most requests of one session that are learned from; a session with more repeats itself.
const SEEN_MAX: usize = 100_000;

/// What a session's records say about its way out.
#[derive(Default)]
struct Session {
    agent: Option<AgentName>,
    policy_sha256: Option<String>,
    seen: Vec<Seen>,
    cut: bool,
}

fn read_session(home: &Home, id: &SessionId) -> Result<Session> {
    let mut session = Session::default();
    let filter = Filter { session: Some(id.clone()), from: 0 };
    for entry in Reader::new(&home.audit(), filter) {
        let Ok(record) = entry.context("the log")?.record else { continue };
        session.agent = session.agent.or(record.agent);
        let seen = match record.body {
            Body::SessionOpened { policy_sha256, .. } => {
                session.policy_sha256 = Some(policy_sha256.0);
                continue;
            }
            Body::EgressIntent { host, port, rule, request, .. } => Seen {
                host,
                port: Some(port),
                websocket: request.as_ref().is_some_and(|r| r.websocket),
                request: request.map(|r| (r.method, r.path)),
                allowed: true,
                rule,
            },
            Body::EgressRefused { target, rule, request, .. } => {
                let (host, port) = split_target(&target);
                let websocket = request.as_ref().is_some_and(|r| r.websocket);
                let request = request.map(|r| (r.method, r.path));
                Seen { host, port, request, websocket, allowed: false, rule }
            }
            _ => continue,
        };
        if session.seen.len() >= SEEN_MAX {
            session.cut = true;
            break;
        }
        session.seen.push(seen);
    }
    Ok(session)
}

/// `[METHOD ][scheme://]host[:port][/path]` → host and port.
fn split_target(target: &str) -> (String, Option<u16>) {
    let rest = target.rsplit(' ').next().unwrap_or(target);
    let (scheme, rest) = rest.split_once("://").map_or((None, rest), |(s, r)| (Some(s), r));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let default = match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => match port.parse() {
            Ok(port) => (host.to_owned(), Some(port)),
            Err(_) => (authority.to_owned(), default),
        },
        _ => (authority.to_owned(), default),
    }
}

pub(super) fn learn(home: &Home, session: &str, as_json: bool) -> Result<u8> {
    let id = SessionId::parse(session).map_err(Failure::usage)?;
    let found = read_session(home, &id)?;
    let Some(agent) = found.agent else {
        let cause = format!("session {id} is not in the log");
        let remedy = "`nanoclaw audit show --all` lists every session";
        return Err(Failure::new(Kind::Missing, cause).remedy(remedy));
    };
    let config = product::load_config(home)?;
    let resolved = product::resolve_agent(home, &config, &agent, &Additions::default())?;
    if !as_json {
        ui::note(Paint::auto().bold(&format!(
            "LEARNING from session {id} of agent {agent}. The agent chose what it asked for; \
             nothing is granted."
        )));
        let now = sha256_hex(&resolved.policy_bytes).0;
        if found.policy_sha256.is_some_and(|then| then != now) {
            ui::note("note: the agent's grants are not those of that session any more");
        }
        if found.cut {
            ui::note(format!("note: only the first {SEEN_MAX} requests are looked at"));
        }
    }
    let learned = learn::learn(&resolved.egress, &found.seen);
    let text = learn::text(&learned, &agent, &id);
    let path = proposal_path(home, &agent, &id)?;
    let body = Body::PolicyLearned {
        session: id.clone(),
        proposal_sha256: sha256_hex(text.as_bytes()),
        rules: learned.rules.len() as u64,
        unused: learned.unused.len() as u64,
    };
    record(home, Some(&id), &agent, body)?;
    replace(&path, &text, 0o600)?;
    if as_json {
        let left: Vec<_> =
            learned.left_out.iter().map(|l| json!({"what": l.what, "why": l.why})).collect();
        let value = json!({"proposal": path.display().to_string(), "agent": agent.as_str(),
            "session": id.as_str(), "rules": learned.rules.len(), "unused": learned.unused,
            "left_out": left, "text": text});
        ui::json_line(&value.to_string());
    } else {
        ui::out(&ui::harmless(&text));
        ui::note(format!(
            "\nWritten to {}; it grants nothing. `nanoclaw policy accept {}` adds the rules.",
            path.display(),
            path.display()
        ));
    }
    Ok(0)
}

fn proposal_path(home: &Home, agent: &AgentName, session: &SessionId) -> Result<PathBuf> {
    let dir = home.path().join("proposals");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).context(dir.display())?;
    Ok(dir.join(format!("{agent}-{session}.toml")))
}

fn record(home: &Home, session: Option<&SessionId>, agent: &AgentName, body: Body) -> Result<u64> {
    let sink = product::recorder(home, "policy")?;
    let record = Record {
        time_ms: now_ms(),
        session: session.cloned(),
        agent: Some(agent.clone()),
        turn: None,
        body,
    };
    sink.append(record, Durability::Durable).map_err(|e| {
        Failure::new(Kind::Audit, format!("it cannot be put on record: {e}"))
            .remedy("nothing was changed")
    })
}

/// Puts a text in place of a file, whole or not at all.
fn replace(path: &Path, text: &str, mode: u32) -> Result<()> {
    let made = stage(path, text, mode)?;
    swap(&made, path)
}

/// Writes the text durably beside the file.
fn stage(path: &Path, text: &str, mode: u32) -> Result<PathBuf> {
    let made = path.with_extension("toml.new");
    // Left behind by a process that was killed.
    drop(std::fs::remove_file(&made));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&made)
        .context(made.display())?;
    file.set_permissions(PermissionsExt::from_mode(mode)).context(made.display())?;
    file.write_all(text.as_bytes()).context(made.display())?;
    file.sync_all().context(made.display())?;
    Ok(made)
}

fn swap(made: &Path, path: &Path) -> Result<()> {
    std::fs::rename(made, path).context(path.display())?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|dir| dir.sync_all()).context(folder.display())
}

pub(super) fn accept(home: &Home, given: &Path, yes: bool, as_json: bool) -> Result<u8> {
    let shown = given.display().to_string();
    let text = load::read_text(given).map_err(Failure::usage)?.ok_or_else(|| {
        let remedy = "`nanoclaw policy learn SESSION` writes one and says where";
        Failure::new(Kind::Missing, format!("there is no proposal {shown}")).remedy(remedy)
    })?;
    let proposal = learn::parse(&shown, &text).map_err(Failure::usage)?;
    if proposal.rules.is_empty() {
        let cause = format!("{shown} proposes no rule");
        return Err(Failure::usage(cause).remedy("its comments say what was used and left out"));
    }
    let path = agent_path(home, &proposal.agent)?;
    let before = load::read_text(&path).map_err(Failure::usage)?.unwrap_or_default();
    let after = learn::append(&before, &proposal);
    let diff = difference(home, &proposal, &before, &after)?;
    if as_json {
        let value = json!({"gained": diff.gained, "lost": diff.lost, "accepted": yes,
            "agent": proposal.agent.as_str()});
        ui::json_line(&value.to_string());
    } else {
        ui::line(format!("Agent {}, from session {}:", proposal.agent, proposal.session));
        show_diff(&diff);
    }
    let agreed = yes || (!as_json && agreed()?);
    if !agreed {
        ui::note("Nothing was changed.");
        return Ok(1);
    }
    write_agent(home, &proposal, &path, (&before, &after))?;
    if !as_json {
        ui::line(format!("agents/{}.toml has the rules now.", proposal.agent));
    }
    Ok(0)
}

/// The agent's file; where it is a link, what it leads to.
fn agent_path(home: &Home, agent: &AgentName) -> Result<PathBuf> {
    let path = home.agents().join(format!("{agent}.toml"));
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(path),
        Err(e) => Err(Failure::other(format!("{}: {e}", path.display()))),
    }
}

fn difference(home: &Home, proposal: &Proposal, before: &str, after: &str) -> Result<policy::Diff> {
    let config = product::load_config(home)?;
    let file = format!("agents/{}.toml", proposal.agent);
    let old = if before.is_empty() { "schema = 1\n" } else { before };
    let old = resolve_text(&file, old, Some(&config))?;
    let new = resolve_text(&file, after, Some(&config)).map_err(|failure| {
        let cause = format!("with the proposed rules the file would be wrong: {}", failure.cause);
        Failure::usage(cause).remedy("write the rules into the agent file by hand")
    })?;
    Ok(policy::diff(&old, &new))
}

fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let cause = "nobody can be asked: standard input is not a terminal";
        return Err(Failure::usage(cause).remedy("read the difference, then add --yes"));
    }
    ui::out("Add these rules? [y/N] ");
    ui::flush();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("the terminal")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn write_agent(
    home: &Home,
    proposal: &Proposal,
    path: &Path,
    (before, after): (&str, &str),
) -> Result<()> {
    let mode = std::fs::metadata(path).map_or(0o600, |meta| meta.permissions().mode() & 0o755);
    let made = stage(path, after, mode)?;
    // Between the question and the answer somebody may have edited it.
    let now = load::read_text(path).map_err(Failure::usage)?.unwrap_or_default();
    if now != before {
        drop(std::fs::remove_file(&made));
        let cause = format!("{} was changed meanwhile", path.display());
        return Err(Failure::other(cause).remedy("nothing was written; run it again"));
    }
    let body = Body::PolicyAccepted {
        file: format!("agents/{}.toml", proposal.agent),
        before_sha256: sha256_hex(before.as_bytes()),
        after_sha256: sha256_hex(after.as_bytes()),
    };
    if let Err(failure) = record(home, None, &proposal.agent, body) {
        drop(std::fs::remove_file(&made));
        return Err(failure);
    }
    swap(&made, path)
}

#[cfg(test)]
mod tests {
    use super::split_target;

    #[test]
    fn targets_are_split_as_they_are_recorded() {
        for (target, host, port) in [
            ("a.org:443", "a.org", Some(443)),
            ("a.org", "a.org", None),
            ("http://a.org/x:1", "a.org", Some(80)),
            ("GET https://a.org:8443/x", "a.org", Some(8443)),
            ("[::1]:80", "[::1]", Some(80)),
            ("a.org:x", "a.org:x", None),
        ] {
            assert_eq!(split_target(target), (host.to_owned(), port), "{target}");
        }
    }
}
