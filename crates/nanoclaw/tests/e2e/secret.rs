//! Secrets: sealed from the first moment, shown to nobody, used by the gateway alone.

use crate::lab::{Lab, files_below, finish, snapshot, start, wait_until};
use std::path::Path;
use testkit::{FakeModel, Options};

both!(
    a_secret_comes_in_by_stdin_and_is_never_shown,
    what_cannot_be_a_secret_is_refused,
    the_gateway_uses_the_key_and_the_sandbox_never_has_it,
    the_agents_own_key_does_not_go_through,
    without_the_key_the_model_is_not_asked,
);

/// A value that is nowhere else on the machine.
pub(crate) fn unlikely_value(lab: &Lab) -> String {
    format!("test-key-not-real-{}-{}", lab.mode(), std::process::id())
}

/// Stores a secret through standard input.
pub(crate) fn set(lab: &Lab, name: &str, value: &str, flags: &[&str]) -> String {
    let mut command = lab.nanoclaw(["secret", "set", name]);
    command.args(flags);
    finish(command, value.as_bytes()).ok()
}

/// Writes a `nanoclaw.toml` with one model and its secret.
pub(crate) fn configure(lab: &Lab, api: &str, server: &FakeModel) {
    let text = format!(
        "schema = 1\n[models.fake]\napi = \"{api}\"\nbase_url = \"{}\"\nmodel = \"fake-model\"\n\
         secret = \"fake\"\n",
        server.base_url()
    );
    lab.file(&lab.home().join("nanoclaw.toml"), &text);
}

/// A server that wants this key.
pub(crate) fn server(key: &str) -> FakeModel {
    FakeModel::start(Options { require_key: Some(key.to_owned()), ..Options::default() }).unwrap()
}

fn a_secret_comes_in_by_stdin_and_is_never_shown(lab: &Lab) {
    let value = unlikely_value(lab);
    let mut all = lab.run(["secret", "list"]).err();
    all.push_str(&set(lab, "github", &format!("{value}\n"), &["--host", "api.github.com"]));
    all.push_str(&set(lab, "anthropic", &value, &[]));
    let newer = format!("{value}-newer");
    all.push_str(&finish(lab.nanoclaw(["secret", "rotate", "github"]), newer.as_bytes()).ok());
    all.push_str(&finish(lab.nanoclaw(["secret", "rotate", "nothing"]), b"x").failed(3));
    let list = lab.run(["secret", "list"]).ok();
    let date = regex::Regex::new(r"since .*").unwrap();
    all.push_str(&date.replace_all(&list, "since DATE"));
    let listed = lab.run(["secret", "list", "--json"]).ok();
    let parsed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(parsed.as_array().unwrap().len(), 2, "{listed}");
    all.push_str(&lab.run(["secret", "remove", "github"]).ok());
    all.push_str(&lab.run(["secret", "remove", "github"]).failed(3));
    assert!(!lab.run(["secret", "list"]).ok().contains("github"));
    assert!(!all.contains(&value) && !listed.contains(&value), "{all}");
    nowhere_below(&lab.home(), &value);
    snapshot("secrets", &all);
}

fn what_cannot_be_a_secret_is_refused(lab: &Lab) {
    let no_host = finish(lab.nanoclaw(["secret", "set", "mine"]), b"x-not-real").failed(2);
    snapshot("secret-without-host", &no_host);
    for (name, value) in
        [("../up", "value-not-real"), ("", "value-not-real"), ("fine", ""), ("fine", "short\n")]
    {
        let ran =
            finish(lab.nanoclaw(["secret", "set", name, "--host", "a.example"]), value.as_bytes());
        assert_eq!(ran.code(), 2, "{name:?} {value:?}: {ran}");
    }
    let long = vec![b'x'; (64 << 10) + 1];
    let ran = finish(lab.nanoclaw(["secret", "set", "long", "--host", "a.example"]), &long);
    assert_eq!(ran.code(), 2, "{ran}");
    assert_eq!(lab.run(["secret", "list", "--json"]).ok(), "[]\n");
}

