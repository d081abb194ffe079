//! Frames that do not play by the rules, in both directions.

#![allow(clippy::unwrap_used, clippy::panic)] // functions outside #[test] fail their test

mod support;

use nanoclaw_agent::client::{
    AcpClient, AcpError, CANCEL_GRACE, MAX_FRAME_BYTES, PermissionAnswer, PromptError, StopReason,
    Update,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use support::{Api, Door, TempDir, pipes, say, spawn};

// ---- a hostile host: the agent answers every frame and lives on

#[test]
fn every_bad_frame_gets_its_error_and_the_agent_lives_on() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |_, _| say("alive"));
    let mut child = spawn(&dir, Api::OpenAi, &[]);
    let (out, mut input) = pipes(&mut child);
    let mut lines = BufReader::new(out).lines();
    let cwd = dir.work();
    let mut ask = |frame: &[u8]| -> Value {
        input.write_all(frame).unwrap();
        input.write_all(b"\n").unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    };
    let request = |method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).to_string()
    };
    let huge = vec![b'x'; 9 << 20];
    let deep = "[".repeat(200_000);
    for (frame, code) in [
        (&b"hello"[..], -32_700),
        (b"\xff\xfe\x00", -32_700),
        (deep.as_bytes(), -32_700),
        (b"[]", -32_600),
        (b"{}", -32_600),
        (br#"{"jsonrpc":"2.0","id":{},"method":"initialize"}"#, -32_600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"session/new"}"#, -32_600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":7}"#, -32_602),
        (&huge, -32_600),
    ] {
        let answer = ask(frame);
        assert_eq!(answer["error"]["code"], code, "{:?}", &frame[..frame.len().min(60)]);
    }
    let hello = ask(request("initialize", json!({"protocolVersion": 65_535})).as_bytes());
    assert_eq!(hello["result"]["protocolVersion"], 1);
    let prompt =
        |prompt: Value| request("session/prompt", json!({"sessionId": "s", "prompt": prompt}));
    for (frame, code) in [
        (request("session/destroy", json!({})), -32_601),
        (request("session/new", json!({"cwd": "relative"})), -32_602),
        (request("session/new", json!({"cwd": "/does/not/exist"})), -32_602),
        (request("session/new", json!({"cwd": cwd, "mcpServers": [{"name": "x"}]})), -32_602),
        (prompt(json!([{"type": "text", "text": "x"}])), -32_600),
    ] {
        assert_eq!(ask(frame.as_bytes())["error"]["code"], code, "{frame}");
    }
    let session = ask(request("session/new", json!({"cwd": cwd, "mcpServers": []})).as_bytes());
    let session = session["result"]["sessionId"].as_str().unwrap().to_owned();
    let too_big = "y".repeat(2 << 20);
    for (block, code) in [
        (json!([{"type": "text", "text": "x"}]), -32_002),
        (json!([{"type": "image", "data": "AAAA"}]), -32_602),
        (json!([]), -32_602),
        (json!("text"), -32_602),
        (json!([{"type": "text", "text": too_big}]), -32_602),
    ] {
        assert_eq!(ask(prompt(block).as_bytes())["error"]["code"], code);
    }
    let good = request(
        "session/prompt",
        json!({"sessionId": session, "prompt": [{"type": "text", "text": "hi"}]}),
    );
    // A response nobody asked for and an unknown notification are passed over.
    let before = "{\"jsonrpc\":\"2.0\",\"id\":99,\"result\":{}}\n{\"jsonrpc\":\"2.0\",\"method\":\"nope\"}\n";
    let mut answer = ask(format!("{before}{good}").as_bytes());
    while answer.get("id").is_none() {
        answer = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    }
    assert_eq!(answer["result"]["stopReason"], "end_turn", "{answer}");
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_second_prompt_while_one_runs_is_refused() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |_, _| support::Reply::Stall("wait"));
    let mut child = spawn(&dir, Api::OpenAi, &[]);
    let (out, mut input) = pipes(&mut child);
    let mut lines = BufReader::new(out).lines();
    let mut next = || -> Value {
        loop {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if line.get("id").is_some() {
                return line;
            }
        }
    };
    let mut send = |id: u64, method: &str, params: Value| {
        let frame = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(input, "{frame}").unwrap();
    };
    send(1, "initialize", json!({"protocolVersion": 1}));
    next();
    send(2, "session/new", json!({"cwd": dir.work(), "mcpServers": []}));
    let session = next()["result"]["sessionId"].clone();
    let prompt = json!({"sessionId": session, "prompt": [{"type": "text", "text": "a"}]});
    send(3, "session/prompt", prompt.clone());
    send(4, "session/prompt", prompt);
    let refused = next();
    assert!(refused["id"] == 4 && refused["error"]["code"] == -32_600, "{refused}");
    send(5, "session/new", json!({"cwd": dir.work(), "mcpServers": []}));
    assert_eq!(next()["error"]["code"], -32_600);
    drop(input); // the end of stdin cancels the turn
    let last = next();
    assert!(last["id"] == 3 && last["result"]["stopReason"] == "cancelled", "{last}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_missing_setting_is_named() {
    let dir = TempDir::new();
    let mut child = spawn(&dir, Api::OpenAi, &[("NANOCLAW_MODEL_API", "morse")]);
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

// ---- a hostile agent: the client gives a typed error and holds no more than its limits

/// Runs `agent` at the other end of a client. The agent gets a way to send a raw line and the
/// requests it is sent.
fn against(
    agent: impl FnOnce(&mut PipeWriter, &mut dyn Iterator<Item = Value>) + Send + 'static,
) -> AcpClient {
    let (from_agent, mut to_host): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    let (from_host, to_agent) = std::io::pipe().unwrap();
    thread::spawn(move || {
        let mut requests = BufReader::new(from_host)
            .lines()
            .map_while(Result::ok)
            .map(|l| serde_json::from_str(&l).unwrap());
        agent(&mut to_host, &mut requests);
    });
    AcpClient::start(from_agent, to_agent).unwrap()
}

fn answer(out: &mut PipeWriter, request: &Value, result: Value) {
    let _ = writeln!(out, "{}", json!({"jsonrpc": "2.0", "id": request["id"], "result": result}));
}

fn update(out: &mut PipeWriter, session: &str, update: Value) -> std::io::Result<()> {
    let params = json!({"sessionId": session, "update": update});
    writeln!(out, "{}", json!({"jsonrpc": "2.0", "method": "session/update", "params": params}))
}

/// A client whose agent behaves until the prompt comes and then does `evil`.
fn prompted(
    evil: impl FnOnce(&mut PipeWriter, Value, &mut dyn Iterator<Item = Value>) + Send + 'static,
) -> AcpClient {
    let mut client = against(|out, requests| {
        let hello = requests.next().unwrap();
        answer(out, &hello, json!({"protocolVersion": 1, "agentCapabilities": {}}));
        let new = requests.next().unwrap();
        answer(out, &new, json!({"sessionId": "s"}));
        let prompt = requests.next().unwrap();
        evil(out, prompt, requests);
    });
    client.initialize().unwrap();
    client.new_session(Path::new("/workspace"), false).unwrap();
    client
}

fn error_of(
    evil: impl FnOnce(&mut PipeWriter, Value, &mut dyn Iterator<Item = Value>) + Send + 'static,
) -> AcpError {
    let mut client = prompted(evil);
    let error = match client.prompt("x", &mut |_| {}) {
        Err(PromptError::Agent(error)) => error,
        other => panic!("{other:?}"),
    };
    if error.is_fatal() {
        assert_eq!(client.prompt("y", &mut |_| {}), Err(PromptError::Agent(error.clone())));
    }
    error
}

#[test]
fn garbage_forgeries_and_floods_are_typed_errors() {
    let error = error_of(|out, _, _| writeln!(out, "\x1b[31mWelcome to agent 3000!").unwrap());
    assert!(
        matches!(error, AcpError::Garbage { sample } if sample == "[31mWelcome to agent 3000!")
    );
    let error =
        error_of(|out, _, _| answer(out, &json!({"id": 77}), json!({"stopReason": "end_turn"})));
    assert!(matches!(error, AcpError::Forged { .. }), "{error}");
    let error = error_of(|out, _, _| update(out, "other", json!({})).unwrap());
    assert!(matches!(error, AcpError::Forged { .. }), "{error}");
    let error = error_of(|out, prompt, _| answer(out, &prompt, json!({"stopReason": "because"})));
    assert!(matches!(error, AcpError::Forged { .. }), "{error}");
    let error = error_of(|out, _, _| {
        let _ = out.write_all(&vec![b'x'; MAX_FRAME_BYTES + 2]);
    });
    assert_eq!(error, AcpError::FrameTooLarge { max: MAX_FRAME_BYTES });
    let error = error_of(|_, _, _| {});
    assert_eq!(error, AcpError::Closed);
    let error = error_of(|out, _, _| {
        let text = "y".repeat(2 << 20);
        let chunk = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}});
        while update(out, "s", chunk.clone()).is_ok() {}
    });
    assert!(matches!(error, AcpError::Flood { .. }), "{error}");
    let error = error_of(|out, prompt, _| {
        let no = json!({"jsonrpc": "2.0", "id": prompt["id"], "error": {"code": -1, "message": "no\n\x1b[2J"}});
        writeln!(out, "{no}").unwrap();
    });
    assert_eq!(error, AcpError::Refused { code: -1, message: "no [2J".to_owned() });
}

