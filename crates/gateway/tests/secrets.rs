//! Secrets: put in for the agent, never shown to it, never in clear, and no other credential.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use base64::Engine as _;
use common::ways::*;
use common::*;
use model::{Body, EgressRule, Injection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn header(name: &str) -> Injection {
    Injection::Header { name: name.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_injection_reaches_the_server_and_nothing_else() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "fine")).await;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("me:{KEY}"));
    for (inject, expected) in [
        (Injection::Bearer, format!("authorization: Bearer {KEY}\r\n")),
        (Injection::Basic { user: "me".into() }, format!("authorization: Basic {basic}\r\n")),
        (header("x-own"), format!("x-own: {KEY}\r\n")),
        (Injection::Query { name: "key".into() }, format!("GET /p?a=1&key={KEY} HTTP/1.1\r\n")),
    ] {
        let egress = vec![with_secret("a.test", server.port, inject)];
        let roots = vec![server.cert.clone()];
        let way = Plan { egress, roots, ..Plan::default() }.open();
        // With and without the placeholder that a program may insist on.
        for fields in [
            String::new(),
            format!("Authorization: Bearer {PLACEHOLDER}\r\nAccept-Encoding: gzip\r\n"),
            format!("X-Api-Key: {PLACEHOLDER}\r\nRange: bytes=0-9\r\n"),
        ] {
            let text = way.get("a.test", server.port, "/p?a=1", &fields).await;
            assert_eq!(parts(&text), (200, "fine".into()));
            let sent = server.requests().pop().unwrap();
            assert!(sent.contains(&expected), "{sent}");
            assert!(sent.contains("accept-encoding: identity\r\n"), "{sent}");
            let sent = sent.to_lowercase();
            assert!(
                !sent.contains(PLACEHOLDER) && !sent.contains("range") && !sent.contains("gzip")
            );
        }
        let intent = way.sink.wait_for("egress_intent").await;
        let Body::EgressIntent { secret, .. } = intent else { panic!() };
        assert_eq!(secret.as_deref(), Some("key1"));
        let records = way.sink.as_json();
        assert!(!records.contains(KEY) && !records.contains(&basic), "{records}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_credentials_and_misplaced_placeholders_are_refused_with_the_remedy() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "fine")).await;
    let plain = rule_for("a.test", server.port);
    let own = EgressRule { own_credentials: true, ..plain.clone() };
    let secret = with_secret("a.test", server.port, Injection::Bearer);
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("u:{PLACEHOLDER}"));
    let roots = || vec![server.cert.clone()];
    // (target, fields, does it pass: without anything, with own_credentials, with a secret)
    let cases: Vec<(&str, String, [bool; 3])> = vec![
        ("/", String::new(), [true, true, true]),
        ("/?x=1&keys=2", "X-Any: 1\r\n".into(), [true, true, true]),
        ("/", "Authorization: Bearer mine\r\n".into(), [false, true, false]),
        ("/", "Cookie: a=b\r\n".into(), [false, true, false]),
        ("/", "X-API-Key: mine\r\n".into(), [false, true, false]),
        ("/", "Private-Token: mine\r\n".into(), [false, true, false]),
        ("/", "Proxy-Authorization: Basic mine\r\n".into(), [false, true, false]),
        ("/?api_key=mine", String::new(), [false, true, false]),
        ("/?a=b&Access%5FToken=mine", String::new(), [false, true, false]),
        ("/?sig=mine", String::new(), [false, true, false]),
        ("/", format!("Authorization: Bearer {PLACEHOLDER}\r\n"), [false, false, true]),
        ("/", format!("Authorization: Basic {basic}\r\n"), [false, false, true]),
        ("/", format!("X-Any: {PLACEHOLDER}\r\n"), [false, false, false]),
        ("/?q=placeholder-not-a-key", String::new(), [false, false, false]),
        ("/?q=%70laceholder-not-a-key", String::new(), [false, false, false]),
        ("/placeholder-not-a-key", String::new(), [false, false, false]),
    ];
    for (nth, rule) in [plain, own, secret].into_iter().enumerate() {
        let way = Plan { egress: vec![rule], roots: roots(), ..Plan::default() }.open();
        for (target, fields, passes) in &cases {
            let (refused, reached) = (way.count("egress_refused"), server.requests().len());
            let text = way.get("a.test", server.port, target, fields).await;
            let expected = if passes[nth] { 200 } else { 403 };
            assert_eq!(parts(&text).0, expected, "{nth} {target} {fields}: {text}");
            let now = (way.count("egress_refused"), server.requests().len());
            let news = usize::from(passes[nth]);
            assert_eq!(now, (refused + 1 - news, reached + news), "{nth} {target} {fields}");
            if !passes[nth] {
                let helps = text.contains("write ") || text.contains("leave it out");
                assert!(text.contains("agents/tester.toml:7") && helps, "{text}");
            }
        }
        assert!(!way.sink.as_json().contains("mine"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_repeat_a_secret_are_masked_in_every_form() {
    let server = Server::start(Some("a.test"), |request| {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("user:{KEY}!"));
        let percent = KEY.replace('-', "%2d");
        if request.contains("/zip") {
            return answer(200, "content-encoding: gzip\r\n", KEY);
        }
        if request.contains("/twice") {
            let fields = "content-encoding: identity\r\ncontent-encoding: gzip\r\n";
            return answer(200, fields, KEY);
        }
        if request.contains("/transfer") {
            let head = "HTTP/1.1 200 X\r\ntransfer-encoding: gzip, chunked\r\n\r\n";
            return vec![format!("{head}3\r\nzip\r\n0\r\n\r\n").into_bytes()];
        }
        if request.contains("/name") {
            return answer(200, &format!("x-{KEY}: 1\r\nx-other: 1\r\n"), "named");
        }
        if request.contains("/trailer") {
            let head = "HTTP/1.1 200 X\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\n";
            let body = format!("3\r\nabc\r\n0\r\nx-t: {KEY}\r\n\r\n");
            return vec![format!("{head}{body}").into_bytes()];
        }
        if request.contains("/redirect") {
            return answer(302, &format!("location: /p?key={KEY}&x=1\r\n"), "");
        }
        let head =
            format!("HTTP/1.1 200 X\r\nx-echo: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut pieces = vec![head.into_bytes()];
        let body = format!("<{KEY}> {basic} {percent} end");
        for byte in body.bytes() {
            pieces.push(format!("1\r\n{}\r\n", char::from(byte)).into_bytes());
        }
        pieces.push(b"0\r\n\r\n".to_vec());
        pieces
    })
    .await;
    let egress = vec![with_secret("a.test", server.port, Injection::Bearer)];
    let way = Plan { egress, roots: vec![server.cert.clone()], ..Plan::default() }.open();
    let text = way.get("a.test", server.port, "/", "").await;
    let (status, body) = parts(&text);
    assert_eq!(status, 200);
    assert!(text.contains("x-echo: Bearer [secret masked]\r\n"), "{text}");
    assert!(body.starts_with("<[secret masked]> ") && body.ends_with(" end"), "{body}");
    assert_eq!(body.matches("[secret masked]").count(), 3, "{body}");
    assert!(!text.contains(KEY) && !text.contains(&KEY[..12]), "{text}");
    // base64 keeps its ends, which belong to the neighbours as well.
    let inner = base64::engine::general_purpose::STANDARD.encode(format!("user:{KEY}!"));
    assert!(!text.contains(&inner[8..20]), "{text}");
    let text = way.get("a.test", server.port, "/redirect", "").await;
    assert!(text.contains("location: /p?key=[secret masked]&x=1"), "{text}");
    for path in ["/zip", "/twice", "/transfer"] {
        let text = way.get("a.test", server.port, path, "").await;
        assert!(text.starts_with("HTTP/1.1 502 ") && !text.contains(KEY), "{path}: {text}");
    }
    let text = way.get("a.test", server.port, "/name", "").await;
    assert!(text.contains("x-other: 1\r\n") && !text.contains(KEY), "{text}");
    let text = way.get("a.test", server.port, "/trailer", "").await;
    assert!(text.contains("abc\r\n") && !text.contains("x-t") && !text.contains(KEY), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_serves_its_hosts_only_and_never_in_clear() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "fine")).await;
    let plain = Server::start(None, |_| answer(200, "", "fine")).await;
    let egress = vec![
        with_secret("a.test", server.port, Injection::Bearer),
        with_secret("b.test", plain.port, Injection::Bearer),
    ];
    let roots = || vec![server.cert.clone()];
    let secret_hosts = vec!["other.test"];
    let way =
        Plan { egress: egress.clone(), roots: roots(), secret_hosts, ..Plan::default() }.open();
    let text = way.get("a.test", server.port, "/", "").await;
    assert!(
        text.starts_with("HTTP/1.1 403 ") && text.contains("may not be used at a.test"),
        "{text}"
    );
    assert_eq!(server.connections(), 0);
    let absolute = format!(
        "GET http://b.test:{0}/ HTTP/1.1\r\nHost: b.test:{0}\r\nConnection: close\r\n\r\n",
        plain.port
    );
    // To this very machine plain HTTP is no network; to any other it is.
    for (address, status) in [("127.0.0.1", 200), ("10.0.0.1", 403)] {
        let plan = Plan {
            egress: egress.clone(),
            addresses: vec![address],
            secret_hosts: vec!["b.test"],
            ..Plan::default()
        };
        let way = plan.open();
        let text = raw(&way.door, absolute.as_bytes()).await;
        assert_eq!(parts(&text).0, status, "{text}");
    }
    // A secret that is not there at all.
    let mut missing = with_secret("a.test", server.port, Injection::Bearer);
    missing.secret.as_mut().unwrap().name = "none".into();
    let way = Plan { egress: vec![missing], roots: roots(), ..Plan::default() }.open();
    let text = way.get("a.test", server.port, "/", "").await;
    assert!(text.contains("nanoclaw secret set none"), "{text}");
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: bm90LWEtc2VjcmV0LWtleQ==\r\n\
                       Sec-WebSocket-Extensions: permessage-deflate\r\n";

async fn switching(
    way: &Way,
    port: u16,
) -> (String, tokio_rustls::client::TlsStream<tokio::net::UnixStream>) {
    let mut stream = way.tls("a.test", port).await;
    let request = format!("GET /ws HTTP/1.1\r\nHost: a.test:{port}\r\n{UPGRADE}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_passed_on_counted_and_cut_when_it_repeats_a_secret() {
    let server = Server::start(Some("a.test"), |_| {
        vec![b"HTTP/1.1 101 X\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n".to_vec()]
    })
    .await;
    let roots = || vec![server.cert.clone()];
    let opens = |rule| vec![EgressRule { websocket: true, ..rule }];
    let egress = opens(rule_for("a.test", server.port));
    let way = Plan { egress, roots: roots(), ..Plan::default() }.open();
    let (head, mut stream) = switching(&way, server.port).await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    let sent = server.requests()[0].to_lowercase();
    assert!(sent.contains("upgrade: websocket") && sent.contains("permessage-deflate"), "{sent}");
    stream.write_all(b"\x81\x05hello").await.unwrap();
    let mut back = [0; 7];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\x81\x05hello");
    drop(stream);
    match way.sink.wait_for("egress_result").await {
        Body::EgressResult { status, sent, received, .. } => {
            assert_eq!((status, sent, received), (Some(101), 7, 7));
        }
        other => panic!("{other:?}"),
    }
    let egress = opens(with_secret("a.test", server.port, Injection::Bearer));
    let way = Plan { egress, roots: roots(), ..Plan::default() }.open();
    let (_, mut stream) = switching(&way, server.port).await;
    let sent = server.requests()[1].clone();
    assert!(sent.contains(&format!("Bearer {KEY}")) && !sent.contains("deflate"), "{sent}");
    // Six bytes a frame.
    for piece in KEY.as_bytes().chunks(6) {
        let frame = [&[0x81, u8::try_from(piece.len()).unwrap()][..], piece].concat();
        if stream.write_all(&frame).await.is_err() {
            break;
        }
    }
    let text = read_all(&mut stream).await;
    assert!(!text.contains(&KEY[6..12]), "{text}");
    match way.sink.wait_for("egress_result").await {
        Body::EgressResult { error: Some(why), .. } => assert!(why.contains("secret"), "{why}"),
        other => panic!("{other:?}"),
    }
    // In the query it would stand in places where nothing is masked.
    let query = Injection::Query { name: "key".into() };
    let egress = opens(with_secret("a.test", server.port, query));
    let way = Plan { egress, roots: roots(), ..Plan::default() }.open();
    let (head, _) = switching(&way, server.port).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_without_websocket_opens_none_and_says_what_would() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "fine")).await;
    let rule = EgressRule { methods: vec!["GET".into()], ..rule_for("a.test", server.port) };
    let way = Plan { egress: vec![rule], roots: vec![server.cert.clone()], ..Plan::default() };
    let way = way.open();
    let (head, _) = switching(&way, server.port).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(server.requests().is_empty());
    match way.sink.wait_for("egress_refused").await {
        Body::EgressRefused { rule, reason, request: Some(line), .. } => {
            assert!(reason.contains("write websocket = true"), "{reason}");
            assert_eq!((rule.as_str(), line.path.as_str()), ("agents/tester.toml:7", "/ws"));
            assert!(line.websocket);
        }
        other => panic!("{other:?}"),
    }
    // The same request without the upgrade is what the rule permits.
    assert_eq!(parts(&way.get("a.test", server.port, "/ws", "").await).0, 200);
}
