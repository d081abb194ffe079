//! `[[ask]]`: what a human decides, each time.
//!
//! ```text
//! egress = "POST api.example.org/items/*"  ─►  method · host[:port] · path
//! ```
//!
//! The connection's terms (sight, private addresses, secret, credentials, limits) are those of the
//! `[[egress]]` rules for the same host and port; where these differ, the file must be clearer.

use crate::egress_section::{
    HTTPS_PORT, Written, parse_host_pattern, parse_method, parse_path, read_secret, rule_id,
};
use crate::error::{PolicyError, Problem, quote};
use crate::keys;
use crate::reader::{At, Section};
use crate::units::parse_duration;
use model::{AskTerms, Effect, EgressRule, HostPattern, PathPattern, Sight};
use std::time::Duration;

/// How long an answer is waited for when nothing is written.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Longest wait: the request is held open meanwhile.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

const EXAMPLE: &str = "egress = \"POST api.example.org/items/*\"";

/// What is asked about.
struct What {
    method: Option<String>,
    host: HostPattern,
    port: u16,
    path: Option<PathPattern>,
}

/// Reads every `[[ask]]`; `allows` are the `[[egress]]` rules of the file.
pub(crate) fn read(top: &Section<'_, '_>, allows: &[Written]) -> Result<Vec<Written>, PolicyError> {
    let mut all = Vec::new();
    for section in top.list("ask", &keys::ASK)? {
        let what = section.parsed("egress", EXAMPLE, parse)?;
        let what = what.ok_or_else(|| section.missing("egress", EXAMPLE))?;
        let by = section.parsed("by", "by = \"owner\"", parse_role)?;
        let timeout = section.parsed("timeout", "timeout = \"5min\"", parse_timeout)?;
        let timeout = timeout.map_or(TIMEOUT_DEFAULT, |at| at.value);
        let terms = AskTerms {
            by: by.map_or_else(|| "owner".to_owned(), |at| at.value),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let mut rule = inherit(&section, &what, allows)?;
        let At { place, value: What { method, path, .. } } = what;
        if method.as_deref() == Some("CONNECT") {
            if rule.sight == Sight::Intercept || path.is_some() {
                let why = "asks for a connection that is looked into request by request";
                let remedy =
                    "name a method and a path, or add `tls = \"tunnel\"` to the [[egress]]";
                return Err(Problem::bad("egress", why, remedy).at(&place));
            }
        } else if rule.sight != Sight::Intercept && (method.is_some() || path.is_some()) {
            let why = "names a method or a path of a connection that is not looked into";
            let remedy = "write \"CONNECT host:port\" to ask for the connection as a whole";
            return Err(Problem::bad("egress", why, remedy).at(&place));
        } else {
            rule.methods = method.into_iter().collect();
            rule.paths = path.into_iter().collect();
        }
        rule.ask = Some(terms);
        all.push(Written { rule, place: section.place.clone(), port_place: place });
    }
    Ok(all)
}

/// The ask rule with the terms of the `[[egress]]` rules that speak of the same destination.
fn inherit(
    section: &Section<'_, '_>,
    what: &At<What>,
    allows: &[Written],
) -> Result<EgressRule, PolicyError> {
    let What { host, port, .. } = &what.value;
    let mut rule = EgressRule::allow(rule_id(&section.place), host.clone(), *port);
    rule.effect = Effect::Ask;
    let here = |w: &&Written| w.rule.port == Some(*port);
    let exact: Vec<&Written> =
        allows.iter().filter(here).filter(|w| w.rule.host == *host).collect();
    let wider = || {
        let covers = |w: &&Written| match host {
            HostPattern::Exact(name) => w.rule.host.covers(name),
            below => w.rule.host.covers(below.base()),
        };
        allows.iter().filter(here).filter(covers).collect()
    };
    let candidates: Vec<&Written> = if exact.is_empty() { wider() } else { exact };
    let own = read_secret(section)?;
    let terms = |r: &EgressRule| {
        let secret = if own.is_some() { None } else { r.secret.clone() };
        (r.sight, r.private, secret, r.own_credentials, r.limits.clone())
    };
    if let Some(first) = candidates.first().map(|w| &w.rule) {
        if let Some(other) = candidates.iter().find(|w| terms(&w.rule) != terms(first)) {
            let why = format!(
                "speaks of {host}:{port}, for which {} and {} have different terms",
                first.id, other.rule.id
            );
            let remedy = "make their secret, private, own_credentials and limits agree, or name \
                          the secret in the [[ask]]";
            return Err(Problem::bad("egress", why, remedy).at(&what.place));
        }
        let (sight, private, secret, own_credentials, limits) = terms(first);
        rule = EgressRule { sight, private, secret, own_credentials, limits, ..rule };
    }
    if let Some(own) = own {
        if rule.sight != Sight::Intercept {
            let why = "cannot be used where the gateway sees no requests";
            let place = section.place_of("secret").unwrap_or_else(|| section.place.clone());
            return Err(Problem::bad("secret", why, "remove it").at(&place));
        }
        rule.secret = Some(own);
    }
    Ok(rule)
}

fn parse(text: &str) -> Result<What, Problem> {
    let remedy = "write \"METHOD host/path\", e.g. \"POST api.example.org/items/*\"";
    let bad = |why: &str| Problem::bad("egress", format!("is {}: {why}", quote(text)), remedy);
    let (method, rest) = text.split_once(' ').ok_or_else(|| bad("it has no method"))?;
    let method = match method {
        "*" => None,
        "CONNECT" => Some("CONNECT".to_owned()),
        other => {
            parse_method(other, true)?;
            Some(other.to_owned())
        }
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(parse_path(&rest[at..])?)),
        None => (rest, None),
    };
    let (host, port) = match authority.split_once(':') {
        None => (authority, HTTPS_PORT),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(number) if number > 0 && !port.starts_with('+') => (host, number),
            _ => return Err(bad("its port is not a number from 1 to 65535")),
        },
    };
    Ok(What { method, host: parse_host_pattern(host)?, port, path })
}

fn parse_role(text: &str) -> Result<String, Problem> {
    if ["owner", "admin", "member"].contains(&text) {
        return Ok(text.to_owned());
    }
    let remedy = "write \"owner\", \"admin\" or \"member\"";
    Err(Problem::bad("by", format!("is {}", quote(text)), remedy))
}

fn parse_timeout(text: &str) -> Result<Duration, Problem> {
    let timeout = parse_duration("timeout", text)?;
    if timeout > TIMEOUT_MAX {
        let why = format!("is {}: the request is held that long", quote(text));
        return Err(Problem::bad("timeout", why, "write at most \"1h\""));
    }
    Ok(timeout)
}
