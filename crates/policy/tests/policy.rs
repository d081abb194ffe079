//! Good files, resolution, verdicts, random damage, and files on a real disk.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use model::{Access, AgentName, ModelApi, Strictness};
use nanoclaw_policy::{
    Additions, AgentFile, BUILTIN_TOOLS, Config, DEFAULT_TURN_TIMEOUT, Machine, MountContext,
    ResolveContext, ResolvedAgent, Runtime, diff, load, parse_allow, parse_env, parse_memory,
    parse_mount, parse_timeout,
};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use testkit::{Rng, TempDir};

const GOOD: &str = r#"schema = 1
description = "Reads my notes"
runtime = "builtin"
model = "claude"
instructions = "You triage issues."
workspace = "session"

[sandbox]
backend = "native"
rootfs = "host-usr"
memory = "512MiB"
cpus = 1.5
pids = 128
file_size = "1GiB"
tmp = "64MiB"
open_files = 1024
turn_timeout = "5min"

[[mounts]]
source = "~/notes"
target = "/mnt/notes"
access = "read"

[[egress]]
host = "API.github.com"

[[egress]]
host = "git.lan"
port = 8443
private = true

[env]
LANG = "C.UTF-8"

[tools]
allow = ["bash", "grep"]
"#;

const GOOD_CONFIG: &str = r#"schema = 1
default_agent = "triage"

[models.claude]
api = "anthropic"
model = "some-model"
secret = "anthropic"

[models.local]
api = "openai"
base_url = "http://127.0.0.1:11434/v1"
model = "some-model:7b"
max_tokens = 2_048
context_tokens = 0x8000

[models.lan]
api = "openai"
base_url = "http://box.lan:8080"
model = "m"

[models.demo]
api = "script"
script = "scripts/demo.toml"
"#;

fn context<'a>(home: &'a Path, config: Option<&'a Config>) -> ResolveContext<'a> {
    let mounts = MountContext { home, protected: &[] };
    ResolveContext { mounts, config, instructions: None }
}

fn resolve(text: &str, additions: &Additions) -> ResolvedAgent {
    let config = Config::parse("nanoclaw.toml", GOOD_CONFIG).expect("good config");
    let file = AgentFile::parse("agents/x.toml", text).expect("good file");
    let name = AgentName::parse("x").expect("name");
    file.resolve(&name, &context(Path::new("/home/me"), Some(&config)), additions).expect("good")
}

#[test]
fn a_full_file_resolves_to_exactly_its_grants() {
    let agent = resolve(GOOD, &Additions::default());
    assert_eq!(agent.limits.memory_bytes.value, 512 << 20);
    assert_eq!(agent.limits.cpu_milli.value, 1_500);
    assert_eq!(agent.limits.pids.strictness, Strictness::Required);
    assert_eq!((agent.limits.file_bytes, agent.limits.tmp_bytes), (1 << 30, 64 << 20));
    assert_eq!(agent.limits.open_files, 1_024);
    assert_eq!(agent.turn_timeout, Duration::from_secs(300));
    assert_eq!(agent.mounts.len(), 1);
    assert_eq!(agent.mounts[0].source, Path::new("/home/me/notes"));
    assert_eq!(agent.mounts[0].access, Access::Read);
    assert_eq!(agent.egress[0].id, "agents/x.toml:24");
    assert_eq!(agent.egress[0].host.to_string(), "api.github.com");
    assert_eq!(agent.egress[0].port, Some(443));
    assert!(!agent.egress[0].private && agent.egress[1].private);
    assert_eq!(agent.tools.iter().collect::<Vec<_>>(), ["bash", "grep"]);
    assert_eq!(
        agent.grants_text,
        [
            "mount /home/me/notes at /mnt/notes, read only",
            "egress api.github.com:443 (agents/x.toml:24)",
            "egress git.lan:8443, private addresses allowed (agents/x.toml:27)",
            "tools in the sandbox: bash, grep",
            "model claude",
            "environment variable LANG",
            "memory up to 512MiB, required",
            "CPUs up to 1.500, required",
            "processes up to 128, required",
            "one turn up to 5min",
        ]
    );
}

