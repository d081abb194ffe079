//! `[[ask]]` at a terminal: what is shown, what each answer does, and what is on record.

use crate::lab::{Lab, TICK, wait_until};
use crate::terminal::Desk;
use crate::totals::records;
use testkit::{FakeModel, Options};

both!(
    a_yes_lets_one_request_out_and_a_no_none,
    what_is_asked_is_shown_exactly_and_escaped,
    without_an_answer_nothing_goes_out,
    two_questions_are_put_one_after_the_other,
    ctrl_c_at_a_question_ends_the_command_and_nothing_goes_out,
    an_answer_for_a_program_that_has_left_lets_nothing_out,
    a_question_nobody_waits_for_is_taken_back_and_the_next_one_put,
    what_was_typed_before_a_question_is_no_part_of_its_answer,
    an_answer_is_taken_after_the_end_of_the_commands_input,
);

/// A server, and an agent whose posts to it a human decides.
fn asking(lab: &Lab, timeout: &str) -> FakeModel {
    let server = FakeModel::start(Options::default()).unwrap();
    let port = server.address().port();
    let text = format!(
        "schema = 1\n[[egress]]\nhost = \"localhost\"\nport = {port}\nprivate = true\n\
         methods = [\"GET\"]\n[[ask]]\negress = \"POST localhost:{port}/**\"\n\
         timeout = \"{timeout}\"\n"
    );
    lab.file(&lab.home().join("agents/asker.toml"), &text);
    server
}

/// Posts, in a shell: prints the path and the status.
fn post(server: &FakeModel, path: &str) -> String {
    let url = format!("http://localhost:{}{path}", server.address().port());
    format!(
        "curl -s -o /dev/null --noproxy '' -x http://127.0.0.1:3128 -d x \
         -w 'got {path} %{{http_code}}\\n' '{url}'"
    )
}

fn desk(lab: &Lab, script: &str) -> Option<Desk> {
    testkit::need("curl")?;
    Some(Desk::start(lab.nanoclaw(["run", "--agent", "asker", "--", "sh", "-c", script])))
}

/// Of each decision in the newest session: what it was and whose.
fn decisions(lab: &Lab) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let decided = records(lab, "approval_decided");
    decided.iter().map(|d| (text(&d["decision"]), text(&d["by"]))).collect()
}

fn decided(what: &str, by: &str) -> (String, String) {
    (what.to_owned(), by.to_owned())
}

fn a_yes_lets_one_request_out_and_a_no_none(lab: &Lab) {
    let server = asking(lab, "30s");
    let script = ["/a", "/b", "/c"].map(|path| post(&server, path)).join("\n");
    let Some(mut desk) = desk(lab, &script) else { return };
    for (path, key) in [("/a", "y\r"), ("/b", "n\r"), ("/c", "perhaps\r")] {
        desk.wait_for(&format!("POST http://localhost:{}{path}", server.address().port()));
        assert!(!desk.shown().contains(&format!("got {path}")), "it waits: {}", desk.shown());
        let tries = if path == "/c" { 3 } else { 1 };
        for asked_again in 0..tries {
            wait_until("it is asked again", || {
                desk.shown().matches("That is neither y nor n.").count() == asked_again
            });
            desk.type_in(key);
        }
        desk.wait_for(&format!("got {path} "));
    }
    let (ran, _) = desk.wait();
    let said = ran.out();
    assert!(said.contains("got /b 403") && said.contains("got /c 403"), "{said}");
    assert!(!said.contains("got /a 403"), "{said}");
    let seen = server.requests();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let owner = ["allow", "deny", "deny"].map(|what| decided(what, "owner"));
    assert_eq!(decisions(lab), owner);
    let asked = records(lab, "approval_asked");
    let rules: Vec<_> = asked.iter().filter_map(|a| a["rule"].as_str()).collect();
    assert!(rules.iter().all(|r| r.contains("asker.toml:")) && rules.len() == 3, "{rules:?}");
    assert!(said.contains(&format!("rule {}", rules[0])), "{said}");
}