/// No file below `dir` holds these bytes, neither as they are nor in base64.
pub(crate) fn nowhere_below(dir: &Path, value: &str) {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(value);
    // Without its last characters, which depend on what follows.
    let encoded = &encoded[..encoded.len() - 2];
    let files = files_below(dir);
    assert!(!files.is_empty());
    for file in files {
        let bytes = std::fs::read(&file).unwrap_or_default();
        for needle in [value.as_bytes(), encoded.as_bytes()] {
            let found = bytes.windows(needle.len()).any(|w| w == needle);
            assert!(!found, "the secret stands in {}", file.display());
        }
    }
}

/// No process has these bytes in its arguments or environment; how many could be looked at.
fn in_no_process(value: &str) -> usize {
    let mut looked = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        for part in ["cmdline", "environ"] {
            // Processes of others, and those that are just gone, cannot be looked at.
            let Ok(bytes) = std::fs::read(entry.path().join(part)) else { continue };
            let found = bytes.windows(value.len()).any(|w| w == value.as_bytes());
            assert!(!found, "the secret stands in {}", entry.path().join(part).display());
            looked += usize::from(!bytes.is_empty());
        }
    }
    looked
}

/// Asks the model by both base URLs with what the environment says, then waits for `go`.
const ASK: &str = "
import json, os, time, urllib.request
def ask(url, headers, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    request.add_header('content-type', 'application/json')
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
messages = [{'role': 'user', 'content': 'NOTOOL hello'}]
body = {'model': 'whatever', 'max_tokens': 100, 'messages': messages}
key = os.environ.get('OWN_KEY', os.environ['OPENAI_API_KEY'])
print(ask(os.environ['OPENAI_BASE_URL'] + '/chat/completions',
          {'authorization': 'Bearer ' + key}, body))
print(ask(os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages',
          {'x-api-key': key, 'anthropic-version': '2023-06-01'}, body))
print(open('/proc/self/environ').read().replace('\\0', ' '))
open('asked', 'w').write('x')
while os.path.exists('wait'):
    time.sleep(0.02)
";

fn the_gateway_uses_the_key_and_the_sandbox_never_has_it(lab: &Lab) {
    let value = unlikely_value(lab);
    for api in ["openai", "anthropic"] {
        let server = server(&value);
        configure(lab, api, &server);
        set(lab, "fake", &value, &[]);
        let work = lab.folder(&lab.person().join(api));
        lab.file(&work.join("wait"), "");
        let mut command = lab.nanoclaw(["run", "--workspace"]);
        command.arg(&work).args(["--", "python3", "-c", ASK]);
        let running = start(command);
        wait_until("the model was asked", || work.join("asked").exists());
        assert!(in_no_process(&value) > 2);
        nowhere_below(&lab.home(), &value);
        std::fs::remove_file(work.join("wait")).unwrap();
        let said = running.wait().ok();
        assert!(!said.contains(&value), "{said}");
        // Its own format works, and the other one's answer names the way out.
        assert_eq!(said.matches("MOCK_TEXT[NOTOOL hello]").count(), 1, "{said}");
        let seen = server.requests();
        assert_eq!(seen.len(), 1, "{seen:?}");
        for (name, sent) in seen[0].credentials() {
            assert!(sent.ends_with(&value), "{name}: {sent}");
        }
        assert!(!format!("{seen:?}").contains("nanoclaw-placeholder"), "{seen:?}");
    }
    nowhere_below(&lab.home(), &value);
    let story = lab.story();
    assert!(story.contains("fake") && !story.contains(&value), "{story}");
}

fn the_agents_own_key_does_not_go_through(lab: &Lab) {
    let value = unlikely_value(lab);
    let server = server(&value);
    configure(lab, "openai", &server);
    set(lab, "fake", &value, &[]);
    let own = "the-agents-own";
    let script = format!("import os\nos.environ['OWN_KEY'] = '{own}'\n{ASK}");
    let said = lab.inside(["python3", "-c", &script]).ok();
    assert!(!format!("{:?}", server.requests()).contains(own), "{:?}", server.requests());
    assert!(!said.contains(&value), "{said}");
}

fn without_the_key_the_model_is_not_asked(lab: &Lab) {
    let server = server("test-key-not-real");
    configure(lab, "openai", &server);
    let said = lab.inside(["python3", "-c", ASK]).ok();
    assert!(said.contains("nanoclaw secret set fake"), "{said}");
    assert_eq!(server.requests(), [], "{said}");
}
