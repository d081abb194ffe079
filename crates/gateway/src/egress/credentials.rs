//! What an agent sends to prove who it is: found, refused, or taken out for the gateway's own.
//! Pure.
//!
//! 1. A credential of the agent's own goes out only where the rule says `own_credentials`.
//! 2. The placeholder never goes out: it is taken out where a secret takes its place, and refused
//!    everywhere else, in whatever spelling.

use crate::http::head::{Field, Head};
use crate::inject::{parameter_name, percent_decode};
use crate::mask::Masker;
use model::{EgressRule, Injection};

/// Fields that carry credentials.
const FIELDS: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "private-token",
    "job-token",
    "x-auth-token",
    "x-access-token",
    "x-amz-security-token",
];
/// Parameters of a query that carry credentials, in lower case.
const PARAMETERS: &[&str] = &[
    "key",
    "api_key",
    "api-key",
    "apikey",
    "access_token",
    "auth_token",
    "private_token",
    "token",
    "sig",
    "signature",
    "password",
    "client_secret",
    "x-amz-signature",
    "x-amz-security-token",
    "x-goog-signature",
];

/// Fields and parameters of a request that has the placeholder somewhere in it: each is searched by
/// itself then, which costs more than reading it. Programs send a few dozen.
const PARTS_MAX: usize = 256;

/// What may go on of a request's fields and target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cleared {
    pub(crate) target: String,
    pub(crate) fields: Vec<Field>,
}

/// Looks through a request that `rule` permits; an error says what is wrong and what helps.
pub(crate) fn clear(
    head: &Head,
    target: &str,
    rule: &EgressRule,
    placeholder: &str,
) -> Result<Cleared, String> {
    let scan = Scan { rule, placeholder, somewhere: stands_in(head, target, placeholder) };
    let parts = head.fields.len() + target.bytes().filter(|&b| b == b'&').count() + 1;
    if scan.somewhere && parts > PARTS_MAX {
        return Err(format!(
            "the request carries the placeholder key and has {parts} fields and parameters; send \
             at most {PARTS_MAX} with it"
        ));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if scan.has_placeholder(path) {
        return Err(scan.misplaced("path"));
    }
    let mut fields = Vec::with_capacity(head.fields.len() + 4);
    for (name, value) in &head.fields {
        if scan.passes(name, value, scan.is_credential_field(name, value), "header")? {
            fields.push((name.clone(), value.clone()));
        }
    }
    let Some(query) = query else { return Ok(Cleared { target: path.to_owned(), fields }) };
    let mut kept = Vec::new();
    for pair in query.split('&') {
        let name = parameter_name(pair);
        if scan.passes(&name, pair, scan.is_credential_parameter(&name), "query parameter")? {
            kept.push(pair);
        }
    }
    Ok(Cleared { target: format!("{path}?{}", kept.join("&")), fields })
}

struct Scan<'a> {
    rule: &'a EgressRule,
    placeholder: &'a str,
    /// Whether it is anywhere in the request.
    somewhere: bool,
}

/// Whether the placeholder is anywhere in a request. One search over all of it: most requests have
/// none, and one made of thousands of parameters must not cost thousands of searches.
fn stands_in(head: &Head, target: &str, placeholder: &str) -> bool {
    let mut all = String::from(target);
    for (_, value) in &head.fields {
        // No spelling of a key has a new line in it, so none is found across two fields.
        all.push('\n');
        all.push_str(value);
    }
    holds(&all, placeholder)
}

/// Whether `text` has the placeholder in it, in whatever spelling.
fn holds(text: &str, placeholder: &str) -> bool {
    let found = |text: &str| {
        let mut masker = Masker::new(Some(placeholder.as_bytes()));
        masker.whole(text.as_bytes());
        masker.found()
    };
    found(text) || (text.contains('%') && found(&percent_decode(text)))
}

impl Scan<'_> {
    /// Whether it goes on as it is; `false` when the secret takes its place.
    fn passes(
        &self,
        name: &str,
        value: &str,
        credential: bool,
        what: &str,
    ) -> Result<bool, String> {
        let shown: String = name.chars().take(60).collect();
        match (self.has_placeholder(value), credential) {
            (true, true) if self.rule.secret.is_some() => Ok(false),
            (true, _) => Err(self.misplaced(&format!("{what} {shown:?}"))),
            (false, true) if !self.rule.own_credentials => Err(format!(
                "the request carries a credential of the agent's own ({what} {shown:?}); store it \
                 with `nanoclaw secret set` and write secret = \"NAME\" in the rule, or write \
                 own_credentials = \"allow\" there"
            )),
            (false, _) => Ok(true),
        }
    }

    fn misplaced(&self, place: &str) -> String {
        let why = if self.rule.secret.is_some() {
            "where no secret takes its place; leave it out there"
        } else {
            "and the rule grants no secret that could take its place; write secret = \"NAME\" there"
        };
        format!("the request carries the placeholder key ({place}) {why}")
    }

    fn is_credential_field(&self, name: &str, value: &str) -> bool {
        let injected = match self.rule.secret.as_ref().map(|s| &s.inject) {
            Some(Injection::Header { name: own }) => own.eq_ignore_ascii_case(name),
            _ => false,
        };
        injected || FIELDS.contains(&name) || (name == "sec-websocket-protocol" && is_key(value))
    }

    fn is_credential_parameter(&self, name: &str) -> bool {
        let injected = match self.rule.secret.as_ref().map(|s| &s.inject) {
            Some(Injection::Query { name: own }) => own == name,
            _ => false,
        };
        injected || PARAMETERS.contains(&name.to_ascii_lowercase().as_str())
    }

    fn has_placeholder(&self, text: &str) -> bool {
        self.somewhere && holds(text, self.placeholder)
    }
}

