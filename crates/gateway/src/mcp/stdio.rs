//! Servers that are programs: whoever starts them in their sandbox hands over a pair of streams.
//!
//! ```text
//! call ─► line ─► the program's stdin      stdout ─► line (bounded) ─► the call that waits
//! ```
//!
//! Invariants:
//! 1. What a program writes is untrusted: lines are bounded, what fits nothing is dropped, and too
//!    much of that ends it.
//! 2. When it ends or breaks the protocol, every waiting call ends at once and says why.

use super::http::Charged;
use super::link::{ANSWER_BYTES_MAX, McpError};
use super::rpc::{self, METHOD_NOT_FOUND, Message};
use crate::memory::{Held, Memory};
use model::SessionId;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Lines that wait to be written to a program that does not read.
const QUEUE: usize = 64;
/// What a program may write between two answers that is none: progress and log messages, which
/// nobody reads. A flood would only heat the machine.
const NOISE_BYTES_MAX: usize = 16 << 20;
/// A message that there is no memory for ends its program, and every call of it.
const NO_ROOM: &str = "this session holds too many answers for another one";
/// Whoever started a program that has ended says within this how it ended.
const ENDING_TIME: Duration = Duration::from_secs(2);
/// The notification after which a list of tools that is known is old.
const LIST_CHANGED: &str = "notifications/tools/list_changed";

/// A program's stdin and stdout as one stream: what is written goes to its stdin.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Which program is wanted, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct StdioAsk<'a> {
    /// The session that will use it; no other session may meet the same process.
    pub session: Option<&'a SessionId>,
    /// Its `[mcp.NAME]`.
    pub server: &'a str,
    /// What runs.
    pub command: &'a [String],
}

/// A program that runs.
pub struct Running {
    /// Its stdin and stdout.
    pub stream: Box<dyn Duplex>,
    /// Says how it ended, once it has; what it says is shown to agents and people.
    pub ended: Option<oneshot::Receiver<String>>,
}

/// What [`StdioServers::open`] promises.
pub type Opening<'a> = Pin<Box<dyn Future<Output = io::Result<Running>> + Send + 'a>>;

/// Starts the programs of `command = […]` servers, each in a sandbox of its own. Dropping the
/// stream ends the program.
pub trait StdioServers: Send + Sync {
    /// Starts one. It must not run with more rights than its `[mcp.NAME]` grants.
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

type Calls = HashMap<u64, oneshot::Sender<Charged>>;

/// Why a program is of no further use.
#[derive(Clone)]
enum Broken {
    Ended(Option<String>),
    Protocol(&'static str),
    Overdue,
}

impl From<Broken> for McpError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Ended(None) => Self::Ended,
            Broken::Ended(Some(how)) => Self::Died(how),
            Broken::Protocol(why) => Self::Protocol(why.to_owned()),
            Broken::Overdue => Self::Died("it was ended, for it answered nothing".into()),
        }
    }
}

/// What the reading task and those who wait share.
#[derive(Default)]
struct Shared {
    calls: Mutex<Calls>,
    broken: Mutex<Option<Broken>>,
    /// How many answers came.
    answers: AtomicU64,
    /// Whether the list of tools that is known is old.
    stale: AtomicBool,
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> Option<Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends every call; the first reason stands.
    fn end(&self, why: Broken) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.calls().clear();
    }
}

/// A running program.
pub(crate) struct StdioLink {
    lines: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    work: AbortHandle,
}

impl StdioLink {
    pub(crate) fn new(running: Running, memory: Memory) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let (kept, back) = (Arc::clone(&shared), lines.downgrade());
        let work = tokio::spawn(async move {
            let Running { stream, ended } = running;
            let (reader, writer) = tokio::io::split(stream);
            // Whichever side ends first ends both, and with them the program.
            let protocol = tokio::select! {
                () = write(writer, queue) => None,
                why = read(reader, &kept, &back, &memory) => why,
            };
            let why = match (protocol, ended) {
                (Some(why), _) => Broken::Protocol(why),
                (None, Some(ended)) => {
                    let said = tokio::time::timeout(ENDING_TIME, ended).await;
                    Broken::Ended(said.ok().and_then(Result::ok))
                }
                (None, None) => Broken::Ended(None),
            };
            kept.end(why);
        });
        Self { lines, shared, work: work.abort_handle() }
    }

    /// Whether the program is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.work.is_finished() || self.shared.broken().is_some()
    }

    /// Whether it said that its tools are others now.
    pub(crate) fn is_stale(&self) -> bool {
        self.shared.stale.load(Ordering::SeqCst)
    }

    /// Its tools are asked for now.
    pub(crate) fn refresh(&self) {
        self.shared.stale.store(false, Ordering::SeqCst);
    }

    /// How many answers came so far.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::SeqCst)
    }

    /// Ends a program that has answered nothing since `answers` were counted.
    pub(crate) fn overdue(&self, answers: u64) {
        if self.answers() == answers {
            self.shared.end(Broken::Overdue);
            self.work.abort();
        }
    }

    fn gone(&self) -> McpError {
        self.shared.broken().unwrap_or(Broken::Ended(None)).into()
    }

    pub(crate) async fn notify(&self, message: &Value) -> Result<(), McpError> {
        self.lines.send(line(message)).await.map_err(|_| self.gone())
    }

    pub(crate) async fn request(&self, id: u64, message: &Value) -> Result<Charged, McpError> {
        let (answer, answered) = oneshot::channel();
        self.shared.calls().insert(id, answer);
        let _forget = Forget { link: self, id };
        // If it cannot be sent, its end is being found out, and that lets go of `answer`.
        drop(self.lines.send(line(message)).await);
        if self.is_over() {
            return Err(self.gone());
        }
        answered.await.map_err(|_| self.gone())
    }
}

