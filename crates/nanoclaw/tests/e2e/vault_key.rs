//! Where the vault's key is kept: what `doctor` finds, and that nothing goes on without it.

use crate::lab::{Lab, finish, processes_with, wait_until};
use crate::secret::{configure, nowhere_below, server, set, unlikely_value};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

both!(
    doctor_says_where_the_key_is,
    the_key_may_come_from_systemd,
    the_key_may_be_in_the_keyring_of_the_desktop,
);

/// What doctor says of one thing.
fn check(ran: &crate::lab::Ran, name: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&ran.out()).unwrap();
    let found = all.as_array().unwrap().iter().find(|c| c["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no {name} in {all}"))
}

fn found(lab: &Lab, name: &str) -> String {
    let check = check(&lab.run(["doctor", "--json"]), name);
    format!("{} {}", check["status"].as_str().unwrap(), check["found"].as_str().unwrap())
}

/// Roles stay for a moment after the last of their clients, with what they have open.
fn everybody_left(lab: &Lab) {
    let home = lab.home().display().to_string();
    wait_until("everybody has left", || processes_with(&home).is_empty());
}

fn doctor_says_where_the_key_is(lab: &Lab) {
    assert!(found(lab, "vault key").starts_with("ok none yet"));
    assert!(found(lab, "roles").starts_with("degraded same-uid"));
    set(lab, "github", "test-key-not-real", &["--host", "api.github.com"]);
    let key = lab.home().join("vault/identity");
    assert!(found(lab, "vault key").contains("a file that only its owner may read"));
    // It looks at the key itself.
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    assert!(found(lab, "vault key").starts_with("degraded the vault's private key"));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let text = fs::read(&key).unwrap();
    fs::write(&key, "nonsense\n").unwrap();
    assert!(found(lab, "vault key").contains("is damaged"));
    fs::write(&key, text).unwrap();
    // Another place than the one it has is a mistake that is said aloud.
    lab.file(&lab.home().join("nanoclaw.toml"), "schema = 1\n[vault]\nkey = \"systemd\"\n");
    let ran = lab.inside(["true"]);
    assert!(ran.failed(4).contains("is kept as \"file\""), "{ran}");
    let more = lab.nanoclaw(["secret", "set", "other", "--host", "a.example"]);
    assert!(finish(more, b"test-key-not-real").failed(4).contains("[vault] key"));
}

fn the_key_may_come_from_systemd(lab: &Lab) {
    let value = unlikely_value(lab);
    let server = server(&value);
    configure(lab, "openai", &server);
    set(lab, "fake", &value, &[]);
    // As a unit with LoadCredential= has it.
    let credentials = lab.folder(&lab.person().join("credentials"));
    let key = credentials.join("nanoclaw-vault");
    fs::rename(lab.home().join("vault/identity"), &key).unwrap();
    let with = |args: &[&str]| {
        let mut command = lab.nanoclaw(args);
        command.env("CREDENTIALS_DIRECTORY", &credentials);
        finish(command, b"")
    };
    let doctor = with(&["doctor", "--json"]);
    let said = check(&doctor, "vault key");
    assert!(said["found"].as_str().unwrap().contains("a systemd credential"), "{said}");
    assert!(found(lab, "vault key").starts_with("degraded not here"), "without the variable");
    assert_eq!(with(&["chat", "-m", "NOTOOL hello"]).ok(), "MOCK_TEXT[NOTOOL hello]\n");
    assert_eq!(server.requests().len(), 1);
    // Without it nothing is opened, once the gateway that has it is gone.
    everybody_left(lab);
    let ran = lab.run(["chat", "-m", "NOTOOL hello"]);
    assert!(ran.err().contains("private key is missing"), "{ran}");
    assert_eq!(server.requests().len(), 1);
}

/// Unlocks a keyring of its own and does the rest in that session.
const SESSION: &str = "
set -e
export XDG_RUNTIME_DIR=\"$HOME/session\"
mkdir -p -m 700 \"$XDG_RUNTIME_DIR\"
printf test-password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
\"$@\"
";

fn the_key_may_be_in_the_keyring_of_the_desktop(lab: &Lab) {
    for tool in ["dbus-run-session", "gnome-keyring-daemon", "secret-tool"] {
        if testkit::need(tool).is_none() {
            return;
        }
    }
    let value = unlikely_value(lab);
    let server = server(&value);
    configure(lab, "openai", &server);
    let config = lab.home().join("nanoclaw.toml");
    let text = fs::read_to_string(&config).unwrap() + "[vault]\nkey = \"keyring\"\n";
    lab.file(&config, &text);
    let session = |args: &[&str], input: &str| {
        let mut command = lab.command("dbus-run-session");
        command.args(["--", "sh", "-c", SESSION, "session"]).arg(lab.binary()).args(args);
        finish(command, input.as_bytes())
    };
    // Without a keyring there is no key, and no other place is taken for it.
    let ran = finish(lab.nanoclaw(["secret", "set", "fake"]), value.as_bytes());
    assert!(ran.failed(4).contains("keyring"), "{ran}");
    assert!(!lab.home().join("vault/identity").exists());

    session(&["secret", "set", "fake"], &value).ok();
    assert!(!lab.home().join("vault/identity").exists(), "the key is in no file of ours");
    let said = check(&session(&["doctor", "--json"], ""), "vault key");
    assert_eq!(said["status"], "ok", "{said}");
    assert!(said["found"].as_str().unwrap().contains("keyring"), "{said}");
    let ran = session(&["chat", "-m", "NOTOOL hello"], "");
    assert_eq!(ran.ok(), "MOCK_TEXT[NOTOOL hello]\n");
    assert_eq!(server.requests().len(), 1);

    // Out of the session nothing is opened, and nothing is started.
    everybody_left(lab);
    let ran = lab.run(["chat", "-m", "NOTOOL hello"]);
    assert!(ran.failed(4).contains("the desktop's keyring"), "{ran}");
    assert_eq!(server.requests().len(), 1);
    assert!(found(lab, "vault key").starts_with("degraded"));
    nowhere_below(&lab.home(), &value);
}
