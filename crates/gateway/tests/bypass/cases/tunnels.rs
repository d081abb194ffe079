//! Connections: what is spoken in them, whom greetings call, which certificates are believed.

use super::{plain, says, tunnel};
use crate::lab::Due::{Cut, Held, Refused};
use crate::lab::Trip::{Good, Mark};
use crate::lab::{Attack, Case, Due, Lab, MARK, Setup, Trip, fill};
use crate::tls::{Greeting, Wrong, certificate, trusting};
use crate::world::Ports;
use model::{Effect, EgressRule, PathPattern, Sight};
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;

/// A TLS record with a handshake in it.
const HANDSHAKE: &str = "\u{16}\u{3}\u{1}";

/// `bytes` in a connection to the permitted host.
fn inside(ports: Ports, bytes: &[u8]) -> Vec<u8> {
    let connect = fill("CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n", ports);
    [&connect, bytes].concat()
}

/// A connection that begins with these bytes.
macro_rules! begins {
    ($name:literal, $setup:expr, $bytes:expr, $trip:expr, $due:literal) => {
        Case {
            name: $name,
            setup: $setup,
            attack: Attack::Sends(|ports| inside(ports, &$bytes)),
            trip: $trip,
            due: Refused($due),
        }
    };
}

/// Requests in TLS to `good.test`, over a certificate that is wrong in a way.
const fn in_tls(
    name: &'static str,
    setup: fn(Ports) -> Setup,
    attack: fn(Arc<Lab>) -> crate::lab::Doing,
    trip: Trip,
    due: Due,
) -> Case {
    Case { name, setup, attack: Attack::Does(attack), trip, due }
}

fn shows(ports: Ports, wrong: Wrong) -> Setup {
    let (acceptor, root) = certificate(wrong);
    let mut setup = plain(ports);
    setup.tls = Some(acceptor);
    setup.roots = vec![root];
    setup.control = None;
    setup
}

/// A server that can be trusted.
pub(crate) fn trusted(ports: Ports) -> Setup {
    shows(ports, Wrong::Nothing)
}

/// Parts of the host are denied, and the rest is a tunnel.
fn tunnel_in_part(ports: Ports) -> Setup {
    let mut setup = tunnel(ports);
    let (id, paths) = ("agents/tester.toml:9".into(), vec![PathPattern::parse("/admin").unwrap()]);
    let sight = Sight::Intercept;
    let first = setup.rules[0].clone();
    setup.rules.push(EgressRule { id, effect: Effect::Deny, paths, sight, ..first });
    setup.control = None;
    setup
}

pub(crate) async fn request(lab: Arc<Lab>, text: &'static str) {
    let Some(mut stream) = trusting(lab.through().await, "good.test", true).await else { return };
    let _ = stream.write_all(&fill(text, lab.ports)).await;
    let _ = stream.flush().await;
    let (read, write) = tokio::io::split(stream);
    lab.keep(read);
    // Held open until the world ends.
    std::mem::forget(write);
}

/// What a decent program asks.
pub(crate) const DECENT: &str = "GET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";

macro_rules! asks {
    ($text:expr) => {
        |lab| Box::pin(request(lab, $text))
    };
}

fn long() -> Vec<u8> {
    let extra = vec![(21, vec![0; 20_000])];
    Greeting { extra, ..Greeting::to(b"evil.test") }.in_records(16_000)
}