impl Drop for StdioLink {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Takes a call that nobody waits for any more out of the list, and tells the program.
struct Forget<'a> {
    link: &'a StdioLink,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.link.shared.calls().remove(&self.id).is_some() {
            let mut message = rpc::notification("notifications/cancelled");
            message["params"] = json!({"requestId": self.id});
            // One that does not read is not told.
            drop(self.link.lines.try_send(line(&message)));
        }
    }
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

/// Reads until the end; says what of the protocol was broken, if that is why.
async fn read(
    reader: impl AsyncRead + Unpin,
    shared: &Shared,
    out: &mpsc::WeakSender<Vec<u8>>,
    memory: &Memory,
) -> Option<&'static str> {
    let mut reader = BufReader::new(reader);
    let (mut line_so_far, mut noise, mut held) = (Vec::new(), 0, memory.hold());
    loop {
        let (used, ended) = match reader.fill_buf().await {
            Ok([]) | Err(_) => return None,
            Ok(piece) => {
                let end = piece.iter().position(|b| *b == b'\n');
                let part = &piece[..end.unwrap_or(piece.len())];
                if line_so_far.len() + part.len() > ANSWER_BYTES_MAX {
                    return Some("a message is longer than 4 MiB");
                }
                // The buffer doubles. A line without room ends the program, and every call of it.
                if held.grow(2 * part.len()).is_err() {
                    return Some(NO_ROOM);
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
                return Some(NO_ROOM);
            }
            noise = if take(&line, charge, shared, out) { 0 } else { noise + line.len() + 1 };
            if noise > NOISE_BYTES_MAX {
                return Some("it wrote 16 MiB that answer nothing");
            }
        }
    }
}

/// Whether the line was an answer that somebody waits for.
fn take(bytes: &[u8], held: Held, shared: &Shared, out: &mpsc::WeakSender<Vec<u8>>) -> bool {
    match rpc::parse(bytes) {
        Ok(Message::Response { id, result }) => {
            let waiter = id.as_u64().and_then(|id| shared.calls().remove(&id));
            let Some(waiter) = waiter else { return false };
            shared.answers.fetch_add(1, Ordering::SeqCst);
            let _ = waiter.send((result, held));
            return true;
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
        Ok(Message::Notification { method, .. }) if method == LIST_CHANGED => {
            shared.stale.store(true, Ordering::SeqCst);
        }
        Ok(Message::Notification { .. }) | Err(_) => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, DuplexStream};

    fn linked() -> (Arc<StdioLink>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let memory = Memory::new(crate::memory::SharedMemory::default());
        let running = Running { stream: Box::new(ours), ended: None };
        (Arc::new(StdioLink::new(running, memory)), theirs)
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
        assert!(matches!(call.await.expect("no panic"), Err(McpError::Protocol(_))));
    }

    #[tokio::test]
    async fn a_flood_of_what_answers_nothing_ends_it_and_says_so() {
        let (link, mut server) = linked();
        let waits = Arc::clone(&link);
        let call = tokio::spawn(async move { waits.request(1, &json!({})).await });
        let noise = b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n".repeat(1_000);
        for _ in 0..=NOISE_BYTES_MAX / noise.len() {
            if server.write_all(&noise).await.is_err() {
                break;
            }
        }
        let Err(McpError::Protocol(why)) = call.await.expect("no panic") else { panic!("ended") };
        assert!(why.contains("16 MiB"), "{why}");
        assert!(link.is_over());
    }

    #[tokio::test]
    async fn how_it_ended_is_told_to_every_call() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (tell, ended) = oneshot::channel();
        let running = Running { stream: Box::new(ours), ended: Some(ended) };
        let memory = Memory::new(crate::memory::SharedMemory::default());
        let link = Arc::new(StdioLink::new(running, memory));
        let waits = Arc::clone(&link);
        let call = tokio::spawn(async move { waits.request(1, &json!({})).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(theirs);
        tell.send("exited with status 3".into()).expect("waited for");
        for result in [call.await.expect("no panic"), link.request(2, &json!({})).await] {
            let Err(McpError::Died(how)) = result else { panic!("it says how it ended") };
            assert_eq!(how, "exited with status 3");
        }
    }

    #[tokio::test]
    async fn one_that_answers_nothing_in_time_is_ended_and_one_that_does_is_not() {
        let (link, mut server) = linked();
        let before = link.answers();
        let waits = Arc::clone(&link);
        let call = tokio::spawn(async move { waits.request(1, &json!({})).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        server
            .write_all(
                b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n{\"jsonrpc\":\"2.0\",\
                \"method\":\"notifications/tools/list_changed\"}\n",
            )
            .await
            .expect("written");
        let (result, _held) = call.await.expect("no panic").expect("answered");
        result.expect("a result");
        link.overdue(before);
        assert!(!link.is_over(), "it works on something else");
        let started = std::time::Instant::now();
        while !link.is_stale() {
            assert!(started.elapsed() < Duration::from_secs(5));
            tokio::task::yield_now().await;
        }
        link.refresh();
        assert!(!link.is_stale());
        link.overdue(link.answers());
        assert!(link.is_over());
    }
}
