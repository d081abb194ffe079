//! What a session has outside ends with it, whatever its servers and name servers do; and what it
//! makes the gateway wait for holds up no other session.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use common::*;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{EgressRule, HostPattern, ModelApi, Sight};
use nanoclaw_gateway::{Door, Gateway, GatewayConfig, Resolver, Resolving, Vault, bind_door};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;

/// What ends at once has ended by then, on a busy machine too.
const MOMENT: Duration = Duration::from_secs(2);
/// More than sockets on both sides hold.
const LARGE: usize = 64 << 20;
/// A server's SETTINGS and WINDOW_UPDATE (RFC 9113 §6.5, §6.9) that let everything come.
const OPEN_WINDOWS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\
                              \0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";

/// How many sockets to `port` some process still has: the kernel lists those that nobody has any
/// more without an inode (proc_pid_net(5)).
fn held(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    let ours = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&to) && fields[9] != "0"
    };
    table.lines().skip(1).filter(ours).count()
}

async fn comes_to(port: u16, count: usize, what: &str) {
    let begun = std::time::Instant::now();
    while held(port) != count {
        assert!(begun.elapsed() < MOMENT, "{what}: {} connections, not {count}", held(port));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a server says that reads nothing of what it is sent.
#[derive(Clone, Copy, PartialEq)]
enum Speech {
    Http,
    Tls,
    H2,
    /// The head of an answer and one piece after the other.
    Answering,
    /// A whole answer, and no end of the connection.
    Refusing,
}

fn speaking(acceptor: &TlsAcceptor, protocol: &[u8]) -> TlsAcceptor {
    let mut config = rustls::ServerConfig::clone(acceptor.config());
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A server that reads no more than the beginning of a request; how many of its connections broke
/// off while it wrote.
async fn deaf(speech: Speech) -> (u16, CertificateDer<'static>, Arc<AtomicUsize>) {
    let (cert, acceptor) = tls_server("a.test");
    let protocol: &[u8] = if speech == Speech::H2 { b"h2" } else { b"http/1.1" };
    let acceptor = speaking(&acceptor, protocol);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let broken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&broken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                match speech {
                    Speech::Http => std::future::pending().await,
                    Speech::Tls => hold(acceptor.accept(stream).await.unwrap(), b"").await,
                    Speech::H2 => hold(acceptor.accept(stream).await.unwrap(), OPEN_WINDOWS).await,
                    Speech::Refusing => {
                        let _ = stream.read(&mut [0; 64]).await;
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        let whole = b"HTTP/1.1 413 X\r\ncontent-length: 2\r\n\r\nno";
                        hold(stream, whole).await
                    }
                    Speech::Answering => {
                        let _ = stream.read(&mut [0; 64]).await;
                        let head = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n";
                        let mut piece: &[u8] = head;
                        while stream.write_all(piece).await.is_ok() {
                            piece = b"1\r\nx\r\n";
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    (port, cert, broken)
}

async fn hold(mut stream: impl AsyncWrite + Unpin, words: &[u8]) {
    stream.write_all(words).await.unwrap();
    stream.flush().await.unwrap();
    std::future::pending().await
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An upload that stands still, for its server takes no more.
async fn stuck(way: &Way, speech: Speech, port: u16) -> Box<dyn Stream> {
    let plain = !matches!(speech, Speech::Tls | Speech::H2);
    let mut stream: Box<dyn Stream> = match plain {
        true => Box::new(UnixStream::connect(way.door.socket()).await.unwrap()),
        false => Box::new(way.tls("a.test", port).await),
    };
    let to = if plain { format!("http://a.test:{port}") } else { String::new() };
    let head =
        format!("POST {to}/ HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let uploading = async {
        let piece = vec![b'x'; 65_536];
        while tokio::time::timeout(Duration::from_millis(400), stream.write_all(&piece))
            .await
            .is_ok_and(|written| written.is_ok())
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), uploading).await.expect("a server that is full");
    stream
}

fn way_to(port: u16, cert: CertificateDer<'static>) -> Way {
    Plan { egress: vec![rule_for("a.test", port)], roots: vec![cert], ..Plan::default() }.open()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_a_server_that_never_reads_ends_with_its_request() {
    let (port, cert, _) = deaf(Speech::Answering).await;
    let way = way_to(port, cert);
    let one = stuck(&way, Speech::Answering, port).await;
    let other = stuck(&way, Speech::Answering, port).await;
    assert_eq!(held(port), 2);
    drop(one);
    comes_to(port, 1, "one hung up").await;
    drop(other);
    comes_to(port, 0, "both hung up").await;

    let (port, cert, _) = deaf(Speech::Refusing).await;
    let way = way_to(port, cert);
    for _ in 0..3 {
        let mut stream = stuck(&way, Speech::Refusing, port).await;
        assert_eq!(parts(&read_all(&mut stream).await), (413, "no".into()));
    }
    comes_to(port, 0, "all were answered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_servers_that_never_read_end_with_their_door() {
    for speech in [Speech::Http, Speech::Tls, Speech::H2] {
        let (port, cert, _) = deaf(speech).await;
        let way = way_to(port, cert);
        let inside = stuck(&way, speech, port).await;
        assert_eq!(held(port), 1);
        if speech == Speech::H2 {
            // The door's pool has it then.
            drop(inside);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(held(port), 1);
        }
        drop(way);
        comes_to(port, 0, "the door is closed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_the_midst_of_its_answer_sees_the_end_of_the_door() {
    let (port, cert, broken) = deaf(Speech::Answering).await;
    let way = way_to(port, cert);
    let _inside = stuck(&way, Speech::Answering, port).await;
    assert_eq!((held(port), broken.load(Ordering::SeqCst)), (1, 0));
    way.door.settle().await;
    let seen = async {
        while broken.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(MOMENT, seen).await.expect("the end of the connection");
    assert_eq!(held(port), 0);
}

/// An HTTP/2 server that answers at once.
async fn h2_server() -> (u16, CertificateDer<'static>) {
    let (cert, acceptor) = tls_server("a.test");
    let acceptor = speaking(&acceptor, b"h2");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = hyper::service::service_fn(async |_: Request<_>| {
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"x"))))
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, cert)
}

/// Lets `seconds` pass for timers alone.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

// On one thread, for only there the clock can be moved.
#[tokio::test]
async fn a_kept_connection_that_nobody_uses_ends_by_itself() {
    let plain = Server::start(None, |_| answer(200, "", "x")).await;
    let way = way_to(plain.port, plain.cert.clone());
    let get = format!("GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\n", plain.port);
    let get = format!("{get}Connection: close\r\n\r\n");
    assert!(raw(&way.door, get.as_bytes()).await.ends_with('x'));
    let (port, cert) = h2_server().await;
    let secure = way_to(port, cert);
    assert!(secure.get("a.test", port, "/", "").await.ends_with('x'));
    for port in [plain.port, port] {
        assert_eq!(held(port), 1, "it is kept");
    }
    later(20).await;
    assert!(raw(&way.door, get.as_bytes()).await.ends_with('x'));
    assert_eq!((plain.connections(), held(plain.port), held(port)), (1, 1, 1));
    later(15).await;
    comes_to(port, 0, "not used for 35 s").await;
    assert_eq!(held(plain.port), 1, "not used for 15 s");
    later(20).await;
    comes_to(plain.port, 0, "not used for 35 s").await;

    let said = r#"{"id":"m","type":"message","role":"assistant","content":[],"usage":{}}"#;
    let server = FakeServer::start(vec![json_answer(200, "", said)]).await;
    let models = vec![http_model("m", ModelApi::Anthropic, server.port, Some("key1"))];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let ask = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}]}"#;
    let said = post(&rig.door, "/v1/messages", "", ask).await;
    assert_eq!((parts(&said).0, held(server.port)), (200, 1), "{said}");
    later(65).await;
    comes_to(server.port, 0, "not used for 65 s").await;
}

/// Answers for no name below `slow.test`.
#[derive(Default)]
struct Stuck(AtomicUsize);

impl Resolver for Stuck {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            if host.ends_with(".slow.test") {
                self.0.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            Ok(vec!["127.0.0.1".parse().unwrap()])
        })
    }
}

/// Doors of one gateway, each with the same rules.
fn doors(dir: &TempDir, resolver: Arc<dyn Resolver>, rules: &[EgressRule]) -> Vec<Door> {
    nanoclaw_gateway::Sealer::open_or_create(&dir.0).unwrap();
    let sink = Arc::new(MemorySink::default());
    let mut config = GatewayConfig::new(sink, Vault::open(&dir.0).unwrap());
    config.resolver = resolver;
    let gateway = Gateway::new(config);
    let open = |n: usize| {
        let listener = bind_door(&dir.0.join(format!("door{n}.sock"))).unwrap();
        let grant = serde_json::json!({
            "session": format!("s{n}"), "agent": "tester", "egress": rules, "models": [],
            "default_model": null, "placeholder": PLACEHOLDER,
        });
        gateway.open_door(serde_json::from_value(grant).unwrap(), listener).unwrap()
    };
    (0..7).map(open).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_nobody_answers_for_hold_up_no_other_session() {
    let server = Server::start(None, |_| answer(200, "", "x")).await;
    let host = HostPattern::parse("*.slow.test").unwrap();
    let slow = EgressRule { sight: Sight::Tcp, ..EgressRule::allow("a.toml:1", host, 9) };
    let (dir, resolver) = (TempDir::new(), Arc::new(Stuck::default()));
    let rules = [slow, rule_for("a.test", server.port)];
    let mut doors = doors(&dir, resolver.clone(), &rules);
    let good = doors.pop().unwrap();
    let mut held = Vec::new();
    for door in &doors {
        for n in 0..40 {
            let mut stream = UnixStream::connect(door.socket()).await.unwrap();
            let to = format!("n{n}.slow.test:9");
            let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // All that is shared, and two of each door's own.
    assert_eq!(resolver.0.load(Ordering::SeqCst), 64 + 2 * doors.len());
    let get = format!(
        "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nConnection: close\r\n\r\n",
        server.port
    );
    let asking = raw(&good, get.as_bytes());
    let text = tokio::time::timeout(MOMENT, asking).await.expect("an answer without waiting");
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}
