//! What the agent keeps: over restarts, and when the conversation outgrows the model.

#![allow(clippy::unwrap_used, clippy::panic)] // functions outside #[test] fail their test

mod support;

use nanoclaw_agent::client::{AcpClient, AcpError, FailureKind, PromptError, StopReason, Update};
use std::io::Write;
use support::{Agent, Api, BOTH, Door, Reply, Seen, TempDir, bash, pipes, say, spawn};

#[test]
fn a_killed_agent_goes_on_where_it_was() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, _| match number {
            0 => Reply::Say("", vec![bash("a", "echo out-of-tool")]),
            1 => say("remembered"),
            2 => Reply::Say("", vec![bash("b", "kill -9 $PPID; sleep 300")]),
            _ => say("back"),
        });
        let mut agent = Agent::start(&dir, api, &[], true); // nothing to resume yet
        let session = agent.session.clone();
        assert_eq!(agent.ask("my name is Ada"), "remembered");
        let (result, _) = agent.turn("now die");
        assert_eq!(result, Err(PromptError::Agent(AcpError::Closed)));
        assert_eq!(
            agent.turn("x").0,
            Err(PromptError::Agent(AcpError::Closed)),
            "broken stays broken"
        );
        agent.kill();
        let mut torn = std::fs::OpenOptions::new().append(true).open(dir.conversation()).unwrap();
        torn.write_all(b"{\"message\":{\"role\":\"user\",\"blo").unwrap();
        let mut agent = Agent::start(&dir, api, &[], true);
        assert_eq!(agent.session, session);
        assert_eq!(agent.ask("who am I?"), "back");
        let messages = door.seen().last().unwrap().messages();
        for part in ["my name is Ada", "out-of-tool", "remembered", "interrupted", "who am I?"] {
            assert!(messages.contains(part), "{part} is missing: {messages}");
        }
        agent.kill();
        let mut agent = Agent::start(&dir, api, &[], true); // the torn line is still inside
        assert_eq!(agent.ask("and again"), "back");
        assert!(door.seen().last().unwrap().messages().contains("who am I?"));
    }
}

#[test]
fn an_unanswered_question_is_not_asked_twice() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::OpenAi, |number, _| {
        if number == 0 { Reply::Stall("so") } else { say("ok") }
    });
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    let pid = agent.child.id();
    let killer = std::thread::spawn(move || {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
    assert!(agent.turn("the question").0.is_err());
    killer.join().unwrap();
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], true);
    agent.ask("the question");
    assert_eq!(door.seen()[1].messages().matches("the question").count(), 1);
}

#[test]
fn a_new_session_starts_fresh_and_keeps_the_old_file() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::Anthropic, |_, _| say("ok"));
    let mut agent = Agent::start(&dir, Api::Anthropic, &[], false);
    agent.ask("first topic");
    let before = agent.session.clone();
    let after = agent.client.new_session(&dir.work(), false).unwrap();
    assert_ne!(before, after);
    agent.ask("second topic");
    assert!(!door.seen()[1].messages().contains("first topic"));
    let folder = dir.conversation().parent().unwrap().to_owned();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
}

#[test]
fn a_loaded_session_is_told_again() {
    use std::io::{BufRead, BufReader};
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |number, _| match number {
        0 => Reply::Say("look", vec![bash("a", "echo seen")]),
        _ => say("done"),
    });
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    agent.ask("work");
    let session = agent.session.clone();
    agent.kill();
    let mut child = spawn(&dir, Api::OpenAi, &[]);
    let (out, mut input) = pipes(&mut child);
    let cwd = dir.work();
    let frames = format!(
        "{}\n{}\n{}\n",
        r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":9}}"#,
        serde_json::json!({"jsonrpc":"2.0","id":1,"method":"session/load","params":{"sessionId":"other","cwd":cwd,"mcpServers":[]}}),
        serde_json::json!({"jsonrpc":"2.0","id":2,"method":"session/load","params":{"sessionId":session,"cwd":cwd,"mcpServers":[]}}),
    );
    input.write_all(frames.as_bytes()).unwrap();
    drop(input);
    let lines: Vec<serde_json::Value> =
        BufReader::new(out).lines().map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect();
    child.wait().unwrap();
    assert_eq!(lines[0]["result"]["protocolVersion"], 1);
    assert_eq!(lines[1]["error"]["code"], -32_002);
    let kinds: Vec<&str> = lines[2..lines.len() - 1]
        .iter()
        .map(|l| l["params"]["update"]["sessionUpdate"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "user_message_chunk",
            "agent_message_chunk",
            "tool_call",
            "tool_call_update",
            "agent_message_chunk"
        ]
    );
    let last = lines.last().unwrap();
    assert!(last["id"] == 2 && last.get("result").is_some(), "{last}");
    let mut child = spawn(&dir, Api::OpenAi, &[]);
    let (out, input) = pipes(&mut child);
    let mut client = AcpClient::start(out, input).unwrap();
    client.initialize().unwrap();
    assert!(matches!(client.load_session("other", &cwd), Err(AcpError::Refused { .. })));
    client.load_session(&session, &cwd).unwrap();
    assert_eq!(client.prompt("on", &mut |_| {}).unwrap().stop, StopReason::EndTurn);
    drop(client);
    child.wait().unwrap();
}

