//! What was measured against what was asked for. Any difference refuses the start.

use crate::cgroup::Group;
use crate::error::{StartError, StartErrorKind};
use crate::facts::{HostFacts, Ladder, Mode, Rung};
use crate::wire::Measured;
use model::{DoorSpec, LimitState, Limits, Strictness, WallState};

/// What a box must turn out to be.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) mode: Mode,
    /// Uid on the host.
    pub(super) uid: u32,
    pub(super) landlock: u32,
    pub(super) ladder: Ladder,
    pub(super) limits: Limits,
    pub(super) door: Option<DoorSpec>,
    /// What it executes and is refused is reported.
    pub(super) witness: bool,
}

fn wrong(what: &str, found: &str, wanted: &str) -> StartError {
    StartError::new(
        StartErrorKind::Verification,
        format!("{what} is {found}, not {wanted}"),
        "this is a defect of nanoclaw or of the kernel; please report it with `nanoclaw doctor`",
    )
}

/// Limits that a person wrote need the hard form.
pub(super) fn strict(limits: &Limits, facts: &HostFacts) -> Result<(), StartError> {
    let ladder = facts.ladder;
    for (name, limit, rung) in [
        ("memory", limits.memory_bytes, ladder.memory),
        ("cpus", limits.cpu_milli, ladder.cpu),
        ("pids", limits.pids, ladder.pids),
    ] {
        if limit.strictness == Strictness::Required && rung == Rung::Fallback {
            return Err(StartError::new(
                StartErrorKind::Limit,
                format!("no control group can enforce the limit {name} here"),
                "start nanoclaw with delegated control groups (`systemd-run --user --scope -p \
                 Delegate=yes nanoclaw …`), or as root, or write limits = \"fallback\" \
                 where the limit stands (`run` takes `--limits fallback` too)",
            ));
        }
    }
    Ok(())
}

fn status<'a>(measured: &'a Measured, name: &str) -> &'a str {
    measured.status.iter().find(|(n, _)| n == name).map_or("missing", |(_, v)| v)
}

/// The walls as measured, or the first that is not as it must be.
pub(super) fn walls(
    demand: &Demand,
    measured: &Measured,
    host: &[(String, u64)],
) -> Result<Vec<WallState>, StartError> {
    for (name, outside) in host {
        let inside = measured.namespaces.iter().find(|(n, _)| n == name).map(|(_, i)| i);
        if inside.is_none_or(|i| i == outside) {
            return Err(wrong(&format!("the {name} namespace"), "the host's", "its own"));
        }
    }
    for (name, want) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("NSpid", "1")] {
        if status(measured, name) != want {
            return Err(wrong(name, status(measured, name), want));
        }
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        if status(measured, name).bytes().any(|b| b != b'0') {
            return Err(wrong(name, status(measured, name), "0"));
        }
    }
    let map = format!("1000 {} 1", demand.uid);
    if measured.uid_map != map {
        return Err(wrong("the uid map", &measured.uid_map, &map));
    }
    if measured.interfaces != ["lo"] {
        return Err(wrong("the list of interfaces", &format!("{:?}", measured.interfaces), "lo"));
    }
    if !measured.root_read_only {
        return Err(wrong("the root", "writable", "read-only"));
    }
    let level = demand.landlock;
    let landlock = crate::landlock::measured(measured.felt.as_ref(), level)
        .map_err(|found| wrong("Landlock", &found, &format!("ABI {level}")))?;
    Ok(list(demand, measured, landlock))
}

