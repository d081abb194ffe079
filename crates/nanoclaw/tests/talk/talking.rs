//! One message, one reply: both wire formats, tools, memory.

use crate::lab::{KEY, Lab, Running, asked, keyed, server};
use serde_json::Value;
use std::time::Duration;
use testkit::{FakeModel, Options};

const FORMATS: [(&str, &str); 2] =
    [("anthropic", "/v1/messages"), ("openai", "/v1/chat/completions")];

/// The kinds of the events, in order.
fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["event"].as_str().expect("every event says what it is")).collect()
}

/// The server saw the key from the vault in every request, and the placeholder in none.
fn assert_key_injected(server: &FakeModel, path: &str) {
    let requests = server.requests();
    assert!(!requests.is_empty());
    for seen in requests {
        assert_eq!((seen.path.as_str(), seen.status), (path, 200), "{seen:?}");
        let keys = seen.credentials();
        assert!(keys.iter().any(|(_, v)| v.trim_start_matches("Bearer ") == KEY), "{keys:?}");
        let shown = format!("{:?}", seen.headers);
        assert!(!shown.contains("placeholder") && !seen.body.contains("placeholder"), "{seen:?}");
    }
}

#[test]
fn a_clean_end_is_not_recorded_as_a_loss() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.say("hello").expect(0);
    let story = lab.run(&["audit", "show", "--all"]).expect(0).stdout;
    assert!(story.contains("The session ended"), "{story}");
    assert!(!story.contains("gone without a word"), "{story}");
}

#[test]
fn a_tool_runs_in_the_sandbox_and_the_reply_alone_is_on_stdout_in_both_formats() {
    for (api, path) in FORMATS {
        let server = server(Options { chunk: Some(3), ..keyed() });
        let lab = Lab::with_model(api, &server);
        let out = lab.say("RUN: echo hi > f; cat f; id -u; pwd").expect(0);
        assert_eq!(out.stdout, "MOCK_FINAL[hi\n1000\n/workspace]\n", "{api}: {out:#?}");
        let workspaces = lab.workspaces();
        assert_eq!(workspaces.len(), 1, "{api}");
        assert_eq!(std::fs::read_to_string(workspaces[0].join("f")).unwrap(), "hi\n", "{api}");
        let bodies = asked(&server);
        assert_eq!(bodies.len(), 2, "{api}: asked once, and once with the tool's result");
        assert!(bodies.iter().all(|b| b["stream"] == true), "{api}");
        assert_key_injected(&server, path);
        lab.assert_nobody_left();
        lab.verify();
    }
}

#[test]
fn events_are_json_from_start_to_finish() {
    for (api, _) in FORMATS {
        let server = server(Options { chunk: Some(1), ..keyed() });
        let lab = Lab::with_model(api, &server);
        let events = lab.say_json("RUN: printf 'a\\nb'");
        let kinds: Vec<&str> = kinds(&events).into_iter().filter(|k| *k != "received").collect();
        assert_eq!(kinds[..3], ["turn_started", "tool_started", "tool_finished"], "{events:#?}");
        assert!(kinds[3..kinds.len() - 1].iter().all(|k| *k == "text"), "{kinds:?}");
        let last = events.last().unwrap();
        assert_eq!((&last["event"], &last["outcome"]), (&"turn_finished".into(), &"done".into()));
        assert_eq!(last["reply"], "MOCK_FINAL[a\nb]");
        assert!(
            last["input_tokens"].as_u64() > Some(0) && last["output_tokens"].as_u64() > Some(0)
        );
        let streamed: String = events.iter().filter_map(|e| e["text"].as_str()).collect();
        assert_eq!(streamed, "MOCK_FINAL[a\nb]");
        let call = events.iter().find(|e| e["event"] == "tool_finished").unwrap();
        assert_eq!((&call["ok"], &call["bytes"]), (&true.into(), &3.into()), "{call}");
    }
}

