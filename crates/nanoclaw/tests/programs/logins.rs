//! The whole way of a login: agreed to, used, run out, renewed, refused, renewed, taken back; and
//! none of its tokens anywhere but in the gateway.

use crate::hunt::Hunt;
use crate::lab::{Lab, start, wait_until};
use crate::provider::{ELSEWHERE, Provider};
use crate::secrets::{STAY, sweep};
use std::fs;
use std::time::Duration;

both!(no_byte_of_a_login_is_outside_the_gateway);

fn no_byte_of_a_login_is_outside_the_gateway(lab: &Lab) {
    if !crate::lab::is_root() {
        crate::tools::missing("the kernel closes recorder and gateway to an ordinary user");
        return;
    }
    if testkit::need("curl").is_none() {
        return;
    }
    let provider = Provider::start(lab);
    provider.configure(lab, ELSEWHERE);
    let mut said = provider.log_in(lab, &[]).ok();
    let mut talk = |wanted: &str| {
        let ran = lab.run(["chat", "-m", "NOTOOL hello"]);
        let all = ran.out() + &ran.err();
        assert!(all.contains(wanted), "{wanted:?} is not in {ran}");
        said.push_str(&all);
    };
    talk("MOCK_TEXT[NOTOOL hello]");
    // It runs out.
    provider.login.spoil();
    provider.login.plan(|p| p.lifetime = 2);
    talk("MOCK_TEXT[NOTOOL hello]");
    std::thread::sleep(Duration::from_millis(2_100));
    provider.login.plan(|p| p.lifetime = 3_600);
    talk("MOCK_TEXT[NOTOOL hello]");
    // Somebody takes the access token back.
    provider.login.spoil();

    // A program of the sandbox's own asks, and everything is searched while it is there.
    let work = lab.folder(&lab.person().join("work"));
    lab.file(&work.join("wait"), "");
    let ask = "curl -sS \"$ANTHROPIC_BASE_URL/v1/messages\" -H 'content-type: application/json' \
               -H \"x-api-key: $ANTHROPIC_API_KEY\" -d '{\"model\": \"any\", \"max_tokens\": 9, \
               \"messages\": [{\"role\": \"user\", \"content\": \"NOTOOL hello\"}]}'";
    let mut command = lab.nanoclaw(["run", "--workspace"]);
    command.arg(&work).args(["--", "sh", "-c", &format!("{ask}\n{STAY}")]);
    let running = start(command);
    wait_until("the model was asked", || work.join("here").exists());
    let issued = provider.login.issued();
    assert_eq!(issued.len(), 8, "{issued:?}");
    let hunts: Vec<Hunt> = issued.iter().map(|token| Hunt::for_value(token)).collect();
    let during = sweep(lab, &hunts);
    assert_eq!(during.found, [""; 0], "{during:?}");
    for role in ["nanoclaw run", "__spawner", "__recorder", "__gateway", "sh -c"] {
        assert!(during.processes.iter().any(|p| p.argv.contains(role)), "{role}: {during:?}");
    }
    fs::remove_file(work.join("wait")).unwrap();
    let ran = running.wait();
    said.push_str(&(ran.ok() + &ran.err()));
    assert!(said.ends_with("}") && said.matches("MOCK_TEXT").count() >= 4, "{said}");

    // The person ends it at the provider's.
    provider.login.revoke();
    let mut last = lab.run(["chat", "-m", "NOTOOL hello"]);
    assert!(last.err().contains("the login test is over"), "{last}");
    assert!(last.err().contains("`nanoclaw login test`"), "{last}");
    last.stderr.extend_from_slice(said.as_bytes());
    let granted = ["authorization_code granted", "refresh_token granted"];
    let grants = provider.grants();
    assert_eq!(grants[..2], granted, "{grants:?}");
    assert_eq!(grants[2..4], [granted[1]; 2], "{grants:?}");
    assert_eq!(grants[4..], ["refresh_token refused"], "{grants:?}");

    let after = sweep(lab, &hunts);
    assert_eq!(after.found, [""; 0], "{after:?}");
    let story = lab.story();
    for hunt in &hunts {
        assert_eq!(hunt.within(&last.stderr), None, "{last}");
        assert_eq!(hunt.within(story.as_bytes()), None, "{story}");
    }
    assert_eq!(story.matches("tokens of the login test (renewal)").count(), 4, "{story}");
    assert_eq!(story.matches("The login test has a new access token").count(), 4, "{story}");
    assert!(story.contains("The login test got none (status 400)"), "{story}");
    lab.run(["audit", "verify"]).ok();
}
