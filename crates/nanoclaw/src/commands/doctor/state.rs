//! The state of an installation: its folder, files, log, vault, gateway and room on the disk. Looks
//! only; a home that is not there is not made.

use crate::home::Home;
use crate::product;
use audit::verify::Sort;
use gateway::Sealer;
use policy::{Additions, Config, load};
use sandbox::{Check, Status};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Below this a session's workspace and the log soon fill the disk, bytes.
const ROOM_LOW: u64 = 1 << 30;
/// Below this the next records may not be written, and then nothing runs, bytes.
const ROOM_LEAST: u64 = 32 << 20;
/// A log larger than this is not verified here, for it would take seconds; `audit verify` does.
const LOG_BYTES_MAX: u64 = 256 << 20;

fn check(name: &str, status: Status, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name: name.to_owned(), status, found: found.into(), remedy: remedy.into() }
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    check(name, Status::Ok, found, "")
}

/// Looks at everything; `true` when the log is not what was signed.
pub(super) fn inspect(home: &Home) -> (Vec<Check>, bool) {
    let path = home.path();
    let shown = path.display();
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let found =
                format!("{shown} is not there yet; the first command that needs it makes it");
            let above = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
            return (vec![ok("home", found), room(above)], false);
        }
        Err(e) => {
            let remedy = "choose another --home, or make its path accessible to you";
            let found = format!("{shown}: {e}");
            return (vec![check("home", Status::Missing, found, remedy)], false);
        }
        Ok(_) => {}
    }
    let mut checks = vec![folder("home", path)];
    if checks[0].status == Status::Missing {
        return (checks, false);
    }
    let (files, config) = files(home);
    checks.extend(files);
    let (log, broken) = log(home);
    checks.push(log);
    checks.push(vault(home, config.as_ref()));
    checks.push(running(path));
    checks.push(room(path));
    (checks, broken)
}

/// Ours, and closed to others.
fn folder(name: &str, path: &Path) -> Check {
    let shown = path.display();
    let meta = match path.metadata() {
        Ok(meta) => meta,
        Err(e) => return check(name, Status::Missing, format!("{shown}: {e}"), "make it readable"),
    };
    let (own, mode) = (rustix::process::geteuid().as_raw(), meta.permissions().mode() & 0o777);
    if !meta.is_dir() {
        let remedy = "move it away, or choose another --home";
        return check(name, Status::Missing, format!("{shown} is no folder"), remedy);
    }
    if meta.uid() != own {
        let found = format!("{shown} belongs to uid {}, not to you", meta.uid());
        return check(name, Status::Missing, found, "run as that user, or choose another --home");
    }
    let status = match mode {
        m if m & 0o022 != 0 => Status::Missing,
        m if m & 0o077 != 0 => Status::Degraded,
        _ => return ok(name, format!("{shown}, yours alone")),
    };
    let found = format!("{shown} has mode {mode:03o}, so others can look or write there");
    check(name, status, found, format!("chmod 700 {shown}"))
}

/// `nanoclaw.toml` and the files of the agents.
fn files(home: &Home) -> (Vec<Check>, Option<Config>) {
    let config = match product::load_config(home) {
        Ok(config) => config,
        Err(e) => {
            let remedy = "correct that line; until then nothing is started";
            return (vec![check("nanoclaw.toml", Status::Missing, e.cause, remedy)], None);
        }
    };
    let models: Vec<&str> = config.models.keys().map(String::as_str).collect();
    let first = match models.as_slice() {
        [] => check(
            "nanoclaw.toml",
            Status::Degraded,
            "no model is configured",
            "`nanoclaw chat` tells the three ways to get one; `run` and `demo` need none",
        ),
        some => ok("nanoclaw.toml", format!("models: {}", some.join(", "))),
    };
    let names = load::agent_names(home.path());
    let refused = names
        .iter()
        .find_map(|name| product::resolve_agent(home, &config, name, &Additions::default()).err());
    let second = match refused {
        Some(e) => check("agents", Status::Missing, e.cause, "`nanoclaw policy check` shows each"),
        None => ok("agents", format!("{} files read", names.len())),
    };
    (vec![first, second], Some(config))
}