pub(super) const CASES: &[Case] = &[
    begins!(
        "tunnel: the greeting calls another host",
        tunnel,
        Greeting::to(b"evil.test").whole(),
        Good("evil.test"),
        "the TLS greeting names evil.test"
    ),
    begins!(
        "tunnel: the greeting calls nobody",
        tunnel,
        Greeting::default().whole(),
        Good(HANDSHAKE),
        "SNI is missing"
    ),
    begins!(
        "tunnel: two names in one list",
        tunnel,
        Greeting { names: vec![vec![b"good.test", b"evil.test"]], extra: vec![] }.whole(),
        Good("evil.test"),
        "more than one server name"
    ),
    begins!(
        "tunnel: two lists of names",
        tunnel,
        Greeting { names: vec![vec![b"good.test"], vec![b"evil.test"]], extra: vec![] }.whole(),
        Good("evil.test"),
        "comes twice"
    ),
    begins!(
        "tunnel: an empty list of names",
        tunnel,
        Greeting { names: vec![vec![]], extra: vec![] }.whole(),
        Good(HANDSHAKE),
        "a length in it reaches beyond its end"
    ),
    begins!(
        "tunnel: encrypted greeting (ECH)",
        tunnel,
        Greeting { extra: vec![(0xfe0d, MARK.into())], ..Greeting::to(b"good.test") }.whole(),
        Mark,
        "ECH"
    ),
    begins!(
        "tunnel: encrypted name, forerunner of ECH",
        tunnel,
        Greeting { extra: vec![(0xffce, MARK.into())], ..Greeting::to(b"good.test") }.whole(),
        Mark,
        "ECH"
    ),
    begins!(
        "tunnel: the name cut over records",
        tunnel,
        Greeting::to(b"evil.test").in_records(7),
        Good(HANDSHAKE),
        "the TLS greeting names evil.test"
    ),
    begins!(
        "tunnel: a record for each byte",
        tunnel,
        Greeting::to(b"evil.test").in_records(1),
        Good(HANDSHAKE),
        "the TLS greeting names evil.test"
    ),
    begins!(
        "tunnel: a second greeting in the same record",
        tunnel,
        Greeting::to(b"good.test").followed_by(&Greeting::to(b"evil.test").whole()),
        Good("evil.test"),
        "something follows it"
    ),
    begins!(
        "tunnel: the name behind 16 KiB of padding",
        tunnel,
        long(),
        Good(HANDSHAKE),
        "longer than 16 KiB"
    ),
    begins!(
        "tunnel: a zero byte in the name",
        tunnel,
        Greeting::to(b"good.test\0.evil.test").whole(),
        Good("evil.test"),
        "plain host name"
    ),
    begins!(
        "tunnel: an address as the name",
        tunnel,
        Greeting::to(b"127.0.0.2").whole(),
        Good("127.0.0.2"),
        "plain host name"
    ),
    begins!(
        "tunnel: a dot behind the name",
        tunnel,
        Greeting::to(b"good.test.").whole(),
        Good("good.test."),
        "plain host name"
    ),
    begins!(
        "tunnel: a warning ahead of the greeting",
        tunnel,
        [&[21, 3, 1, 0, 2, 1, 90][..], &Greeting::to(b"evil.test").whole()].concat(),
        Good("evil.test"),
        "only TLS"
    ),
    begins!(
        "tunnel: an empty record ahead of the greeting",
        tunnel,
        [&[22, 3, 1, 0, 0][..], &Greeting::to(b"evil.test").whole()].concat(),
        Good("evil.test"),
        "empty or too long"
    ),
    begins!(
        "tunnel: a greeting of SSL 2",
        tunnel,
        [&[0x80, 0x2e, 1, 3, 1][..], MARK.as_bytes(), &[0; 40]].concat(),
        Mark,
        "only TLS"
    ),
    begins!("tunnel: SSH", tunnel, fill("SSH-2.0-{MARK}\r\n", ports_unused()), Mark, "only TLS"),
    begins!(
        "tunnel: plain HTTP",
        tunnel,
        fill("GET /{MARK} HTTP/1.1\r\nHost: good.test\r\n\r\n", ports_unused()),
        Mark,
        "only TLS"
    ),
    begins!(
        "tunnel: HTTP/2 without TLS",
        tunnel,
        *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Good("PRI * "),
        "only TLS"
    ),
    begins!(
        "tunnel: to a host of which a part is denied",
        tunnel_in_part,
        Greeting::to(b"good.test").whole(),
        Good("good.test"),
        "toml:9"
    ),
    says(
        "tunnel: a body of the CONNECT itself",
        tunnel,
        "CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\nContent-Length: 13\r\n\r\n{MARK}",
        Mark,
        Refused("CONNECT has no body"),
    ),
    says(
        "tunnel: Host of the CONNECT names another",
        tunnel,
        "CONNECT evil.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\nSSH-{MARK}",
        Mark,
        Refused("names another host"),
    ),
    begins!(
        "looked into: the greeting calls another host",
        plain,
        Greeting::to(b"evil.test").whole(),
        Good("evil.test"),
        "the TLS greeting names evil.test"
    ),
    begins!(
        "looked into: the greeting calls nobody",
        plain,
        Greeting::default().whole(),
        Good(HANDSHAKE),
        "SNI is missing"
    ),
    begins!(
        "looked into: SSH",
        plain,
        fill("SSH-2.0-{MARK}\r\n", ports_unused()),
        Mark,
        "neither TLS nor HTTP"
    ),
    begins!(
        "looked into: SOCKS",
        plain,
        [&b"\x05\x01\x00"[..], MARK.as_bytes()].concat(),
        Mark,
        "neither TLS nor HTTP"
    ),
    begins!(
        "looked into: HTTP/2 without TLS",
        plain,
        *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Good("PRI * "),
        "neither TLS nor HTTP"
    ),
    in_tls(
        "looked into: Host names another than the greeting",
        trusted,
        asks!("GET /{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n"),
        Mark,
        Refused("names another host"),
    ),
    in_tls(
        "looked into: the second request names another host",
        trusted,
        asks!(
            "GET / HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n\
             GET /{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("names another host"),
    ),
    in_tls(
        "looked into: absolute target of another host",
        trusted,
        asks!("GET https://evil.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"),
        Mark,
        Refused("must be a path"),
    ),
    in_tls(
        "looked into: CONNECT inside",
        trusted,
        asks!("CONNECT evil.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"),
        Good("CONNECT evil"),
        Refused("must be a path"),
    ),
    in_tls(
        "looked into: HTTP/2 inside TLS",
        trusted,
        asks!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{MARK}"),
        Mark,
        Refused("only HTTP/1.1"),
    ),
    in_tls(
        "looked into: HTTP/1.0 without a host",
        trusted,
        asks!("GET /{MARK} HTTP/1.0\r\n\r\n"),
        Mark,
        Refused("speak HTTP/1.1"),
    ),
    in_tls(
        "certificate: vouches for itself",
        |p| shows(p, Wrong::SelfSigned),
        asks!(DECENT),
        Mark,
        Cut("UnknownIssuer"),
    ),
    in_tls(
        "certificate: of an unknown authority",
        |p| shows(p, Wrong::Issuer),
        asks!(DECENT),
        Mark,
        Cut("UnknownIssuer"),
    ),
    in_tls(
        "certificate: expired",
        |p| shows(p, Wrong::Expired),
        asks!(DECENT),
        Mark,
        Cut("expired"),
    ),
    in_tls(
        "certificate: not valid yet",
        |p| shows(p, Wrong::NotYet),
        asks!(DECENT),
        Mark,
        Cut("not valid yet"),
    ),
    in_tls(
        "certificate: for another name",
        |p| shows(p, Wrong::Name),
        asks!(DECENT),
        Mark,
        Cut("not valid for name"),
    ),
    says(
        "downgrade: https asked for without TLS",
        plain,
        "GET https://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("only http://"),
    ),
    says(
        "upgrade: HTTP/2 from plain HTTP (h2c)",
        plain,
        "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
        Good("h2c"),
        Held("fields of one hop end at the gateway"),
    ),
];

/// For texts without ports.
fn ports_unused() -> Ports {
    Ports { p: 1, q: 2 }
}
