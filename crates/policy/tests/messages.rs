//! Every way to write a file or an argument wrongly, with the complete message it gets. The
//! messages stand in `messages.txt`; after an intended change run the test with
//! `UPDATE_SNAPSHOTS=1` and read the difference.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use nanoclaw_policy::{
    Additions, AgentFile, Config, MountContext, PolicyError, ResolveContext, parse_allow,
    parse_env, parse_memory, parse_mount, parse_timeout,
};
use std::path::{Path, PathBuf};

const AGENT: &[(&str, &str)] = &[
    ("empty file", ""),
    ("schema missing", "description = 'x'\n"),
    ("schema newer, with keys unknown today", "schema = 2\nfuture = true\n"),
    ("schema of the wrong type", "schema = '1'\n"),
    ("typing error in a section", "schema = 1\n[sandbox]\nmemroy = '1GiB'\n"),
    ("typing error at the top", "schema = 1\nmodle = 'claude'\n"),
    ("stranger at the top", "schema = 1\nfrobnicate = 1\n"),
    ("typing error in an array of tables", "schema = 1\n[[mounts]]\nsorce = '~/notes'\n"),
    ("key with control characters", "schema = 1\n\"a\\u001b[31m\" = 1\n"),
    ("not TOML", "schema = 1\nmodel = \n"),
    ("duplicate key", "schema = 1\nmodel = 'a'\nmodel = 'b'\n"),
    ("duplicate table", "schema = 1\n[sandbox]\npids = 9\n[sandbox]\ncpus = 1\n"),
    ("size without unit", "schema = 1\n[sandbox]\nmemory = '1024'\n"),
    ("size as an integer", "schema = 1\n[sandbox]\nmemory = 1073741824\n"),
    ("size with a decimal unit", "schema = 1\n[sandbox]\ntmp = '1GB'\n"),
    ("size too small", "schema = 1\n[sandbox]\nmemory = '1MiB'\n"),
    ("duration without unit", "schema = 1\n[sandbox]\nturn_timeout = '10'\n"),
    ("duration too long", "schema = 1\n[sandbox]\nturn_timeout = '200h'\n"),
    ("cpus of zero", "schema = 1\n[sandbox]\ncpus = 0\n"),
    ("cpus not a number", "schema = 1\n[sandbox]\ncpus = nan\n"),
    ("pids negative", "schema = 1\n[sandbox]\npids = -1\n"),
    ("open_files too few", "schema = 1\n[sandbox]\nopen_files = 3\n"),
    ("limits unknown", "schema = 1\n[sandbox]\nlimits = 'soft'\n"),
    ("witness unknown", "schema = 1\n[sandbox]\nwitness = 'no'\n"),
    ("disk of zero", "schema = 1\n[sandbox]\ndisk = '0GiB'\n"),
    ("disk too small", "schema = 1\n[sandbox]\ndisk = '64KiB'\n"),
    ("wall time of zero", "schema = 1\n[sandbox]\nwall_time = '0s'\n"),
    ("later: backend", "schema = 1\n[sandbox]\nbackend = 'kubernetes'\n"),
    ("backend of another system", "schema = 1\n[sandbox]\nbackend = 'apple'\n"),
    ("unknown backend", "schema = 1\n[sandbox]\nbackend = 'chroot'\n"),
    ("rootfs image not pinned", "schema = 1\n[sandbox]\nrootfs = 'image:debian'\n"),
    ("rootfs unknown", "schema = 1\n[sandbox]\nrootfs = 'debian'\n"),
    (
        "rootfs image with an engine",
        concat!(
            "schema = 1\n[sandbox]\nbackend = 'docker'\nrootfs = 'image:debian@sha256:",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'\n"
        ),
    ),
    (
        "engine image without an engine",
        concat!(
            "schema = 1\n[sandbox]\nengine_image = 'debian@sha256:",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'\n"
        ),
    ),
    (
        "engine image not pinned",
        "schema = 1\n[sandbox]\nbackend = 'docker'\nengine_image = 'debian:12'\n",
    ),
    ("later: runtime", "schema = 1\nruntime = 'claude-code'\n"),
    ("unknown runtime", "schema = 1\nruntime = 'python'\n"),
    ("later: shared workspace", "schema = 1\nworkspace = 'agent'\n"),
    ("later: tools", "schema = 1\n[tools]\nallow = ['bash', 'send_message']\n"),
    ("tool misspelt", "schema = 1\n[tools]\nallow = ['reed_file']\n"),
    ("command without runtime", "schema = 1\ncommand = ['x']\n"),
    ("runtime without command", "schema = 1\nruntime = 'command'\n"),
    ("command empty", "schema = 1\nruntime = 'command'\ncommand = []\n"),
    ("command not strings", "schema = 1\nruntime = 'command'\ncommand = ['a', 2]\n"),
    ("instructions file elsewhere", "schema = 1\ninstructions = { file = '../x' }\n"),
    ("instructions file not read", "schema = 1\ninstructions = { file = 'x.md' }\n"),
    ("host with a wildcard inside", "schema = 1\n[[egress]]\nhost = 'a.*.org'\n"),
    ("host below one label", "schema = 1\n[[egress]]\nhost = '*.org'\n"),
    ("host of two scripts", "schema = 1\n[[egress]]\nhost = 'p\u{430}ypal.example'\n"),
    ("host in no script", "schema = 1\n[[egress]]\nhost = 'bücher_x.example'\n"),
    ("host of a broken xn-- form", "schema = 1\n[[egress]]\nhost = 'xn--a.example'\n"),
    ("host denied in no script", "schema = 1\n[[deny]]\nhost = '*.b\u{200d}b.example'\n"),
    ("host asked for in no script", "schema = 1\n[[ask]]\negress = 'GET ü..example/x'\n"),
    ("host is an address", "schema = 1\n[[egress]]\nhost = '10.0.0.1'\n"),
    ("port too large", "schema = 1\n[[egress]]\nhost = 'a.org'\nport = 65536\n"),
    ("egress twice", "schema = 1\n[[egress]]\nhost = 'a.org'\n[[egress]]\nhost = 'A.org.'\n"),
    ("egress not an array", "schema = 1\n[egress]\nhost = 'a.org'\n"),
    ("egress without host", "schema = 1\n[[egress]]\nport = 443\n"),
    ("private not boolean", "schema = 1\n[[egress]]\nhost = 'a.org'\nprivate = 'yes'\n"),
    ("mount without access", "schema = 1\n[[mounts]]\nsource = '~/n'\ntarget = '/mnt/n'\n"),
    ("env not a string", "schema = 1\n[env]\nA = 1\n"),
    ("env name", "schema = 1\n[env]\n'A B' = 'x'\n"),
    ("env holds a key", "schema = 1\n[env]\nMY_API_KEY = 'test-key-not-real'\n"),
    ("model unknown", "schema = 1\nmodel = 'claud'\n"),
    (
        "mounts overlap",
        concat!(
            "schema = 1\n[[mounts]]\nsource = '~/a'\ntarget = '/mnt/a'\naccess = 'read'\n",
            "[[mounts]]\nsource = '~/b'\ntarget = '/mnt/a/b'\naccess = 'read'\n"
        ),
    ),
    ("column counts characters", "schema = 1\n[env]\n'ÄÖÜ' = 1\n"),
];

