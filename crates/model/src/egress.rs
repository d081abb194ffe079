//! Egress rules: what a session may reach, and how. Finished data; `policy` decides with it, the
//! gateway carries it out.

use crate::{HostName, HostNameError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest path pattern, bytes: far above any real interface, far below any header limit.
const PATH_PATTERN_BYTES_MAX: usize = 1_024;

/// Which hosts a rule speaks of: one exact name, or every name below one (`*.example.org`, on
/// label boundaries, without `example.org` itself).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostPattern {
    /// This name and no other.
    Exact(HostName),
    /// Every name that ends in `.` and this one.
    Below(HostName),
}

impl HostPattern {
    /// Parses `example.org` or `*.example.org`.
    ///
    /// # Errors
    /// As [`HostName::parse`]; also for a `*` anywhere else, and for `*.` before a single label,
    /// which would name half the world.
    pub fn parse(value: &str) -> Result<Self, HostNameError> {
        let Some(base) = value.strip_prefix("*.") else {
            return HostName::parse(value).map(Self::Exact);
        };
        let base = HostName::parse(base)?;
        if base.as_str().contains('.') {
            return Ok(Self::Below(base));
        }
        let value = value.chars().take(80).collect();
        Err(HostNameError { value, why: "'*.' needs a name of at least two parts after it" })
    }

    /// Whether the pattern covers `host`.
    #[must_use]
    pub fn covers(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(base) => host
                .as_str()
                .strip_suffix(base.as_str())
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
        }
    }

    /// The name written in the pattern, without `*.`.
    #[must_use]
    pub fn base(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::Below(name) => name,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Below(base) => write!(f, "*.{base}"),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostNameError;
    fn try_from(value: String) -> Result<Self, HostNameError> {
        Self::parse(&value)
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.to_string()
    }
}

impl From<HostName> for HostPattern {
    fn from(name: HostName) -> Self {
        Self::Exact(name)
    }
}

/// A pattern over the path of a request, without its query: `*` stands for characters inside one
/// segment, `**` as a whole segment for any number of segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(String);

/// Why a path pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path pattern {value:?} is not valid: {why}")]
pub struct PathPatternError {
    /// What was given, cut to 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl PathPattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// When it does not begin with `/`, holds a query, a fragment, a backslash, spaces, control or
    /// non-ASCII characters, an empty, `.` or `..` segment, or `**` beside other characters.
    pub fn parse(value: &str) -> Result<Self, PathPatternError> {
        let err = |why| Err(PathPatternError { value: value.chars().take(80).collect(), why });
        let Some(rest) = value.strip_prefix('/') else { return err("it must begin with '/'") };
        if value.len() > PATH_PATTERN_BYTES_MAX {
            return err("it is longer than 1024 bytes");
        }
        if value.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'?' | b'#' | b'\\')) {
            return err("only printable ASCII without '?', '#' and '\\' is allowed; escape as %XX");
        }
        let segments: Vec<&str> = rest.split('/').collect();
        for (at, segment) in segments.iter().enumerate() {
            let last = at + 1 == segments.len();
            if matches!(*segment, "." | "..") || (segment.is_empty() && !last) {
                return err("it has an empty, '.' or '..' part");
            }
            if segment.contains("**") && *segment != "**" {
                return err("'**' must stand alone between two '/'");
            }
        }
        Ok(Self(value.to_owned()))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PathPattern {
    type Error = PathPatternError;
    fn try_from(value: String) -> Result<Self, PathPatternError> {
        Self::parse(&value)
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> String {
        pattern.0
    }
}

/// What a rule does with what it matches. Where several match, the order is deny, ask, allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It goes out.
    Allow,
    /// A human decides, each time.
    Ask,
    /// It never goes out, whatever other rules say.
    Deny,
}

/// What the gateway sees of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sight {
    /// TLS ends at the gateway and begins anew: host, method, path, credentials and sizes are seen
    /// and judged request by request. Plain HTTP is seen likewise.
    Intercept,
    /// TLS passes through; only the host in its first message and the port are seen.
    Tunnel,
    /// Any bytes; only the name that was dialled and the port are known.
    Tcp,
}

