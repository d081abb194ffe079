//! A door's connection that counts every byte, for comparison with what the kernel counted of the
//! same connection's other end.
//!
//! ```text
//! what the sandbox wrote = read here + left unread at the end
//! what the sandbox read <= written here
//! ```
//!
//! Counted below everything that may interpret, drop or repeat bytes; nothing passes the door by
//! another way.

use crate::counters::Counters;
use rustix::net::Shutdown;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// One connection of a door.
pub(crate) struct Metered {
    stream: UnixStream,
    counters: Arc<Counters>,
}

impl Metered {
    pub(crate) fn new(stream: UnixStream, counters: Arc<Counters>) -> Self {
        Counters::add(&counters.door_connections, 1);
        Self { stream, counters }
    }

    /// Writes what can be written without waiting.
    pub(crate) fn try_write(&self, bytes: &[u8]) {
        if let Ok(n) = self.stream.try_write(bytes) {
            Counters::add(&self.counters.door_down, n as u64);
        }
    }
}

/// Counts what waits in a connection that nobody will read any more. After this its other end
/// cannot write into it, so the count is final.
fn leave_unread(stream: impl AsFd, counters: &Counters) {
    // A connection that is gone altogether has nothing left.
    let _ = rustix::net::shutdown(&stream, Shutdown::Read);
    Counters::add(&counters.door_unread, rustix::io::ioctl_fionread(&stream).unwrap_or(0));
}

impl Drop for Metered {
    fn drop(&mut self) {
        leave_unread(&self.stream, &self.counters);
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Counters::add(&self.counters.door_up, (buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        Counters::add(&self.counters.door_down, n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes))?;
        Counters::add(&self.counters.door_down, n as u64);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
