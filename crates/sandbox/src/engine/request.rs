//! What an engine is asked for, word by word: the body of "create a container".
//!
//! Pipeline: `Container` + what is of this one start only ─► `body` ─► JSON.
//!
//! Invariants:
//! 1. Pure. Every wall is asked for by name, also where it is the engine's default.
//! 2. Binds are written as objects, never as `a:b:c` texts, and bring no mount of the host's below
//!    them: engines of this age make only the uppermost one read-only. What covers a place below
//!    one is a mount of its own, read-only too; engines mount in the order of depth.

use super::ceiling::Ceiling;
use super::container::{Container, LINE_INSIDE};
use super::fitness::{Facts, Kind};
use crate::INIT_ROLE;
use crate::plan::BINARY_INSIDE;
use crate::secrets::Mask;
use crate::step::Owner;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Period of CPU bandwidth control, microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The kernel refuses shorter quotas.
const CPU_QUOTA_MIN: u64 = 1_000;
/// Podman puts a file system in memory over `/run` of any read-only container; this makes it small.
const RUN_BYTES: u64 = 64 << 10;
/// No group may send pings (icmp(7): the first number is above the second, as in any network of its
/// own). Docker opens it to all groups of a container, whatever capabilities that has.
const NOBODY_PINGS: &str = "1 0";

/// What differs from start to start.
#[derive(Debug, Clone)]
pub(super) struct Occasion {
    /// The image's id.
    pub(super) image: String,
    /// The socket of the first process' line, on the host.
    pub(super) line: PathBuf,
    /// Files of the container, on the host, in the order it lists them.
    pub(super) files: Vec<PathBuf>,
    /// Something empty, on the host: a file, a folder.
    pub(super) covers: [PathBuf; 2],
    /// The system-call profile: its path on the host, and its text.
    pub(super) profile: (PathBuf, String),
    /// Who it belongs to.
    pub(super) labels: BTreeMap<String, String>,
    /// What it can be given at most.
    pub(super) hard: Ceiling,
}

/// The body of the request.
pub(super) fn body(container: &Container, facts: &Facts, occasion: &Occasion) -> Value {
    let Owner { uid, gid } = container.identity;
    let mut all = json!({
        "Image": occasion.image,
        "Hostname": container.host_name,
        "Domainname": "",
        "User": format!("{uid}:{gid}"),
        "Entrypoint": [BINARY_INSIDE, INIT_ROLE, LINE_INSIDE],
        "Cmd": [],
        "Env": [],
        "WorkingDir": "/",
        "Tty": false,
        "OpenStdin": false,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "NetworkDisabled": false,
        "Healthcheck": { "Test": ["NONE"] },
        "Labels": occasion.labels,
        "HostConfig": host_config(container, facts, occasion),
    });
    if facts.kind == Kind::Podman {
        // It reads an empty list as a command of no words.
        all.as_object_mut().map(|fields| fields.remove("Cmd"));
    }
    all
}

/// The ids inside of who has this identity outside. Rootless Docker maps the caller to root.
pub(super) fn inside(identity: Owner, facts: &Facts) -> Owner {
    match (facts.rootless, facts.kind) {
        (true, Kind::Docker) => Owner { uid: 0, gid: 0 },
        _ => identity,
    }
}

fn host_config(container: &Container, facts: &Facts, occasion: &Occasion) -> Value {
    let shared = container.scratch.iter().find(|s| s.path == "/dev/shm");
    let mut config = json!({
        "AutoRemove": true,
        "Init": false,
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "LogConfig": { "Type": "none", "Config": {} },
        "NetworkMode": "none",
        "IpcMode": "private",
        "PidMode": "",
        "CgroupnsMode": "private",
        "Privileged": false,
        "ReadonlyRootfs": true,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": security(container, facts, occasion),
        "Sysctls": sysctls(container, facts),
        "Memory": container.memory_bytes,
        "MemorySwap": container.memory_bytes,
        "CpuPeriod": CPU_PERIOD,
        "CpuQuota": (container.cpu_milli * CPU_PERIOD / 1_000).max(CPU_QUOTA_MIN),
        "PidsLimit": container.pids,
        "Ulimits": ulimits(container, occasion),
        "ShmSize": shared.map_or(0, |s| s.bytes),
        "Mounts": mounts(container, occasion),
        "Tmpfs": tmpfs(container, facts.kind),
        "Devices": [],
        "GroupAdd": [],
    });
    let mut add = |key: &str, value: Value| {
        config.as_object_mut().map(|fields| fields.insert(key.to_owned(), value));
    };
    if facts.kind == Kind::Docker {
        add("MaskedPaths", json!(container.hidden));
        add("ReadonlyPaths", json!(container.read_only));
        if let Some(runtime) = &container.runtime {
            add("Runtime", json!(runtime));
        }
    }
    match (facts.rootless, facts.kind) {
        (true, Kind::Podman) => add("UsernsMode", json!("keep-id")),
        // Folders keep their owners only where ids are not mapped.
        (false, Kind::Docker) if facts.remaps => add("UsernsMode", json!("host")),
        _ => {}
    }
    config
}

