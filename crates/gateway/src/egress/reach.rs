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
use model::{Body, Durability, EgressRule, RequestLine};
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;

/// Judges one address against a rule.
pub(crate) fn judge_address(rule: &EgressRule, to: &Origin, ip: IpAddr) -> Result<(), Refusal> {
    match address::forbidden(ip) {
        Some(f) if !(f.opens && rule.private) => {
            let remedy =
                if f.opens { "; if that is meant, write private = true in the rule" } else { "" };
            let reason = format!("{} resolves to {ip}, which is {}{remedy}", to.host, f.range);
            Err(Refusal::new(403, &rule.id, reason))
        }
        _ => Ok(()),
    }
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
        let found = resolve::resolve(&*door.resolver, host).await.map_err(|e| {
            let why = format!("the name {host} cannot be resolved: {e}");
            Refusal::new(502, &rule.id, why).on_record()
        })?;
        for &ip in &found {
            judge_address(rule, self.to, ip)?;
        }
        let injects = self.request.is_some() && rule.secret.is_some();
        if injects && !self.to.tls && !found.iter().all(|ip| ip.is_loopback()) {
            let why = "a secret is never sent without TLS to another machine; use https";
            return Err(Refusal::new(403, &rule.id, why));
        }
        Ok(found)
    }
}