#[test]
fn another_version_is_refused() {
    let mut client = against(|out, requests| {
        let hello = requests.next().unwrap();
        answer(out, &hello, json!({"protocolVersion": 2}));
    });
    assert_eq!(client.initialize(), Err(AcpError::Version { spoken: Some(2) }));
}

#[test]
fn updates_between_turns_and_unknown_ones_do_no_harm() {
    let mut client = prompted(|out, prompt, requests| {
        update(out, "s", json!({"sessionUpdate": "plan", "entries": []})).unwrap();
        update(out, "s", json!("nonsense")).unwrap();
        update(out, "s", json!({"sessionUpdate": "tool_call", "toolCallId": "t", "title": "Edit\nx", "kind": "edit", "status": "pending"})).unwrap();
        update(out, "s", json!({"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "in_progress"})).unwrap();
        update(out, "s", json!({"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "completed", "rawOutput": {"a": 1}})).unwrap();
        writeln!(out, "{}", json!({"jsonrpc": "2.0", "id": "f1", "method": "fs/read_text_file", "params": {"path": "/etc/shadow"}})).unwrap();
        let refused = requests.next().unwrap();
        assert_eq!(
            (refused["id"].as_str(), refused["error"]["code"].as_i64()),
            (Some("f1"), Some(-32_601))
        );
        answer(out, &prompt, json!({"stopReason": "max_tokens"}));
        for _ in 0..10 {
            update(out, "s", json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "late"}})).unwrap();
        }
        thread::sleep(Duration::from_millis(200));
        let prompt = requests.next().unwrap();
        answer(out, &prompt, json!({"stopReason": "end_turn"}));
    });
    let mut updates = Vec::new();
    let result = client.prompt("x", &mut |u| updates.push(u)).unwrap();
    assert_eq!(result.stop, StopReason::MaxTokens);
    let [Update::ToolStarted { tool, title, .. }, Update::ToolFinished { ok: true, summary, .. }] =
        updates.as_slice()
    else {
        panic!("{updates:?}")
    };
    assert_eq!((tool.as_str(), title.as_str(), summary.as_str()), ("edit", "Edit x", r#"{"a":1}"#));
    thread::sleep(Duration::from_millis(100));
    updates.clear();
    client.prompt("y", &mut |u| updates.push(u)).unwrap();
    assert_eq!(updates, [], "what came late belongs to no turn");
}

#[test]
fn permissions_are_denied_unless_the_callback_allows() {
    fn asks(
        out: &mut PipeWriter,
        prompt: Value,
        requests: &mut dyn Iterator<Item = Value>,
        options: Value,
    ) {
        let params = json!({"sessionId": "s", "toolCall": {"toolCallId": "t", "title": "rm -rf", "kind": "execute", "rawInput": {"command": "rm"}}, "options": options});
        writeln!(out, "{}", json!({"jsonrpc": "2.0", "id": 1, "method": "session/request_permission", "params": params})).unwrap();
        let got = requests.next().unwrap()["result"]["outcome"].to_string();
        update(out, "s", json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": got}})).unwrap();
        answer(out, &prompt, json!({"stopReason": "end_turn"}));
    }
    let both = json!([
        {"optionId": "y", "name": "Yes", "kind": "allow_once"},
        {"optionId": "a", "name": "Always", "kind": "allow_always"},
        {"optionId": "n", "name": "No", "kind": "reject_once"},
    ]);
    let only_always = json!([{"optionId": "a", "name": "Always", "kind": "allow_always"}]);
    for (allow, options, expected) in [
        (false, both.clone(), r#"{"optionId":"n","outcome":"selected"}"#),
        (true, both, r#"{"optionId":"y","outcome":"selected"}"#),
        (true, only_always, r#"{"outcome":"cancelled"}"#),
        (false, json!("nonsense"), r#"{"outcome":"cancelled"}"#),
    ] {
        let mut client =
            prompted(move |out, prompt, requests| asks(out, prompt, requests, options));
        if allow {
            client.on_permission(|request| {
                assert_eq!((request.title.as_str(), request.tool.as_str()), ("rm -rf", "execute"));
                PermissionAnswer::AllowOnce
            });
        }
        let mut got = String::new();
        client
            .prompt("x", &mut |u| {
                if let Update::Text(t) = u {
                    got = t
                }
            })
            .unwrap();
        assert_eq!(got, expected);
    }
}

#[test]
fn an_agent_that_ignores_a_cancel_is_given_up() {
    let mut client = prompted(|out, _, requests| {
        let cancel = requests.next().unwrap();
        assert_eq!(cancel["method"], "session/cancel");
        // It goes on talking, which must not count as an answer.
        let chunk = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "never"}});
        while update(out, "s", chunk.clone()).is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let handle = client.cancel_handle();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        handle.cancel();
    });
    let start = Instant::now();
    assert_eq!(client.prompt("x", &mut |_| {}), Err(PromptError::Agent(AcpError::Timeout)));
    assert!(start.elapsed() < CANCEL_GRACE + Duration::from_secs(3));
    canceller.join().unwrap();
}

#[test]
fn an_agent_that_does_not_read_does_not_block_the_host() {
    let (_kept_reader, to_agent) = std::io::pipe().unwrap();
    let (from_agent, mut to_host) = std::io::pipe().unwrap();
    for (id, result) in [(0, json!({"protocolVersion": 1})), (1, json!({"sessionId": "s"}))] {
        answer(&mut to_host, &json!({"id": id}), result);
    }
    let mut client = AcpClient::start(from_agent, to_agent).unwrap();
    client.initialize().unwrap();
    client.new_session(Path::new("/w"), false).unwrap();
    let handle = client.cancel_handle();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        (0..1_000).for_each(|_| handle.cancel());
    });
    let text = "z".repeat(1 << 20); // more than any pipe holds
    assert_eq!(client.prompt(&text, &mut |_| {}), Err(PromptError::Agent(AcpError::Timeout)));
    canceller.join().unwrap();
}
