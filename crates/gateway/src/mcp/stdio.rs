//! Servers that are programs: whoever starts them in their sandbox hands over a pair of streams.
//!
//! ```text
//! call ─► line ─► the program's stdin      stdout ─► line (bounded) ─► the call that waits
//! ```
//!
//! Invariants:
//! 1. What a program writes is untrusted: lines are bounded, and what fits nothing is dropped.
//! 2. When it ends or breaks the protocol, every waiting call ends at once.

use super::http::Charged;
use super::link::{ANSWER_BYTES_MAX, McpError};
use super::rpc::{self, METHOD_NOT_FOUND, Message};
use crate::memory::{Held, Memory};
use model::{AgentName, SessionId};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Lines that wait to be written to a program that does not read.
const QUEUE: usize = 64;

/// A program's stdin and stdout as one stream: what is written goes to its stdin.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Which program is wanted, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct StdioAsk<'a> {
    /// The session that will use it; no other session may meet the same process. None when a person
    /// looks at its tools.
    pub session: Option<&'a SessionId>,
    /// The session's agent.
    pub agent: Option<&'a AgentName>,
    /// Its `[mcp.NAME]`.
    pub server: &'a str,
    /// What runs.
    pub command: &'a [String],
}

/// What [`StdioServers::open`] promises.
pub type Opening<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + 'a>>;

/// Starts the programs of `command = […]` servers, each in a sandbox of its own. Dropping the
/// stream ends the program.
pub trait StdioServers: Send + Sync {
    /// Starts one. It must not run with more rights than a session without grants.
    fn open<'a>(&'a self, ask: StdioAsk<'a>) -> Opening<'a>;
}

/// Starts none; for a gateway that has nobody to start them.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStdioServers;

impl StdioServers for NoStdioServers {
    fn open<'a>(&'a self, ask: StdioAsk<'a>) -> Opening<'a> {
        let why = format!("the server {:?} is a program, and none can be started here", ask.server);
        Box::pin(async move { Err(io::Error::new(io::ErrorKind::Unsupported, why)) })
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Charged>>>>;

/// A running program.
pub(crate) struct StdioLink {
    lines: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    work: AbortHandle,
}

impl StdioLink {
    pub(crate) fn new(stream: Box<dyn Duplex>, memory: Memory) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let waiting = Waiting::default();
        let (kept, back) = (Arc::clone(&waiting), lines.downgrade());
        let work = tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(stream);
            // Whichever side ends first ends both, and with them the program.
            tokio::select! {
                () = write(writer, queue) => {}
                () = read(reader, &kept, &back, &memory) => {}
            }
            lock(&kept).clear();
        });
        Self { lines, waiting, work: work.abort_handle() }
    }

    /// Whether the program is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.work.is_finished()
    }

    pub(crate) async fn notify(&self, message: &Value) -> Result<(), McpError> {
        self.lines.send(line(message)).await.map_err(|_| McpError::Ended)
    }

    pub(crate) async fn request(&self, id: u64, message: &Value) -> Result<Charged, McpError> {
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(id, answer);
        let _forget = Forget { waiting: &self.waiting, id };
        self.notify(message).await?;
        if self.is_over() {
            return Err(McpError::Ended);
        }
        answered.await.map_err(|_| McpError::Ended)
    }
}

impl Drop for StdioLink {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Takes a call that nobody waits for any more out of the list.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.id);
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Charged>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// serde_json escapes every control character, so that a line never holds an end itself.
fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(&line).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn read(
    reader: impl AsyncRead + Unpin,
    waiting: &Waiting,
    out: &mpsc::WeakSender<Vec<u8>>,
    memory: &Memory,
) {
    let mut reader = BufReader::new(reader);
    let (mut line_so_far, mut held) = (Vec::new(), memory.hold());
    loop {
        let (used, ended) = match reader.fill_buf().await {
            Ok([]) | Err(_) => return,
            Ok(piece) => {
                let end = piece.iter().position(|b| *b == b'\n');
                let part = &piece[..end.unwrap_or(piece.len())];
                if line_so_far.len() + part.len() > ANSWER_BYTES_MAX {
                    return;
                }
                // The buffer doubles. A line without room ends the program, and every call of it.
                if held.grow(2 * part.len()).is_err() {
                    return;
                }
                line_so_far.extend_from_slice(part);
                (part.len() + usize::from(end.is_some()), end.is_some())
            }
        };
        reader.consume(used);
        if ended {
            let line = std::mem::take(&mut line_so_far);
            let mut charge = std::mem::replace(&mut held, memory.hold());
            if rpc::charge(&line, &mut charge).is_err() {
                return;
            }
            take(&line, charge, waiting, out);
        }
    }
}

fn take(bytes: &[u8], held: Held, waiting: &Waiting, out: &mpsc::WeakSender<Vec<u8>>) {
    match rpc::parse(bytes) {
        Ok(Message::Response { id, result }) => {
            if let Some(waiter) = id.as_u64().and_then(|id| lock(waiting).remove(&id)) {
                let _ = waiter.send((result, held));
            }
        }
        // Nothing was offered to the server, so all but a ping is unknown. A full queue drops the
        // answer: a server that floods gets none.
        Ok(Message::Request { id, method, .. }) => {
            let answer = if method == "ping" {
                rpc::result(&id, &json!({}))
            } else {
                rpc::Fault::new(METHOD_NOT_FOUND, "not offered by this client").answer(&id)
            };
            if let Some(out) = out.upgrade() {
                let _ = out.try_send(line(&answer));
            }
        }
        Ok(Message::Notification { .. }) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, DuplexStream};

    fn linked() -> (Arc<StdioLink>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let memory = Memory::new(crate::memory::SharedMemory::default());
        (Arc::new(StdioLink::new(Box::new(ours), memory)), theirs)
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order_and_noise_is_dropped() {
        let (link, mut server) = linked();
        let ask = |id: u64| {
            let link = Arc::clone(&link);
            tokio::spawn(async move { link.request(id, &rpc::request(id, "m", &json!({}))).await })
        };
        let (one, two) = (ask(1), ask(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let noise = "not json\n[]\n{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}\n\n";
        server.write_all(noise.as_bytes()).await.expect("written");
        server
            .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"n\":2}}\n")
            .await
            .expect("w");
        server.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{}}\n").await.expect("w");
        assert_eq!(two.await.expect("no panic").expect("answered").0, Ok(json!({"n": 2})));
        assert_eq!(one.await.expect("no panic").expect("answered").0, Err(json!({})));
        server
            .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}\n")
            .await
            .expect("w");
        let mut seen = String::new();
        while !seen.contains("\"id\":\"p\"") {
            let mut piece = [0; 512];
            let n = server.read(&mut piece).await.expect("read");
            seen.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
    }

    #[tokio::test]
    async fn an_end_or_an_endless_line_ends_every_call() {
        let (link, server) = linked();
        let waits = Arc::clone(&link);
        let call = tokio::spawn(async move { waits.request(1, &json!({})).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(server);
        assert!(matches!(call.await.expect("no panic"), Err(McpError::Ended)));
        assert!(matches!(link.request(2, &json!({})).await, Err(McpError::Ended)));

        let (link, mut server) = linked();
        let call = tokio::spawn(async move { link.request(1, &json!({})).await });
        let flood = vec![b'x'; 1 << 16];
        for _ in 0..=ANSWER_BYTES_MAX / flood.len() {
            if server.write_all(&flood).await.is_err() {
                break;
            }
        }
        assert!(matches!(call.await.expect("no panic"), Err(McpError::Ended)));
    }
}
