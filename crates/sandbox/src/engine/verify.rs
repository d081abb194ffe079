//! What a container turned out to be, against what was asked for. Any difference refuses the start.
//!
//! Three witnesses, in order of weight: the kernel from outside (`Outside`, control groups), our
//! own first process inside (`Measured`), and the engine's account of its own settings
//! (`Inspected`), which can only add a reason to refuse.

use super::api::{Inspected, MountPoint};
use super::container::{Container, LINE_INSIDE};
use super::fitness::Facts;
use super::outside::Outside;
use crate::cgroup::{Beside, Held, socket_share, whole_pages};
use crate::error::{StartError, StartErrorKind as Kind};
use crate::step::Owner;
use crate::wire::Measured;
use model::{DoorSpec, LimitState, Limits, Network, SandboxSpec, Strictness, WallState};
use std::collections::{BTreeMap, BTreeSet};

/// What is said of a container without a namespace of control groups.
const GROUPS_SHOWN: &str = "; the names of its control groups are the host's";

/// Which file of the machine stands at a place inside.
pub(super) type Files = BTreeMap<String, (u64, u64)>;

/// What must turn out.
#[derive(Debug)]
pub(super) struct Demand<'a> {
    pub(super) container: &'a Container,
    pub(super) spec: &'a SandboxSpec,
    pub(super) facts: &'a Facts,
    /// Who the program is outside.
    pub(super) owner: Owner,
    /// The files that were checked before anything was mounted.
    pub(super) files: &'a Files,
    /// This process' own namespaces.
    pub(super) host: &'a [(String, u64)],
    pub(super) landlock: u32,
    pub(super) image: &'a str,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) inspected: &'a Inspected,
    pub(super) outside: &'a Outside,
    pub(super) inside: &'a Measured,
}

fn wrong(what: &str, found: &str, wanted: &str) -> StartError {
    StartError::new(
        Kind::Verification,
        format!("{what} is {found}, not {wanted}"),
        "the engine did not build what it was asked for: look at its settings and version, or \
         write `backend = \"native\"`",
    )
}

fn expect(what: &str, found: &str, wanted: &str) -> Result<(), StartError> {
    if found == wanted { Ok(()) } else { Err(wrong(what, found, wanted)) }
}

/// The walls as measured, or the first that is not as it must be.
pub(super) fn walls(demand: &Demand<'_>, found: &Found<'_>) -> Result<Vec<WallState>, StartError> {
    settings(demand, found.inspected)?;
    let own = namespaces(demand, found.inside)?;
    process(demand, found.outside)?;
    places(demand, found.inside)?;
    if !found.inside.root_read_only {
        return Err(wrong("the root", "writable", "read-only"));
    }
    let level = demand.landlock;
    let landlock = crate::landlock::measured(found.inside.felt.as_ref(), level)
        .map_err(|said| wrong("Landlock", &said, &format!("ABI {level}")))?;
    Ok(list(demand, found, own, landlock))
}

/// What the engine says of its container.
fn settings(demand: &Demand<'_>, inspected: &Inspected) -> Result<(), StartError> {
    let config = &inspected.host_config;
    expect("the container's network mode", &config.network_mode, "none")?;
    expect("the container's privileged mode", &config.privileged.to_string(), "false")?;
    expect("the container's read-only root", &config.readonly_rootfs.to_string(), "true")?;
    for (what, mode) in [("PID", &config.pid_mode), ("IPC", &config.ipc_mode)] {
        if mode == "host" || mode.starts_with("container:") {
            return Err(wrong(&format!("the container's {what} mode"), mode, "its own"));
        }
    }
    if config.devices.iter().flatten().next().is_some() {
        return Err(wrong("the list of the container's devices", "not empty", "empty"));
    }
    let plain = |id: &str| id.trim_start_matches("sha256:").to_owned();
    expect("the container's image", &plain(&inspected.image), &plain(demand.image))?;
    if let Some(runtime) = &demand.container.runtime {
        expect("the container's runtime", &config.runtime, runtime)?;
    }
    let container = demand.container;
    let binds = container.binds.iter().map(|b| b.target.as_str());
    let files = container.files.iter().map(|(path, _)| path.as_str());
    let scratch = container.scratch.iter().map(|s| s.path.as_str());
    let masks = container.masks.iter().map(|m| m.path.as_str());
    let asked: BTreeSet<&str> =
        binds.chain(files).chain(masks).chain(scratch).chain([LINE_INSIDE, "/run"]).collect();
    let foreign = |m: &&MountPoint| {
        // Podman lists its small file system over /run as well.
        !asked.contains(m.destination.as_str()) || (m.destination == "/run" && m.kind != "tmpfs")
    };
    match inspected.mounts.iter().flatten().find(foreign) {
        None => Ok(()),
        Some(m) => {
            let found =
                format!("one of a {} at {:?}, for which nobody asked", m.kind, m.destination);
            Err(wrong("a mount of the container", &found, "there"))
        }
    }
}

