//! The model path, from a door to a model server on a real socket and back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, Durability, ModelApi};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const ANTHROPIC_JSON: &str = r#"{"type":"message","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":11,"output_tokens":4}}"#;
const OPENAI_JSON: &str = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;
const ASK: &str = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}]}"#;

async fn rig_with(answers: Vec<Canned>, api: ModelApi) -> (Rig, FakeServer) {
    let server = FakeServer::start(answers).await;
    let models = vec![http_model("m", api, server.port, Some("key1"))];
    (RigPlan { models, ..RigPlan::default() }.build(), server)
}

fn path_of(api: ModelApi) -> &'static str {
    if api == ModelApi::Anthropic { "/v1/messages" } else { "/v1/chat/completions" }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_injected_and_every_credential_of_the_agent_stays_behind() {
    for (api, body, field) in [
        (ModelApi::Anthropic, ANTHROPIC_JSON, format!("x-api-key: {KEY}\r\n")),
        (ModelApi::OpenAi, OPENAI_JSON, format!("authorization: Bearer {KEY}\r\n")),
    ] {
        let (rig, server) = rig_with(vec![json_answer(200, "", body)], api).await;
        let fields = format!(
            "x-api-key: {PLACEHOLDER}\r\nauthorization: Bearer {PLACEHOLDER}\r\nx-goog-api-key: {PLACEHOLDER}\r\ncookie: a={PLACEHOLDER}\r\nproxy-authorization: Basic {PLACEHOLDER}\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: b1\r\nopenai-beta: b2\r\nx-other: {PLACEHOLDER}\r\naccept-encoding: gzip\r\n"
        );
        let answer =
            post(&rig.door, &format!("{}?key={PLACEHOLDER}", path_of(api)), &fields, ASK).await;
        assert_eq!(parts(&answer), (200, body.to_owned()));
        let sent = &server.requests()[0];
        assert!(sent.contains(&field), "{sent}");
        assert!(!sent.contains(PLACEHOLDER) && !sent.contains("accept-encoding"), "{sent}");
        assert!(sent.contains("anthropic-version: 2023-06-01") && sent.contains("openai-beta: b2"));
        assert!(sent.contains(r#"{"model":"provider-model-1","max_tokens":9"#), "{sent}");
        assert_eq!(rig.sink.kinds(), ["secret_used", "model_request", "model_response"]);
        let records = rig.sink.records.lock().unwrap().clone();
        assert_eq!(records[1].1, Durability::Durable);
        let json = rig.sink.as_json();
        assert!(!json.contains(KEY) && !json.contains(PLACEHOLDER));
        assert!(rig.door.counts().tokens_in > 0 && rig.door.counts().bytes_up > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_through_piece_by_piece_with_their_usage() {
    let anthropic: &[&str] = &[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":21,\"output_tokens\":1}}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"usa",
        "ge\":{\"output_tokens\":17}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ];
    let openai: &[&str] = &[
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":21,\"completion_tokens\":17}}\n\ndata: [DONE]\n\n",
    ];
    for (api, pieces) in [(ModelApi::Anthropic, anthropic), (ModelApi::OpenAi, openai)] {
        let (rig, _server) = rig_with(vec![sse_answer(pieces)], api).await;
        let body = ASK.replace("\"max_tokens\":9", "\"stream\":true");
        let answer = post(&rig.door, path_of(api), "", &body).await;
        assert_eq!(parts(&answer), (200, pieces.concat()));
        match rig.sink.wait_for("model_response").await {
            Body::ModelResponse { input_tokens, output_tokens, status, error, bytes, .. } => {
                assert_eq!((input_tokens, output_tokens, status, error), (21, 17, 200, None));
                assert_eq!(bytes as usize, pieces.concat().len());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_does_not_wait_for_the_last() {
    // The server sends one event, and the rest only after the test has seen the first.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buf = [0; 4096];
        let _ = stream.read(&mut buf).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}9\r\ndata: 1\n\n\r\n").as_bytes()).await.unwrap();
        wait.await.unwrap();
        stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.unwrap();
    });
    let models = vec![http_model("m", ModelApi::OpenAi, port, None)];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{ASK}",
        ASK.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("data: 1") {
        let mut buf = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buf));
        let n = read.await.expect("the first event").unwrap();
        assert!(n > 0, "ended early: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    go.send(()).unwrap();
    assert!(read_all(&mut stream).await.contains("data: 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_and_faults_are_ridden_out_and_told_when_they_stay() {
    let limited = json_answer(429, "retry-after: 0.2\r\n", r#"{"error":{"message":"slow down"}}"#);
    let ok = json_answer(200, "", ANTHROPIC_JSON);
    let (rig, server) = rig_with(vec![limited, ok], ModelApi::Anthropic).await;
    let started = Instant::now();
    let (status, _) = parts(&post(&rig.door, "/v1/messages", "", ASK).await);
    assert_eq!((status, server.requests().len()), (200, 2));
    assert!(started.elapsed() >= Duration::from_millis(200), "Retry-After was not honoured");

    let down = json_answer(500, "", r#"{"error":{"message":"broken inside"}}"#);
    let (rig, server) = rig_with(vec![down], ModelApi::OpenAi).await;
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!((status, server.requests().len()), (500, 3));
    assert!(body.contains("broken inside") && body.contains("3 attempts"), "{body}");
    assert!(body.starts_with("{\"error\":{"), "{body}");

    let patient = json_answer(429, "retry-after: 3600\r\n", "{}");
    let (rig, server) = rig_with(vec![patient], ModelApi::Anthropic).await;
    let (status, _) = parts(&post(&rig.door, "/v1/messages", "", ASK).await);
    assert_eq!((status, server.requests().len()), (429, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_a_dead_server_and_nonsense_are_told_in_the_agent_s_own_format() {
    let refused = json_answer(401, "", &format!(r#"{{"error":{{"message":"bad key {KEY}"}}}}"#));
    let (rig, server) = rig_with(vec![refused], ModelApi::Anthropic).await;
    let (status, body) = parts(&post(&rig.door, "/v1/messages", "", ASK).await);
    assert_eq!((status, server.requests().len()), (401, 1));
    assert!(body.contains("the key named key1 was refused by 127.0.0.1"), "{body}");
    assert!(body.contains("nanoclaw secret set key1") && body.contains("authentication_error"));
    assert!(!body.contains(KEY) && !rig.sink.as_json().contains(KEY));

    let html = Canned(vec![
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>".to_vec(),
    ]);
    let other = json_answer(200, "", r#"{"hello":"world"}"#);
    let not_sse = Canned(vec![b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\n<html>\n\n\n".to_vec()]);
    let redirect = Canned(vec![
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_vec(),
    ]);
    let garbage = Canned(vec![b"\x00\x01\x02 not http at all\r\n\r\n".to_vec(), vec![]]);
    for nonsense in [html, other, not_sse, redirect, garbage] {
        let (rig, _server) = rig_with(vec![nonsense], ModelApi::OpenAi).await;
        let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("base_url"), "{body}");
        match rig.sink.wait_for("model_response").await {
            Body::ModelResponse { error: Some(_), .. } => {}
            other => panic!("{other:?}"),
        }
    }

    let models = vec![http_model("m", ModelApi::OpenAi, 1, None)];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!(status, 502);
    assert!(body.contains("cannot be reached") && body.contains("check that its server runs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_ends_with_an_error_event() {
    let mut broken = sse_answer(&["data: {\"choices\":[]}\n\n"]);
    *broken.0.last_mut().unwrap() = vec![]; // no last chunk: the connection just ends
    let (rig, _server) = rig_with(vec![broken], ModelApi::OpenAi).await;
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!(status, 200);
    assert!(body.contains("data: {\"error\":") && body.contains("incomplete"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_echoed_is_masked_even_when_cut_in_two() {
    let (a, b) = KEY.split_at(7);
    let first = format!("data: {{\"x\":\"{a}");
    let second = format!("{b}\"}}\n\ndata: {KEY}\n\n");
    let (rig, _server) = rig_with(vec![sse_answer(&[&first, &second])], ModelApi::OpenAi).await;
    let answer = post(&rig.door, "/v1/chat/completions", "", ASK).await;
    assert!(!answer.contains(KEY), "{answer}");
    assert_eq!(parts(&answer).1, "data: {\"x\":\"[secret masked]\"}\n\ndata: [secret masked]\n\n");

    let more = format!("x-request-id: {KEY}\r\n");
    let json = json_answer(200, &more, &OPENAI_JSON.replace("hi", KEY));
    let (rig, _server) = rig_with(vec![json], ModelApi::OpenAi).await;
    let answer = post(&rig.door, "/v1/chat/completions", "", ASK).await;
    assert!(!answer.contains(KEY) && answer.contains("[secret masked]"), "{answer}");
    let bad = json_answer(400, "", &format!(r#"{{"error":{{"message":"no {KEY}"}}}}"#));
    let (rig, _server) = rig_with(vec![bad], ModelApi::OpenAi).await;
    let answer = post(&rig.door, "/v1/chat/completions", "", ASK).await;
    assert!(!answer.contains(KEY) && parts(&answer).0 == 400, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_when_the_record_cannot_be_written() {
    let (rig, server) = rig_with(vec![json_answer(200, "", OPENAI_JSON)], ModelApi::OpenAi).await;
    rig.sink.broken.store(true, Ordering::SeqCst);
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!(status, 503);
    assert!(body.contains("nothing was sent") && body.contains("no space left"), "{body}");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.bytes.load(Ordering::SeqCst), 0);
    rig.sink.broken.store(false, Ordering::SeqCst);
    assert_eq!(parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_used_only_at_its_own_hosts_and_its_absence_is_explained() {
    let server = FakeServer::start(vec![json_answer(200, "", OPENAI_JSON)]).await;
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, Some("key1"))];
    let secret_hosts = vec!["api.example.com".to_owned()];
    let rig = RigPlan { models, secret_hosts, ..RigPlan::default() }.build();
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!(status, 403);
    assert!(body.contains("api.example.com only"), "{body}");
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, Some("absent"))];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert_eq!(status, 401);
    assert!(body.contains("nanoclaw secret set absent"), "{body}");
    assert_eq!(server.bytes.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_chosen_by_name_and_format() {
    let server = FakeServer::start(vec![json_answer(200, "", OPENAI_JSON)]).await;
    let models = vec![
        http_model("claude", ModelApi::Anthropic, 1, None),
        http_model("local", ModelApi::OpenAi, server.port, None),
    ];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let ask = |m: &str| ASK.replace("\"m\"", &format!("\"{m}\""));
    let (status, _) = parts(&post(&rig.door, "/v1/chat/completions", "", &ask("local")).await);
    assert_eq!(status, 200);
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", &ask("claude")).await);
    assert_eq!(status, 400);
    assert!(body.contains("does not speak the openai format"), "{body}");
    let (status, body) = parts(&post(&rig.door, "/v1/messages", "", &ask("local")).await);
    assert_eq!(status, 400);
    assert!(body.starts_with("{\"error\":") && body.contains("\"type\":\"error\""), "{body}");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (status, body) = parts(&raw(&rig.door, get("/v1/models?limit=5").as_bytes()).await);
    assert!(status == 200 && body.contains("\"claude\"") && body.contains("\"local\""), "{body}");
    assert_eq!(parts(&raw(&rig.door, get("/v1/models/local").as_bytes()).await).0, 200);
    assert_eq!(parts(&raw(&rig.door, get("/api/hello").as_bytes()).await).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_up_stops_the_work_and_the_record_says_so() {
    let slow = Canned(vec![b"HTTP/1.1 200 OK\r\n".to_vec()]);
    let (rig, server) = rig_with(vec![slow], ModelApi::OpenAi).await;
    let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{ASK}",
        ASK.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    while server.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    match rig.sink.wait_for("model_response").await {
        Body::ModelResponse { error: Some(why), .. } => assert!(why.contains("hung up"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_replaced_when_the_server_closed_them() {
    let (rig, server) = rig_with(vec![json_answer(200, "", OPENAI_JSON)], ModelApi::OpenAi).await;
    let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
    for n in 1..=3 {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{ASK}",
            ASK.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = String::new();
        while !got.contains(OPENAI_JSON) {
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).await.unwrap();
            assert!(n > 0);
            got.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        assert_eq!(server.requests().len(), n);
    }
    let closing =
        Canned(vec![json_answer(200, "connection: close\r\n", OPENAI_JSON).0.concat(), vec![]]);
    let (rig, server) = rig_with(vec![closing], ModelApi::OpenAi).await;
    for _ in 0..3 {
        assert_eq!(parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await).0, 200);
    }
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn model_servers_are_spoken_to_over_verified_tls_only() {
    let (cert, acceptor) = tls_server("model.test");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).await.unwrap();
            kept.lock().unwrap().push(String::from_utf8_lossy(&buf[..n]).into_owned());
            let answer = json_answer(200, "connection: close\r\n", ANTHROPIC_JSON).0.concat();
            stream.write_all(&answer).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let (other, _) = tls_server("model.test");
    for (roots, host, expected) in [
        (cert.clone(), "model.test", 200),
        (other, "model.test", 502),
        (cert, "other.test", 502), // the certificate is for another name
    ] {
        let mut model = http_model("m", ModelApi::Anthropic, port, Some("key1"));
        model.base_url = format!("https://{host}:{port}");
        let secret_hosts = vec![host.to_owned()];
        let roots = nanoclaw_gateway::Roots::Only(vec![roots]);
        let rig =
            RigPlan { models: vec![model], secret_hosts, roots, ..RigPlan::default() }.build();
        let (status, body) = parts(&post(&rig.door, "/v1/messages", "", ASK).await);
        assert_eq!(status, expected, "{body}");
        assert!(status == 200 || body.contains("TLS with"), "{body}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 1 && seen[0].contains(KEY), "the key went to an unverified server");
}