#[test]
fn parallel_calls_overlap_and_every_one_is_answered_and_on_record() {
    for (api, _) in FORMATS {
        let server = server(keyed());
        let lab = Lab::with_model(api, &server);
        // Each waits for the other's file: one after the other, neither would ever end well.
        let wait = |mine: &str, other: &str| {
            format!(
                "RUN: touch {mine}; for i in $(seq 100); do test -e {other} && break; sleep 0.1; \
                 done; test -e {other} && echo {mine} met {other}"
            )
        };
        let text = format!("{}\n{}\nRUN: exit 3", wait("one", "two"), wait("two", "one"));
        let events = lab.say_json(&text);
        let reply = events.last().unwrap()["reply"].as_str().unwrap().to_owned();
        assert!(reply.contains("one met two") && reply.contains("two met one"), "{api}: {reply}");
        let (called, finished) = (lab.records("tool_called"), lab.records("tool_finished"));
        assert_eq!((called.len(), finished.len()), (3, 3), "{api}");
        let failed: Vec<&Value> = finished.iter().filter(|f| f["ok"] == false).collect();
        assert_eq!(failed.len(), 1, "{api}: {failed:?}");
        let of = called.iter().find(|c| c["call"] == failed[0]["call"]).expect("its call");
        assert!(of["arguments"].as_str().unwrap().contains("exit 3"), "{of}");
    }
}

#[test]
fn the_next_process_remembers_and_new_starts_afresh_without_deleting() {
    for (api, _) in FORMATS {
        let server = server(keyed());
        let lab = Lab::with_model(api, &server);
        lab.say("NOTOOL my name is Quillon").expect(0);
        lab.say("RUN: echo kept > note").expect(0);
        let bodies = asked(&server);
        let last = bodies.last().unwrap()["messages"].to_string();
        assert!(last.contains("NOTOOL my name is Quillon"), "{api}: {last}");
        assert!(last.contains("MOCK_TEXT[NOTOOL my name is Quillon]"), "{api}: {last}");

        let out = lab.run(&["chat", "--new", "-m", "RUN: ls -A"]).expect(0);
        assert_eq!(out.stdout.trim(), "MOCK_FINAL[[no output]]", "{api}: an empty workspace");
        let last = asked(&server).last().unwrap()["messages"].to_string();
        assert!(!last.contains("Quillon"), "{api}: {last}");
        let workspaces = lab.workspaces();
        assert_eq!(workspaces.len(), 2, "{api}");
        assert_eq!(std::fs::read_to_string(workspaces[0].join("note")).unwrap(), "kept\n");
        assert!(!workspaces[1].join("note").exists());
        // The fresh conversation is the one that goes on.
        lab.say("NOTOOL still here").expect(0);
        assert_eq!(lab.workspaces().len(), 2, "{api}");
    }
}

#[test]
fn the_log_tells_the_first_opening_from_a_resumed_one() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.say("NOTOOL one").expect(0);
    lab.say("NOTOOL two").expect(0);
    lab.run(&["chat", "--new", "-m", "NOTOOL three"]).expect(0);
    let opened = lab.records("session_opened");
    let resumed: Vec<bool> = opened.iter().map(|r| r["resumed"] == true).collect();
    assert_eq!(resumed, [false, true, false], "{opened:#?}");
}

#[test]
fn a_turn_is_on_record_in_the_order_in_which_it_happened() {
    let server = server(keyed());
    let lab = Lab::with_model("openai", &server);
    lab.say("RUN: true").expect(0);
    lab.assert_nobody_left();
    let kinds: Vec<String> = lab.log().iter().map(|b| b["kind"].as_str().unwrap().into()).collect();
    let before = ["session_opened", "sandbox_started", "turn_started", "secret_used"];
    let asked = ["model_request", "model_response", "model_request", "model_response"];
    // Told by the agent beside its requests, so in no fixed order with the later of them.
    let used = ["model_request", "tool_called", "tool_finished"];
    let after = ["turn_finished", "message", "sandbox_stopped", "session_closed"];
    for chain in [[&before[..], &asked, &after].concat(), [&before[..], &used, &after].concat()] {
        let mut rest = kinds.iter();
        for kind in chain {
            assert!(rest.any(|k| k == kind), "{kind} is missing or out of order in {kinds:#?}");
        }
    }
    assert_eq!(kinds.iter().filter(|k| *k == "message").count(), 2, "{kinds:#?}");
}

#[test]
fn what_a_turn_executes_is_on_record_under_it() {
    let server = server(keyed());
    let lab = Lab::with_model("openai", &server);
    lab.say("RUN: /bin/echo seen").expect(0);
    lab.assert_nobody_left();
    let turns = lab.records("turn_started");
    let executed = lab.records("process_exec");
    let echo = executed.iter().find(|r| r["path"] == "/bin/echo").expect("it is on record");
    assert_eq!(echo["turn"], turns[0]["turn"], "{echo:#}");
    let image = lab.records("process_image").into_iter().find(|r| r["exec"] == echo["exec"]);
    assert_eq!(image.expect("its image")["turn"], turns[0]["turn"]);
    // The agent itself was executed before any turn, from a memory file. A plain user is not shown
    // the descriptors of init, which is not dumpable; then that is said.
    let own = &executed[0];
    let named = own["path"].as_str().is_some_and(|p| p.starts_with("/memfd:nanoclaw"));
    assert!(named || own["unread"].as_str().is_some_and(|u| u.contains("descriptor")), "{own:#}");
    assert_eq!(own["argv"][1], "__agent");
    assert_eq!(executed[0].get("turn"), None);
}

