//! `host:port` and absolute-form targets: text → typed destination, or a refusal. Pure.

use model::{HostName, HostNameError};

/// Where a request wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) host: HostName,
    pub(crate) port: u16,
}

/// Longest target that is worth quoting in a refusal record.
const QUOTED_CHARS_MAX: usize = 200;
/// The port of `http://` without one.
const HTTP_PORT: u16 = 80;

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("the target must be HOST:PORT")]
    NoPort,
    #[error("the port must be a plain number from 1 to 65535")]
    Port,
    #[error("{0}")]
    Host(#[from] HostNameError),
    #[error("user names and passwords in a target are not accepted")]
    UserInfo,
    #[error("only http:// targets may be asked for this way; use CONNECT for https")]
    Scheme,
    #[error("the Host field names another host than the target")]
    HostMismatch,
}

/// Parses the target of `CONNECT` (RFC 9110 §9.3.6): exactly `host:port`, never an address.
pub(crate) fn parse(target: &str) -> Result<Authority, TargetError> {
    if target.contains('@') {
        return Err(TargetError::UserInfo);
    }
    let (host, port) = target.rsplit_once(':').ok_or(TargetError::NoPort)?;
    Ok(Authority { host: HostName::parse(host)?, port: parse_port(port)? })
}

fn parse_port(text: &str) -> Result<u16, TargetError> {
    let plain = matches!(text.len(), 1..=5)
        && text.bytes().all(|b| b.is_ascii_digit())
        && !text.starts_with('0');
    if plain { text.parse().map_err(|_| TargetError::Port) } else { Err(TargetError::Port) }
}

/// Parses an absolute-form target (RFC 9112 §3.2.2): the destination and the rest as origin-form.
pub(crate) fn parse_absolute(target: &str) -> Result<(Authority, String), TargetError> {
    let rest = strip_scheme(target).ok_or(TargetError::Scheme)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = host_and_port(authority)?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok((authority, path))
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_at_checked("http://".len())?;
    scheme.eq_ignore_ascii_case("http://").then_some(rest)
}

fn host_and_port(text: &str) -> Result<Authority, TargetError> {
    if text.contains('@') {
        return Err(TargetError::UserInfo);
    }
    if text.contains(':') {
        return parse(text);
    }
    Ok(Authority { host: HostName::parse(text)?, port: HTTP_PORT })
}

/// The `Host` field must name the target, with its port or without one.
pub(crate) fn check_host(host: Option<&str>, wanted: &Authority) -> Result<(), TargetError> {
    let Some(host) = host else { return Ok(()) };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(parse_port(port)?)),
        None => (host, None),
    };
    let same = HostName::parse(name).is_ok_and(|name| name == wanted.host)
        && port.is_none_or(|port| port == wanted.port);
    if same { Ok(()) } else { Err(TargetError::HostMismatch) }
}