const SMALL: [(&str, &str); 2] =
    [("NANOCLAW_CONTEXT_TOKENS", "9000"), ("NANOCLAW_MAX_TOKENS", "500")];

fn long_question(number: usize) -> String {
    format!("question {number}: {}", "word ".repeat(600))
}

#[test]
fn a_long_conversation_is_summarised_by_the_model() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, seen: &Seen| match number {
            _ if seen.is_summary() => say("the summary: Ada likes otters"),
            n if n % 3 == 0 => Reply::Say("", vec![bash("same-id", "seq 1 900")]),
            _ => say("noted"),
        });
        let mut agent = Agent::start(&dir, api, &SMALL, false);
        for number in 0..12 {
            assert!(agent.ask(&long_question(number)).ends_with("noted"));
        }
        let seen = door.seen();
        let summaries = seen.iter().filter(|s| s.is_summary()).count();
        assert!((2..12).contains(&summaries), "{summaries} summaries");
        assert!(seen.iter().all(|s| s.messages().len() < 40_000), "a request outgrew the window");
        let last = seen.last().unwrap().messages();
        assert!(
            last.contains("Ada likes otters")
                && last.contains("question 11:")
                && !last.contains("question 0:")
        );
        agent.kill();
        let mut agent = Agent::start(&dir, api, &SMALL, true); // the summary survives a restart
        agent.ask("short");
        assert!(door.seen().last().unwrap().messages().contains("Ada likes otters"));
    }
}

#[test]
fn without_a_summary_the_oldest_messages_go() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, seen: &Seen| match number {
            _ if seen.is_summary() => Reply::Status(500, "", ""),
            n if n % 3 == 0 => Reply::Say("", vec![bash("x", "seq 1 900")]),
            _ => say("noted"),
        });
        let mut agent = Agent::start(&dir, api, &SMALL, false);
        for number in 0..8 {
            assert!(agent.ask(&long_question(number)).ends_with("noted"));
        }
        let last = door.seen().last().unwrap().messages();
        assert!(
            last.contains("left out because")
                && last.contains("question 7:")
                && !last.contains("question 0:")
        );
    }
}

#[test]
fn one_turn_larger_than_the_window_still_ends() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::Anthropic, |number, seen: &Seen| match number {
        _ if seen.is_summary() => say("counted up to here"),
        0..14 => Reply::Say("", vec![bash("a", "seq 1 9000"), bash("b", "seq 1 9000")]),
        _ => say("finished"),
    });
    let mut agent = Agent::start(&dir, Api::Anthropic, &SMALL, false);
    assert_eq!(agent.ask("count the sheep of Ada"), "finished");
    let seen = door.seen();
    assert!(seen.iter().all(|s| s.messages().len() < 60_000));
    assert!(
        seen.iter().filter(|s| !s.is_summary()).all(|s| s.messages().contains("sheep of Ada")),
        "the question was lost"
    );
}

#[test]
fn a_server_that_says_too_long_gets_less() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::Anthropic, |_, seen: &Seen| {
        if seen.is_summary() {
            say("short form")
        } else if seen.messages().len() > 12_000 {
            Reply::Status(
                400,
                "",
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
            )
        } else {
            say("ok")
        }
    });
    let sizes = [("NANOCLAW_CONTEXT_TOKENS", "20000"), ("NANOCLAW_MAX_TOKENS", "500")];
    let mut agent = Agent::start(&dir, Api::Anthropic, &sizes, false);
    for number in 0..6 {
        assert_eq!(agent.ask(&long_question(number)), "ok");
    }
    assert!(door.seen().iter().any(Seen::is_summary));
    let huge = "w".repeat(20_000);
    match agent.turn(&huge).0 {
        Err(PromptError::Model(failure)) => assert_eq!(failure.kind, FailureKind::TooLong),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.ask("small"), "ok");
}

#[test]
fn a_disk_that_refuses_stops_the_turn_with_its_reason() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |_, _| say("ok"));
    std::fs::write(dir.path().join("home/.nanoclaw"), "a file where a folder must be").unwrap();
    let mut child = spawn(&dir, Api::OpenAi, &[]);
    let (out, input) = pipes(&mut child);
    let mut client = AcpClient::start(out, input).unwrap();
    client.initialize().unwrap();
    match client.new_session(&dir.work(), false) {
        Err(AcpError::Refused { message, .. }) => {
            assert!(message.contains("conversation"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        client.prompt("x", &mut |_: Update| {}),
        Err(PromptError::Agent(AcpError::NoSession))
    );
    drop(client);
    assert!(child.wait().unwrap().success());
}
