//! Memory that one session's requests and answers may take, and that others never miss.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{AgentName, ModelApi, SessionId};
use nanoclaw_gateway::{Door, DoorGrant, Gateway, GatewayConfig, Roots, Sealer, Vault, bind_door};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

const ANSWER: &str = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;

fn doors(dir: &TempDir, port: u16, names: &[&str]) -> Vec<Door> {
    let mut config =
        GatewayConfig::new(Arc::new(MemorySink::default()), Vault::open(&dir.0).unwrap());
    config.roots = Roots::Only(vec![]);
    let gateway = Gateway::new(config);
    std::fs::create_dir_all(dir.0.join("doors")).unwrap();
    let open = |name: &&str| {
        let listener = bind_door(&dir.0.join(format!("doors/{name}.sock"))).unwrap();
        let grant = json!({
            "session": SessionId::parse(name).unwrap(), "agent": AgentName::parse("tester").unwrap(),
            "egress": [], "models": [http_model("m", ModelApi::OpenAi, port, None)],
            "default_model": "m", "placeholder": PLACEHOLDER,
        });
        let grant: DoorGrant = serde_json::from_value(grant).unwrap();
        gateway.open_door(grant, listener).unwrap()
    };
    names.iter().map(open).collect()
}

/// A request whose body is announced, sent in part and never ended.
async fn half_sent(door: &Door, announced: usize, sent: usize) -> UnixStream {
    let mut stream = UnixStream::connect(door.socket()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {announced}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b' '; 1 << 16];
    for _ in 0..sent / piece.len() {
        if stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_that_holds_all_it_may_is_told_so_and_another_goes_on() {
    let dir = TempDir::new();
    Sealer::open_or_create(&dir.0).unwrap();
    let server = FakeServer::start(vec![json_answer(200, "", ANSWER)]).await;
    let doors = doors(&dir, server.port, &["greedy", "other"]);
    let ask = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(half_sent(&doors[0], 30 << 20, 24 << 20).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Six bodies of 24 MiB do not fit; some were refused, and what was kept is at its limit.
    let big = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(24 << 20));
    let (status, text) = parts(&post(&doors[0], "/v1/chat/completions", "", &big).await);
    assert!(status == 503 && text.contains("this session holds"), "{status}: {text}");
    let (status, text) = parts(&post(&doors[1], "/v1/chat/completions", "", ask).await);
    assert_eq!(status, 200, "{text}");
    drop(held);
    let mut answer = String::new();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = post(&doors[0], "/v1/chat/completions", "", ask).await;
        if parts(&answer).0 == 200 {
            return;
        }
    }
    panic!("what was held did not come back: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_many_values_is_refused_before_it_is_a_tree() {
    let dir = TempDir::new();
    Sealer::open_or_create(&dir.0).unwrap();
    let doors = doors(&dir, 9, &["s1"]);
    let many = vec![r#"{"":0}"#; 70_000].join(",");
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":{{"a":[{many}]}}}}}}"#
    );
    let (status, text) = parts(&post(&doors[0], "/mcp", "", &body).await);
    assert!(status == 413 && text.contains("too many values"), "{status}: {text}");
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    assert_eq!(parts(&post(&doors[0], "/mcp", "", ping).await).0, 200);
}

/// The most memory this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_many_values_are_refused_before_they_are_a_tree() {
    let dir = TempDir::new();
    Sealer::open_or_create(&dir.0).unwrap();
    let server = FakeServer::start(vec![json_answer(200, "", ANSWER)]).await;
    let doors = doors(&dir, server.port, &["s1"]);
    // As a tree each of these takes about 400 MB, a hundred times its size.
    let many = vec![r#"{"":0}"#; 4_000_000 / 7].join(",");
    let body = format!(r#"{{"model":"m","stream":true,"stream_options":{{"a":[{many}]}}}}"#);
    let ask = || post(&doors[0], "/v1/chat/completions", "", &body);
    let answers = tokio::join!(ask(), ask(), ask(), ask());
    for answer in <[String; 4]>::from(answers) {
        let (status, text) = parts(&answer);
        assert!(status == 400 && text.contains("stream_options"), "{status}: {text}");
    }
    assert!(server.requests().is_empty());
    // The other tests of this file, in the same process, take less than half of that.
    assert!(peak_kib() < 768 * 1024, "{} KiB", peak_kib());
}
