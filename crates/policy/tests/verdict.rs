//! Verdicts: what a rule reaches, and what holds for any rules and any request.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use model::{Effect, EgressRule, HostName, HostPattern, PathPattern, Sight};
use nanoclaw_policy::{
    ConnectVerdict, DEFAULT_DENY, Verdict, connect_verdict, explain, request_verdict,
};
use testkit::Rng;

fn rule(id: &str, effect: Effect, host: &str) -> EgressRule {
    let host = HostPattern::parse(host).expect(host);
    EgressRule { effect, ..EgressRule::allow(id, host, 443) }
}

fn limited(rule: EgressRule, methods: &[&str], paths: &[&str]) -> EgressRule {
    EgressRule {
        methods: methods.iter().map(|m| (*m).to_owned()).collect(),
        paths: paths.iter().map(|p| PathPattern::parse(p).expect(p)).collect(),
        ..rule
    }
}

fn name(host: &str) -> HostName {
    HostName::parse(host).expect(host)
}

/// `allow ID`, `ask ID` or `deny ID`.
fn told(rules: &[EgressRule], method: &str, host: &str, path: &str) -> String {
    match request_verdict(rules, &name(host), 443, method, path) {
        Verdict::Allow(rule) => format!("allow {}", rule.id),
        Verdict::Ask(rule) => format!("ask {}", rule.id),
        Verdict::Deny(denial) => format!("deny {}", denial.rule),
    }
}

#[test]
fn a_rule_for_a_path_is_not_passed_by_another_spelling() {
    let all = rule("all", Effect::Allow, "a.org");
    let deny = limited(rule("deny", Effect::Deny, "a.org"), &[], &["/admin/**"]);
    let ask = limited(rule("ask", Effect::Ask, "a.org"), &["DELETE"], &["/item/*"]);
    let rules = [all, deny, ask];
    assert_eq!(told(&rules, "GET", "a.org", "/"), "allow all");
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/%61dmin",
        "/%41dmin/x",
        "/ADMIN",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "//admin",
        "/./admin",
        "/admin;x=1",
        "/x/..;/admin",
        "/x%2F..%2Fadmin",
        "/%2561dmin",
        "/admin%00",
        "/admin%20",
        "/admin.",
        "/x\\..\\admin",
        "/adm%69n%2Fx",
        "*",
        "admin",
        "/admin?x",
        "/admin#x",
        "/%c0%afadmin",
        "/%C4%B1/..%20/admin",
        "/adm%EF%BD%89n",
        "/admin%C2%A0/x",
        "/admin::$INDEX_ALLOCATION/x",
        "/ADMIN~1/x",
    ] {
        assert_eq!(told(&rules, "GET", "a.org", path), "deny deny", "{path}");
    }
    assert_eq!(told(&rules, "DELETE", "a.org", "/item/1"), "ask ask");
    for (method, path) in [("delete", "/item/1"), ("DELETE", "/ITEM/1"), ("DELETE", "/item/1/")] {
        assert_eq!(told(&rules, method, "a.org", path), "ask ask", "{method} {path}");
    }
    let rules = [rules[0].clone(), rules[2].clone()];
    assert_eq!(told(&rules, "DELETE", "a.org", "/x/../item/1"), "deny ask");
    assert_eq!(told(&rules, "GET", "a.org", "/x/../item/1"), "allow all");
}

#[test]
fn what_permits_is_matched_to_the_letter() {
    let read = limited(rule("read", Effect::Allow, "a.org"), &["GET"], &["/repos/**", "/@*%2f*"]);
    let rules = [read];
    assert_eq!(told(&rules, "GET", "a.org", "/repos/a/b"), "allow read");
    assert_eq!(told(&rules, "GET", "a.org", "/%72epos/a"), "allow read");
    assert_eq!(told(&rules, "GET", "a.org", "/@types%2Fnode"), "allow read");
    for (method, path) in [
        ("get", "/repos/a"),
        ("POST", "/repos/a"),
        ("GET ", "/repos/a"),
        ("", "/repos/a"),
        ("GET", "/Repos/a"),
        ("GET", "/reposx"),
        ("GET", "/repos/../x"),
        ("GET", "/repos/%2e%2e"),
        ("GET", "/repos//a"),
        ("GET", "/@types/node"),
        ("GET", "/repos/a;b"),
        ("GET", ""),
    ] {
        assert_eq!(told(&rules, method, "a.org", path), "deny read", "{method} {path}");
    }
    // Methods that reflect secrets or tunnel are permitted by nothing.
    let rules = [rule("all", Effect::Allow, "a.org")];
    for method in ["TRACE", "trace", "TRACK", "CONNECT", "connect"] {
        assert_eq!(told(&rules, method, "a.org", "/"), "deny all", "{method}");
    }
}

