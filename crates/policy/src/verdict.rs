//! May this session do that? Total, pure functions over an agent's egress rules.
//!
//! ```text
//! host, port ─► connect_verdict ─► (TLS ends here) ─► method, path ─► request_verdict
//! ```
//!
//! 1. Nothing matches: denied. Several match: deny wins over ask, ask over allow; among rules of
//!    one effect the most particular decides. The order of the rules is nothing.
//! 2. A rule permits only what it matches under every reading of the path; it denies, and asks,
//!    wherever any reading matches. A path with more readings than are looked at matches no
//!    permitting rule with paths, and every deny rule with paths ([`crate::path`]).
//! 3. A request is permitted only by rules that see requests: a tunnel's rule never lets one pass.
//! 4. Every verdict names the rule that decided, or `default deny`.

use crate::path::{Path, Pattern};
use model::{Effect, EgressRule, HostName, HostPattern, Sight};
use std::cmp::Reverse;

/// What stands in place of a rule's id where no rule matched.
pub const DEFAULT_DENY: &str = "default deny";

/// Methods that no rule permits: CONNECT inside a connection is a second way out, TRACE and TRACK
/// send back the headers, injected secrets among them (RFC 9110 §9.3.8).
pub(crate) const METHODS_NEVER: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// A refusal: the rule that decided, and why, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// A rule's id, or [`DEFAULT_DENY`].
    pub rule: String,
    /// What is wrong and what would permit it.
    pub why: String,
}

/// What is known when a connection is asked for: nothing but name and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectVerdict<'a> {
    /// Some request there may be permitted; each is judged by [`request_verdict`].
    Requests,
    /// The connection itself is permitted, or asked for where the rule's effect is
    /// [`Effect::Ask`], by this rule, whose [`Sight`] is not [`Sight::Intercept`].
    Connection(&'a EgressRule),
    /// It may not be made.
    Deny(Denial),
}

/// The verdict on one request, or on a connection the gateway cannot look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// This rule permits it.
    Allow(&'a EgressRule),
    /// This rule wants a human's answer.
    Ask(&'a EgressRule),
    /// It does not go out.
    Deny(Denial),
}

/// Why a rule for the host does not surely match a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    Host,
    Port,
    /// It sees connections, not requests.
    Sight,
    Method,
    Path,
    /// The path can be read in more than one way.
    Unclear,
}

/// One request, read once for all rules.
pub(crate) struct Asked<'r> {
    pub(crate) host: &'r HostName,
    pub(crate) port: u16,
    pub(crate) method: &'r str,
    pub(crate) path: Option<Path>,
}

impl Asked<'_> {
    /// Whether the rule surely matches; if not, why.
    pub(crate) fn surely(&self, rule: &EgressRule) -> Result<(), Miss> {
        if !rule.host.covers(self.host) {
            return Err(Miss::Host);
        }
        if rule.port.is_some_and(|port| port != self.port) {
            return Err(Miss::Port);
        }
        if rule.sight != Sight::Intercept {
            return Err(Miss::Sight);
        }
        if METHODS_NEVER.iter().any(|m| m.eq_ignore_ascii_case(self.method)) {
            return Err(Miss::Method);
        }
        if !rule.methods.is_empty() && !rule.methods.iter().any(|m| m == self.method) {
            return Err(Miss::Method);
        }
        if rule.paths.is_empty() {
            return Ok(());
        }
        let Some(path) = &self.path else { return Err(Miss::Unclear) };
        let matched = patterns(rule).any(|p| p.is_some_and(|p| p.surely(path)));
        if matched { Ok(()) } else { Err(Miss::Path) }
    }

    /// Whether any reading of the request matches: for rules that deny or ask.
    pub(crate) fn maybe(&self, rule: &EgressRule) -> bool {
        let method = |m: &String| m.eq_ignore_ascii_case(self.method);
        let path = |path: &Path| patterns(rule).any(|p| p.is_none_or(|p| p.maybe(path)));
        names(rule, self.host, self.port)
            && (rule.methods.is_empty() || rule.methods.iter().any(method))
            && (rule.paths.is_empty() || self.path.as_ref().is_none_or(path))
    }
}

fn patterns(rule: &EgressRule) -> impl Iterator<Item = Option<Pattern>> {
    rule.paths.iter().map(|p| Pattern::read(p.as_str()))
}

fn names(rule: &EgressRule, host: &HostName, port: u16) -> bool {
    rule.host.covers(host) && rule.port.is_none_or(|p| p == port)
}

/// Whether a deny rule closes a destination as a whole.
fn is_total(rule: &EgressRule) -> bool {
    rule.effect == Effect::Deny && rule.methods.is_empty() && rule.paths.is_empty()
}

/// How particular a rule is; the id makes it a total order, so that the order in the file is
/// nothing.
fn particular(rule: &EgressRule) -> impl Ord {
    let longest = patterns(rule).flatten().map(|p| p.literal_bytes()).max();
    let exact = matches!(rule.host, HostPattern::Exact(_));
    let host = rule.host.base().as_str().len();
    let methods = Reverse(if rule.methods.is_empty() { usize::MAX } else { rule.methods.len() });
    (exact, host, longest, methods, Reverse(rule.id.clone()))
}

fn most_particular<'a>(rules: impl Iterator<Item = &'a EgressRule>) -> Option<&'a EgressRule> {
    rules.max_by_key(|rule| particular(rule))
}