fn log(home: &Home) -> (Check, bool) {
    let dir = home.audit();
    let bytes = match std::fs::read_dir(dir.join("wal")) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return (ok("log", "nothing is on record yet"), false);
        }
        Err(e) => {
            let found = format!("{}: {e}", dir.display());
            return (check("log", Status::Missing, found, "make it readable to you"), false);
        }
        Ok(all) => all.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum::<u64>(),
    };
    if bytes > LOG_BYTES_MAX {
        let found = format!("{} MiB; not verified here", bytes >> 20);
        return (check("log", Status::Degraded, found, "`nanoclaw audit verify` checks it"), false);
    }
    match audit::verify_dir(&dir, None) {
        Ok(report) => {
            let tail = match report.unsigned_records {
                0 => String::new(),
                n => format!(", {n} more not signed yet"),
            };
            (ok("log", format!("intact, {} records{tail}", report.records)), false)
        }
        Err(finding) if finding.sort == Sort::Unreadable => {
            (check("log", Status::Missing, finding.to_string(), "make it readable to you"), false)
        }
        Err(finding) => {
            let remedy = "keep the folder as evidence; start afresh with another --home";
            let found = format!("NOT intact: {finding}");
            (check("log", Status::Missing, found, remedy), true)
        }
    }
}

fn vault(home: &Home, config: Option<&Config>) -> Check {
    let dir = home.path().join("vault");
    let wanted: Vec<&str> = config.map_or_else(Vec::new, |config| {
        config.models.values().filter_map(|m| m.secret.as_deref()).collect()
    });
    let mut names = Vec::new();
    if dir.exists() {
        let own = folder("vault", &dir);
        if own.status != Status::Ok {
            return own;
        }
        match Sealer::open_or_create(home.path()).and_then(|sealer| sealer.list()) {
            Ok(all) => names.extend(all.into_iter().map(|info| info.name)),
            Err(e) => {
                let remedy = "restore the vault folder, or set the secrets again after removing it";
                return check("vault", Status::Missing, e.to_string(), remedy);
            }
        }
    }
    match wanted.iter().find(|name| !names.iter().any(|n| n == *name)) {
        Some(name) => check(
            "vault",
            Status::Degraded,
            format!("a model wants the secret {name}, which is not there"),
            format!("nanoclaw secret set {name}"),
        ),
        None if names.is_empty() => ok("vault", "no secrets"),
        None => ok("vault", format!("{} secrets, sealed", names.len())),
    }
}

/// Whether a gateway serves this home just now; it comes and goes with its clients.
fn running(home: &Path) -> Check {
    let socket = gateway::control::socket_path(home);
    match UnixStream::connect(socket) {
        Ok(_) => ok("gateway", "running"),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            ok("gateway", "not running; it is started with the first session")
        }
        Err(e) => {
            let remedy = "make <home>/run and its sockets yours, or choose another --home";
            check("gateway", Status::Missing, format!("its socket: {e}"), remedy)
        }
    }
}

fn room(path: &Path) -> Check {
    let free = match rustix::fs::statvfs(path) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(e) => {
            let found = format!("{}: {e}", path.display());
            return check("disk space", Status::Degraded, found, "look with `df`");
        }
    };
    let found = format!("{} MiB free at {}", free >> 20, path.display());
    let remedy = "make room: when the log cannot be written, nothing runs";
    match free {
        f if f < ROOM_LEAST => check("disk space", Status::Missing, found, remedy),
        f if f < ROOM_LOW => check("disk space", Status::Degraded, found, remedy),
        _ => ok("disk space", found),
    }
}