/// Sub-protocols by which browsers send keys, for they can set no other field.
fn is_key(protocols: &str) -> bool {
    let protocols = protocols.to_ascii_lowercase();
    ["api-key", "bearer", "token", "authorization"].iter().any(|word| protocols.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::parse;
    use model::{HostName, SecretUse};

    const PLACEHOLDER: &str = "placeholder-not-a-key";

    fn rule(inject: Option<Injection>, own: bool) -> EgressRule {
        let host = HostName::parse("a.test").expect("valid");
        let secret = inject.map(|inject| SecretUse { name: "s".into(), inject });
        EgressRule { secret, own_credentials: own, ..EgressRule::allow("r", host, 443) }
    }

    fn run(rule: &EgressRule, target: &str, field: &str) -> Result<Cleared, String> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n{field}\r\n");
        clear(&parse(head.as_bytes()).expect("a head"), target, rule, PLACEHOLDER)
    }

    #[test]
    fn a_placeholder_among_thousands_of_parameters_is_not_looked_for_in_each() {
        let (closed, many) = (rule(None, false), "&a".repeat(15_000));
        assert!(run(&closed, &format!("/?a{many}"), "").is_ok());
        let error = run(&closed, &format!("/?{PLACEHOLDER}{many}"), "").expect_err("refused");
        assert!(error.contains("at most 256"), "{error}");
    }

    #[test]
    fn own_credentials_are_found_wherever_they_stand() {
        let (closed, open) = (rule(None, false), rule(None, true));
        for field in [
            "Authorization: Basic x\r\n",
            "AUTHORIZATION: Bearer x\r\n",
            "Proxy-Authorization: x\r\n",
            "Cookie: a=b\r\n",
            "x-api-key: k\r\n",
            "Api-Key: k\r\n",
            "X-Goog-Api-Key: k\r\n",
            "PRIVATE-TOKEN: k\r\n",
            "X-Auth-Token: k\r\n",
            "Sec-WebSocket-Protocol: realtime, insecure-api-key.k\r\n",
        ] {
            assert!(run(&closed, "/", field).is_err(), "{field}");
            assert!(run(&open, "/", field).is_ok(), "{field}");
        }
        for target in
            ["/?key=k", "/?a=b&Api_Key=k", "/?k%65y=k", "/?token", "/?x&sig=1", "/?ACCESS_TOKEN=1"]
        {
            assert!(run(&closed, target, "").is_err(), "{target}");
            assert_eq!(run(&open, target, "").expect("passes").target, target);
        }
        let kept = run(&closed, "/?keyword=1&page_tokens=2", "Accept: */*\r\n").expect("passes");
        assert_eq!((kept.target.as_str(), kept.fields.len()), ("/?keyword=1&page_tokens=2", 2));
    }

    #[test]
    fn the_placeholder_never_goes_out() {
        let (without, open) = (rule(None, false), rule(None, true));
        let with = rule(Some(Injection::Bearer), false);
        let header = rule(Some(Injection::Header { name: "x-own".into() }), false);
        // base64 of "user:placeholder-not-a-key"
        let basic = "Authorization: Basic dXNlcjpwbGFjZWhvbGRlci1ub3QtYS1rZXk=\r\n";
        let bearer = format!("Authorization: Bearer {PLACEHOLDER}\r\n");
        for field in [basic, &bearer] {
            assert!(run(&without, "/", field).is_err() && run(&open, "/", field).is_err());
            assert_eq!(run(&with, "/", field).expect("taken out").fields.len(), 1);
        }
        let key = format!("/?a=1&key={PLACEHOLDER}&b");
        assert!(run(&without, &key, "").is_err());
        assert_eq!(run(&with, &key, "").expect("taken out").target, "/?a=1&b");
        let own = format!("X-Own: {PLACEHOLDER}\r\n");
        assert!(run(&with, "/", &own).is_err());
        assert_eq!(run(&header, "/", &own).expect("taken out").fields.len(), 1);
        for target in [
            format!("/{PLACEHOLDER}"),
            format!("/?q={PLACEHOLDER}"),
            "/?q=%70laceholder-not-a-key".to_owned(),
            "/?q=cGxhY2Vob2xkZXItbm90LWEta2V5".to_owned(),
        ] {
            for rule in [&without, &with, &open] {
                assert!(run(rule, &target, "").is_err(), "{target}");
            }
        }
    }

    #[test]
    fn random_targets_never_let_the_placeholder_or_a_key_through() {
        let words =
            ["key=", "&", "?", "%6", "5", "k", "%6B", "ey", "=", "x", "%", PLACEHOLDER, "+", "/"];
        let closed = rule(Some(Injection::Query { name: "key".into() }), false);
        let head = parse(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").expect("a head");
        let mut state = 0xE703_7ED1_A0B4_28DB_u64;
        for _ in 0..20_000 {
            let mut target = String::from("/");
            for _ in 0..8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                target.push_str(words[(state % words.len() as u64) as usize]);
            }
            if let Ok(cleared) = clear(&head, &target, &closed, PLACEHOLDER) {
                assert!(!cleared.target.contains(PLACEHOLDER), "{target}");
                let query = cleared.target.split_once('?').map_or("", |(_, q)| q);
                assert!(query.split('&').all(|p| parameter_name(p) != "key"), "{target}");
            }
        }
    }
}
