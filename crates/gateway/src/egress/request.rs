//! One request: where it goes, whether it may, and what of it goes on. Decides; touches nothing
//! but the vault.

use super::Refusal;
use super::credentials::{self, Cleared};
use crate::authority;
use crate::door::DoorState;
use crate::http::head::{Framing, Head};
use crate::inject::parameter_name;
use crate::vault::{Secret, VaultError};
use model::{EgressRule, HostName, Injection, MAX_INLINE_BYTES, RequestLine};
use policy::Verdict;

/// Largest body sent out where the rule says nothing.
const UPLOAD_BYTES_MAX: u64 = 1 << 30;
/// Names of parameters kept in a record, and how much of each.
const KEYS_MAX: usize = 64;
const KEY_CHARS_MAX: usize = 60;

/// Where requests go: a name, a port, and whether TLS is spoken there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl Origin {
    /// The `Host` field of requests to it.
    pub(crate) fn authority(&self) -> String {
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => self.host.to_string(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// `https://host:port`, for records and people.
    pub(crate) fn base(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// A request that may go out.
pub(crate) struct Judged<'a> {
    pub(crate) rule: &'a EgressRule,
    /// Whether a human decides.
    pub(crate) ask: bool,
    pub(crate) cleared: Cleared,
    pub(crate) secret: Option<Secret>,
    pub(crate) websocket: bool,
}

impl Judged<'_> {
    /// The largest body.
    pub(crate) fn body_max(&self) -> u64 {
        self.rule.limits.max_request.unwrap_or(u64::MAX).min(UPLOAD_BYTES_MAX)
    }
}

/// What the log keeps of a request.
pub(crate) fn line(method: &str, target: &str) -> RequestLine {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let keys = query.split('&').filter(|pair| !pair.is_empty()).take(KEYS_MAX);
    RequestLine {
        method: method.to_owned(),
        path: path.chars().take(MAX_INLINE_BYTES).collect(),
        query_keys: keys.map(shown_key).collect(),
    }
}

/// A parameter's name; one without a value may be a value itself.
fn shown_key(pair: &str) -> String {
    if !pair.contains('=') && pair.len() > KEY_CHARS_MAX / 3 {
        return "…".to_owned();
    }
    parameter_name(pair).chars().take(KEY_CHARS_MAX).collect()
}

/// Judges an origin-form request.
pub(crate) fn judge<'a>(
    door: &'a DoorState,
    to: &Origin,
    head: &Head,
    target: &str,
) -> Result<Judged<'a>, Refusal> {
    let bad = |why: &str| Refusal::new(400, "http", why);
    if matches!(head.method.as_str(), "TRACE" | "TRACK" | "CONNECT") {
        return Err(bad("this method is not forwarded"));
    }
    if !target.starts_with('/') {
        return Err(bad("the target is not a path"));
    }
    if let Some(name) = second_request_line(head) {
        return Err(bad(&format!(
            "the field {name} asks for something else than the request line"
        )));
    }
    let path = target.split('?').next().unwrap_or("");
    let verdict = policy::request_verdict(&door.rules, &to.host, to.port, &head.method, path);
    let (rule, ask) = match verdict {
        Verdict::Allow(rule) => (rule, false),
        Verdict::Ask(rule) => (rule, true),
        Verdict::Deny(denial) => {
            let asked = Some((head.method.as_str(), path));
            return Err(Refusal::denied(door, to, denial, asked));
        }
    };
    if let Framing::Length(n) = head.framing {
        check_size(rule, n)?;
    }
    if let Some(max) = rule.limits.max_per_minute
        && !door.rates.admit(&rule.id, max)
    {
        let why = format!("the rule permits {max} requests in a minute; wait and try again");
        return Err(Refusal::new(429, &rule.id, why));
    }
    let cleared = credentials::clear(head, target, rule, &door.placeholder)
        .map_err(|why| Refusal::new(403, &rule.id, why))?;
    let websocket = websocket(head, rule)?;
    let secret = secret(door, to, rule)?;
    Ok(Judged { rule, ask, cleared, secret, websocket })
}

/// Fields by which frameworks replace the method or the path that was just judged.
fn second_request_line(head: &Head) -> Option<&'static str> {
    const METHOD: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
    const PATH: [&str; 2] = ["x-original-url", "x-rewrite-url"];
    let is = |name: &str, wanted: &str| name.eq_ignore_ascii_case(wanted);
    let method = METHOD.into_iter().find(|wanted| {
        head.fields.iter().any(|(n, v)| is(n, wanted) && !v.eq_ignore_ascii_case(&head.method))
    });
    let sent = |wanted: &&str| head.fields.iter().any(|(n, _)| is(n, wanted));
    method.or_else(|| PATH.into_iter().find(sent))
}

fn check_size(rule: &EgressRule, bytes: u64) -> Result<(), Refusal> {
    match rule.limits.max_request {
        Some(max) if bytes > max => {
            let why = format!("the request's body has {bytes} bytes; the rule permits {max}");
            Err(Refusal::new(413, &rule.id, why))
        }
        _ => Ok(()),
    }
}

/// Whether this is a WebSocket handshake (RFC 6455 §4.1) that may go on.
fn websocket(head: &Head, rule: &EgressRule) -> Result<bool, Refusal> {
    if !head.field("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket")) {
        return Ok(false);
    }
    let connection = head.field("connection").unwrap_or("");
    let asks = connection.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    if !asks || head.method != "GET" || head.framing != Framing::None {
        return Err(Refusal::new(400, "http", "this is no proper WebSocket handshake"));
    }
    // Servers repeat the address they were asked for; in frames nothing can be masked.
    if matches!(rule.secret.as_ref().map(|s| &s.inject), Some(Injection::Query { .. })) {
        let why = "a WebSocket cannot be opened with a secret in the query; let the rule inject it \
                   as bearer or header";
        return Err(Refusal::new(403, &rule.id, why));
    }
    Ok(true)
}

fn secret(door: &DoorState, to: &Origin, rule: &EgressRule) -> Result<Option<Secret>, Refusal> {
    let Some(grant) = &rule.secret else { return Ok(None) };
    let refused = |why: String| Refusal::new(403, &rule.id, why);
    let (name, host, agent) = (&grant.name, to.host.as_str(), &door.scribe.agent);
    let secret = door.vault.secret(name).map_err(|e| match e {
        VaultError::NotFound { .. } => refused(format!(
            "there is no secret named {name}; set it with \
             `nanoclaw secret set {name} --host {host} --agent {agent}`"
        )),
        other => refused(other.to_string()),
    })?;
    if !secret.serves(host, agent) {
        return Err(refused(format!(
            "the secret {name} may not be used at {host} by {agent}; see \
             `nanoclaw secret set {name} --host {host}`"
        )));
    }
    Ok(Some(secret))
}

/// Judges the `Host` field of a request on a connection to `to`.
pub(crate) fn check_host(head: &Head, to: &Origin) -> Result<(), Refusal> {
    let wanted = authority::Authority { host: to.host.clone(), port: to.port };
    authority::check_host(head.field("host"), &wanted)
        .map_err(|e| Refusal::new(400, "http", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_record_keeps_names_of_parameters_and_never_what_may_be_a_value() {
        let kept = line("GET", "/a/b?x=hidden&y&abcdefghijklmnopqrstuvwxyz0123456789&%7A=1&");
        assert_eq!((kept.method.as_str(), kept.path.as_str()), ("GET", "/a/b"));
        assert_eq!(kept.query_keys, ["x", "y", "…", "z"]);
        assert!(line("GET", &format!("/?{}", "a&".repeat(500))).query_keys.len() <= 64);
    }
}
