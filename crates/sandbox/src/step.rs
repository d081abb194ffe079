//! One step of a plan: plain data, printable, executed by init exactly as written.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who owns a folder on disk; id-mapped to the session's uid inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// User id on disk.
    pub uid: u32,
    /// Group id on disk.
    pub gid: u32,
}

/// A bind mount; always nosuid, always private.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: String,
    /// Inside.
    pub target: String,
    /// Cannot be written through.
    pub read_only: bool,
    /// Device nodes work (only for nodes of `/dev`).
    pub devices: bool,
    /// A symbolic link anywhere in `source` is an error.
    pub strict: bool,
    /// Map this owner to the session's uid.
    pub owner: Option<Owner>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // the fields are what the variant says and what `Display` prints
pub enum Step {
    /// New namespaces, made by `clone3` before anything else runs.
    Namespaces { names: Vec<String> },
    /// Map the inner uid to the caller's own (plain-user mode).
    MapCaller { inside: u32 },
    /// Join the control groups the spawner made.
    JoinGroups { kinds: Vec<String> },
    /// No mount event goes in or out.
    PrivateMounts,
    /// A small tmpfs becomes the new root.
    Root { bytes: u64, inodes: u64 },
    /// A directory in it.
    Directory { path: String, mode: u32 },
    /// A synthetic file in it.
    File { path: String, contents: String },
    /// A symbolic link in it.
    Symlink { path: String, to: String },
    /// One sized tmpfs behind all private writable places.
    Scratch { bytes: u64, inodes: u64, places: Vec<String> },
    /// A bind mount.
    Bind(Bind),
    /// Our own executable, read-only; left out where others may not read it.
    OwnBinary { source: String, target: String },
    /// A proc of the new PID namespace that hides others' processes.
    Proc,
    /// Part of `/proc` that can only be read.
    ProcReadOnly { path: String },
    /// Part of `/proc` covered by nothing.
    ProcMask { path: String, directory: bool },
    /// A place below a grant that may hold keys, covered by something empty.
    Mask(crate::secrets::Mask),
    /// A private instance of pseudo-terminals.
    Terminals,
    /// The new root becomes the root; the host's is detached.
    Pivot,
    /// The new root itself becomes read-only.
    SealRoot,
    /// Name of the machine inside.
    HostName { name: String },
    /// The loopback interface is brought up.
    Loopback,
    /// Init listens on this port of 127.0.0.1 and relays to the door.
    Listen { port: u16, door: String },
    /// Init answers questions for names at 127.0.0.1:53, UDP and TCP: the gateway says which
    /// exist, and each has a loopback address of its own.
    Names,
    /// Init takes connections to this port of every name and asks the gateway to connect them.
    DoorPort { port: u16 },
    /// A bind mount of the certificates to trust.
    Trust(Bind),
    /// The view of control groups starts here.
    GroupNamespace,
    /// A resource limit.
    ResourceLimit { name: String, value: u64 },
    /// Become the session's own uid and map only it (root mode).
    Become { inside: u32 },
    /// All capability sets empty, locked by securebits.
    DropCapabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
    /// File rights by Landlock: read everything, write only here.
    Landlock { abi: u32, write: Vec<String>, devices: Vec<String>, scopes: bool },
    /// The allow-list of system calls. With `witness` what is executed and which connections are
    /// refused is reported to whoever has the other end of the line.
    Seccomp { reachable: usize, witness: bool },
    /// A container of an engine: everything that it is asked for.
    Container(Box<crate::engine::Container>),
    /// Look at these places, to be compared with what was mounted there, and at these paths, which
    /// should show nothing.
    Look { places: Vec<String>, hidden: Vec<String> },
    /// Read back what holds and report it; wait for the word to go.
    Verify,
    /// Run our own image with these arguments and report what it prints.
    Probe { argv: Vec<String> },
    /// Run the program.
    Run { argv: Vec<String>, builtin: bool, cwd: String, environment: Vec<(String, String)> },
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { "ro" } else { "rw" };
        write!(f, "bind {} at {} ({access},nosuid", self.source, self.target)?;
        if !self.devices {
            f.write_str(",nodev")?;
        }
        if let Some(o) = self.owner {
            write!(f, ",idmap {}:{} to the session", o.uid, o.gid)?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespaces { names } => write!(f, "new namespaces: {}", names.join(", ")),
            Self::MapCaller { inside } => write!(f, "map uid and gid {inside} to the caller's"),
            Self::JoinGroups { kinds } => write!(f, "join {}", kinds.join(", ")),
            Self::PrivateMounts => f.write_str("make every mount private"),
            Self::Root { bytes, inodes } => {
                write!(f, "tmpfs of {bytes} bytes, {inodes} inodes as the new root")
            }
            Self::Directory { path, mode } => write!(f, "directory {path} (mode {mode:04o})"),
            Self::File { path, contents } => write!(f, "file {path} ({} bytes)", contents.len()),
            Self::Symlink { path, to } => write!(f, "symlink {path} to {to}"),
            Self::Scratch { bytes, inodes, places } => {
                write!(f, "tmpfs of {bytes} bytes, {inodes} inodes for {}", places.join(", "))
            }
            Self::Bind(bind) => bind.fmt(f),
            Self::OwnBinary { source, target } => write!(f, "bind {source} at {target} (ro)"),
            Self::Proc => f.write_str("proc of the new PID namespace at /proc (hidepid=invisible)"),
            Self::ProcReadOnly { path } => write!(f, "read-only {path}"),
            Self::ProcMask { path, .. } => write!(f, "mask {path}"),
            Self::Mask(mask) => mask.fmt(f),
            Self::Terminals => f.write_str("devpts, new instance, at /dev/pts"),
            Self::Pivot => f.write_str("pivot_root, detach the host's root"),
            Self::SealRoot => f.write_str("remount / read-only"),
            Self::HostName { name } => write!(f, "host name {name}"),
            Self::Loopback => f.write_str("bring lo up"),
            Self::Listen { port, door } => write!(f, "listen on 127.0.0.1:{port} for {door}"),
            Self::Names => f.write_str("answer names on 127.0.0.1:53"),
            Self::DoorPort { port } => write!(f, "bind door port {port}"),
            Self::Trust(bind) => write!(f, "mount trust bundle: {bind}"),
            Self::GroupNamespace => f.write_str("new cgroup namespace"),
            Self::ResourceLimit { name, value } => write!(f, "rlimit {name} {value}"),
            Self::Become { inside } => {
                write!(f, "become the session's uid; user namespace with uid and gid {inside} only")
            }
            Self::DropCapabilities => f.write_str("drop all capabilities, lock securebits"),
            Self::NoNewPrivileges => f.write_str("no new privileges"),
            Self::Landlock { abi, write, devices, scopes } => {
                write!(f, "landlock ABI {abi}: read all, write {}", write.join(", "))?;
                write!(f, ", use {}", devices.join(", "))?;
                f.write_str(if *scopes { ", scope signals and abstract sockets" } else { "" })
            }
            Self::Seccomp { reachable, witness } => {
                write!(f, "seccomp allow-list, {reachable} system calls reachable")?;
                let reported = ", executions and refused connections reported";
                f.write_str(if *witness { reported } else { "" })
            }
            Self::Container(container) => container.fmt(f),
            Self::Look { places, hidden } => {
                write!(
                    f,
                    "look at {}; nothing to be seen at {}",
                    places.join(", "),
                    hidden.join(", ")
                )
            }
            Self::Verify => f.write_str("verify, report, wait"),
            Self::Probe { argv } => {
                let what: Vec<&str> = argv.iter().take(2).map(String::as_str).collect();
                write!(f, "run own image {what:?} and report what it prints")
            }
            Self::Run { argv, builtin, cwd, environment } => {
                let names: Vec<&str> = environment.iter().map(|(n, _)| n.as_str()).collect();
                let own = if *builtin { "own image " } else { "" };
                write!(f, "run {own}{argv:?} in {cwd} with [{}]", names.join(" "))
            }
        }
    }
}