#[test]
fn suffixes_hold_on_label_boundaries_and_ports_are_exact() {
    let rules = [rule("below", Effect::Allow, "*.example.org")];
    for (host, want) in [
        ("a.example.org", "allow below"),
        ("a.b.example.org", "allow below"),
        ("A.Example.ORG.", "allow below"),
        ("example.org", "deny default deny"),
        ("badexample.org", "deny default deny"),
        ("a.example.org.evil.net", "deny default deny"),
        ("a-example.org", "deny default deny"),
    ] {
        assert_eq!(told(&rules, "GET", host, "/"), want, "{host}");
    }
    let host = name("a.example.org");
    for port in [0, 80, 444, 8443, 65535] {
        let Verdict::Deny(denial) = request_verdict(&rules, &host, port, "GET", "/") else {
            panic!("{port}")
        };
        assert!(denial.why.contains("at port 443 only"), "{}", denial.why);
        assert!(matches!(connect_verdict(&rules, &host, port), ConnectVerdict::Deny(_)));
    }
    let any_port = EgressRule { port: None, ..rule("no", Effect::Deny, "*.example.org") };
    let rules = [rules[0].clone(), any_port];
    assert_eq!(told(&rules, "GET", "a.example.org", "/"), "deny no");
}

#[test]
fn tunnels_permit_connections_and_never_requests() {
    let host = name("a.org");
    let sighted = |id: &str, sight| EgressRule { sight, ..rule(id, Effect::Allow, "a.org") };
    let tunnel = [sighted("t", Sight::Tunnel)];
    assert!(
        matches!(connect_verdict(&tunnel, &host, 443), ConnectVerdict::Connection(r) if r.id == "t")
    );
    assert_eq!(told(&tunnel, "GET", "a.org", "/"), "deny t");
    // A deny rule for a part closes the whole.
    let part = limited(rule("part", Effect::Deny, "a.org"), &["POST"], &[]);
    let rules = [tunnel[0].clone(), part];
    assert!(
        matches!(connect_verdict(&rules, &host, 443), ConnectVerdict::Deny(d) if d.rule == "part")
    );
    // Ask before allow.
    let ask = EgressRule { sight: Sight::Tunnel, ..rule("ask", Effect::Ask, "a.org") };
    let rules = [tunnel[0].clone(), ask];
    assert!(
        matches!(connect_verdict(&rules, &host, 443), ConnectVerdict::Connection(r) if r.id == "ask")
    );
    // A wide tunnel does not undo a narrow rule that looks.
    let narrow = limited(rule("get", Effect::Allow, "a.org"), &["GET"], &[]);
    let rules = [tunnel[0].clone(), narrow];
    assert_eq!(connect_verdict(&rules, &host, 443), ConnectVerdict::Requests);
    assert_eq!(told(&rules, "POST", "a.org", "/"), "deny get");
    // Two that disagree how little to see: neither.
    let rules = [tunnel[0].clone(), sighted("x", Sight::Tcp)];
    assert!(matches!(connect_verdict(&rules, &host, 443), ConnectVerdict::Deny(_)));
}

#[test]
fn the_most_particular_rule_decides_which_secret_is_used() {
    let wide = rule("z-wide", Effect::Allow, "*.a.org");
    let exact = rule("m-exact", Effect::Allow, "x.a.org");
    let path = limited(rule("b-path", Effect::Allow, "x.a.org"), &[], &["/v1/**"]);
    let deeper = limited(rule("c-deeper", Effect::Allow, "x.a.org"), &[], &["/v1/files/*"]);
    let rules = [wide, exact, path, deeper];
    for (path, want) in [("/", "m-exact"), ("/v1/x", "b-path"), ("/v1/files/1", "c-deeper")] {
        assert_eq!(told(&rules, "GET", "x.a.org", path), format!("allow {want}"));
    }
}

const HOSTS: [&str; 7] =
    ["a.org", "x.a.org", "x.a.org", "y.x.a.org", "b.org", "ba.org", "a.org.b.org"];
