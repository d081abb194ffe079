//! `sandbox probe` and `probe_on_start`: what a person and a session get of the battery.

use crate::lab::{Lab, files_below, start, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;

both!(
    every_wall_holds_and_the_report_says_how,
    the_quick_battery_is_a_part_of_the_whole,
    an_interrupt_ends_it_and_leaves_nothing,
    an_agent_gets_its_sandbox_after_its_walls_were_tried,
    a_backend_that_is_not_there_is_refused,
    an_engine_that_is_not_there_is_no_green_report,
);

fn json(lab: &Lab, args: &[&str]) -> Value {
    serde_json::from_str(&lab.run(args).ok()).expect("one object")
}

fn every_wall_holds_and_the_report_says_how(lab: &Lab) {
    let report = json(lab, &["sandbox", "probe", "--json"]);
    assert_eq!((&report["backend"], &report["passed"]), (&"native".into(), &true.into()));
    let privilege = if lab.is_root() { "root" } else { "plain user" };
    assert_eq!(report["privilege"], privilege);
    let probes = report["probes"].as_array().unwrap();
    assert!(probes.len() >= 100, "{}", probes.len());
    for probe in probes {
        for key in ["probe", "wall", "act", "expected", "observed", "open", "verdict"] {
            assert!(probe[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {probe}");
        }
        // What is not enforced says why.
        assert_eq!(probe["verdict"] == "open", probe["gap"].is_string(), "{probe}");
    }
    let refused = probes.iter().find(|p| p["probe"] == "ptrace").unwrap();
    assert_eq!((&refused["observed"], &refused["errno"]), (&"EPERM".into(), &1.into()));
    let counted: u64 = report["walls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wall| wall["probes"].as_u64().unwrap())
        .sum();
    assert_eq!(counted as usize, probes.len());
    assert_eq!(left(lab), [] as [std::path::PathBuf; 0]);
    let text = lab.run(["sandbox", "probe"]).ok();
    assert!(text.contains("Every wall holds") && !text.contains('\x1b'), "{text}");
}

/// What a battery might leave below the home.
fn left(lab: &Lab) -> Vec<std::path::PathBuf> {
    files_below(&lab.home().join("sessions"))
}

fn the_quick_battery_is_a_part_of_the_whole(lab: &Lab) {
    let report = json(lab, &["sandbox", "probe", "--quick", "--json"]);
    assert_eq!((&report["quick"], &report["passed"]), (&true.into(), &true.into()));
    let probes = report["probes"].as_array().unwrap();
    assert!((40..=100).contains(&probes.len()), "{}", probes.len());
    assert_eq!(left(lab), [] as [std::path::PathBuf; 0]);
}

fn an_interrupt_ends_it_and_leaves_nothing(lab: &Lab) {
    let running = start(lab.nanoclaw(["sandbox", "probe"]));
    wait_until("it has begun", || !left(lab).is_empty());
    running.signal(Signal::INT);
    let ran = running.wait();
    assert_eq!(ran.code(), 130, "{ran}");
    assert!(ran.err().contains("stopped by SIGINT; nothing is left"), "{ran}");
    assert_eq!(left(lab), [] as [std::path::PathBuf; 0]);
}

fn an_agent_gets_its_sandbox_after_its_walls_were_tried(lab: &Lab) {
    let text = "schema = 1\n[sandbox]\nprobe_on_start = true\n";
    lab.file(&lab.home().join("agents/careful.toml"), text);
    let script = "echo $$; ls -A /tmp /dev/shm /workspace";
    let ran = lab.run(["run", "--agent", "careful", "--", "sh", "-c", script]);
    let out = ran.ok();
    // The battery was here before, as processes of its own, and left nothing but that.
    let first = out.lines().next().unwrap().parse::<u32>().unwrap();
    assert!(first > 2, "{out}");
    assert_eq!(out.lines().skip(1).collect::<Vec<_>>().join(" "), "/dev/shm:  /tmp:  /workspace:");
    let story = lab.story();
    assert!(story.contains("probe-on-start"), "{story}");
    assert!(story.contains("0 of ") && story.contains("probes found a wall broken"), "{story}");
    let plan = lab.run(["sandbox", "plan", "careful"]).ok();
    assert!(plan.contains("run own image [\"__walls\", \"quick\"]"), "{plan}");
    // Who does not ask for it has the plan of before.
    assert!(!lab.run(["sandbox", "plan"]).ok().contains("__walls"));
}

fn a_backend_that_is_not_there_is_refused(lab: &Lab) {
    let said = lab.run(["sandbox", "probe", "--backend", "paper"]).failed(2);
    assert!(said.contains("\"paper\"") && said.contains("--backend native"), "{said}");
    assert!(!Path::new(&lab.home().join("audit")).exists(), "nothing was begun");
}

/// Where no container can be made there is nothing to judge, for a person and for a session.
fn an_engine_that_is_not_there_is_no_green_report(lab: &Lab) {
    let nowhere = lab.home().join("no-such.sock");
    let host = format!("unix://{}", nowhere.display());
    for (backend, variable) in [("docker", "DOCKER_HOST"), ("podman", "CONTAINER_HOST")] {
        for battery in [&["--quick"][..], &[]] {
            let mut words = vec!["sandbox", "probe", "--backend", backend];
            words.extend(battery);
            let mut command = lab.nanoclaw(words);
            command.env(variable, &host);
            let ran = start(command).wait();
            assert_eq!(ran.code(), 4, "{ran}");
            assert!(ran.err().contains(backend), "{ran}");
            assert_eq!(left(lab), [] as [std::path::PathBuf; 0]);
        }
    }
}