/// Below `schema = 1` and an `[[egress]]` with a host.
const EGRESS: &[(&str, &str)] = &[
    ("port 0", "port = 0"),
    ("methods empty", "methods = []"),
    ("methods lower case", "methods = ['get']"),
    ("methods no token", "methods = ['GET /x']"),
    ("methods that reflect", "methods = ['TRACE']"),
    ("paths relative", "paths = ['repos/**']"),
    ("paths with a query", "paths = ['/a?x=*']"),
    ("paths ambiguous", "paths = ['/a/%2e%2e/b']"),
    ("paths with a semicolon", "paths = ['/a;b']"),
    ("secret is a sentence", "secret = 'my key'"),
    ("inject without secret", "inject = 'bearer'"),
    ("inject unknown", "secret = 'x'\ninject = 'cookie'"),
    ("inject two ways", "secret = 'x'\ninject = { header = 'a', query = 'b' }"),
    ("inject no way", "secret = 'x'\ninject = {}"),
    ("inject misspelt", "secret = 'x'\ninject = { heeder = 'a' }"),
    ("inject into framing", "secret = 'x'\ninject = { header = 'Content-Length' }"),
    (
        "inject into framing, joined otherwise",
        "secret = 'x'\ninject = { header = 'content_length' }",
    ),
    ("inject header with a line", "secret = 'x'\ninject = { header = \"a\\r\\nb\" }"),
    ("inject user with colon", "secret = 'x'\ninject = { basic = 'a:b' }"),
    ("inject parameter", "secret = 'x'\ninject = { query = 'a=b' }"),
    ("tls unknown", "tls = 'off'"),
    ("tunnel with methods", "tls = 'tunnel'\nmethods = ['GET']"),
    ("tunnel with paths", "tls = 'tunnel'\npaths = ['/x']"),
    ("tunnel with secret", "tls = 'tunnel'\nsecret = 'x'"),
    ("tunnel with own credentials", "tls = 'tunnel'\nown_credentials = 'allow'"),
    ("tunnel with request size", "tls = 'tunnel'\nmax_request = '1MiB'"),
    ("tunnel with websocket", "tls = 'tunnel'\nwebsocket = true"),
    ("websocket as a string", "websocket = 'allow'"),
    ("websocket without GET", "methods = ['POST']\nwebsocket = true"),
    (
        "websocket with a secret in the query",
        "websocket = true\nsecret = 'x'\ninject = { query = 'key' }",
    ),
    ("protocol unknown", "protocol = 'udp'"),
    ("tcp without port", "protocol = 'tcp'"),
    ("tcp with secret", "protocol = 'tcp'\nport = 22\nsecret = 'x'"),
    ("tcp with tls", "protocol = 'tcp'\nport = 22\ntls = 'tunnel'"),
    ("http with tls", "protocol = 'http'\ntls = 'intercept'"),
    ("own credentials as a boolean", "own_credentials = true"),
    ("own credentials unknown", "own_credentials = 'maybe'"),
    ("upload without unit", "max_upload_per_day = '10'"),
    ("rate of zero", "max_per_minute = 0"),
    ("rate as text", "max_per_minute = '60'"),
    ("deliver in egress", "deliver = 'stdin'"),
    ("tunnel and intercept", "[[egress]]\nhost = 'a.org'\ntls = 'tunnel'"),
    (
        "tunnel over intercept",
        "[[egress]]\nhost = '*.a.org'\n[[egress]]\nhost='x.a.org'\ntls='tunnel'",
    ),
    ("deny part of a tunnel", "tls = 'tunnel'\n[[deny]]\nhost = 'a.org'\npaths = ['/x']"),
    ("deny twice", "[[deny]]\nhost = 'b.org'\n[[deny]]\nhost = 'b.org'"),
    ("deny with a secret", "[[deny]]\nhost = 'a.org'\nsecret = 'x'"),
    ("deny without host", "[[deny]]\nport = 443"),
    ("ask without egress", "[[ask]]\nby = 'owner'"),
    ("ask without method", "[[ask]]\negress = 'a.org/x'"),
    ("ask with a bad port", "[[ask]]\negress = 'GET a.org:0/x'"),
    ("ask of nobody known", "[[ask]]\negress = 'GET a.org/x'\nby = 'friend'"),
    ("ask too long", "[[ask]]\negress = 'GET a.org/x'\ntimeout = '2h'"),
    ("ask for a path of a tunnel", "tls = 'tunnel'\n[[ask]]\negress = 'GET a.org/x'"),
    ("ask for a connection looked into", "[[ask]]\negress = 'CONNECT a.org:443'"),
    (
        "ask where terms differ",
        "secret = 'x'\nmethods=['GET']\n[[egress]]\nhost='a.org'\n[[ask]]\negress='PUT a.org/x'",
    ),
    ("budget empty", "[budget]"),
    ("budget negative", "[budget]\nusd_per_day = -1"),
    ("budget not a number", "[budget]\nusd_per_turn = nan"),
    ("budget in words", "[budget]\nusd_per_day = '2 dollars'"),
    ("budget of no tokens", "[budget]\ntokens_per_day = 0"),
    ("stdin secret for the built-in agent", "[[secrets]]\nname = 'x'\ndeliver = 'stdin'"),
    ("secret delivered otherwise", "[[secrets]]\nname = 'x'\ndeliver = 'env'"),
    ("secret without delivery", "[[secrets]]\nname = 'x'"),
];

