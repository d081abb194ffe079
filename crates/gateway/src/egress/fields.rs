//! Which fields pass this hop, in either direction. Pure.

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

/// Whether the bytes of an answer's body are not its text: compressed, by whichever field.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let other = |name: &str, plain: &str| {
        headers.get_all(name).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    };
    other("content-encoding", "identity") || other("transfer-encoding", "chunked")
}

/// Whether a field goes on; `connection` is the message's own `Connection` field.
pub(crate) fn passes(name: &str, connection: &str) -> bool {
    let named = || connection.split(',').any(|n| n.trim().eq_ignore_ascii_case(name));
    !HOP_FIELDS.contains(&name) && (connection.is_empty() || !named())
}

/// Whether a field of an answer goes on. A cookie that the agent may not send back would only
/// make its next request fail, and an alternative service leads past this gateway.
pub(crate) fn passes_back(name: &str, connection: &str, own_credentials: bool) -> bool {
    passes(name, connection)
        && name != "alt-svc"
        && (own_credentials || !matches!(name, "set-cookie" | "set-cookie2"))
}