const PATTERNS: [&str; 6] = ["a.org", "*.a.org", "x.a.org", "*.x.a.org", "b.org", "*.b.org"];
const PATHS: [&str; 9] =
    ["/", "/**", "/a", "/a/*", "/a/**", "/*/b", "/a%2Fb", "/**/admin", "/%61/b*"];
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

fn random_rule(rng: &mut Rng, id: usize, effect: Effect) -> EgressRule {
    let mut made = rule(&format!("r{id}"), effect, rng.pick(&PATTERNS).expect("some"));
    made.port = match (effect, rng.below(4)) {
        (Effect::Deny, 0) => None,
        (_, 1) => Some(80),
        _ => Some(443),
    };
    if rng.below(6) == 0 && effect != Effect::Deny {
        made.sight = if rng.below(2) == 0 { Sight::Tunnel } else { Sight::Tcp };
        return made;
    }
    let some = |rng: &mut Rng, of: &[&'static str]| -> Vec<&'static str> {
        (0..rng.below(3)).filter_map(|_| rng.pick(of).copied()).collect()
    };
    let (methods, paths) = (some(rng, &METHODS), some(rng, &PATHS));
    limited(made, &methods, &paths)
}

fn random_rules(rng: &mut Rng) -> Vec<EgressRule> {
    let effects = [Effect::Allow, Effect::Allow, Effect::Ask, Effect::Deny];
    let effect = |rng: &mut Rng| *rng.pick(&effects).expect("some");
    (0..rng.below(7))
        .map(|id| {
            let e = effect(rng);
            random_rule(rng, id, e)
        })
        .collect()
}

fn random_path(rng: &mut Rng) -> String {
    const PIECES: [&str; 22] = [
        "/", "/", "/", "a", "b", "admin", "%61", "%2F", "%2e", ".", "..", ";", "%", "%25", "*",
        "A", "é", "\0", "?", "#", "%ff", "\\",
    ];
    if rng.below(2) == 0 {
        let plain = ["/", "/a", "/a/b", "/a/x/y", "/x/b", "/admin", "/x/admin", "/a%2Fb", "/b1"];
        return (*rng.pick(&plain).expect("some")).to_owned();
    }
    let mut path = if rng.below(8) == 0 { String::new() } else { "/".to_owned() };
    for _ in 0..rng.below(8) {
        path += rng.pick(&PIECES).expect("some");
    }
    path
}

struct Request {
    host: HostName,
    port: u16,
    method: String,
    path: String,
}

fn random_request(rng: &mut Rng) -> Request {
    Request {
        host: name(rng.pick(&HOSTS).expect("some")),
        port: *rng.pick(&[443, 443, 443, 80, 0]).expect("some"),
        method: (*rng
            .pick(&["GET", "GET", "POST", "POST", "delete", "TRACE", "", "G\0"])
            .expect("some"))
        .into(),
        path: random_path(rng),
    }
}

/// 0 for denied, 1 for asked, 2 for allowed; and the rule.
fn judged(rules: &[EgressRule], r: &Request) -> (u8, String) {
    match request_verdict(rules, &r.host, r.port, &r.method, &r.path) {
        Verdict::Deny(denial) => (0, denial.rule),
        Verdict::Ask(rule) => (1, rule.id.clone()),
        Verdict::Allow(rule) => (2, rule.id.clone()),
    }
}

fn connection(rules: &[EgressRule], r: &Request) -> (u8, String) {
    match connect_verdict(rules, &r.host, r.port) {
        ConnectVerdict::Deny(denial) => (0, denial.rule),
        ConnectVerdict::Connection(rule) if rule.effect == Effect::Ask => (1, rule.id.clone()),
        ConnectVerdict::Connection(rule) => (2, rule.id.clone()),
        ConnectVerdict::Requests => (2, String::new()),
    }
}

fn shuffle(rng: &mut Rng, rules: &mut [EgressRule]) {
    for at in (1..rules.len()).rev() {
        rules.swap(at, rng.below(at + 1));
    }
}

#[test]
fn for_any_rules_and_requests_the_invariants_hold() {
    let mut rng = Rng::from_env();
    let mut seen = [0_usize; 3];
    for _ in 0..20_000 {
        let rules = random_rules(&mut rng);
        let r = random_request(&mut rng);
        let (got, by) = judged(&rules, &r);
        seen[usize::from(got)] += 1;
        let shown = || format!("{rules:#?}\n{:?} {:?} {} {}", r.method, r.path, r.host, r.port);

        // The verdict names a rule that is there, of that effect; deny may name the nearest.
        let named = rules.iter().find(|rule| rule.id == by);
        match got {
            0 => assert!(named.is_some() || by == DEFAULT_DENY, "{}", shown()),
            1 => assert!(named.is_some_and(|n| n.effect == Effect::Ask), "{}", shown()),
            _ => assert!(named.is_some_and(|n| n.effect == Effect::Allow), "{}", shown()),
        }
        // Whatever goes out is named by the rule: host, port, method, sight.
        if let Some(rule) = named.filter(|_| got == 2) {
            assert!(rule.host.covers(&r.host) && rule.port == Some(r.port), "{}", shown());
            assert!(rule.methods.is_empty() || rule.methods.contains(&r.method), "{}", shown());
            assert_eq!(rule.sight, Sight::Intercept, "{}", shown());
        }
        // A request can only be permitted where a connection could be made.
        if got > 0 {
            let connect = connect_verdict(&rules, &r.host, r.port);
            assert_eq!(connect, ConnectVerdict::Requests, "{}", shown());
        }
        // Order is nothing.
        let mut shuffled = rules.clone();
        shuffle(&mut rng, &mut shuffled);
        assert_eq!(judged(&shuffled, &r), (got, by.clone()), "{}", shown());
        assert_eq!(connection(&shuffled, &r), connection(&rules, &r), "{}", shown());
        // One more deny rule never permits more.
        let mut more = rules.clone();
        more.push(random_rule(&mut rng, 99, Effect::Deny));
        assert!(judged(&more, &r).0 <= got, "{}", shown());
        assert!(connection(&more, &r).0 <= connection(&rules, &r).0, "{}", shown());
        // One more allow or ask rule never permits what a deny rule forbids.
        let denied = named.is_some_and(|n| n.effect == Effect::Deny);
        let mut more = rules.clone();
        more.push(random_rule(&mut rng, 99, Effect::Allow));
        more.push(random_rule(&mut rng, 98, Effect::Ask));
        assert!(!denied || judged(&more, &r).0 == 0, "{}", shown());
        // What had to be asked for is not allowed without, by one more allow rule.
        let mut more = rules.clone();
        more.push(random_rule(&mut rng, 99, Effect::Allow));
        assert!(got != 1 || judged(&more, &r).0 == 1, "{}", shown());
        // The explanation tells the same story.
        let told = explain(&rules, &r.host, r.port, &r.method, &r.path);
        if connection(&rules, &r).1.is_empty() {
            assert_eq!(told.rule, by, "{}", shown());
        }
    }
    assert!(seen.iter().all(|n| *n > 150), "the rules are not varied enough: {seen:?}");
}

#[test]
fn no_bytes_make_a_verdict_panic_or_pass() {
    let mut rng = Rng::from_env();
    let rules = [
        limited(rule("r", Effect::Allow, "a.org"), &["GET"], &["/a/*", "/**/b", "/@*%2f*"]),
        limited(rule("d", Effect::Deny, "a.org"), &[], &["/secret/**"]),
    ];
    let host = name("a.org");
    for _ in 0..60_000 {
        let mut bytes = b"/a/b%2fc".to_vec();
        for _ in 0..rng.below(6) {
            let at = rng.below(bytes.len() + 1);
            bytes.insert(at, if rng.below(3) == 0 { b'%' } else { rng.byte() });
        }
        let path = String::from_utf8_lossy(&bytes);
        if let Verdict::Allow(_) = request_verdict(&rules, &host, 443, "GET", &path) {
            assert!(path.bytes().all(|b| b.is_ascii_graphic()), "{path:?}");
            assert!(!path.contains("/../") && !path.contains([';', '\\', '?', '#']), "{path:?}");
        }
    }
    // The longest path against the worst pattern stays quick.
    let worst = format!("/{}b", "*a".repeat(500));
    let rules = [limited(rule("w", Effect::Allow, "a.org"), &[], &[&worst])];
    let path = format!("/{}", "a".repeat(8_000));
    let started = std::time::Instant::now();
    assert_eq!(told(&rules, "GET", "a.org", &path), "deny w");
    assert!(started.elapsed().as_millis() < 2_000, "{:?}", started.elapsed());
}