#[test]
fn http_without_tls_is_granted_by_name_only_and_told_loudly() {
    let plain = "schema = 1\n[[egress]]\nhost = 'a.org'\nport = 8080\n[[ask]]\n\
                 egress = 'PUT a.org:8080/x'\n";
    let open = plain.replace("port = 8080", "port = 8080\nprotocol = 'http'");
    let (closed, open) =
        (resolve(plain, &Additions::default()), resolve(&open, &Additions::default()));
    let clear = |agent: &ResolvedAgent| agent.egress.iter().map(|r| r.clear).collect::<Vec<_>>();
    assert_eq!((clear(&closed), clear(&open)), (vec![false; 2], vec![true; 2]));
    let loud = "! egress a.org:8080, also WITHOUT TLS: whoever is in between can read and change \
                it (agents/x.toml:2)";
    assert_eq!(open.grants_text[0], loud);
    assert_ne!(closed.policy_bytes, open.policy_bytes);
}

#[test]
fn a_websocket_is_granted_by_name_only_and_told_loudly() {
    let plain = "schema = 1\n[[egress]]\nhost = 'a.org'\n[[ask]]\negress = 'GET a.org/x'\n\
                 [[ask]]\negress = 'PUT a.org/x'\n";
    let open = plain.replace("host = 'a.org'", "host = 'a.org'\nwebsocket = true");
    let (closed, open) =
        (resolve(plain, &Additions::default()), resolve(&open, &Additions::default()));
    assert!(closed.egress.iter().all(|r| !r.websocket));
    // A question about a GET has the terms of its host; nothing begins with a PUT.
    assert_eq!(open.egress.iter().map(|r| r.websocket).collect::<Vec<_>>(), [true, true, false]);
    let loud = "! egress a.org:443, with WEBSOCKETS: after their handshake any bytes pass both \
                ways, nothing is looked into (agents/x.toml:2)";
    assert_eq!(open.grants_text[0], loud);
    assert_ne!(closed.policy_bytes, open.policy_bytes);
    let host = model::HostName::parse("a.org").expect("good");
    let told = |agent: &ResolvedAgent, method| {
        nanoclaw_policy::explain(&agent.egress, &host, 443, method, "/").why
    };
    assert!(told(&open, "GET").contains("WebSocket"), "{}", told(&open, "GET"));
    assert!(
        !told(&open, "PUT").contains("WebSocket") && !told(&closed, "GET").contains("WebSocket")
    );
}

#[test]
fn each_tool_of_the_host_is_told_once() {
    let agent =
        resolve("schema = 1\n[tools]\nallow = ['bash', 'web_fetch']\n", &Additions::default());
    let lines: Vec<&str> =
        agent.grants_text.iter().map(String::as_str).filter(|l| l.contains("web_fetch")).collect();
    assert_eq!(lines, ["tool of the host web_fetch"]);
}

#[test]
fn hosts_in_any_script_mean_what_programs_send() {
    let text = concat!(
        "schema = 1\n[[egress]]\nhost = 'Bücher。Example.'\n",
        "[[egress]]\nhost = '*.例え.テスト'\n[[deny]]\nhost = 'BÜCHER.example'\npaths = ['/x']\n",
        "[[ask]]\negress = 'POST bücher.example/y'\n"
    );
    let additions = Additions {
        egress: vec![parse_allow("münchen.example:8443").expect("a rule")],
        ..Additions::default()
    };
    let hosts: Vec<String> =
        resolve(text, &additions).egress.iter().map(|rule| rule.host.to_string()).collect();
    let book = "xn--bcher-kva.example";
    let wild = "*.xn--r8jz45g.xn--zckzah";
    assert_eq!(hosts, [book, wild, book, book, "xn--mnchen-3ya.example"]);
}

