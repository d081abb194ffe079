//! The binary itself: static, and enough on its own.

use crate::lab::{Lab, finish, is_root, snapshot};
use std::process::Command;

/// Static only where it is built against musl, as every release and CI are.
fn is_musl(test: &str) -> bool {
    let musl = cfg!(target_env = "musl");
    if !musl {
        assert!(std::env::var_os("CI").is_none(), "{test}: CI builds against musl");
        eprintln!("SKIPPED {test}: not built against musl");
    }
    musl
}

#[test]
fn is_statically_linked() {
    if !is_musl("is_statically_linked") || testkit::need("file").is_none() {
        return;
    }
    let told = Command::new("file").arg("-L").arg(env!("CARGO_BIN_EXE_nanoclaw")).output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let word = ["statically linked", "static-pie linked"];
    assert!(told.contains("ELF 64-bit") && word.iter().any(|w| told.contains(w)), "{told}");
}

/// Runs the binary as the first process of an image in which there is nothing else.
fn alone(lab: &Lab, args: &[&str]) -> crate::lab::Ran {
    let image = lab.folder(&lab.person().join("image"));
    // By another process: a child that a neighbouring test forks meanwhile would hold a
    // descriptor of ours open for writing, and the kernel would not start the file.
    let mut copy = std::process::Command::new("cp");
    copy.arg(lab.binary()).arg(image.join("nanoclaw"));
    finish(copy, b"").ok();
    let mut command = lab.command("unshare");
    command.args(["--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "--", "chroot"]);
    command.arg(&image).arg("/nanoclaw").args(args);
    command.env_clear().env("PATH", crate::lab::SEARCH_PATH);
    finish(command, b"")
}

#[test]
fn starts_as_init_in_an_empty_image() {
    let test = "starts_as_init_in_an_empty_image";
    if !is_root() {
        eprintln!("SKIPPED {test}: chroot(1) needs root");
        return;
    }
    if !is_musl(test) || testkit::need("unshare").is_none() {
        return;
    }
    let lab = Lab::mine("init");
    let version = alone(&lab, &["--version"]).ok();
    assert_eq!(version, format!("nanoclaw {}\n", env!("CARGO_PKG_VERSION")));
    assert!(alone(&lab, &["--help"]).ok().contains("Usage: nanoclaw"));
    // Where nothing is there it says so, and does not fall over.
    let homeless = alone(&lab, &["run", "--", "true"]);
    snapshot("homeless", &homeless.failed(2));
    let doctor = alone(&lab, &["doctor", "--json"]);
    assert_eq!(doctor.code(), 4, "without a home, and perhaps without more: {doctor}");
    assert!(doctor.out().contains("HOME is not set"), "{doctor}");
    let run = alone(&lab, &["--home", "/h", "run", "--", "/nanoclaw", "--version"]);
    assert!([0, 1, 4, 5, 127].contains(&run.code()), "{run}");
    assert!(!run.err().contains("panicked"), "{run}");
}
