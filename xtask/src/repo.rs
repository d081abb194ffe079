//! The checkout: where it is, which platform is built for, and how a child process is started.
//!
//! ```text
//! Repo::find ─► Command (cargo, rustc, git …) ─► run (shared terminal) | capture (its output)
//! ```
//!
//! Invariants:
//! 1. A child shares the terminal and its process group, so Ctrl-C reaches it.
//! 2. A child that fails ends the command with what was tried and what to do.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a command stopped: what went wrong, and what the reader can do about it.
#[derive(Debug)]
pub(crate) struct Failure(String);

/// What every step of `xtask` returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turns an I/O error into a [`Failure`] that says on which path it happened.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |error| Failure::new(format!("{}: {error}", path.display()))
}

/// Says what begins now.
pub(crate) fn step(text: impl fmt::Display) {
    println!("==> {text}");
}

/// Says something the reader should know, without stopping.
pub(crate) fn warn(text: impl fmt::Display) {
    println!("warning: {text}");
}

/// One checkout of the project and its target folder.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    /// The folder with the root `Cargo.toml`; absolute.
    pub(crate) root: PathBuf,
    /// Where cargo writes; absolute.
    pub(crate) target_dir: PathBuf,
}

impl Repo {
    /// The checkout that this `xtask` was started in.
    pub(crate) fn find() -> Outcome<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().map(Path::to_path_buf).ok_or_else(|| {
            Failure::new("xtask was started outside a checkout: use `cargo xtask` in the clone")
        })?;
        let target_dir = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target_dir })
    }

    /// A command that starts in this checkout.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// `cargo` of the toolchain that built this program, writing to this checkout's target folder.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.command(cargo);
        command.args(arguments).env("CARGO_TARGET_DIR", &self.target_dir);
        command
    }

    /// The product's version, from the workspace's manifest.
    pub(crate) fn version(&self) -> Outcome<String> {
        let path = self.root.join("Cargo.toml");
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        text.lines()
            .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
            .map(str::to_owned)
            .ok_or_else(|| Failure::new("Cargo.toml: no `version = \"…\"` in [workspace.package]"))
    }
}

/// The product's target on this machine: the host's architecture, linked statically with musl.
pub(crate) fn host_target() -> String {
    format!("{}-unknown-linux-musl", env::consts::ARCH)
}

/// Whether this is a CI run, where a missing tool is a failure and not a warning.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

/// The first program of that name on `PATH`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs a child on this terminal; its failure is ours.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| not_started(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("`{}` ended with {status}", line_of(command))))
}

/// Runs a child and returns what it printed; its standard error stays on this terminal.
pub(crate) fn capture(command: &mut Command) -> Outcome<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{}` ended with {}", line_of(command), output.status)));
    }
    String::from_utf8(output.stdout)
        .map_err(|error| Failure::new(format!("`{}` printed no UTF-8: {error}", line_of(command))))
}

/// The failure of a child that could not be started at all.
pub(crate) fn not_started(command: &Command, error: &io::Error) -> Failure {
    Failure::new(format!("cannot start `{}`: {error}", command.get_program().to_string_lossy()))
}

/// A command as a person would type it, without its environment.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
