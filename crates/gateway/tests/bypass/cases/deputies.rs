//! What the gateway fetches itself, for an agent that asks it to.

use super::credentials::{to_evil, to_private};
use super::plain;
use crate::lab::Due::Refused;
use crate::lab::Trip::{Dialled, Evil, Mark};
use crate::lab::{Attack, Case, Setup, fill};
use crate::world::{Answering, Ports, fine};

/// `web_fetch` is granted, and the permitted server answers so.
fn fetching(ports: Ports, says: Answering) -> Setup {
    Setup { fetches: true, says, control: None, ..plain(ports) }
}

/// A call of the tool with this address.
fn call(ports: Ports, url: &str) -> Vec<u8> {
    let url = String::from_utf8(fill(url, ports)).unwrap();
    let body = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{\"name\":\
         \"web_fetch\",\"arguments\":{{\"url\":\"{url}\"}}}}}}"
    );
    let length = body.len();
    let accept = "Accept: application/json, text/event-stream\r\nContent-Type: application/json";
    format!("POST /mcp HTTP/1.1\r\nHost: x\r\n{accept}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into()
}

macro_rules! fetch {
    ($name:literal, $url:literal, $says:expr, $trip:expr, $due:literal) => {
        Case {
            name: $name,
            setup: |ports| fetching(ports, $says),
            attack: Attack::Sends(|ports| call(ports, $url)),
            trip: $trip,
            due: Refused($due),
        }
    };
}

pub(super) const CASES: &[Case] = &[
    fetch!(
        "fetch: a host that no rule permits",
        "http://evil.test:{P}/{MARK}",
        fine,
        Mark,
        "default deny"
    ),
    fetch!("fetch: another port", "http://good.test:{Q}/{MARK}", fine, Mark, "only, not"),
    fetch!("fetch: an address", "http://127.0.0.2:{P}/{MARK}", fine, Mark, "it is an address"),
    fetch!(
        "fetch: an address, decimal",
        "http://2130706434:{P}/{MARK}",
        fine,
        Mark,
        "it is an address"
    ),
    fetch!(
        "fetch: metadata",
        "http://169.254.169.254/{MARK}",
        fine,
        Dialled("169.254.169.254"),
        "it is an address"
    ),
    fetch!(
        "fetch: permitted name as user name",
        "http://good.test:{P}@evil.test:{P}/{MARK}",
        fine,
        Mark,
        "user names"
    ),
    fetch!(
        "fetch: sent to a host that no rule permits",
        "http://good.test:{P}/x",
        to_evil,
        Evil("/followed"),
        "default deny"
    ),
    fetch!(
        "fetch: sent to a private address",
        "http://good.test:{P}/x",
        to_private,
        Dialled("10.0.0.1"),
        "it is an address"
    ),
];
