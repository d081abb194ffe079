//! Base URLs of models: scheme, host, port, path prefix; nothing else.

use crate::error::{Problem, quote};
use model::HostName;
use std::net::IpAddr;

/// A checked base URL, without a trailing `/` or `/v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    pub(crate) text: String,
    /// Why its traffic can be read on the way, if it can.
    pub(crate) plain: Option<&'static str>,
}

const REMEDY: &str = "write e.g. \"https://api.example.org\"";

/// Parses `http(s)://host[:port][/prefix]`.
pub(crate) fn parse_base_url(text: &str) -> Result<BaseUrl, Problem> {
    let bad = |why: &str| Problem::bad("base_url", why, REMEDY);
    if text.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(bad("has a space, a control character or a character beyond ASCII"));
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(bad(&format!("has the scheme {}, not http or https", quote(&scheme))));
    }
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err(bad("holds a user name; keys belong in `nanoclaw secret set NAME`"));
    }
    if path.bytes().any(|b| b"?#%\\".contains(&b)) || authority.contains(['?', '#', '\\']) {
        return Err(bad("has a query, a fragment or an escape"));
    }
    if path.split('/').any(|part| part == ".." || part == ".") {
        return Err(bad("has \".\" or \"..\" in its path"));
    }
    let (host, port) = split_port(authority).map_err(bad)?;
    let (host, plain) = check_host(host).map_err(|why| bad(&why))?;
    let plain = if scheme == "http" { plain.map_err(bad)? } else { None };
    let mut path = path.trim_end_matches('/');
    // Written twice by mistake it is still the version, which requests bring themselves.
    while let Some(shorter) = path.strip_suffix("/v1") {
        path = shorter.trim_end_matches('/');
    }
    Ok(BaseUrl { text: format!("{scheme}://{host}{port}{path}"), plain })
}

/// `host[:port]` → host and `":port"` or nothing.
fn split_port(authority: &str) -> Result<(&str, String), &'static str> {
    let colon = if authority.starts_with('[') {
        let end = authority.find(']').ok_or("has a '[' without ']'")?;
        match &authority[end + 1..] {
            "" => None,
            rest if rest.starts_with(':') => Some(end + 1),
            _ => return Err("has text after ']'"),
        }
    } else {
        authority.find(':')
    };
    let Some(colon) = colon else { return Ok((authority, String::new())) };
    match authority[colon + 1..].parse::<u16>() {
        Ok(port) if port > 0 && !authority[colon + 1..].starts_with('+') => {
            Ok((&authority[..colon], format!(":{port}")))
        }
        _ => Err("has a port that is not a number from 1 to 65535"),
    }
}

/// A host as it is written out, and what plain http to it would mean.
type Plain = Result<Option<&'static str>, &'static str>;

fn check_host(host: &str) -> Result<(String, Plain), String> {
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse::<IpAddr>() {
        let shown = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        return Ok((shown, plain_to(ip)));
    }
    let name = HostName::parse(host).map_err(|e| format!("has a bad host: {}", e.why))?;
    let plain = if name.as_str() == "localhost" {
        None
    } else {
        Some("requests and keys cross the network unencrypted, to whatever the name resolves to")
    };
    Ok((name.to_string(), Ok(plain)))
}

fn plain_to(ip: IpAddr) -> Plain {
    let private = match ip {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    if ip.is_loopback() {
        Ok(None)
    } else if private {
        Ok(Some("requests and keys cross the local network unencrypted"))
    } else {
        Err("uses plain http to a public or special address")
    }
}

#[cfg(test)]
mod tests {
    use super::parse_base_url;

    #[test]
    fn urls_are_normalised_and_judged() {
        for (given, want, plain) in [
            ("https://api.anthropic.com", "https://api.anthropic.com", false),
            ("HTTPS://API.OpenAI.com/v1/", "https://api.openai.com", false),
            ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434", false),
            ("http://localhost:1234", "http://localhost:1234", false),
            ("http://[::1]:8080", "http://[::1]:8080", false),
            ("http://192.168.1.9:8080/", "http://192.168.1.9:8080", true),
            ("http://ollama.lan:11434", "http://ollama.lan:11434", true),
            ("https://openrouter.example/api/v1", "https://openrouter.example/api", false),
        ] {
            let url = parse_base_url(given).expect(given);
            assert_eq!((url.text.as_str(), url.plain.is_some()), (want, plain), "{given}");
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for bad in [
            "",
            "api.example.org",
            "ftp://a.org",
            "https://",
            "https://u:p@a.org",
            "https://a.org?x=1",
            "https://a.org/x#y",
            "https://a.org:0",
            "https://a.org:99999",
            "https://a.org:+80",
            "https://[::1",
            "https://[::1]x",
            "http://8.8.8.8",
            "http://169.254.169.254",
            "http://2130706433",
            "https://a .org",
            "https://é.org",
            "https://a.org/../v1",
        ] {
            assert!(parse_base_url(bad).is_err(), "{bad}");
        }
    }
}
