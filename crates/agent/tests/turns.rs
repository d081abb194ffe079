//! Turns of the real agent process against a fake door.

#![allow(clippy::unwrap_used, clippy::panic)] // functions outside #[test] fail their test

mod support;

use nanoclaw_agent::client::{FailureKind, PromptError, StopReason, Update};
use serde_json::json;
use std::time::{Duration, Instant};
use support::{Agent, Api, BOTH, Door, Reply, TempDir, bash, group_lives, said, say, until};

#[test]
fn a_text_turn_streams_in_both_formats() {
    for api in BOTH {
        let dir = TempDir::new();
        std::fs::write(dir.work().join("AGENTS.md"), "Always be kind to otters.").unwrap();
        let door = Door::open(dir.path(), api, |_, _| say("Hello ä😀 there"));
        let mut agent = Agent::start(&dir, api, &[("NANOCLAW_INSTRUCTIONS", "Be brief.")], false);
        assert!(agent.info.load_session && agent.info.name == "nanoclaw-agent");
        let (result, updates) = agent.turn("hi");
        let result = result.unwrap();
        assert_eq!(
            (said(&updates).as_str(), result.stop),
            ("Hello ä😀 there", StopReason::EndTurn)
        );
        assert!(updates.len() > 3, "{api:?} did not stream");
        let usage = result.usage;
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.requests), (100, 7, 1));
        assert_eq!(agent.ask("again"), "Hello ä😀 there");
        let seen = door.seen();
        let (path, header) = match api {
            Api::Anthropic => ("POST /v1/messages HTTP/1.1", "x-api-key: placeholder-not-a-key"),
            Api::OpenAi => (
                "POST /v1/chat/completions HTTP/1.1",
                "authorization: Bearer placeholder-not-a-key",
            ),
        };
        assert!(
            seen[0].head.starts_with(path) && seen[0].head.contains(header),
            "{}",
            seen[0].head
        );
        let body = seen[0].body.to_string();
        assert!(
            body.contains("kind to otters")
                && body.contains("Be brief.")
                && body.contains("test-model")
        );
        assert!(seen[1].messages().contains("Hello ä😀 there"), "the history is missing");
    }
}

#[test]
fn a_tool_turn_does_the_work_and_tells_of_it() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, _| match number {
            0 => Reply::Say(
                "Writing.",
                vec![("w1", "write_file", json!({"path": "p.sh", "content": "echo 6*7=$((6*7))"}))],
            ),
            1 => Reply::Say("", vec![bash("b1", "sh p.sh; exit 4")]),
            _ => say("Done."),
        });
        let mut agent = Agent::start(&dir, api, &[], false);
        let (result, updates) = agent.turn("compute");
        let result = result.unwrap();
        assert_eq!((result.stop, result.usage.requests), (StopReason::EndTurn, 3));
        assert_eq!(said(&updates), "Writing.Done.");
        let tools: Vec<&Update> =
            updates.iter().filter(|u| !matches!(u, Update::Text(_))).collect();
        let [
            Update::ToolStarted { tool: first, arguments_json, .. },
            Update::ToolFinished { ok: true, .. },
            Update::ToolStarted { id, tool, title, .. },
            Update::ToolFinished { id: ended, ok: false, summary, bytes },
        ] = tools.as_slice()
        else {
            panic!("{tools:?}")
        };
        assert_eq!((first.as_str(), tool.as_str()), ("write_file", "bash"));
        assert!(arguments_json.contains("p.sh") && title.contains("sh p.sh") && id == ended);
        assert_eq!((summary.as_str(), *bytes), ("6*7=42\n[exit code 4]\n", 7));
        assert!(door.seen()[2].messages().contains("6*7=42"));
        assert!(dir.work().join("p.sh").exists());
    }
}

#[test]
fn tools_run_side_by_side_and_answer_in_order() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, _| match number {
            0 => Reply::Say(
                "",
                vec![
                    bash("a", "sleep 0.8; echo first"),
                    bash("b", "sleep 0.4; echo second"),
                    bash("c", "sleep 0.8; echo third"),
                ],
            ),
            _ => say("ok"),
        });
        let mut agent = Agent::start(&dir, api, &[], false);
        let start = Instant::now();
        assert_eq!(agent.ask("go"), "ok");
        assert!(start.elapsed() < Duration::from_millis(1_900), "{:?}", start.elapsed());
        let messages = door.seen()[1].messages();
        let places: Vec<_> = ["first\\n", "second\\n", "third\\n"]
            .iter()
            .map(|t| messages.rfind(t).unwrap())
            .collect();
        assert!(places.is_sorted(), "{messages}");
    }
}