const CONFIG: &[(&str, &str)] = &[
    ("unknown key", "schema = 1\ndefault_agnet = 'x'\n"),
    ("later: channels", "schema = 1\n[channels.telegram]\n"),
    ("default agent is no name", "schema = 1\ndefault_agent = 'A/B'\n"),
    ("model is no table", "schema = 1\n[models]\nclaude = 'x'\n"),
    ("model key misspelt", "schema = 1\n[models.a]\napi = 'openai'\nbaseurl = 'x'\n"),
    ("api missing", "schema = 1\n[models.a]\nmodel = 'm'\n"),
    ("api unknown", "schema = 1\n[models.a]\napi = 'grok'\n"),
    ("model missing", "schema = 1\n[models.a]\napi = 'openai'\n"),
    ("secret missing", "schema = 1\n[models.a]\napi = 'anthropic'\nmodel = 'm'\n"),
    ("secret has spaces", "schema = 1\n[models.a]\napi='openai'\nmodel='m'\nsecret='a b'\n"),
    ("script without file", "schema = 1\n[models.a]\napi = 'script'\n"),
    ("script with a key", "schema = 1\n[models.a]\napi='script'\nscript='a.toml'\nsecret='x'\n"),
    (
        "password in the URL",
        "schema = 1\n[models.a]\napi='openai'\nmodel='m'\nbase_url='https://u:p@a.org'\n",
    ),
    (
        "plain http to the world",
        "schema = 1\n[models.a]\napi='openai'\nmodel='m'\nbase_url='http://8.8.8.8'\n",
    ),
    (
        "no room",
        "schema = 1\n[models.a]\napi='script'\nscript='a.toml'\nmax_tokens=9000\ncontext_tokens=8000\n",
    ),
    ("tokens zero", "schema = 1\n[models.a]\napi='script'\nscript='a.toml'\nmax_tokens=0\n"),
];

