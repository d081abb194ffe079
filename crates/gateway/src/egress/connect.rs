//! `CONNECT host:port`: judged by name and port, then tunnelled or looked into.

use super::reach::Intent;
use super::upload::Allowance;
use super::{Origin, Refusal, intercept, tunnel};
use crate::asks;
use crate::authority::{self, quoted};
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::{Framing, Head};
use crate::tls::sniff::{self, First};
use model::{Effect, EgressRule, Sight};
use policy::ConnectVerdict;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a client is answered when it may begin.
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";
/// A client says what it wants within this; some open connections ahead of need.
pub(super) const FIRST_WORDS_TIME: Duration = Duration::from_secs(60);

/// Serves one `CONNECT`; the connection ends with it.
pub(crate) async fn connect(mut conn: Conn, door: &Arc<DoorState>, head: &Head) {
    let refusal = match target(head) {
        Err(refusal) => refusal,
        Ok(to) => match policy::connect_verdict(&door.rules, &to.host, to.port) {
            ConnectVerdict::Requests => return intercept::run(conn, door, to).await,
            ConnectVerdict::Deny(denial) => Refusal::denied(door, &to, denial, None),
            ConnectVerdict::Connection(rule) => {
                match conn.unless_gone(open(door, rule, &to)).await {
                    None => return,
                    Some(Ok((stream, carried))) => {
                        return run(conn, door, rule, &to, stream, &carried).await;
                    }
                    Some(Err(refusal)) => refusal,
                }
            }
        },
    };
    refusal.record(door, quoted(&head.target), None).await;
    let text = format!("{}\n", refusal.text());
    let fields = [("content-type", "text/plain; charset=utf-8")];
    let body = AnswerBody::Whole(text.as_bytes());
    let _ = conn.write(&answer(refusal.status, &fields, &body, false)).await;
    conn.close().await;
}

fn target(head: &Head) -> Result<Origin, Refusal> {
    let bad = |why: String| Refusal::new(400, "http", why);
    if head.framing != Framing::None {
        return Err(bad("CONNECT has no body".into()));
    }
    let to = authority::parse(&head.target).map_err(|e| bad(e.to_string()))?;
    authority::check_host(head.field("host"), &to).map_err(|e| bad(e.to_string()))?;
    Ok(Origin { host: to.host, port: to.port, tls: true })
}

type Opened = (TcpStream, super::carried::Carried);

async fn open(door: &DoorState, rule: &EgressRule, to: &Origin) -> Result<Opened, Refusal> {
    if let Some(max) = rule.limits.max_per_minute
        && !door.rates.admit(&rule.id, max)
    {
        let why = format!("the rule permits {max} connections in a minute; wait and try again");
        return Err(Refusal::new(429, &rule.id, why));
    }
    if rule.effect == Effect::Ask {
        let how = if rule.sight == Sight::Tunnel { "an unseen TLS" } else { "a raw TCP" };
        let summary = format!("{how} connection to {}:{}", to.host, to.port);
        asks::ask(door, rule, summary).await?;
    }
    let (stream, _, carried) = Intent { rule, to, request: None }.connect(door).await?;
    Ok((stream, carried))
}

async fn run(
    mut conn: Conn,
    door: &DoorState,
    rule: &EgressRule,
    to: &Origin,
    stream: TcpStream,
    carried: &super::carried::Carried,
) {
    if let Err(e) = conn.write(ESTABLISHED).await {
        return carried.fail(e.to_string());
    }
    let (mut inside, mut ahead) = conn.take_parts();
    if rule.sight == Sight::Tunnel {
        let looked = sniff::first(&mut inside, &mut ahead);
        let looked = tokio::time::timeout(FIRST_WORDS_TIME, looked).await;
        let why = match looked {
            Ok(Ok(First::Tls(hello))) => server_name_fits(to, &hello).err(),
            Ok(Ok(First::Closed)) => return carried.fail("the agent said nothing"),
            Ok(Ok(_)) => Some("only TLS may go through a tunnel; this is something else".into()),
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("no TLS greeting came in time".into()),
        };
        if let Some(why) = why {
            carried.fail(why.as_str());
            let refusal = Refusal::new(403, &rule.id, why);
            return refusal.record(door, format!("{}:{}", to.host, to.port), None).await;
        }
    }
    let allowance = Allowance::new(door, rule);
    tunnel::copy_both((inside, ahead), stream, carried, allowance, None).await;
}

/// A tunnel shows nothing but this name, so it must be there, alone, and the permitted one.
fn server_name_fits(to: &Origin, hello: &sniff::Hello) -> Result<(), String> {
    if hello.ech {
        return Err(
            "the TLS greeting has an encrypted part (ECH) that may name another host".into()
        );
    }
    intercept::name_fits(to, hello)
}

/// Whether an error only says that the client went away.
pub(super) fn is_farewell(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