#[test]
fn a_cancel_ends_a_stream_at_once_and_the_next_turn_works() {
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, |number, _| {
            if number == 0 { Reply::Stall("thinking") } else { say("fine") }
        });
        let mut agent = Agent::start(&dir, api, &[], false);
        let handle = agent.client.cancel_handle();
        let mut text = String::new();
        let mut start = None;
        let result = agent.client.prompt("go", &mut |update| {
            if let Update::Text(piece) = update {
                text.push_str(&piece);
            }
            if text == "thinking" {
                start = Some(Instant::now());
                handle.cancel();
            }
        });
        assert_eq!(result.unwrap().stop, StopReason::Cancelled);
        assert!(start.unwrap().elapsed() < Duration::from_secs(1));
        until("the door saw the connection go", || door.left() == 1);
        assert_eq!(agent.ask("and now?"), "fine");
        assert!(door.seen()[1].messages().contains("thinking\\n[stopped by the person]"));
        agent.client.cancel_handle().cancel(); // nothing runs: no effect
        assert_eq!(agent.ask("still?"), "fine");
    }
}

#[test]
fn a_cancel_kills_the_running_commands() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::Anthropic, |number, _| match number {
        0 => Reply::Say("", vec![bash("a", "echo $$ > pid; sleep 300"), bash("b", "sleep 300")]),
        _ => say("fine"),
    });
    let mut agent = Agent::start(&dir, Api::Anthropic, &[], false);
    let handle = agent.client.cancel_handle();
    let file = dir.work().join("pid");
    let canceller = std::thread::spawn(move || {
        until("the command runs", || {
            std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n'))
        });
        handle.cancel();
        (Instant::now(), std::fs::read_to_string(&file).unwrap())
    });
    let (result, updates) = agent.turn("go");
    let (cancelled, group) = canceller.join().unwrap();
    assert!(cancelled.elapsed() < Duration::from_secs(1), "{:?}", cancelled.elapsed());
    assert_eq!(result.unwrap().stop, StopReason::Cancelled);
    assert!(!group_lives(group.trim()), "the group outlived the cancel");
    let failed =
        updates.iter().filter(|u| matches!(u, Update::ToolFinished { ok: false, .. })).count();
    assert_eq!(failed, 2);
    assert_eq!(agent.ask("next"), "fine");
}

#[test]
fn the_agents_end_kills_what_it_started() {
    let dir = TempDir::new();
    let command = "echo $$ > pid; sleep 300";
    let _door = Door::open(dir.path(), Api::OpenAi, move |number, _| match number {
        0 => Reply::Say(
            "",
            vec![("a", "bash", json!({"command": "echo $$ > bg; sleep 300", "background": true}))],
        ),
        1 => say("started"),
        _ => Reply::Say("", vec![bash("b", command)]),
    });
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    assert_eq!(agent.ask("background"), "started");
    let handle = agent.client.cancel_handle();
    let _a_handle_does_not_keep_the_agent_alive = handle.clone();
    let work = dir.work();
    let waiter = std::thread::spawn(move || {
        until("both run", || {
            ["pid", "bg"]
                .iter()
                .all(|f| std::fs::read_to_string(work.join(f)).is_ok_and(|t| t.ends_with('\n')))
        });
        handle.cancel();
    });
    let (result, _) = agent.turn("foreground");
    waiter.join().unwrap();
    assert_eq!(result.unwrap().stop, StopReason::Cancelled);
    let group = std::fs::read_to_string(dir.work().join("bg")).unwrap();
    assert!(
        group_lives(group.trim()),
        "a cancel ends the turn's commands, not the background ones"
    );
    let pid = agent.child.id();
    drop(std::mem::replace(&mut agent.client, idle_client())); // closes the agent's stdin
    until("the agent is gone", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
    });
    until("the background group is gone", || !group_lives(group.trim()));
}

/// A client of nobody, to put in the place of one that is to be dropped.
fn idle_client() -> nanoclaw_agent::client::AcpClient {
    nanoclaw_agent::client::AcpClient::start(std::io::empty(), std::io::sink()).unwrap()
}

#[test]
fn a_model_in_a_circle_is_ended() {
    let dir = TempDir::new();
    let door = Door::open(dir.path(), Api::OpenAi, |_, _| {
        Reply::Say("", vec![("x", "glob", json!({"pattern": "*"}))])
    });
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    let (result, _) = agent.turn("go");
    assert_eq!(result.unwrap().stop, StopReason::MaxTurnRequests);
    assert_eq!(door.seen().len(), 50);
}

