//! A connection that is looked into: TLS ends here with a leaf of our own, and every request inside
//! is judged by itself. Plain HTTP inside `CONNECT` is served likewise.

use super::connect::{ESTABLISHED, FIRST_WORDS_TIME, is_farewell};
use super::exchange::exchange;
use super::request::check_host;
use super::{Origin, Refusal};
use crate::authority::quoted;
use crate::door::{self, DoorState};
use crate::http::ahead::Ahead;
use crate::http::conn::{Conn, Duplex};
use crate::http::head::{Head, Version};
use crate::tls::sniff::{self, First, Hello};
use bytes::BytesMut;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// A handshake inside one machine.
const TLS_TIME: Duration = Duration::from_secs(10);

/// Serves a connection to `to`, for which at least one request may be permitted.
pub(super) async fn run(mut conn: Conn, door: &Arc<DoorState>, to: Origin) {
    if conn.write(ESTABLISHED).await.is_err() {
        return;
    }
    let (mut inside, mut ahead) = conn.take_parts();
    let looked = sniff::first(&mut inside, &mut ahead);
    let refusal = match tokio::time::timeout(FIRST_WORDS_TIME, looked).await {
        Ok(Ok(First::Closed)) | Err(_) if ahead.is_empty() => return,
        // Whoever is refused learns it when that is on record: `inside` stays open until then.
        Ok(Ok(First::Tls(hello))) => match name_fits(&to, &hello) {
            Err(why) => Refusal::new(403, "tls", why),
            Ok(()) => match end_tls(inside, ahead, door, &to).await {
                Ok(conn) => return serve(conn, door, &to).await,
                Err(Some(refusal)) => refusal,
                Err(None) => return,
            },
        },
        Ok(Ok(First::Http)) => {
            let to = Origin { tls: false, ..to };
            return serve(Conn::with(inside, ahead), door, &to).await;
        }
        Ok(Ok(_)) => Refusal::new(
            403,
            "connection",
            "neither TLS nor HTTP was spoken; only a rule for raw TCP permits other protocols",
        ),
        Ok(Err(e)) => Refusal::new(400, "tls", e.to_string()),
        Err(_) => Refusal::new(408, "connection", "the first message did not arrive in time"),
    };
    refusal.record(door, format!("{}:{}", to.host, to.port), None).await;
}

/// The name in the greeting must be the one that was asked for.
pub(super) fn name_fits(to: &Origin, hello: &Hello) -> Result<(), String> {
    match &hello.server_name {
        None => Err("the TLS greeting names no host (SNI is missing)".into()),
        Some(name) if *name != to.host => {
            Err(format!("the TLS greeting names {name}, but the connection is to {}", to.host))
        }
        Some(_) => Ok(()),
    }
}

/// `Err(None)` when the client just went away.
async fn end_tls(
    inside: Box<dyn Duplex>,
    ahead: BytesMut,
    door: &DoorState,
    to: &Origin,
) -> Result<Conn, Option<Refusal>> {
    let refused = |status, why: String| Some(Refusal::new(status, "tls", why));
    let Some(authority) = &door.authority else {
        let why = "TLS cannot be looked into here: there is no certificate authority".to_owned();
        return Err(refused(502, why));
    };
    let config = authority.server_config(&to.host).map_err(|e| refused(502, e.to_string()))?;
    let accepting = TlsAcceptor::from(config).accept(Ahead::new(ahead, inside));
    match tokio::time::timeout(TLS_TIME, accepting).await {
        Ok(Ok(stream)) => Ok(Conn::new(stream)),
        Ok(Err(e)) if is_farewell(&e) => Err(None),
        Ok(Err(e)) => Err(refused(
            400,
            format!(
                "the TLS handshake with the agent's program failed: {e}; it must trust the \
                 certificate in SSL_CERT_FILE, or the rule must say tls = \"tunnel\""
            ),
        )),
        Err(_) => Err(refused(408, "the TLS handshake took too long".into())),
    }
}

async fn serve(mut conn: Conn, door: &Arc<DoorState>, to: &Origin) {
    while let Some(head) = door::next_head(&mut conn, door).await {
        match serve_one(&mut conn, door, to, &head).await {
            Ok(true) => {}
            Ok(false) => return conn.close().await,
            Err(_) => return,
        }
    }
}

async fn serve_one(
    conn: &mut Conn,
    door: &DoorState,
    to: &Origin,
    head: &Head,
) -> io::Result<bool> {
    let refusal = if head.version == Version::Http10 {
        Refusal::new(505, "http", "speak HTTP/1.1")
    } else if !head.target.starts_with('/') {
        Refusal::new(400, "http", "inside a connection the target must be a path")
    } else {
        match check_host(head, to) {
            Ok(()) => return exchange(conn, door, to, head, &head.target).await,
            Err(refusal) => refusal,
        }
    };
    refusal.record(door, format!("{} {}", to.base(), quoted(&head.target)), None).await;
    refusal.answer(conn, head).await?;
    Ok(false)
}
