use super::*;
use std::time::Duration;

const FACTS: &str = "kernel=6.1.0-56-cloud-amd64\ncgroup=cgroup2fs\ncgroup_v1=0\n\
    controllers=cpuset cpu io memory pids\ncpus=2";
const PROBES: &str = r#"{"passed":true,"probes":[{"probe":"a","verdict":"held","observed":"EPERM"},
    {"probe":"b","verdict":"open","observed":"through"}]}"#;
const TESTS: &str = "test self::one ... ok (3 ms)\ntest x ... skipped: no cc\n\
    test result: ok. 1 passed; 0 failed; 0 ignored";

fn doctor_says(landlock: &str, memory: &str, seccomp: &str) -> String {
    format!(
        r#"[{{"name":"landlock","status":"degraded","found":"{landlock}"}},
        {{"name":"memory limit","status":"ok","found":"{memory}"}},
        {{"name":"seccomp","status":"{seccomp}","found":"x"}}]"#
    )
    .replace('\n', " ")
}

/// A run in which all is well.
fn good() -> Vec<(&'static str, String)> {
    let abi = "ABI 2: …";
    vec![
        ("facts", FACTS.to_owned()),
        ("doctor-root", doctor_says(abi, GROUPS, "ok")),
        ("probe-root", PROBES.replace('\n', " ")),
        ("doctor-user", doctor_says(abi, WITHOUT, "ok")),
        ("probe-user", PROBES.replace('\n', " ")),
        ("doctor-delegated", doctor_says(abi, GROUPS, "ok")),
        ("probe-delegated", PROBES.replace('\n', " ")),
        ("tests-root", TESTS.to_owned()),
        ("tests-delegated", TESTS.to_owned()),
        ("left", String::new()),
    ]
}

fn heard(parts: &[(&str, String)]) -> Console {
    let mut console = Console::default();
    for (name, text) in parts {
        console.line(&format!("@@ begin {name}"), Duration::ZERO);
        text.lines().for_each(|line| console.line(line, Duration::ZERO));
        console.line(&format!("@@ end {name} 0"), Duration::from_secs(1));
    }
    console
}

/// The titles of what is red after `change`.
fn red(change: impl Fn(&str, &str) -> String) -> Vec<&'static str> {
    let parts: Vec<_> =
        good().into_iter().map(|(name, text)| (name, change(name, &text))).collect();
    rows(&heard(&parts)).into_iter().filter(|row| !row.green).map(|row| row.part).collect()
}

#[test]
fn a_good_run_is_green_and_shows_what_was_left_out() {
    let rows = rows(&heard(&good()));
    assert!(rows.iter().all(|row| row.green), "{rows:#?}");
    let of = |part: &str| rows.iter().find(|row| row.part == part).unwrap();
    assert_eq!(of("tests, root").told, "1 passed, 0 failed, 1 left out");
    assert_eq!(of("tests, root").notes, ["test x ... skipped: no cc"]);
    assert_eq!(of("probes, root").notes, ["not enforced: b"]);
    assert_eq!(of("doctor, root").told, "2 ok, weaker: landlock");
}

#[test]
fn another_machine_than_was_meant_is_red() {
    for (there, instead) in [
        ("6.1.0", "6.18.1"),
        ("cgroup2fs", "tmpfs"),
        ("cgroup_v1=0", "cgroup_v1=9"),
        (" memory ", " "),
    ] {
        assert_eq!(red(|_, text| text.replace(there, instead)), ["the machine"], "{there}");
    }
    let doctors = ["doctor, root", "doctor, plain user", "doctor, plain user with a group"];
    assert_eq!(red(|_, text| text.replace("ABI 2:", "ABI 7:")), doctors);
    assert_eq!(
        red(|_, text| text.replace(GROUPS, WITHOUT)),
        ["doctor, root", "doctor, plain user with a group"]
    );
    assert_eq!(
        red(|_, text| text
            .replace("\"seccomp\",\"status\":\"ok\"", "\"seccomp\",\"status\":\"missing\"")),
        doctors
    );
}

#[test]
fn broken_walls_failed_tests_and_leftovers_are_red() {
    let probes = ["probes, root", "probes, plain user", "probes, plain user with a group"];
    assert_eq!(red(|_, text| text.replace("\"open\"", "\"broken\"")), probes);
    assert_eq!(red(|_, text| text.replace("\"passed\":true", "\"passed\":false")), probes);
    assert_eq!(red(|_, text| text.replace("{\"passed\"", "oops {\"passed\"")), probes);
    let tests = ["tests, root", "tests, plain user with a group"];
    for (there, instead) in
        [("0 failed", "1 failed"), ("1 passed", "0 passed"), ("test result", "no result")]
    {
        assert_eq!(red(|_, text| text.replace(there, instead)), tests, "{there}");
    }
    let left = |name: &str, text: &str| match name {
        "left" => "/proc/9".to_owned(),
        _ => text.to_owned(),
    };
    assert_eq!(red(left), ["nothing is left"]);
}

#[test]
fn a_part_that_is_missing_cut_off_or_failed_is_red() {
    for at in 0..good().len() {
        let mut without = good();
        let name = without.remove(at).0;
        let reds = |console: &Console| rows(console).iter().filter(|row| !row.green).count();
        assert_eq!(reds(&heard(&without)), 1, "without {name}");
        for status in ["1", "124", "137"] {
            let mut console = heard(&without);
            console.line(&format!("@@ begin {name}"), Duration::ZERO);
            good()[at].1.lines().for_each(|line| console.line(line, Duration::ZERO));
            assert_eq!(reds(&console), 1, "{name} has no end");
            console.line(&format!("@@ end {name} {status}"), Duration::ZERO);
            assert_eq!(reds(&console), 1, "{name} ended with {status}");
        }
    }
}