/// Judges a connection by name and port. Where the name leads is judged after resolution, by the
/// gateway.
#[must_use]
pub fn connect_verdict<'a>(
    rules: &'a [EgressRule],
    host: &HostName,
    port: u16,
) -> ConnectVerdict<'a> {
    let here: Vec<&EgressRule> = rules.iter().filter(|rule| names(rule, host, port)).collect();
    let all = || here.iter().copied();
    if let Some(rule) = most_particular(all().filter(|r| is_total(r))) {
        return ConnectVerdict::Deny(denied_by(rule, host));
    }
    let permits = || all().filter(|rule| rule.effect != Effect::Deny);
    if permits().next().is_none() {
        return ConnectVerdict::Deny(not_named(rules, host, port));
    }
    // Where one rule wants to look and another would not, it is looked.
    if permits().any(|rule| rule.sight == Sight::Intercept) {
        return ConnectVerdict::Requests;
    }
    // A connection nobody can look into cannot be held against rules for single requests: any
    // deny rule for parts of the host closes it.
    if let Some(rule) = most_particular(all().filter(|r| r.effect == Effect::Deny)) {
        let why = format!("parts of {host} are denied, and a tunnel cannot be looked into");
        return ConnectVerdict::Deny(Denial { rule: rule.id.clone(), why });
    }
    let with = |effect| most_particular(permits().filter(move |r| r.effect == effect));
    match with(Effect::Ask).or_else(|| with(Effect::Allow)) {
        Some(rule) if permits().all(|other| other.sight == rule.sight) => {
            ConnectVerdict::Connection(rule)
        }
        Some(rule) => {
            let why = format!("rules for {host}:{port} disagree: one says tunnel, another tcp");
            ConnectVerdict::Deny(Denial { rule: rule.id.clone(), why })
        }
        None => ConnectVerdict::Deny(not_named(rules, host, port)),
    }
}

/// Judges one request. `path` is as sent, without its query.
#[must_use]
pub fn request_verdict<'a>(
    rules: &'a [EgressRule],
    host: &HostName,
    port: u16,
    method: &str,
    path: &str,
) -> Verdict<'a> {
    let asked = Asked { host, port, method, path: Path::read(path) };
    let having = |effect| rules.iter().filter(move |r| r.effect == effect);
    if let Some(rule) = most_particular(having(Effect::Deny).filter(|r| asked.maybe(r))) {
        return Verdict::Deny(denied_by(rule, host));
    }
    let fits = |r: &&EgressRule| asked.surely(r).is_ok();
    if let Some(rule) = most_particular(having(Effect::Ask).filter(fits)) {
        return Verdict::Ask(rule);
    }
    let Some(allow) = most_particular(having(Effect::Allow).filter(fits)) else {
        return Verdict::Deny(not_permitted(rules, &asked, path));
    };
    // What may be the thing that is to be asked for does not slip by under another spelling.
    match most_particular(having(Effect::Ask).filter(|r| asked.maybe(r))) {
        None => Verdict::Allow(allow),
        Some(rule) if asked.path.is_some() => Verdict::Ask(rule),
        Some(rule) => {
            let why = format!("{method} {host}{} {}", brief(path), UNCLEAR);
            Verdict::Deny(Denial { rule: rule.id.clone(), why })
        }
    }
}

pub(crate) const UNCLEAR: &str =
    "can be read in more than one way, so no rule for paths permits it";

/// Longest piece of a path repeated in a reason, characters.
const PATH_CHARS_MAX: usize = 200;

/// A path for a reason: one line, cut; what is not plain is escaped.
pub(crate) fn brief(path: &str) -> String {
    let cut: String = path.chars().take(PATH_CHARS_MAX).collect();
    let more = if cut.len() < path.len() { "…" } else { "" };
    format!("{}{more}", cut.escape_default())
}

fn denied_by(rule: &EgressRule, host: &HostName) -> Denial {
    let what = if is_total(rule) { String::new() } else { "this at ".to_owned() };
    Denial { rule: rule.id.clone(), why: format!("{what}{host} is denied by a rule") }
}

/// Nothing matched: names the permitting rule that came nearest.
fn not_permitted(rules: &[EgressRule], asked: &Asked<'_>, path: &str) -> Denial {
    let (host, port, method) = (asked.host, asked.port, asked.method);
    let permits = rules.iter().filter(|r| r.effect != Effect::Deny && names(r, host, port));
    // The later a rule fails, the nearer it is.
    let miss = |rule: &EgressRule| match asked.surely(rule) {
        Ok(()) | Err(Miss::Host | Miss::Port) => 0,
        Err(Miss::Sight) => 1,
        Err(Miss::Method) => 2,
        Err(Miss::Path | Miss::Unclear) => 3,
    };
    let Some(rule) = permits.max_by_key(|rule| (miss(rule), particular(rule))) else {
        return not_named(rules, host, port);
    };
    let method = brief(method);
    let why = match asked.surely(rule) {
        Err(Miss::Sight) => {
            format!("{host}:{port} is permitted as a connection, not for requests in the clear")
        }
        Err(Miss::Unclear) => format!("{method} {host}{} {UNCLEAR}", brief(path)),
        _ => format!("{host} is permitted, but not {method} {}", brief(path)),
    };
    Denial { rule: rule.id.clone(), why }
}

fn not_named(rules: &[EgressRule], host: &HostName, port: u16) -> Denial {
    let permits = rules.iter().filter(|r| r.effect != Effect::Deny && r.host.covers(host));
    if let Some(rule) = most_particular(permits) {
        let only = rule.port.map_or_else(|| "other ports".to_owned(), |p| format!("port {p}"));
        let why = format!("{host} is permitted at {only} only, not {port}");
        return Denial { rule: rule.id.clone(), why };
    }
    let why = format!("{host} is not among the permitted hosts");
    Denial { rule: DEFAULT_DENY.to_owned(), why }
}
