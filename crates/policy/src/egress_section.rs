//! `[[egress]]`, `[[deny]]` and `[[ask]]`: what may be reached, and how.
//!
//! ```text
//! tables ─► one rule each, alone sensible ─► held against each other ─► Vec<EgressRule>
//! ```
//!
//! 1. A combination that the gateway could not carry out, or that two readers would understand
//!    differently, is refused with its place: nothing is guessed.
//! 2. Methods and paths are sorted and without repetition, so that equal meaning gives equal
//!    rules.

use crate::ask_section;
use crate::config::secret_name;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::host;
use crate::keys;
use crate::path::Pattern;
use crate::reader::{At, Section};
use crate::units::parse_size;
use crate::verdict::METHODS_NEVER;
use model::{
    DoorSpec, Effect, EgressRule, HostName, HostPattern, Injection, PathPattern, RuleLimits,
    SecretUse, Sight,
};
use std::collections::BTreeSet;

/// The port of a rule that names none.
pub(crate) const HTTPS_PORT: u16 = 443;

/// Most rules of one file: far above what a person can read, and every request is held against
/// all of them.
const RULES_MAX: usize = 512;

/// Most methods, and most paths, of one rule.
pub(crate) const ITEMS_MAX: usize = 64;

/// Most requests a minute that make sense as a limit.
const PER_MINUTE_MAX: i64 = 1_000_000;

/// Longest user name of basic authentication, and longest name of a parameter, bytes.
const NAME_BYTES_MAX: usize = 128;

/// Header fields that carry the message itself: a secret there would break or smuggle requests
/// (RFC 9110 §7.6.1, RFC 9112 §6).
const HEADERS_TAKEN: [&str; 16] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "range",
    "via",
];

/// A rule and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) rule: EgressRule,
    pub(crate) place: Place,
    /// Where its port stands, or what implies one.
    pub(crate) port_place: Place,
}

/// Reads all rules of an agent file.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<Vec<EgressRule>, PolicyError> {
    let mut all: Vec<Written> = Vec::new();
    for section in top.list("egress", &keys::EGRESS)? {
        let written = read_allow(&section)?;
        check_against(&all, &written)?;
        all.push(written);
    }
    let asks = ask_section::read(top, &all)?;
    for written in asks {
        check_against(&all, &written)?;
        all.push(written);
    }
    for section in top.list("deny", &keys::DENY)? {
        let written = read_deny(&section)?;
        check_against(&all, &written)?;
        all.push(written);
    }
    let named = all.iter().map(|w| (&w.rule, &w.port_place));
    check_ports(named)?;
    if let Some(over) = all.get(RULES_MAX) {
        let why = format!("are more than {RULES_MAX}");
        return Err(Problem::bad("rules", why, "use *.suffix and patterns").at(&over.place));
    }
    Ok(all.into_iter().map(|written| written.rule).collect())
}

/// Every port of a rule that does not deny is a listening socket in the sandbox, which would refuse
/// to start with more than it may have.
pub(crate) fn check_ports<'a>(
    rules: impl Iterator<Item = (&'a EgressRule, &'a Place)>,
) -> Result<(), PolicyError> {
    let mut ports = BTreeSet::new();
    for (rule, place) in rules.filter(|(rule, _)| rule.effect != Effect::Deny) {
        let Some(port) = rule.port else { continue };
        ports.insert(port);
        if ports.len() > DoorSpec::PORTS_MAX {
            let why = format!(
                "{port} is one more than the {} different ports that an agent's rules may name",
                DoorSpec::PORTS_MAX
            );
            return Err(Problem::bad("port", why, "let the rules name fewer ports").at(place));
        }
    }
    Ok(())
}

/// The rules of a file of `[[egress]]` tables with fewer keys: a proposal.
pub(crate) fn read_plain(
    top: &Section<'_, '_>,
    keys: &keys::Keys,
) -> Result<Vec<EgressRule>, PolicyError> {
    top.list("egress", keys)?.iter().map(|s| read_allow(s).map(|w| w.rule)).collect()
}

/// What verdicts call the rule that begins there: `agents/x.toml:14`.
pub(crate) fn rule_id(place: &Place) -> String {
    match place {
        Place::File { file, line, .. } => format!("{file}:{line}"),
        other => other.to_string(),
    }
}

