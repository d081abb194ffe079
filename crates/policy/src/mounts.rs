//! Mounts: which folders may be granted, and where they may appear.
//!
//! Everything here is about text. Symlinks are resolved by [`crate::load::pin_mounts`], which
//! comes back here with the real paths.

use crate::error::{Place, Problem, quote};
use crate::reader::At;
use model::{Access, Mount};
use std::path::{Component, Path, PathBuf};

/// What the judgement of a mount needs to know about this machine.
#[derive(Debug, Clone, Copy)]
pub struct MountContext<'a> {
    /// The person's home, for `~`, and itself never mountable as a whole.
    pub home: &'a Path,
    /// Folders that no sandbox may see, nor see into from above: NanoClaw's own state.
    pub protected: &'a [PathBuf],
}

/// Longest path accepted, bytes (PATH_MAX of Linux, with its NUL).
const PATH_BYTES_MAX: usize = 4_095;

/// Below these nothing may be mounted: they are the sandbox's own. Ancestors are refused too.
const TARGETS_TAKEN: [&str; 14] = [
    "/usr",
    "/etc",
    "/proc",
    "/dev",
    "/sys",
    "/run",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/tmp",
    "/workspace",
];

/// Host folders that hold kernel interfaces, sockets or the machine's own secrets.
const SOURCES_TAKEN: [&str; 9] =
    ["/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/boot", "/var/lib/docker", "/var/log"];

/// Names that hold credentials wherever they stand in a path.
const SECRET_NAMES: [&str; 21] = [
    ".ssh",
    ".aws",
    ".gnupg",
    ".kube",
    ".docker",
    ".azure",
    ".netrc",
    ".pgpass",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".vault-token",
    ".password-store",
    ".mozilla",
    "keyrings",
    "gcloud",
    "docker.sock",
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
    ".env",
];

/// A mount as written, before `~` is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrittenMount {
    pub(crate) source: At<String>,
    pub(crate) target: At<PathBuf>,
    pub(crate) access: Access,
}

/// `read` or `write` (in files), `ro` or `rw` (in arguments).
pub(crate) fn parse_access(text: &str) -> Result<Access, Problem> {
    match text {
        "read" | "ro" => Ok(Access::Read),
        "write" | "rw" => Ok(Access::Write),
        other => Err(Problem::bad(
            "access",
            format!("is {}", quote(other)),
            "write \"read\" or \"write\" (in an argument: ro or rw)",
        )),
    }
}

/// Where a mount may appear: absolute, normalised, and not on anything of the sandbox's own.
pub(crate) fn parse_target(text: &str) -> Result<PathBuf, Problem> {
    let bad = |why: &str| {
        Problem::bad("target", format!("{} {why}", quote(text)), "write e.g. \"/mnt/notes\"")
    };
    let path = normal(text).map_err(bad)?;
    if path == Path::new("/") {
        return Err(bad("would replace the whole sandbox"));
    }
    if TARGETS_TAKEN.iter().any(|t| path.starts_with(t)) {
        return Err(bad("is part of the sandbox's own"));
    }
    Ok(path)
}

/// Resolves `~` and judges the source.
pub(crate) fn parse_source(text: &str, context: &MountContext<'_>) -> Result<PathBuf, Problem> {
    let bad = |why: &str| {
        let remedy = "name the one folder that the agent needs, e.g. \"~/notes\"";
        Problem::bad("source", format!("{} {why}", quote(text)), remedy)
    };
    let path = match text.strip_prefix('~') {
        Some("") => context.home.to_path_buf(),
        Some(rest) if rest.starts_with('/') => {
            let rest = rest.trim_start_matches('/');
            if rest.is_empty() { context.home.to_path_buf() } else { context.home.join(rest) }
        }
        Some(_) => return Err(bad("names another user's home")),
        None => PathBuf::from(text),
    };
    let path = normal(path.to_str().unwrap_or("")).map_err(bad)?;
    check_source(&path, context).map_err(bad)?;
    Ok(path)
}

/// Judges a normalised absolute source.
pub(crate) fn check_source(path: &Path, context: &MountContext<'_>) -> Result<(), &'static str> {
    if path == Path::new("/") {
        return Err("is the whole machine");
    }
    if context.home.starts_with(path) {
        return Err("holds your whole home, with its keys");
    }
    if SOURCES_TAKEN.iter().any(|t| path.starts_with(t)) {
        return Err(
            "is part of the machine's own (kernel interfaces, host sockets, system secrets)",
        );
    }
    if context.protected.iter().any(|p| p.starts_with(path) || path.starts_with(p)) {
        return Err("holds NanoClaw's own state");
    }
    let secret = |c: Component<'_>| {
        let name = c.as_os_str().to_string_lossy().to_ascii_lowercase();
        SECRET_NAMES.contains(&name.as_str())
    };
    if path.components().any(secret) {
        return Err("is a place where keys and passwords are kept");
    }
    Ok(())
}

/// An absolute path without `.`, `..`, doubled or trailing slashes.
fn normal(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("is longer than 4095 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character");
    }
    if !text.starts_with('/') {
        return Err("is not absolute");
    }
    if text.split('/').any(|part| part == ".." || part == ".") {
        return Err("has \".\" or \"..\" in it");
    }
    Ok(Path::new(text).components().collect())
}

/// The first mount whose target lies in, on or above an earlier one's.
pub(crate) fn check_overlap(mounts: &[(Place, Mount)]) -> Result<(), crate::PolicyError> {
    for (i, (place, mount)) in mounts.iter().enumerate() {
        for (earlier_place, earlier) in &mounts[..i] {
            let (a, b) = (&mount.target, &earlier.target);
            if a.starts_with(b) || b.starts_with(a) {
                let why = format!(
                    "{} overlaps {} of {earlier_place}",
                    quote(&a.to_string_lossy()),
                    quote(&b.to_string_lossy())
                );
                let problem = Problem::bad("target", why, "give each mount its own place");
                return Err(problem.at(place));
            }
        }
    }
    Ok(())
}

/// One readable line.
pub(crate) fn describe(mount: &Mount) -> String {
    let access = match mount.access {
        Access::Read => "read only",
        Access::Write => "read and write",
    };
    format!("mount {} at {}, {access}", mount.source.display(), mount.target.display())
}
