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
        let out = chat.wait().expect(1);
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
    chat.wait().expect(1);
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
