//! Requests to a container engine over its Unix socket.
//!
//! Pipeline: request ─► connection of its own ─► answer, whole and bounded ─► `Reply` or `Trouble`.
//!
//! Invariants:
//! 1. Every request ends within its time, whatever the engine does.
//! 2. An answer is bounded before it is gathered, and a cut one is no answer.
//! 3. What listens at the socket runs as root or as the caller, or nothing is sent to it.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Largest answer: a list of a thousand containers stays below it.
const ANSWER_MAX: usize = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Nobody listens, or may be spoken to.
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    /// What listens is somebody else's.
    #[error("it belongs to uid {0}, neither root nor you")]
    Foreign(u32),
    /// No whole answer in time.
    #[error("it does not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The answer is none.
    #[error("its answer is broken: {0}")]
    Broken(String),
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// What is sent along.
pub(super) enum Payload {
    Nothing,
    Json(Vec<u8>),
    Archive(Vec<u8>),
}

/// The socket of an engine.
#[derive(Debug, Clone)]
pub(super) struct Http {
    socket: PathBuf,
}

impl Http {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends one request and takes its answer.
    pub(super) fn call(
        &self,
        method: &Method,
        path: &str,
        payload: Payload,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        let (kind, body) = match payload {
            Payload::Nothing => ("application/json", Vec::new()),
            Payload::Json(body) => ("application/json", body),
            Payload::Archive(body) => ("application/x-tar", body),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "engine")
            .header("Content-Type", kind)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Trouble::Broken(format!("the request {path:?}: {e}")))?;
        // A thread of its own, for the caller's may be part of another runtime.
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| self.on_this_thread(request, limit));
            worker.join().unwrap_or_else(|_| Err(Trouble::Broken("its reader failed".into())))
        })
    }

    fn on_this_thread(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Trouble::Unreachable)?;
        runtime.block_on(async {
            let answer = tokio::time::timeout(limit, self.exchange(request)).await;
            answer.unwrap_or(Err(Trouble::Late(limit)))
        })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, Trouble> {
        let broken = |e: hyper::Error| Trouble::Broken(e.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(Trouble::Unreachable)?;
        let owner = stream.peer_cred().map_err(Trouble::Unreachable)?.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(Trouble::Foreign(owner));
        }
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = made.map_err(broken)?;
        // Its error is that of the request as well.
        tokio::spawn(async move { drop(connection.await) });
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        let mut incoming = answer.into_body();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(broken)?;
            let Some(data) = frame.data_ref() else { continue };
            if body.len() + data.len() > ANSWER_MAX {
                return Err(Trouble::Broken(format!("it is longer than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(data);
        }
        Ok(Reply { status, body })
    }
}
