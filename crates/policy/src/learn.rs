//! Rules proposed from what a session did. A proposal grants nothing until a person accepts it.
//!
//! ```text
//! requests, let through or refused ─► left out? ─► by destination ─► patterns ─► [[egress]] text
//!                                        └─► what and why                 └─► grants never used
//! ```
//!
//! 1. The agent chose what it asked for, so nothing here is trusted: names of private networks and
//!    of metadata services, and paths that look like secrets, are never proposed, nor repeated.
//! 2. A proposed rule has host, port, methods and paths, and nothing that grants more, but for the
//!    WebSockets that the session itself asked for.
//! 3. What a deny rule forbids is not proposed, for it would not help.

mod patterns;
mod proposal;

use crate::egress_section::parse_method;
use crate::path::Path;
use crate::verdict::{ConnectVerdict, Verdict, brief, connect_verdict, request_verdict};
use model::{Effect, EgressRule, HostName, PathPattern};
use patterns::Tree;
pub use proposal::{Proposal, append, parse, text};
use std::collections::{BTreeMap, BTreeSet};

/// Most destinations in one proposal: more is a scan, not work.
const DESTINATIONS_MAX: usize = 200;

/// Most things told as left out; the rest is counted.
const LEFT_OUT_MAX: usize = 100;

/// Longest path learned from, bytes. Records cut longer ones.
const PATH_BYTES_MAX: usize = 2_048;

/// Proposed where only a connection was seen: reading, the least there is.
const METHODS_UNSEEN: [&str; 2] = ["GET", "HEAD"];

/// Stands among a path's methods where a WebSocket was asked for. No method is written so.
const WEBSOCKET: &str = "websocket";

/// One request or connection, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The name that was asked for.
    pub host: String,
    /// The port; `None` where only a name was looked up.
    pub port: Option<u16>,
    /// Method and path, where the gateway saw them.
    pub request: Option<(String, String)>,
    /// Whether the request asked for a WebSocket.
    pub websocket: bool,
    /// Whether it was let through.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: String,
}

/// Something that is not proposed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// What; never with a part that may be a secret.
    pub what: String,
    /// Why.
    pub why: &'static str,
}

/// What was learned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// Rules for what was refused.
    pub rules: Vec<EgressRule>,
    /// Narrower rules for what was let through, each with the id of the wider rule that it could
    /// replace. For a person to read; accepting adds none of them.
    pub narrower: Vec<(String, EgressRule)>,
    /// Grants that were never used, one line each.
    pub unused: Vec<String>,
    /// What is not proposed, and why.
    pub left_out: Vec<LeftOut>,
}

/// Where requests went, and what they were.
#[derive(Default)]
struct Destination {
    requests: Tree,
    unseen: bool,
}

type Destinations = BTreeMap<(HostName, u16), Destination>;

/// Proposes the least rules under which what was refused would pass.
#[must_use]
pub fn learn(existing: &[EgressRule], seen: &[Seen]) -> Learned {
    let mut refused = Destinations::new();
    let mut used: BTreeMap<String, Destinations> = BTreeMap::new();
    let mut left_out = BTreeSet::new();
    for one in seen {
        let group =
            if one.allowed { used.entry(one.rule.clone()).or_default() } else { &mut refused };
        if let Err(out) = note(existing, one, group) {
            left_out.insert(out);
        }
    }
    let used_ids: BTreeSet<&str> =
        seen.iter().filter(|s| s.allowed).map(|s| s.rule.as_str()).collect();
    let unused = existing
        .iter()
        .filter(|r| r.effect != Effect::Deny && !used_ids.contains(r.id.as_str()))
        .map(crate::describe::rule)
        .collect();
    let narrower = used.into_iter().flat_map(|(id, destinations)| {
        let wide = existing.iter().find(|r| r.id == id && r.paths.is_empty());
        let rules = if wide.is_some() { rules_of(destinations) } else { Vec::new() };
        rules.into_iter().map(move |rule| (id.clone(), rule))
    });
    let more = left_out.len().saturating_sub(LEFT_OUT_MAX);
    let mut told: Vec<LeftOut> = left_out.into_iter().take(LEFT_OUT_MAX).collect();
    if more > 0 {
        told.push(LeftOut { what: format!("{more} more"), why: "too many to list" });
    }
    Learned { rules: rules_of(refused), narrower: narrower.collect(), unused, left_out: told }
}