/// The names of those that are its own: all but the user namespace of root's engine, and where
/// Podman gives none, that of control groups.
fn namespaces(demand: &Demand<'_>, inside: &Measured) -> Result<Vec<String>, StartError> {
    let mut all = Vec::new();
    for (name, outside) in demand.host {
        let found = inside.namespaces.iter().find(|(n, _)| n == name).map(|(_, i)| i);
        match name.as_str() {
            _ if found.is_some_and(|i| i != outside) => all.push(name.clone()),
            "user" => {}
            "cgroup" if demand.facts.shares_group_names => {}
            _ => return Err(wrong(&format!("the {name} namespace"), "the host's", "its own")),
        }
    }
    Ok(all)
}

/// What the kernel says of the first process.
fn process(demand: &Demand<'_>, outside: &Outside) -> Result<(), StartError> {
    for (name, want) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        expect(name, outside.status(name), want)?;
    }
    // Both are loaded: the engine's, before our first instruction, and our own.
    let filters = outside.status("Seccomp_filters");
    if filters != "missing" && filters.parse::<u32>().is_ok_and(|n| n < 2) {
        return Err(wrong("the number of system-call filters", filters, "2"));
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        if outside.status(name).bytes().any(|b| b != b'0') {
            return Err(wrong(name, outside.status(name), "0"));
        }
    }
    let pids = outside.status("NSpid");
    let (levels, last) = (pids.split(' ').count(), pids.rsplit(' ').next());
    if levels < 2 || last != Some("1") {
        return Err(wrong("its number in its PID namespace", pids, "1 in one of its own"));
    }
    let Owner { uid, gid } = demand.owner;
    for (name, want) in [("Uid", uid), ("Gid", gid)] {
        if outside.id(name) != Some(want) {
            return Err(wrong(name, outside.status(name), &want.to_string()));
        }
    }
    let groups = outside.status("Groups");
    if groups.split(' ').any(|g| !g.is_empty() && g != gid.to_string()) {
        return Err(wrong("the list of further groups", groups, "empty"));
    }
    if outside.interfaces != ["lo"] {
        return Err(wrong("the list of interfaces", &format!("{:?}", outside.interfaces), "lo"));
    }
    Ok(())
}

/// What stands inside is what was looked at before, and cannot be written where it must not be.
fn places(demand: &Demand<'_>, inside: &Measured) -> Result<(), StartError> {
    let binds = demand.container.watched().map(|bind| {
        let source = format!("the file or folder {:?} that was checked", bind.source);
        (&bind.target, bind.read_only, source)
    });
    let masks = demand.container.masks.iter();
    let masks = masks.map(|mask| (&mask.path, true, "the empty one that covers it".to_owned()));
    for (target, read_only, source) in binds.chain(masks) {
        let Some(place) = inside.places.iter().find(|p| &p.path == target) else {
            return Err(wrong(&format!("what stands at {target}"), "not told", "known"));
        };
        if demand.files.get(target) != Some(&place.file) {
            return Err(wrong(&format!("what stands at {target}"), "something else", &source));
        }
        if read_only && !place.read_only {
            return Err(wrong(&format!("the mount at {target}"), "writable", "read-only"));
        }
    }
    if let Some(path) = inside.shown.iter().find(|p| !demand.facts.shows(p)) {
        return Err(wrong(&format!("what is to be seen at {path}"), "something", "nothing"));
    }
    Ok(())
}

impl Facts {
    /// Paths that this engine's older versions cannot hide: they are read-only there, and tell of
    /// the host what any container of it can read.
    fn shows(&self, path: &str) -> bool {
        self.kind == super::fitness::Kind::Podman && path == "/sys"
    }
}

