//! What this machine can enforce, found by trying: each namespace alone, then a whole sandbox.

use crate::client::{Spawner, SpawnerOptions, Stdio};
use crate::error::StartErrorKind;
use crate::facts::{HostFacts, LANDLOCK_VETTED, Mode, Rung};
use crate::spawner::id_range::IdRange;
use model::{
    AgentName, Backend, Command, Limits, Network, RootFs, SandboxSpec, SessionId, Workspace,
};
use std::fs;
use std::path::Path;

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Works.
    Ok,
    /// Works in a weaker form, which is named.
    Degraded,
    /// Missing; no sandbox starts without it.
    Missing,
}

/// One thing a sandbox needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// e.g. `user namespace`.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

pub(crate) fn check(name: &str, status: Status, found: impl Into<String>, remedy: &str) -> Check {
    let remedy = if status == Status::Ok { "" } else { remedy };
    Check { name: name.to_owned(), status, found: found.into(), remedy: remedy.to_owned() }
}

pub(crate) const LANDLOCK_REMEDY: &str =
    "boot a kernel of 5.13 or later with CONFIG_SECURITY_LANDLOCK=y and `landlock` in lsm=";
pub(crate) const SECCOMP_REMEDY: &str = "use a kernel with CONFIG_SECCOMP_FILTER=y";
const CGROUP_REMEDY: &str = "start nanoclaw as a service with `Delegate=yes`, or with \
    `systemd-run --user --scope -p Delegate=yes nanoclaw …`, or as root";

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|t| t.trim().to_owned())
}

/// Looks at and tries everything a native sandbox needs. Starts a spawner of the own executable
/// and one sandbox that runs nothing; takes some milliseconds.
#[must_use]
pub fn inspect() -> Vec<Check> {
    let facts = HostFacts::gather(Vec::new());
    let mut checks = vec![privilege(&facts)];
    let spawner = match Spawner::launch(SpawnerOptions::default()) {
        Ok(spawner) => spawner,
        Err(e) => {
            checks.push(check("spawner", Status::Missing, e.cause, &e.remedy));
            return checks;
        }
    };
    match spawner.try_namespaces() {
        Ok(tried) => checks.extend(tried.into_iter().map(|(name, error)| namespace(&name, error))),
        Err(e) => checks.push(check("namespaces", Status::Missing, e.cause, &e.remedy)),
    }
    checks.push(landlock(&facts));
    checks.push(seccomp());
    checks.extend(groups(&facts));
    let whole = whole(&spawner);
    if facts.mode == Mode::User {
        checks.insert(1, crate::userns::inspect(whole.status != Status::Missing));
    }
    checks.push(whole);
    checks.push(apple_backend());
    checks
}

/// A word about the backend of another system, so that nobody takes it for tried.
fn apple_backend() -> Check {
    let found = format!(
        "backend \"apple\" is for macOS (container {} or later); this version of it was never \
         run on real hardware, and is not used here",
        apple::FLOOR
    );
    check("apple", Status::Ok, found, "")
}

fn privilege(facts: &HostFacts) -> Check {
    match facts.mode {
        Mode::Root => match IdRange::of_host() {
            Ok(range) => {
                let IdRange { first, count } = range;
                let what = format!("root: each session has its own uid, of {count} from {first}");
                check("privilege", Status::Ok, what, "")
            }
            Err(e) => check(
                "privilege",
                Status::Missing,
                e.to_string(),
                "give nanoclaw ids of its own in /etc/subuid and /etc/subgid, or none",
            ),
        },
        Mode::User => check(
            "privilege",
            Status::Degraded,
            "plain user: sessions share your uid outside (same-uid)",
            "run nanoclaw as root (a service) to give each session a uid of its own",
        ),
    }
}

fn namespace(name: &str, error: Option<String>) -> Check {
    let name = format!("{name} namespace");
    match error {
        None => check(&name, Status::Ok, "can be made", ""),
        Some(e) => check(&name, Status::Missing, e, crate::userns::remedy()),
    }
}

