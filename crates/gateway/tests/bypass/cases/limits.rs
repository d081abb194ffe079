//! How much, how often, and only with a record.

use super::{plain, ruled, says};
use crate::lab::Due::{Cut, Held, Refused};
use crate::lab::Trip::Mark;
use crate::lab::{Attack, Case, Lab, MARK, Setup};
use crate::world::Ports;
use model::{Effect, Sight};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bodies of at most 10 bytes.
fn small(ports: Ports) -> Setup {
    ruled(ports, |rule| rule.limits.max_request = Some(10))
}

/// 1000 bytes a day.
fn a_day(ports: Ports) -> Setup {
    let mut setup = ruled(ports, |rule| rule.limits.max_upload_per_day = Some(1_000));
    setup.control = None;
    setup
}

/// 1000 bytes a day, whatever they are.
fn a_day_unseen(ports: Ports) -> Setup {
    let mut setup = a_day(ports);
    setup.rules[0].sight = Sight::Tcp;
    setup
}

/// Two requests a minute.
fn slowly(ports: Ports) -> Setup {
    let mut setup = ruled(ports, |rule| rule.limits.max_per_minute = Some(2));
    setup.control = None;
    setup
}

/// A human decides, and there is none.
fn asked(ports: Ports) -> Setup {
    let mut setup = ruled(ports, |rule| {
        rule.effect = Effect::Ask;
        rule.ask = Some(model::AskTerms { by: "owner".into(), timeout_ms: 1_000 });
    });
    setup.control = None;
    setup
}

fn without_control(ports: Ports) -> Setup {
    Setup { control: None, ..plain(ports) }
}

/// A body of `n` bytes before the mark.
fn post(ports: Ports, n: usize) -> Vec<u8> {
    let (p, length) = (ports.p, n + MARK.len());
    let head = format!(
        "POST http://good.test:{p}/ HTTP/1.1\r\nHost: good.test:{p}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    format!("{head}{}{MARK}", "x".repeat(n)).into()
}

const THRICE: &str = "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n\
                      GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n\
                      GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";
const ONCE: &str = "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";

pub(super) const CASES: &[Case] = &[
    says(
        "size: a counted body above the rule's",
        small,
        "POST http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\nContent-Length: 13\r\n\
         \r\n{MARK}",
        Mark,
        Refused("the rule permits 10"),
    ),
    says(
        "size: a chunked body above the rule's",
        small,
        "POST http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Transfer-Encoding: chunked\r\n\r\n\
         4\r\nabcd\r\nd\r\n{MARK}\r\n0\r\n\r\n",
        Mark,
        Refused("larger than 10 bytes"),
    ),
    Case {
        name: "size: a head of 40 KiB",
        setup: plain,
        attack: Attack::Sends(|ports| {
            let (p, more) = (ports.p, "x".repeat(40_000));
            format!(
                "GET http://good.test:{p}/ HTTP/1.1\r\nHost: good.test:{p}\r\nX: {more}\r\n\
                 Y: {MARK}\r\n\r\n"
            )
            .into()
        }),
        trip: Mark,
        due: Refused("head is larger"),
    },
    Case {
        name: "size: a head of 200 fields",
        setup: plain,
        attack: Attack::Sends(|ports| {
            let (p, more) = (ports.p, "X: y\r\n".repeat(200));
            format!(
                "GET http://good.test:{p}/ HTTP/1.1\r\nHost: good.test:{p}\r\n\
                 {more}Y: {MARK}\r\n\r\n"
            )
            .into()
        }),
        trip: Mark,
        due: Refused("head is larger"),
    },
    Case {
        name: "day: one body above what is left",
        setup: a_day,
        attack: Attack::Sends(|ports| post(ports, 2_000)),
        trip: Mark,
        due: Refused("in a day"),
    },
    Case {
        name: "day: a second body that crosses it",
        setup: a_day,
        attack: Attack::Sends(|ports| {
            let first = String::from_utf8(post(ports, 500)).unwrap().replace(MARK, "-------------");
            [first.into_bytes(), post(ports, 500)].concat()
        }),
        trip: Mark,
        due: Refused("in a day"),
    },
    Case {
        name: "day: a chunked body that crosses it",
        setup: a_day,
        attack: Attack::Sends(|ports| {
            let (p, piece) = (ports.p, format!("190\r\n{}\r\n", "x".repeat(400)).repeat(3));
            format!(
                "POST http://good.test:{p}/ HTTP/1.1\r\nHost: good.test:{p}\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{piece}d\r\n{MARK}\r\n0\r\n\r\n"
            )
            .into()
        }),
        trip: Mark,
        due: Refused("in a day"),
    },
    Case {
        name: "day: bytes in a connection that cross it",
        setup: a_day_unseen,
        attack: Attack::Does(|lab| Box::pin(pour(lab))),
        trip: Mark,
        due: Cut("in a day"),
    },
    says(
        "rate: a third request where two are permitted",
        slowly,
        THRICE,
        Mark,
        Refused("in a minute"),
    ),
    says("ask: nobody answers", asked, ONCE, Mark, Refused("toml:7")),
    Case {
        name: "record: it cannot be written",
        setup: without_control,
        attack: Attack::Does(|lab| {
            Box::pin(async move {
                lab.sink.broken.store(true, Ordering::SeqCst);
                lab.say(ONCE).await;
            })
        }),
        trip: Mark,
        due: Held("nothing is sent without its record"),
    },
    Case {
        name: "connections: one more than a session may hold",
        setup: without_control,
        attack: Attack::Does(|lab| Box::pin(crowd(lab))),
        trip: Mark,
        due: Held("a session holds so many and no more"),
    },
];

async fn pour(lab: Arc<Lab>) {
    let mut stream = lab.through().await;
    for _ in 0..4 {
        let _ = stream.write_all(&[b'x'; 400]).await;
        let _ = stream.flush().await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let _ = stream.write_all(MARK.as_bytes()).await;
    lab.keep(stream);
}

async fn crowd(lab: Arc<Lab>) {
    let mut held = Vec::new();
    for _ in 0..nanoclaw_gateway::CONNECTIONS_MAX {
        let mut stream = lab.enter().await;
        let ask = b"GET /.nanoclaw/name/good.test HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204");
        held.push(stream);
    }
    lab.say(ONCE).await;
    lab.answered(1).await;
    held.into_iter().for_each(|stream| lab.keep(stream));
}
