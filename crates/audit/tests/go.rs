//! Go's own `sumdb/note` and `sumdb/tlog` accept our log, and refuse a changed one.
//!
//! Needs a Go toolchain whose tree has `src/cmd/vendor/golang.org/x/mod` (every one has): named by
//! `NANOCLAW_GO` or `GO_BIN`, or `go` on the path. Without it the test is skipped by name, and
//! under `CI` it fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use common::{Temp, make_log};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn go() -> Option<PathBuf> {
    let named = ["NANOCLAW_GO", "GO_BIN"].iter().find_map(std::env::var_os);
    let go = PathBuf::from(named.unwrap_or_else(|| "go".into()));
    Command::new(&go).arg("version").output().ok().filter(|o| o.status.success()).map(|_| go)
}

fn build(go: &Path, work: &Path) -> PathBuf {
    let env = Command::new(go).args(["env", "GOROOT"]).output().unwrap();
    let root = PathBuf::from(String::from_utf8(env.stdout).unwrap().trim());
    let vendored = root.join("src/cmd/vendor/golang.org/x/mod");
    assert!(vendored.is_dir(), "{} is missing: install a whole Go tree", vendored.display());
    let parent = work.join("gopath/src/golang.org/x");
    fs::create_dir_all(&parent).unwrap();
    symlink(vendored, parent.join("mod")).unwrap();
    let program = work.join("verify-log");
    let built = Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go/main.go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", work.join("gopath"))
        .env("GOCACHE", work.join("cache"))
        .env("GOFLAGS", "")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn go_accepts_the_log_and_refuses_a_changed_one() {
    let Some(go) = go() else {
        assert!(std::env::var_os("CI").is_none(), "no Go toolchain: set NANOCLAW_GO to its `go`");
        eprintln!("skipped go_accepts_the_log_and_refuses_a_changed_one: no `go` found");
        return;
    };
    let (work, log) = (Temp::new("go-build"), Temp::new("go-log"));
    let program = build(&go, &work.0);
    make_log(&log.0, 1_000);
    let run = || {
        let out = Command::new(&program).arg(&log.0).arg("257").output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert_eq!(run(), (true, String::new()));
    for (name, at) in
        [("tile/0/001", 40), ("tile/entries/002", 90), ("checkpoint", 20), ("tile/1/000.p/3", 64)]
    {
        let file = log.0.join(name);
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        let (accepted, said) = run();
        assert!(!accepted, "{name} changed and accepted");
        assert!(!said.is_empty());
        fs::write(&file, good).unwrap();
    }
    assert!(run().0);
}
