//! What the gateway's tests share: a sink that keeps records, model servers on real sockets, and
//! a client that writes raw bytes into a door.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

pub mod ways;

use gateway::usage::{Ledger, Notices};
use gateway::{
    Door, DoorGrant, Gateway, GatewayConfig, Resolver, Resolving, RetryPolicy, Roots, Sealer,
    bind_door,
};
use gateway::{SecretBytes, TurnCell, Vault};
use model::{
    AgentName, Body, Budget, Durability, EgressRule, HostName, ModelApi, ModelConfig, Record,
    RecordError, RecordSink, SessionId,
};
use nanoclaw_gateway as gateway;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// A fake key, long enough to be masked.
pub const KEY: &str = "test-key-not-real";
/// What the agent is given.
pub const PLACEHOLDER: &str = "placeholder-not-a-key";

/// Keeps records in memory; can be told to fail, or to leave durable ones unacknowledged.
#[derive(Default)]
pub struct MemorySink {
    pub records: Mutex<Vec<(Record, Durability)>>,
    pub broken: AtomicBool,
    pub holding: AtomicBool,
    pub held: Mutex<Vec<(u64, model::Done)>>,
}

impl RecordSink for MemorySink {
    fn submit(&self, record: Record, durability: Durability, done: model::Done) {
        if self.broken.load(Ordering::SeqCst) {
            return done(Err(RecordError::Disk { cause: "no space left".into() }));
        }
        let mut records = self.records.lock().unwrap();
        records.push((record, durability));
        let index = records.len() as u64;
        drop(records);
        if durability == Durability::Durable && self.holding.load(Ordering::SeqCst) {
            return self.held.lock().unwrap().push((index, done));
        }
        done(Ok(index));
    }
}

impl MemorySink {
    /// From now on everything is durable at once, what waited first.
    pub fn release(&self) {
        self.holding.store(false, Ordering::SeqCst);
        self.held.lock().unwrap().drain(..).for_each(|(index, done)| done(Ok(index)));
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.records.lock().unwrap().iter().map(|(r, _)| r.body.kind()).collect()
    }

    pub fn bodies(&self) -> Vec<Body> {
        self.records.lock().unwrap().iter().map(|(r, _)| r.body.clone()).collect()
    }

