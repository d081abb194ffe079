//! From a permitted name to a connected, pinned address:
//! on record ─► looked up ─► judged ─► pinned, on record ─► connected.
//!
//! An agent chooses the names below a `*.suffix`, so to look one up is to send something: whoever
//! resolves shows the [`Carried`] that only a durable intent makes.

use super::carried::Carried;
use super::{Origin, Refusal};
use crate::address;
use crate::door::DoorState;
use crate::resolve::{self, ADDRESSES_MAX};
use model::{AgentName, Body, Durability, EgressRule, RequestLine};
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;

/// What permits an address that rules do not permit by themselves.
fn opening(rule: &EgressRule, to: &Origin, agent: &AgentName) -> String {
    // Arguments have no word for it, so a rule must stand in a file.
    if rule.id.starts_with("--") {
        let (host, port) = (&to.host, to.port);
        return format!(
            "; if that is meant, put [[egress]] with host = \"{host}\", port = {port} and private = \
             true into agents/{agent}.toml"
        );
    }
    "; if that is meant, write private = true in the rule".to_owned()
}

/// Judges one address against a rule of an agent.
pub(crate) fn judge_address(
    rule: &EgressRule,
    to: &Origin,
    ip: IpAddr,
    agent: &AgentName,
) -> Result<(), Refusal> {
    match address::forbidden(ip) {
        Some(f) if !(f.opens && rule.private) => {
            let remedy = if f.opens { opening(rule, to, agent) } else { String::new() };
            let reason = format!("{} resolves to {ip}, which is {}{remedy}", to.host, f.range);
            Err(Refusal::new(403, &rule.id, reason))
        }
        _ => Ok(()),
    }
}

/// Port of plain HTTP (RFC 9110 §4.2.1).
const HTTP_PORT: u16 = 80;

/// A rule means TLS, which the agent's program could simply leave out: what is written without it
/// can be read and changed on the way. Nothing is on the way at private addresses, as far as the
/// rule's `private` says; port 80 says itself what is spoken there.
pub(crate) fn judge_clear(rule: &EgressRule, to: &Origin, ip: IpAddr) -> Result<(), Refusal> {
    let near = || address::forbidden(ip).is_some_and(|f| f.opens && rule.private);
    if to.tls || to.port == HTTP_PORT || rule.clear || near() {
        return Ok(());
    }
    let (host, port) = (&to.host, to.port);
    let why = format!(
        "{host}:{port} would be spoken to without TLS, which a rule permits at port 80 and at \
         private addresses only; use https, or write protocol = \"http\" in the rule"
    );
    Err(Refusal::new(403, &rule.id, why))
}

/// What is about to be sent, for its record.
pub(crate) struct Intent<'a> {
    pub(crate) rule: &'a EgressRule,
    pub(crate) to: &'a Origin,
    pub(crate) request: Option<RequestLine>,
}

impl Intent<'_> {
    /// Puts it on record, durably. Until it returned `Ok`, nothing may be looked up or sent.
    /// `kept` is the address of a connection that exists already.
    pub(crate) async fn record(
        &self,
        door: &DoorState,
        kept: Option<IpAddr>,
    ) -> Result<Carried, Refusal> {
        let secret = self.request.as_ref().and(self.rule.secret.as_ref());
        let intent = Body::EgressIntent {
            host: self.to.host.to_string(),
            port: self.to.port,
            rule: self.rule.id.clone(),
            address: kept.map(|ip| ip.to_string()),
            request: self.request.clone(),
            secret: secret.map(|s| s.name.clone()),
        };
        self.write(door, intent).await?;
        Ok(match self.request {
            Some(_) => Carried::bodies(door, self.to),
            None => Carried::connection(door, self.to),
        })
    }

    async fn write(&self, door: &DoorState, body: Body) -> Result<(), Refusal> {
        let written = door.scribe.write(body, Durability::Durable).await;
        written.map_err(|e| Refusal::new(503, &self.rule.id, format!("nothing was sent, for {e}")))
    }

    /// Puts it on record and connects to the first address of the name that answers.
    pub(crate) async fn connect(
        &self,
        door: &DoorState,
    ) -> Result<(TcpStream, IpAddr, Carried), Refusal> {
        let carried = self.record(door, None).await?;
        match self.reach(door, &carried).await {
            Ok((stream, ip)) => Ok((stream, ip, carried)),
            Err(refusal) => {
                carried.fail(refusal.reason.as_str());
                Err(refusal)
            }
        }
    }

    async fn reach(
        &self,
        door: &DoorState,
        on_record: &Carried,
    ) -> Result<(TcpStream, IpAddr), Refusal> {
        let (host, port) = (&self.to.host, self.to.port);
        let mut failures = Vec::new();
        for ip in self.look_up(door, on_record).await?.into_iter().take(ADDRESSES_MAX) {
            let address = ip.to_string();
            let pinned = Body::EgressPinned { host: host.to_string(), port, address };
            self.write(door, pinned).await?;
            match resolve::connect(SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok((stream, ip)),
                Err(e) => failures.push(format!("{ip}: {e}")),
            }
        }
        let why = format!("no connection to {host}:{port}: {}", failures.join("; "));
        Err(Refusal::new(502, &self.rule.id, why).on_record())
    }

    /// Resolves a permitted name and judges every address: one forbidden address refuses the
    /// name, for a name that mixes public and private answers is an attack or a mistake.
    async fn look_up(
        &self,
        door: &DoorState,
        _on_record: &Carried,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let (rule, host) = (self.rule, self.to.host.as_str());
        let found = door.lookups.look_up(host).await.map_err(|e| {
            let why = format!("the name {host} cannot be resolved: {e}");
            Refusal::new(502, &rule.id, why).on_record()
        })?;
        for &ip in &found {
            judge_address(rule, self.to, ip, &door.scribe.agent)?;
        }
        let injects = self.request.is_some() && rule.secret.is_some();
        if injects && !self.to.tls && !found.iter().all(|ip| ip.is_loopback()) {
            let why = "a secret is never sent without TLS to another machine; use https";
            return Err(Refusal::new(403, &rule.id, why));
        }
        for &ip in &found {
            judge_clear(rule, self.to, ip)?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::HostName;

    #[test]
    fn without_tls_only_port_80_near_addresses_and_what_the_rule_says() {
        let host = HostName::parse("a.test").expect("a name");
        let judged = |tls, port, ip: &str, private, clear| {
            let rule = EgressRule {
                private,
                clear,
                ..EgressRule::allow("agents/a.toml:1", host.clone(), port)
            };
            let to = Origin { host: host.clone(), port, tls };
            judge_clear(&rule, &to, ip.parse().expect("an address"))
        };
        for (tls, port, ip, private, clear, passes) in [
            (true, 443, "8.8.8.8", false, false, true),
            (false, 443, "8.8.8.8", false, false, false),
            (false, 8080, "8.8.8.8", false, false, false),
            // Private addresses are permitted, but this is none.
            (false, 443, "8.8.8.8", true, false, false),
            (false, 8080, "2606:4700::1111", true, false, false),
            (false, 8080, "127.0.0.1", true, false, true),
            (false, 443, "10.1.2.3", true, false, true),
            (false, 8080, "::1", true, false, true),
            (false, 80, "8.8.8.8", false, false, true),
            (false, 8080, "8.8.8.8", false, true, true),
        ] {
            let judged = judged(tls, port, ip, private, clear);
            assert_eq!(judged.is_ok(), passes, "{tls} {port} {ip} {private} {clear}");
            if let Err(refusal) = judged {
                assert!(refusal.reason.contains("write protocol = \"http\""), "the remedy");
            }
        }
    }
}
