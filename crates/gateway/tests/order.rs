//! Nothing is looked up before it is on record. Below a `*.suffix` an agent chooses the name, and
//! a name that is looked up reaches whoever answers for the suffix: it is a message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use model::{AskTerms, Body, Effect, EgressRule, HostPattern, RuleLimits, Sight};
use nanoclaw_gateway::{Answer, Approver, Question, Resolver, Resolving};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Nothing listens there; whatever gets so far has been looked up.
const PORT: u16 = 9;
/// Long enough for a lookup that should not be.
const A_WHILE: Duration = Duration::from_millis(80);

/// Keeps every name it is asked for.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Asked {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Resolver for Asked {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        self.0.lock().unwrap().push(host.to_owned());
        Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) })
    }
}

/// A way to make the gateway look a name up: what the rule sees, and what is sent.
type Knock = (&'static str, Sight, fn(&str) -> String);

fn inside(host: &str) -> String {
    format!(
        "CONNECT {host}:{PORT} HTTP/1.1\r\nHost: {host}:{PORT}\r\n\r\n\
         GET /p HTTP/1.1\r\nHost: {host}:{PORT}\r\n\r\n"
    )
}

fn absolute(host: &str) -> String {
    format!("GET http://{host}:{PORT}/p HTTP/1.1\r\nHost: {host}:{PORT}\r\n\r\n")
}

fn connection(host: &str) -> String {
    format!("CONNECT {host}:{PORT} HTTP/1.1\r\nHost: {host}:{PORT}\r\n\r\n")
}

fn fetch(host: &str) -> String {
    let url = format!("http://{host}:{PORT}/p");
    let body = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "web_fetch", "arguments": {"url": url}}})
    .to_string();
    let accept = "Accept: application/json, text/event-stream\r\nContent-Type: application/json";
    let length = body.len();
    format!("POST /mcp HTTP/1.1\r\nHost: x\r\n{accept}\r\nContent-Length: {length}\r\n\r\n{body}")
}

const KNOCKS: [Knock; 5] = [
    ("a request inside a connection", Sight::Intercept, inside),
    ("a request in absolute form", Sight::Intercept, absolute),
    ("a tunnel", Sight::Tunnel, connection),
    ("raw TCP", Sight::Tcp, connection),
    ("web_fetch", Sight::Intercept, fetch),
];

fn zone(sight: Sight) -> EgressRule {
    let host = HostPattern::parse("*.zone.test").unwrap();
    EgressRule { private: true, sight, ..EgressRule::allow("agents/tester.toml:7", host, PORT) }
}

fn laid(rule: EgressRule, approver: Arc<dyn Approver>) -> (Way, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    let resolver: Option<Arc<dyn Resolver>> = Some(asked.clone());
    let plan = Plan { egress: vec![rule], resolver, approver, fetches: true, ..Plan::default() };
    (plan.open(), asked)
}

