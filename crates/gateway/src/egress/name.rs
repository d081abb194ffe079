//! `GET /.nanoclaw/name/HOST`: whether the sandbox's DNS stub may give HOST an address.

use super::Refusal;
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::Head;
use model::{Effect, EgressRule, HostName};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the question stands.
pub(crate) const PREFIX: &str = "/.nanoclaw/name/";
/// The rule that refusals name.
const RULE: &str = "dns";
/// A name that is refused again and again is on record once in this time.
const ONCE_IN: Duration = Duration::from_secs(60);
/// Names on record in that time; a tunnel of made-up names must not fill the log. More are counted.
const NAMES_MAX: usize = 256;
/// Longest name in a record.
const NAME_CHARS_MAX: usize = 253;

/// The names refused lately.
#[derive(Default)]
pub(crate) struct Refused(Mutex<BTreeMap<String, Instant>>);

impl Refused {
    /// Whether the refusal of `name` is news.
    fn is_news(&self, name: &str) -> bool {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|_, at| at.elapsed() < ONCE_IN);
        if names.contains_key(name) || names.len() >= NAMES_MAX {
            return false;
        }
        names.insert(name.to_owned(), Instant::now());
        true
    }
}

/// Whether some request or connection to `host` may be permitted.
fn is_covered(rules: &[EgressRule], host: &HostName) -> bool {
    let ports = rules.iter().filter(|r| r.effect != Effect::Deny && r.host.covers(host));
    let mut ports = ports.filter_map(|rule| rule.port);
    ports.any(|port| {
        !matches!(policy::connect_verdict(rules, host, port), policy::ConnectVerdict::Deny(_))
    })
}

/// Answers 204 or 403; `name` is what follows [`PREFIX`].
pub(crate) async fn serve(
    conn: &mut Conn,
    door: &DoorState,
    head: &Head,
    name: &str,
) -> io::Result<bool> {
    let host = HostName::parse(name);
    if host.as_ref().is_ok_and(|host| is_covered(&door.rules, host)) {
        conn.write(&answer(204, &[], &AnswerBody::HeadOnly, head.keep_alive)).await?;
        return Ok(head.keep_alive);
    }
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    let agent = &door.scribe.agent;
    let why = match &host {
        Ok(host) => format!(
            "{host} is not among the permitted hosts; add [[egress]] host = \"{host}\" to \
             agents/{agent}.toml, or --allow {host}"
        ),
        Err(e) => e.to_string(),
    };
    let refusal = Refusal::new(403, RULE, why);
    if door.names.is_news(&shown.to_ascii_lowercase()) {
        refusal.record(door, shown, None).await;
    } else {
        crate::counters::Counters::add(&door.scribe.counters.refused, 1);
    }
    refusal.answer(conn, head).await
}