const MOUNTS: &[&str] = &[
    "~/notes",
    "~/notes:/mnt/n",
    "~/notes:/mnt/n:rx",
    "notes:/mnt/n:ro",
    "~/notes:mnt/n:ro",
    "/:/mnt/n:ro",
    "~:/mnt/n:ro",
    "/home:/mnt/n:ro",
    "~bob/x:/mnt/n:ro",
    "~/.ssh:/mnt/n:ro",
    "~/x/.AWS/y:/mnt/n:ro",
    "~/.local/share/keyrings:/mnt/n:ro",
    "/var/run/docker.sock:/mnt/n:ro",
    "~/a/../.ssh:/mnt/n:ro",
    "~/.local:/mnt/n:ro",
    "~/.local/share/nanoclaw/log:/mnt/n:ro",
    "~/notes:/:ro",
    "~/notes:/usr/x:ro",
    "~/notes:/run:ro",
    "~/notes:/mnt/../etc:ro",
    "~/notes:/workspace/x:rw",
];

fn mounts(protected: &[PathBuf]) -> MountContext<'_> {
    MountContext { home: Path::new("/home/me"), protected }
}

fn resolve(text: &str) -> Result<(), PolicyError> {
    let file = AgentFile::parse("agents/x.toml", text)?;
    let config = "schema = 1\n[models.claude]\napi = 'script'\nscript = 'demo.toml'\n";
    let config = Config::parse("nanoclaw.toml", config).expect("a good file");
    let context = ResolveContext { mounts: mounts(&[]), config: Some(&config), instructions: None };
    let name = model::AgentName::parse("x").expect("a good name");
    file.resolve(&name, &context, &Additions::default()).map(drop)
}