#[test]
fn a_reply_has_a_receipt_that_a_stranger_verifies() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.say("RUN: echo first").expect(0);
    lab.say("RUN: echo hi > f; cat f").expect(0);
    let replies: Vec<Value> = lab.records("message");
    let reply = replies.last().expect("a reply is on record");
    let id = reply["message"].as_str().expect("it has an id");
    let said = lab.run(&["audit", "receipt", "--json"]).expect(0).stdout;
    let receipt: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(receipt["message"], id, "the newest reply");
    let behind = receipt["behind"].as_array().expect("records");
    let kinds: Vec<&str> =
        behind.iter().filter_map(|r| r["entry"]["unmapped"]["kind"].as_str()).collect();
    for kind in ["session_opened", "sandbox_started", "message", "turn_started", "model_request"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    assert_eq!(kinds.iter().filter(|k| **k == "message").count(), 2, "{kinds:?}");
    assert!(kinds.contains(&"tool_called") && kinds.contains(&"process_exec"), "{kinds:?}");
    // Of this turn alone, each once.
    assert!(!said.contains("echo first"), "{said}");
    let folder = lab.path("receipt");
    let folder = folder.to_str().expect("UTF-8");
    lab.run(&["audit", "receipt", id, "--out", folder]).expect(0);
    let key = receipt["vkey"].as_str().expect("a key");
    let verified = lab.run(&["audit", "verify", folder, "--key", key, "--json"]).expect(0);
    assert_eq!(verified.stdout.lines().count(), behind.len());
    lab.run(&["audit", "receipt", "m00000000001-00000002"]).expect(3);
}

#[test]
fn lines_from_a_pipe_are_a_conversation_too() {
    let server = server(keyed());
    let lab = Lab::with_model("openai", &server);
    let input = b"NOTOOL one\n\nRUN: echo two\n/quit\nNOTOOL never said\n";
    let out = Running::start(lab.command(&["chat"]), input).wait().expect(0);
    let one = out.stdout.find("MOCK_TEXT[NOTOOL one]").expect("the first reply");
    let two = out.stdout.find("MOCK_FINAL[two]").expect("the second reply");
    assert!(one < two && !out.stdout.contains("never said"), "{out:#?}");
    lab.assert_nobody_left();
}

#[test]
fn every_agent_has_its_own_conversation() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.agent("triage", "schema = 1\ndescription = \"Sorts\"\n");
    lab.say("NOTOOL to the assistant").expect(0);
    let out = lab.run(&["chat", "triage", "-m", "RUN: ls -A"]).expect(0);
    assert_eq!(out.stdout, "MOCK_FINAL[[no output]]\n");
    assert!(!asked(&server).last().unwrap()["messages"].to_string().contains("to the assistant"));
    assert_eq!(lab.workspaces().len(), 2);
    lab.assert_nobody_left();
    let entries = lab.run(&["audit", "show", "--all", "--json"]).expect(0).events();
    let agents = |name: &str| entries.iter().filter(|e| e["ai_agent"]["uid"] == name).count();
    assert!(agents("triage") > 5 && agents("assistant") > 5, "{entries:#?}");
}

#[test]
fn two_processes_at_once_have_two_conversations() {
    let slow = server(Options { delay: Duration::from_millis(700), ..keyed() });
    let lab = Lab::with_model("anthropic", &slow);
    let first = Running::start(lab.command(&["chat", "-m", "RUN: echo 1 > one; ls"]), b"");
    assert!(slow.wait_for(1, Duration::from_secs(10)));
    let second = lab.say("RUN: echo 2 > two; ls").expect(0);
    assert_eq!(second.stdout, "MOCK_FINAL[two]\n", "{second:#?}");
    assert_eq!(first.wait().expect(0).stdout, "MOCK_FINAL[one]\n");
    // Alone again, the first conversation goes on.
    assert_eq!(lab.say("RUN: ls").expect(0).stdout, "MOCK_FINAL[one]\n");
    lab.assert_nobody_left();
    lab.verify();
}
