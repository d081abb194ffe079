//! The container of a sandbox as data: the native plan, translated.
//!
//! Pipeline: native steps ─► what an engine does (`Container`) + what is left to do inside ─► plan.
//!
//! Invariants:
//! 1. Pure; what stands here depends on the spec and the host only, as the native plan does.
//! 2. Every native step is either the engine's (a field here), left to the first process, or
//!    listed in [`is_engines_own`] as what any container has.
//! 3. Nothing that a container asks for widens what the native plan grants.

use crate::facts::{HostFacts, Mode};
use crate::plan::{DISK_OWNER, MASK, Plan};
use crate::secrets::Mask;
use crate::step::{Bind, Owner, Step};
use model::{Backend, EngineChoice, SandboxSpec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the socket is, inside, over which the first process gets its work.
pub(crate) const LINE_INSIDE: &str = "/run/nanoclaw/line.sock";
/// Devices that every container has, and the links to them.
const DEVICES: &str = "/dev";
/// Shared memory is a mount that engines make themselves.
const SHARED_MEMORY: &str = "/dev/shm";
/// What no sandbox shows besides the masks of `/proc`.
const NO_SYSFS: &str = "/sys";
/// Limits of single processes that hold in any container; the others count all processes of a
/// user of the machine, or have a control group in their place.
const OWN_LIMITS: [&str; 3] = ["fsize", "nofile", "core"];

/// Ports below need a capability, as long as `net.ipv4.ip_unprivileged_port_start` is not lowered.
const PRIVILEGED_PORTS: u16 = 1_024;

/// A private writable place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// Inside.
    pub path: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Files and folders that it has room for, where an engine can be told: Docker can.
    pub inodes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// Everything that an engine is asked for. Always also: no network, a read-only root, no
/// capability, no new privileges, our system-call profile, namespaces of its own, no restart and
/// no log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `docker` or `podman`, as it was asked for.
    pub engine: String,
    /// An image of the engine by digest; `None` for a root made of `skeleton`.
    pub image: Option<String>,
    /// A runtime by name; `None` for the engine's own choice.
    pub runtime: Option<String>,
    /// Who the program is inside.
    pub identity: Owner,
    /// Host name inside.
    pub host_name: String,
    /// Memory of all processes, bytes; no swap beyond.
    pub memory_bytes: u64,
    /// Thousandths of one CPU.
    pub cpu_milli: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Descriptors of one process.
    pub open_files: u64,
    /// The first port that may be bound inside: the first process has no capability, and binds the
    /// door's and the name server's. Those above it that it leaves free, the program may bind.
    pub first_port: u16,
    /// Directories and links (path, target) of the root, where there is no image.
    pub skeleton: Vec<(String, Option<String>)>,
    /// Files of our own, put over whatever is there.
    pub files: Vec<(String, String)>,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// Places below them that are covered by something empty, for they may hold keys.
    pub masks: Vec<Mask>,
    /// Places in memory.
    pub scratch: Vec<Scratch>,
    /// Paths that show nothing.
    pub hidden: Vec<String>,
    /// Paths that cannot be written.
    pub read_only: Vec<String>,
}

impl Container {
    fn new(spec: &SandboxSpec, identity: Owner) -> Self {
        let EngineChoice { image, runtime } = match &spec.backend {
            Backend::Docker(choice) | Backend::Podman(choice) => choice.clone(),
            // Both are made by our own plan, here or in a machine of its own.
            Backend::Native | Backend::Apple(_) => EngineChoice::default(),
        };
        let limits = &spec.limits;
        Self {
            engine: spec.backend.name().to_owned(),
            image,
            runtime,
            identity,
            host_name: String::new(),
            memory_bytes: limits.memory_bytes.value,
            cpu_milli: limits.cpu_milli.value,
            pids: limits.pids.value,
            open_files: limits.open_files,
            first_port: PRIVILEGED_PORTS,
            skeleton: Vec::new(),
            files: Vec::new(),
            binds: Vec::new(),
            masks: Vec::new(),
            scratch: Vec::new(),
            hidden: vec![NO_SYSFS.to_owned()],
            read_only: Vec::new(),
        }
    }

