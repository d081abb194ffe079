//! Puts a secret into a request: the last step before it is sent, so that nothing else sees it.
//!
//! One small trait, so that schemes that sign a request can follow. Whatever the agent sent in the
//! place of the secret is replaced.

use crate::http::head::same_name;
use crate::vault::SecretBytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use model::Injection;
use zeroize::Zeroizing;

/// A request on its way out, as far as an injection may change it.
pub struct Outgoing {
    /// Path and query. Wiped when dropped, for a secret may stand in it.
    pub target: Zeroizing<String>,
    /// The fields, without those of a single hop.
    pub fields: HeaderMap,
}

/// Why a secret could not be put into a request. Never holds a byte of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// It has bytes that no header field may hold.
    #[error("the secret has characters that no header field may hold; set it again")]
    Unsendable,
    /// The rule's field name is none.
    #[error("{name:?} is not the name of a header field; correct the rule")]
    FieldName {
        /// What the rule says.
        name: String,
    },
}

/// A way to put a secret into a request.
pub trait Injector {
    /// Puts it there.
    ///
    /// # Errors
    /// When the secret cannot stand there.
    fn inject(&self, request: &mut Outgoing, secret: &SecretBytes) -> Result<(), InjectError>;
}

fn value(bytes: &[u8]) -> Result<HeaderValue, InjectError> {
    let mut value = HeaderValue::from_bytes(bytes).map_err(|_| InjectError::Unsendable)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Injector for Injection {
    fn inject(&self, request: &mut Outgoing, secret: &SecretBytes) -> Result<(), InjectError> {
        match self {
            Self::Bearer => {
                let mut text = Zeroizing::new(b"Bearer ".to_vec());
                text.extend_from_slice(secret.expose());
                request.fields.insert(AUTHORIZATION, value(&text)?);
            }
            Self::Basic { user } => {
                let pair = basic_pair(user, secret.expose());
                let text = Zeroizing::new(format!("Basic {}", *pair));
                request.fields.insert(AUTHORIZATION, value(text.as_bytes())?);
            }
            Self::Header { name } => {
                let field = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| InjectError::FieldName { name: name.clone() })?;
                // What a server would take for the same field is replaced with it.
                let twins = |n: &HeaderName| *n != field && same_name(n.as_str(), field.as_str());
                let twins: Vec<_> = request.fields.keys().filter(|n| twins(n)).cloned().collect();
                for twin in twins {
                    request.fields.remove(twin);
                }
                request.fields.insert(field, value(secret.expose())?);
            }
            Self::Query { name } => {
                request.target = with_parameter(&request.target, name, secret.expose());
            }
        }
        Ok(())
    }
}

/// `base64(user:secret)` (RFC 7617 §2).
fn basic_pair(user: &str, secret: &[u8]) -> Zeroizing<String> {
    let mut pair = Zeroizing::new(user.as_bytes().to_vec());
    pair.push(b':');
    pair.extend_from_slice(secret);
    Zeroizing::new(STANDARD.encode(&*pair))
}

/// The target with `name=secret` in place of every parameter of that name.
fn with_parameter(target: &str, name: &str, secret: &[u8]) -> Zeroizing<String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Room for everything at once, so that no half-grown copy stays behind in freed memory.
    let room = target.len() + 3 * (name.len() + secret.len()) + 4;
    let mut out = Zeroizing::new(String::with_capacity(room));
    out.push_str(path);
    out.push('?');
    let others = query.split('&').filter(|p| !p.is_empty() && !may_be_parameter(p, name));
    for pair in others {
        out.push_str(pair);
        out.push('&');
    }
    percent_encode(name.as_bytes(), &mut out);
    out.push('=');
    percent_encode(secret, &mut out);
    out
}

/// The decoded name of one `name=value` pair.
pub(crate) fn parameter_name(pair: &str) -> String {
    percent_decode(pair.split('=').next().unwrap_or(""))
}

