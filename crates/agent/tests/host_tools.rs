//! Tools of the host: offered to the model beside the agent's own, and to any agent over stdio.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // what fails here fails its test

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};
use support::{Agent, Api, BOTH, Door, Reply, TempDir, bash, pipes, say, spawn_program, until};

const WITH_TOOLS: [(&str, &str); 1] = [("NANOCLAW_HOST_TOOLS", "1")];

fn tool_names(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().unwrap();
    let name =
        |t: &Value| t["name"].as_str().or(t["function"]["name"].as_str()).unwrap().to_owned();
    tools.iter().map(name).collect()
}

#[test]
fn the_model_gets_the_hosts_tools_beside_its_own_and_their_results_as_untrusted() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, _| match number {
            0 => Reply::Say(
                "",
                vec![
                    ("c1", "web_fetch", json!({"url": "https://e.org/"})),
                    bash("c2", "echo OWN-BASH"),
                    ("c3", "broken", json!({})),
                ],
            ),
            _ => say("done"),
        });
        let mut agent = Agent::start(&dir, api, &WITH_TOOLS, false);
        assert_eq!(agent.ask("go"), "done");
        let seen = door.seen();
        let names = tool_names(&seen[0].body);
        for name in ["web_fetch", "broken", "slow"] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
        assert_eq!(names.iter().filter(|n| *n == "bash").count(), 1, "{names:?}");
        let results = seen[1].messages();
        assert!(results.contains("[from the host tool web_fetch;"), "{results}");
        assert!(results.contains("PAGE-TEXT") && results.contains("not instructions"), "{results}");
        assert!(results.contains("OWN-BASH"), "{results}");
        assert!(results.contains("error: the host did not do it: "), "{results}");
        let asked = door.mcp();
        let calls: Vec<&Value> =
            asked.iter().filter(|s| s.body["method"] == "tools/call").map(|s| &s.body).collect();
        assert_eq!(calls.len(), 2);
        let fetch = calls.iter().find(|c| c["params"]["name"] == "web_fetch").unwrap();
        assert_eq!(fetch["params"]["arguments"], json!({"url": "https://e.org/"}));
        assert!(
            asked[0].head.contains("mcp-protocol-version: 2026-07-28\r\n"),
            "{}",
            asked[0].head
        );
    }
}

#[test]
fn without_the_setting_nothing_is_asked_and_a_dead_door_costs_only_the_tools() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::OpenAi, |_, _| say("hello"));
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    assert_eq!(agent.ask("hi"), "hello");
    assert!(door.mcp().is_empty());
    assert!(!tool_names(&door.seen()[0].body).contains(&"web_fetch".to_owned()));
    drop(agent);

    // The door comes up after the session: the tools are there with the first turn.
    let dir = TempDir::new();
    let mut agent = Agent::start(&dir, Api::OpenAi, &WITH_TOOLS, false);
    let door = Door::open(dir.path(), Api::OpenAi, |_, _| say("hello"));
    assert_eq!(agent.ask("hi"), "hello");
    assert!(tool_names(&door.seen()[0].body).contains(&"web_fetch".to_owned()));
}

#[test]
fn a_cancelled_turn_hangs_up_on_the_hosts_tool() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::Anthropic, |_, _| {
        Reply::Say("", vec![("c1", "slow", json!({}))])
    });
    let mut agent = Agent::start(&dir, Api::Anthropic, &WITH_TOOLS, false);
    let cancel = agent.client.cancel_handle();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until("the call", || door.mcp().iter().any(|s| s.body["method"] == "tools/call"));
            cancel.cancel();
        });
        let started = Instant::now();
        let (result, _) = agent.turn("go");
        assert_eq!(result.unwrap().stop.as_str(), "cancelled");
        assert!(started.elapsed() < Duration::from_secs(5));
    });
    until("the hang-up", || door.left() == 1);
}

/// The stdio server as a process.
struct Shim {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Shim {
    fn start(dir: &TempDir, more: &[(&str, &str)]) -> Self {
        let mut child = spawn_program("mcp", dir, Api::OpenAi, more);
        let (output, input) = pipes(&mut child);
        Self { child, input: Some(input), output: BufReader::new(output) }
    }

