//! Ways to other hosts: verdict by exact name and port, resolved here, address judged and pinned,
//! intent on record before the first packet.

pub(crate) mod plain;
pub(crate) mod tunnel;

use crate::address;
use crate::authority::Authority;
use crate::counters::Counters;
use crate::door::DoorState;
use crate::resolve::{self, ADDRESSES_MAX};
use crate::scribe::Scribe;
use model::{Body, Durability, EgressRule, TurnId};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::TcpStream;

/// A refusal: the rule that decided, why, and the status it is answered with.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) rule: String,
    pub(crate) reason: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, rule: &str, reason: impl Into<String>) -> Self {
        Self { status, rule: rule.to_owned(), reason: reason.into() }
    }

    /// What the program in the sandbox is told.
    pub(crate) fn text(&self) -> String {
        format!("nanoclaw refused this: {} (rule: {})", self.reason, self.rule)
    }
}

/// The verdict of the rules: the one that permits, or a refusal that says how to get one.
pub(crate) fn verdict<'a>(door: &'a DoorState, to: &Authority) -> Result<&'a EgressRule, Refusal> {
    let same_host = |rule: &&EgressRule| rule.host.covers(&to.host);
    if let Some(rule) = door.rules.iter().find(|r| same_host(r) && r.port == Some(to.port)) {
        return Ok(rule);
    }
    let (host, port, agent) = (&to.host, to.port, &door.scribe.agent);
    if let Some(rule) = door.rules.iter().find(same_host) {
        let reason = format!(
            "{host} is permitted at port {} only, not {port}; add [[egress]] host = \"{host}\", port = \
             {port} to agents/{agent}.toml, or --allow {host}:{port}",
            rule.port.unwrap_or_default()
        );
        return Err(Refusal::new(403, &rule.id, reason));
    }
    let reason = format!(
        "{host} is not among the permitted hosts; add [[egress]] host = \"{host}\" to \
         agents/{agent}.toml, or --allow {host}"
    );
    Err(Refusal::new(403, "default deny", reason))
}

/// Resolves a permitted name and judges every address: one forbidden address refuses the name,
/// for a name that mixes public and private answers is an attack or a mistake.
pub(crate) async fn addresses(door: &DoorState, rule: &EgressRule) -> Result<Vec<IpAddr>, Refusal> {
    let host = rule.host.base().as_str();
    let found = resolve::resolve(&*door.resolver, host).await.map_err(|e| {
        Refusal::new(502, &rule.id, format!("the name {host} cannot be resolved: {e}"))
    })?;
    for &ip in &found {
        match address::forbidden(ip) {
            Some(f) if !(f.opens && rule.private) => {
                let remedy = if f.opens {
                    "; if that is meant, write private = true in the rule"
                } else {
                    ""
                };
                let reason = format!("{host} resolves to {ip}, which is {}{remedy}", f.range);
                return Err(Refusal::new(403, &rule.id, reason));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// What one connection carried; recorded as `EgressResult` when dropped, however it ended.
pub(crate) struct Carried {
    scribe: Arc<Scribe>,
    turn: Option<TurnId>,
    host: String,
    port: u16,
    started: Instant,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Carried {
    fn new(door: &DoorState, rule: &EgressRule) -> Self {
        Self {
            scribe: Arc::clone(&door.scribe),
            turn: door.scribe.turn.get(),
            host: rule.host.to_string(),
            port: rule.port.unwrap_or_default(),
            started: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            error: Mutex::new(None),
        }
    }

    pub(crate) fn fail(&self, why: impl Into<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
    }

    /// Counts bytes that went out.
    pub(crate) fn sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
        Counters::add(&self.scribe.counters.bytes_up, n as u64);
    }

    /// Counts bytes that came back.
    pub(crate) fn received(&self, n: usize) {
        self.received.fetch_add(n as u64, Ordering::Relaxed);
        Counters::add(&self.scribe.counters.bytes_down, n as u64);
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let body = Body::EgressResult {
            host: std::mem::take(&mut self.host),
            port: self.port,
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            duration_ms: self.started.elapsed().as_millis() as u64,
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).take(),
            status: None,
            sent_sha256: None,
            received_sha256: None,
        };
        self.scribe.note(self.turn.take(), body);
    }
}

/// A connection made, and the account of what it carries.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) carried: Carried,
}

/// Records the intent durably, then connects to the pinned address; tries the next address when
/// one does not answer, each with its own records.
pub(crate) async fn connect(
    door: &DoorState,
    rule: &EgressRule,
    found: Vec<IpAddr>,
) -> Result<Connected, Refusal> {
    let mut last = String::from("no address");
    for ip in found.into_iter().take(ADDRESSES_MAX) {
        let intent = Body::EgressIntent {
            host: rule.host.to_string(),
            port: rule.port.unwrap_or_default(),
            request: None,
            secret: None,
            rule: rule.id.clone(),
            address: ip.to_string(),
        };
        door.scribe
            .write(intent, Durability::Durable)
            .await
            .map_err(|e| Refusal::new(503, &rule.id, format!("nothing was sent, for {e}")))?;
        let carried = Carried::new(door, rule);
        match resolve::connect(SocketAddr::new(ip, rule.port.unwrap_or_default())).await {
            Ok(stream) => return Ok(Connected { stream, carried }),
            Err(e) => {
                last = e.to_string();
                carried.fail(last.as_str());
            }
        }
    }
    let (host, port) = (&rule.host, rule.port.unwrap_or_default());
    Err(Refusal::new(502, &rule.id, format!("no connection to {host}:{port}: {last}")))
}
