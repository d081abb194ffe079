//! A model server for tests: HTTP/1.1 on loopback, Anthropic Messages and OpenAI Chat
//! Completions, streaming and not, answers by rule.
//!
//! ```text
//! request ─► http (head, body) ─► key? fail? ─► decide (one rule) ─► anthropic | openai
//! ```
//!
//! Rules, on the last user text with a directive (or the last one at all):
//! - `RUN: cmd` → one call of a shell-like tool for each such line;
//! - `CALL:x {json}` → one call of the tool whose name contains x, arguments given or filled from
//!   its schema;
//! - `NOTOOL` → text; - a tool's result after it → `MOCK_FINAL[result]`; - else `MOCK_TEXT[text]`.

mod anthropic;
mod decide;
mod http;
mod login;
mod openai;

pub use login::{FakeLogin, LoginPlan};

use http::{Answer, Request};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How the server behaves. The default answers at once and asks for no key.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Answer 401 unless one of the credential headers carries exactly this.
    pub require_key: Option<String>,
    /// The provider of a subscription: its token endpoint is here too, and its tokens are the keys.
    pub login: Option<FakeLogin>,
    /// Answer this status instead...
    pub fail_status: Option<u16>,
    /// ...for so many requests to a model.
    pub fail_first: usize,
    /// `Retry-After` of those answers, seconds.
    pub retry_after: Option<u64>,
    /// Wait before the first byte.
    pub delay: Duration,
    /// Write the body in pieces of at most so many bytes, each flushed.
    pub chunk: Option<usize>,
    /// Answer 200 with something that is no answer.
    pub garbage: bool,
    /// Close the connection in the middle of the body.
    pub drop_mid_stream: bool,
    /// Append one JSON line a request.
    pub log: Option<PathBuf>,
    /// Port on 127.0.0.1; 0 for any.
    pub port: u16,
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `POST`, …
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
    /// Status that was answered.
    pub status: u16,
}

/// Headers that carry keys, whichever SDK sends them.
const CREDENTIAL_HEADERS: [&str; 3] = ["x-api-key", "authorization", "x-goog-api-key"];

impl Seen {
    /// The credential headers it carried, name and value.
    #[must_use]
    pub fn credentials(&self) -> Vec<(&str, &str)> {
        let all = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        all.filter(|(name, _)| CREDENTIAL_HEADERS.contains(name)).collect()
    }

    /// The value of a header, by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

struct Shared {
    options: Options,
    seen: Mutex<Vec<Seen>>,
    arrived: Condvar,
    asked: AtomicUsize,
    stop: AtomicBool,
    log: Option<Mutex<File>>,
}

/// A running server; it stops when dropped.
pub struct FakeModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FakeModel {
    /// Starts one on 127.0.0.1.
    ///
    /// # Errors
    /// If it cannot listen, or the log cannot be opened.
    pub fn start(options: Options) -> std::io::Result<Self> {
        let log = match &options.log {
            Some(path) => Some(Mutex::new(File::options().append(true).create(true).open(path)?)),
            None => None,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options,
            seen: Mutex::default(),
            arrived: Condvar::new(),
            asked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            log,
        });
        let inner = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if inner.stop.load(Ordering::SeqCst) {
                    break;
                }
                let inner = Arc::clone(&inner);
                // Ends with its connection; errors are the client going away.
                std::thread::spawn(move || drop(inner.serve(stream)));
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, for both wire formats.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.lock().clone()
    }

    /// Waits until so many requests came; `false` if they did not in time.
    #[must_use]
    pub fn wait_for(&self, count: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut seen = self.shared.lock();
        while seen.len() < count {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            seen = match self.shared.arrived.wait_timeout(seen, left) {
                Ok((seen, _)) => seen,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; if nobody listens any more, it is gone already.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, kept alive until the client closes it.
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(http::IDLE_MAX))?;
        let mut reader = std::io::BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        while let Some(request) = http::read_request(&mut reader)? {
            let answer = self.answer(&request);
            self.note(&request, answer.status);
            std::thread::sleep(self.options.delay);
            let cut = self.options.drop_mid_stream && request.method == "POST";
            http::write_answer(&mut writer, &request, &answer, self.options.chunk, cut)?;
            if cut || self.stop.load(Ordering::SeqCst) {
                break;
            }
        }
        writer.shutdown(std::net::Shutdown::Both)
    }

    fn answer(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap_or("");
        let is_model =
            request.method == "POST" && matches!(path, "/v1/messages" | "/v1/chat/completions");
        if let Some(answer) = self.options.login.as_ref().and_then(|login| login.answer(request)) {
            return answer;
        }
        if let Some(key) = &self.options.require_key
            && !request.headers.iter().any(|(name, value)| {
                CREDENTIAL_HEADERS.contains(&name.as_str())
                    && value.strip_prefix("Bearer ").unwrap_or(value) == key
            })
        {
            return error(path, 401, "authentication_error", "the key is missing or wrong");
        }
        if is_model
            && let Some(status) = self.options.fail_status
            && self.asked.fetch_add(1, Ordering::SeqCst) < self.options.fail_first
        {
            let mut answer = error(path, status, "api_error", "the test said so");
            let after = self.options.retry_after.map(|s| ("retry-after", s.to_string()));
            answer.headers.extend(after);
            return answer;
        }
        if is_model && self.options.garbage {
            return Answer::json(200, "<html>this is not a model</html>".into());
        }
        match (request.method.as_str(), path) {
            ("GET", "/v1/models") => Answer::json(200, models().to_string()),
            ("GET" | "HEAD", "/") => Answer::json(200, "{}".into()),
            ("POST", "/v1/messages") => parsed(path, &request.body, anthropic::answer),
            ("POST", "/v1/chat/completions") => parsed(path, &request.body, openai::answer),
            _ => error(path, 404, "not_found_error", "there is no such path"),
        }
    }

    fn note(&self, request: &Request, status: u16) {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let (method, path) = (request.method.clone(), request.path.clone());
        let seen = Seen { method, path, headers: request.headers.clone(), body, status };
        if let Some(log) = &self.log {
            let line = json!({
                "method": seen.method,
                "path": seen.path,
                "headers": seen.headers,
                "credentials": seen.credentials(),
                "body": seen.body,
                "status": status,
            });
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            // One write a line; a test that reads the log notices a missing one.
            drop(log.write_all(format!("{line}\n").as_bytes()));
        }
        self.lock().push(seen);
        self.arrived.notify_all();
    }
}

fn models() -> Value {
    let model = |id: &str| json!({ "id": id, "object": "model", "type": "model" });
    json!({ "object": "list", "data": [model("fake-model")], "has_more": false })
}

/// An error in the words of the path's own API.
fn error(path: &str, status: u16, kind: &str, message: &str) -> Answer {
    let error = json!({ "type": kind, "message": message });
    let body = if path == "/v1/messages" {
        json!({ "type": "error", "error": error })
    } else {
        json!({ "error": error })
    };
    Answer::json(status, body.to_string())
}

fn parsed(path: &str, body: &[u8], answer: fn(&Value) -> Result<Answer, String>) -> Answer {
    let result = match serde_json::from_slice(body) {
        Ok(value) => answer(&value),
        Err(e) => Err(format!("the body is not JSON: {e}")),
    };
    result.unwrap_or_else(|why| error(path, 400, "invalid_request_error", &why))
}