fn landlock(facts: &HostFacts) -> Check {
    let abi = facts.landlock_abi;
    match abi {
        0 => check("landlock", Status::Missing, "not in this kernel", LANDLOCK_REMEDY),
        1..6 => check(
            "landlock",
            Status::Degraded,
            crate::landlock::told(abi),
            "a kernel of 6.12 or later adds the second layer",
        ),
        _ => check("landlock", Status::Ok, format!("ABI {abi} of {LANDLOCK_VETTED} used"), ""),
    }
}

fn seccomp() -> Check {
    let actions = sysctl("kernel/seccomp/actions_avail").unwrap_or_default();
    let missing: Vec<&str> = ["errno", "kill_process", "user_notif"]
        .into_iter()
        .filter(|want| !actions.split(' ').any(|a| a == *want))
        .collect();
    let reachable = crate::reachable_syscalls();
    if missing.is_empty() {
        return check("seccomp", Status::Ok, format!("{reachable} system calls reachable"), "");
    }
    let found = format!("the kernel does not list {}", missing.join(", "));
    check("seccomp", Status::Missing, found, SECCOMP_REMEDY)
}

fn groups(facts: &HostFacts) -> Vec<Check> {
    let ladder = facts.ladder;
    let kinds = [
        ("memory limit", ladder.memory, "RLIMIT_DATA and a watchdog"),
        ("cpu limit", ladder.cpu, "nothing enforces it"),
        ("process limit", ladder.pids, "RLIMIT_NPROC in the user namespace"),
    ];
    kinds
        .into_iter()
        .map(|(name, rung, fallback)| match rung {
            Rung::V2 => check(name, Status::Ok, "cgroup v2", ""),
            Rung::V1 => check(name, Status::Ok, "cgroup v1", ""),
            Rung::Fallback => check(name, Status::Degraded, fallback, CGROUP_REMEDY),
        })
        .collect()
}

/// Builds a whole sandbox and lets it go unused.
fn whole(spawner: &Spawner) -> Check {
    const NAME: &str = "whole sandbox";
    let dir = std::env::temp_dir().join(format!("nanoclaw-doctor-{}", std::process::id()));
    let made = fs::create_dir_all(dir.join("home"))
        .and_then(|()| fs::create_dir_all(dir.join("workspace")))
        .and_then(|()| fs::canonicalize(&dir));
    let result = match made {
        Ok(real) => try_whole(spawner, &real),
        Err(e) => check(NAME, Status::Missing, format!("{}: {e}", dir.display()), "set TMPDIR"),
    };
    // A left-over empty directory in the temporary directory is no reason to fail.
    let _ = fs::remove_dir_all(&dir);
    result
}

fn try_whole(spawner: &Spawner, dir: &Path) -> Check {
    const NAME: &str = "whole sandbox";
    let (Ok(session), Ok(agent)) = (SessionId::parse("doctor"), AgentName::parse("doctor")) else {
        return check(NAME, Status::Missing, "ids are refused", "report this defect");
    };
    let spec = SandboxSpec {
        session,
        agent,
        backend: Backend::Native,
        rootfs: RootFs::HostUsr,
        workspace: Workspace::Session(dir.join("workspace")),
        home: dir.join("home"),
        mounts: Vec::new(),
        network: Network::None,
        env: std::collections::BTreeMap::new(),
        probe: Vec::new(),
        command: Command::Program(vec!["true".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
        witness: true,
    };
    let stdio = match Stdio::null() {
        Ok(stdio) => stdio,
        Err(e) => return check(NAME, Status::Missing, e.to_string(), "/dev/null must exist"),
    };
    match spawner.prepare(&spec, stdio) {
        Ok(p) => {
            let found = format!("built and measured, {} walls", p.report().walls.len());
            check(NAME, Status::Ok, found, "")
        }
        Err(e) if e.kind == StartErrorKind::IdMap => check(
            NAME,
            Status::Degraded,
            format!("{} cannot be id-mapped: {}", dir.display(), e.cause),
            &e.remedy,
        ),
        Err(e) => check(NAME, Status::Missing, e.cause, &e.remedy),
    }
}
