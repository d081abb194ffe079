//! Which uids sessions have outside, as the host sets them aside.

use crate::lab::{Lab, Ran, finish, is_root};

/// Runs with these lines as the host's files, in mounts of its own.
fn with(lab: &Lab, uids: &str, gids: &str, args: &[&str]) -> Ran {
    let uids = lab.file(&lab.person().join("subuid"), uids);
    let gids = lab.file(&lab.person().join("subgid"), gids);
    // A copy of /etc in memory, for a host need not have these files; it goes with the mounts.
    let script = "mount -t tmpfs -o mode=755 etc \"$1\" && cp -a /etc/. \"$1\" || exit 99
                  cp \"$2\" \"$1/subuid\" && cp \"$3\" \"$1/subgid\" || exit 99
                  mount --bind \"$1\" /etc || exit 99; shift 3; exec \"$@\"";
    let copy = lab.folder(&lab.person().join("etc"));
    let mut command = lab.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(copy).arg(uids).arg(gids).arg(lab.binary()).args(args);
    finish(command, b"")
}

#[test]
fn sessions_have_the_uids_that_the_host_sets_aside() {
    let test = "sessions_have_the_uids_that_the_host_sets_aside";
    if !is_root() {
        println!("SKIPPED {test}: only root gives sessions uids of their own");
        return;
    }
    if testkit::need("unshare").is_none() {
        return;
    }
    let lab = Lab::mine("ids");
    let ours = "anna:100000:65536\nnanoclaw:700000:3\n";
    let map = with(&lab, ours, ours, &["run", "--", "cat", "/proc/self/uid_map"]).ok();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert!(matches!(words[..], ["1000", "700000" | "700001" | "700002", "1"]), "{map}");
    // What cannot be kept starts nothing, and says where it stands.
    let doubled = "anna:100000:65536\nnanoclaw:165535:10\n";
    let said = with(&lab, doubled, doubled, &["run", "--", "true"]).failed(4);
    assert!(said.contains("/etc/subuid:2: line 1 has some of these ids"), "{said}");
    let said = with(&lab, ours, "", &["run", "--", "true"]).failed(4);
    assert!(said.contains("different ids") && said.contains("help: "), "{said}");
    let doctor = with(&lab, ours, ours, &["doctor"]);
    assert!(doctor.out().contains("of 3 from 700000"), "{doctor}");
    let doctor = with(&lab, doubled, doubled, &["doctor"]);
    assert!(doctor.out().contains("/etc/subuid:2: line 1"), "{doctor}");
}
