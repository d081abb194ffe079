//! A model's `base_url`: text → where and how to connect, or a reason why not. Pure.

use model::HostName;
use std::net::{IpAddr, Ipv6Addr};

/// A configured model server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// Name or address literal, lower case, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path before `/v1/…`, without trailing slash.
    pub(crate) prefix: String,
}

/// Why a `base_url` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL of the accepted form.
    #[error(
        "base_url {url:?} is not usable: {why}; write it as https://HOST[:PORT][/PATH], without /v1"
    )]
    Malformed {
        /// What was written, without userinfo.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Plain HTTP to another machine.
    #[error(
        "base_url of {host} is plain http, which would show key and prompts to the network; use https, or name the host in `plain_http_hosts`"
    )]
    PlainHttp {
        /// The host.
        host: String,
    },
}

impl Endpoint {
    /// Parses a base URL. `plain_http_hosts` are those for which `http://` was allowed by name;
    /// loopback needs no permission.
    pub(crate) fn parse(url: &str, plain_http_hosts: &[String]) -> Result<Self, EndpointError> {
        let bad = |why| {
            let shown = crate::authority::quoted(url);
            EndpointError::Malformed { url: shown, why }
        };
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(bad("it must begin with https:// or http://")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(bad("user names and passwords do not belong in it"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/%:".contains(&b);
        if !path.bytes().all(plain) {
            return Err(bad("its path has a query, a fragment or characters that must be escaped"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| bad("its port is not a number"))?;
        let host = normal_host(host).ok_or_else(|| bad("its host is neither name nor address"))?;
        if !tls && !is_loopback(&host) && !plain_http_hosts.contains(&host) {
            return Err(EndpointError::PlainHttp { host });
        }
        let prefix = path.trim_end_matches('/');
        let written = |version| prefix.strip_suffix(version);
        let prefix = written("/v1").or_else(|| written("/v1beta")).unwrap_or(prefix).to_owned();
        Ok(Self { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }), prefix })
    }

    /// The `Host` field of requests to it.
    pub(crate) fn host_field(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(v6) => format!("[{v6}]"),
            Err(_) => self.host.clone(),
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Whether plain HTTP is spoken to a name that must turn out to be this machine.
    pub(crate) fn must_be_loopback(&self) -> bool {
        !self.tls && is_loopback(&self.host)
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_bracket..].rfind(':') {
        None => Some((authority, None)),
        Some(at) => {
            let (host, port) = authority.split_at(after_bracket + at);
            let port = port[1..].parse().ok().filter(|&port| port != 0)?;
            Some((host, Some(port)))
        }
    }
}

fn normal_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[') {
        return Some(inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string());
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => Some(v4.to_string()),
        Ok(IpAddr::V6(_)) => None,
        Err(_) => HostName::parse(host).ok().map(|name| name.to_string()),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_taken_apart() {
        let e = Endpoint::parse("https://API.example.com/proxy/v1/", &[]).expect("valid");
        assert_eq!(
            (e.host.as_str(), e.port, e.prefix.as_str()),
            ("api.example.com", 443, "/proxy")
        );
        assert_eq!(e.host_field(), "api.example.com");
        let e = Endpoint::parse("http://[::1]:8080", &[]).expect("valid");
        assert_eq!((e.host_field().as_str(), e.tls), ("[::1]:8080", false));
        assert!(Endpoint::parse("http://localhost:11434", &[]).is_ok());
        assert!(Endpoint::parse("http://box:11434", &["box".into()]).is_ok());
    }

    #[test]
    fn plain_http_elsewhere_and_odd_urls_are_refused() {
        for bad in [
            "http://api.example.com",
            "http://10.0.0.1:80",
            "ftp://x",
            "example.com",
            "https://",
            "https://u:p@x.com",
            "https://x.com?key=1",
            "https://x.com/#f",
            "https://x:0",
            "https://x:99999",
            "https://::1",
            "https://[::1",
            "https://a b",
            "http://localhost.evil.com",
        ] {
            assert!(Endpoint::parse(bad, &[]).is_err(), "{bad}");
        }
    }
}
