//! A secret stays hidden wherever its server gives it back: by another rule of the same agent, as
//! an answer of a model, in a page.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::ways::*;
use common::*;
use model::{Body, EgressRule, HostPattern, Injection, ModelApi, PathPattern, SecretUse};
use nanoclaw_gateway::{Sealer, SecretBytes};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const OTHER: &str = "second-value-not-real";

fn at(id: &str, path: &str, rule: EgressRule) -> EgressRule {
    EgressRule { id: id.into(), paths: vec![PathPattern::parse(path).unwrap()], ..rule }
}

/// `/store` of `a.test` and all of `*.b.test` are asked with a secret each; the rest without.
fn rules(port: u16) -> Vec<EgressRule> {
    let secret = Some(SecretUse { name: "key2".into(), inject: Injection::Bearer });
    let below = HostPattern::parse("*.b.test").unwrap();
    vec![
        at("store", "/store", with_secret("a.test", port, Injection::Bearer)),
        EgressRule { websocket: true, ..at("read", "/read/**", rule_for("a.test", port)) },
        EgressRule { id: "b".into(), host: below, secret, ..rule_for("x.b.test", port) },
        EgressRule { id: "c".into(), ..rule_for("c.test", port) },
    ]
}

/// A way with both secrets; `key2` is sealed for `api.b.test`.
fn lay(port: u16) -> Way {
    let way = Plan { egress: rules(port), fetches: true, ..Plan::default() }.open();
    let sealer = Sealer::open_or_create(&way.dir.0).unwrap();
    sealer.set("key2", SecretBytes::new(OTHER.into()), &["api.b.test".into()], 1).unwrap();
    way
}

async fn get(way: &Way, host: &str, port: u16, path: &str, fields: &str) -> String {
    let request = format!(
        "GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: \
         close\r\n{fields}\r\n"
    );
    raw(&way.door, request.as_bytes()).await
}

