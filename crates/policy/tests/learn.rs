//! Learning: few patterns for what was used, nothing private, nothing secret, nothing by itself.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use model::{AgentName, SessionId};
use nanoclaw_policy::learn::{self, Learned, Seen, learn};
use nanoclaw_policy::{AgentFile, Outcome, explain};
use testkit::Rng;

const FILE: &str = "schema = 1\n[[egress]]\nhost = 'api.example.org'\n[[egress]]\nhost = \
                    'old.example.org'\n[[deny]]\nhost = 'denied.example.org'\n";

fn seen(allowed: bool, host: &str, method: &str, path: &str) -> Seen {
    Seen {
        host: host.to_owned(),
        port: Some(443),
        request: Some((method.to_owned(), path.to_owned())),
        websocket: false,
        allowed,
        rule: if allowed { "agents/x.toml:2".into() } else { "default deny".into() },
    }
}

fn rules() -> Vec<model::EgressRule> {
    let file = AgentFile::parse("agents/x.toml", FILE).expect("good");
    let home = std::path::Path::new("/h");
    let mounts = nanoclaw_policy::MountContext { home, protected: &[] };
    let context = nanoclaw_policy::ResolveContext { mounts, config: None, instructions: None };
    let name = AgentName::parse("x").expect("name");
    file.resolve(&name, &context, &nanoclaw_policy::Additions::default()).expect("good").egress
}

fn text(learned: &Learned) -> String {
    let agent = AgentName::parse("x").expect("name");
    learn::text(learned, &agent, &SessionId::parse("s1").expect("id"))
}

#[test]
fn ids_and_many_siblings_become_stars() {
    let mut all = Vec::new();
    for path in [
        "/repos/12/issues",
        "/repos/77/issues",
        "/commits/0123abcd0123abcd",
        "/items/123e4567-e89b-12d3-a456-426614174000/text",
    ] {
        all.push(seen(false, "new.example.org", "GET", path));
    }
    for name in ["ann", "bob", "cid"] {
        all.push(seen(false, "users.example.org", "GET", &format!("/u/{name}/mail")));
        all.push(seen(false, "users.example.org", "POST", "/u"));
    }
    all.push(seen(false, "two.example.org", "GET", "/a/x"));
    all.push(seen(false, "two.example.org", "GET", "/a/y"));
    let learned = learn(&rules(), &all);
    let made = text(&learned);
    assert!(
        made.contains(
            "\n[[egress]]\nhost = \"new.example.org\"\nmethods = [\"GET\"]\npaths = \
             [\"/*/*\", \"/*/*/issues\", \"/*/*/text\"]\n"
        ),
        "{made}"
    );
    assert!(made.contains("methods = [\"GET\"]\npaths = [\"/u/*/mail\"]\n"), "{made}");
    assert!(made.contains("methods = [\"POST\"]\npaths = [\"/u\"]\n"), "{made}");
    assert!(made.contains("paths = [\"/a/x\", \"/a/y\"]\n"), "{made}");
    assert_eq!(learned.left_out, []);
}

#[test]
fn what_is_private_secret_or_denied_is_left_out_and_not_repeated() {
    let key = format!("{}{}", concat!("sk", "-"), "test-key-not-real");
    let mut all = Vec::new();
    for host in [
        "127.0.0.1",
        "[::1]",
        "169.254.169.254",
        "localhost",
        "db.local",
        "x.internal",
        "router",
        "metadata.google.internal",
        "metadata.example.org",
        "10.0.0.1.example.org",
        "192-168-0-1.example.org",
        "nas.lan",
        "evil\n[[egress]]\nhost = 'x.org'",
        "",
    ] {
        all.push(seen(false, host, "GET", "/"));
    }
    for path in [
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/latest/meta-data/iam",
        "/v1/secrets/x",
        "/oauth/token",
        "/My-Password",
        &format!("/bot/{key}/send"),
        "/a/../b",
        "/a;b",
        "/a\n",
        "a",
        "/hooks/qwertzuiopasdfghjklyxcvbnm",
    ] {
        all.push(seen(false, "pub.example.org", "GET", path));
    }
    all.push(seen(false, "pub.example.org", "TRACE", "/"));
    all.push(seen(false, "pub.example.org", "GET\n", "/"));
    all.push(seen(false, "denied.example.org", "GET", "/"));
    all.push(seen(false, "api.example.org", "GET", "/refused-for-its-size"));
    let learned = learn(&rules(), &all);
    assert_eq!(learned.rules, [], "{}", text(&learned));
    let made = text(&learned);
    assert!(!made.contains("not-real") && !made.contains("qwertz"), "{made}");
    assert!(made.contains("denied.example.org: denied by a rule"), "{made}");
    assert!(made.contains("api.example.org: permitted already"), "{made}");
    // Whatever the agent called itself after, the text is one comment a line.
    assert!(made.lines().skip(6).all(|l| l.is_empty() || l.starts_with('#')), "{made}");
    assert!(learn::parse("p.toml", &made).expect("good").rules.is_empty());
}

