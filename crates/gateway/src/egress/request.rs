//! One request: where it goes, whether it may, and what of it goes on. Decides; touches nothing
//! but the vault.

use super::Refusal;
use super::credentials::{self, Cleared};
use crate::authority;
use crate::door::DoorState;
use crate::http::head::{Framing, Head, same_name};
use crate::inject::{may_be_parameter, parameter_name};
use crate::mask::Masker;
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
    /// Further secrets that the answer must not show.
    pub(crate) veil: Vec<Secret>,
    pub(crate) websocket: bool,
}

impl Judged<'_> {
    /// Whether the answer is looked through for secrets.
    pub(crate) fn hides(&self) -> bool {
        self.secret.is_some() || !self.veil.is_empty()
    }

    /// Masks what the answer must not show.
    pub(crate) fn masker(&self) -> Masker {
        Masker::of(self.secret.iter().chain(&self.veil).map(|s| s.bytes.expose()))
    }

    /// The largest body.
    pub(crate) fn body_max(&self) -> u64 {
        self.rule.limits.max_request.unwrap_or(u64::MAX).min(UPLOAD_BYTES_MAX)
    }
}

/// What the log keeps of a request.
pub(crate) fn line(head: &Head, target: &str) -> RequestLine {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut query_keys: Vec<String> = pairs(query).take(KEYS_MAX).map(shown_key).collect();
    let more = pairs(query).count().saturating_sub(KEYS_MAX);
    if more > 0 {
        query_keys.push(format!("… and {more} more"));
    }
    RequestLine {
        method: head.method.clone(),
        path: path.chars().take(MAX_INLINE_BYTES).collect(),
        query_keys,
        websocket: upgrades(head),
    }
}

fn pairs(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty())
}

/// All names of parameters as they are sent, in quotation marks. A target has neither spaces nor
/// control characters, so nothing in a name ends it.
pub(crate) fn names(query: &str) -> impl Iterator<Item = String> {
    pairs(query).map(|pair| match unnamed(pair) {
        true => "…".to_owned(),
        false => format!("\"{}\"", pair.split('=').next().unwrap_or("").replace('"', "%22")),
    })
}

