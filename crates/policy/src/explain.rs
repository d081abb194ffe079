//! Why a request would go out or not: the verdict, and what nearly decided otherwise.

use crate::path::Path;
use crate::verdict::{
    Asked, ConnectVerdict, METHODS_NEVER, Miss, UNCLEAR, Verdict, connect_verdict, request_verdict,
};
use model::{Effect, EgressRule, HostName, Sight};

/// Most rules told beside the one that decided.
const NEAR_MAX: usize = 12;

/// What would happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes out.
    Allow,
    /// A human is asked.
    Ask,
    /// It does not go out.
    Deny,
}

impl Outcome {
    /// `allow`, `ask` or `deny`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }
}

/// A rule that did not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near {
    /// Its id.
    pub rule: String,
    /// Why it did not decide.
    pub why_not: String,
}

/// A verdict with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What would happen.
    pub outcome: Outcome,
    /// The id of the rule that decided, or [`crate::DEFAULT_DENY`].
    pub rule: String,
    /// Why, in words.
    pub why: String,
    /// Rules that nearly decided, most of interest first.
    pub near: Vec<Near>,
}

/// Explains what the verdict on a request would be. `path` is without its query.
#[must_use]
pub fn explain(
    rules: &[EgressRule],
    host: &HostName,
    port: u16,
    method: &str,
    path: &str,
) -> Explanation {
    let asked = Asked { host, port, method, path: Path::read(path) };
    let (outcome, rule, why) = match connect_verdict(rules, host, port) {
        ConnectVerdict::Deny(denial) => (Outcome::Deny, denial.rule, denial.why),
        ConnectVerdict::Connection(rule) => {
            let what = match rule.sight {
                Sight::Tcp => "raw TCP: any bytes pass",
                _ => "a tunnel: neither method nor path is seen",
            };
            (outcome_of(rule), rule.id.clone(), format!("{} {what}", verb(rule)))
        }
        ConnectVerdict::Requests => match request_verdict(rules, host, port, method, path) {
            Verdict::Allow(rule) | Verdict::Ask(rule) => {
                let secret = match &rule.secret {
                    Some(used) => format!(", with the secret {}", used.name),
                    None => String::new(),
                };
                let blind = match rule.websocket && method == "GET" {
                    true => ", and a WebSocket, whose bytes are not looked into",
                    false => "",
                };
                (outcome_of(rule), rule.id.clone(), format!("{} it{secret}{blind}", verb(rule)))
            }
            Verdict::Deny(denial) => (Outcome::Deny, denial.rule, denial.why),
        },
    };
    let mut near: Vec<(u8, Near)> = rules
        .iter()
        .filter(|other| other.id != rule)
        .filter_map(|other| why_not(other, &asked, outcome))
        .collect();
    near.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.rule.cmp(&b.1.rule)));
    let near = near.into_iter().take(NEAR_MAX).map(|(_, near)| near).collect();
    Explanation { outcome, rule, why, near }
}

fn outcome_of(rule: &EgressRule) -> Outcome {
    if rule.effect == Effect::Ask { Outcome::Ask } else { Outcome::Allow }
}

fn verb(rule: &EgressRule) -> String {
    match &rule.ask {
        Some(terms) if rule.effect == Effect::Ask => {
            let time = crate::format_duration(std::time::Duration::from_millis(terms.timeout_ms));
            format!("{} is asked, for at most {time}; then the rule permits", terms.by)
        }
        _ => "the rule permits".to_owned(),
    }
}

/// Why programs cannot use a rule, and what to write instead; `None` for most rules.
///
/// `localhost` and the names below it (RFC 6761 §6.3) are the sandbox itself for whoever is inside:
/// resolvers, `/etc/hosts` and `NO_PROXY` all say so, and the gateway is not asked. Only a program
/// that was told to send such a name to the proxy reaches the rule.
#[must_use]
pub fn unasked(rule: &EgressRule) -> Option<String> {
    let base = rule.host.base().as_str();
    let own = base == "localhost" || base.ends_with(".localhost");
    (own && rule.effect != Effect::Deny).then(|| {
        format!(
            "{}: inside the sandbox {base} is the sandbox itself, so programs do not ask the \
             gateway for it; to reach a service of this machine, write this machine's name, or \
             another name that leads here, with private = true",
            rule.id
        )
    })
}

/// How near a rule came (0 is nearest), and why it did not decide. `None` for rules of other
/// hosts.
fn why_not(rule: &EgressRule, asked: &Asked<'_>, outcome: Outcome) -> Option<(u8, Near)> {
    let effect = match rule.effect {
        Effect::Allow => "allows",
        Effect::Ask => "asks",
        Effect::Deny => "denies",
    };
    let tell = |rank, text: String| {
        Some((rank, Near { rule: rule.id.clone(), why_not: format!("{effect} {text}") }))
    };
    let (host, method) = (asked.host, asked.method);
    match asked.surely(rule) {
        Ok(()) if rule.effect == Effect::Allow && outcome == Outcome::Allow => {
            tell(1, "it too, but is less particular".to_owned())
        }
        Ok(()) => tell(
            0,
            format!(
                "it too, but {} wins",
                match outcome {
                    Outcome::Deny => "deny",
                    Outcome::Ask => "ask",
                    Outcome::Allow => "the more particular rule",
                }
            ),
        ),
        Err(Miss::Host) => {
            let related = related(rule.host.base(), host);
            related.then(|| tell(6, format!("{}, which does not cover {host}", rule.host)))?
        }
        Err(Miss::Port) => {
            let port = rule.port.unwrap_or_default();
            tell(4, format!("port {port} only, not {}", asked.port))
        }
        Err(Miss::Sight) => tell(3, "the connection, but lets no request in the clear pass".into()),
        Err(Miss::Method) if METHODS_NEVER.contains(&method.to_ascii_uppercase().as_str()) => {
            tell(2, "requests, but no rule permits this method".to_owned())
        }
        Err(Miss::Method) => tell(2, format!("{} only", rule.methods.join(", "))),
        Err(Miss::Path) => {
            let paths: Vec<&str> = rule.paths.iter().map(|p| p.as_str()).collect();
            tell(1, format!("the paths {} only", paths.join(", ")))
        }
        Err(Miss::Unclear) => tell(1, format!("by path, and this one {UNCLEAR}")),
    }
}

/// Whether two names share their last two labels, or differ by a typing error.
fn related(a: &HostName, b: &HostName) -> bool {
    let tail = |name: &HostName| -> Vec<String> {
        name.as_str().rsplit('.').take(2).map(str::to_owned).collect()
    };
    tail(a) == tail(b) || crate::keys::nearest(b.as_str(), std::iter::once(a.as_str())).is_some()
}
