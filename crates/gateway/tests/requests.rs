//! Requests inside a connection that is looked into: each judged, bounded, recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use common::*;
use model::{Body, Durability, Effect, EgressRule, PathPattern};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LENGTH: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n";
const GET_CLOSE: &str = "Connection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn each_request_of_a_connection_is_judged_and_recorded() {
    let server = Server::start(Some("a.test"), |_| answer(200, "x-from: s\r\n", "hello")).await;
    let rule = EgressRule {
        methods: vec!["GET".into(), "PUT".into()],
        paths: vec![PathPattern::parse("/ok/**").unwrap()],
        ..rule_for("a.test", server.port)
    };
    let plan = Plan { egress: vec![rule], roots: vec![server.cert.clone()], ..Plan::default() };
    let way = plan.open();
    let host = format!("Host: a.test:{}\r\n", server.port);
    let mut stream = way.tls("a.test", server.port).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let requests = [
        format!("GET /ok/a?q=hidden&r HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /ok/a HTTP/1.1\r\n{host}\r\n"),
        format!("GET /other HTTP/1.1\r\n{host}\r\n"),
        format!("GET /ok/../other HTTP/1.1\r\n{host}\r\n"),
        format!("PUT /ok/b HTTP/1.1\r\n{host}Content-Length: 4\r\n{GET_CLOSE}body"),
    ];
    stream.write_all(requests.concat().as_bytes()).await.unwrap();
    let all = read_all(&mut stream).await;
    let statuses: Vec<&str> = all.split("HTTP/1.1 ").skip(1).map(|a| &a[..3]).collect();
    assert_eq!(statuses, ["200", "403", "403", "403", "200"], "{all}");
    assert!(all.contains("agents/tester.toml:7") && all.contains("x-from: s"), "{all}");
    // A person reads what would permit it, over TLS as without.
    for line in
        ["methods = [\"DELETE\"], paths = [\"/ok/a\"]", "methods = [\"GET\"], paths = [\"/other\"]"]
    {
        let rule = format!("add [[egress]] host = \"a.test\", port = {}, {line} to", server.port);
        assert!(all.contains(&rule), "{rule}: {all}");
    }
    assert_eq!(server.requests().len(), 2);
    assert!(server.requests()[1].ends_with("\r\n\r\nbody"));
    let refusals: Vec<Body> =
        way.sink.bodies().into_iter().filter(|b| b.kind() == "egress_refused").collect();
    assert_eq!(refusals.len(), 3);
    for refusal in refusals {
        let Body::EgressRefused { rule, request: Some(_), .. } = refusal else { panic!() };
        assert_eq!(rule, "agents/tester.toml:7");
    }
    let records = way.sink.records.lock().unwrap().clone();
    let (first, durability) = &records[0];
    let Body::EgressIntent { request: Some(line), address, .. } = &first.body else { panic!() };
    assert_eq!((*durability, address), (Durability::Durable, &None));
    assert_eq!((line.method.as_str(), line.path.as_str()), ("GET", "/ok/a"));
    assert_eq!(line.query_keys, ["q", "r"]);
    let Body::EgressResult { status, sent, received, sent_sha256, received_sha256, .. } =
        way.sink.wait_for("egress_result").await
    else {
        panic!()
    };
    assert_eq!((status, sent, received), (Some(200), 4, 5));
    let digest = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5";
    assert_eq!(sent_sha256.unwrap().0, digest, "of \"body\"");
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(received_sha256.unwrap().0, digest, "of \"hello\"");
    assert!(!way.sink.as_json().contains("hidden"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_over_tls_tells_the_remedy_that_helps() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "")).await;
    let deny = EgressRule {
        id: "agents/tester.toml:20".into(),
        effect: Effect::Deny,
        paths: vec![PathPattern::parse("/admin/**").unwrap()],
        ..rule_for("a.test", server.port)
    };
    let egress = vec![rule_for("a.test", server.port), deny];
    let way = Plan { egress, roots: vec![server.cert.clone()], ..Plan::default() }.open();
    let (_, body) = parts(&way.get("a.test", server.port, "/admin/x", "").await);
    assert!(body.contains("[[deny]]") && body.contains("agents/tester.toml:20"), "{body}");
    assert!(!body.contains("--allow"), "that would not help: {body}");
    let other = "GET http://b.test/x HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n";
    let (_, body) = parts(&raw(&way.door, other.as_bytes()).await);
    assert!(body.contains("port = 80") && body.contains("--allow b.test:80"), "{body}");
    let other = "CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\nConnection: close\r\n\r\n";
    let (_, body) = parts(&raw(&way.door, other.as_bytes()).await);
    assert!(body.contains("add [[egress]] host = \"a.test\", port = 1 to"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_must_agree_wherever_they_are_said() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "")).await;
    let egress = vec![rule_for("a.test", server.port), rule_for("b.test", server.port)];
    let way = Plan { egress, roots: vec![server.cert.clone()], ..Plan::default() }.open();
    // The greeting names another host, or none.
    let stream = way.connect("a.test", server.port).await;
    assert!(client_tls(stream, "b.test", &way.ca, true).await.is_err());
    let stream = way.connect("a.test", server.port).await;
    assert!(client_tls(stream, "a.test", &way.ca, false).await.is_err());
    assert_eq!(way.count("egress_refused"), 2);
    // The request names another host, in any of the places where it can.
    let port = server.port;
    let with =
        |field: &str| format!("GET / HTTP/1.1\r\nHost: a.test:{port}\r\n{field}\r\n{GET_CLOSE}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a.test:{}\r\n\r\n", port ^ 1), 400),
        (format!("GET https://b.test/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"), 400),
        (format!("GET https://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"), 400),
        (format!("CONNECT b.test:{port} HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"), 400),
        (format!("OPTIONS * HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"), 400),
        (format!("TRACE / HTTP/1.1\r\nHost: a.test:{port}\r\n{GET_CLOSE}"), 400),
        (with("X-HTTP-Method-Override: DELETE"), 400),
        (with("X-Original-URL: /admin"), 400),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), 505),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n".to_owned(), 400),
        (format!("{LENGTH}Transfer-Encoding: chunked\r\n\r\n"), 400),
        (format!("{LENGTH}Content-Length: 4\r\n\r\n"), 400),
    ] {
        let before = way.count("egress_refused");
        let answer = way.ask("a.test", port, &request).await;
        assert_eq!(parts(&answer).0, status, "{request}: {answer}");
        assert_eq!(way.count("egress_refused"), before + 1, "{request}");
    }
    // Neither TLS nor HTTP.
    let mut stream = way.connect("a.test", port).await;
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
    assert_eq!(server.connections(), 0);
    assert_eq!(way.count("egress_intent"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_inside_connect_is_judged_the_same_way() {
    let server = Server::start(None, |_| answer(200, "", "plain")).await;
    let rule = EgressRule { methods: vec!["GET".into()], ..rule_for("a.test", server.port) };
    let way = Plan { egress: vec![rule], ..Plan::default() }.open();
    let mut stream = way.connect("a.test", server.port).await;
    let host = format!("Host: a.test:{}\r\n", server.port);
    let all = format!("PUT / HTTP/1.1\r\n{host}\r\nGET /x HTTP/1.1\r\n{host}{GET_CLOSE}");
    stream.write_all(all.as_bytes()).await.unwrap();
    let all = read_all(&mut stream).await;
    assert!(all.starts_with("HTTP/1.1 403 ") && all.ends_with("plain"), "{all}");
    let mut stream = way.connect("a.test", server.port).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n").await.unwrap();
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_certificates_are_always_verified() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "")).await;
    let (other, _) = tls_server("a.test");
    let egress = vec![rule_for("a.test", server.port), rule_for("b.test", server.port)];
    // Signed by nobody we know; then the right certificate for the wrong name.
    let way = Plan { egress: egress.clone(), roots: vec![other], ..Plan::default() }.open();
    let text = way.get("a.test", server.port, "/", "").await;
    assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("TLS with a.test failed"), "{text}");
    let way = Plan { egress, roots: vec![server.cert.clone()], ..Plan::default() }.open();
    assert!(way.get("b.test", server.port, "/", "").await.starts_with("HTTP/1.1 502 "));
    assert!(server.requests().is_empty());
    match way.sink.wait_for("egress_result").await {
        Body::EgressResult { error: Some(why), .. } => assert!(why.contains("TLS"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_one_hop_stay_and_answers_are_rebuilt() {
    let server = Server::start(Some("a.test"), |request| match request {
        r if r.starts_with("HEAD") => {
            vec![b"HTTP/1.1 200 X\r\ncontent-length: 1234\r\n\r\n".to_vec()]
        }
        r if r.contains("/none") => vec![b"HTTP/1.1 204 X\r\n\r\n".to_vec()],
        r if r.contains("/early") => vec![
            b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\nok".to_vec(),
        ],
        r if r.contains("/switch") => {
            vec![b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n".to_vec()]
        }
        r if r.contains("/cut") => {
            vec![b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n".to_vec(), vec![]]
        }
        _ => answer(
            200,
            "set-cookie: a=b\r\nalt-svc: h3=\":443\"\r\nconnection: x-hop\r\nx-hop: 1\r\nx-kept: 1\r\n",
            "body",
        ),
    })
    .await;
    let plan = Plan {
        egress: vec![rule_for("a.test", server.port)],
        roots: vec![server.cert.clone()],
        ..Plan::default()
    };
    let way = plan.open();
    let port = server.port;
    let more = "Connection: x-mine, close\r\nX-Mine: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Other: 2\r\n";
    let text = way.get("a.test", port, "/", more).await;
    assert!(text.contains("x-kept: 1") && text.ends_with("\r\n\r\nbody"), "{text}");
    assert!(text.contains("content-length: 4\r\n"), "{text}");
    for gone in ["set-cookie", "alt-svc", "x-hop"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    let sent = server.requests()[0].to_lowercase();
    assert!(sent.contains("x-other: 2"), "{sent}");
    for gone in ["te: ", "upgrade", "http2-settings", "proxy"] {
        assert!(!sent.contains(gone), "{gone}: {sent}");
    }
    let head = format!("HEAD / HTTP/1.1\r\nHost: a.test:{port}\r\n{GET_CLOSE}");
    let text = way.ask("a.test", port, &head).await;
    assert!(text.contains("content-length: 1234") && text.ends_with("\r\n\r\n"), "{text}");
    assert!(way.get("a.test", port, "/none", "").await.starts_with("HTTP/1.1 204 "));
    let text = way.get("a.test", port, "/early", "").await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok"), "{text}");
    assert!(way.get("a.test", port, "/switch", "").await.starts_with("HTTP/1.1 502 "));
    // What broke off does not look complete.
    let text = way.get("a.test", port, "/cut", "").await;
    assert!(text.contains("abcde") && !text.ends_with("0\r\n\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_never_looks_complete() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "done")).await;
    let plan = Plan {
        egress: vec![rule_for("a.test", server.port)],
        roots: vec![server.cert.clone()],
        ..Plan::default()
    };
    let way = plan.open();
    let head = format!("POST / HTTP/1.1\r\nHost: a.test:{}\r\n", server.port);
    let mut stream = way.tls("a.test", server.port).await;
    let begun = format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n");
    stream.write_all(begun.as_bytes()).await.unwrap();
    while server.connections() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    way.sink.wait_for("egress_result").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(server.requests().is_empty());
    // A whole one, with a client that waits to be told to go on.
    let mut stream = way.tls("a.test", server.port).await;
    let begun = format!("{head}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n{GET_CLOSE}");
    stream.write_all(begun.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on[..], b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"5\r\nabcde\r\n0\r\n\r\n").await.unwrap();
    assert!(read_all(&mut stream).await.ends_with("done"));
    assert!(server.requests()[0].ends_with("5\r\nabcde\r\n0\r\n\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_for_requests_without_a_secret_only() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let other = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let egress = vec![
        rule_for("a.test", server.port),
        with_secret("a.test", other.port, model::Injection::Bearer),
    ];
    let roots = vec![server.cert.clone(), other.cert.clone()];
    let way = Plan { egress, roots, ..Plan::default() }.open();
    for _ in 0..3 {
        assert!(way.get("a.test", server.port, "/", "").await.ends_with('x'));
        assert_eq!(parts(&way.get("a.test", other.port, "/", "").await), (200, "x".into()));
    }
    assert_eq!((server.connections(), other.connections()), (1, 3));
    assert_eq!((way.count("egress_intent"), way.count("egress_result")), (6, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let server = Server::start(Some("a.test"), |_| {
        let mut pieces = answer(200, "", "x");
        pieces.push(Vec::new());
        pieces
    })
    .await;
    let plan = Plan {
        egress: vec![rule_for("a.test", server.port)],
        roots: vec![server.cert.clone()],
        ..Plan::default()
    };
    let way = plan.open();
    for _ in 0..5 {
        assert!(way.get("a.test", server.port, "/", "").await.ends_with('x'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_without_its_record() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let plan = Plan {
        egress: vec![rule_for("a.test", server.port)],
        roots: vec![server.cert.clone()],
        ..Plan::default()
    };
    let way = plan.open();
    assert!(way.get("a.test", server.port, "/", "").await.ends_with('x'));
    way.sink.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    // Not even on the connection that is there already.
    assert!(way.get("a.test", server.port, "/", "").await.starts_with("HTTP/1.1 503 "));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_upstream_where_it_is_offered() {
    use http_body_util::{BodyExt as _, Full};
    use hyper::service::service_fn;
    let made = rcgen::generate_simple_self_signed(vec!["a.test".into()]).unwrap();
    let cert = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let said = format!(
                    "{:?} {} {:?}",
                    request.version(),
                    request.uri(),
                    request.headers().get("authorization")
                );
                let body = request.into_body().collect().await?.to_bytes();
                let answer = format!("{said} {}", String::from_utf8_lossy(&body));
                Ok::<_, hyper::Error>(hyper::Response::new(Full::new(bytes::Bytes::from(answer))))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(executor);
                let _ = builder.serve_connection(io, service).await;
            });
        }
    });
    let egress = vec![rule_for("a.test", port)];
    let way = Plan { egress, roots: vec![cert], ..Plan::default() }.open();
    for _ in 0..2 {
        let request = format!(
            "POST /p?q=1 HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: 4\r\n{GET_CLOSE}body"
        );
        let text = way.ask("a.test", port, &request).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let expected = format!("HTTP/2.0 https://a.test:{port}/p?q=1 None body");
        assert!(text.contains(&expected), "{text}");
    }
}
