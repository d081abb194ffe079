//! May this session do that? Total, pure functions over an agent's egress rules.
//!
//! ```text
//! host, port ─► connect_verdict ─► (TLS ends here) ─► method, path ─► request_verdict
//! ```
//!
//! 1. Nothing matches: denied. Several match: deny wins over ask, ask over allow; order is nothing.
//! 2. A path that two servers could read differently matches no rule that names paths, and every
//!    deny rule that does.
//! 3. Every verdict names the rule that decided, or `default deny`.

use model::{Effect, EgressRule, HostName, PathPattern, Sight};

/// What stands in place of a rule's id where no rule matched.
pub const DEFAULT_DENY: &str = "default deny";

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
    /// The connection itself is permitted (or asked for) by this rule, whose [`Sight`] is not
    /// [`Sight::Intercept`].
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

fn names(rule: &EgressRule, host: &HostName, port: u16) -> bool {
    rule.host.covers(host) && rule.port.is_none_or(|p| p == port)
}

/// Judges a connection by name and port. Where the name leads is judged after resolution, by the
/// gateway.
#[must_use]
pub fn connect_verdict<'a>(
    rules: &'a [EgressRule],
    host: &HostName,
    port: u16,
) -> ConnectVerdict<'a> {
    let matching = || rules.iter().filter(|rule| names(rule, host, port));
    let total = |r: &&EgressRule| {
        r.effect == Effect::Deny && r.methods.is_empty() && r.paths.is_empty()
    };
    if let Some(rule) = matching().find(total) {
        return ConnectVerdict::Deny(denied_by(rule, host));
    }
    let mut permits: Vec<&EgressRule> = matching().filter(|r| r.effect != Effect::Deny).collect();
    permits.sort_by_key(|rule| u8::from(rule.effect != Effect::Ask));
    match permits.iter().find(|rule| rule.sight != Sight::Intercept) {
        // A connection nobody can look into cannot be held against rules for single requests:
        // any deny rule for parts of the host closes it.
        Some(rule) => match matching().find(|r| r.effect == Effect::Deny) {
            Some(deny) => ConnectVerdict::Deny(denied_by(deny, host)),
            None => ConnectVerdict::Connection(rule),
        },
        None if permits.is_empty() => ConnectVerdict::Deny(not_named(rules, host, port)),
        None => ConnectVerdict::Requests,
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
    let clear = is_unambiguous(path);
    let method_fits =
        |rule: &EgressRule| rule.methods.is_empty() || rule.methods.iter().any(|m| m == method);
    let path_fits = |rule: &EgressRule| {
        rule.paths.is_empty() || (clear && rule.paths.iter().any(|p| path_matches(p, path)))
    };
    let here = || rules.iter().filter(|rule| names(rule, host, port));
    let denies = |rule: &&EgressRule| {
        rule.effect == Effect::Deny && method_fits(rule) && (!clear || path_fits(rule))
    };
    if let Some(rule) = here().find(denies) {
        return Verdict::Deny(denied_by(rule, host));
    }
    let fits = |rule: &&EgressRule| method_fits(rule) && path_fits(rule);
    let with = |effect: Effect| here().filter(fits).find(|rule| rule.effect == effect);
    if let Some(rule) = with(Effect::Ask) {
        return Verdict::Ask(rule);
    }
    if let Some(rule) = with(Effect::Allow) {
        return Verdict::Allow(rule);
    }
    let permits = || here().filter(|rule| rule.effect != Effect::Deny);
    let Some(nearest) = permits().next() else {
        return Verdict::Deny(not_named(rules, host, port));
    };
    let why = if !clear && permits().any(|rule| !rule.paths.is_empty()) {
        format!("the path of {method} {host}{path} can be read in more than one way")
    } else {
        format!("{host} is permitted, but not {method} {path}")
    };
    Verdict::Deny(Denial { rule: nearest.id.clone(), why })
}

fn denied_by(rule: &EgressRule, host: &HostName) -> Denial {
    Denial { rule: rule.id.clone(), why: format!("{host} is denied by name") }
}

fn not_named(rules: &[EgressRule], host: &HostName, port: u16) -> Denial {
    let permits = |r: &&EgressRule| r.effect != Effect::Deny && r.host.covers(host);
    if let Some(rule) = rules.iter().find(permits) {
        let only = rule.port.map_or_else(|| "other ports".to_owned(), |p| format!("port {p}"));
        let why = format!("{host} is permitted at {only} only, not {port}");
        return Denial { rule: rule.id.clone(), why };
    }
    let why = format!("{host} is not among the permitted hosts");
    Denial { rule: DEFAULT_DENY.to_owned(), why }
}

/// Whether every server reads the path alike: no empty, `.` or `..` segment, and no encoded
/// slash, backslash, dot, percent, NUL or broken escape.
fn is_unambiguous(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let segments: Vec<&str> = rest.split('/').collect();
    let odd_segment = segments.iter().enumerate().any(|(at, segment)| {
        let last = at + 1 == segments.len();
        matches!(*segment, "." | "..") || (segment.is_empty() && !last)
    });
    let bytes = path.as_bytes();
    let escape_is_plain = |at: usize| {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        let value = hex.and_then(|h| u8::from_str_radix(h, 16).ok());
        value.is_some_and(|v| !matches!(v, 0 | b'/' | b'\\' | b'.' | b'%' | b';'))
    };
    !odd_segment
        && bytes.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b';' | b'#' | b'?'))
        && bytes.iter().enumerate().all(|(at, b)| *b != b'%' || escape_is_plain(at))
}

fn path_matches(pattern: &PathPattern, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.as_str().split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    segments_match(&pattern, &path)
}

/// Greedy with one step back to the last `**`, so linear times the number of segments.
fn segments_match(pattern: &[&str], path: &[&str]) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while s < path.len() {
        match pattern.get(p) {
            Some(&"**") => {
                back = Some((p, s));
                p += 1;
            }
            Some(part) if segment_matches(part.as_bytes(), path[s].as_bytes()) => {
                p += 1;
                s += 1;
            }
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, s) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|part| *part == "**")
}

fn segment_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, t) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}
