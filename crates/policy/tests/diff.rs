//! Differences between agent files: nothing that becomes possible is missed.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use model::{AgentName, HostName};
use nanoclaw_policy::{
    Additions, AgentFile, Diff, MountContext, ResolveContext, ResolvedAgent, Verdict, diff,
    request_verdict,
};
use std::path::Path;
use testkit::Rng;

fn agent(text: &str) -> ResolvedAgent {
    let file = AgentFile::parse("agents/x.toml", &format!("schema = 1\n{text}")).expect(text);
    let mounts = MountContext { home: Path::new("/home/me"), protected: &[] };
    let context = ResolveContext { mounts, config: None, instructions: None };
    let name = AgentName::parse("x").expect("name");
    file.resolve(&name, &context, &Additions::default()).expect(text)
}

fn told(old: &str, new: &str) -> Diff {
    diff(&agent(old), &agent(new))
}

#[test]
fn a_provider_s_own_tool_widens_what_an_agent_may_do() {
    let with = agent("[tools]\nprovider = ['web_search']");
    assert_eq!(with.tools, agent("").tools, "its own tools stay");
    let line = "! provider tool web_search: the model's PROVIDER does it at the agent's word, where \
                no egress rule sees it";
    assert_eq!(told("", "[tools]\nprovider = ['web_search']").gained, [line]);
    assert!(with.grants_text.iter().any(|text| text == line), "{:?}", with.grants_text);
    assert_ne!(with.policy_bytes, agent("").policy_bytes);
    for bad in ["[tools]", "[tools]\nprovider = ['web_serch']", "[tools]\nprovider = ['*']"] {
        assert!(AgentFile::parse("agents/x.toml", &format!("schema = 1\n{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn each_kind_of_grant_is_told_in_words() {
    let base = "[[egress]]\nhost = 'a.org'\nmethods = ['GET']\npaths = ['/v1/**']\n";
    for (old, new, gained) in [
        ("", base, "egress a.org:443 GET /v1/** (agents/x.toml:2): a new host"),
        (
            base,
            &base.replace("'GET'", "'GET', 'POST'") as &str,
            "egress a.org:443 POST /v1/** (agents/x.toml:2): more of a host that was reached in part",
        ),
        (
            base,
            &base.replace("/v1/**", "/**"),
            "egress a.org:443 GET /** (agents/x.toml:2): more of a host that was reached in part",
        ),
        (
            base,
            &format!("{base}port = 8443"),
            "egress a.org:8443 GET /v1/** (agents/x.toml:2): a new port",
        ),
        (
            base,
            &format!("{base}secret = 'key'"),
            "egress a.org:443 GET /v1/**, secret key as bearer token (agents/x.toml:2): a secret is \
          used there",
        ),
        (
            base,
            &format!("{base}private = true"),
            "egress a.org:443 GET /v1/**, private addresses allowed (agents/x.toml:2): private \
          addresses may be reached",
        ),
        (
            base,
            &format!("{base}protocol = 'http'"),
            "! egress a.org:443 GET /v1/**, also WITHOUT TLS: whoever is in between can read and \
          change it (agents/x.toml:2): it may go there without TLS",
        ),
        (
            base,
            &format!("{base}websocket = true"),
            "! egress a.org:443 GET /v1/**, with WEBSOCKETS: after their handshake any bytes pass \
          both ways, nothing is looked into (agents/x.toml:2): WebSockets may be opened there, which \
          nobody looks into",
        ),
        (
            "[[egress]]\nhost='a.org'",
            "[[egress]]\nhost='a.org'\ntls='tunnel'",
            "! egress a.org:443 as a TUNNEL: only host and port are seen, not what is asked, sent or \
          answered (agents/x.toml:2): it was looked into",
        ),
        (
            "[[egress]]\nhost='x.a.org'",
            "[[egress]]\nhost='*.a.org'",
            "egress *.a.org:443 (agents/x.toml:2): more of a host that was reached in part",
        ),
        (
            "[[egress]]\nhost='a.org'\nmax_per_minute=5",
            "[[egress]]\nhost='a.org'\nmax_per_minute=6",
            "egress a.org:443, up to 6 a minute (agents/x.toml:2): more may be sent",
        ),
        (
            "[[egress]]\nhost='a.org'\n[[deny]]\nhost='a.org'\npaths=['/admin/**']",
            "[[egress]]\nhost='a.org'",
            "every method at a.org at every port /admin/** is no longer denied",
        ),
        (
            "[[egress]]\nhost='a.org'\n[[ask]]\negress='PUT a.org/x'",
            "[[egress]]\nhost='a.org'",
            "PUT at a.org:443 /x without asking as before",
        ),
        (
            "[[ask]]\negress='PUT a.org/x'",
            "[[egress]]\nhost='a.org'\nmethods=['PUT']\npaths=['/x']",
            "egress a.org:443 PUT /x (agents/x.toml:2): nobody is asked any more",
        ),
        (
            "",
            "[[mounts]]\nsource='~/n'\ntarget='/mnt/n'\naccess='read'",
            "mount /home/me/n at /mnt/n, read only",
        ),
        ("[env]\nA='x'", "[env]\nA='y'", "environment variable A with another value"),
        ("[tools]\nallow=['bash']", "[tools]\nallow=['bash', 'grep']", "tool grep"),
        ("[budget]\nusd_per_day=1", "", "models a day without limit, beyond 1.00 USD"),
        (
            "[sandbox]\nmemory='64MiB'\nlimits='fallback'",
            "[sandbox]\nmemory='65MiB'\nlimits='fallback'",
            "memory up to 65MiB, beyond 64MiB",
        ),
        (
            "runtime='command'\ncommand=['x']",
            "runtime='command'\ncommand=['x']\n[[secrets]]\n\
          name='k'\ndeliver='stdin'",
            "! secret k is HANDED TO THE AGENT on its stdin",
        ),
    ] {
        let got = told(old, new);
        assert!(got.gained.iter().any(|line| line == gained), "{gained}\n{got:#?}");
        // And back again it is lost.
        assert!(told(new, old).lost.iter().any(|line| line == gained), "{gained}");
        assert!(told(new, new).is_empty(), "{new}");
    }
}

#[test]
fn what_only_shrinks_gains_nothing() {
    for (old, new) in [
        ("[[egress]]\nhost='*.a.org'", "[[egress]]\nhost='x.a.org'\nmethods=['GET']"),
        ("[[egress]]\nhost='a.org'", "[[ask]]\negress='PUT a.org/x'"),
        ("[[egress]]\nhost='a.org'\npaths=['/**']", "[[egress]]\nhost='a.org'\npaths=['/a/*/b']"),
        ("[[egress]]\nhost='a.org'", "[[egress]]\nhost='a.org'\n[[deny]]\nhost='a.org'"),
        ("[[egress]]\nhost='a.org'\nsecret='k'", "[[egress]]\nhost='a.org'"),
        (
            "[[egress]]\nhost='a.org'\nmethods=['GET','PUT']\nwebsocket=true\n[[ask]]\negress='PUT \
          a.org/x'",
            "[[egress]]\nhost='a.org'\nmethods=['GET','PUT']\n[[ask]]\negress='PUT a.org/x'",
        ),
        ("", "[budget]\nusd_per_day=1"),
        ("[[deny]]\nhost='a.org'", ""),
        (
            "[[mounts]]\nsource='~/n'\ntarget='/mnt/n'\naccess='write'",
            "[[mounts]]\nsource='~/n/m'\ntarget='/mnt/n'\naccess='read'",
        ),
    ] {
        assert_eq!(told(old, new).gained, Vec::<String>::new(), "{old} → {new}");
    }
}

fn random_file(rng: &mut Rng) -> String {
    const HOSTS: [&str; 5] = ["a.org", "*.a.org", "x.a.org", "b.org", "*.x.a.org"];
    const PATHS: [&str; 8] = ["/", "/**", "/a", "/a/*", "/a/**", "/*/b", "/a%2Fb", "/**/admin"];
    const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
    let mut text = String::new();
    let mut pick = |of: &[&str]| rng.pick(of).map_or_else(String::new, |s| (*s).to_owned());
    for _ in 0..pick(&["1", "2", "3", "4"]).parse::<u8>().expect("digit") {
        let kind = pick(&["egress", "egress", "ask", "deny"]);
        let host = pick(&HOSTS);
        if kind == "ask" {
            let method = pick(&["*", "GET", "POST"]);
            text += &format!("[[ask]]\negress = '{method} {host}{}'\n", pick(&PATHS));
            continue;
        }
        text += &format!("[[{kind}]]\nhost = '{host}'\n");
        if pick(&["y", "n"]) == "y" {
            text += &format!("methods = ['{}', '{}']\n", pick(&METHODS), pick(&METHODS));
        }
        if pick(&["y", "n"]) == "y" {
            text += &format!("paths = ['{}', '{}']\n", pick(&PATHS), pick(&PATHS));
        }
    }
    text
}

#[test]
fn for_any_two_files_nothing_new_is_missed() {
    let mut rng = Rng::from_env();
    let (mut files, mut freer) = (0, 0);
    let rank = |agent: &ResolvedAgent, host: &str, method: &str, path: &str| {
        let host = HostName::parse(host).expect(host);
        match request_verdict(&agent.egress, &host, 443, method, path) {
            Verdict::Deny(_) => 0,
            Verdict::Ask(_) => 1,
            Verdict::Allow(_) => 2,
        }
    };
    let good = |text: &str| AgentFile::parse("f", &format!("schema = 1\n{text}")).is_ok();
    while files < 600 {
        let (old, new) = (random_file(&mut rng), random_file(&mut rng));
        if !good(&old) || !good(&new) {
            continue; // the same rule twice
        }
        files += 1;
        let (a, b) = (agent(&old), agent(&new));
        let told = diff(&a, &b);
        for host in ["a.org", "x.a.org", "y.x.a.org", "b.org"] {
            for method in ["GET", "POST", "PUT", "get"] {
                for path in ["/", "/a", "/A/", "/a/b", "/a%2Fb", "/x/admin", "/a/../b", "/a/"] {
                    if rank(&b, host, method, path) > rank(&a, host, method, path) {
                        freer += 1;
                        let what = format!("{method} {host}{path}\n--\n{old}\n--\n{new}");
                        assert!(!told.gained.is_empty(), "{what}");
                    }
                }
            }
        }
    }
    assert!(freer > 2_000, "{freer}");
}
