//! Ctrl-C and the end of everything, from outside.

use crate::lab::{Lab, Running, keyed, marked, server, sleepers, until};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use testkit::Options;

/// A person who presses Ctrl-C does not wait longer.
const STOPPED_WITHIN: Duration = Duration::from_secs(2);
/// A slow model: slower than any patience here, faster than the watchdog.
const SLOW: Duration = Duration::from_secs(40);

#[test]
fn ctrl_c_stops_a_turn_that_waits_for_its_model() {
    for api in ["anthropic", "openai"] {
        let server = server(Options { delay: SLOW, ..keyed() });
        let lab = Lab::with_model(api, &server);
        let chat = Running::start(lab.command(&["chat", "-m", "NOTOOL hello"]), b"");
        assert!(server.wait_for(1, Duration::from_secs(10)), "{api}: the model was asked");
        let begun = Instant::now();
        chat.signal(Signal::INT);
        let out = chat.wait().expect(130);
        assert!(begun.elapsed() < STOPPED_WITHIN, "{api}: {:?}", begun.elapsed());
        assert!(out.stderr.contains("(stopped)"), "{api}: {out:#?}");
        assert_eq!(lab.records("turn_finished")[0]["outcome"], "cancelled", "{api}");
        lab.assert_nobody_left();
        lab.verify();
    }
}

#[test]
fn ctrl_c_stops_a_tool_and_the_conversation_goes_on() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    let mark = "43.20001";
    let chat = Running::start(lab.command(&["chat", "-m", &format!("RUN: sleep {mark}")]), b"");
    until("the tool runs", Duration::from_secs(10), || sleepers(mark) == 1);
    let begun = Instant::now();
    chat.signal(Signal::INT);
    chat.wait().expect(130);
    assert!(begun.elapsed() < STOPPED_WITHIN, "{:?}", begun.elapsed());
    until("the tool is gone", STOPPED_WITHIN, || sleepers(mark) == 0);
    assert_eq!(lab.say("NOTOOL next").expect(0).stdout, "MOCK_TEXT[NOTOOL next]\n");
}

#[test]
fn terminate_and_hang_up_end_everything_and_leave_nobody() {
    for (signal, code, mark) in [(Signal::TERM, 143, "43.30001"), (Signal::HUP, 129, "43.30002")] {
        let server = server(keyed());
        let lab = Lab::with_model("openai", &server);
        let text = format!("RUN: setsid sleep {mark} & sleep {mark}");
        let chat = Running::start(lab.command(&["chat", "-m", &text]), b"");
        until("the tool runs", Duration::from_secs(10), || sleepers(mark) == 2);
        assert!(marked(&lab.mark()).len() >= 2, "chat and recorder, at least, are seen");
        let begun = Instant::now();
        chat.signal(signal);
        chat.wait().expect(code);
        assert!(begun.elapsed() < STOPPED_WITHIN, "{:?}", begun.elapsed());
        until("the tool is gone", Duration::from_secs(5), || sleepers(mark) == 0);
        lab.assert_nobody_left();
        lab.verify();
    }
}

/// Whoever interrupts `chat -m` is not answered by the next chat, and is told so.
#[test]
fn an_interrupted_message_is_taken_back_on_record_and_never_answered() {
    for (signal, code, name) in
        [(Signal::INT, 130, "SIGINT"), (Signal::TERM, 143, "SIGTERM"), (Signal::HUP, 129, "SIGHUP")]
    {
        let server = server(Options { delay: Duration::from_secs(4), ..keyed() });
        let lab = Lab::with_model("anthropic", &server);
        let chat = Running::start(lab.command(&["chat", "-m", "NOTOOL nevermore"]), b"");
        assert!(server.wait_for(1, Duration::from_secs(10)), "{name}: the model was asked");
        chat.signal(signal);
        let out = chat.wait().expect(code);
        assert_eq!(out.stdout, "", "{name}");
        let told = format!("The message is taken back (interrupted by {name})");
        assert!(out.stderr.contains(&told), "{name}: {out:#?}");
        lab.assert_nobody_left();
        assert_eq!(lab.run(&["chat", "--queued", "--json"]).expect(0).stdout, "", "{name}");
        let withdrawn = lab.records("message_withdrawn");
        assert_eq!(withdrawn.len(), 1, "{name}: {withdrawn:?}");
        assert_eq!(withdrawn[0]["reason"], format!("interrupted by {name}"));
        let out = lab.say("NOTOOL next").expect(0);
        assert_eq!(out.stdout, "MOCK_TEXT[NOTOOL next]\n", "{name}: {out:#?}");
        assert!(!out.stderr.contains("nevermore"), "{name}: {out:#?}");
        assert_eq!(server.requests().len(), 2, "{name}: the first was not asked again");
        lab.verify();
    }
}

/// The interrupted message waits behind an earlier one: it alone is taken back.
#[test]
fn an_interrupt_takes_back_the_own_message_and_keeps_the_earlier_one() {
    let port = crate::lab::free_port();
    let lab = Lab::new();
    lab.model("openai", &format!("http://127.0.0.1:{port}"));
    lab.say("NOTOOL earlier").expect(1);
    let slow = server(Options { port, delay: Duration::from_secs(3), ..keyed() });
    let chat = Running::start(lab.command(&["chat", "-m", "NOTOOL own"]), b"");
    assert!(slow.wait_for(1, Duration::from_secs(10)), "the earlier one is asked");
    chat.signal(Signal::TERM);
    let out = chat.wait().expect(143);
    assert_eq!(out.stdout, "", "{out:#?}");
    lab.assert_nobody_left();
    let queued = lab.run(&["chat", "--queued", "--json"]).expect(0).events();
    assert_eq!(queued.len(), 1, "{queued:#?}");
    assert_eq!(queued[0]["text"], "NOTOOL earlier");
    lab.verify();
}
