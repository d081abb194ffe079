//! What differs between root and an ordinary user, and what one may see of the other.

use crate::lab::{Lab, finish, is_root, processes_with, snapshot, start, wait_until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

both!(
    the_home_is_private,
    a_home_that_others_can_write_is_refused,
    a_home_of_another_user_is_refused,
    uids_inside_and_outside,
    no_privilege_can_be_had_inside,
    the_apparmor_profile_is_for_this_very_program,
);

fn the_home_is_private(lab: &Lab) {
    let home = lab.person().join("new-home");
    let args = ["--home", home.to_str().unwrap(), "run", "--", "true"];
    lab.run(args).ok();
    for path in ["", "audit", "audit/private", "agents", "sessions", "run"] {
        let meta = fs::metadata(home.join(path)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o700, "{path:?}");
        assert_eq!(meta.uid(), lab.ids().0, "{path:?}");
    }
    // Others cannot look into it, whatever the modes of what is in it.
    if is_root() {
        fs::set_permissions(lab.person(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut look = std::process::Command::new("setpriv");
        look.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "ls", "-R"]);
        look.arg(&home);
        let ran = finish(look, b"");
        assert!(ran.err().contains("Permission denied") && ran.code() != 0, "{ran}");
    }
}

fn a_home_that_others_can_write_is_refused(lab: &Lab) {
    // What `mkdir` makes is closed; a folder others could have written to is not trusted.
    fs::set_permissions(lab.home(), PermissionsExt::from_mode(0o755)).unwrap();
    lab.sh(&[], "true").ok();
    assert_eq!(fs::metadata(lab.home()).unwrap().mode() & 0o7777, 0o700);
    for mode in [0o775, 0o770, 0o702] {
        fs::set_permissions(lab.home(), PermissionsExt::from_mode(mode)).unwrap();
        let said = lab.sh(&[], "echo ran").failed(4);
        snapshot("home-open", &said.replace(&lab.home().display().to_string(), "HOME"));
    }
    fs::set_permissions(lab.home(), PermissionsExt::from_mode(0o700)).unwrap();
    lab.sh(&[], "true").ok();
}

fn a_home_of_another_user_is_refused(lab: &Lab) {
    if !is_root() {
        eprintln!("SKIPPED a_home_of_another_user_is_refused: only root can give folders away");
        return;
    }
    std::os::unix::fs::chown(lab.home(), Some(12_345), Some(12_345)).unwrap();
    fs::set_permissions(lab.home(), PermissionsExt::from_mode(0o700)).unwrap();
    let said = lab.sh(&[], "echo ran").failed(4);
    snapshot("home-of-another", &said.replace(&lab.home().display().to_string(), "HOME"));
}

fn uids_inside_and_outside(lab: &Lab) {
    let seconds = format!("43{}{}", std::process::id(), lab.ids().0);
    let running = start(lab.nanoclaw(["run", "--", "sleep", &seconds]));
    let sleeper = || processes_with(&format!("sleep\0{seconds}")).into_iter().find(is_sleep);
    wait_until("the sandbox runs", || sleeper().is_some());
    let status = fs::read_to_string(format!("/proc/{}/status", sleeper().unwrap())).unwrap();
    let field = |name: &str| -> Vec<String> {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    let uids = field("Uid:");
    if lab.is_root() {
        // Of this session alone: nobody in /etc/passwd has it, and it is not root.
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let of_passwd = |uid: &String| passwd.lines().any(|l| l.split(':').nth(2) == Some(uid));
        assert!(!uids.iter().any(of_passwd), "{uids:?}");
    } else {
        assert_eq!(uids, vec![lab.ids().0.to_string(); 4]);
    }
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().code(), 143);
    let inside = lab.sh(&[], "id -u; id -g; id -G; whoami").ok();
    assert_eq!(inside, "1000\n1000\n1000\nagent\n");
}

fn is_sleep(pid: &i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "sleep")
}

fn no_privilege_can_be_had_inside(lab: &Lab) {
    for attempt in [
        "su -c true",
        "sudo -n true",
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "unshare -n true",
        "chroot / true",
        "mknod /tmp/x c 1 3",
        "hostname other",
        "kill -0 $PPID && kill -9 1 && sleep 5",
        "chown 0 /tmp",
        "nsenter -t 1 -m true",
    ] {
        let ran = lab.sh(&[], &format!("{attempt}; code=$?; echo alive; exit $code"));
        assert_eq!(ran.out().trim(), "alive", "{attempt}: {ran}");
        if !attempt.starts_with("kill") {
            assert_ne!(ran.code(), 0, "{attempt}: {ran}");
        }
    }
}

fn the_apparmor_profile_is_for_this_very_program(lab: &Lab) {
    let ran = lab.run(["doctor", "--apparmor"]);
    let binary = lab.binary().canonicalize().unwrap();
    let heading = format!("profile nanoclaw {} flags=(unconfined) {{\n", binary.display());
    assert!(ran.out().contains(&heading), "{ran}");
    // This one lies in a temporary folder, where others than root may write.
    assert!(ran.err().contains("others than root can change"), "{ran}");
    assert_eq!(ran.code(), 0, "{ran}");
}
