//! Bytes both ways between a sandbox and a permitted host, counted and bounded, not looked into.

use super::carried::Carried;
use super::upload::Allowance;
use crate::http::conn::Duplex;
use crate::mask::Masker;
use bytes::BytesMut;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A tunnel without a byte in either direction for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How often the idle check looks; only while a tunnel is open.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// Per direction; two of them are all the memory a tunnel holds.
const BUFFER_BYTES: usize = 32 * 1024;

/// Copies until both directions ended, one broke, or the rule lets no more out. `watch` cuts the
/// connection when the server gives a secret back.
pub(super) async fn copy_both(
    (inside, ahead): (Box<dyn Duplex>, BytesMut),
    outside: impl AsyncRead + AsyncWrite + Unpin,
    carried: &Carried,
    mut allowance: Allowance,
    mut watch: Option<Masker>,
) {
    let (mut in_read, mut in_write) = tokio::io::split(inside);
    let (mut out_read, mut out_write) = tokio::io::split(outside);
    let goes_out = |bytes: &[u8]| {
        carried.sent(bytes);
        Ok(())
    };
    let comes_back = |bytes: &[u8]| {
        carried.received(bytes);
        let Some(masker) = &mut watch else { return Ok(()) };
        masker.feed(bytes);
        // Frames cannot be masked; of a secret in pieces less than half may have passed.
        let given = masker.found() || masker.nearly_found();
        if given { Err(io::Error::other("the server gave a secret back")) } else { Ok(()) }
    };
    let up = copy(&mut in_read, &mut out_write, &ahead, Some(&mut allowance), goes_out);
    let down = copy(&mut out_read, &mut in_write, &[], None, comes_back);
    let ended = tokio::select! {
        both = async { tokio::try_join!(up, down) } => both.map(|_| ()),
        () = idle(carried) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
    };
    if let Err(e) = ended {
        carried.fail(e.to_string());
    }
}

/// Copies what was read ahead and all that follows, then passes the end on (half-close). Each
/// piece is paid for and shown to `see` before it goes on.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    ahead: &[u8],
    mut allowance: Option<&mut Allowance>,
    mut see: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    if !ahead.is_empty() {
        pay(&mut allowance, ahead).await?;
        see(ahead)?;
        to.write_all(ahead).await?;
        to.flush().await?;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            // The other side may be gone already; its own direction says so.
            let _ = to.shutdown().await;
            return Ok(());
        }
        pay(&mut allowance, &buffer[..n]).await?;
        see(&buffer[..n])?;
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

async fn pay(allowance: &mut Option<&mut Allowance>, bytes: &[u8]) -> io::Result<()> {
    let Some(allowance) = allowance else { return Ok(()) };
    allowance.spend(bytes.len() as u64).await.map_err(|refusal| io::Error::other(refusal.reason))
}

/// Returns when no byte moved for [`IDLE_TIME`].
async fn idle(carried: &Carried) {
    let (mut before, mut since) = (carried.moved(), Duration::ZERO);
    loop {
        tokio::time::sleep(IDLE_CHECK).await;
        let now = carried.moved();
        since = if now == before { since + IDLE_CHECK } else { Duration::ZERO };
        before = now;
        if since >= IDLE_TIME {
            return;
        }
    }
}
