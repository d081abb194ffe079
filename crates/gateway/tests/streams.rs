//! Several requests at a time on one HTTP/2 connection, against a real server that counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Larger than what a stream, a socket and the gateway hold together.
const LARGE: usize = 8 << 20;

/// What the server saw.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// The most streams that were open at once on any one connection.
    most: AtomicUsize,
    /// Requests that came on each connection.
    each: Mutex<Vec<usize>>,
}

/// Speaks HTTP/2 over TLS as `a.test`; `/wait` is answered when `together` requests have come.
struct H2 {
    port: u16,
    cert: CertificateDer<'static>,
    seen: Arc<Seen>,
}

fn acceptor() -> (CertificateDer<'static>, tokio_rustls::TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".into()]).unwrap();
    let cert = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    (cert, tokio_rustls::TlsAcceptor::from(Arc::new(server)))
}

async fn respond(
    request: Request<Incoming>,
    seen: Arc<Seen>,
    open: Arc<AtomicUsize>,
    together: usize,
) -> hyper::Result<Response<Full<Bytes>>> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let now = open.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most.fetch_max(now, Ordering::SeqCst);
    let body = match request.uri().path() {
        "/large" => Bytes::from(vec![b'x'; LARGE]),
        "/wait" => {
            while seen.requests.load(Ordering::SeqCst) < together {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Bytes::from_static(b"waited")
        }
        _ => Bytes::from_static(b"at once"),
    };
    open.fetch_sub(1, Ordering::SeqCst);
    Ok(Response::new(Full::new(body)))
}

impl H2 {
    async fn start(streams: u32, together: usize) -> Self {
        let (cert, acceptor) = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let nth = kept.connections.fetch_add(1, Ordering::SeqCst);
                kept.each.lock().unwrap().push(0);
                let (seen, acceptor) = (Arc::clone(&kept), acceptor.clone());
                let open = Arc::new(AtomicUsize::new(0));
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let service = hyper::service::service_fn(move |request| {
                        seen.each.lock().unwrap()[nth] += 1;
                        respond(request, Arc::clone(&seen), Arc::clone(&open), together)
                    });
                    let mut builder =
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.max_concurrent_streams(streams);
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, cert, seen }
    }

    fn way(&self, egress: Vec<model::EgressRule>) -> Arc<Way> {
        Arc::new(Plan { egress, roots: vec![self.cert.clone()], ..Plan::default() }.open())
    }

    /// That many requests at once, each from a connection of its own inside.
    async fn ask(&self, way: &Arc<Way>, count: usize, target: &'static str) {
        let mut asking = JoinSet::new();
        for _ in 0..count {
            let (way, port) = (Arc::clone(way), self.port);
            asking.spawn(async move { way.get("a.test", port, target, "").await });
        }
        let all = tokio::time::timeout(Duration::from_secs(30), asking.join_all());
        for answer in all.await.expect("all are answered") {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_a_time_share_one_connection() {
    const COUNT: usize = 12;
    let server = H2::start(100, COUNT).await;
    let way = server.way(vec![rule_for("a.test", server.port)]);
    // None is answered before all have come, so they are under way at the same time.
    server.ask(&way, COUNT, "/wait").await;
    assert_eq!((server.connections(), server.seen.most.load(Ordering::SeqCst)), (1, COUNT));
    server.ask(&way, COUNT, "/").await;
    assert_eq!(server.connections(), 1, "it is used again");
    assert_eq!((way.count("egress_intent"), way.count("egress_pinned")), (2 * COUNT, 1));
    way.sink.wait_for("egress_result").await;
    // Another session has its own.
    let other = server.way(vec![rule_for("a.test", server.port)]);
    server.ask(&other, 1, "/").await;
    assert_eq!(server.connections(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_no_more_at_a_time_than_its_server_permits_or_we_do() {
    for (permitted, count, connections) in [(3, 9, 3), (1, 3, 3), (1_000, 40, 3)] {
        let server = H2::start(permitted, count).await;
        let way = server.way(vec![rule_for("a.test", server.port)]);
        server.ask(&way, count, "/wait").await;
        let most = server.seen.most.load(Ordering::SeqCst);
        assert!(
            most <= 16 && most <= permitted as usize,
            "{most} at a time, {permitted} permitted"
        );
        assert_eq!(server.connections(), connections, "{:?}", server.seen.each.lock().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_holds_up_nobody_else() {
    let server = H2::start(100, 1).await;
    let way = server.way(vec![rule_for("a.test", server.port)]);
    let mut still = Vec::new();
    for _ in 0..6 {
        let mut stream = way.tls("a.test", server.port).await;
        let head = format!("GET /large HTTP/1.1\r\nHost: a.test:{}\r\n\r\n", server.port);
        stream.write_all(head.as_bytes()).await.unwrap();
        still.push(stream);
    }
    while server.seen.requests.load(Ordering::SeqCst) < still.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Their windows fill up.
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.ask(&way, 4, "/").await;
    assert_eq!(server.connections(), 1);
    // Who goes away gives its place back.
    drop(still);
    server.ask(&way, 4, "/large").await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_s_connection_is_shared_with_nobody() {
    const COUNT: usize = 3;
    let server = H2::start(100, COUNT).await;
    let way = server.way(vec![with_secret("a.test", server.port, model::Injection::Bearer)]);
    server.ask(&way, COUNT, "/wait").await;
    server.ask(&way, COUNT, "/").await;
    assert_eq!(server.connections(), 2 * COUNT);
    assert!(server.seen.each.lock().unwrap().iter().all(|n| *n == 1));
}