/// Puts one request where it belongs, or says why it is left out.
fn note(existing: &[EgressRule], one: &Seen, group: &mut Destinations) -> Result<(), LeftOut> {
    let shown = brief(&one.host);
    let out = |what: &str, why| Err(LeftOut { what: what.to_owned(), why });
    let Ok(host) = HostName::parse(&one.host) else {
        return out(&shown, "not a host name; addresses are not proposed");
    };
    if let Some(why) = private_name(&host) {
        return out(&shown, why);
    }
    let port = one.port.unwrap_or(crate::egress_section::HTTPS_PORT);
    let Some((method, path)) = &one.request else {
        match connect_verdict(existing, &host, port) {
            _ if one.allowed => return Ok(()),
            ConnectVerdict::Deny(denial) if denies(existing, &denial.rule) => {
                return out(&shown, "denied by a rule, which no further rule changes");
            }
            ConnectVerdict::Deny(_) => {}
            _ => return out(&shown, "permitted already; it was refused for another reason"),
        }
        if let Some(destination) = destination(group, host, port) {
            destination.unseen = true;
            return Ok(());
        }
        return out(&shown, "more than 200 destinations");
    };
    if parse_method(method, true).is_err() {
        return out(&shown, "a method that no rule can name");
    }
    let what = format!("{method} {shown}");
    if path.len() > PATH_BYTES_MAX || Path::read(path).is_none() {
        return out(&what, "a path that is too long, or can be read in more than one way");
    }
    if patterns::too_deep(path) {
        return out(&what, "a path of too many parts");
    }
    if patterns::looks_secret(path) {
        return out(&what, "a path that looks like, or leads to, a secret");
    }
    if !one.allowed {
        match request_verdict(existing, &host, port, method, path) {
            Verdict::Deny(denial) if denies(existing, &denial.rule) => {
                return out(&what, "denied by a rule, which no further rule changes");
            }
            Verdict::Deny(_) => {}
            _ if one.websocket => {
                let why = "permitted, but not as a WebSocket; if that is meant, write websocket = \
                           true in its rule by hand";
                return out(&what, why);
            }
            _ => return out(&what, "permitted already; it was refused for another reason"),
        }
    }
    let Some(destination) = destination(group, host, port) else {
        return out(&shown, "more than 200 destinations");
    };
    destination.requests.insert(method, path);
    if one.websocket && method == "GET" {
        destination.requests.insert(WEBSOCKET, path);
    }
    Ok(())
}

fn denies(existing: &[EgressRule], id: &str) -> bool {
    existing.iter().any(|r| r.id == id && r.effect == Effect::Deny)
}

fn destination(all: &mut Destinations, host: HostName, port: u16) -> Option<&mut Destination> {
    let key = (host, port);
    let room = all.len() < DESTINATIONS_MAX || all.contains_key(&key);
    room.then(|| all.entry(key).or_default())
}

fn rules_of(destinations: Destinations) -> Vec<EgressRule> {
    let known: BTreeSet<HostName> = destinations
        .iter()
        .filter(|(_, d)| !d.requests.is_empty())
        .map(|((host, _), _)| host.clone())
        .collect();
    let mut rules = Vec::new();
    for ((host, port), destination) in destinations {
        let base = EgressRule::allow("learned", host.clone(), port);
        if destination.unseen && !known.contains(&host) {
            let methods = METHODS_UNSEEN.map(str::to_owned).to_vec();
            rules.push(EgressRule { methods, ..base.clone() });
        }
        for (mut methods, paths) in destination.requests.patterns() {
            let websocket = methods.remove(WEBSOCKET);
            let paths: Vec<PathPattern> =
                paths.iter().filter_map(|p| PathPattern::parse(p).ok()).collect();
            for paths in paths.chunks(crate::egress_section::ITEMS_MAX) {
                let (methods, paths) = (methods.iter().cloned().collect(), paths.to_vec());
                rules.push(EgressRule { methods, paths, websocket, ..base.clone() });
            }
        }
    }
    rules
}

/// Why a name is one of a private network or of a machine's own services, if it is.
fn private_name(host: &HostName) -> Option<&'static str> {
    const SUFFIXES: [&str; 12] = [
        "localhost",
        "local",
        "internal",
        "lan",
        "home",
        "corp",
        "intranet",
        "private",
        "arpa",
        "localdomain",
        "test",
        "invalid",
    ];
    let name = host.as_str();
    if name.contains("metadata") || name.contains("instance-data") {
        return Some("a name of a metadata service");
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    if !name.contains('.') || SUFFIXES.contains(&last) {
        return Some("a name of a private network");
    }
    // Names that spell an address, for services that answer with it: 10-0-0-1.example, 127.0.0.1.x
    let numbers = name.split(['.', '-']).filter(|p| !p.is_empty());
    let mut run = 0;
    for part in numbers {
        run = if part.parse::<u8>().is_ok() { run + 1 } else { 0 };
        if run == 4 {
            return Some("a name that spells an address");
        }
    }
    None
}
