//! `kill -9` at any moment: nobody is left, the log is whole, nothing acknowledged is lost.

use crate::lab::{Lab, Running, asked, keyed, server, sleepers, wait_gone};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;
use testkit::{Options, Rng};

/// Kills in one run; the seed is printed, so that a bad one can be repeated.
const KILLS: usize = 20;

fn of<'a>(events: &'a [Value], kind: &str, message: &Value) -> Option<&'a Value> {
    events.iter().find(|e| e["event"] == kind && e["message"] == *message)
}

/// The lines that were whole when the process was killed.
fn whole_lines(text: &str) -> Vec<Value> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).expect("a whole line is JSON"))
        .collect()
}

/// What became of the messages over all kills, so that the test cannot pass by never biting.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: Vec<String>,
    interrupted: usize,
    /// Kills while the process that must not become an orphan was there.
    with_tools: usize,
}

/// One kill, and one visit afterwards.
fn round(lab: &Lab, number: usize, after_ms: usize, tally: &mut Tally) {
    // The sleep in the background outlives its turn, and must not outlive the host.
    let mark = format!("44.{}{number:02}", std::process::id());
    let tag = format!("kill-{number:02}-at-{after_ms}");
    let text = format!(
        "CALL:bash {{\"command\":\"sleep {mark}\",\"background\":true}}\n\
         RUN: echo {tag} >> journal; sleep 0.1\nRUN: echo {tag}"
    );
    let chat = Running::start(lab.command(&["chat", "--json", "-m", &text]), b"");
    std::thread::sleep(Duration::from_millis(after_ms as u64));
    tally.with_tools += sleepers(&mark);
    chat.signal(Signal::KILL);
    let killed = chat.wait();
    let before = whole_lines(&killed.stdout);
    let left = wait_gone(&mark, Duration::from_secs(5));
    assert!(left.is_empty(), "{tag}: orphans: {left:#?}");
    lab.assert_nobody_left();
    lab.verify();

    let note = format!("NOTOOL after {tag}");
    // What belongs to earlier messages stands in events of its own.
    let unwrap = |mut e: Value| if e["event"] == "earlier" { e["what"].take() } else { e };
    let events: Vec<Value> = lab.say_json(&note).into_iter().map(unwrap).collect();
    let reply = events.last().expect("events")["reply"].clone();
    assert_eq!(reply, format!("MOCK_TEXT[{note}]"), "{tag}");
    let Some(received) = before.iter().find(|e| e["event"] == "received") else { return };
    let message = &received["message"];
    tally.acknowledged.push(tag.clone());
    let again = of(&events, "turn_finished", message);
    let late = events.iter().any(|e| e["late"] == true && e["text"].to_string().contains(&tag));
    let answered = of(&before, "turn_finished", message).is_some() || late;
    assert!(answered || again.is_some(), "{tag} is lost:\n{before:#?}\n{events:#?}");
    if let Some(again) = again {
        assert_eq!(again["outcome"], "done", "{tag}");
        assert!(again["reply"].to_string().contains(&tag), "{tag}: {again}");
        if of(&before, "turn_started", message).is_some() {
            tally.interrupted += 1;
            let told = |e: &Value| e["text"].to_string().contains("did not finish; trying again");
            assert!(events.iter().any(told), "{tag}: run again without a word: {events:#?}");
        }
    }
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_lost_and_nobody_is_left() {
    let mut rng = Rng::from_env();
    let server = server(Options { chunk: Some(7), ..keyed() });
    let lab = Lab::with_model("anthropic", &server);
    let mut tally = Tally::default();
    // Kills fall before, in and after a turn, however slow this machine is.
    let whole = lab.say("RUN: sleep 0.1").expect(0).took.as_millis();
    let latest = usize::try_from(whole).expect("milliseconds") * 3 / 2;
    for number in 0..KILLS {
        round(&lab, number, rng.below(latest), &mut tally);
    }
    eprintln!("{tally:?}");
    assert!(tally.acknowledged.len() > KILLS / 2, "{tally:?}");
    assert!(tally.interrupted > 0 && tally.with_tools > 0, "no kill fell into a turn: {tally:?}");

    // One conversation through all of it, with everything that was acknowledged in it.
    assert_eq!(lab.workspaces().len(), 1);
    lab.say("NOTOOL the end").expect(0);
    let last = asked(&server).last().expect("asked")["messages"].to_string();
    let journal = std::fs::read_to_string(lab.workspaces()[0].join("journal")).expect("journal");
    for tag in &tally.acknowledged {
        assert!(last.contains(&format!("NOTOOL after {tag}")), "{tag}: no history of the visit");
        assert!(last.contains(&format!("echo {tag} >> journal")), "{tag}: no history");
        assert!(journal.contains(tag.as_str()), "{tag} had no effect");
    }
    lab.verify();
}