fn list(demand: &Demand, measured: &Measured, landlock: String) -> Vec<WallState> {
    let names: Vec<&str> = measured.namespaces.iter().map(|(n, _)| n.as_str()).collect();
    let ids = match demand.mode {
        Mode::Root => format!("1000 inside, {} outside, of this session alone", demand.uid),
        Mode::User => format!("1000 inside, {} outside, the caller's own", demand.uid),
    };
    let network = match &demand.door {
        Some(door) => {
            let ports: Vec<String> = door.ports.iter().map(u16::to_string).collect();
            let ports = if ports.is_empty() { "none".into() } else { ports.join(", ") };
            let port = door.port;
            format!("lo only, 127.0.0.1:{port} relayed to the door, names at ports {ports}")
        }
        None => "lo only, no door".to_owned(),
    };
    let reachable = crate::seccomp::reachable_syscalls();
    [
        ("namespaces", names.join(", ")),
        ("root", "private, read-only, host's detached".to_owned()),
        ("uid", ids),
        ("capabilities", "none, bounding set empty".to_owned()),
        ("no-new-privileges", "set".to_owned()),
        ("seccomp", format!("allow-list, {reachable} system calls reachable")),
        ("landlock", landlock),
        ("network", network),
    ]
    .map(|(wall, state)| WallState { wall: wall.to_owned(), state })
    .into()
}

/// Not a wall, but what stands beside them on record: a reader must see that it was not there.
/// `reads`: whether memory can be read, as tried; `None` without a witness.
pub(crate) fn witness(reads: Option<bool>) -> WallState {
    let state = match reads {
        Some(true) => "executions and refused connections, by seccomp user notification",
        Some(false) => {
            "executions and refused connections, by seccomp user notification, but what they name \
             is closed to us: this process may trace nobody (CAP_SYS_PTRACE)"
        }
        None => "off: what is executed is not on record",
    };
    WallState { wall: "witness".to_owned(), state: state.to_owned() }
}

/// The limits with what holds each.
pub(super) fn limits(
    demand: &Demand,
    measured: &Measured,
    group: Option<&Group>,
    pid: i32,
) -> Result<Vec<LimitState>, StartError> {
    if group.is_some_and(|g| !g.holds(pid)) {
        return Err(wrong("its control group", "another", "the one with its limits"));
    }
    let by = |rung: Rung, fallback: &str| match rung {
        Rung::V2 => "cgroup v2".to_owned(),
        Rung::V1 => "cgroup v1".to_owned(),
        Rung::Fallback => fallback.to_owned(),
    };
    let (l, ladder) = (&demand.limits, demand.ladder);
    let mut states = vec![
        ("memory", format!("{} bytes", l.memory_bytes.value), {
            by(ladder.memory, "RLIMIT_DATA per process and a watchdog that kills the session")
        }),
        ("cpu", format!("{} thousandths of a CPU", l.cpu_milli.value), {
            by(ladder.cpu, "nothing: no control group is available")
        }),
        (
            "pids",
            format!("{}", l.pids.value),
            by(ladder.pids, "RLIMIT_NPROC in the user namespace"),
        ),
        ("tmp", format!("{} bytes", l.tmp_bytes), "tmpfs size".to_owned()),
    ];
    if ladder.memory == Rung::V1 {
        let beside = crate::cgroup::socket_share(l.memory_bytes.value);
        states.push(("socket-memory", format!("{beside} bytes beside"), "cgroup v1".to_owned()));
    }
    complete(states, l, measured, wrong)
}

/// What a report says of one limit: its name, its value, what holds it.
pub(crate) type State = (&'static str, String, String);

/// `states` with what every backend has beside its own: what we hold ourselves, and the resource
/// limits that the first process measured. `wrong` makes the error of one that is above what was
/// asked for, or missing.
pub(crate) fn complete(
    mut states: Vec<State>,
    limits: &Limits,
    measured: &Measured,
    wrong: fn(&str, &str, &str) -> StartError,
) -> Result<Vec<LimitState>, StartError> {
    states.extend(super::bounds::states(limits));
    for (name, asked) in [("fsize", limits.file_bytes), ("nofile", limits.open_files), ("core", 0)]
    {
        match measured.limits.iter().find(|(n, _)| n == name).map(|(_, v)| *v) {
            Some(value) if value <= asked => {
                let by = format!("RLIMIT_{}", name.to_uppercase());
                states.push((name, value.to_string(), by));
            }
            other => return Err(wrong(name, &format!("{other:?}"), &asked.to_string())),
        }
    }
    let state = |(limit, value, enforced_by): State| LimitState {
        limit: limit.to_owned(),
        value,
        enforced_by,
    };
    Ok(states.into_iter().map(state).collect())
}
