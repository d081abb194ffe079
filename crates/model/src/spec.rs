//! `SandboxSpec`: everything a backend needs to know to make one sandbox, decided beforehand.

use crate::{AgentName, ImageRef, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a sandbox is. Policy produced it; the sandbox crate only carries it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Whose sandbox it is.
    pub session: SessionId,
    /// Which agent runs in it.
    pub agent: AgentName,
    /// What makes it.
    #[serde(default)]
    pub backend: Backend,
    /// What is its `/`.
    pub rootfs: RootFs,
    /// What is its `/workspace`.
    pub workspace: Workspace,
    /// Host directory that becomes the home; the session's own, kept as long as the session.
    pub home: PathBuf,
    /// Further folders, by grant only.
    pub mounts: Vec<Mount>,
    /// The way out, or none at all.
    pub network: Network,
    /// The complete environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// Arguments for our own binary, run inside after the last wall and before the command; what
    /// it prints comes with the report of the prepared sandbox. Empty: nothing is run.
    #[serde(default)]
    pub probe: Vec<String>,
    /// What runs.
    pub command: Command,
    /// Working directory inside.
    pub cwd: PathBuf,
    /// Its limits.
    pub limits: Limits,
    /// Whether what it executes, and which connections it is refused, is reported from the kernel.
    pub witness: bool,
}

/// What makes a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// NanoClaw itself, with the kernel's own means.
    #[default]
    Native,
    /// A container of this machine's Docker.
    Docker(EngineChoice),
    /// A container of this machine's Podman.
    Podman(EngineChoice),
    /// A virtual machine of Apple's `container` (macOS), and in it a sandbox as natively made.
    Apple(EngineChoice),
}

impl Backend {
    /// As people write it and records say it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker(_) => "docker",
            Self::Podman(_) => "podman",
            Self::Apple(_) => "apple",
        }
    }
}

/// What a container engine is to use instead of its own defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineChoice {
    /// An image that the engine has already, by digest: `sha256:…` (its id) or `name@sha256:…`.
    /// Without one the root is the host's `/usr`. Nothing is ever pulled.
    pub image: Option<String>,
    /// A runtime that the engine knows by this name (`crun`, `runsc`).
    pub runtime: Option<String>,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootFs {
    /// The host's `/usr`, read-only, with a synthetic `/etc`.
    HostUsr,
    /// An image, read-only; what is the sandbox's own (`/dev`, `/proc`, `/tmp`, names in `/etc`)
    /// stands in its place.
    Image {
        /// Which.
        image: ImageRef,
        /// Its unpacked tree on the host.
        tree: PathBuf,
    },
}

/// `/workspace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workspace {
    /// A directory made for this session alone; the sandbox's uid owns it.
    Session(PathBuf),
    /// A folder of the user's, mounted so that files keep their owner. Its host path also
    /// resolves inside (a symlink to `/workspace`), so that virtualenvs work.
    User(PathBuf),
}

/// A granted folder or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Host path, absolute, without symlinks.
    pub source: PathBuf,
    /// Path inside, absolute, normalised.
    pub target: PathBuf,
    /// Read or write.
    pub access: Access,
}

/// What may be done to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// The network of a sandbox: always its own, with loopback only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// No way out at all.
    None,
    /// One socket out.
    Door(DoorSpec),
}

/// The door: a Unix socket outside, a path and a loopback port inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorSpec {
    /// The gateway's listening socket for this session, on the host.
    pub socket: PathBuf,
    /// Port on `127.0.0.1` inside that init relays to the socket.
    pub port: u16,
    /// Ports of permitted hosts. Programs that know nothing of proxies reach every permitted name
    /// at these; at most [`Self::PORTS_MAX`], none twice, none 0.
    pub ports: Vec<u16>,
    /// Host path of the certificates to trust inside (PEM), in place of the host's own bundle.
    pub trust: Option<PathBuf>,
}

impl DoorSpec {
    /// Where the socket appears inside.
    pub const INSIDE: &'static str = "/run/nanoclaw/door.sock";
    /// Ports that one agent's rules may name. Each is a listening socket in every sandbox.
    pub const PORTS_MAX: usize = 64;
    /// Where the certificates to trust appear inside, besides the usual places.
    pub const TRUST_INSIDE: &'static str = "/run/nanoclaw/trust.pem";
}

/// What runs in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Our own binary in one of its inner roles (`__agent`), taken from the sealed memory file.
    Builtin(Vec<String>),
    /// Any program: argv, looked up in the sandbox's own PATH.
    Program(Vec<String>),
}

/// How firmly a limit is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strictness {
    /// A cgroup must enforce it, or the session does not start (limits written by a person).
    Required,
    /// The named fallback will do (built-in defaults, or `limits = "fallback"`).
    Fallback,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Its value, in the unit its field names.
    pub value: u64,
    /// How firmly.
    pub strictness: Strictness,
}

impl Limit {
    /// A built-in default: the fallback will do.
    #[must_use]
    pub const fn default_of(value: u64) -> Self {
        Self { value, strictness: Strictness::Fallback }
    }
}

/// The limits of a sandbox. There is no "unlimited" but for disk and time, which must be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together, bytes.
    pub memory_bytes: Limit,
    /// CPU time per wall time, in thousandths of one CPU.
    pub cpu_milli: Limit,
    /// Processes and threads together.
    pub pids: Limit,
    /// Largest single file, bytes (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
    /// Open descriptors per process (`RLIMIT_NOFILE`).
    pub open_files: u64,
    /// Size of the private `/tmp` and other tmpfs, bytes.
    pub tmp_bytes: u64,
    /// Room on the disk of what the session has written to its home and its own workspace, bytes,
    /// as `du` counts it; `None`: not counted. Folders of the user's are no part of it.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// How long it may run from its program's start, milliseconds; `None`: as long as it likes.
    #[serde(default)]
    pub wall_ms: Option<u64>,
}

impl Default for Limits {
    /// Enough for a compiler or a headless browser, little enough that twenty such sessions do
    /// not take a laptop down.
    fn default() -> Self {
        Self {
            memory_bytes: Limit::default_of(1 << 30),
            cpu_milli: Limit::default_of(1_000),
            pids: Limit::default_of(256),
            file_bytes: 2 << 30,
            open_files: 4_096,
            tmp_bytes: 256 << 20,
            disk_bytes: None,
            wall_ms: None,
        }
    }
}
