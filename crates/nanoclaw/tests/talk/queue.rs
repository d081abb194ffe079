//! Messages that wait: whose answers go where, seeing them, and taking them back.

use crate::lab::{Lab, asked, free_port, keyed, server};
use crate::pty::Pty;
use testkit::Options;

/// An installation whose model is down, and a message that waits for it; and the port.
fn waiting(text: &str) -> (Lab, u16) {
    let port = free_port();
    let lab = Lab::new();
    lab.model("anthropic", &format!("http://127.0.0.1:{port}"));
    lab.say(text).expect(1);
    (lab, port)
}

#[test]
fn an_earlier_answer_is_an_event_of_its_own_in_json() {
    let (lab, port) = waiting("NOTOOL before");
    let _server = server(Options { port, ..keyed() });
    let events = lab.say_json("NOTOOL mine");
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    let finished = of("turn_finished");
    assert_eq!(finished.len(), 1, "{events:#?}");
    assert_eq!(finished[0]["reply"], "MOCK_TEXT[NOTOOL mine]");
    let text: String = of("text").iter().filter_map(|e| e["text"].as_str()).collect();
    assert_eq!(text, "MOCK_TEXT[NOTOOL mine]");
    assert_eq!(of("earlier_message")[0]["text"], "NOTOOL before");
    let earlier = of("earlier");
    let last = &earlier.last().expect("its end")["what"];
    assert_eq!(last["reply"], "MOCK_TEXT[NOTOOL before]", "{events:#?}");
}

#[test]
fn what_waits_is_listed_and_dropped_from_the_command_line_on_record() {
    let (lab, port) = waiting("NOTOOL \u{1b}[2Jdropped");
    let listed = lab.run(&["chat", "--queued"]).expect(0);
    assert!(listed.stdout.contains("dropped") && !listed.stdout.contains('\x1b'), "{listed:#?}");
    assert!(listed.stdout.contains("tried 1x"), "{listed:#?}");
    let dropped = lab.run(&["chat", "--drop-queued"]).expect(0);
    assert!(dropped.stdout.starts_with("dropped: NOTOOL"), "{dropped:#?}");
    let withdrawn = lab.records("message_withdrawn");
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(withdrawn[0]["reason"], "dropped by its owner");
    let again = lab.run(&["chat", "--drop-queued"]).expect(0);
    assert!(again.stderr.contains("No message waits"), "{again:#?}");
    let server = server(Options { port, ..keyed() });
    let out = lab.say("NOTOOL next").expect(0);
    assert_eq!(out.stdout, "MOCK_TEXT[NOTOOL next]\n", "{out:#?}");
    assert_eq!(asked(&server).len(), 1, "what was dropped is not asked");
    lab.verify();
}

#[test]
fn what_waits_is_shown_and_dropped_in_the_chat() {
    let (lab, port) = waiting("NOTOOL unwanted");
    let server = server(Options { port, ..keyed() });
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.expect("From before, answered with your next message (/drop takes it back):");
    chat.expect("NOTOOL unwanted");
    // Who holds the conversation decides.
    let other = lab.run(&["chat", "--drop-queued"]).expect(0);
    assert!(other.stderr.contains("another terminal holds that conversation"), "{other:#?}");
    chat.line("/queue");
    chat.expect("tried 1x: NOTOOL unwanted");
    chat.line("/drop 7");
    chat.expect("7 is not in the queue");
    chat.line("/drop 1");
    chat.expect("dropped: NOTOOL unwanted");
    chat.line("/queue");
    chat.expect("No message waits for an answer.");
    chat.line("NOTOOL wanted");
    chat.expect("MOCK_TEXT[NOTOOL wanted]");
    chat.line("/quit");
    chat.wait().expect(0);
    assert_eq!(asked(&server).len(), 1, "what was dropped is not asked");
    lab.verify();
}

/// A conversation waits for its model until Ctrl-C; what is dropped then is not tried again.
#[test]
fn a_wait_for_the_model_is_said_truly_and_can_be_given_up() {
    let port = free_port();
    let lab = Lab::new();
    lab.model("openai", &format!("http://127.0.0.1:{port}"));
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.line("NOTOOL lost");
    chat.expect("Your message is kept; trying again in 2 s (Ctrl-C stops waiting).");
    chat.keys("\x03");
    chat.expect("The message stays in the queue; /drop takes it back.");
    chat.line("/drop");
    chat.expect("dropped: NOTOOL lost");
    let server = server(Options { port, ..keyed() });
    chat.line("NOTOOL found");
    chat.expect("MOCK_TEXT[NOTOOL found]");
    chat.line("/quit");
    chat.wait().expect(0);
    assert_eq!(asked(&server).len(), 1);
    lab.assert_nobody_left();
}

/// A fresh conversation can be begun while the old one tries again for nobody.
#[test]
fn a_fresh_conversation_takes_back_what_the_old_one_waited_for() {
    let lab = Lab::new();
    lab.model("openai", &format!("http://127.0.0.1:{}", free_port()));
    let Some(mut chat) = Pty::start(&lab, &["chat"]) else { return };
    chat.line("NOTOOL old");
    chat.expect("trying again in 2 s");
    chat.keys("\x03");
    chat.expect("The message stays in the queue");
    // Its time comes, and its worker waits for somebody to tell it to.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    chat.line("/new");
    chat.expect("dropped: NOTOOL old");
    chat.expect("A fresh conversation");
    chat.line("/quit");
    chat.wait().expect(0);
    assert_eq!(lab.run(&["chat", "--queued", "--json"]).expect(0).stdout, "");
    lab.verify();
}

/// The script of the page about scripted models works as it stands there.
#[test]
fn the_script_in_the_documentation_plays_as_written() {
    let page = include_str!("../../../../docs/scripted-model.md");
    let mut blocks = page.split("```toml\n").skip(1).filter_map(|b| b.split("```").next());
    let (config, script) = (blocks.next().expect("config"), blocks.next().expect("script"));
    let lab = Lab::new();
    std::fs::write(lab.home().join("nanoclaw.toml"), config).expect("written");
    std::fs::write(lab.home().join("tour.toml"), script).expect("written");
    let out = lab.say("Look, please").expect(0);
    assert_eq!(out.stdout.trim_end(), "I look around. \nI found: chest", "{out:#?}");
    assert_eq!(lab.say("hello").expect(0).stdout, "You said: hello\n");
}
