//! Grants in words, one line each: what stands in the log, on screen and in differences.
//!
//! Every grant that weakens a wall, or takes the gateway's eyes or hands away, begins with
//! [`LOUD`]; reports show these lines in red.

use crate::agent_file::{BUILTIN_TOOLS, Runtime};
use crate::budget::format_usd;
use crate::mounts;
use crate::resolve::ResolvedAgent;
use crate::units::{format_duration, format_size};
use model::{
    Backend, Effect, EgressRule, ImageRef, Injection, Limit, McpReach, McpServer, SecretUse, Sight,
    Strictness,
};
use std::time::Duration;

/// How a line begins that a person must not overlook.
pub const LOUD: &str = "! ";

/// Every grant of an agent, one line each.
pub(crate) fn grants(agent: &ResolvedAgent) -> Vec<String> {
    let mut lines: Vec<String> = backend(&agent.backend).into_iter().collect();
    lines.extend(agent.image.iter().map(image));
    if let Runtime::Command(argv) = &agent.runtime {
        let shown: Vec<String> = argv.iter().map(|item| shown(item)).collect();
        lines.push(format!("runs {}", shown.join(" ")));
    }
    lines.extend(agent.mounts.iter().map(mounts::describe));
    lines.extend(agent.egress.iter().map(rule));
    lines.extend(agent.stdin_secrets.iter().map(|name| {
        format!(
            "{LOUD}secret {name} is HANDED TO THE AGENT on its stdin: its memory and its children \
             can then hold it"
        )
    }));
    lines.extend(agent.provider_tools.iter().map(|tool| provider_tool(tool)));
    lines.extend((!agent.witness).then(unwitnessed));
    let (host, own): (Vec<_>, Vec<_>) =
        agent.tools.iter().partition(|tool| !BUILTIN_TOOLS.contains(&tool.as_str()));
    lines.extend(host.iter().map(|tool| format!("tool of the host {tool}")));
    if own.len() < BUILTIN_TOOLS.len() {
        let own: Vec<&str> = own.into_iter().map(String::as_str).collect();
        lines.push(format!(
            "tools in the sandbox: {}",
            if own.is_empty() { "none".into() } else { own.join(", ") }
        ));
    }
    if let Some(model) = &agent.model {
        lines.push(format!("model {model}"));
    }
    lines.extend(agent.env.keys().map(|name| format!("environment variable {name}")));
    let limits = &agent.limits;
    let firm = |limit: &Limit| match limit.strictness {
        Strictness::Required => "required",
        Strictness::Fallback => "fallback accepted",
    };
    let memory = format_size(limits.memory_bytes.value);
    lines.push(format!("memory up to {memory}, {}", firm(&limits.memory_bytes)));
    let cpus = format_cpus(limits.cpu_milli.value);
    lines.push(format!("CPUs up to {cpus}, {}", firm(&limits.cpu_milli)));
    lines.push(format!("processes up to {}, {}", limits.pids.value, firm(&limits.pids)));
    lines.extend(limits.disk_bytes.map(disk));
    lines.extend(limits.wall_ms.map(wall));
    lines.push(format!("one turn up to {}", format_duration(agent.turn_timeout)));
    let budget = &agent.budget;
    let usd = |micro: Option<u64>, per: &str| {
        micro.map(|micro| format!("models for up to {} a {per}", format_usd(micro)))
    };
    lines.extend(usd(budget.micro_usd_per_day, "day"));
    lines.extend(usd(budget.micro_usd_per_turn, "turn"));
    lines.extend(budget.tokens_per_day.map(|n| format!("models for up to {n} tokens a day")));
    lines
}

/// An argument as it stands, or quoted where it would read as something else.
fn shown(item: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !item.is_empty() && item.chars().all(plain) { item.to_owned() } else { format!("{item:?}") }
}

/// What makes the sandbox, where it is not NanoClaw itself: then another program with all rights
/// over this machine is trusted as well.
pub(crate) fn backend(backend: &Backend) -> Option<String> {
    let (Backend::Docker(choice) | Backend::Podman(choice) | Backend::Apple(choice)) = backend
    else {
        return None;
    };
    let root = choice.image.as_ref().map_or("the host's /usr".into(), |i| format!("image {i}"));
    let runtime = choice.runtime.as_ref().map(|r| format!(", runtime {r}")).unwrap_or_default();
    Some(format!("sandbox by {}, root {root}{runtime}", backend.name()))
}

/// What the limit of the disk is: no quota, which the words must not promise.
fn disk(bytes: u64) -> String {
    format!("disk up to {}, counted now and then and stopped when over", format_size(bytes))
}

fn wall(ms: u64) -> String {
    format!("each sandbox ends after {}", format_duration(Duration::from_millis(ms)))
}

/// What a provider's own tool means.
pub(crate) fn provider_tool(tool: &str) -> String {
    format!(
        "{LOUD}provider tool {tool}: the model's PROVIDER does it at the agent's word, where no \
         egress rule sees it"
    )
}

/// How [`unwitnessed`] begins.
const WITNESS_OFF: &str = "witness OFF: ";

