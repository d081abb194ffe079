//! May this session connect there? A total, pure function: deny unless a rule says otherwise.

use model::{EgressRule, HostName};

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A rule grants it.
    Allow,
    /// No rule grants it.
    Deny,
}

/// A decision with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressVerdict {
    /// Allow or deny.
    pub decision: Decision,
    /// The rule that decided; `None` where the default did.
    pub rule: Option<String>,
    /// In words, for `explain`.
    pub why: String,
}

/// Decides one connection by name and port. Where the name leads is judged after resolution, by
/// the gateway.
#[must_use]
pub fn egress_verdict(rules: &[EgressRule], host: &str, port: u16) -> EgressVerdict {
    let deny = |why: String| EgressVerdict { decision: Decision::Deny, rule: None, why };
    let host = match HostName::parse(host) {
        Ok(host) => host,
        Err(e) => return deny(format!("not a host name: {}", e.why)),
    };
    if let Some(rule) = rules.iter().find(|r| r.host == host && r.port == port) {
        let why = format!("{} allows {host}:{port}", rule.id);
        return EgressVerdict { decision: Decision::Allow, rule: Some(rule.id.clone()), why };
    }
    match rules.iter().find(|r| r.host == host) {
        Some(rule) => deny(format!("{} allows {host} on port {} only", rule.id, rule.port)),
        None => deny(format!("no rule names {host}; everything not granted is denied")),
    }
}