fn read_allow(section: &Section<'_, '_>) -> Result<Written, PolicyError> {
    let host = read_host(section)?;
    let sight = read_sight(section)?;
    let port = read_port(section)?;
    if sight == Sight::Tcp && port.is_none() {
        return Err(section.missing("port", "port = 5432"));
    }
    refuse_what_is_not_seen(section, sight)?;
    let mut rule = EgressRule::allow(rule_id(&section.place), host, port.unwrap_or(HTTPS_PORT));
    rule.sight = sight;
    rule.methods = read_methods(section, true)?;
    rule.paths = read_paths(section)?;
    rule.private = section.boolean("private", "private = true")?.is_some_and(|at| at.value);
    rule.secret = read_secret(section)?;
    rule.own_credentials = read_own_credentials(section)?;
    rule.limits = read_limits(section)?;
    Ok(written(section, rule))
}

fn written(section: &Section<'_, '_>, rule: EgressRule) -> Written {
    let place = section.place.clone();
    let port_place = section.place_of("port").unwrap_or_else(|| place.clone());
    Written { rule, place, port_place }
}

fn read_deny(section: &Section<'_, '_>) -> Result<Written, PolicyError> {
    let host = read_host(section)?;
    let mut rule = EgressRule::allow(rule_id(&section.place), host, HTTPS_PORT);
    rule.effect = Effect::Deny;
    rule.port = read_port(section)?;
    rule.methods = read_methods(section, false)?;
    rule.paths = read_paths(section)?;
    Ok(written(section, rule))
}

fn read_host(section: &Section<'_, '_>) -> Result<HostPattern, PolicyError> {
    const HOST: &str = "host = \"api.example.org\"";
    let host = section.parsed("host", HOST, parse_host_pattern)?;
    Ok(host.ok_or_else(|| section.missing("host", HOST))?.value)
}

fn read_port(section: &Section<'_, '_>) -> Result<Option<u16>, PolicyError> {
    let port = section.integer_in("port", "port = 443", 1..=65_535)?;
    Ok(port.and_then(|at| u16::try_from(at.value).ok()))
}

/// An exact host.
pub(crate) fn parse_host(text: &str) -> Result<HostName, Problem> {
    host::parse_host_name(text).map_err(|e| {
        let why = format!("is {}: {}", quote(text), e.why);
        Problem::bad("host", why, "write one exact name, e.g. \"api.example.org\"")
    })
}

/// An exact host, or `*.suffix`.
pub(crate) fn parse_host_pattern(text: &str) -> Result<HostPattern, Problem> {
    host::parse_host_pattern(text).map_err(|e| {
        let why = format!("is {}: {}", quote(text), e.why);
        let remedy = "write one exact name, e.g. \"api.example.org\", or \"*.example.org\"";
        Problem::bad("host", why, remedy)
    })
}

fn read_sight(section: &Section<'_, '_>) -> Result<Sight, PolicyError> {
    let tls = section.parsed("tls", "tls = \"intercept\"", |text| match text {
        "intercept" => Ok(Sight::Intercept),
        "tunnel" => Ok(Sight::Tunnel),
        other => Err(Problem::bad(
            "tls",
            format!("is {}", quote(other)),
            "write \"intercept\" (the default) or \"tunnel\"",
        )),
    })?;
    let protocol = section.parsed("protocol", "protocol = \"tcp\"", |text| match text {
        "tcp" => Ok(()),
        other => Err(Problem::bad(
            "protocol",
            format!("is {}", quote(other)),
            "write \"tcp\" for raw TCP, or nothing for HTTP",
        )),
    })?;
    match (tls, protocol) {
        (Some(tls), Some(_)) => {
            let why = "has no meaning for protocol = \"tcp\"";
            Err(Problem::bad("tls", why, "remove one of the two").at(&tls.place))
        }
        (None, Some(_)) => Ok(Sight::Tcp),
        (tls, None) => Ok(tls.map_or(Sight::Intercept, |at| at.value)),
    }
}

/// Whoever cannot look into a connection cannot judge, fill in or measure its requests.
fn refuse_what_is_not_seen(section: &Section<'_, '_>, sight: Sight) -> Result<(), PolicyError> {
    let (what, remedy) = match sight {
        Sight::Intercept => return Ok(()),
        Sight::Tunnel => ("tls = \"tunnel\"", "remove it, or remove `tls = \"tunnel\"`"),
        Sight::Tcp => ("protocol = \"tcp\"", "remove it, or remove `protocol = \"tcp\"`"),
    };
    for key in ["methods", "paths", "secret", "inject", "own_credentials", "max_request"] {
        if let Some(place) = section.place_of(key) {
            let why = format!("cannot be kept with {what}: the gateway sees no requests there");
            return Err(Problem::bad(key, why, remedy).at(&place));
        }
    }
    Ok(())
}