fn list(
    demand: &Demand<'_>,
    found: &Found<'_>,
    own: Vec<String>,
    landlock: String,
) -> Vec<WallState> {
    let groups = if own.iter().any(|name| name == "cgroup") { "" } else { GROUPS_SHOWN };
    let Owner { uid, gid } = demand.container.identity;
    let shared = if demand.owner == crate::plan::DISK_OWNER {
        "shared by the sessions of this machine's containers"
    } else {
        "the caller's own"
    };
    let outside = demand.owner.uid;
    let Facts { title, default_runtime, labels, .. } = demand.facts;
    let runtime = demand.container.runtime.as_ref().unwrap_or(default_runtime);
    let shown = if found.inside.shown.is_empty() { "" } else { "; /sys read-only" };
    let filters = found.outside.status("Seccomp_filters");
    let mac = match (labels, found.inspected.apparmor_profile.as_str()) {
        (true, _) => "SELinux labels left out: a labelled process could not reach its door".into(),
        (false, "") => "none".to_owned(),
        (false, profile) => format!("AppArmor profile {profile}, as the engine says"),
    };
    [
        ("engine", format!("{title}, runtime {runtime}")),
        ("namespaces", format!("{}{groups}", own.join(", "))),
        ("root", format!("the engine's, read-only{shown}")),
        ("uid", format!("{uid}:{gid} inside, {outside} outside, {shared}")),
        ("capabilities", "none, bounding set empty".to_owned()),
        ("no-new-privileges", "set".to_owned()),
        ("seccomp", {
            let reachable = crate::seccomp::reachable_syscalls();
            format!("allow-list, {reachable} system calls reachable; filters loaded: {filters}")
        }),
        ("landlock", landlock),
        ("access control", mac),
        ("network", network(&demand.spec.network)),
    ]
    .map(|(wall, state)| WallState { wall: wall.to_owned(), state })
    .into()
}

/// Not a wall, but what stands beside them on record. `reads`: whether memory can be read, as
/// tried in the first process; `None` without a witness.
pub(super) fn witness(reads: Option<bool>) -> WallState {
    let Some(reads) = reads else { return crate::spawner::witness_wall(None) };
    let closed = if reads {
        ""
    } else {
        "; what they name may be closed to us, for this process has no right to trace the \
         container's (root has it, and who runs a rootless engine)"
    };
    let state = format!(
        "executions and refused connections, by seccomp user notification; sockets that may not be \
         made are refused by the engine's filter, which reports nothing{closed}"
    );
    WallState { wall: "witness".to_owned(), state }
}

fn network(network: &Network) -> String {
    let Network::Door(DoorSpec { port, ports, .. }) = network else {
        return "lo only, no door".to_owned();
    };
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = if ports.is_empty() { "none".into() } else { ports.join(", ") };
    format!("lo only, 127.0.0.1:{port} relayed to the door, names at ports {ports}")
}

/// The limits with what the kernel's own files say of each. `swap` tells whether this machine has
/// any.
pub(super) fn limits(
    limits: &Limits,
    held: &Held,
    inside: &Measured,
    swap: bool,
) -> Result<Vec<LimitState>, StartError> {
    let lacking = |what: &str, found: Option<u64>, asked: u64| {
        let found = found.map_or("no limit".to_owned(), |n| n.to_string());
        StartError::new(
            Kind::Limit,
            format!("the container's limit of {what} is {found} in the kernel, not {asked}"),
            "let the engine run as root, or, rootless, with delegated cgroup v2 controllers \
             (systemd: Delegate=cpu memory pids), or write `backend = \"native\"`",
        )
    };
    let memory = whole_pages(limits.memory_bytes.value);
    for (what, found, asked) in [
        ("memory", held.memory, memory),
        ("CPU", held.cpu_milli, limits.cpu_milli.value.max(10)),
        ("processes", held.pids, limits.pids.value),
    ] {
        if found.is_none_or(|n| n > asked) {
            return Err(lacking(what, found, asked));
        }
    }
    let swapping = match held.swap {
        Some(0) => ("0 bytes".to_owned(), "cgroup"),
        None if !swap => ("0 bytes".to_owned(), "nothing to swap to on this machine"),
        other if limits.memory_bytes.strictness == Strictness::Required => {
            return Err(lacking("swap", other, 0));
        }
        other => (other.map_or("any".into(), |n| format!("{n} bytes")), "nothing more"),
    };
    let plain = |n: Option<u64>| n.unwrap_or(0);
    let mut states = vec![
        ("memory", format!("{} bytes", plain(held.memory)), "cgroup of the engine".to_owned()),
        ("swap", swapping.0, swapping.1.to_owned()),
        ("cpu", format!("{} thousandths of a CPU", plain(held.cpu_milli)), {
            "cgroup of the engine".to_owned()
        }),
        ("pids", plain(held.pids).to_string(), "cgroup of the engine".to_owned()),
        ("tmp", format!("{} bytes", limits.tmp_bytes), "sizes of several tmpfs".to_owned()),
    ];
    let share = socket_share(limits.memory_bytes.value);
    let beside = |value: String, by: &str| ("socket-memory", value, by.to_owned());
    match held.sockets {
        None => {}
        Some(Beside::AtMost(bytes)) if bytes <= share => {
            states.push(beside(format!("{bytes} bytes beside"), "cgroup of the engine, v1, by us"));
        }
        _ if limits.memory_bytes.strictness == Strictness::Required => {
            return Err(lacking("queues of sockets", None, share));
        }
        _ => states.push(beside("any".into(), "nothing")),
    }
    crate::spawner::complete_states(states, limits, inside, wrong)
}

#[cfg(test)]
mod tests;
