//! A provider of subscriptions, and a person who logs in there.

use crate::lab::{Lab, Ran, Running, start, wait_until};
use std::io::Write;
use testkit::{FakeLogin, FakeModel, Options};

/// A provider with its models.
pub(crate) struct Provider {
    pub(crate) login: FakeLogin,
    pub(crate) server: FakeModel,
}

/// Where the browser is sent when nobody listens for it.
pub(crate) const ELSEWHERE: &str = "https://login.example.org/code";

impl Provider {
    pub(crate) fn start(lab: &Lab) -> Self {
        let login = FakeLogin::new(&format!("{}-{}", lab.mode(), std::process::id()));
        let options = Options { login: Some(login.clone()), ..Options::default() };
        Self { login, server: FakeModel::start(options).unwrap() }
    }

    /// Writes a `nanoclaw.toml` with one model that has the login `test`.
    pub(crate) fn configure(&self, lab: &Lab, redirect: &str) {
        let url = self.server.base_url();
        let text = format!(
            "schema = 1\n[models.sub]\napi = \"anthropic\"\nbase_url = \"{url}\"\n\
             model = \"fake-model\"\nlogin = \"test\"\n\n[logins.test]\nprovider = \"claude\"\n\
             client_id = \"nanoclaw-test\"\nauthorize_url = \"{url}/oauth/authorize\"\n\
             token_url = \"{url}/oauth/token\"\nredirect_url = \"{redirect}\"\n"
        );
        lab.file(&lab.home().join("nanoclaw.toml"), &text);
    }

    /// Logs in by pasting; what the command said.
    pub(crate) fn log_in(&self, lab: &Lab, flags: &[&str]) -> Ran {
        let (running, mut keys) = begin(lab, flags);
        let back = self.login.agree(&address(&running)).unwrap();
        writeln!(keys, "{back}").unwrap();
        running.wait()
    }

    /// Grant types that the provider was asked for, and how that ended.
    pub(crate) fn grants(&self) -> Vec<String> {
        self.login.grants()
    }
}

/// `nanoclaw login test --json`, waiting for a person, and what can be typed to it.
pub(crate) fn begin(lab: &Lab, flags: &[&str]) -> (Running, std::io::PipeWriter) {
    let (typed, keys) = std::io::pipe().unwrap();
    let mut command = lab.nanoclaw(["login", "test", "--accept-terms", "--json"]);
    command.args(flags).stdin(typed);
    (start(command), keys)
}

/// The address it wants to be opened.
pub(crate) fn address(running: &Running) -> String {
    let event = |running: &Running| {
        let said = running.output();
        let mut lines = said.lines().filter_map(|l| serde_json::from_str(l).ok());
        lines.find(|e: &serde_json::Value| e["event"] == "open")
    };
    wait_until("there is an address", || event(running).is_some());
    event(running).unwrap()["url"].as_str().unwrap().to_owned()
}