fn items(
    section: &Section<'_, '_>,
    key: &'static str,
    example: &str,
) -> Result<Vec<At<String>>, PolicyError> {
    let Some(found) = section.strings(key, example)? else { return Ok(Vec::new()) };
    let bad = |why: &str, remedy: &str| Err(Problem::bad(key, why, remedy).at(&found.place));
    if found.value.is_empty() {
        return bad("is empty, which could mean all or none", "remove the key to mean all");
    }
    if found.value.len() > ITEMS_MAX {
        return bad("has more than 64 items", "use patterns, or several rules");
    }
    Ok(found.value)
}

fn read_methods(section: &Section<'_, '_>, permits: bool) -> Result<Vec<String>, PolicyError> {
    let mut all = Vec::new();
    for At { place, value } in items(section, "methods", "methods = [\"GET\"]")? {
        parse_method(&value, permits).map_err(|p| p.at(&place))?;
        all.push(value);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// A method as rules write it: a token of upper-case letters, digits, `-` and `_`.
pub(crate) fn parse_method(text: &str, permits: bool) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if text.is_empty() || text.len() > 32 || !text.bytes().all(plain) {
        let why = format!("has {}, which is not a method", quote(text));
        let upper = text.to_ascii_uppercase();
        let remedy = if upper != text && upper.bytes().all(plain) {
            format!("write {}", quote(&upper))
        } else {
            "write e.g. \"GET\"".to_owned()
        };
        return Err(Problem::bad("methods", why, remedy));
    }
    if permits && METHODS_NEVER.contains(&text) {
        let why = format!("has {text}, which shows secrets or opens a second way out");
        return Err(Problem::bad("methods", why, "remove it: no rule permits it"));
    }
    Ok(())
}

fn read_paths(section: &Section<'_, '_>) -> Result<Vec<PathPattern>, PolicyError> {
    let mut all = Vec::new();
    for At { place, value } in items(section, "paths", "paths = [\"/repos/**\"]")? {
        all.push(parse_path(&value).map_err(|p| p.at(&place))?);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// A path pattern that cannot be read in two ways.
pub(crate) fn parse_path(text: &str) -> Result<PathPattern, Problem> {
    let bad = |why: &str| {
        let why = format!("has {}: {why}", quote(text));
        Problem::bad("paths", why, "write e.g. \"/repos/**\" or \"/users/*/items\"")
    };
    let pattern = PathPattern::parse(text).map_err(|e| bad(e.why))?;
    match Pattern::read(text) {
        Some(_) => Ok(pattern),
        None => Err(bad("servers could read it in more than one way")),
    }
}

pub(crate) fn read_secret(section: &Section<'_, '_>) -> Result<Option<SecretUse>, PolicyError> {
    let name = section.parsed("secret", "secret = \"github\"", secret_name)?;
    let inject = read_injection(section)?;
    match (name, inject) {
        (None, None) => Ok(None),
        (None, Some(inject)) => {
            let why = "has nothing to put in: the rule names no secret";
            Err(Problem::bad("inject", why, "add `secret = \"NAME\"`").at(&inject.place))
        }
        (Some(name), inject) => Ok(Some(SecretUse {
            name: name.value,
            inject: inject.map_or(Injection::Bearer, |at| at.value),
        })),
    }
}

fn read_injection(section: &Section<'_, '_>) -> Result<Option<At<Injection>>, PolicyError> {
    const EXAMPLE: &str = "inject = { header = \"x-api-key\" }";
    let Some(place) = section.place_of("inject") else { return Ok(None) };
    if !section.is_table("inject") {
        return section.parsed("inject", EXAMPLE, |text| match text {
            "bearer" => Ok(Injection::Bearer),
            other => Err(Problem::bad(
                "inject",
                format!("is {}", quote(other)),
                "write \"bearer\", { header = \"x-api-key\" }, { basic = \"user\" } or \
                 { query = \"key\" }",
            )),
        });
    }
    let Some(inner) = section.section("inject", &keys::INJECT)? else { return Ok(None) };
    let header = inner.parsed("header", EXAMPLE, parse_header)?;
    let basic = inner.parsed("basic", "inject = { basic = \"user\" }", parse_user)?;
    let query = inner.parsed("query", "inject = { query = \"key\" }", parse_parameter)?;
    let mut all = [header, basic, query].into_iter().flatten();
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(Some(At { place, value: one.value })),
        (None, _) => Err(inner.missing("header", EXAMPLE)),
        (Some(_), Some(second)) => {
            let why = "says more than one way";
            Err(Problem::bad("inject", why, "keep one of them").at(&second.place))
        }
    }
}

fn parse_header(text: &str) -> Result<Injection, Problem> {
    let name = text.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(token) {
        let why = format!("is {}, which is not the name of a header", quote(text));
        return Err(Problem::bad("header", why, "write e.g. \"x-api-key\""));
    }
    if HEADERS_TAKEN.contains(&name.as_str()) {
        let why = format!("is {}, which the gateway itself writes", quote(text));
        return Err(Problem::bad("header", why, "name the header that the service documents"));
    }
    Ok(Injection::Header { name })
}

fn parse_user(text: &str) -> Result<Injection, Problem> {
    let plain = text.len() <= NAME_BYTES_MAX && !text.chars().any(|c| c.is_control() || c == ':');
    if !plain {
        let why = "is no user name: it is longer than 128 bytes, or has ':' or control characters";
        return Err(Problem::bad("basic", why, "write the user; the secret is the password"));
    }
    crate::agent_file::no_credential("basic", text)?;
    Ok(Injection::Basic { user: text.to_owned() })
}

fn parse_parameter(text: &str) -> Result<Injection, Problem> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(plain) {
        let why = format!("is {}, which is not the name of a parameter", quote(text));
        return Err(Problem::bad("query", why, "write e.g. \"key\""));
    }
    Ok(Injection::Query { name: text.to_owned() })
}

fn read_own_credentials(section: &Section<'_, '_>) -> Result<bool, PolicyError> {
    let example = "own_credentials = \"allow\"";
    let found = section.parsed("own_credentials", example, |text| match text {
        "allow" => Ok(true),
        "refuse" => Ok(false),
        other => Err(Problem::bad(
            "own_credentials",
            format!("is {}", quote(other)),
            "write \"refuse\" (the default) or \"allow\"",
        )),
    })?;
    Ok(found.is_some_and(|at| at.value))
}

fn read_limits(section: &Section<'_, '_>) -> Result<RuleLimits, PolicyError> {
    let size = |key: &'static str, example| section.parsed(key, example, |t| parse_size(key, t));
    let per_minute =
        section.integer_in("max_per_minute", "max_per_minute = 60", 1..=PER_MINUTE_MAX)?;
    Ok(RuleLimits {
        max_request: size("max_request", "max_request = \"1MiB\"")?.map(|at| at.value),
        max_upload_per_day: size("max_upload_per_day", "max_upload_per_day = \"10MiB\"")?
            .map(|at| at.value),
        max_per_minute: per_minute.and_then(|at| u32::try_from(at.value).ok()),
    })
}

/// Holds a rule against those before it.
fn check_against(earlier: &[Written], new: &Written) -> Result<(), PolicyError> {
    for Written { rule: old, .. } in earlier {
        let rule = &new.rule;
        if !overlap(&old.host, &rule.host) || !ports_overlap(old.port, rule.port) {
            continue;
        }
        let port = rule.port.or(old.port).unwrap_or_default();
        let bad = |why: String, remedy: &str| Err(Problem::bad("host", why, remedy).at(&new.place));
        let denies = |r: &EgressRule| r.effect == Effect::Deny;
        if denies(rule) {
            let in_part = !rule.methods.is_empty() || !rule.paths.is_empty();
            if in_part && !denies(old) && old.sight != Sight::Intercept {
                let (why, id) = ("nothing can be denied in part there", &old.id);
                let why = format!("{} is not looked into because of {id}: {why}", rule.host);
                return bad(why, "deny the host as a whole, or remove the tunnel");
            }
        } else if !denies(old) && old.sight != rule.sight {
            let why = format!("{}:{port} is looked into differently by {}", rule.host, old.id);
            return bad(why, "choose one of intercept, tunnel and tcp for a host and port");
        }
        let same =
            |r: &EgressRule| (r.effect, r.host.clone(), r.port, r.methods.clone(), r.paths.clone());
        if same(old) == same(rule) {
            let done = if denies(rule) { "denied" } else { "granted" };
            let port = rule.port.map_or_else(String::new, |p| format!(":{p}"));
            let why = format!("{}{port} is {done} already by {}", rule.host, old.id);
            return bad(why, "keep one of the two");
        }
    }
    Ok(())
}

/// Whether some name is covered by both.
pub(crate) fn overlap(a: &HostPattern, b: &HostPattern) -> bool {
    match (a, b) {
        (HostPattern::Exact(a), HostPattern::Exact(b)) => a == b,
        (HostPattern::Exact(name), below) | (below, HostPattern::Exact(name)) => below.covers(name),
        (HostPattern::Below(a_base), HostPattern::Below(b_base)) => {
            a_base == b_base || a.covers(b_base) || b.covers(a_base)
        }
    }
}

/// Whether some port is meant by both.
pub(crate) fn ports_overlap(a: Option<u16>, b: Option<u16>) -> bool {
    a.is_none() || b.is_none() || a == b
}
