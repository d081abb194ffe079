//! The programs that are not below `/usr`: where they are found, and how a sandbox gets them.

use crate::lab::{Lab, finish};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Says why a test cannot run here, past what the runner keeps back of tests that pass; in CI it
/// fails.
pub(crate) fn missing(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}; CI does not skip");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}

/// The folder that the build writes to.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()
}

/// `--mount FOLDER:AT:ro`.
pub(crate) fn mount(folder: &Path, at: &str) -> Vec<String> {
    vec!["--mount".to_owned(), format!("{}:{at}:ro", folder.display())]
}

/// The folder where the user of this lab can read it: itself, or a copy, which may share the
/// files themselves.
fn readable(lab: &Lab, folder: PathBuf, witness: &str) -> PathBuf {
    let mut look = lab.command("test");
    look.arg("-r").arg(folder.join(witness));
    if finish(look, b"").status.success() {
        return folder;
    }
    let copy = lab.home().parent().unwrap().join(folder.file_name().unwrap());
    let linked = Command::new("cp").args(["-rl"]).args([&folder, &copy]).output().unwrap();
    if !linked.status.success() {
        drop(std::fs::remove_dir_all(&copy));
        assert!(Command::new("cp").arg("-r").args([&folder, &copy]).status().unwrap().success());
    }
    copy
}

/// A virtual environment with pip, requests, httpx and aiohttp: `NANOCLAW_VENV`, else `test-venv`
/// in the target folder.
pub(crate) fn venv(lab: &Lab) -> Option<Vec<String>> {
    let named = std::env::var_os("NANOCLAW_VENV").map(PathBuf::from);
    let binary = Path::new(env!("CARGO_BIN_EXE_nanoclaw")).ancestors().skip(1);
    let found = named.into_iter().chain(binary.take(4).map(|dir| dir.join("test-venv")));
    let has = |dir: &Path, package: &str| {
        let mut python = Command::new(dir.join("bin/python"));
        python
            .args(["-I", "-c", &format!("import {package}")])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let complete = |dir: &PathBuf| {
        ["pip", "requests", "httpx", "aiohttp"].iter().all(|package| has(dir, package))
    };
    let Some(found) = found.into_iter().find(complete) else {
        missing("no virtualenv with pip, requests, httpx and aiohttp: set NANOCLAW_VENV");
        return None;
    };
    Some(mount(&readable(lab, found, "pyvenv.cfg"), "/mnt/venv"))
}

/// The toolchain that runs these tests.
pub(crate) fn cargo(lab: &Lab) -> Option<Vec<String>> {
    let asked = Command::new("rustc").args(["--print", "sysroot"]).output().ok();
    let root = asked.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()));
    let Some(root) = root.filter(|r| r.join("bin/cargo").is_file()) else {
        missing("no Rust toolchain with a cargo of its own");
        return None;
    };
    Some(mount(&readable(lab, root.canonicalize().unwrap(), "bin/cargo"), "/mnt/rust"))
}

/// The Go client, built once; its folder is mounted.
pub(crate) fn go_client(lab: &Lab) -> Option<Vec<String>> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(folder) = BUILT.get_or_init(build_go) else {
        missing("no Go toolchain: set NANOCLAW_GO to its `go`");
        return None;
    };
    Some(mount(&readable(lab, folder.clone(), "client"), "/mnt/go"))
}

fn build_go() -> Option<PathBuf> {
    let named = ["NANOCLAW_GO", "GO_BIN"].iter().find_map(std::env::var_os);
    let go = PathBuf::from(named.unwrap_or_else(|| "go".into()));
    Command::new(&go).arg("version").output().ok().filter(|o| o.status.success())?;
    let folder = target().join("go-client");
    std::fs::create_dir_all(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/go/main.go");
    let mut build = Command::new(&go);
    build.args(["build", "-trimpath", "-o"]).arg(folder.join("client")).arg(source);
    build.env("GO111MODULE", "off").env("GOPATH", folder.join("gopath")).env("GOFLAGS", "");
    build.env("GOCACHE", target().join("go-cache")).env("CGO_ENABLED", "0");
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(folder)
}