/// How a secret is put into a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Injection {
    /// `Authorization: Bearer SECRET` (RFC 6750 §2.1).
    Bearer,
    /// `Authorization: Basic base64(user:SECRET)` (RFC 7617).
    Basic {
        /// The user name; it is not secret.
        user: String,
    },
    /// `NAME: SECRET`.
    Header {
        /// The field's name, lower case.
        name: String,
    },
    /// `?NAME=SECRET`, percent-encoded, in place of any parameter of that name.
    Query {
        /// The parameter's name.
        name: String,
    },
}

/// A grant: this agent may use this secret at the hosts of the rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// The vault's name of the secret.
    pub name: String,
    /// How it is put into requests.
    pub inject: Injection,
}

/// How much may go through a rule. `None` is the gateway's own bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLimits {
    /// Largest body of one request, bytes.
    pub max_request: Option<u64>,
    /// Bytes sent in one UTC day, all sessions of the agent together.
    pub max_upload_per_day: Option<u64>,
    /// Requests (for tunnels: connections) in any minute, per session.
    pub max_per_minute: Option<u32>,
}

/// Who is asked, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTerms {
    /// The role that may answer: `owner`, `admin` or `member`.
    pub by: String,
    /// After so long without an answer it is denied, milliseconds.
    pub timeout_ms: u64,
}

/// One rule about destinations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// What every verdict names, e.g. `agents/triage.toml:14` or `--allow example.org`.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// Which hosts.
    pub host: HostPattern,
    /// TCP port; `None` only in deny rules, for every port.
    pub port: Option<u16>,
    /// Methods, upper case; empty for all.
    pub methods: Vec<String>,
    /// Paths; empty for all.
    pub paths: Vec<PathPattern>,
    /// What the gateway sees.
    pub sight: Sight,
    /// Private, loopback and link-local answers are refused unless this says otherwise. Set only
    /// by an explicit `private = true` in the rule.
    pub private: bool,
    /// The secret that is used for the agent.
    pub secret: Option<SecretUse>,
    /// Whether the agent may send credentials of its own.
    pub own_credentials: bool,
    /// Whether a GET may open a WebSocket: any bytes both ways, not looked into.
    #[serde(default)]
    pub websocket: bool,
    /// Whether plain HTTP may be spoken to public addresses at another port than 80.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// How much.
    pub limits: RuleLimits,
    /// For [`Effect::Ask`]: who decides.
    pub ask: Option<AskTerms>,
}

impl EgressRule {
    /// A rule that allows a host at a port with every default: intercepted, nothing private, no
    /// secret, no WebSocket.
    #[must_use]
    pub fn allow(id: impl Into<String>, host: impl Into<HostPattern>, port: u16) -> Self {
        Self {
            id: id.into(),
            effect: Effect::Allow,
            host: host.into(),
            port: Some(port),
            methods: Vec::new(),
            paths: Vec::new(),
            sight: Sight::Intercept,
            private: false,
            secret: None,
            own_credentials: false,
            websocket: false,
            clear: false,
            limits: RuleLimits::default(),
            ask: None,
        }
    }

    /// Whether requests of the rule can open a WebSocket at all: it begins with a GET (RFC 6455
    /// §4.1).
    #[must_use]
    pub fn opens_websockets(&self) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| m == "GET")
    }
}

#[cfg(test)]
mod tests {
    use super::{HostPattern, PathPattern};
    use crate::HostName;

    #[test]
    fn suffixes_match_on_label_boundaries_only() {
        let pattern = HostPattern::parse("*.Example.org").expect("valid");
        let covers = |name: &str| pattern.covers(&HostName::parse(name).expect("valid"));
        assert!(covers("a.example.org") && covers("a.b.example.org"));
        assert!(!covers("example.org") && !covers("badexample.org") && !covers("example.org.evil"));
        for bad in ["*", "*.", "*.org", "a.*.org", "**.example.org", "*example.org", "*.1.2.3.4"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn path_patterns_are_absolute_and_unambiguous() {
        for good in ["/", "/repos/**", "/a/*/b", "/a/", "/v1/models/*:generate"] {
            assert!(PathPattern::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/a?x", "/a#x", "/a//b", "/../a", "/a/.", "/a**", "/\\", "/ä", "/a b"]
        {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