#[test]
fn model_failures_have_their_kind_and_leave_the_session_usable() {
    type Case = (fn() -> Reply, FailureKind, bool);
    const STREAM: &str = "Content-Type: text/event-stream\r\n";
    let cases: [Case; 11] = [
        (
            || Reply::Status(401, "", r#"{"error":{"message":"invalid key"}}"#),
            FailureKind::BadKey,
            false,
        ),
        (|| Reply::Status(429, "Retry-After: 7\r\n", "{}"), FailureKind::RateLimited, true),
        (|| Reply::Status(500, "", "<html>oops"), FailureKind::ModelUnavailable, true),
        (|| Reply::Status(404, "", ""), FailureKind::ModelUnavailable, false),
        (
            || Reply::Status(200, "Content-Type: text/html\r\n", "hello"),
            FailureKind::BadAnswer,
            true,
        ),
        (|| Reply::Status(200, STREAM, "data: {nonsense\n\n"), FailureKind::BadAnswer, true),
        (
            || {
                Reply::Status(
                    200,
                    STREAM,
                    "data: {\"error\":{\"type\":\"x\"},\"type\":\"error\"}\n\n",
                )
            },
            FailureKind::ModelUnavailable,
            true,
        ),
        (
            || Reply::CutOff("a text of which only the beginning comes"),
            FailureKind::ModelUnavailable,
            true,
        ),
        (|| Reply::Raw(b"SSH-2.0-nothing\r\n\r\n"), FailureKind::BadAnswer, true),
        (|| Reply::Raw(b""), FailureKind::ModelUnavailable, true),
        (|| say(""), FailureKind::BadAnswer, true),
    ];
    for api in BOTH {
        let dir = TempDir::new();
        let door = Door::open(dir.path(), api, move |number, _| match cases.get(number / 2) {
            Some((fails, ..)) if number % 2 == 0 => fails(),
            _ => say("well"),
        });
        let mut agent = Agent::start(&dir, api, &[], false);
        for (number, (_, kind, retryable)) in cases.iter().enumerate() {
            let question = format!("question-{number}.");
            match agent.turn(&question).0 {
                Err(PromptError::Model(failure)) => {
                    assert_eq!(
                        (failure.kind, failure.retryable),
                        (*kind, *retryable),
                        "{number} {failure}"
                    );
                    assert!(failure.message.starts_with("The model"), "{failure}");
                    assert_eq!(failure.retry_after_s, (number == 1).then_some(7));
                }
                other => panic!("{api:?} {number}: {other:?}"),
            }
            assert_eq!(agent.ask(&question), "well");
            let last = door.seen().last().unwrap().messages();
            assert_eq!(last.matches(&question).count(), 1, "the question is there twice: {last}");
        }
        agent.kill();
        let mut agent = Agent::start(&dir, api, &[], true);
        let _ = agent.turn("after the restart");
        let last = door.seen().last().unwrap().messages();
        assert_eq!(last.matches("question-3.").count(), 1, "twice on disk: {last}");
    }
    let dir = TempDir::new();
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false); // no door at all
    let (result, _) = agent.turn("hi");
    let Err(PromptError::Model(failure)) = result else { panic!("{result:?}") };
    assert!(failure.kind == FailureKind::ModelUnavailable && failure.retryable);
}

#[test]
fn an_idle_agent_is_small() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::Anthropic, |_, _| say("ok"));
    let mut agent = Agent::start(&dir, Api::Anthropic, &[], false);
    agent.ask("hi");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (resident, own) = (field("VmRSS:"), field("RssAnon:"));
    println!("idle agent: {resident} KiB resident, {own} KiB of it its own memory");
    assert!(own < 2_048, "{own} KiB of its own");
    // One reads, one runs turns; however many turns there are, no thread is added.
    agent.ask("hi again");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap();
    assert_eq!(tasks.count(), 2);
}

#[test]
fn a_cancel_at_any_moment_ends_the_turn() {
    let dir = TempDir::new();
    let _door = Door::open(dir.path(), Api::OpenAi, |number, _| {
        if number % 2 == 0 {
            Reply::Say("x", vec![bash("a", "sleep 0.01")])
        } else {
            Reply::Stall("y")
        }
    });
    let mut agent = Agent::start(&dir, Api::OpenAi, &[], false);
    for delay in 0..25_u64 {
        let handle = agent.client.cancel_handle();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(delay * 1_500));
            // Until it takes: the first calls may come before the turn.
            while end.recv_timeout(Duration::from_millis(5)).is_err() {
                handle.cancel();
            }
        });
        let start = Instant::now();
        let (result, _) = agent.turn("go");
        assert_eq!(result.unwrap().stop, StopReason::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(2), "{delay}: {:?}", start.elapsed());
        ended.send(()).unwrap();
        canceller.join().unwrap();
    }
}
