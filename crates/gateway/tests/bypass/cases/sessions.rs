//! Whose door it is, and what becomes of connections when the gateway dies.

use super::{plain, secret};
use crate::lab::Due::{Held, Refused};
use crate::lab::Trip::{Good, Mark};
use crate::lab::{Attack, Case, Due, Lab, MARK, Setup, Trip, fill, until};
use crate::world::Ports;
use model::Sight;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// What is sent to the other session's door.
macro_rules! other {
    ($name:literal, $setup:expr, $text:expr, $trip:expr, $due:expr) => {
        Case {
            name: $name,
            setup: $setup,
            attack: Attack::Does(|lab| {
                Box::pin(async move { lab.send_to("s2.sock", &fill($text, lab.ports)).await })
            }),
            trip: $trip,
            due: $due,
        }
    };
}

/// The other session may reach the host, but without the secret.
fn without_secret(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.others = plain(ports).rules;
    setup
}

/// The other session's file names a secret that is bound to this one's agent.
fn borrowed(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.others = setup.rules.clone();
    setup.secret_agents = vec!["tester"];
    setup
}

fn dying(ports: Ports) -> Setup {
    Setup { control: None, ..plain(ports) }
}

fn dying_unseen(ports: Ports) -> Setup {
    let mut setup = dying(ports);
    setup.rules[0].sight = Sight::Tcp;
    setup
}

const fn dies(
    name: &'static str,
    setup: fn(Ports) -> Setup,
    attack: fn(Arc<Lab>) -> crate::lab::Doing,
) -> Case {
    let due = Due::Held("connections end with the gateway");
    Case { name, setup, attack: Attack::Does(attack), trip: Trip::Mark, due }
}

pub(super) const CASES: &[Case] = &[
    other!(
        "session: another's door",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("default deny")
    ),
    other!(
        "session: another's door, a tunnel",
        plain,
        "CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\nSSH-{MARK}",
        Mark,
        Refused("default deny")
    ),
    other!(
        "session: claimed in fields",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\nX-Session: s1\r\n\
         X-Nanoclaw-Session: s1\r\nX-Nanoclaw-Agent: tester\r\nForwarded: for=s1\r\n\
         X-Forwarded-For: s1\r\nFrom: tester\r\n\r\n",
        Mark,
        Refused("default deny")
    ),
    other!(
        "session: claimed in a cookie and the query",
        plain,
        "GET http://good.test:{P}/{MARK}?session=s1 HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Cookie: session=s1\r\n\r\n",
        Mark,
        Refused("default deny")
    ),
    other!(
        "session: claimed for a proxy",
        plain,
        "CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Proxy-Authorization: Basic czE6dGVzdGVy\r\n\r\nSSH-{MARK}",
        Mark,
        Refused("default deny")
    ),
    other!(
        "session: another's placeholder",
        without_secret,
        "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
         X-Api-Key: {PLACEHOLDER}\r\n\r\n",
        Good("{KEY}"),
        Refused("placeholder key")
    ),
    other!(
        "session: another's secret",
        without_secret,
        "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Good("{KEY}"),
        Held("each session has rules of its own")
    ),
    other!(
        "session: a secret that is bound to another's agent",
        borrowed,
        "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Good("{KEY}"),
        Refused("may not be used at")
    ),
    dies("gateway killed: in the midst of a body", dying, |lab| {
        Box::pin(pour_on(
            lab,
            "POST http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
             Content-Length: 10000000\r\n\r\n",
        ))
    }),
    dies("gateway killed: in the midst of a chunked body", dying, |lab| {
        Box::pin(pour_on(
            lab,
            "POST http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
             Transfer-Encoding: chunked\r\n\r\nFFFFFF\r\n",
        ))
    }),
    dies("gateway killed: in the midst of a connection", dying_unseen, |lab| {
        Box::pin(pour_on(lab, "CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"))
    }),
];

/// Sends, and goes on sending after the gateway died.
async fn pour_on(lab: Arc<Lab>, head: &'static str) {
    const FIRST: usize = 100_000;
    let mut stream = lab.enter().await;
    stream.write_all(&fill(head, lab.ports)).await.unwrap();
    stream.write_all(&vec![b'x'; FIRST]).await.unwrap();
    until(|| lab.good.bytes() >= FIRST).await;
    assert!(lab.good.bytes() >= FIRST, "the body is under way");
    lab.kill();
    // The tasks end when they are next polled.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = lab.good.bytes();
    for _ in 0..20 {
        let _ = stream.write_all(MARK.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !lab.good.heard(MARK) {
        assert_eq!(lab.good.bytes(), before, "not one more byte");
    }
    lab.keep(stream);
}
