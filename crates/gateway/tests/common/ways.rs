//! Ways out, end to end: a gateway with its own certificate authority, servers that answer what
//! they are told to, and clients that speak TLS through a door.

use super::{FixedResolver, KEY, MemorySink, PLACEHOLDER, TempDir, tls_server};
use model::{EgressRule, HostName, HostTools, Injection, SecretUse, ToolGrant};
use nanoclaw_gateway::tls::Authority;
use nanoclaw_gateway::{Approver, Door, Gateway, GatewayConfig, NobodyApproves, Resolver, Roots};
use nanoclaw_gateway::{Sealer, SecretBytes, Vault, bind_door};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How a way is laid.
pub struct Plan {
    pub egress: Vec<EgressRule>,
    pub addresses: Vec<&'static str>,
    /// In place of `addresses`.
    pub resolver: Option<Arc<dyn Resolver>>,
    /// Whether the session may call `web_fetch`.
    pub fetches: bool,
    pub secret_hosts: Vec<&'static str>,
    pub roots: Vec<CertificateDer<'static>>,
    pub approver: Arc<dyn Approver>,
    pub dir: Option<Arc<TempDir>>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            egress: Vec::new(),
            addresses: vec!["127.0.0.1"],
            resolver: None,
            fetches: false,
            secret_hosts: vec!["a.test"],
            roots: Vec::new(),
            approver: Arc::new(NobodyApproves),
            dir: None,
        }
    }
}

/// A gateway with one door.
pub struct Way {
    pub dir: Arc<TempDir>,
    pub sink: Arc<MemorySink>,
    pub door: Door,
    pub ca: CertificateDer<'static>,
}

impl Plan {
    pub fn open(self) -> Way {
        let dir = self.dir.unwrap_or_else(|| Arc::new(TempDir::new()));
        let home = &dir.0;
        let hosts: Vec<String> = self.secret_hosts.iter().map(|h| (*h).to_owned()).collect();
        let sealer = Sealer::open_or_create(home).unwrap();
        sealer.set("key1", SecretBytes::new(KEY.into()), &hosts, 1).unwrap();
        let authority = Authority::open(&home.join("vault")).unwrap();
        let ca = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        let sink = Arc::new(MemorySink::default());
        let mut config = GatewayConfig::new(sink.clone(), Vault::open(home).unwrap());
        let addresses = self.addresses.iter().map(|a| a.parse().unwrap()).collect();
        let fixed = || -> Arc<dyn Resolver> { Arc::new(FixedResolver(addresses)) };
        config.resolver = self.resolver.unwrap_or_else(fixed);
        config.roots = Roots::Only(self.roots);
        config.approver = self.approver;
        config.authority = Some(Arc::new(authority));
        config.state_dir = Some(home.join("gateway"));
        std::fs::create_dir_all(home.join("gateway")).unwrap();
        let own = ToolGrant { server: ToolGrant::OWN.into(), tool: "web_fetch".into(), pin: None };
        let grants = self.fetches.then_some(own).into_iter().collect();
        let grant = serde_json::json!({
            "session": "s1", "agent": "tester", "egress": self.egress, "models": [],
            "default_model": null, "placeholder": PLACEHOLDER,
            "tools": HostTools { grants, servers: Vec::new() },
        });
        let listener = bind_door(&home.join("door.sock")).unwrap();
        let grant = serde_json::from_value(grant).unwrap();
        let door = Gateway::new(config).open_door(grant, listener).unwrap();
        Way { dir, sink, door, ca }
    }
}

impl Way {
    /// A connection after `CONNECT host:port` was answered with 200.
    pub async fn connect(&self, host: &str, port: u16) -> UnixStream {
        let mut stream = UnixStream::connect(self.door.socket()).await.unwrap();
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 39];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head[..], b"HTTP/1.1 200 Connection Established\r\n\r\n");
        stream
    }

    /// TLS through the door, trusting nobody but the gateway's authority.
    pub async fn tls(&self, host: &str, port: u16) -> TlsStream<UnixStream> {
        let stream = self.connect(host, port).await;
        client_tls(stream, host, &self.ca, true).await.unwrap()
    }

    /// One request on a connection of its own; the whole answer.
    pub async fn ask(&self, host: &str, port: u16, request: &str) -> String {
        let mut stream = self.tls(host, port).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        super::read_all(&mut stream).await
    }

    /// A GET of `target` with further `fields`.
    pub async fn get(&self, host: &str, port: u16, target: &str, fields: &str) -> String {
        let host_field = if port == 443 { host.to_owned() } else { format!("{host}:{port}") };
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host_field}\r\nConnection: close\r\n{fields}\r\n"
        );
        self.ask(host, port, &request).await
    }

    /// How many records of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.sink.kinds().iter().filter(|k| **k == kind).count()
    }
}

/// A TLS client on `stream` that calls `name`.
pub async fn client_tls<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    name: &str,
    root: &CertificateDer<'static>,
    sni: bool,
) -> io::Result<TlsStream<S>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_sni = sni;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(Duration::from_secs(10), connecting).await.expect("a handshake's end")
}

pub fn rule_for(host: &str, port: u16) -> EgressRule {
    let host = HostName::parse(host).unwrap();
    EgressRule { private: true, ..EgressRule::allow("agents/tester.toml:7", host, port) }
}

pub fn with_secret(host: &str, port: u16, inject: Injection) -> EgressRule {
    let secret = Some(SecretUse { name: "key1".into(), inject });
    EgressRule { secret, ..rule_for(host, port) }
}

/// What a server answers to a request, in pieces; an empty piece breaks the connection off.
pub type Answering = Arc<dyn Fn(&str) -> Vec<Vec<u8>> + Send + Sync>;

/// A server of any kind on a real socket.
pub struct Server {
    pub port: u16,
    pub cert: CertificateDer<'static>,
    pub seen: Arc<Mutex<Vec<String>>>,
    pub accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Speaks TLS as `name`, or plain HTTP without one.
    pub async fn start(
        name: Option<&str>,
        answer: impl Fn(&str) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (cert, acceptor) = tls_server(name.unwrap_or("unused.test"));
        let tls = name.is_some();
        let answer: Answering = Arc::new(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (kept, counted) = (seen.clone(), accepted.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (kept, answer, acceptor) = (kept.clone(), answer.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if !tls {
                        return serve(stream, kept, answer).await;
                    }
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, kept, answer).await;
                    }
                });
            }
        });
        Self { port, cert, seen, accepted }
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A whole answer with a length.
pub fn answer(status: u16, fields: &str, body: &str) -> Vec<Vec<u8>> {
    let length = body.len();
    vec![format!("HTTP/1.1 {status} X\r\n{fields}content-length: {length}\r\n\r\n{body}").into()]
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |n| n.parse::<usize>().unwrap())
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    kept: Arc<Mutex<Vec<String>>>,
    answer: Answering,
) {
    let mut text = String::new();
    let mut piece = vec![0; 65536];
    loop {
        match stream.read(&mut piece).await {
            Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&piece[..n])),
            _ => return,
        }
        if !is_whole(&text) {
            continue;
        }
        kept.lock().unwrap().push(text.clone());
        for part in answer(&text) {
            if part.is_empty() || stream.write_all(&part).await.is_err() {
                return;
            }
            let _ = stream.flush().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if text.contains("upgrade: websocket") {
            return echo(stream).await;
        }
        text.clear();
    }
}

/// Sends back what it gets.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}
