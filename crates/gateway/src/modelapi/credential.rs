//! The key in a model request: none, or this session's placeholder. Pure.
//!
//! The placeholder is worth nothing; that it is the right one shows that the request comes from
//! where this session's environment was set up. Any other key is the agent's own: sending it on
//! would let an agent spend, and be seen, as someone else, so it is refused aloud rather than
//! dropped in silence.

use super::wire::Failure;
use crate::http::head::{Head, same_name};

/// The fields in which clients of model servers send keys.
const FIELDS: [&str; 4] = ["x-api-key", "authorization", "x-goog-api-key", "api-key"];

/// Refuses a request that carries another key than `placeholder`.
pub(crate) fn check(head: &Head, placeholder: &str) -> Result<(), Failure> {
    let is_key = |name: &str| FIELDS.iter().any(|field| same_name(field, name));
    let fields = head.fields.iter().filter(|(name, _)| is_key(name));
    for (name, value) in fields {
        let key = match value.get(..7) {
            Some(scheme) if scheme.eq_ignore_ascii_case("bearer ") => &value[7..],
            _ if value.eq_ignore_ascii_case("bearer") => "",
            _ => value.as_str(),
        };
        judge(key.trim(), placeholder, &format!("the field {name}"))?;
    }
    let query = head.target.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&') {
        // A name or key that is written with escapes is not the placeholder, which needs none.
        let (name, key) = pair.split_once('=').unwrap_or((pair, ""));
        if name.contains('%') || matches!(name, "key" | "api_key" | "api-key" | "access_token") {
            judge(key, placeholder, "its query")?;
        }
    }
    Ok(())
}

fn judge(key: &str, placeholder: &str, place: &str) -> Result<(), Failure> {
    if key.is_empty() || key == placeholder {
        return Ok(());
    }
    Err(Failure::new(
        401,
        format!(
            "the request brings a key of the agent's own in {place}; keys for models are held and \
             added by the gateway only, so send the placeholder of this session \
             (NANOCLAW_PLACEHOLDER) or no key at all"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::parse;

    fn judged(target: &str, field: &str) -> bool {
        let text = format!("POST {target} HTTP/1.1\r\nhost: x\r\n{field}\r\n\r\n");
        check(&parse(text.as_bytes()).expect("a head"), "the-placeholder").is_ok()
    }

    #[test]
    fn only_the_placeholder_or_nothing_passes() {
        for good in [
            "a: b",
            "x-api-key: the-placeholder",
            "authorization: Bearer the-placeholder",
            "authorization: bearer  the-placeholder",
            "authorization: Bearer",
            "x-api-key:",
        ] {
            assert!(judged("/v1/messages", good), "{good}");
        }
        for bad in [
            "x-api-key: other",
            "X-Api-Key: the-placeholder2",
            "authorization: Basic the-placeholder",
            "authorization: Bearer other",
            "x-goog-api-key: other",
            "api-key: other",
            "X_Api_Key: other",
            "x-api-key: the-placeholder\r\nx-api-key: other",
            "authorization: é",
        ] {
            assert!(!judged("/v1/messages", bad), "{bad}");
        }
        assert!(judged("/v1beta/models?key=the-placeholder&alt=sse", "a: b"));
        for bad in ["key=other", "a=b&key=other", "k%65y=other", "api_key=other"] {
            assert!(!judged(&format!("/v1beta/models?{bad}"), "a: b"), "{bad}");
        }
    }
}