/// A target as a refusal record quotes it: cut, and with userinfo and query removed, for both
/// may hold what no log should.
pub(crate) fn quoted(target: &str) -> String {
    let bare = target.split(['?', '#']).next().unwrap_or("");
    let bare = match bare.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => bare.to_owned(),
    };
    bare.chars().take(QUOTED_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    #[test]
    fn connect_takes_a_name_and_a_port_and_nothing_else() {
        let ok = parse("API.example.com:443").expect("valid");
        assert_eq!((ok.host.as_str(), ok.port), ("api.example.com", 443));
        for bad in [
            "",
            ":",
            "a",
            "a:",
            ":443",
            "a:0",
            "a:65536",
            "a:+1",
            "a:01",
            "a: 1",
            "a:443:443",
            "1.2.3.4:443",
            "[::1]:443",
            "::1:443",
            "2130706433:80",
            "0x7f.1:80",
            "u@a.com:443",
            "a/b:443",
            "a.com:443/",
            "*.a.com:443",
            "a..b:443",
            "a%00.com:443",
            "é.com:443",
            "http://a.com:443",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn absolute_form_is_taken_apart() {
        let (a, path) = parse_absolute("http://Example.com/x?y=1").expect("valid");
        assert_eq!((a.host.as_str(), a.port, path.as_str()), ("example.com", 80, "/x?y=1"));
        let (a, path) = parse_absolute("HTTP://e.com:8080?q").expect("valid");
        assert_eq!((a.port, path.as_str()), (8080, "/?q"));
        for bad in
            ["https://e.com/", "ftp://e.com", "http://", "http://u:p@e.com/", "http://1.2.3.4/"]
        {
            assert!(parse_absolute(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_field_must_agree() {
        let wanted = parse("a.com:443").expect("valid");
        for good in [None, Some("a.com"), Some("A.com:443")] {
            assert_eq!(check_host(good, &wanted), Ok(()));
        }
        for bad in ["b.com", "a.com:80", "a.com.evil", "a.com:443:1", ""] {
            assert!(check_host(Some(bad), &wanted).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_quoted_target_holds_no_password_and_no_query() {
        assert_eq!(quoted("http://u:hidden@e.com/p?key=hidden"), "…@e.com/p");
    }

    /// What another reader makes of a target: host and port.
    fn elsewhere(text: &str) -> Option<(String, Option<u16>)> {
        let uri: hyper::Uri = text.parse().ok()?;
        Some((uri.host()?.to_ascii_lowercase(), uri.port_u16()))
    }

    #[test]
    fn fuzz_authority() {
        let seeds: [&[u8]; 9] = [
            b"api.example.com:443",
            b"http://Example.com:8080/x?y=1",
            b"http://e.com",
            b"1.2.3.4:443",
            b"[::1]:443",
            b"http://u:p@e.com/",
            b"https://api.example.com/proxy/v1/",
            b"http://localhost:11434/v1beta",
            b"a%00.com:443\\b#c",
        ];
        let words: [&[u8]; 8] = [
            b"http://",
            b"https://",
            b"@",
            b"[::ffff:1.2.3.4]",
            b"0x7f.1",
            b"%2e",
            b":443",
            b"xn--",
        ];
        fuzz::with_words("authority", &seeds, &words, |bytes, _| {
            let text = String::from_utf8_lossy(bytes);
            let connect = parse(&text);
            if let Ok(found) = &connect {
                assert!(found.host.as_str().parse::<std::net::IpAddr>().is_err(), "{text}");
                let again = format!("{}:{}", found.host, found.port);
                assert_eq!(parse(&again).as_ref(), Ok(found));
                assert_eq!(check_host(Some(&again), found), Ok(()));
                let (host, port) = (found.host.as_str().to_owned(), Some(found.port));
                assert_eq!(elsewhere(&text), Some((host, port)), "{text}");
            }
            let absolute = parse_absolute(&text);
            if let Ok((found, path)) = &absolute
                && let Some((host, port)) = elsewhere(&text)
            {
                let ours = (found.host.as_str(), found.port);
                assert_eq!((&*host, port.unwrap_or(80)), ours, "{text}");
                assert!(path.starts_with('/'));
            }
            let base = crate::endpoint::Endpoint::parse(&text, &["e.com".to_owned()]);
            if let Ok(base) = &base
                && let Some((host, port)) = elsewhere(&text)
            {
                let other = host.trim_start_matches('[').trim_end_matches(']');
                let address = |text: &str| text.parse::<std::net::IpAddr>().ok();
                let same = other == base.host
                    || address(other).is_some_and(|ip| Some(ip) == address(&base.host));
                assert!(
                    same && port.unwrap_or(if base.tls { 443 } else { 80 }) == base.port,
                    "{text}"
                );
            }
            assert!(quoted(&text).chars().count() <= QUOTED_CHARS_MAX + 2);
            let of_path = crate::modelapi::operation::operation("POST", &text);
            fuzz::outcome(format!(
                "{:?} {:?} {:?} {:?}",
                connect.map(|_| ()),
                absolute.map(|_| ()),
                base.map(|base| base.tls).map_err(|e| std::mem::discriminant(&e)),
                std::mem::discriminant(&of_path)
            ))
        });
    }
}
