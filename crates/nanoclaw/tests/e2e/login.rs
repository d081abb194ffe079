//! Logins on the command line: terms, address, code, and what is kept of it.

use crate::lab::{Lab, finish, processes_with, start, wait_until};
use crate::provider::{ELSEWHERE, Provider, address, begin};
use crate::secret::nowhere_below;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

both!(
    a_person_logs_in_by_pasting_and_out_again,
    a_browser_on_this_machine_comes_back_by_itself,
    the_terms_are_shown_and_must_be_agreed_to,
    a_token_of_the_provider_s_own_program_is_taken_where_no_client_is_known,
    a_wrong_code_changes_nothing,
    a_renewal_survives_the_death_of_who_asked_for_it,
);

fn say(lab: &Lab, text: &str) -> crate::lab::Ran {
    lab.run(["chat", "-m", text])
}

fn a_person_logs_in_by_pasting_and_out_again(lab: &Lab) {
    let provider = Provider::start(lab);
    provider.configure(lab, ELSEWHERE);
    let before = say(lab, "NOTOOL hello");
    assert!(before.err().contains("nanoclaw login test"), "{before}");
    let said = provider.log_in(lab, &[]).ok();
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["renewable"]), (&"done".into(), &true.into()), "{said}");
    assert_eq!(say(lab, "NOTOOL hello").ok(), "MOCK_TEXT[NOTOOL hello]\n");
    let list = lab.run(["login"]).ok();
    assert!(list.contains("test") && list.contains("127.0.0.1"), "{list}");
    assert_eq!(lab.run(["secret", "list", "--json"]).ok(), "[]\n");
    let story = lab.story();
    for part in ["tokens of the login test (login)", "new access token", "the secret login:test"] {
        assert!(story.contains(part), "{part}: {story}");
    }
    lab.run(["audit", "verify"]).ok();
    assert!(lab.run(["logout", "test"]).ok().contains("forgotten"));
    assert!(lab.run(["logout", "test"]).failed(3).contains("nobody is logged in"));
    assert_eq!(say(lab, "NOTOOL hello").out(), "");
    assert!(lab.story().contains("The login test: removed."));
    for token in provider.login.issued() {
        nowhere_below(&lab.home(), &token);
        assert!(!(said.clone() + &story + &list).contains(&token));
    }
}

fn a_browser_on_this_machine_comes_back_by_itself(lab: &Lab) {
    let provider = Provider::start(lab);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    provider.configure(lab, &format!("http://127.0.0.1:{free}/auth/callback"));
    // Standard input that has ended is no reason to stop waiting.
    let (running, keys) = begin(lab, &[]);
    drop(keys);
    let back = provider.login.agree(&address(&running)).unwrap();
    let path = back.strip_prefix(&format!("http://127.0.0.1:{free}")).unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", free)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    // Somebody else's page, and somebody else's code, are nothing to it.
    assert!(get("/").starts_with("HTTP/1.1 404"));
    assert!(get("/auth/callback?code=evil&state=theirs").starts_with("HTTP/1.1 404"));
    let said = get(path);
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("can be closed"), "{said}");
    running.wait().ok();
    assert_eq!(provider.grants(), ["authorization_code granted"]);
    assert_eq!(say(lab, "NOTOOL hello").ok(), "MOCK_TEXT[NOTOOL hello]\n");
}

fn the_terms_are_shown_and_must_be_agreed_to(lab: &Lab) {
    for (name, part) in [("claude", "leave subscriptions"), ("chatgpt", "Sign in with ChatGPT")] {
        let ran = lab.run(["login", name]);
        assert!(ran.failed(2).contains(part), "{name}");
        let ran = lab.run(["login", name, "--json"]);
        let terms: serde_json::Value = serde_json::from_str(ran.out().trim()).unwrap();
        assert_eq!((&terms["event"], ran.code()), (&"terms".into(), 2));
    }
    assert!(lab.run(["login", "other", "--accept-terms"]).failed(3).contains("no login"));
    assert!(!lab.home().join("vault/claude.login").exists());
}

fn a_token_of_the_provider_s_own_program_is_taken_where_no_client_is_known(lab: &Lab) {
    let token = format!("token-not-real-{}-{}", lab.mode(), std::process::id());
    let command = lab.nanoclaw(["login", "claude", "--accept-terms"]);
    let said = finish(command, format!("{token}\n").as_bytes()).ok();
    assert!(said.contains("api.anthropic.com") && !said.contains(&token), "{said}");
    nowhere_below(&lab.home(), &token);
    assert!(lab.run(["login"]).ok().contains("claude"));
    assert!(lab.story().contains("The login claude: a person gave a token."));
    let command = lab.nanoclaw(["login", "claude", "--accept-terms"]);
    assert!(finish(command, b"two words").failed(2).contains("the token is refused"));
}

fn a_wrong_code_changes_nothing(lab: &Lab) {
    let provider = Provider::start(lab);
    provider.configure(lab, ELSEWHERE);
    for wrong in ["", "code-not-real-1", "code-not-real-1#theirs", "?error=access_denied&state=x"] {
        let (running, mut keys) = begin(lab, &[]);
        address(&running);
        writeln!(keys, "{wrong}").unwrap();
        drop(keys);
        running.wait();
    }
    assert!(provider.grants().is_empty() && !lab.home().join("vault/test.login").exists());
    // The right state with a code that the provider does not know.
    let (running, mut keys) = begin(lab, &[]);
    let url = address(&running);
    let state = url.split("&state=").nth(1).unwrap().split('&').next().unwrap();
    writeln!(keys, "code-not-real-9#{state}").unwrap();
    let ran = running.wait();
    assert!(ran.failed(1).contains("invalid_grant"), "{ran}");
    assert!(!lab.home().join("vault/test.login").exists());
    assert!(!lab.story().contains("code-not-real"));
}

fn a_renewal_survives_the_death_of_who_asked_for_it(lab: &Lab) {
    let provider = Provider::start(lab);
    provider.configure(lab, ELSEWHERE);
    provider.log_in(lab, &[]).ok();
    let sealed = lab.home().join("vault/test.login");
    let before = std::fs::read(&sealed).unwrap();
    provider.login.spoil();
    provider.login.plan(|p| p.delay = Duration::from_millis(1_500));
    let running = start(lab.nanoclaw(["chat", "-m", "NOTOOL hello"]));
    // The provider has rotated the token and has not answered yet.
    wait_until("it is renewed", || provider.grants().len() == 2);
    running.signal(Signal::KILL);
    drop(running);
    // The gateway's last client is gone; it waits for the answer all the same, and then leaves.
    let home = lab.home().display().to_string();
    wait_until("everybody has left", || processes_with(&home).is_empty());
    assert_ne!(std::fs::read(&sealed).unwrap(), before, "the rotated token was kept");
    provider.login.plan(|p| p.delay = Duration::ZERO);
    assert_eq!(say(lab, "NOTOOL hello").ok(), "MOCK_TEXT[NOTOOL hello]\n");
    assert_eq!(provider.grants(), ["authorization_code granted", "refresh_token granted"]);
}