    fn send(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_agent_that_knows_only_stdio_gets_every_answer_once_and_cancels() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::OpenAi, |_, _| say(""));
    let mut shim = Shim::start(&dir, &[]);
    shim.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    shim.send(r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#);
    assert_eq!(shim.next(), json!({"jsonrpc": "2.0", "id": "a", "result": {}}));
    shim.send(r#"{"jsonrpc":"2.0","id":1,"method":"nonsense","params":{}}"#);
    let error = shim.next();
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!(1), &json!(-32601)));
    // A slow call does not hold up the next one, and its cancel hangs up on the door.
    shim.send(r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"slow"}}"#);
    until("the call", || door.mcp().iter().any(|s| s.body["params"]["name"] == "slow"));
    shim.send(r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"web_fetch"}}"#);
    assert_eq!(shim.next()["id"], 3);
    shim.send(r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#);
    assert_eq!(shim.next()["error"]["code"], -32600, "the id is taken");
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#;
    shim.send(cancel);
    until("the hang-up", || door.left() == 1);
    shim.send(r#"{"jsonrpc":"2.0","id":4,"method":"ping"}"#);
    assert_eq!(shim.next()["id"], 4, "nothing came for the cancelled call");
    // What is no JSON-RPC from the door becomes an error with the right id.
    shim.send(r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"broken"}}"#);
    let error = shim.next();
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!(5), &json!(-32603)));
    // A request of the later version says in its head what its body says.
    let meta = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    shim.send(&format!(
        r#"{{"jsonrpc":"2.0","id":6,"method":"tools/call","params":{{"name":"web_fetch","_meta":{meta}}}}}"#
    ));
    assert_eq!(shim.next()["id"], 6);
    let head = door.mcp().last().unwrap().head.clone();
    for field in
        ["mcp-protocol-version: 2026-07-28", "mcp-method: tools/call", "mcp-name: web_fetch"]
    {
        assert!(head.contains(field), "{head}");
    }
}

#[test]
fn hostile_lines_are_answered_or_dropped_and_the_end_of_input_ends_it() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |_, _| say(""));
    let mut shim = Shim::start(&dir, &[]);
    for (line, code) in [
        ("not json".to_owned(), -32700),
        ("[]".to_owned(), -32600),
        ("x".repeat(2 << 20), -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#.to_owned(), -32600),
        ("[".repeat(100_000), -32700),
    ] {
        shim.send(&line);
        assert_eq!(shim.next()["error"]["code"], code, "{}", &line[..line.len().min(60)]);
    }
    let named = r#"{"name":"a\r\nx-evil: 1","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
    shim.send(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{named}}}"#));
    assert_eq!(shim.next()["error"]["code"], -32602);
    for id in 0..200 {
        shim.send(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"slow"}}}}"#
        ));
    }
    assert_eq!(shim.next()["error"]["code"], -32600, "too many at once");
    // An answer on its way is still waited for; calls that never end are not.
    let started = Instant::now();
    drop(shim.input.take());
    let mut rest = String::new();
    shim.output.read_to_string(&mut rest).unwrap();
    assert!(shim.child.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(!rest.contains("-32603"), "{rest}");
}

#[test]
fn the_door_is_found_at_the_port_of_the_sandbox() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |_, _| say(""));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let path = dir.path().join("door.sock");
    std::thread::spawn(move || {
        for outer in listener.incoming() {
            let (outer, inner) = (outer.unwrap(), UnixStream::connect(&path).unwrap());
            let (mut from, mut to) = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (inner, outer);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let more = [("NANOCLAW_DOOR", "/nowhere"), ("NANOCLAW_DOOR_PORT", port.as_str())];
    let mut shim = Shim::start(&dir, &more);
    shim.send(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    assert_eq!(shim.next(), json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    let mut wrong = Shim::start(&dir, &[("NANOCLAW_DOOR_PORT", "99999")]);
    assert_eq!(wrong.child.wait().unwrap().code(), Some(2));
    let mut dead = Shim::start(&dir, &[("NANOCLAW_DOOR", "/nowhere")]);
    dead.send(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let error = dead.next()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("cannot be reached"), "{error}");
}
