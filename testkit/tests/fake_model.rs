//! The fake model server over real sockets, in both wire formats.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use nanoclaw_testkit::{FakeModel, Options, Rng, TempDir};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One request; the whole answer as it came, until the server closes or the time is up.
fn ask(server: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.trim_start_matches("http://")).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
    (status, answer)
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a head").1).expect("JSON")
}

/// The `data:` lines of a stream, chunk framing ignored.
fn events(answer: &str) -> Vec<Value> {
    answer
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect()
}

fn anthropic(text: &str, stream: bool) -> Value {
    json!({
        "model": "m", "max_tokens": 100, "stream": stream,
        "messages": [{ "role": "user", "content": text }],
        "tools": [
            { "name": "read_file", "input_schema": { "type": "object", "required": ["path"],
              "properties": { "path": { "type": "string" } } } },
            { "name": "bash", "input_schema": { "type": "object",
              "properties": { "command": { "type": "string" } } } },
        ],
    })
}

fn openai(text: &str, stream: bool) -> Value {
    let function = json!({ "name": "run_shell", "parameters": { "type": "object",
        "properties": { "cmd": { "type": "array" } } } });
    json!({
        "model": "m", "stream": stream, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": text }],
        "tools": [{ "type": "function", "function": function }],
    })
}

fn messages(server: &FakeModel, request: &Value) -> (u16, String) {
    ask(&server.base_url(), "POST", "/v1/messages", "", &request.to_string())
}

fn chat(server: &FakeModel, request: &Value) -> (u16, String) {
    ask(&server.base_url(), "POST", "/v1/chat/completions", "", &request.to_string())
}

#[test]
fn anthropic_turns_follow_the_rules() {
    let server = FakeModel::start(Options::default()).expect("starts");
    let (status, answer) = messages(&server, &anthropic("please RUN: echo hi", false));
    let first = body(&answer);
    assert_eq!((status, &first["stop_reason"]), (200, &json!("tool_use")));
    let call = &first["content"][0];
    assert_eq!((&call["name"], &call["input"]["command"]), (&json!("bash"), &json!("echo hi")));

    let mut next = anthropic("please RUN: echo hi", false);
    let history = next["messages"].as_array_mut().expect("array");
    history.push(json!({ "role": "assistant", "content": first["content"] }));
    history.push(json!({ "role": "user", "content": [
        { "type": "tool_result", "tool_use_id": call["id"], "content": "hi\n" }] }));
    let last = body(&messages(&server, &next).1);
    assert_eq!(last["content"][0]["text"], "MOCK_FINAL[hi]");
    assert_eq!(last["stop_reason"], "end_turn");

    let made_up = json!([{ "role": "user", "content": [
        { "type": "tool_result", "tool_use_id": "stranger", "content": "x" }] }]);
    next["messages"] = made_up;
    assert_eq!(messages(&server, &next).0, 400, "a result without its call");

    let text = |t: &str| body(&messages(&server, &anthropic(t, false)).1)["content"][0].clone();
    assert_eq!(text("hello")["text"], "MOCK_TEXT[hello]");
    assert_eq!(text("NOTOOL RUN: x")["text"], "MOCK_TEXT[NOTOOL RUN: x]");
    assert_eq!(text("CALL:read")["input"], json!({ "path": "x" }));
    assert_eq!(text("CALL:read {\"path\":\"/a b\"}")["input"], json!({ "path": "/a b" }));
    let both = body(&messages(&server, &anthropic("RUN: a\nRUN: b", false)).1);
    assert_eq!(both["content"].as_array().expect("array").len(), 2, "one call a line");
}

