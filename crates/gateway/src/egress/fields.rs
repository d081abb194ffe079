//! Which fields pass this hop, in either direction. Pure.

use crate::http::head::{is_oddly_joined, same_name};
use hyper::header::HeaderMap;

/// Fields that end at this hop (RFC 9110 §7.6.1), and those this hop writes itself.
const HOP_FIELDS: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "content-length",
    "host",
    "expect",
];

/// Whether the bytes of an answer's body are not its text: compressed, by whichever field and
/// however its name is joined (RFC 9110 §8.4, RFC 9112 §6.1, RFC 3229 §10.5.1).
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let other = |name: &str, plain: &str| {
        let mut named = headers.iter().filter(|(n, _)| same_name(n.as_str(), name));
        named.any(|(_, v)| !v.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    };
    other("content-encoding", "identity")
        || other("transfer-encoding", "chunked")
        || other("im", "identity")
}

/// Whether a field goes on; `connection` is the message's own `Connection` field.
pub(crate) fn passes(name: &str, connection: &str) -> bool {
    // A field that servers take for one of a single hop ends here, too.
    let named = || connection.split(',').any(|n| same_name(n.trim(), name));
    let hop = HOP_FIELDS.contains(&name)
        || (is_oddly_joined(name) && HOP_FIELDS.iter().any(|hop| same_name(hop, name)));
    !hop && (connection.is_empty() || !named())
}

/// Whether a field of an answer goes on. A cookie that the agent may not send back would only
/// make its next request fail, and an alternative service leads past this gateway.
pub(crate) fn passes_back(name: &str, connection: &str, own_credentials: bool) -> bool {
    passes(name, connection)
        && name != "alt-svc"
        && (own_credentials || !matches!(name, "set-cookie" | "set-cookie2"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn an_encoding_is_seen_in_whatever_field_and_way_it_is_said() {
        let encoded = |fields: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            is_encoded(&map)
        };
        const ENCODING: &str = "content-encoding";
        for plain in [
            &[][..],
            &[(ENCODING, "identity")],
            &[(ENCODING, "Identity"), (ENCODING, "IDENTITY")],
            &[("transfer-encoding", "Chunked"), ("vary", "content-encoding")],
        ] {
            assert!(!encoded(plain), "{plain:?}");
        }
        for hidden in [
            &[(ENCODING, "gzip")][..],
            &[(ENCODING, "x-gzip")],
            &[(ENCODING, "BR")],
            &[(ENCODING, "identity"), (ENCODING, "gzip")],
            &[(ENCODING, "gzip"), (ENCODING, "identity")],
            &[(ENCODING, "identity, gzip")],
            &[(ENCODING, "identity,identity")],
            &[(ENCODING, "")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("content_encoding", "gzip")],
            &[(ENCODING, "identity"), ("content_encoding", "br")],
            &[("im", "gzip")],
            &[("im", "feed, gzip")],
        ] {
            assert!(encoded(hidden), "{hidden:?}");
        }
    }

    #[test]
    fn fields_of_one_hop_end_here_however_they_are_joined() {
        for name in ["transfer-encoding", "transfer_encoding", "content.length", "keep!alive"] {
            assert!(!passes(name, ""), "{name}");
        }
        assert!(!passes("x_mine", "close, x-mine") && !passes("x-mine", "X_Mine"));
        assert!(passes("x_mine", "") && passes("content-type", "") && passes("x_a", "x_b"));
    }
}