/// Remembers every key it was ever asked with, and tells them to whoever reads.
async fn telltale() -> Server {
    Server::start(None, |request| {
        if request.contains("/read/socket") {
            let head = "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            return vec![head.into()];
        }
        let (first, last) = KEY.split_at(6);
        let fields = if request.contains("/read/zip") {
            "content-encoding: identity\r\ncontent-encoding: X-GZip\r\n".to_owned()
        } else {
            format!("x-echo: {KEY}\r\n")
        };
        let escaped = KEY.replace('k', "\\u006B");
        answer(200, &fields, &format!("{KEY} {OTHER} {escaped} {first}<b>{last}</b>"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_given_back_by_another_rule_is_masked() {
    let server = telltale().await;
    let way = lay(server.port);
    let text = get(&way, "a.test", server.port, "/store", "").await;
    assert!(parts(&text).1.starts_with("[secret masked] [secret masked] [secret masked] "));
    assert!(server.requests()[0].contains(KEY));
    // The rule for reading has no secret, and its answer is looked through like the other's.
    let fields = "Accept-Encoding: gzip\r\nRange: bytes=0-9\r\n";
    let text = get(&way, "a.test", server.port, "/read/1", fields).await;
    let sent = server.requests()[1].to_lowercase();
    assert!(!sent.contains(KEY) && !sent.contains("range") && !sent.contains("gzip"), "{sent}");
    assert!(text.contains("x-echo: [secret masked]\r\n"), "{text}");
    assert!(!text.contains(KEY) && !text.contains(OTHER) && !text.contains("\\u006B"), "{text}");
    let text = get(&way, "a.test", server.port, "/read/zip", "").await;
    assert!(text.starts_with("HTTP/1.1 502 ") && !text.contains(KEY), "{text}");
    // What was used elsewhere is looked for wherever anything is.
    let text = get(&way, "api.b.test", server.port, "/", "").await;
    assert!(!text.contains(OTHER) && !text.contains(KEY), "{text}");
    // Nothing is used at this host: nothing is looked for, and the agent gets what it asked for.
    let text = get(&way, "c.test", server.port, "/", fields).await;
    assert!(text.contains("content-length: ") && text.contains("x-echo: "), "{text}");
    let sent = server.requests().pop().unwrap().to_lowercase();
    assert!(sent.contains("range: bytes=0-9") && sent.contains("accept-encoding: gzip"), "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_without_a_secret_is_cut_as_well() {
    let server = telltale().await;
    let way = lay(server.port);
    let mut stream = tokio::net::UnixStream::connect(way.door.socket()).await.unwrap();
    let port = server.port;
    let request = format!(
        "GET http://a.test:{port}/read/socket HTTP/1.1\r\nHost: a.test:{port}\r\nConnection: \
         Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    // The server sends back what it gets.
    let said = format!("x{KEY}x");
    let head = [0x81, u8::try_from(said.len()).unwrap()];
    stream.write_all(&[&head[..], said.as_bytes()].concat()).await.unwrap();
    let text = read_all(&mut stream).await;
    assert!(!text.contains(KEY), "{text}");
    match way.sink.wait_for("egress_result").await {
        Body::EgressResult { error: Some(why), .. } => assert!(why.contains("secret"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_for_closes_its_host_and_no_other() {
    let server = telltale().await;
    let way = lay(server.port);
    std::fs::write(way.dir.0.join("vault/key1.sealed"), "damaged").unwrap();
    let text = get(&way, "a.test", server.port, "/read/1", "").await;
    assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("cannot be masked"), "{text}");
    assert!(server.requests().is_empty());
    assert_eq!(parts(&get(&way, "api.b.test", server.port, "/", "").await).0, 200);
    assert_eq!(parts(&get(&way, "c.test", server.port, "/", "").await).0, 200);
    // One that was never set is nowhere.
    std::fs::remove_file(way.dir.0.join("vault/key1.sealed")).unwrap();
    assert_eq!(parts(&get(&way, "a.test", server.port, "/read/1", "").await).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_masked_wherever_they_come_from_and_after_their_markup_is_gone() {
    let server = Server::start(None, |_| {
        let (first, last) = KEY.split_at(6);
        let fields = "content-type: text/html\r\n";
        answer(200, fields, &format!("<p>{KEY} {first}<b>{last}</b> te&#115;t{}", &KEY[4..]))
    })
    .await;
    let way = lay(server.port);
    for host in ["a.test", "c.test"] {
        let url = format!("http://{host}:{}/read/1", server.port);
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params":
            {"name": "web_fetch", "arguments": {"url": url}}});
        let more = "accept: application/json, text/event-stream\r\n";
        let (status, body) = parts(&post(&way.door, "/mcp", more, &call.to_string()).await);
        let answer: Value = serde_json::from_str(&body).expect(&body);
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert_eq!(status, 200);
        let mask = "[secret masked]";
        assert!(text.contains(&format!("]\n{mask} {mask} {mask}\n[end")), "{host}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_shows_no_secret_of_a_rule() {
    const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let said = |text: &str| {
        let answer = json!({"id": "x", "object": "chat.completion", "choices":
            [{"index": 0, "message": {"role": "assistant", "content": text}}]});
        json_answer(200, "", &answer.to_string())
    };
    let error = json_answer(400, "", &json!({"error": {"message": OTHER}}).to_string());
    let event = format!("data: {{\"choices\":[{{\"x\":\"{OTHER}\"}}]}}\n\n");
    let server =
        FakeServer::start(vec![said(&format!("{KEY} {OTHER}")), error, sse_answer(&[&event])])
            .await;
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, Some("key1"))];
    let secret = Some(SecretUse { name: "key2".into(), inject: Injection::Bearer });
    let egress = vec![EgressRule { secret, ..rule_for("a.test", 443) }];
    let rig = RigPlan { models, egress, ..RigPlan::default() }.build();
    let sealer = Sealer::open_or_create(&rig.dir.0).unwrap();
    sealer.set("key2", SecretBytes::new(OTHER.into()), &["a.test".into()], 1).unwrap();
    for status in [200, 400, 200] {
        let answer = post(&rig.door, "/v1/chat/completions", "", BODY).await;
        assert_eq!(parts(&answer).0, status, "{answer}");
        assert!(!answer.contains(OTHER) && !answer.contains(KEY), "{answer}");
        assert!(answer.contains("[secret masked]"), "{answer}");
    }
}