#[test]
fn anthropic_streams_have_every_event_in_order() {
    let server =
        FakeModel::start(Options { chunk: Some(7), ..Options::default() }).expect("starts");
    let server_slow = FakeModel::start(Options::default()).expect("starts");
    let (_, whole) = messages(&server_slow, &anthropic("RUN: echo 'ä'", true));
    let all = events(&whole);
    let kinds: Vec<&str> = all.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(
        kinds,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let halves = all.iter().filter_map(|e| e["delta"]["partial_json"].as_str());
    let joined: String = halves.collect();
    assert_eq!(joined, r#"{"command":"echo 'ä'"}"#);
    // In pieces of seven bytes the same stream needs many more chunks.
    let (_, pieces) = messages(&server, &anthropic("RUN: echo 'a'", true));
    assert!(pieces.matches("\r\n7\r\n").count() > 50, "not cut into pieces");
}

#[test]
fn openai_answers_both_ways() {
    let server = FakeModel::start(Options::default()).expect("starts");
    let plain = body(&chat(&server, &openai("RUN: ls", false)).1);
    let call = &plain["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], r#"{"cmd":["bash","-c","ls"]}"#);
    let (_, answer) = chat(&server, &openai("RUN: ls", true));
    assert!(answer.contains("data: [DONE]") && answer.ends_with("0\r\n\r\n"));
    let all = events(&answer);
    let arguments = all.iter().filter_map(|e| {
        e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    assert_eq!(arguments.collect::<String>(), r#"{"cmd":["bash","-c","ls"]}"#);
    assert!(all.last().expect("events")["usage"]["total_tokens"].is_u64());

    let mut next = openai("RUN: ls", false);
    let history = next["messages"].as_array_mut().expect("array");
    history.push(plain["choices"][0]["message"].clone());
    history.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": "a b" }));
    let last = body(&chat(&server, &next).1);
    assert_eq!(last["choices"][0]["message"]["content"], "MOCK_FINAL[a b]");
    let text: String = events(&chat(&server, &openai("two words", true)).1)
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "MOCK_TEXT[two words]");
    let models = body(&ask(&server.base_url(), "GET", "/v1/models", "", "").1);
    assert_eq!(models["data"][0]["id"], "fake-model");
}

#[test]
fn keys_failures_and_damage_are_played_as_told() {
    let key = "test-key-not-real";
    let server = FakeModel::start(Options { require_key: Some(key.into()), ..Options::default() })
        .expect("starts");
    let request = anthropic("hello", false).to_string();
    let with = |h: &str| ask(&server.base_url(), "POST", "/v1/messages", h, &request).0;
    assert_eq!(with(""), 401);
    assert_eq!(with("x-api-key: wrong\r\n"), 401);
    assert_eq!(with(&format!("X-Api-Key: {key}\r\n")), 200);
    assert_eq!(with(&format!("Authorization: Bearer {key}\r\n")), 200);
    let seen = server.requests();
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[2].credentials(), [("x-api-key", key)]);
    assert_eq!((seen[1].status, seen[3].status), (401, 200));

    let options = Options {
        fail_status: Some(429),
        fail_first: 2,
        retry_after: Some(3),
        ..Options::default()
    };
    let failing = FakeModel::start(options).expect("starts");
    let (status, answer) = messages(&failing, &anthropic("hello", false));
    assert_eq!((status, answer.contains("retry-after: 3\r\n")), (429, true));
    assert_eq!(messages(&failing, &anthropic("hello", false)).0, 429);
    assert_eq!(messages(&failing, &anthropic("hello", false)).0, 200);

    let garbage =
        FakeModel::start(Options { garbage: true, ..Options::default() }).expect("starts");
    assert!(chat(&garbage, &openai("hello", false)).1.contains("<html>"));
    let cut = Options { drop_mid_stream: true, ..Options::default() };
    let cut = FakeModel::start(cut).expect("starts");
    let (_, answer) = chat(&cut, &openai("some words here", true));
    assert!(
        answer.contains("data: ") && !answer.contains("[DONE]") && !answer.ends_with("0\r\n\r\n")
    );

    let wait = Duration::from_millis(150);
    let slow = FakeModel::start(Options { delay: wait, ..Options::default() }).expect("starts");
    let begin = Instant::now();
    messages(&slow, &anthropic("hello", false));
    assert!(begin.elapsed() >= wait);
    assert!(slow.wait_for(1, Duration::ZERO) && !slow.wait_for(2, Duration::from_millis(10)));
}

#[test]
fn chunked_requests_and_kept_connections_work() {
    let server = FakeModel::start(Options::default()).expect("starts");
    let mut stream = TcpStream::connect(server.address()).expect("connects");
    let request = anthropic("hello", false).to_string();
    let (a, b) = request.split_at(10);
    for _ in 0..2 {
        write!(
            stream,
            "POST /v1/messages?beta=true HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n",
            a.len(),
            b.len()
        )
        .expect("sent");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert_eq!(answer.matches("MOCK_TEXT[hello]").count(), 2);
    assert_eq!(server.requests()[1].body, request);
}

#[test]
fn the_program_serves_and_logs() {
    let dir = TempDir::new("fake").expect("folder");
    let log = dir.join("log.jsonl");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fake-model"))
        .args(["--require-key", "test-key-not-real", "--log"])
        .arg(&log)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut url = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut url).expect("the URL");
    let headers = "authorization: Bearer test-key-not-real\r\n";
    let (status, _) = ask(url.trim(), "GET", "/v1/models", headers, "");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends with its input").success());
    let text = std::fs::read_to_string(&log).expect("the log");
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!((status, &line["path"], &line["status"]), (200, &json!("/v1/models"), &json!(200)));
    assert_eq!(line["credentials"][0][0], "authorization");
}

#[test]
fn seeds_repeat_and_folders_vanish() {
    let (mut a, mut b) = (Rng::new(7), Rng::new(7));
    assert!((0..100).all(|_| a.next_u64() == b.next_u64()));
    let mut zero = Rng::new(0);
    assert_ne!(zero.next_u64(), zero.next_u64());
    assert!((0..1000).all(|_| zero.below(3) < 3) && zero.below(0) == 0);
    let dir = TempDir::new("gone").expect("folder");
    let path = dir.path().to_owned();
    std::fs::write(dir.join("x"), "x").expect("write");
    drop(dir);
    assert!(!path.exists());
}
