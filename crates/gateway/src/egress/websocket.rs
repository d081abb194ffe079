//! A WebSocket after its handshake: bytes both ways, counted. Where a secret is used, what the
//! server says is looked through, and the connection cut before a piece that completes one gets
//! through.

use super::carried::Carried;
use super::frames::Watch;
use super::link::Sender;
use super::request::Judged;
use super::stream_back::Back;
use super::tunnel;
use super::upload::Allowance;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::{Framing, Head, Version};
use crate::mask::Masker;
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::io;

/// Passes the `101` on and copies until either side ends.
pub(super) async fn run(
    conn: &mut Conn,
    (sender, response): (&mut Sender, Response<Incoming>),
    carried: &Carried,
    allowance: Allowance,
    masker: Masker,
    judged: &Judged<'_>,
) -> io::Result<()> {
    let headers = response.headers().clone();
    let upgraded = sender.upgraded(response).await.map_err(|e| {
        carried.fail(e.to_string());
        io::Error::from(io::ErrorKind::ConnectionReset)
    })?;
    carried.upgraded();
    let head = Head {
        method: "GET".into(),
        target: String::new(),
        version: Version::Http11,
        fields: Vec::new(),
        framing: Framing::None,
        keep_alive: true,
    };
    let own_credentials = judged.rule.own_credentials;
    let hides = judged.hides();
    let mut back = Back { head: &head, own_credentials, hides, masker };
    let passing = back.fields(&headers);
    let mut fields = vec![("connection", "upgrade"), ("upgrade", "websocket")];
    fields.extend(passing.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    conn.write(&answer(101, &fields, &AnswerBody::HeadOnly, true)).await?;
    let (inside, ahead) = conn.take_parts();
    let watch = hides.then(|| Watch::new(back.masker, judged.masker()));
    tunnel::copy_both((inside, ahead), TokioIo::new(upgraded), carried, allowance, watch).await;
    Ok(())
}