    /// The places inside where something of the host's is mounted that a spec or a session named.
    pub(crate) fn watched(&self) -> impl Iterator<Item = &Bind> {
        self.binds.iter().filter(|b| b.strict)
    }
}

/// Who a program is in a container of a rootful engine. There is no id-mapping of folders: as root
/// sessions share the id that owns their folders on disk, else they have the caller's own.
pub(crate) fn identity(mode: Mode) -> Owner {
    match mode {
        Mode::Root => DISK_OWNER,
        Mode::User => Owner {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        },
    }
}

/// The plan of a container: its first step is the container, the others are done inside.
pub(crate) fn translate(
    spec: &SandboxSpec,
    facts: &HostFacts,
    native: &Plan,
    identity: Owner,
) -> Plan {
    let mut container = Container::new(spec, identity);
    let common = crate::plan::common(facts, spec.limits.tmp_bytes).len();
    let mut inside = Vec::new();
    for (number, step) in native.steps.iter().enumerate() {
        if container.take(step, number < common) || is_engines_own(step) {
            continue;
        }
        match step {
            Step::ResourceLimit { name, .. } if !OWN_LIMITS.contains(&name.as_str()) => {}
            Step::Verify => inside.extend([container.look(), Step::Verify]),
            other => {
                container.binds_port(other);
                inside.push(other.clone());
            }
        }
    }
    // runc gives what is mounted at a folder that is there the permissions of that folder, whatever
    // was asked for; where there is none, it makes one.
    let Container { skeleton, scratch, .. } = &mut container;
    skeleton.retain(|(path, _)| !scratch.iter().any(|place| &place.path == path));
    let mut steps = vec![Step::Container(Box::new(container))];
    steps.append(&mut inside);
    Plan { steps }
}

/// What a container has without being asked: it is measured all the same.
fn is_engines_own(step: &Step) -> bool {
    matches!(
        step,
        Step::Namespaces { .. }
            | Step::MapCaller { .. }
            | Step::JoinGroups { .. }
            | Step::PrivateMounts
            | Step::Root { .. }
            | Step::Proc
            | Step::Terminals
            | Step::Pivot
            | Step::SealRoot
            | Step::Loopback
            | Step::GroupNamespace
            | Step::Become { .. }
            | Step::DropCapabilities
    )
}

impl Container {
    /// Takes over a step, if the engine is to be asked for it.
    fn take(&mut self, step: &Step, common: bool) -> bool {
        match step {
            // An image has a root of its own; missing mount points are made by the engine.
            Step::Directory { path, .. } if common && self.image.is_none() => {
                self.skeleton.push((path.clone(), None));
            }
            Step::Directory { .. } => {}
            Step::Symlink { path, .. } if path.starts_with(DEVICES) => {}
            Step::Symlink { path, to } if common => {
                if self.image.is_none() {
                    self.skeleton.push((path.clone(), Some(to.clone())));
                }
            }
            Step::Symlink { path, to } => self.again(path, to),
            // What covers is the same for all containers, and no part of one.
            Step::File { path, .. } if path == MASK => {}
            Step::File { path, contents } => self.file(path, contents),
            Step::Mask(mask) => self.masks.push(mask.clone()),
            Step::Bind(bind) if bind.devices => {}
            Step::Bind(_) if common && self.image.is_some() => {}
            Step::Bind(bind) | Step::Trust(bind) => {
                self.binds.push(Bind { owner: None, ..bind.clone() });
            }
            Step::OwnBinary { source, target } => self.binds.push(Bind {
                source: source.clone(),
                target: target.clone(),
                read_only: true,
                devices: false,
                strict: true,
                owner: None,
            }),
            Step::Scratch { bytes, inodes, places } => {
                self.scratch = share(*bytes, *inodes, places);
            }
            Step::HostName { name } => self.host_name.clone_from(name),
            Step::ProcReadOnly { path } => self.read_only.push(path.clone()),
            Step::ProcMask { path, .. } => self.hidden.push(path.clone()),
            _ => return false,
        }
        true
    }

