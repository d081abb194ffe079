//! How much may go through a rule, who is asked, and connections that nobody looks into.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use common::*;
use model::{AskTerms, Body, Effect, EgressRule, RuleLimits, Sight};
use nanoclaw_gateway::{Answer, Approver, Question};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const CLOSE: &str = "Connection: close\r\n\r\n";

fn post(port: u16, fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.test:{port}\r\nConnection: close\r\n{fields}\r\n{body}")
}

fn sized(port: u16, bytes: usize) -> String {
    post(port, &format!("Content-Length: {bytes}\r\n"), &"x".repeat(bytes))
}

fn chunked(port: u16, bytes: usize) -> String {
    let body = format!("{bytes:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(bytes));
    post(port, "Transfer-Encoding: chunked\r\n", &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn size_and_rate_of_a_rule_are_kept() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let limits =
        RuleLimits { max_request: Some(10), max_per_minute: Some(4), ..Default::default() };
    let rule = EgressRule { limits, ..rule_for("a.test", server.port) };
    let roots = vec![server.cert.clone()];
    let way = Plan { egress: vec![rule], roots, ..Plan::default() }.open();
    let port = server.port;
    for (request, status) in [
        (sized(port, 10), 200),
        (sized(port, 11), 413),
        (chunked(port, 10), 200),
        (chunked(port, 11), 413),
        (sized(port, 1), 200),
        (sized(port, 1), 429),
    ] {
        let text = way.ask("a.test", port, &request).await;
        assert_eq!(parts(&text).0, status, "{request}: {text}");
        assert!(status == 200 || text.contains("agents/tester.toml:7"), "{text}");
    }
    assert_eq!((server.requests().len(), way.count("egress_refused")), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_day_s_upload_is_one_account_over_connections_and_restarts() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let limits = RuleLimits { max_upload_per_day: Some(100_000), ..Default::default() };
    let rule = EgressRule { limits, ..rule_for("a.test", server.port) };
    let dir = Arc::new(TempDir::new());
    let port = server.port;
    let plan = || Plan {
        egress: vec![rule.clone()],
        roots: vec![server.cert.clone()],
        dir: Some(dir.clone()),
        ..Plan::default()
    };
    let way = plan().open();
    let status =
        async |way: &Way, request: String| parts(&way.ask("a.test", port, &request).await).0;
    assert_eq!(status(&way, sized(port, 40_000)).await, 200);
    assert_eq!(status(&way, sized(port, 60_000)).await, 429);
    assert_eq!(status(&way, chunked(port, 20_000)).await, 200);
    // The first one's books are closed before the next one opens them.
    way.door.settle().await;
    let way = plan().open();
    assert_eq!(status(&way, sized(port, 40_000)).await, 429);
    // What was refused is not lost; targets and fields count as well as bodies.
    assert_eq!(status(&way, sized(port, 38_000)).await, 200);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test:{port}\r\n{CLOSE}", "x".repeat(3_000));
    assert_eq!(status(&way, long).await, 429);
    assert_eq!(status(&way, chunked(port, 40_000)).await, 429);
    assert_eq!(way.count("egress_refused"), 3);
    assert_eq!(server.requests().len(), 3);
}

/// Answers every question the same way and keeps them.
struct Person(fn() -> Option<Answer>, Mutex<Vec<Question>>);

impl Approver for Person {
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Answer) + Send>) {
        self.1.lock().unwrap().push(question);
        match (self.0)() {
            Some(said) => answer(said),
            // Takes the question away and never comes back.
            None => std::mem::forget(answer),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_human_decides_before_anything_leaves() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let ask = Some(AskTerms { by: "owner".into(), timeout_ms: 200 });
    let asking = EgressRule {
        id: "agents/tester.toml:9".into(),
        effect: Effect::Ask,
        methods: vec!["POST".into()],
        ask,
        ..rule_for("a.test", server.port)
    };
    let by = || "ada".to_owned();
    type Case = (fn() -> Option<Answer>, u16, &'static str);
    let people: [Case; 4] = [
        (|| Some(Answer::Allow { by: "ada".into() }), 200, "allow"),
        (|| Some(Answer::Deny { by: "ada".into() }), 403, "deny"),
        (|| Some(Answer::None), 403, "none"),
        (|| None, 403, "timeout"),
    ];
    for (person, status, decision) in people {
        let before = server.requests().len();
        let person = Arc::new(Person(person, Mutex::default()));
        let plan = Plan {
            egress: vec![asking.clone(), rule_for("a.test", server.port)],
            roots: vec![server.cert.clone()],
            approver: person.clone(),
            ..Plan::default()
        };
        let way = plan.open();
        let text = way.ask("a.test", server.port, &sized(server.port, 1)).await;
        assert_eq!(parts(&text).0, status, "{decision}: {text}");
        let question = person.1.lock().unwrap()[0].clone();
        let summary = format!("POST https://a.test:{}/", server.port);
        assert!(question.is_shown_by(&summary) && !question.is_shown_by(&summary[1..]));
        match &way.sink.bodies()[0] {
            Body::ApprovalAsked { shown_sha256, summary, .. } => {
                assert_eq!(shown_sha256.as_ref(), Some(&question.shown_sha256));
                assert!(question.is_shown_by(summary));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((question.rule.as_str(), &question.summary), ("agents/tester.toml:9", &summary));
        let kinds = way.sink.kinds();
        assert_eq!(&kinds[..2], ["approval_asked", "approval_decided"]);
        assert_eq!(kinds[2], if status == 200 { "egress_intent" } else { "egress_refused" });
        match &way.sink.bodies()[1] {
            Body::ApprovalDecided { approval, decision: said, by: who, shown_sha256 } => {
                assert_eq!((approval, said.as_str()), (&question.id, decision));
                let named = matches!(decision, "allow" | "deny");
                assert_eq!(*who, if named { by() } else { String::new() });
                // Nobody says of a text that it was shown if nobody answered.
                assert_eq!(*shown_sha256, named.then(|| question.shown_sha256.clone()));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(server.requests().len() - before, usize::from(status == 200));
        // Only what the rule names is asked for.
        assert!(way.get("a.test", server.port, "/", "").await.ends_with('x'));
        assert_eq!(person.1.lock().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_whole_and_no_part_of_it_reads_like_another() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let port = server.port;
    let person = Arc::new(Person(|| Some(Answer::Deny { by: "ada".into() }), Mutex::default()));
    let rule =
        EgressRule { effect: Effect::Ask, websocket: true, ..rule_for("a.test", server.port) };
    let approver: Arc<dyn Approver> = person.clone();
    let roots = vec![server.cert.clone()];
    let way = Plan { egress: vec![rule], roots, approver, ..Plan::default() }.open();
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let ask = async |target: &str, fields: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a.test:{port}\r\n{fields}\r\n");
        let text = way.ask("a.test", port, &head).await;
        let question = person.1.lock().unwrap().pop();
        (question.map(|q| q.summary), text)
    };
    let closes = "Connection: close\r\n";
    let base = format!("GET https://a.test:{port}");
    // What weighs most stands first, and a long path hides nothing behind it.
    let long = format!("/items/{}", "a".repeat(700));
    let (asked, _) = ask(&format!("{long}?delete=all&confirm=1"), upgrade).await;
    let blind = "a WebSocket (what passes through it is not looked into): ";
    let wanted = format!("{blind}{base}{long} with parameters \"delete\", \"confirm\"");
    assert_eq!(asked, Some(wanted));
    // Names are shown as they are sent, in marks that they cannot close.
    let forged = "%20%20%20Agent%20a%20asks%3A%20GET%20x";
    let (asked, _) = ask(&format!("/v1?{forged}=1&a\",b=2&id"), closes).await;
    let wanted = format!("{base}/v1 with parameters \"{forged}\", \"a%22,b\", \"id\"");
    assert_eq!(asked, Some(wanted));
    // All of them, or nobody is asked.
    let many = |n: usize| (0..n).map(|i| format!("p{i}=1")).collect::<Vec<_>>().join("&");
    let (asked, _) = ask(&format!("/many?{}", many(90)), closes).await;
    assert_eq!(asked.map(|q| q.matches('"').count()), Some(180));
    for target in [format!("/many?{}", many(300)), format!("/{}", "a".repeat(1_000))] {
        let (asked, text) = ask(&target, closes).await;
        assert_eq!((asked, parts(&text).0), (None, 403), "{text}");
        assert!(text.contains("could not be shown all of it"), "{text}");
    }
    assert_eq!(server.requests().len(), 0);
    // A record says how many names it leaves out.
    let refused = way.sink.bodies().into_iter().filter_map(|body| match body {
        Body::EgressRefused { request: Some(line), .. } => line.query_keys.last().cloned(),
        _ => None,
    });
    assert!(refused.collect::<Vec<_>>().contains(&"… and 26 more".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_on_question_after_question_is_asked_about_no_more() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "x")).await;
    let person = Arc::new(Person(|| None, Mutex::default()));
    let rule = EgressRule { effect: Effect::Ask, ..rule_for("a.test", server.port) };
    let approver: Arc<dyn Approver> = person.clone();
    let roots = vec![server.cert.clone()];
    let way = Plan { egress: vec![rule], roots, approver, ..Plan::default() }.open();
    for n in 1..=6 {
        let mut stream = way.tls("a.test", server.port).await;
        stream.write_all(sized(server.port, 1).as_bytes()).await.unwrap();
        until(|| person.1.lock().unwrap().len() == n).await;
        drop(stream);
        until(|| way.count("approval_decided") == n).await;
    }
    let text = way.ask("a.test", server.port, &sized(server.port, 1)).await;
    assert_eq!(parts(&text).0, 429, "{text}");
    assert!(text.contains("taken back within a minute"), "{text}");
    assert_eq!((person.1.lock().unwrap().len(), server.requests().len()), (6, 0));
}

async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it never came");
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_admits_tls_to_its_host_and_nothing_else() {
    let server = Server::start(Some("a.test"), |_| answer(200, "", "unseen")).await;
    let rule = EgressRule { sight: Sight::Tunnel, ..rule_for("a.test", server.port) };
    let way = Plan { egress: vec![rule], ..Plan::default() }.open();
    let stream = way.connect("a.test", server.port).await;
    // The server's own certificate, not ours.
    let mut stream = client_tls(stream, "a.test", &server.cert, true).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: mine\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buf = vec![0; 100];
    let n = stream.read(&mut buf).await.unwrap();
    assert!(buf[..n].ends_with(b"unseen"));
    drop(stream);
    let stream = way.connect("a.test", server.port).await;
    assert!(client_tls(stream, "b.test", &server.cert, true).await.is_err());
    let stream = way.connect("a.test", server.port).await;
    assert!(client_tls(stream, "a.test", &server.cert, false).await.is_err());
    let mut stream = way.connect("a.test", server.port).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
    assert_eq!((server.requests().len(), way.count("egress_refused")), (1, 3));
    for body in way.sink.bodies() {
        if let Body::EgressIntent { request, .. } = body {
            assert_eq!(request, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_tcp_is_permitted_by_rule_and_held_to_its_budget() {
    let port = echo().await;
    let limits = RuleLimits { max_upload_per_day: Some(20), ..Default::default() };
    let rule = EgressRule { sight: Sight::Tcp, limits, ..rule_for("a.test", port) };
    let way = Plan { egress: vec![rule], ..Plan::default() }.open();
    let mut stream = way.connect("a.test", port).await;
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"SSH-2.0-x\r\n");
    stream.write_all(b"more than the rest").await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
    match way.sink.wait_for("egress_result").await {
        Body::EgressResult { sent, error: Some(why), .. } => {
            assert!(sent == 11 && why.contains("20 bytes"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_given_by_the_rules_and_refusals_are_on_record_once() {
    let deny = EgressRule { effect: Effect::Deny, port: None, ..rule_for("bad.a.test", 1) };
    let wide = model::HostPattern::parse("*.a.test").unwrap();
    let wide = EgressRule { host: wide, ..rule_for("a.test", 22) };
    let way = Plan { egress: vec![rule_for("a.test", 443), wide, deny], ..Plan::default() }.open();
    let ask = async |name: &str| {
        let request =
            format!("GET /.nanoclaw/name/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        parts(&raw(&way.door, request.as_bytes()).await).0
    };
    for (name, status) in [
        ("a.test", 204),
        ("A.TEST.", 204),
        ("x.a.test", 204),
        ("bad.a.test", 403),
        ("b.test", 403),
        ("_srv.a.test", 403),
        ("127.0.0.1", 403),
        ("b.test", 403),
        ("B.test", 403),
    ] {
        assert_eq!(ask(name).await, status, "{name}");
    }
    assert_eq!(way.count("egress_refused"), 4);
    for body in way.sink.bodies() {
        let Body::EgressRefused { rule, .. } = body else { panic!("{body:?}") };
        assert_eq!(rule, "dns");
    }
    for n in 0..400 {
        assert_eq!(ask(&format!("n{n}.made-up.test")).await, 403);
    }
    assert_eq!((way.count("egress_refused"), way.door.counts().refused), (256, 406));
}