/// Settings of the container's own network. Below a rootless engine the ids of the second may not
/// be known, and no such engine opens it to others than root inside.
fn sysctls(container: &Container, facts: &Facts) -> Value {
    let first = container.first_port.to_string();
    let mut all = json!({ "net.ipv4.ip_unprivileged_port_start": first });
    if !facts.rootless {
        let add = |fields: &mut Map<String, Value>| {
            fields.insert("net.ipv4.ping_group_range".to_owned(), json!(NOBODY_PINGS))
        };
        all.as_object_mut().map(add);
    }
    all
}

/// Docker takes the profile itself, Podman its path; Podman takes masks here only.
fn security(container: &Container, facts: &Facts, occasion: &Occasion) -> Vec<String> {
    let (path, text) = &occasion.profile;
    let mut all = vec!["no-new-privileges".to_owned()];
    match facts.kind {
        Kind::Docker => all.push(format!("seccomp={text}")),
        Kind::Podman => {
            all.push(format!("seccomp={}", path.display()));
            all.push(format!("mask={}", container.hidden.join(":")));
        }
    }
    if facts.labels {
        // A labelled container could not speak to a socket of the host; the other walls stay.
        all.push("label=disable".to_owned());
    }
    all
}

fn ulimits(container: &Container, occasion: &Occasion) -> Value {
    let Ceiling { files, processes } = occasion.hard;
    let one = |name: &str, value: u64| json!({ "Name": name, "Soft": value, "Hard": value });
    json!([
        one("nofile", container.open_files.min(files)),
        // Podman asks for a million unless it is told. It counts all processes of a user of the
        // machine, so it limits nothing here: the control group does.
        one("nproc", processes.min(i64::MAX as u64)),
        one("core", 0),
    ])
}

fn mounts(container: &Container, occasion: &Occasion) -> Vec<Value> {
    let mount = |source: &Path, target: &str, read_only: bool| {
        json!({
            "Type": "bind",
            "Source": source,
            "Target": target,
            "ReadOnly": read_only,
            "BindOptions": { "NonRecursive": true },
        })
    };
    let binds = container.binds.iter().map(|b| mount(Path::new(&b.source), &b.target, b.read_only));
    let files = container.files.iter().zip(&occasion.files);
    let files = files.map(|((target, _), source)| mount(source, target, true));
    let [file, folder] = &occasion.covers;
    let cover = |mask: &Mask| mount(if mask.directory { folder } else { file }, &mask.path, true);
    let masks = container.masks.iter().map(cover);
    let line = mount(&occasion.line, LINE_INSIDE, true);
    binds.chain(files).chain(masks).chain([line]).collect()
}

fn tmpfs(container: &Container, kind: Kind) -> Map<String, Value> {
    let options = |bytes: u64, mode: u32, inodes: Option<u64>| {
        // Unless it is said, nothing could be executed there, as in no sandbox of our own.
        let inodes = inodes.map(|n| format!(",nr_inodes={n}")).unwrap_or_default();
        json!(format!("rw,exec,nosuid,nodev,size={bytes},mode={mode:04o}{inodes}"))
    };
    // Podman refuses what it does not know, and it does not know of inodes.
    let counted = |inodes: u64| (kind == Kind::Docker).then_some(inodes);
    let mut all: Map<String, Value> = container
        .scratch
        .iter()
        .filter(|s| s.path != "/dev/shm")
        .map(|s| (s.path.clone(), options(s.bytes, s.mode, counted(s.inodes))))
        .collect();
    if kind == Kind::Podman {
        all.insert("/run".to_owned(), options(RUN_BYTES, 0o755, None));
    }
    all
}

#[cfg(test)]
mod tests;