    /// The root is read-only before a session is known: where the native plan links to something
    /// of a session, the same is mounted a second time. What is covered in one is in the other.
    fn again(&mut self, path: &str, to: &str) {
        if let Some(bind) = self.binds.iter().find(|b| b.target == to).cloned() {
            self.binds.push(Bind { target: path.to_owned(), ..bind });
        }
        let below = |mask: &Mask| {
            let rest = mask.path.strip_prefix(to).filter(|rest| rest.starts_with('/'))?;
            Some(Mask { path: format!("{path}{rest}"), ..mask.clone() })
        };
        let covered: Vec<Mask> = self.masks.iter().filter_map(below).collect();
        self.masks.extend(covered);
    }

    /// Names of users and groups are those of the ids the program has here.
    fn file(&mut self, path: &str, contents: &str) {
        let Owner { uid, gid } = self.identity;
        let contents = match path {
            "/etc/passwd" | "/etc/group" if self.image.is_some() => return,
            "/etc/passwd" => contents.replace(":1000:1000:", &format!(":{uid}:{gid}:")),
            "/etc/group" => contents.replace(":1000:", &format!(":{gid}:")),
            "/etc/nsswitch.conf" if self.image.is_some() => return,
            _ => contents.to_owned(),
        };
        self.files.push((path.to_owned(), contents));
    }

    fn binds_port(&mut self, step: &Step) {
        let port = match step {
            Step::Listen { port, .. } | Step::DoorPort { port } => *port,
            Step::Names => crate::init::NAME_PORT,
            _ => return,
        };
        self.first_port = self.first_port.min(port);
    }

    fn look(&self) -> Step {
        let mounted = self.watched().map(|b| &b.target);
        let places = mounted.chain(self.masks.iter().map(|m| &m.path)).cloned().collect();
        Step::Look { places, hidden: self.hidden.clone() }
    }
}

/// The size of all private places, and their inodes, are shared out, for each is a file system of
/// its own here: the first, `/tmp`, has the most. Engines need whole pages.
fn share(bytes: u64, inodes: u64, places: &[String]) -> Vec<Scratch> {
    const PAGE: u64 = 4_096;
    const SHARES: u64 = 16;
    let part = |path: &str| match path {
        "/tmp" => 10,
        SHARED_MEMORY => 4,
        _ => 1,
    };
    let scratch = |path: &String| Scratch {
        path: path.clone(),
        bytes: (bytes / SHARES * part(path)).next_multiple_of(PAGE).max(PAGE),
        inodes: inodes / SHARES * part(path),
        mode: 0o1777,
    };
    places.iter().map(scratch).collect()
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.image.as_deref().unwrap_or("made of the folders and links below");
        write!(f, "container by {}: root {root}, read-only", self.engine)?;
        if let Some(runtime) = &self.runtime {
            write!(f, ", runtime {runtime}")?;
        }
        let Owner { uid, gid } = self.identity;
        write!(f, "; user {uid}:{gid}; no network, no capability, no new privileges, ")?;
        write!(f, "seccomp profile; host name {}; ", self.host_name)?;
        write!(f, "memory {} bytes without swap, ", self.memory_bytes)?;
        write!(f, "{} thousandths of a CPU, {} processes; ", self.cpu_milli, self.pids)?;
        write!(f, "no port below {} can be bound", self.first_port)?;
        for bind in &self.binds {
            write!(f, "\n     {bind}")?;
        }
        for mask in &self.masks {
            write!(f, "\n     {mask}")?;
        }
        for (path, contents) in &self.files {
            write!(f, "\n     file {path} ({} bytes)", contents.len())?;
        }
        for Scratch { path, bytes, .. } in &self.scratch {
            write!(f, "\n     tmpfs of {bytes} bytes at {path}")?;
        }
        for (path, to) in &self.skeleton {
            match to {
                Some(to) => write!(f, "\n     symlink {path} to {to}")?,
                None => write!(f, "\n     directory {path}")?,
            }
        }
        write!(f, "\n     nothing to be seen at {}", self.hidden.join(", "))?;
        write!(f, "\n     read-only {}", self.read_only.join(", "))
    }
}
