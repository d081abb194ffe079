//! An HTTP/1.1 connection to a server, moved by whoever has it.
//!
//! 1. It has no task of its own: bytes move while one of its functions is awaited. A request and
//!    its answer so stay on one thread, without a turn of the scheduler for every piece.
//! 2. It is closed when it is dropped, whether or not the server ever reads or answers.

use super::upload::Upload;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1::{self, Builder};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// What moves the bytes; `None` when the connection has ended.
struct Mover(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Mover {
    /// Moves whatever there is to move.
    fn turn(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && connection.as_mut().poll(cx).is_ready()
        {
            self.0 = None;
        }
    }

    /// Awaits what needs the connection to move. What a turn brought is seen at once.
    async fn moving<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = awaited.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.turn(cx);
            awaited.as_mut().poll(cx)
        })
        .await
    }
}

/// One connection, for one request at a time.
pub(crate) struct H1 {
    sender: http1::SendRequest<Upload>,
    mover: Mover,
}

impl H1 {
    /// Nothing is sent yet.
    pub(crate) async fn new<T>(stream: T, head_bytes_max: usize) -> hyper::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        let builder = builder.max_buf_size(head_bytes_max);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let connection = async move { drop(connection.with_upgrades().await) };
        Ok(Self { sender, mover: Mover(Some(Box::pin(connection))) })
    }

    /// Sends a request, and its body as far as the answer's head does not come first.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> hyper::Result<Response<Incoming>> {
        self.mover.moving(self.sender.send_request(request)).await
    }

    /// The next piece of an answer. May be abandoned at any time.
    pub(crate) async fn frame(
        &mut self,
        body: &mut Incoming,
    ) -> Option<hyper::Result<Frame<Bytes>>> {
        self.mover.moving(body.frame()).await
    }

    /// What the connection carries after a `101`.
    pub(crate) async fn upgraded(
        &mut self,
        response: Response<Incoming>,
    ) -> hyper::Result<Upgraded> {
        self.mover.moving(hyper::upgrade::on(response)).await
    }

    /// Whether another request can be sent, as far as is known here.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether another request can be sent: what came in meanwhile, the end above all, is looked at
    /// first.
    pub(crate) async fn is_ready(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            self.mover.turn(cx);
            Poll::Ready(())
        })
        .await;
        self.mover.moving(self.sender.ready()).await.is_ok()
    }
}