    /// Waits until a record of that kind is there.
    pub async fn wait_for(&self, kind: &str) -> Body {
        for _ in 0..500 {
            if let Some(body) = self.bodies().into_iter().rev().find(|b| b.kind() == kind) {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no record of kind {kind}; there are {:?}", self.kinds());
    }

    pub fn as_json(&self) -> String {
        serde_json::to_string(
            &self.records.lock().unwrap().iter().map(|r| &r.0).collect::<Vec<_>>(),
        )
        .unwrap()
    }
}

/// Answers every name with the same addresses.
pub struct FixedResolver(pub Vec<IpAddr>);

impl Resolver for FixedResolver {
    fn resolve<'a>(&'a self, _host: &'a str) -> Resolving<'a> {
        let found = self.0.clone();
        Box::pin(async move { Ok(found) })
    }
}

/// A directory of this test, removed when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("ncgw-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A gateway with one open door.
pub struct Rig {
    pub dir: TempDir,
    pub sink: Arc<MemorySink>,
    pub door: Door,
}

/// How a rig is made.
pub struct RigPlan {
    pub egress: Vec<EgressRule>,
    pub models: Vec<ModelConfig>,
    pub addresses: Vec<IpAddr>,
    pub secret_hosts: Vec<String>,
    pub retry: RetryPolicy,
    pub roots: Roots,
    pub budget: Budget,
    pub ledger: Option<Arc<Ledger>>,
    pub notices: Option<Notices>,
}

impl Default for RigPlan {
    fn default() -> Self {
        let ms = Duration::from_millis;
        let (pause, pause_max, total_max) = (ms(10), ms(40), ms(3000));
        Self {
            egress: Vec::new(),
            models: Vec::new(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            secret_hosts: vec!["127.0.0.1".into()],
            retry: RetryPolicy { attempts_max: 3, pause, pause_max, total_max },
            roots: Roots::Only(vec![]),
            budget: Budget::default(),
            ledger: None,
            notices: None,
        }
    }
}

impl RigPlan {
    pub fn build(self) -> Rig {
        let dir = TempDir::new();
        let sealer = Sealer::open_or_create(&dir.0).unwrap();
        sealer.set("key1", SecretBytes::new(KEY.into()), &self.secret_hosts, 1).unwrap();
        let sink = Arc::new(MemorySink::default());
        let mut config = GatewayConfig::new(sink.clone(), Vault::open(&dir.0).unwrap());
        config.resolver = Arc::new(FixedResolver(self.addresses));
        config.retry = self.retry;
        config.roots = self.roots;
        config.ledger = self.ledger.unwrap_or_else(Ledger::in_memory);
        config.notices = self.notices;
        let gateway = Gateway::new(config);
        std::fs::create_dir_all(dir.0.join("doors")).unwrap();
        let listener = bind_door(&dir.0.join("doors/s1.sock")).unwrap();
        let grant = DoorGrant {
            session: SessionId::parse("s1").unwrap(),
            agent: AgentName::parse("tester").unwrap(),
            turn: TurnCell::default(),
            egress: self.egress,
            default_model: self.models.first().map(|m| m.name.clone()),
            models: self.models,
            placeholder: PLACEHOLDER.into(),
            budget: self.budget,
            scripts: Default::default(),
            plain_http_hosts: Vec::new(),
            tools: Default::default(),
            stdin_secrets: Default::default(),
        };
        let door = gateway.open_door(grant, listener).unwrap();
        Rig { dir, sink, door }
    }
}

pub fn rule(host: &str, port: u16, private: bool) -> EgressRule {
    let host = HostName::parse(host).unwrap();
    EgressRule { private, ..EgressRule::allow("agents/tester.toml:7", host, port) }
}

pub fn http_model(name: &str, api: ModelApi, port: u16, secret: Option<&str>) -> ModelConfig {
    ModelConfig {
        name: name.into(),
        api,
        base_url: format!("http://127.0.0.1:{port}"),
        model: "provider-model-1".into(),
        secret: secret.map(Into::into),
        script: None,
        max_tokens: 1000,
        context_tokens: 10_000,
        also: Vec::new(),
        fallbacks: Vec::new(),
        price: None,
    }
}

/// One answer of a [`fake server`](FakeServer), written as raw bytes, piece by piece.
#[derive(Clone)]
pub struct Canned(pub Vec<Vec<u8>>);

pub fn json_answer(status: u16, more: &str, body: &str) -> Canned {
    Canned(vec![
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    ])
}

/// Server-sent events, each piece its own chunk and its own write.
pub fn sse_answer(pieces: &[&str]) -> Canned {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut all = vec![head.as_bytes().to_vec()];
    all.extend(pieces.iter().map(|p| format!("{:x}\r\n{p}\r\n", p.len()).into_bytes()));
    all.push(b"0\r\n\r\n".to_vec());
    Canned(all)
}

/// A model server on a real socket: gives its answers in order, the last one for ever, and keeps
/// what it was sent.
pub struct FakeServer {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<String>>>,
    pub bytes: Arc<AtomicUsize>,
}

impl FakeServer {
    pub async fn start(answers: Vec<Canned>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let bytes = Arc::new(AtomicUsize::new(0));
        let next = Arc::new(AtomicUsize::new(0));
        let answers = Arc::new(answers);
        let (kept, counted) = (seen.clone(), bytes.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, counted) = (kept.clone(), counted.clone());
                let (next, answers) = (next.clone(), answers.clone());
                tokio::spawn(serve_fake(stream, kept, counted, next, answers));
            }
        });
        Self { port, seen, bytes }
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve_fake(
    mut stream: TcpStream,
    kept: Arc<Mutex<Vec<String>>>,
    counted: Arc<AtomicUsize>,
    next: Arc<AtomicUsize>,
    answers: Arc<Vec<Canned>>,
) {
    stream.set_nodelay(true).unwrap();
    let mut buf = Vec::new();
    loop {
        let mut piece = vec![0; 65536];
        let n = match stream.read(&mut piece).await {
            Ok(n) if n > 0 => n,
            _ => return,
        };
        counted.fetch_add(n, Ordering::SeqCst);
        buf.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&buf).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse::<usize>().unwrap());
        if body.len() < length {
            continue;
        }
        kept.lock().unwrap().push(text.clone());
        buf.clear();
        let n = next.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
        for part in &answers[n].0 {
            if part.is_empty() {
                return; // breaks the connection off
            }
            if stream.write_all(part).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Sends raw bytes into a door and reads to the end (or until `quiet` without a byte).
pub async fn raw(door: &Door, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(door.socket()).await.unwrap();
    let _ = stream.write_all(request).await;
    read_all(&mut stream).await
}

pub async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut out = Vec::new();
    let read = stream.read_to_end(&mut out);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end of the answer").ok();
    String::from_utf8_lossy(&out).into_owned()
}

/// A POST of JSON that asks for the connection to be closed afterwards.
pub async fn post(door: &Door, path: &str, fields: &str, body: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw(door, request.as_bytes()).await
}

/// Status and decoded body of an answer.
pub fn parts(answer: &str) -> (u16, String) {
    let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    if !head.contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut out, mut rest) = (String::new(), body);
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || tail.len() < size + 2 {
            break;
        }
        out.push_str(&tail[..size]);
        rest = &tail[size + 2..];
    }
    (status, out)
}

/// A self-made certificate for `name`, and a TLS server's configuration with it.
pub fn tls_server(name: &str) -> (CertificateDer<'static>, tokio_rustls::TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec![name.into()]).unwrap();
    let cert = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    (cert, tokio_rustls::TlsAcceptor::from(Arc::new(server)))
}
