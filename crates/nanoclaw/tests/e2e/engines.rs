//! `backend = "docker"`: what people see of it on a machine without the engine.

use crate::lab::{Lab, finish};

both!(an_agent_whose_engine_is_absent_is_told_what_to_do, the_plan_of_a_container_is_printed);

/// An agent in a container.
fn boxed(lab: &Lab) {
    let text = "schema = 1\n[sandbox]\nbackend = \"docker\"\n";
    lab.file(&lab.home().join("agents/boxed.toml"), text);
}

fn an_agent_whose_engine_is_absent_is_told_what_to_do(lab: &Lab) {
    boxed(lab);
    let mut command = lab.nanoclaw(["run", "--agent", "boxed", "--", "echo", "ran"]);
    command.env("DOCKER_HOST", "unix:///nowhere/engine.sock");
    let ran = finish(command, b"");
    assert_eq!(ran.out(), "", "{ran}");
    assert_ne!(ran.code(), 0, "{ran}");
    let said = ran.err();
    assert!(said.contains("docker at /nowhere/engine.sock"), "{said}");
    assert!(said.contains("DOCKER_HOST") && said.contains("native"), "{said}");
    assert!(lab.story().contains("docker"), "the session is on record with its backend");
    // Others go on as before.
    assert_eq!(lab.sh(&[], "echo ran").ok(), "ran\n");
}

fn the_plan_of_a_container_is_printed(lab: &Lab) {
    boxed(lab);
    let plan = lab.run(["sandbox", "plan", "boxed"]).ok();
    for part in [
        "container by docker: root made of the folders and links below, read-only",
        "no network, no capability, no new privileges, seccomp profile",
        "bind /usr at /usr (ro",
        "landlock ABI",
        "verify, report, wait",
    ] {
        assert!(plan.contains(part), "{part:?} in {plan}");
    }
    assert!(!plan.contains("pivot_root"), "{plan}");
}