#[test]
fn an_empty_file_and_no_file_grant_nothing() {
    let written = resolve("schema = 1\n", &Additions::default());
    let name = AgentName::parse("x").expect("name");
    let builtin = AgentFile::builtin_default();
    let builtin = builtin.resolve(&name, &context(Path::new("/h"), None), &Additions::default());
    for agent in [written, builtin.expect("no grants, no errors")] {
        assert!(agent.mounts.is_empty() && agent.egress.is_empty() && agent.env.is_empty());
        assert_eq!(agent.limits, model::Limits::default());
        assert_eq!(agent.turn_timeout, DEFAULT_TURN_TIMEOUT);
        assert_eq!(agent.runtime, Runtime::Builtin);
        assert_eq!(agent.tools.len(), BUILTIN_TOOLS.len());
        assert!(agent.witness, "what it executes is on record");
    }
}

#[test]
fn who_does_without_the_kernels_witness_is_shown_in_red() {
    let agent = |witness: &str| {
        let text = format!("schema = 1\n[sandbox]\nwitness = '{witness}'\n");
        resolve(&text, &Additions::default())
    };
    let (on, off) = (agent("on"), agent("off"));
    assert_eq!((on.witness, off.witness), (true, false));
    let red = |agent: &ResolvedAgent| {
        let lines = agent.grants_text.iter().filter(|l| l.starts_with(nanoclaw_policy::LOUD));
        lines.map(String::as_str).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(red(&on), "");
    assert!(red(&off).contains("witness OFF"), "{}", red(&off));
    assert_ne!(on.policy_bytes, off.policy_bytes);
    assert_eq!(nanoclaw_policy::diff(&on, &off).gained, [red(&off)]);
    assert!(nanoclaw_policy::diff(&off, &on).gained.is_empty());
}

#[test]
fn fallback_is_accepted_only_where_it_is_written() {
    let text = "schema = 1\n[sandbox]\nmemory = '64MiB'\nlimits = 'fallback'\n";
    let agent = resolve(text, &Additions::default());
    assert_eq!(agent.limits.memory_bytes.strictness, Strictness::Fallback);
    let agent = resolve("schema = 1\n[sandbox]\nmemory = '64MiB'\n", &Additions::default());
    assert_eq!(agent.limits.memory_bytes.strictness, Strictness::Required);
    assert_eq!(agent.limits.pids.strictness, Strictness::Fallback);
}

#[test]
fn a_limit_of_the_command_line_is_as_hard_as_the_file_says() {
    use Strictness::{Fallback, Required};
    let lax = "schema = 1\n[sandbox]\npids = 99\nlimits = 'fallback'\n";
    let strict = "schema = 1\n[sandbox]\npids = 99\n";
    for (text, limits, memory, pids) in [
        ("schema = 1\n", None, Required, Fallback),
        (strict, None, Required, Required),
        (lax, None, Fallback, Fallback),
        (strict, Some(Fallback), Fallback, Fallback),
        (lax, Some(Required), Required, Required),
    ] {
        let more = Additions { memory: Some(64 << 20), limits, ..Additions::default() };
        let found = resolve(text, &more).limits;
        let found = (found.memory_bytes.strictness, found.pids.strictness);
        assert_eq!(found, (memory, pids), "{text} {limits:?}");
    }
}

#[test]
fn a_budget_in_usd_wants_the_price_of_every_model_that_may_answer() {
    let model = |name: &str, more: &str| {
        format!("[models.{name}]\napi = 'openai'\nmodel = 'x'\nsecret = 'k'\n{more}\n")
    };
    let price = |name: &str| format!("[models.{name}.price]\ninput = 0\noutput = 0\n");
    let bare = format!("schema = 1\n{}", model("a", ""));
    let priced = format!("{bare}{}", price("a"));
    let half =
        format!("schema = 1\n{}{}{}", model("a", "fallbacks = ['b']"), price("a"), model("b", ""));
    let budget = "schema = 1\n[budget]\nusd_per_turn = 1.0\n";
    let tokens = "schema = 1\n[budget]\ntokens_per_day = 9\n";
    let named = "schema = 1\nmodel = 'a'\n[budget]\nusd_per_day = 1.0\n";
    for (text, config, missing) in [
        (budget, &bare, Some(("3:", "a"))),
        (named, &bare, Some(("4:", "a"))),
        (budget, &priced, None),
        (tokens, &bare, None),
        (named, &half, Some(("4:", "b"))),
    ] {
        let config = Config::parse("nanoclaw.toml", config).expect("a good configuration");
        let file = AgentFile::parse("agents/x.toml", text).expect("good by itself");
        let name = AgentName::parse("x").expect("name");
        let context = context(Path::new("/home/me"), Some(&config));
        let found = file.resolve(&name, &context, &Additions::default());
        match (found, missing) {
            (Ok(_), None) => {}
            (Err(error), Some((line, model))) => {
                let error = error.to_string();
                assert!(error.starts_with(&format!("agents/x.toml:{line}")), "{error}");
                assert!(error.contains(&format!("[models.{model}.price]")), "{error}");
            }
            (found, _) => panic!("{text} {found:?}"),
        }
    }
}

#[test]
fn the_command_of_an_agent_is_among_its_grants() {
    let text = "schema = 1\nruntime = 'command'\ncommand = ['sh', '-c', 'echo \"a b\"']\n";
    let agent = resolve(text, &Additions::default());
    assert_eq!(agent.grants_text[0], "runs sh -c \"echo \\\"a b\\\"\"");
}

#[test]
fn the_command_line_adds_under_the_same_rules() {
    let home = MountContext { home: Path::new("/home/me"), protected: &[] };
    let additions = Additions {
        mounts: vec![parse_mount("~/a:b:/mnt/a:rw", &home).expect("a colon in the source")],
        egress: vec![
            parse_allow("example.org").expect("host"),
            parse_allow("git.lan:8443").expect("granted by the file already"),
        ],
        env: [parse_env("MODE=fast", |_| None).expect("env")].into(),
        memory: Some(parse_memory("2GiB").expect("size")),
        limits: None,
        timeout: Some(parse_timeout("30s").expect("duration")),
    };
    let agent = resolve(GOOD, &additions);
    assert_eq!(agent.mounts[1].source, Path::new("/home/me/a:b"));
    assert_eq!(agent.mounts[1].access, Access::Write);
    assert_eq!(agent.egress.len(), 3);
    assert_eq!(agent.egress[2].id, "--allow example.org:443");
    assert!(agent.egress[1].private, "the file's own rule stands");
    assert_eq!(agent.env["MODE"], "fast");
    assert_eq!(agent.limits.memory_bytes.value, 2 << 30);
    assert_eq!(agent.turn_timeout, Duration::from_secs(30));

    let same = parse_mount("~/b:/mnt/notes/deep:ro", &home).expect("fine by itself");
    let file = AgentFile::parse("agents/x.toml", GOOD).expect("good");
    let additions = Additions { mounts: vec![same], ..Additions::default() };
    let name = AgentName::parse("x").expect("name");
    let error = file
        .resolve(&name, &context(Path::new("/home/me"), None), &additions)
        .expect_err("it overlaps the file's mount");
    assert!(error.to_string().contains("overlaps"), "{error}");
}

#[test]
fn equal_meaning_gives_equal_bytes_and_any_grant_changes_them() {
    let base = resolve(GOOD, &Additions::default()).policy_bytes;
    let spaced = GOOD.replace("memory = \"512MiB\"", "memory   =   \"512MiB\" # half");
    assert_eq!(resolve(&spaced, &Additions::default()).policy_bytes, base);
    for (from, to) in [
        ("512MiB", "513MiB"),
        ("access = \"read\"", "access = \"write\""),
        ("port = 8443", "port = 8444"),
        ("C.UTF-8", "C.UTF-9"),
        ("\"grep\"", "\"glob\""),
        ("5min", "6min"),
    ] {
        let changed = resolve(&GOOD.replace(from, to), &Additions::default()).policy_bytes;
        assert_ne!(changed, base, "{from} to {to}");
    }
    let text = String::from_utf8(base).expect("UTF-8");
    assert!(text.contains("\"description\":\"Reads my notes\",\"egress\":[{"), "{text}");
}

#[test]
fn models_are_resolved_with_their_defaults_and_warnings() {
    let config = Config::parse("nanoclaw.toml", GOOD_CONFIG).expect("good");
    assert_eq!(config.default_agent.map(|a| a.to_string()).as_deref(), Some("triage"));
    let claude = &config.models["claude"];
    assert_eq!(
        (claude.api, claude.base_url.as_str()),
        (ModelApi::Anthropic, "https://api.anthropic.com")
    );
    assert_eq!((claude.max_tokens, claude.context_tokens), (8_192, 128_000));
    let local = &config.models["local"];
    assert_eq!(local.base_url, "http://127.0.0.1:11434");
    assert_eq!((local.max_tokens, local.context_tokens), (2_048, 0x8000));
    let demo = &config.models["demo"];
    assert_eq!((demo.model.as_str(), demo.api), ("demo", ModelApi::Script));
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "nanoclaw.toml:18:12: warning: base_url http://box.lan:8080: requests and keys cross the \
          network unencrypted, to whatever the name resolves to"
        ]
    );
}

