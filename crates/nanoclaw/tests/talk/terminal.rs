//! The chat at a terminal, as a person meets it.

use crate::lab::{Lab, asked, keyed, server, sleepers, until};
use crate::pty::Pty;
use std::time::{Duration, Instant};
use testkit::Options;

#[test]
fn two_turns_and_every_command() {
    let server = server(Options { chunk: Some(5), ..keyed() });
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.expect("with model local (http://127.0.0.1:");
    chat.line("NOTOOL one");
    chat.expect("MOCK_TEXT[NOTOOL one]");
    chat.line("RUN: echo two > f; cat f");
    chat.expect("· bash: echo two > f; cat f");
    chat.expect("MOCK_FINAL[two]");
    chat.line("/status");
    for part in ["session s", "tokens here: ", "namespaces", "seccomp", "memory", "enforced by"] {
        let status = chat.expect(part);
        assert!(!status.contains("not known"), "{status}");
    }
    chat.line("/help");
    chat.expect("/new  /status  /queue (what waits)  /drop [N] (take it back)  /quit");
    chat.line("/nonsense");
    chat.expect("/nonsense is not known. /help lists what is.");
    chat.line("");
    chat.line("/new");
    chat.expect("A fresh conversation; the old one and its workspace are kept.");
    chat.line("RUN: ls -A");
    chat.expect("MOCK_FINAL[[no output]]");
    let last = asked(&server).last().unwrap()["messages"].to_string();
    assert!(!last.contains("NOTOOL one"), "{last}");
    chat.line("/quit");
    chat.wait().expect(0);
    lab.assert_nobody_left();
    lab.verify();
    assert_eq!(lab.workspaces().len(), 2);
}

#[test]
fn a_conversation_is_taken_up_again_with_its_past_on_the_screen() {
    let server = server(keyed());
    let lab = Lab::with_model("openai", &server);
    lab.say("NOTOOL remember the heron").expect(0);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.expect("you> NOTOOL remember the heron");
    chat.expect("MOCK_TEXT[NOTOOL remember the heron]");
    chat.line("NOTOOL again");
    chat.expect("MOCK_TEXT[NOTOOL again]");
    assert!(asked(&server).last().unwrap()["messages"].to_string().contains("heron"));
    chat.expect("you> ");
    chat.keys("\x04"); // Ctrl-D
    chat.wait().expect(0);
    lab.assert_nobody_left();
}

#[test]
fn lines_typed_at_once_become_messages_in_order() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.expect("you> ");
    chat.keys("NOTOOL one\rNOTOOL two\rNOTOOL three\r");
    for text in ["one", "two", "three"] {
        chat.expect(&format!("MOCK_TEXT[NOTOOL {text}]"));
    }
    chat.line("/quit");
    chat.wait().expect(0);
    let shown = chat.shown();
    assert!(!shown.contains("Now yours:"), "no other was answered before: {shown}");
    assert_eq!(asked(&server).len(), 3);
    lab.verify();
}

#[test]
fn ctrl_d_during_a_turn_ends_the_chat_after_what_was_typed_before_it() {
    let server = server(Options { delay: Duration::from_secs(1), ..keyed() });
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.line("NOTOOL slow");
    assert!(server.wait_for(1, Duration::from_secs(10)), "the model was asked");
    chat.keys("NOTOOL ahead\r\x04");
    chat.expect("MOCK_TEXT[NOTOOL slow]");
    chat.expect("MOCK_TEXT[NOTOOL ahead]");
    chat.wait().expect(0);
    lab.assert_nobody_left();
}

#[test]
fn ctrl_c_stops_the_turn_and_the_prompt_comes_back() {
    let server = server(Options { delay: Duration::from_secs(40), ..keyed() });
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.line("NOTOOL slow");
    assert!(server.wait_for(1, Duration::from_secs(10)), "the model was asked");
    let begun = Instant::now();
    chat.keys("\x03");
    chat.expect("(stopped; the message is not tried again)");
    chat.expect("you> ");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    chat.keys("\x03"); // at the prompt it only says what leaves
    chat.expect("/quit leaves");
    chat.line("/quit");
    chat.wait().expect(0);
    lab.assert_nobody_left();
}

#[test]
fn a_closed_window_ends_the_chat_and_its_sandbox() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    let mark = "43.40001";
    chat.line(&format!("RUN: sleep {mark}"));
    until("the tool runs", Duration::from_secs(10), || sleepers(mark) == 1);
    chat.hang_up();
    chat.wait().expect(129);
    until("the tool is gone", Duration::from_secs(5), || sleepers(mark) == 0);
    lab.assert_nobody_left();
    lab.verify();
}

#[test]
fn what_a_model_or_tool_says_does_not_drive_the_terminal() {
    let server = server(Options { chunk: Some(1), ..keyed() });
    let lab = Lab::with_model("openai", &server);
    // Clear the screen, set the title, write the clipboard; reorder; a C1 control.
    let nasty =
        "\x1b[2J \x1b]0;owned\x07 \x1b]52;c;ZXZpbA==\x07 \u{202e}txt.exe \u{2066} \u{9b}31m";
    let by_tool = "RUN: printf '\\033[2J\\033]0;owned\\007\\342\\200\\256'";
    for text in [format!("NOTOOL {nasty}"), by_tool.to_owned()] {
        let Some(mut chat) = Pty::start(&lab, &["chat", "-m", &text]) else { return };
        let shown = chat.wait().expect(0).stdout;
        assert!(shown.contains("owned") && shown.contains("MOCK_"), "{shown:?}");
        assert!(shown.contains("\\u{1b}[2J") && shown.contains("\\u{202e}"), "{shown:?}");
        for raw in ["\x1b[2J", "\x1b]", "\x07", "\u{202e}", "\u{2066}", "\u{9b}"] {
            assert!(!shown.contains(raw), "{raw:?} is in {shown:?}");
        }
    }
}

#[test]
fn two_terminals_have_two_conversations_that_see_nothing_of_each_other() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    let Some(mut first) = Pty::start(&lab, &["chat"]) else { return };
    let mark = "43.50001";
    first.line(&format!(r#"CALL:bash {{"command":"sleep {mark}","background":true}}"#));
    first.expect("MOCK_FINAL[");
    first.line("RUN: echo private > mine; ls");
    first.expect("mine]");
    until("the first one's process is there", Duration::from_secs(5), || sleepers(mark) == 1);
    let Some(mut second) = Pty::start(&lab, &["chat"]) else { return };
    second.expect("Another terminal holds the first conversation; this is a separate one.");
    second.line("RUN: cat mine; ls -A /workspace; cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    let said = second.expect("]\r\n");
    let reply = said.split("MOCK_FINAL[").nth(1).expect("a reply");
    assert!(reply.contains("No such file"), "{reply}");
    assert!(!reply.contains("private") && !reply.contains(mark), "{reply}");
    assert_eq!(sleepers(mark), 1, "the first one's process was there to be seen");
    let last = asked(&server).last().unwrap()["messages"].to_string();
    assert!(!last.contains("private > mine"), "{last}");
    let workspaces = lab.workspaces();
    assert_eq!(workspaces.len(), 2);
    assert!(workspaces[0].join("mine").exists() && !workspaces[1].join("mine").exists());
    for chat in [&mut second, &mut first] {
        chat.line("/quit");
        chat.wait().expect(0);
    }
    lab.assert_nobody_left();
    lab.verify();
}