fn what_is_asked_is_shown_exactly_and_escaped(lab: &Lab) {
    let server = asking(lab, "30s");
    // A control character in the path itself would be read in more than one way, and never asked.
    let path = "/items/a%5b2J%e2%80%ae";
    let script = post(&server, &format!("{path}?k%1b%0a%e2%80%ae=hidden&plain=1"));
    let script = script.replace("-w 'got /items", "-w 'got /x");
    let Some(mut desk) = desk(lab, &script) else { return };
    desk.wait_for("Allow once? [y/n]");
    let shown = desk.shown();
    let url = format!("POST http://localhost:{}{path}", server.address().port());
    assert!(shown.contains(&url) && shown.contains("plain"), "{shown}");
    assert!(!shown.contains("hidden"), "values are not shown: {shown}");
    let hostile = |c: char| c == '\u{202e}' || c == '\u{1b}';
    let question = &shown[shown.find("POST http").unwrap()..];
    assert!(!question.contains(hostile), "{question:?}");
    desk.type_in("n\r");
    desk.wait();
    assert_eq!(server.requests().len(), 0);
    // What is on record is what stood there, to the byte, and what the answer was given to.
    let (asked, decided) = (records(lab, "approval_asked"), records(lab, "approval_decided"));
    let text = asked[0]["summary"].as_str().unwrap();
    assert!(shown.contains(&format!("  {text}\n")), "{text:?}: {shown:?}");
    let digest: String =
        audit::merkle::sha256(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(asked[0]["shown_sha256"], digest.as_str());
    assert_eq!(decided[0]["shown_sha256"], digest.as_str());
}

fn without_an_answer_nothing_goes_out(lab: &Lab) {
    let server = asking(lab, "1s");
    let Some(mut desk) = desk(lab, &post(&server, "/late")) else { return };
    desk.wait_for("got /late 403");
    let (ran, _) = desk.wait();
    assert!(ran.out().contains("Allow once?"), "{ran}");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(decisions(lab).len(), 1);
    assert!(["timeout", "none"].contains(&decisions(lab)[0].0.as_str()), "{:?}", decisions(lab));
    // Where there is no terminal, the answer is no at once.
    let ran = lab.run(["run", "--agent", "asker", "--", "sh", "-c", &post(&server, "/nobody")]);
    assert!(ran.out().contains("got /nobody 403"), "{ran}");
    assert!(ran.err().contains("nobody can be asked here"), "{ran}");
    assert_eq!((server.requests().len(), decisions(lab)), (0, vec![decided("none", "")]));
    // Nobody saw it.
    assert_eq!(records(lab, "approval_decided")[0].get("shown_sha256"), None);
}

fn two_questions_are_put_one_after_the_other(lab: &Lab) {
    let server = asking(lab, "30s");
    let script = format!("{} & {} & wait", post(&server, "/one"), post(&server, "/two"));
    let Some(mut desk) = desk(lab, &script) else { return };
    desk.wait_for("Allow once? [y/n]");
    wait_until("both are asked", || records(lab, "approval_asked").len() == 2);
    let shown = desk.shown();
    assert_eq!(shown.matches("Allow once?").count(), 1, "{shown}");
    let (first, second) =
        if shown.contains("/one\n") { ("/one", "/two") } else { ("/two", "/one") };
    desk.type_in("n\r");
    desk.wait_for(&format!("got {first} 403"));
    desk.wait_for(&format!("{second}\n"));
    assert!(!desk.shown().contains(&format!("got {second}")), "{}", desk.shown());
    desk.type_in("y\r");
    desk.wait_for(&format!("got {second} "));
    desk.wait();
    let seen = server.requests();
    assert!(seen.len() == 1 && seen[0].path == second, "{seen:?}");
    assert_eq!(decisions(lab), ["deny", "allow"].map(|what| decided(what, "owner")));
}

fn ctrl_c_at_a_question_ends_the_command_and_nothing_goes_out(lab: &Lab) {
    let server = asking(lab, "30s");
    let Some(mut desk) = desk(lab, &post(&server, "/never")) else { return };
    desk.wait_for("Allow once? [y/n]");
    // The terminal is not the test program's own, so the kernel makes no signal of the key.
    desk.interrupt();
    let (ran, _) = desk.wait();
    assert_eq!(ran.code(), 130, "{ran}");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(decisions(lab), [decided("withdrawn", "")]);
}

fn an_answer_for_a_program_that_has_left_lets_nothing_out(lab: &Lab) {
    let server = asking(lab, "30s");
    let script = format!("{} & sleep 2; kill $!; echo gone; read x", post(&server, "/left"));
    let Some(mut desk) = desk(lab, &script) else { return };
    desk.wait_for("gone");
    assert!(desk.shown().contains("Allow once?"), "{}", desk.shown());
    wait_until("it is on record", || decisions(lab) == [decided("withdrawn", "")]);
    desk.type_in("y\r");
    // What is typed now was meant for the question; later it is the program's again.
    std::thread::sleep(std::time::Duration::from_secs(3));
    desk.type_in("\r");
    desk.wait();
    assert_eq!(server.requests().len(), 0);
    assert_eq!(decisions(lab).len(), 1);
}

fn a_question_nobody_waits_for_is_taken_back_and_the_next_one_put(lab: &Lab) {
    let server = asking(lab, "5min");
    let [left, next, last] = ["/left", "/next", "/last"].map(|path| post(&server, path));
    let script = format!("{left} & sleep 1; kill $!; {next}; {last}");
    let Some(mut desk) = desk(lab, &script) else { return };
    desk.wait_for("Allow once?");
    desk.wait_for("(the question was withdrawn: nobody waits for it any more)");
    // A yes to the one that was there a moment ago is none to the one in its place.
    desk.type_in("y\r");
    desk.wait_for("/next\n");
    std::thread::sleep(TICK * 50);
    assert!(!desk.shown().contains("got /next"), "{}", desk.shown());
    desk.type_in("n\r");
    desk.wait_for("got /next 403");
    desk.wait_for("/last\n");
    desk.type_in("y\r");
    desk.wait_for("got /last ");
    let (ran, _) = desk.wait();
    assert!(!ran.out().contains("got /last 403"), "{ran}");
    let seen = server.requests();
    assert!(seen.len() == 1 && seen[0].path == "/last", "{seen:?}");
    let owner = ["deny", "allow"].map(|what| decided(what, "owner"));
    assert_eq!(decisions(lab)[..1], [decided("withdrawn", "")]);
    assert_eq!(decisions(lab)[1..], owner);
}

fn what_was_typed_before_a_question_is_no_part_of_its_answer(lab: &Lab) {
    let server = asking(lab, "30s");
    let script = format!("echo ready; sleep 2; {}", post(&server, "/early"));
    let Some(mut desk) = desk(lab, &script) else { return };
    desk.wait_for("ready");
    // A line, and the beginning of one.
    desk.type_in("y\ry");
    desk.wait_for("Allow once?");
    std::thread::sleep(TICK * 20);
    assert!(!desk.shown().contains("got /early"), "it waits: {}", desk.shown());
    desk.type_in("\r");
    desk.wait_for("That is neither y nor n. Allow once? [y/n]");
    desk.type_in("n\r");
    desk.wait_for("got /early 403");
    desk.wait();
    assert_eq!(server.requests().len(), 0);
    assert_eq!(decisions(lab), [decided("deny", "owner")]);
}

fn an_answer_is_taken_after_the_end_of_the_commands_input(lab: &Lab) {
    let server = asking(lab, "30s");
    // The one has read its end, the other has closed it and is written to in vain.
    for (before, keys) in [("cat >/dev/null; echo over", "\x04"), ("exec <&-; echo over", "x\r")] {
        let Some(mut desk) = desk(lab, &format!("{before}; sleep 1; {}", post(&server, "/after")))
        else {
            return;
        };
        if keys != "\x04" {
            desk.wait_for("over");
        }
        desk.type_in(keys);
        desk.wait_for("Allow once? [y/n]");
        desk.type_in("y\r");
        desk.wait_for("got /after ");
        let (ran, _) = desk.wait();
        assert!(!ran.out().contains("got /after 403"), "{ran}");
    }
    assert_eq!(server.requests().len(), 2);
}