/// That many rules, each with a port of its own, and one more that repeats the first.
fn ports(count: u16) -> String {
    let rule = |n| format!("[[egress]]\nhost = 'h{n}.org'\nport = {}\n", 1_000 + n);
    let rules: String = (0..count).map(rule).collect();
    format!("schema = 1\n{rules}[[egress]]\nhost = 'again.org'\nport = 1000\n")
}

#[test]
fn as_many_ports_as_a_sandbox_may_have_are_accepted() {
    let deny = "[[deny]]\nhost = 'b.org'\nport = 9999\n";
    assert_eq!(resolve(&format!("{}{deny}", ports(64))), Ok(()));
    let file = AgentFile::parse("agents/x.toml", &ports(64)).expect("a good file");
    let egress = vec![parse_allow("one-more.org:9999").expect("a rule")];
    let additions = Additions { egress, ..Additions::default() };
    let context = ResolveContext { mounts: mounts(&[]), config: None, instructions: None };
    let name = model::AgentName::parse("x").expect("a good name");
    let error = file.resolve(&name, &context, &additions).expect_err("65 ports").to_string();
    assert!(error.starts_with("--allow one-more.org:9999: port 9999 is one more than"), "{error}");
}

#[test]
fn every_mistake_gets_its_message() {
    let mut out = String::new();
    let mut note = |what: &str, result: Result<(), PolicyError>| {
        let error = result.expect_err(what).to_string();
        assert!(!error.contains("not-real"), "{what}: the message repeats the value");
        out += &format!("{what}\n  {error}\n");
    };
    for (what, text) in AGENT {
        note(what, resolve(text));
    }
    for (what, text) in EGRESS {
        note(what, resolve(&format!("schema = 1\n[[egress]]\nhost = 'a.org'\n{text}\n")));
    }
    note("65 ports", resolve(&ports(65)));
    let ask = "[[ask]]\negress = 'GET a.org:9999/x'\n";
    note("the 65th port in an [[ask]]", resolve(&format!("{}{ask}", ports(64))));
    for (what, text) in CONFIG {
        note(what, Config::parse("nanoclaw.toml", text).map(drop));
    }
    let state = [PathBuf::from("/home/me/.local/share/nanoclaw")];
    for argument in MOUNTS {
        note(argument, parse_mount(argument, &mounts(&state)).map(drop));
    }
    for argument in ["", "*.a.org", "127.0.0.1:80", "a.org:0", "a.org:x", "https://a.org"] {
        note(argument, parse_allow(argument).map(drop));
    }
    for argument in ["", "A-B=1", "ABSENT", "TOKEN=test-key-not-real", "HOST_SECRET"] {
        let lookup = |name: &str| (name == "HOST_SECRET").then(|| "value-not-real".to_owned());
        note(argument.split('=').next().unwrap_or(""), parse_env(argument, lookup).map(drop));
    }
    note("--memory 512", parse_memory("512").map(drop));
    note("--timeout 5m", parse_timeout("5m").map(drop));

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/messages.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &out).expect("the snapshot");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    for (got, want) in out.lines().zip(want.lines()) {
        assert_eq!(got, want);
    }
    assert_eq!(out.len(), want.len(), "messages.txt is not complete");
}