#[test]
fn a_pasted_key_is_refused_without_being_repeated() {
    let key = format!("{}{}", concat!("sk", "-"), "test-key-not-real");
    let text = format!("schema = 1\n[models.a]\napi='openai'\nmodel='m'\nsecret='{key}'\n");
    let error = Config::parse("nanoclaw.toml", &text).expect_err("a key").to_string();
    assert!(error.contains("nanoclaw secret set") && !error.contains("not-real"), "{error}");
    for line in [
        "description = 'use KEY'",
        "instructions = 'use KEY'",
        "runtime = 'command'\ncommand = ['x', '--key=KEY']",
    ] {
        let text = format!("schema = 1\n{}\n", line.replace("KEY", &key));
        let error = AgentFile::parse("a.toml", &text).expect_err(line).to_string();
        assert!(error.contains("credential") && !error.contains("not-real"), "{error}");
    }
}

#[test]
fn random_damage_never_panics_and_never_grants_silently() {
    let mut rng = Rng::from_env();
    for round in 0..6_000 {
        let original = if round % 2 == 0 { GOOD } else { GOOD_CONFIG };
        let mut bytes = original.as_bytes().to_vec();
        for _ in 0..=rng.below(6) {
            let at = rng.below(bytes.len());
            match rng.below(4) {
                0 => bytes[at] = rng.byte(),
                1 => bytes.insert(at, rng.byte()),
                2 => drop(bytes.remove(at)),
                _ => {
                    let end = (at + rng.below(40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = rng.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = Config::parse("f", &text) {
            assert!(!error.to_string().is_empty());
        }
        match AgentFile::parse("f", &text) {
            Err(error) => assert!(error.to_string().starts_with("f:"), "{error}"),
            Ok(file) => {
                let name = AgentName::parse("x").expect("name");
                let context = context(Path::new("/home/me"), None);
                drop(file.resolve(&name, &context, &Additions::default()));
            }
        }
    }
    // Deep nesting is the classic way to overflow a parser's stack.
    for deep in ["[".repeat(100_000), "a.".repeat(50_000), format!("a={}", "[{a=".repeat(30_000))] {
        assert!(AgentFile::parse("f", &format!("schema = 1\n{deep}")).is_err());
    }
}

#[test]
fn files_are_read_only_if_they_can_be_trusted() {
    let dir = TempDir::new("policy").expect("folder");
    let path = dir.join("nanoclaw.toml");
    assert_eq!(load::config(dir.path()).expect("absent is empty"), Config::default());
    let refused = |part: &str| {
        let error = load::config(dir.path()).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    std::fs::write(&path, GOOD_CONFIG).expect("write");
    assert_eq!(load::config(dir.path()).expect("good").models.len(), 4);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("chmod");
    refused("writable by every user");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
    std::fs::write(&path, b"schema = 1\n# \xff\n").expect("write");
    refused("not UTF-8 (first bad byte at offset 13)");
    std::fs::write(&path, "#".repeat(256 * 1024 + 1)).expect("write");
    refused("larger than 256 KiB");
    std::fs::remove_file(&path).expect("remove");
    std::fs::create_dir(&path).expect("a folder in its place");
    refused("not a regular file");
}

#[test]
fn an_agent_is_loaded_with_its_instructions_and_real_mounts() {
    let dir = TempDir::new("agent").expect("folder");
    let home = dir.join("home");
    for folder in ["agents", "home/notes", "home/.ssh", "home/other"] {
        std::fs::create_dir_all(dir.join(folder)).expect("folder");
    }
    let text = "schema = 1\ninstructions = { file = 'x.md' }\n[[mounts]]\nsource = '~/link'\n\
                target = '/mnt/n'\naccess = 'read'\n";
    std::fs::write(dir.join("agents/x.toml"), text).expect("write");
    std::fs::write(dir.join("agents/x.md"), "Be kind.").expect("write");
    let name = AgentName::parse("x").expect("name");
    let mounts = MountContext { home: &home, protected: &[] };
    let load = || load::agent(dir.path(), &name, mounts, None, &Additions::default());

    assert_eq!(load::agent_names(dir.path()), std::slice::from_ref(&name));
    let error = load().expect_err("nothing is there").to_string();
    assert!(error.contains("cannot be mounted"), "{error}");

    std::os::unix::fs::symlink(home.join("notes"), home.join("link")).expect("link");
    let agent = load().expect("good").expect("there");
    assert_eq!(agent.instructions.as_deref(), Some("Be kind."));
    assert_eq!(agent.mounts[0].source, home.join("notes").canonicalize().expect("real"));
    let notes = agent.grants_text.iter().any(|line| line.contains("/notes at /mnt/n"));
    assert!(notes, "the grant names the real folder: {:?}", agent.grants_text);

    std::fs::remove_file(home.join("link")).expect("remove");
    std::os::unix::fs::symlink(home.join(".ssh"), home.join("link")).expect("link");
    let error = load().expect_err("a symlink to keys").to_string();
    assert!(error.contains("keys and passwords are kept"), "{error}");

    let absent = AgentName::parse("absent").expect("name");
    let none = load::agent(dir.path(), &absent, mounts, None, &Additions::default());
    assert!(none.expect("absent is no error").is_none());
}

#[test]
fn an_image_is_pinned_by_its_digest() {
    let digest = "0123456789abcdef".repeat(4);
    let pinned = format!("team/tools:1@sha256:{digest}");
    let file = |rootfs: &str| format!("schema = 1\n[sandbox]\nrootfs = 'image:{rootfs}'\n");
    let resolve = |text: &str| {
        let name = AgentName::parse("a").expect("name");
        let mounts = MountContext { home: Path::new("/home/u"), protected: &[] };
        let context = ResolveContext { mounts, config: None, instructions: None };
        let parsed = AgentFile::parse("a.toml", text).expect("valid");
        parsed.resolve(&name, &context, &Additions::default()).expect("resolves")
    };
    let agent = resolve(&file(&pinned));
    assert_eq!(agent.image.as_ref().map(ToString::to_string), Some(pinned.clone()));
    let line = format!("root file system: the image {pinned}, read-only");
    assert!(agent.grants_text.contains(&line), "{:?}", agent.grants_text);
    let plain = resolve("schema = 1\n");
    assert_eq!(plain.image, None);
    assert_ne!(agent.policy_bytes, plain.policy_bytes);
    assert_eq!(nanoclaw_policy::diff(&plain, &agent).gained, [line]);
    for bad in ["team/tools:1", "tools@sha256:12", "../x@sha256:00", "", "@"] {
        let error = AgentFile::parse("a.toml", &file(bad)).expect_err(bad).to_string();
        assert!(error.contains("nanoclaw image list"), "{error}");
    }
}

#[test]
fn the_walls_of_every_backend_may_be_tried_at_the_start() {
    for backend in ["native", "docker", "podman"] {
        let text = format!("schema = 1\n[sandbox]\nbackend = '{backend}'\nprobe_on_start = true\n");
        let name = AgentName::parse("a").expect("name");
        let mounts = MountContext { home: Path::new("/home/u"), protected: &[] };
        let context = ResolveContext { mounts, config: None, instructions: None };
        let parsed = AgentFile::parse("a.toml", &text).expect("valid");
        let agent = parsed.resolve(&name, &context, &Additions::default()).expect("resolves");
        assert!(agent.probe_on_start, "{backend}");
        assert_eq!(agent.backend.name(), backend);
    }
}

/// What no machine has is refused where it stands; what is not known refuses nothing.
#[test]
fn a_size_beyond_the_machine_is_refused_where_it_stands() {
    let machine = Machine { memory_bytes: Some(2 << 30), disk_bytes: Some(10 << 30) };
    for (line, told) in [
        ("memory = '2GiB'", None),
        ("memory = '3GiB'", Some("agents/x.toml:3:10: memory is 3GiB, more than the whole memory")),
        ("tmp = '2049MiB'", Some("agents/x.toml:3:7: tmp is 2049MiB, more than")),
        ("disk = '10GiB'", None),
        ("disk = '1TiB'", Some("agents/x.toml:3:8: disk is 1TiB, more than the whole file system")),
    ] {
        let text = format!("schema = 1\n[sandbox]\n{line}\n");
        let file = AgentFile::parse("agents/x.toml", &text).expect("good file");
        let found = file.fits(&machine).err().map(|e| e.to_string());
        assert_eq!(found.is_some(), told.is_some(), "{line}: {found:?}");
        if let (Some(found), Some(told)) = (found, told) {
            assert!(found.starts_with(told), "{found}");
        }
        assert_eq!(file.fits(&Machine::default()), Ok(()), "{line}");
    }
    // The machine that this runs on has less than a thousand TiB, and `load` asks it.
    let dir = TempDir::new("beyond").expect("a folder");
    std::fs::create_dir(dir.join("agents")).expect("made");
    let text = "schema = 1\n[sandbox]\ndisk = '1024TiB'\n";
    std::fs::write(dir.join("agents/x.toml"), text).expect("written");
    let name = AgentName::parse("x").expect("name");
    let mounts = MountContext { home: dir.path(), protected: &[] };
    let error = load::agent(dir.path(), &name, mounts, None, &Additions::default());
    let error = error.expect_err("refused").to_string();
    assert!(error.starts_with("agents/x.toml:3:8: disk is 1024TiB"), "{error}");
}

/// A person sees what the disk limit is worth, and that a session may run on without one.
#[test]
fn disk_and_time_are_told_and_loosening_them_shows() {
    let with = resolve("schema = 1\n[sandbox]\ndisk = '1GiB'\nwall_time = '8h'\n", &none());
    let told = |line: &str| with.grants_text.iter().any(|l| l == line);
    assert!(told("disk up to 1GiB, counted now and then and stopped when over"));
    assert!(told("each sandbox ends after 8h"), "{:?}", with.grants_text);
    let without = resolve("schema = 1\n", &none());
    let gained = diff(&with, &without).gained;
    assert!(gained.contains(&"disk without limit, beyond 1GiB".to_owned()), "{gained:?}");
    assert!(
        gained.contains(&"each sandbox's time without limit, beyond 8h".to_owned()),
        "{gained:?}"
    );
    assert_ne!(with.policy_bytes, without.policy_bytes);
}

fn none() -> Additions {
    Additions::default()
}

/// Every key of the published example, each alone in its table: accepted, or refused because
/// this version cannot enforce it; never called unknown.
#[test]
fn every_published_key_is_recognised() {
    let mut refused = Vec::new();
    for (table, lines) in [
        ("", "description = 'x'|runtime = 'builtin'|runtime = 'codex'|runtime = 'acp'|model = 'c'"),
        ("", "workspace = 'session'|workspace = 'agent'|instructions = 'x'"),
        ("[sandbox]", "backend = 'native'|backend = 'podman'|backend = 'kubernetes'"),
        ("[sandbox]", "rootfs = 'host-usr'|probe_on_start = true|turn_timeout = '10min'"),
        ("[sandbox]", "memory = '1GiB'|cpus = 1.0|pids = 256|disk = '2GiB'"),
        ("[sandbox]", "wall_time = '8h'"),
        ("[sandbox]", "limits = 'fallback'|witness = 'off'|require = ['landlock>=6']"),
        ("[[egress]]\nhost = 'a.org'", "methods = ['GET']|paths = ['/repos/**']|secret = 'github'"),
        ("[[egress]]\nhost = 'a.org'", "max_upload_per_day = '1MiB'|tls = 'tunnel'|private = true"),
        ("[tools]", "allow = ['bash']|allow = ['send_message', 'schedule_task']"),
        ("[[ask]]\negress = 'POST a.org/x'", "by = 'owner'|timeout = '5min'"),
        ("[budget]", "usd_per_day = 2.0"),
    ] {
        for line in lines.split('|') {
            let text = format!("schema = 1\n{table}\n{line}\n");
            if let Err(error) = AgentFile::parse("x.toml", &text) {
                let error = error.to_string();
                assert!(error.contains("is not enforced in this version; remove it"), "{error}");
                refused.push(line);
            }
        }
    }
    assert_eq!(refused.len(), 6, "{refused:?}");
}

/// A container engine is named with what only it can be told; an image by digest alone.
#[test]
fn an_engine_is_named_with_an_image_by_digest() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let text = |image: &str| {
        format!(
            "schema = 1\n[sandbox]\nbackend = 'docker'\nengine_image = '{image}'\n\
             engine_runtime = 'crun'\n"
        )
    };
    let agent = resolve(&text(&digest), &Additions::default());
    let choice = model::EngineChoice { image: Some(digest.clone()), runtime: Some("crun".into()) };
    assert_eq!(agent.backend, model::Backend::Docker(choice));
    assert!(agent.grants_text[0].starts_with("sandbox by docker, root image sha256:01"));
    let plain = resolve("schema = 1\n", &Additions::default());
    assert_ne!(plain.policy_bytes, agent.policy_bytes);
    assert_eq!(plain.backend, model::Backend::Native);
    assert!(AgentFile::parse("x.toml", &text(&format!("debian@{digest}"))).is_ok());
    for bad in ["debian", "debian:12", "sha256:12", "-x@sha256:00", &digest.to_uppercase()] {
        let error = AgentFile::parse("x.toml", &text(bad)).expect_err(bad).to_string();
        assert!(error.contains("not an image's digest"), "{error}");
    }
    let alone = "schema = 1\n[sandbox]\nengine_runtime = 'crun'\n";
    let error = AgentFile::parse("x.toml", alone).expect_err("native").to_string();
    assert!(error.contains("say nothing to the native backend"), "{error}");
}
