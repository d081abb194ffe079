//! From a permitted name to a connected, pinned address.

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

/// Resolves a permitted name and judges every address: one forbidden address refuses the name,
/// for a name that mixes public and private answers is an attack or a mistake.
pub(crate) async fn addresses(
    door: &DoorState,
    rule: &EgressRule,
    to: &Origin,
) -> Result<Vec<IpAddr>, Refusal> {
    let host = to.host.as_str();
    let found = resolve::resolve(&*door.resolver, host).await.map_err(|e| {
        Refusal::new(502, &rule.id, format!("the name {host} cannot be resolved: {e}"))
    })?;
    for &ip in &found {
        judge_address(rule, to, ip)?;
    }
    Ok(found)
}

/// What is about to be sent, for its record.
pub(crate) struct Intent<'a> {
    pub(crate) rule: &'a EgressRule,
    pub(crate) to: &'a Origin,
    pub(crate) request: Option<RequestLine>,
}

impl Intent<'_> {
    /// Puts it on record, durably. Until it returned `Ok`, nothing may be sent.
    pub(crate) async fn record(&self, door: &DoorState, ip: IpAddr) -> Result<(), Refusal> {
        let secret = self.request.as_ref().and(self.rule.secret.as_ref());
        let intent = Body::EgressIntent {
            host: self.to.host.to_string(),
            port: self.to.port,
            rule: self.rule.id.clone(),
            address: ip.to_string(),
            request: self.request.clone(),
            secret: secret.map(|s| s.name.clone()),
        };
        door.scribe
            .write(intent, Durability::Durable)
            .await
            .map_err(|e| Refusal::new(503, &self.rule.id, format!("nothing was sent, for {e}")))
    }

    /// Connects to the first of `found` that answers, each attempt with its own records.
    pub(crate) async fn connect(
        &self,
        door: &DoorState,
        found: Vec<IpAddr>,
    ) -> Result<(TcpStream, IpAddr, Carried), Refusal> {
        let mut last = String::from("no address");
        for ip in found.into_iter().take(ADDRESSES_MAX) {
            self.record(door, ip).await?;
            let carried = match self.request {
                Some(_) => Carried::bodies(door, self.to),
                None => Carried::connection(door, self.to),
            };
            match resolve::connect(SocketAddr::new(ip, self.to.port)).await {
                Ok(stream) => return Ok((stream, ip, carried)),
                Err(e) => {
                    last = e.to_string();
                    carried.fail(last.as_str());
                }
            }
        }
        let (host, port) = (&self.to.host, self.to.port);
        let why = format!("no connection to {host}:{port}: {last}");
        Err(Refusal::new(502, &self.rule.id, why).on_record())
    }
}
