//! The product's own processes: what each could do to the others, tried.

use crate::lab::{Lab, files_below, finish, processes_with, start};
use rustix::process::Signal;
use std::fs;
use std::path::Path;

both!(
    gateway_and_recorder_run_behind_walls_of_their_own,
    the_users_other_processes_cannot_look_into_them,
    a_recorder_behind_walls_recovers_a_torn_log_and_keeps_the_evidence,
);

/// Gateway and recorder of the lab.
fn roles(lab: &Lab) -> Vec<(&'static str, i32)> {
    let home = lab.home().display().to_string();
    let argv = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is = |pid: i32, role: &str| {
        let words = argv(pid);
        words.split(|b| *b == 0).nth(3).is_some_and(|word| word == role.as_bytes())
    };
    let all = processes_with(&home);
    let of = |role: &'static str| {
        all.iter().filter(move |pid| is(**pid, role)).map(move |pid| (role, *pid))
    };
    of("__gateway").chain(of("__recorder")).collect()
}

fn gateway_and_recorder_run_behind_walls_of_their_own(lab: &Lab) {
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 30"]));
    running.wait_for_output("up");
    let roles = roles(lab);
    assert_eq!(roles.iter().map(|r| r.0).collect::<Vec<_>>(), ["__gateway", "__recorder"]);
    for (role, pid) in roles {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
            assert!(status.contains(line), "{role}: {line} is not in {status}");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().nth(4) == Some("0"), "{role}: {core}");
    }
    running.signal(Signal::TERM);
    running.wait();
}

/// Reads memory and environment, and attaches, as far as the kernel lets it; says so.
const LOOK: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, sys.argv[1:]):
    for what in ['environ', 'mem', 'fd/0']:
        try:
            open(f'/proc/{pid}/{what}', 'rb').close()
            print('opened', what)
        except OSError as e:
            print('refused', e.errno)
    if libc.ptrace(16, pid, 0, 0) == 0:
        print('attached')
        libc.ptrace(17, pid, 0, 0)
    else:
        print('refused', ctypes.get_errno())
";

/// All share one uid, so this is what keeps them apart. Root may look into everything: there a uid
/// for each role is still to come.
fn the_users_other_processes_cannot_look_into_them(lab: &Lab) {
    if lab.is_root() || testkit::need("python3").is_none() {
        return;
    }
    let running = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 30"]));
    running.wait_for_output("up");
    let pids = roles(lab).into_iter().map(|(_, pid)| pid.to_string());
    let mut look = lab.command("python3");
    look.args(["-c", LOOK]).args(pids);
    let said = finish(look, b"").ok();
    assert_eq!(said.lines().count(), 8, "{said}");
    assert!(said.lines().all(|l| l == "refused 13" || l == "refused 1"), "{said}");
    running.signal(Signal::TERM);
    running.wait();
    // The reference: into a process without walls the same user can look.
    let mut sleep = lab.command("sleep");
    sleep.arg("30");
    let plain = start(sleep);
    let mut look = lab.command("python3");
    look.args(["-c", LOOK]).arg(plain.pid().as_raw_nonzero().to_string());
    let said = finish(look, b"").ok();
    assert!(said.contains("opened environ"), "{said}");
    plain.signal(Signal::KILL);
    plain.wait();
}

fn a_recorder_behind_walls_recovers_a_torn_log_and_keeps_the_evidence(lab: &Lab) {
    lab.inside(["true"]).ok();
    crate::lab::wait_until("the recorder has left", || roles(lab).is_empty());
    let wal = newest(&lab.home().join("audit/wal"));
    let mut bytes = fs::read(&wal).unwrap();
    let whole = bytes.len();
    bytes.extend_from_slice(&[0x77, 1, 2, 3]);
    fs::write(&wal, bytes).unwrap();
    drop(fs::remove_dir_all(lab.home().join("audit/tile")));
    lab.inside(["true"]).ok();
    let evidence = files_below(&lab.home().join("audit/evidence"));
    assert!(!evidence.is_empty(), "the torn bytes are kept");
    // The recorder writes them beside its work, and at the latest before it leaves.
    crate::lab::wait_until("the recorder has left", || roles(lab).is_empty());
    assert!(!files_below(&lab.home().join("audit/tile")).is_empty(), "tiles are made again");
    assert!(fs::metadata(&wal).unwrap().len() >= whole as u64);
    assert!(lab.run(["audit", "verify"]).ok().starts_with("intact: "));
}

fn newest(folder: &Path) -> std::path::PathBuf {
    let mut all = files_below(folder);
    all.sort();
    all.pop().expect("a segment")
}
