//! `policy check | explain | diff | learn | accept`: what agents may do, before they do it.

mod learn;

use crate::args::PolicyCommand;
use crate::failure::{Failure, Result};
use crate::home::Home;
use crate::product;
use crate::ui::{self, Paint};
use model::{AgentName, HostName};
use policy::{
    Additions, AgentFile, Config, Diff, MountContext, Outcome, ResolveContext, ResolvedAgent, load,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Runs one of the subcommands. Comparing two files needs no home, and makes none.
pub(crate) fn run(home: impl Fn() -> Result<Home>, command: &PolicyCommand) -> Result<u8> {
    match command {
        PolicyCommand::Check { agent, json } => check(&home()?, agent.as_deref(), *json),
        PolicyCommand::Explain { agent, method, url, json } => {
            explain(&home()?, agent, method, url, *json)
        }
        PolicyCommand::Diff { old, new, json } => diff(old, new, *json),
        PolicyCommand::Learn { session, json } => learn::learn(&home()?, session, *json),
        PolicyCommand::Accept { proposal, yes, json } => {
            learn::accept(&home()?, proposal, *yes, *json)
        }
    }
}

/// A grant or a difference as it is shown: in red what must not be overlooked.
fn paint_line(paint: Paint, line: &str) -> String {
    let safe = ui::harmless(line);
    if safe.starts_with(policy::LOUD) { paint.red(&safe) } else { safe }
}

/// Reads every file, or one agent's, and says what each grants.
fn check(home: &Home, agent: Option<&str>, as_json: bool) -> Result<u8> {
    let config = product::load_config(home)?;
    let names = match agent {
        Some(name) => vec![AgentName::parse(name).map_err(Failure::usage)?],
        None => load::agent_names(home.path()),
    };
    let (paint, mut values, mut bad) = (Paint::auto(), Vec::new(), 0_u32);
    for warning in config.warnings.iter().filter(|_| !as_json) {
        ui::note(ui::harmless(&warning.to_string()));
    }
    for name in &names {
        match product::resolve_agent(home, &config, name, &Additions::default()) {
            Ok(found) if as_json => {
                let grants = &found.grants_text;
                values.push(json!({"agent": name.as_str(), "ok": true, "grants": grants}));
            }
            Ok(found) => {
                ui::line(format!("{} {name}", paint.green("ok")));
                for line in &found.grants_text {
                    ui::line(format!("  {}", paint_line(paint, line)));
                }
            }
            Err(failure) => {
                // One agent was asked for: its error is the command's.
                if agent.is_some() && !as_json {
                    return Err(failure);
                }
                bad += 1;
                let cause = ui::harmless(&failure.cause);
                if as_json {
                    values.push(json!({"agent": name.as_str(), "ok": false, "error": cause}));
                } else {
                    ui::line(format!("{} {name}\n  {cause}", paint.red("refused")));
                }
            }
        }
    }
    if as_json {
        ui::json_line(&json!(values).to_string());
    } else if names.is_empty() {
        ui::note("No agent has a file. The built-in assistant may touch only its own workspace.");
    }
    Ok(if bad > 0 { 2 } else { 0 })
}

/// Scheme, host, port and path of a URL; its query decides nothing.
struct Target {
    host: HostName,
    port: u16,
    path: String,
}

fn parse_url(url: &str) -> Result<Target> {
    let help = "write e.g. `nanoclaw policy explain triage GET https://api.example.org/items/1`";
    let bad = |why: &str| Failure::usage(format!("{url:?} {why}")).remedy(help);
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let default = match scheme.to_ascii_lowercase().as_str() {
        "https" | "wss" | "tcp" => 443,
        "http" | "ws" => 80,
        _ => return Err(bad("is neither https nor http")),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    if authority.contains('@') {
        return Err(bad("holds a user; the gateway refuses such requests"));
    }
    let (host, port) = match authority.split_once(':') {
        None => (authority, default),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(number) if number > 0 => (host, number),
            _ => return Err(bad("has a port that is not a number from 1 to 65535")),
        },
    };
    let host = policy::parse_host_name(host);
    let host = host.map_err(|e| bad(&format!("has a bad host: {}", e.why)))?;
    let path = after.split(['?', '#']).next().unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    Ok(Target { host, port, path: path.to_owned() })
}

fn explain(home: &Home, agent: &str, method: &str, url: &str, as_json: bool) -> Result<u8> {
    let name = AgentName::parse(agent).map_err(Failure::usage)?;
    let config = product::load_config(home)?;
    let agent = product::resolve_agent(home, &config, &name, &Additions::default())?;
    let Target { host, port, path } = parse_url(url)?;
    let told = policy::explain(&agent.egress, &host, port, method, &path);
    if as_json {
        let near: Vec<_> =
            told.near.iter().map(|n| json!({"rule": n.rule, "why_not": n.why_not})).collect();
        let value = json!({"agent": name.as_str(), "method": method, "host": host.as_str(),
            "port": port, "path": path, "verdict": told.outcome.word(), "rule": told.rule,
            "why": told.why, "near": near});
        ui::json_line(&value.to_string());
        return Ok(0);
    }
    let paint = Paint::auto();
    let word = match told.outcome {
        Outcome::Allow => paint.green("allow"),
        Outcome::Ask => paint.bold("ask"),
        Outcome::Deny => paint.red("deny"),
    };
    ui::line(format!("{word}  {}", ui::harmless(&format!("{method} {host}:{port}{path}"))));
    ui::line(ui::harmless(&format!("  rule  {}\n  why   {}", told.rule, told.why)));
    if !told.near.is_empty() {
        ui::line("  other rules that speak of it:");
    }
    for near in &told.near {
        ui::line(ui::harmless(&format!("    {}  {}", near.rule, near.why_not)));
    }
    ui::line(paint.dim("  where the name leads is judged after resolution, when it is asked for"));
    Ok(0)
}

/// An agent file by its path, resolved as far as it can be away from its home.
fn read_agent(path: &Path) -> Result<ResolvedAgent> {
    let text = load::read_text(path).map_err(Failure::usage)?.ok_or_else(|| {
        Failure::usage(format!("there is no file {}", path.display()))
            .remedy("give two agent files, e.g. `git show HEAD:agents/x.toml > old.toml`")
    })?;
    resolve_text(&path.display().to_string(), &text, None)
}

/// The grants that a text means, without a look at the folders it names.
fn resolve_text(file: &str, text: &str, config: Option<&Config>) -> Result<ResolvedAgent> {
    let parsed = AgentFile::parse(file, text).map_err(Failure::usage)?;
    let person = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let mounts = MountContext { home: &person, protected: &[] };
    // What an agent is told is not what it may do.
    let instructions = parsed.instructions_file().map(|_| "");
    let context = ResolveContext { mounts, config, instructions };
    let name = AgentName::parse("agent").map_err(Failure::other)?;
    parsed.resolve(&name, &context, &Additions::default()).map_err(Failure::usage)
}

fn diff(old: &Path, new: &Path, as_json: bool) -> Result<u8> {
    let diff = policy::diff(&read_agent(old)?, &read_agent(new)?);
    if as_json {
        let value = json!({"gained": diff.gained, "lost": diff.lost});
        ui::json_line(&value.to_string());
    } else {
        show_diff(&diff);
    }
    Ok(u8::from(!diff.gained.is_empty()))
}

fn show_diff(diff: &Diff) {
    let paint = Paint::auto();
    if diff.is_empty() {
        ui::line("Nothing changes in what it may do.");
    }
    for (title, sign, lines) in
        [("Newly possible:", "+", &diff.gained), ("No longer possible:", "-", &diff.lost)]
    {
        if !lines.is_empty() {
            ui::line(paint.bold(title));
        }
        for line in lines {
            ui::line(format!("  {sign} {}", paint_line(paint, line)));
        }
    }
}