/// Whether a server may read `name` in a `name=value` pair: in another case, with other joints, as
/// a list (`name[]`), behind a `;`, after blanks, before a zero byte.
pub(crate) fn may_be_parameter(pair: &str, name: &str) -> bool {
    pair.split(';').any(|part| {
        let read = parameter_name(part);
        let whole = read.trim();
        let cut = whole.split(['[', '\0']).next().unwrap_or("");
        same_name(whole, name) || same_name(cut, name)
    })
}

/// Percent-encodes everything but the unreserved characters (RFC 3986 §2.3).
pub(crate) fn percent_encode(bytes: &[u8], out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
}

/// Decodes `%XX` and `+`; what is no escape stays as it is.
pub(crate) fn percent_decode(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let hex = escape.filter(|h| h.iter().all(u8::is_ascii_hexdigit));
        let value = hex
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(how: &Injection, target: &str) -> Outgoing {
        let target = Zeroizing::new(target.to_owned());
        let mut request = Outgoing { target, fields: HeaderMap::new() };
        request.fields.insert(AUTHORIZATION, HeaderValue::from_static("Bearer placeholder"));
        let secret = SecretBytes::new(b"not/real key".to_vec());
        how.inject(&mut request, &secret).expect("injected");
        request
    }

    #[test]
    fn each_scheme_puts_the_secret_in_its_place_and_replaces_what_was_there() {
        let field = |r: &Outgoing, name: &str| {
            let all: Vec<_> = r.fields.get_all(name).iter().collect();
            assert_eq!(all.len(), 1);
            all[0].to_str().expect("text").to_owned()
        };
        let r = injected(&Injection::Bearer, "/");
        assert_eq!(field(&r, "authorization"), "Bearer not/real key");
        assert!(!format!("{:?}", r.fields).contains("not/real"));
        let r = injected(&Injection::Basic { user: "me".into() }, "/");
        assert_eq!(field(&r, "authorization"), "Basic bWU6bm90L3JlYWwga2V5");
        let r = injected(&Injection::Header { name: "x-key".into() }, "/");
        assert_eq!(field(&r, "x-key"), "not/real key");
        let query = Injection::Query { name: "key".into() };
        assert_eq!(*injected(&query, "/a").target, "/a?key=not%2Freal%20key");
        let r = injected(&query, "/a?x=1&k%65y=old&key&y");
        assert_eq!(*r.target, "/a?x=1&y&key=not%2Freal%20key");
        let twins = "Key=1&KEY[]=2&key%5B0%5D=3&z=1;key=4&+key=5&key%00z=6&keys=7";
        let r = injected(&query, &format!("/a?{twins}"));
        assert_eq!(*r.target, "/a?keys=7&key=not%2Freal%20key");
        let r = injected(&Injection::Query { name: "api_key".into() }, "/a?api.key=1&API-KEY=2");
        assert_eq!(*r.target, "/a?api_key=not%2Freal%20key");
    }

    #[test]
    fn what_no_field_may_hold_is_refused() {
        let mut request = Outgoing { target: Zeroizing::new("/".into()), fields: HeaderMap::new() };
        let broken = SecretBytes::new(b"a\r\nb: c".to_vec());
        let result = Injection::Bearer.inject(&mut request, &broken);
        assert_eq!(result, Err(InjectError::Unsendable));
    }

    #[test]
    fn random_queries_never_keep_a_second_parameter_of_the_name() {
        let alphabet = b"key=&%65+?/a\xC3";
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..50_000 {
            let mut bytes = Vec::new();
            for _ in 0..14 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.push(alphabet[(state % alphabet.len() as u64) as usize]);
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let out = with_parameter(&format!("/?{text}"), "key", b"secret");
            let query = out.split_once('?').expect("a query").1;
            let named = query.split('&').filter(|p| parameter_name(p) == "key").count();
            assert_eq!(named, 1, "{text}");
            assert!(out.ends_with("key=secret"));
        }
    }
}
