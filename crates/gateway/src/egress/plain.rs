//! Absolute-form `http://host[:port]/…`: the same requests as inside a connection, one by one.

use super::exchange::exchange;
use super::{Origin, Refusal};
use crate::authority::{self, quoted};
use crate::door::DoorState;
use crate::http::conn::Conn;
use crate::http::head::Head;
use std::io;

/// Forwards one absolute-form request.
pub(crate) async fn forward(conn: &mut Conn, door: &DoorState, head: &Head) -> io::Result<bool> {
    let parsed = authority::parse_absolute(&head.target).and_then(|(to, target)| {
        authority::check_host(head.field("host"), &to)?;
        Ok((Origin { host: to.host, port: to.port, tls: false }, target))
    });
    match parsed {
        Ok((to, target)) => exchange(conn, door, &to, head, &target).await,
        Err(e) => {
            let refusal = Refusal::new(400, "http", e.to_string());
            refusal.record(door, quoted(&head.target), None).await;
            refusal.answer(conn, head).await
        }
    }
}
