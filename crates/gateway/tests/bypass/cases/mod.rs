//! The table, by theme, and the worlds its cases share.

mod addresses;
mod credentials;
mod deputies;
mod framing;
mod hosts;
mod limits;
mod paths;
mod sessions;
pub(crate) mod tunnels;

use crate::common::ways::rule_for;
use crate::lab::{Attack, Case, Due, Setup, Trip, fill};
use crate::world::{Ports, fine};
use model::{Effect, EgressRule, HostPattern, Injection, PathPattern, SecretUse, Sight};

/// Every case, in the order of the table.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    let themes = [
        hosts::CASES,
        addresses::CASES,
        tunnels::CASES,
        framing::CASES,
        paths::CASES,
        credentials::CASES,
        deputies::CASES,
        limits::CASES,
        sessions::CASES,
    ];
    themes.into_iter().flatten()
}

/// A case that only sends text.
const fn says(
    name: &'static str,
    setup: fn(Ports) -> Setup,
    text: &'static str,
    trip: Trip,
    due: Due,
) -> Case {
    Case { name, setup, attack: Attack::Says(text), trip, due }
}

/// `good.test:P` is permitted, looked into, and speaks plainly.
fn plain(ports: Ports) -> Setup {
    let control = "GET http://good.test:{P}/open/control HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";
    Setup {
        rules: vec![rule_for("good.test", ports.p)],
        others: Vec::new(),
        names: Vec::new(),
        tls: None,
        roots: Vec::new(),
        says: fine,
        secret_hosts: vec!["good.test"],
        secret_agents: Vec::new(),
        model: None,
        fetches: false,
        control: Some((fill(control, ports), "/open/control")),
    }
}

/// The rule of [`plain`], changed.
fn ruled(ports: Ports, change: impl FnOnce(&mut EgressRule)) -> Setup {
    let mut setup = plain(ports);
    change(&mut setup.rules[0]);
    setup
}

/// Only `GET` and `POST` below `/open/`.
fn open_paths(ports: Ports) -> Setup {
    ruled(ports, |rule| {
        rule.methods = vec!["GET".into(), "POST".into()];
        rule.paths = vec![PathPattern::parse("/open/**").unwrap()];
    })
}

/// Everything but `/admin/**` and `/admin`.
fn deny_admin(ports: Ports) -> Setup {
    let mut setup = plain(ports);
    let paths = ["/admin", "/admin/**"].map(|p| PathPattern::parse(p).unwrap()).into();
    let id = "agents/tester.toml:9".into();
    let deny = EgressRule { id, effect: Effect::Deny, port: None, paths, ..setup.rules[0].clone() };
    setup.rules.push(deny);
    setup
}

/// The rule with the secret `key1`.
fn secret(ports: Ports) -> Setup {
    ruled(ports, |rule| {
        rule.secret = Some(SecretUse { name: "key1".into(), inject: Injection::Bearer });
    })
}

/// A rule for another pattern in place of the usual one.
fn pattern(ports: Ports, pattern: &str) -> Setup {
    let mut setup = ruled(ports, |rule| rule.host = HostPattern::parse(pattern).unwrap());
    setup.control = None;
    setup
}

/// TLS to `good.test:P` is permitted, unseen.
fn tunnel(ports: Ports) -> Setup {
    let mut setup = ruled(ports, |rule| rule.sight = Sight::Tunnel);
    let mut control = fill("CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n", ports);
    control.extend(crate::tls::Greeting::to(b"good.test").whole());
    setup.control = Some((control, "good.test"));
    setup
}
