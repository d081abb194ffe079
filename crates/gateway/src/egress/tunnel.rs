//! `CONNECT host:port`: a blind tunnel to a permitted host.

use super::{Carried, Connected, Refusal};
use crate::authority::{self, Authority, quoted};
use crate::door::DoorState;
use crate::http::conn::{AnswerBody, Conn, answer};
use crate::http::head::{Framing, Head};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A tunnel without a byte in either direction for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How often the idle check looks; only while a tunnel is open.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// Per direction; two of them are all the memory a tunnel holds.
const BUFFER_BYTES: usize = 32 * 1024;

/// Serves one `CONNECT`; the connection ends with the tunnel.
pub(crate) async fn connect(mut conn: Conn, door: &Arc<DoorState>, head: &Head) {
    match open(&mut conn, door, head).await {
        None => {}
        Some(Ok(connected)) => run(conn, connected).await,
        Some(Err(refusal)) => {
            if refusal.status != 503 {
                let target = quoted(&head.target);
                door.scribe.refused(target, &refusal.rule, refusal.reason.clone()).await;
            }
            let text = format!("{}\n", refusal.text());
            let fields = [("content-type", "text/plain; charset=utf-8")];
            let body = AnswerBody::Whole(text.as_bytes());
            let _ = conn.write(&answer(refusal.status, &fields, &body, false)).await;
            conn.close().await;
        }
    }
}

fn target(head: &Head) -> Result<Authority, Refusal> {
    let bad = |why: String| Refusal::new(400, "http", why);
    if head.framing != Framing::None {
        return Err(bad("CONNECT has no body".into()));
    }
    let to = authority::parse(&head.target).map_err(|e| bad(e.to_string()))?;
    authority::check_host(head.field("host"), &to).map_err(|e| bad(e.to_string()))?;
    Ok(to)
}

/// `None` when the client went away meanwhile.
async fn open(
    conn: &mut Conn,
    door: &DoorState,
    head: &Head,
) -> Option<Result<Connected, Refusal>> {
    conn.unless_gone(async {
        let to = target(head)?;
        let rule = super::verdict(door, &to)?;
        let found = super::addresses(door, rule).await?;
        super::connect(door, rule, found).await
    })
    .await
}

async fn run(mut conn: Conn, connected: Connected) {
    let Connected { mut stream, carried } = connected;
    if let Err(e) = conn.write(b"HTTP/1.1 200 Connection Established\r\n\r\n").await {
        carried.fail(e.to_string());
        return;
    }
    let (mut inside, ahead) = conn.into_parts();
    let result = async {
        // A client that did not wait for the 200 (TLS false start) has sent already.
        stream.write_all(&ahead).await?;
        carried.sent(ahead.len());
        let (mut in_read, mut in_write) = inside.split();
        let (mut out_read, mut out_write) = stream.split();
        let up = copy(&mut in_read, &mut out_write, |n| carried.sent(n));
        let down = copy(&mut out_read, &mut in_write, |n| carried.received(n));
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => both.map(|_| ()),
            () = idle(&carried) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
        }
    };
    if let Err(e) = result.await {
        carried.fail(e.to_string());
    }
}

/// Copies until the end, then passes the end on (half-close).
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            // The other side may be gone already; its own direction says so.
            let _ = to.shutdown().await;
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
        count(n);
    }
}

/// Returns when no byte moved for [`IDLE_TIME`].
async fn idle(carried: &Carried) {
    let moved = || carried.sent.load(Ordering::Relaxed) + carried.received.load(Ordering::Relaxed);
    let (mut before, mut since) = (moved(), Duration::ZERO);
    loop {
        tokio::time::sleep(IDLE_CHECK).await;
        let now = moved();
        since = if now == before { since + IDLE_CHECK } else { Duration::ZERO };
        before = now;
        if since >= IDLE_TIME {
            return;
        }
    }
}