#[test]
fn connections_names_and_unused_grants_are_told() {
    let bare = |host: &str, port| Seen {
        host: host.to_owned(),
        port,
        request: None,
        websocket: false,
        allowed: false,
        rule: "dns".to_owned(),
    };
    let all = [
        bare("seen.example.org", Some(8443)),
        bare("named.example.org", None),
        seen(true, "api.example.org", "GET", "/v1/items/7"),
    ];
    let learned = learn(&rules(), &all);
    let made = text(&learned);
    assert!(
        made.contains("host = \"seen.example.org\"\nport = 8443\nmethods = [\"GET\", \"HEAD\"]")
    );
    assert!(made.contains("host = \"named.example.org\"\nmethods = [\"GET\", \"HEAD\"]"), "{made}");
    assert_eq!(learned.unused, ["egress old.example.org:443 (agents/x.toml:4)"]);
    let narrower = "agents/x.toml:2 was used only for api.example.org:443 GET /v1/items/*";
    assert!(made.contains(narrower), "{made}");
}

#[test]
fn a_websocket_is_proposed_only_where_the_session_asked_for_one() {
    let socket =
        |host: &str, path: &str| Seen { websocket: true, ..seen(false, host, "GET", path) };
    let all = [
        seen(false, "ws.example.org", "GET", "/page"),
        socket("ws.example.org", "/live"),
        socket("api.example.org", "/live"),
        Seen { allowed: true, ..socket("api.example.org", "/old") },
        Seen { websocket: true, ..seen(false, "put.example.org", "PUT", "/live") },
    ];
    let made = text(&learn(&rules(), &all));
    let proposed = learn::parse("p.toml", &made).expect("a proposal reads back").rules;
    let told: Vec<_> = proposed.iter().map(|r| (r.paths[0].as_str(), r.websocket)).collect();
    assert_eq!(told, [("/live", false), ("/page", false), ("/live", true)], "{made}");
    assert!(made.contains("paths = [\"/live\"]\n# blind:"), "{made}");
    // What permits the GET already is not widened behind a person's back.
    assert!(made.contains("GET api.example.org: permitted, but not as a WebSocket"), "{made}");
    let learned = learn(
        &rules(),
        &[Seen { allowed: true, rule: "agents/x.toml:2".into(), ..all[3].clone() }],
    );
    assert!(text(&learned).contains("443 GET /old, with WebSockets"), "{}", text(&learned));
    let grown = learn::append(FILE, &learn::parse("p.toml", &made).expect("good"));
    AgentFile::parse("agents/x.toml", &grown).expect(&grown);
}

#[test]
fn accepted_rules_permit_what_was_refused_and_the_file_stays_good() {
    let mut rng = Rng::from_env();
    const PARTS: [&str; 12] =
        ["a", "b", "c", "d", "17", "0123abcd9", "x%2Fy", "%C3%A9", "*", "%2A", "v1:run", "\""];
    for _ in 0..300 {
        let mut all = Vec::new();
        for _ in 0..1 + rng.below(12) {
            let mut path = String::new();
            for _ in 0..1 + rng.below(4) {
                path += &format!("/{}", rng.pick(&PARTS).expect("some"));
            }
            let host = format!("h{}.example.org", rng.below(3));
            let method = *rng.pick(&["GET", "PUT"]).expect("some");
            all.push(seen(false, &host, method, &path));
        }
        let learned = learn(&rules(), &all);
        let proposal = learn::parse("p.toml", &text(&learned)).expect("a proposal reads back");
        let file = learn::append(FILE, &proposal);
        AgentFile::parse("agents/x.toml", &file).expect(&file);
        let mut after = rules();
        after.extend(proposal.rules);
        for one in &all {
            let (method, path) = one.request.as_ref().expect("all have one");
            let host = model::HostName::parse(&one.host).expect("good");
            let told = explain(&after, &host, 443, method, path);
            assert_eq!(told.outcome, Outcome::Allow, "{one:?}\n{file}");
        }
    }
}

#[test]
fn a_flood_stays_small_and_proposals_cannot_grant_more() {
    let mut all = Vec::new();
    for n in 0..2_000 {
        all.push(seen(false, &format!("h{n}.example.org"), "GET", "/"));
        all.push(seen(false, "one.example.org", "GET", &format!("/x{n}/y{n}/z{n}")));
        all.push(seen(false, "deep.example.org", "GET", &"/a".repeat(n % 900 + 1)));
    }
    let learned = learn(&rules(), &all);
    assert!(learned.rules.len() <= 210, "{}", learned.rules.len());
    assert!(text(&learned).len() < 64 * 1024);
    for more in ["secret = 'x'", "tls = 'tunnel'", "private = true", "own_credentials = 'allow'"] {
        let text = format!("schema=1\nagent='x'\nsession='s1'\n[[egress]]\nhost='a.org'\n{more}\n");
        let error = learn::parse("p.toml", &text).expect_err(more).to_string();
        assert!(error.contains("unknown key"), "{error}");
    }
}