/// Whether a grant, as a session's opening has it, says that nobody watches what it executes.
#[must_use]
pub fn says_unwitnessed(grant: &str) -> bool {
    grant.strip_prefix(LOUD).is_some_and(|rest| rest.starts_with(WITNESS_OFF))
}

/// What it means that nobody watches.
pub(crate) fn unwitnessed() -> String {
    format!(
        "{LOUD}{WITNESS_OFF}what it executes and which connections it is refused is NOT on record, \
         but for what it says itself"
    )
}

/// What a server of tools is and may do, one line each.
#[must_use]
pub fn server_grants(server: &McpServer) -> Vec<String> {
    let name = &server.name;
    let program = match &server.reach {
        McpReach::Http { url, .. } => return vec![format!("server of tools {name} at {url}")],
        McpReach::Stdio(program) => program,
    };
    let command = program.command.join(" ");
    let first = format!("server of tools {name} runs {command} in a sandbox of its own");
    let folders = program.mounts.iter().map(mounts::describe);
    let hosts = program.egress.iter().map(rule);
    let variables = program.env.keys().map(|name| format!("environment variable {name}"));
    // What a person must not overlook stays at the beginning of its line.
    let owned = |line: String| match line.strip_prefix(LOUD) {
        Some(rest) => format!("{LOUD}{name}: {rest}"),
        None => format!("{name}: {line}"),
    };
    std::iter::once(first).chain(folders.chain(hosts).chain(variables).map(owned)).collect()
}

/// The root file system, where it is not the host's.
pub(crate) fn image(image: &ImageRef) -> String {
    format!("root file system: the image {image}, read-only")
}

/// Thousandths of a CPU: `1.500`.
pub(crate) fn format_cpus(milli: u64) -> String {
    format!("{}.{:03}", milli / 1000, milli % 1000)
}

/// One rule: effect, destination, requests, then everything that differs from the defaults.
pub(crate) fn rule(rule: &EgressRule) -> String {
    let port = rule.port.map_or_else(|| " at every port".to_owned(), |p| format!(":{p}"));
    let effect = match rule.effect {
        Effect::Allow => "egress",
        Effect::Ask => "egress, if a human agrees,",
        Effect::Deny => "no egress",
    };
    let mut text = format!("{effect} {}{port}{}", rule.host, requests(rule));
    let mut loud = false;
    let mut mark = |text: &mut String, words: &str| {
        loud = true;
        text.push_str(words);
    };
    match rule.sight {
        Sight::Intercept => {}
        Sight::Tunnel => mark(
            &mut text,
            " as a TUNNEL: only host and port are seen, not what is asked, sent or answered",
        ),
        Sight::Tcp => mark(&mut text, " as RAW TCP: any bytes may pass, nothing is looked into"),
    }
    if rule.private {
        text.push_str(", private addresses allowed");
    }
    if let Some(used) = &rule.secret {
        text.push_str(&format!(", {}", secret(used)));
    }
    if rule.own_credentials {
        mark(
            &mut text,
            ", with the agent's OWN CREDENTIALS: whatever key it has or finds may go there",
        );
    }
    if rule.websocket {
        mark(
            &mut text,
            ", with WEBSOCKETS: after their handshake any bytes pass both ways, nothing is looked \
             into",
        );
    }
    if rule.clear {
        mark(&mut text, ", also WITHOUT TLS: whoever is in between can read and change it");
    }
    text.push_str(&limits(rule));
    if let Some(terms) = &rule.ask {
        let time = format_duration(Duration::from_millis(terms.timeout_ms));
        text.push_str(&format!(", asked of the {} for {time}", terms.by));
    }
    let start = if loud { LOUD } else { "" };
    format!("{start}{text} ({})", rule.id)
}

/// ` GET, HEAD /a/** or /b`, or nothing where all are meant.
pub(crate) fn requests(rule: &EgressRule) -> String {
    let mut text = String::new();
    if !rule.methods.is_empty() {
        text.push_str(&format!(" {}", rule.methods.join(", ")));
    }
    if !rule.paths.is_empty() {
        let paths: Vec<&str> = rule.paths.iter().map(|p| p.as_str()).collect();
        text.push_str(&format!(" {}", paths.join(" or ")));
    }
    text
}

/// `secret github as bearer token`.
pub(crate) fn secret(used: &SecretUse) -> String {
    let how = match &used.inject {
        Injection::Bearer => "as bearer token".to_owned(),
        Injection::Basic { user } => format!("as password of {}", user.escape_debug()),
        Injection::Header { name } => format!("in the header {name}"),
        Injection::Query { name } => format!("in the query as {name}"),
    };
    format!("secret {} {how}", used.name)
}

fn limits(rule: &EgressRule) -> String {
    let mut text = String::new();
    if let Some(bytes) = rule.limits.max_request {
        text.push_str(&format!(", requests up to {}", format_size(bytes)));
    }
    if let Some(bytes) = rule.limits.max_upload_per_day {
        text.push_str(&format!(", up to {} sent a day", format_size(bytes)));
    }
    if let Some(count) = rule.limits.max_per_minute {
        text.push_str(&format!(", up to {count} a minute"));
    }
    text
}
