//! What is kept of a session's grants: it comes back as it was, and every difference is told, also
//! those that only `nanoclaw.toml` makes.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used)]

use model::{AgentName, ModelConfig, Sha256Hex};
use nanoclaw_policy::{
    Additions, AgentFile, Config, Kept, MountContext, ResolveContext, ResolvedAgent, host_tools,
};
use std::path::Path;

const EVERYTHING: &str = "description = 'reads'\nruntime = 'command'\ncommand = ['sh', 'x']\n\
    instructions = 'Be kind.'\nmodel = 'm'\n[sandbox]\nbackend = 'docker'\nmemory = '64MiB'\n\
    [[mounts]]\nsource = '~/notes'\ntarget = '/mnt/notes'\naccess = 'read'\n\
    [[egress]]\nhost = '*.a.org'\nmethods = ['GET']\npaths = ['/v1/**']\n\
    [[ask]]\negress = 'POST b.org:443/**'\n[env]\nPLACE = 'a value of mine'\n\
    [tools]\nallow = ['bash', 'far/find', 'near/run', 'web_fetch']\n[budget]\ntokens_per_day = 9\n";

const CONFIG: &str = "[models.m]\napi = ['openai', 'responses']\nbase_url = 'https://a.example'\n\
    model = 'x-1'\nsecret = 'k'\n[mcp.far]\nurl = 'https://t.example/mcp'\n\
    [mcp.near]\ncommand = ['near']\nenv = { MODE = 'fast lane' }\n\
    [[mcp.near.egress]]\nhost = 'n.org'\nmethods = ['GET']\n";

fn agent(text: &str, config: &Config) -> ResolvedAgent {
    let file = AgentFile::parse("agents/x.toml", &format!("schema = 1\n{text}")).expect(text);
    let mounts = MountContext { home: Path::new("/home/me"), protected: &[] };
    let context = ResolveContext { mounts, config: Some(config), instructions: None };
    let name = AgentName::parse("x").expect("a name");
    file.resolve(&name, &context, &Additions::default()).expect(text)
}

fn kept(agent_file: &str, config: &str) -> Kept {
    let config = Config::parse("nanoclaw.toml", &format!("schema = 1\n{config}")).expect(config);
    let agent = agent(agent_file, &config);
    let servers = host_tools(&agent.tools, &config).servers;
    let models: Vec<ModelConfig> = config.models.values().cloned().collect();
    let veil = |value: &str| format!("veiled {}", value.len());
    Kept::of(Sha256Hex("ab".repeat(32)), &agent, &models, &servers, &veil)
}

#[test]
fn what_is_kept_comes_back_without_values_and_without_what_the_agent_is_told() {
    let now = kept(EVERYTHING, CONFIG);
    let bytes = now.to_json().expect("it is text");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    for private in ["a value of mine", "fast lane", "Be kind"] {
        assert!(!text.contains(private), "{private}: {text}");
    }
    let back = Kept::parse(&bytes).expect("what was kept");
    assert!(now.since(&back).is_empty(), "{:?}", now.since(&back));
    assert!(back.since(&now).is_empty());
    assert_eq!(back.to_json().expect("text"), bytes);
    // In words, with what stands in nanoclaw.toml.
    let all = now.all();
    for line in [
        "model m: x-1 at https://a.example (openai, responses), secret k",
        "server of tools far at https://t.example/mcp",
        "near: environment variable MODE",
        "tool of the host web_fetch",
    ] {
        assert!(all.iter().any(|l| l == line), "{line}: {all:#?}");
    }
}

#[test]
fn what_differs_in_either_file_is_told() {
    let base = kept(EVERYTHING, CONFIG);
    let model = "model m: x-1 at https://a.example (openai, responses), secret k";
    // What stands there, what in its place, what is gained, what is lost.
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        (
            "'https://a.example'",
            "'https://b.example'",
            &["model m: x-1 at https://b.example (openai, responses), secret k"],
            &[model],
        ),
        (
            "'x-1'\nsecret = 'k'",
            "'x-1'\nsecret = 'other'",
            &["model m: x-1 at https://a.example (openai, responses), secret other"],
            &[model],
        ),
        ("secret = 'k'", "secret = 'k'\nmax_tokens = 9", &["model m with another max_tokens"], &[]),
        (
            "t.example/mcp",
            "u.example/mcp",
            &["server of tools far at https://u.example/mcp"],
            &["server of tools far at https://t.example/mcp"],
        ),
        (
            "t.example/mcp'",
            "t.example/mcp'\nsecret = 'token'\nprivate = true",
            &["server of tools far at https://t.example/mcp, secret token as bearer token, \
               private addresses allowed"],
            &["server of tools far at https://t.example/mcp"],
        ),
        (
            "t.example/mcp'",
            "t.example/mcp'\ntimeout = '5s'",
            &["server of tools far with another timeout"],
            &[],
        ),
        (
            "['near']",
            "['nearer']",
            &["server of tools near: runs nearer"],
            &["server of tools near: runs near"],
        ),
        (
            "'fast lane'",
            "'slow'",
            &["server of tools near: environment variable MODE with another value"],
            &["server of tools near: environment variable MODE with another value"],
        ),
    ];
    for (there, instead, gained, lost) in cases {
        assert!(CONFIG.contains(there), "{there}");
        let found = kept(EVERYTHING, &CONFIG.replace(there, instead)).since(&base);
        assert_eq!((found.gained, found.lost), (owned(gained), owned(lost)), "{instead}");
    }
    let wider = CONFIG.replace("methods = ['GET']", "methods = ['GET', 'PUT']");
    let found = kept(EVERYTHING, &wider).since(&base);
    assert_eq!(found.gained.len(), 1, "{found:?}");
    assert!(found.gained[0].starts_with("server of tools near: egress n.org:443 PUT"), "{found:?}");
    assert!(found.lost.is_empty(), "{found:?}");
    // The agent's own file: a server that is not used any more, and a variable of another value.
    let without = EVERYTHING.replace("'far/find', ", "").replace("value of mine", "value");
    let found = kept(&without, CONFIG).since(&base);
    let variable = "environment variable PLACE with another value";
    assert_eq!(found.gained, [variable]);
    let lost = ["tool far/find", variable, "server of tools far at https://t.example/mcp"];
    assert_eq!(found.lost, lost);
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn what_another_version_kept_is_not_read_in_part_and_no_value_is_repeated() {
    let bytes = kept(EVERYTHING, CONFIG).to_json().expect("text");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    for n in 0..bytes.len() {
        assert!(Kept::parse(&bytes[..n]).is_err(), "{n}");
    }
    for (there, instead, why) in [
        ("{\"schema\":1", "{\"schema\":2", "it is of the form 2"),
        ("{\"schema\":1", "{\"schema\":1,\"more\":1", "not of the form of this version"),
        ("\"witness\":true,", "", "not of the form of this version"),
        ("\"witness\":true", "\"witness\":true,\"winged\":true", "not of the form"),
        ("\"witness\":true", "\"witness\":\"hunter2\"", "not of the form"),
    ] {
        assert!(text.contains(there), "{there}");
        let error = Kept::parse(text.replacen(there, instead, 1).as_bytes()).expect_err(instead);
        assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
    }
}
