//! Ways to other hosts: permitted, refused, and never without a record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, Durability, EgressRule, Sight};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

/// Accepts on loopback and sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut r, mut w) = stream.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                let _ = w.shutdown().await;
            });
        }
    });
    port
}

/// A rule for connections that nobody looks into.
fn unseen(host: &str, port: u16, private: bool) -> EgressRule {
    EgressRule { sight: Sight::Tcp, ..rule(host, port, private) }
}

fn connect_to(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_a_permitted_host_is_recorded_before_and_after() {
    let port = echo().await;
    let rig =
        RigPlan { egress: vec![unseen("echo.test", port, true)], ..RigPlan::default() }.build();
    let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
    // Sends ahead of the answer, as some clients do.
    let ahead = format!("{}early", connect_to(&format!("ECHO.test:{port}")));
    stream.write_all(ahead.as_bytes()).await.unwrap();
    let mut buf = vec![0; 1024];
    let n = stream.read(&mut buf).await.unwrap();
    assert!(buf[..n].starts_with(b"HTTP/1.1 200 "));
    stream.write_all(b" bird").await.unwrap();
    stream.shutdown().await.unwrap();
    let rest = format!("{}{}", String::from_utf8_lossy(&buf[..n]), read_all(&mut stream).await);
    assert!(rest.ends_with("early bird"), "{rest}");
    match rig.sink.wait_for("egress_result").await {
        Body::EgressResult { sent, received, error, .. } => {
            assert_eq!((sent, received, error), (10, 10, None));
        }
        other => panic!("{other:?}"),
    }
    let records = rig.sink.records.lock().unwrap().clone();
    assert!(matches!(&records[0].0.body, Body::EgressIntent { rule, address: None, .. }
        if rule == "agents/tester.toml:7"));
    assert!(matches!(&records[1].0.body, Body::EgressPinned { host, address, .. }
        if host == "echo.test" && address == "127.0.0.1"));
    assert!(records[..2].iter().all(|(_, durability)| *durability == Durability::Durable));
    assert_eq!((rig.door.counts().bytes_up, rig.door.counts().bytes_down), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_permitted_by_name_and_port_is_refused_with_the_remedy() {
    let rig = RigPlan { egress: vec![rule("a.test", 443, true)], ..RigPlan::default() }.build();
    let cases = [
        ("b.test:443", 403),
        ("x.a.test:443", 403),
        ("a.test.evil.test:443", 403),
        ("a.test:80", 403),
        ("127.0.0.1:443", 400),
        ("[::1]:443", 400),
        ("2130706433:443", 400),
        ("0x7f.1:443", 400),
        ("u:p@a.test:443", 400),
        ("a.test", 400),
        ("a.test:443:1", 400),
        ("a.test:0443", 400),
        ("*.test:443", 400),
    ];
    for (target, expected) in cases {
        let (status, body) = parts(&raw(&rig.door, connect_to(target).as_bytes()).await);
        assert_eq!(status, expected, "{target}: {body}");
        match rig.sink.bodies().pop() {
            Some(Body::EgressRefused { .. }) => {}
            other => panic!("{target}: {other:?}"),
        }
    }
    let (_, body) = parts(&raw(&rig.door, connect_to("b.test:443").as_bytes()).await);
    assert!(body.contains("agents/tester.toml") && body.contains("--allow b.test"), "{body}");
    assert!(body.contains("default deny"), "{body}");
    assert!(!rig.sink.as_json().contains("u:p@"));
    assert!(!rig.sink.kinds().contains(&"egress_intent"));
    assert_eq!(rig.door.counts().refused, cases.len() as u64 + 1);
    let mismatch = "CONNECT a.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n";
    assert_eq!(parts(&raw(&rig.door, mismatch.as_bytes()).await).0, 400);
    let with_body =
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(parts(&raw(&rig.door, with_body.as_bytes()).await).0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_resolve_to_special_addresses_are_refused() {
    let port = echo().await;
    for address in [
        "127.0.0.1",
        "10.1.2.3",
        "172.20.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "169.254.9.9",
        "100.64.0.1",
        "224.0.0.1",
        "0.0.0.0",
        "192.0.2.1",
        "198.18.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "fe80::1",
        "fd00::1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "ff02::1",
        "2001:db8::1",
        "::",
    ] {
        let addresses = vec![address.parse().unwrap()];
        let egress = vec![unseen("a.test", port, false)];
        let rig = RigPlan { egress, addresses, ..RigPlan::default() }.build();
        let (status, body) =
            parts(&raw(&rig.door, connect_to(&format!("a.test:{port}")).as_bytes()).await);
        assert_eq!(status, 403, "{address}: {body}");
        let kinds = ["egress_intent", "egress_result", "egress_refused"];
        assert_eq!(rig.sink.kinds(), kinds, "{address}");
    }
    // One bad address among good ones refuses the name; metadata stays closed to private rules.
    for (addresses, private) in [("8.8.8.8,127.0.0.1", false), ("169.254.169.254", true)] {
        let addresses = addresses.split(',').map(|a| a.parse().unwrap()).collect();
        let egress = vec![unseen("a.test", 9, private)];
        let rig = RigPlan { egress, addresses, ..RigPlan::default() }.build();
        let (status, _) = parts(&raw(&rig.door, connect_to("a.test:9").as_bytes()).await);
        let kinds = vec!["egress_intent", "egress_result", "egress_refused"];
        assert_eq!((status, rig.sink.kinds()), (403, kinds));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_when_the_intent_cannot_be_written() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let rig = RigPlan {
        egress: vec![unseen("a.test", port, true), rule("b.test", port, true)],
        ..RigPlan::default()
    }
    .build();
    rig.sink.broken.store(true, Ordering::SeqCst);
    let (status, body) =
        parts(&raw(&rig.door, connect_to(&format!("a.test:{port}")).as_bytes()).await);
    assert_eq!(status, 503, "{body}");
    let close = "Connection: close\r\n\r\n";
    let plain = format!("GET http://b.test:{port}/ HTTP/1.1\r\nHost: b.test:{port}\r\n{close}");
    assert_eq!(parts(&raw(&rig.door, plain.as_bytes()).await).0, 503);
    let accepted = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err(), "a connection was made without its record");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_forwarded_by_rule_and_without_credentials() {
    let server = FakeServer::start(vec![json_answer(200, "x-from: server\r\n", "{}")]).await;
    let egress = vec![rule("a.test", server.port, true)];
    let rig = RigPlan { egress, ..RigPlan::default() }.build();
    let host = format!("a.test:{}", server.port);
    let request = |target: &str, more: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: 4\r\n\r\nbody")
    };
    let url = format!("http://{host}/p?q=1");
    let more = "X-Kept: 1\r\nProxy-Connection: x\r\nConnection: x-hop, close\r\nX-Hop: 1\r\n";
    let answer = raw(&rig.door, request(&url, more).as_bytes()).await;
    assert!(parts(&answer) == (200, "{}".into()) && answer.contains("x-from: server"), "{answer}");
    let sent = server.requests()[0].clone();
    assert!(
        sent.starts_with("POST /p?q=1 HTTP/1.1\r\n") && sent.ends_with("\r\n\r\nbody"),
        "{sent}"
    );
    assert!(sent.contains("x-kept: 1") && !sent.contains("proxy-") && !sent.contains("x-hop"));
    for credential in [
        "Authorization: Basic x\r\n".to_owned(),
        "Proxy-Authorization: Basic x\r\n".to_owned(),
        "Cookie: a=b\r\n".to_owned(),
        format!("X-Any: {PLACEHOLDER}\r\n"),
    ] {
        assert_eq!(parts(&raw(&rig.door, request(&url, &credential).as_bytes()).await).0, 403);
    }
    for (target, status) in [
        ("http://b.test/", 400), // its Host field says a.test
        ("http://u:p@a.test/", 400),
        ("https://a.test/", 400),
        ("ftp://a.test/", 400),
    ] {
        assert_eq!(
            parts(&raw(&rig.door, request(target, "").as_bytes()).await).0,
            status,
            "{target}"
        );
    }
    let other = "GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n";
    assert_eq!(parts(&raw(&rig.door, other.as_bytes()).await).0, 403);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(rig.sink.kinds().iter().filter(|k| **k == "egress_intent").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_through_a_tunnel_reaches_a_local_server() {
    use rustls::pki_types::ServerName;
    let (cert, acceptor) = tls_server("tls.test");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        stream.write_all(b"hello from inside TLS").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let rig = EgressRule { sight: Sight::Tunnel, ..rule("tls.test", port, true) };
    let rig = RigPlan { egress: vec![rig], ..RigPlan::default() }.build();
    let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
    stream.write_all(connect_to(&format!("tls.test:{port}")).as_bytes()).await.unwrap();
    let mut head = [0; 39];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[..], b"HTTP/1.1 200 Connection Established\r\n\r\n");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("tls.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(name, stream).await.unwrap();
    assert_eq!(read_all(&mut stream).await, "hello from inside TLS");
}