/// Sends it and reads until the answers hold one of `words`.
async fn knock(way: &Way, text: &str, words: &[&str]) -> String {
    let mut stream = UnixStream::connect(way.door.socket()).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let (mut said, mut piece) = (String::new(), vec![0; 4_096]);
    let reading = async {
        while !words.iter().any(|w| said.contains(w)) {
            match stream.read(&mut piece).await {
                Ok(n @ 1..) => said.push_str(&String::from_utf8_lossy(&piece[..n])),
                _ => return,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer");
    said
}

async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_looked_up_before_its_intent_is_durable() {
    for (what, sight, text) in KNOCKS {
        let (way, asked) = laid(zone(sight), Arc::new(nanoclaw_gateway::NobodyApproves));
        way.sink.holding.store(true, Ordering::SeqCst);
        let host = "words-that-leave.zone.test";
        let mut stream = UnixStream::connect(way.door.socket()).await.unwrap();
        stream.write_all(text(host).as_bytes()).await.unwrap();
        let intended = || {
            let is_it = |b: &Body| matches!(b, Body::EgressIntent { host: h, .. } if h == host);
            way.sink.bodies().iter().any(is_it)
        };
        // The call of a host tool has a record of its own, before.
        until(|| {
            let held = std::mem::take(&mut *way.sink.held.lock().unwrap());
            for (index, done) in held {
                match intended() {
                    true => way.sink.held.lock().unwrap().push((index, done)),
                    false => done(Ok(index)),
                }
            }
            intended()
        })
        .await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(asked.names(), [""; 0], "{what}: looked up before its record was durable");
        way.sink.release();
        until(|| !asked.names().is_empty()).await;
        assert_eq!(asked.names(), [host], "{what}");
        assert!(way.sink.kinds().contains(&"egress_intent"), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_looked_up_whose_record_cannot_be_written() {
    for (what, sight, text) in KNOCKS {
        let (way, asked) = laid(zone(sight), Arc::new(nanoclaw_gateway::NobodyApproves));
        way.sink.broken.store(true, Ordering::SeqCst);
        let said = knock(&way, &text("words.zone.test"), &["no space left"]).await;
        assert!(said.contains("no space left"), "{what}: {said}");
        assert_eq!(asked.names(), [""; 0], "{what}");
    }
}

/// Says no, after a while, and keeps how many names had been looked up by then.
struct Refuses(Arc<Asked>, Mutex<Vec<usize>>);

impl Approver for Refuses {
    fn ask(&self, _question: Question, answer: Box<dyn FnOnce(Answer) + Send>) {
        std::thread::sleep(A_WHILE);
        self.1.lock().unwrap().push(self.0.names().len());
        answer(Answer::Deny { by: "ada".into() });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_looked_up_that_a_human_did_not_permit() {
    for (what, sight, text) in KNOCKS {
        let asked = Arc::new(Asked::default());
        let person = Arc::new(Refuses(asked.clone(), Mutex::default()));
        let ask = Some(AskTerms { by: "owner".into(), timeout_ms: 5_000 });
        let rule = EgressRule { effect: Effect::Ask, ask, ..zone(sight) };
        let plan = Plan {
            egress: vec![rule],
            resolver: Some(asked.clone()),
            approver: person.clone(),
            fetches: true,
            ..Plan::default()
        };
        let way = plan.open();
        knock(&way, &text("words.zone.test"), &["nanoclaw refused"]).await;
        assert_eq!(*person.1.lock().unwrap(), [0], "{what}: looked up before the answer");
        assert_eq!(asked.names(), [""; 0], "{what}");
        assert_eq!(way.count("egress_intent"), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_s_rate_counts_the_names_that_are_looked_up() {
    for (what, sight, text) in KNOCKS {
        let limits = RuleLimits { max_per_minute: Some(2), ..RuleLimits::default() };
        let rule = EgressRule { limits, ..zone(sight) };
        let (way, asked) = laid(rule, Arc::new(nanoclaw_gateway::NobodyApproves));
        for n in 0..5 {
            knock(&way, &text(&format!("part-{n}.zone.test")), &["nanoclaw refused"]).await;
        }
        assert_eq!(asked.names(), ["part-0.zone.test", "part-1.zone.test"], "{what}");
        assert_eq!(way.count("egress_intent"), 2, "{what}");
        let over = way.sink.bodies().into_iter().filter(
            |b| matches!(b, Body::EgressRefused { reason, .. } if reason.contains("in a minute")),
        );
        assert_eq!(over.count(), 3, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_on_record_whole_and_one_that_is_too_long_goes_nowhere() {
    let (way, asked) = laid(zone(Sight::Tcp), Arc::new(nanoclaw_gateway::NobodyApproves));
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.zone.test", "b".repeat(51));
    assert_eq!(longest.len(), 253);
    knock(&way, &connection(&longest), &["nanoclaw refused"]).await;
    assert_eq!(asked.names(), [longest.clone()]);
    let Body::EgressIntent { host, .. } = way.sink.bodies().swap_remove(0) else { panic!() };
    assert_eq!(host, longest);
    for over in [format!("b{longest}"), format!("{label}b.zone.test")] {
        knock(&way, &connection(&over), &["nanoclaw refused"]).await;
    }
    assert_eq!((asked.names().len(), way.count("egress_intent")), (1, 1));
}
