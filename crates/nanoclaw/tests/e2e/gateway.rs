//! The gateway as a process of its own: its walls, its death, the death of who started it.

use crate::lab::{Lab, processes_with, start, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;

both!(
    the_gateway_runs_behind_walls_of_its_own,
    a_killed_gateway_is_started_again_and_the_same_sandbox_goes_on,
    a_gateway_that_keeps_dying_ends_the_session,
    the_gateway_leaves_with_the_last_of_its_clients_even_a_killed_one,
);

/// The gateway processes of this home.
fn gateways(lab: &Lab) -> Vec<i32> {
    processes_with(&format!("{}\0__gateway", lab.home().display()))
}

fn the_gateway(lab: &Lab) -> i32 {
    wait_until("the gateway runs", || gateways(lab).len() == 1);
    gateways(lab)[0]
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn the_gateway_runs_behind_walls_of_its_own(lab: &Lab) {
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 30"]));
    running.wait_for_output("up");
    let place = Path::new("/proc").join(the_gateway(lab).to_string());
    let status = std::fs::read_to_string(place.join("status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    // Not dumpable: to its own user its memory and environment are another's.
    if !lab.is_root() {
        let environ = place.join("environ");
        let mut ran = lab.command("cat");
        ran.arg(environ);
        assert_ne!(crate::lab::finish(ran, b"").code(), 0);
    }
    running.signal(Signal::TERM);
    running.wait();
}

fn a_killed_gateway_is_started_again_and_the_same_sandbox_goes_on(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let ask = "curl -s -o /dev/null -w '%{http_code}' --noproxy '' -x http://127.0.0.1:3128 \
               http://example.com/";
    let script = format!("{ask}; echo first; read _; {ask}; echo second");
    let mut command = lab.nanoclaw(["run", "--", "sh", "-c", &script]);
    let (input, mut ours) = std::io::pipe().unwrap();
    command.stdin(input);
    let running = start(command);
    running.wait_for_output("403first");
    let before = the_gateway(lab);
    kill(before);
    wait_until("another gateway runs", || gateways(lab).iter().any(|pid| *pid != before));
    std::io::Write::write_all(&mut ours, b"\n").unwrap();
    running.wait_for_output("403second");
    let ran = running.wait();
    assert_eq!(ran.code(), 0, "{ran}");
    assert!(ran.err().contains("the gateway stopped; it was started again"), "{ran}");
    assert!(lab.story().contains("gateway_restarts"));
}

fn a_gateway_that_keeps_dying_ends_the_session(lab: &Lab) {
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 60"]));
    running.wait_for_output("up");
    let mut before = 0;
    for _ in 0..3 {
        wait_until("a gateway runs", || gateways(lab).iter().any(|pid| *pid != before));
        // It must be known to its client, or its death is a start that failed.
        std::thread::sleep(std::time::Duration::from_millis(500));
        before = gateways(lab)[0];
        kill(before);
    }
    let ran = running.wait();
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(ran.err().contains("3 times within 30 seconds"), "{ran}");
    wait_until("no gateway is left", || gateways(lab).is_empty());
}

fn the_gateway_leaves_with_the_last_of_its_clients_even_a_killed_one(lab: &Lab) {
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 60"]));
    running.wait_for_output("up");
    the_gateway(lab);
    running.signal(Signal::KILL);
    running.wait();
    wait_until("no gateway is left", || gateways(lab).is_empty());
}