/// Whether a WebSocket is asked for, properly or not.
fn upgrades(head: &Head) -> bool {
    head.field("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// Whether a parameter without a value may be a value itself.
fn unnamed(pair: &str) -> bool {
    !pair.contains('=') && pair.len() > KEY_CHARS_MAX / 3
}

/// A parameter's name, for a record.
fn shown_key(pair: &str) -> String {
    if unnamed(pair) {
        return "…".to_owned();
    }
    let name = parameter_name(pair);
    let cut = if name.chars().count() > KEY_CHARS_MAX { "…" } else { "" };
    name.chars().take(KEY_CHARS_MAX).chain(cut.chars()).collect()
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
    if in_parts(door, to)
        && let Some(name) = second_place(head, target)
    {
        return Err(bad(&format!(
            "{name} names another path, host or method than the request line; where rules go by \
             path or method nothing of that kind goes out; if it is meant, let a rule for {} name \
             neither paths nor methods",
            to.host
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
    let websocket = websocket(door, head, rule)?;
    let secret = secret(door, to, rule)?;
    let own = rule.secret.as_ref().map(|s| s.name.as_str());
    let veil = door.veil.at(to.host.as_str(), own).map_err(|e| unveiled(rule, &e))?;
    Ok(Judged { rule, ask, cleared, secret, veil, websocket })
}

/// Whether some rule judges requests there by method or path.
fn in_parts(door: &DoorState, to: &Origin) -> bool {
    let here = |r: &&EgressRule| r.host.covers(&to.host) && r.port.is_none_or(|p| p == to.port);
    let mut here = door.rules.iter().filter(here);
    here.any(|r| !r.methods.is_empty() || !r.paths.is_empty())
}

/// Fields and parameters by which services are told of a further path (the source of a copy, the
/// target of a move), of the path or host before a proxy, or of another method.
fn second_place(head: &Head, target: &str) -> Option<String> {
    const PLACES: [&str; 16] = [
        "destination",
        "x-amz-copy-source",
        "x-amz-rename-source",
        "x-goog-copy-source",
        "x-ms-copy-source",
        "x-ms-rename-source",
        "x-oss-copy-source",
        "x-cos-copy-source",
        "x-copy-from",
        "x-original-uri",
        "x-rewrite-uri",
        "x-forwarded-uri",
        "x-forwarded-path",
        "x-forwarded-method",
        "x-original-host",
        "x-forwarded-host",
    ];
    let host = head.field("host").unwrap_or("");
    let sent = |wanted: &&str| {
        let mut fields = head.fields.iter();
        // Proxies in between say truly which host was asked for.
        let harmless = |v: &str| wanted.ends_with("-host") && v.eq_ignore_ascii_case(host);
        fields.any(|(n, v)| same_name(n, wanted) && !harmless(v))
    };
    if let Some(name) = PLACES.into_iter().find(sent) {
        return Some(format!("the field {name}"));
    }
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let method = |pair: &&str| {
        let value = pair.split_once('=').map_or("", |(_, value)| value);
        let replaces = |name: &&str| may_be_parameter(pair, name);
        METHOD.iter().chain(&["_method"]).any(replaces) && !value.eq_ignore_ascii_case(&head.method)
    };
    query.split('&').find(method).map(|pair| format!("the parameter {:?}", shown_key(pair)))
}

/// Fields by which frameworks replace the method that was judged.
const METHOD: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// Fields by which frameworks replace the method or the path that was just judged.
fn second_request_line(head: &Head) -> Option<&'static str> {
    const PATH: [&str; 2] = ["x-original-url", "x-rewrite-url"];
    let method = METHOD.into_iter().find(|wanted| {
        head.fields
            .iter()
            .any(|(n, v)| same_name(n, wanted) && !v.eq_ignore_ascii_case(&head.method))
    });
    let sent = |wanted: &&str| head.fields.iter().any(|(n, _)| same_name(n, wanted));
    method.or_else(|| PATH.into_iter().find(sent))
}

/// Nothing is asked whose answer could show a secret that cannot be masked.
pub(super) fn unveiled(rule: &EgressRule, cause: &VaultError) -> Refusal {
    let why = format!("a secret that its answer could repeat cannot be masked: {cause}");
    Refusal::new(403, &rule.id, why)
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
fn websocket(door: &DoorState, head: &Head, rule: &EgressRule) -> Result<bool, Refusal> {
    if !upgrades(head) {
        return Ok(false);
    }
    let connection = head.field("connection").unwrap_or("");
    let asks = connection.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    if !asks || head.method != "GET" || head.framing != Framing::None {
        return Err(Refusal::new(400, "http", "this is no proper WebSocket handshake"));
    }
    if !rule.websocket {
        let agent = &door.scribe.agent;
        let why = format!(
            "the rule permits the request, but not as a WebSocket, through which any bytes pass \
             both ways unseen; if that is meant, write websocket = true in its [[egress]] in \
             agents/{agent}.toml"
        );
        return Err(Refusal::new(403, &rule.id, why));
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
        let head = |method: &str, more: &str| {
            let text = format!("{method} / HTTP/1.1\r\nhost: a.test\r\n{more}\r\n");
            crate::http::head::parse(text.as_bytes()).expect("a head")
        };
        let get = head("GET", "");
        let kept = line(&get, "/a/b?x=hidden&y&abcdefghijklmnopqrstuvwxyz0123456789&%7A=1&");
        assert_eq!((kept.method.as_str(), kept.path.as_str()), ("GET", "/a/b"));
        assert_eq!(kept.query_keys, ["x", "y", "…", "z"]);
        // As many as are kept, and one that says how many more there were.
        let many = line(&get, &format!("/?{}", "a&".repeat(500))).query_keys;
        assert_eq!((many.len(), many.last().map(String::as_str)), (65, Some("… and 436 more")));
        assert!(!kept.websocket && line(&head("GET", "Upgrade: WebSocket\r\n"), "/").websocket);
    }
}
