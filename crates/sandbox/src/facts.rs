//! Facts about the host that a plan depends on, gathered once, and facts about the sources that
//! one spec names.
//!
//! Pipeline: host ─► `HostFacts` ─► `plan`. Reading is the only effect here.

use crate::sys;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Parts of `/etc` that programs need and that name no secret; taken when present.
const ETC: [&str; 9] = [
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/localtime",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies",
    "/etc/mime.types",
];
/// Bundles of certificate authorities, as distributions place them.
pub(crate) const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// Names beside `/usr` at the root that a dynamic linker or a `#!` line may use.
const ROOT_LINKS: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32", "/libexec"];
/// Entries of `/proc` that tell of or change the host.
const PROC_MASKS: [&str; 13] = [
    "/proc/cmdline",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/keys",
    "/proc/key-users",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/latency_stats",
    "/proc/acpi",
    "/proc/scsi",
    "/proc/firmware",
    "/proc/interrupts",
];
/// Trees of `/proc` that must not be written.
const PROC_READ_ONLY: [&str; 4] = ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"];
/// Highest Landlock ABI whose rights are used here; newer ones are asked for only after review
/// (ABI 9 would also cut the connection to the door).
pub(crate) const LANDLOCK_VETTED: u32 = 7;

/// Under which privilege sandboxes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Real root: an own uid for each session, id-mapped folders.
    Root,
    /// A plain user with unprivileged user namespaces.
    User,
}

/// A directory or link of the host's root or `/etc`, as the sandbox will have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostEntry {
    /// A symbolic link, kept as such.
    Link(String, String),
    /// Something to bind read-only.
    Tree(String),
}

/// What enforces one kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// cgroup v2.
    V2,
    /// cgroup v1.
    V1,
    /// The named fallback.
    Fallback,
}

/// The rung reached by each limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// Memory of all processes.
    pub memory: Rung,
    /// CPU bandwidth.
    pub cpu: Rung,
    /// Number of tasks.
    pub pids: Rung,
}

impl Ladder {
    /// No cgroup at all.
    pub const NONE: Self =
        Self { memory: Rung::Fallback, cpu: Rung::Fallback, pids: Rung::Fallback };
}

/// What a plan depends on besides the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Privilege.
    pub mode: Mode,
    /// `/bin`, `/lib` and so on.
    pub root: Vec<HostEntry>,
    /// What of `/etc` is taken.
    pub etc: Vec<HostEntry>,
    /// Files in what is taken of `/etc` that hold the certificate authorities to trust.
    pub bundles: Vec<String>,
    /// Entries of `/proc` to cover; `true` for directories.
    pub proc_masks: Vec<(String, bool)>,
    /// Trees of `/proc` to make read-only.
    pub proc_read_only: Vec<String>,
    /// Own executable, when everyone may read and execute it.
    pub binary: Option<String>,
    /// Landlock ABI to use; 0 when there is none.
    pub landlock_abi: u32,
    /// What enforces the limits.
    pub ladder: Ladder,
    /// Home directories of people on this machine: never mounted whole.
    pub homes: Vec<PathBuf>,
    /// Directories of NanoClaw itself: never mounted by grant.
    pub private: Vec<PathBuf>,
}

impl HostFacts {
    /// Reads them. `private` are the directories that hold NanoClaw's own state.
    #[must_use]
    pub fn gather(private: Vec<PathBuf>) -> Self {
        let root_mode = rustix::process::geteuid().is_root() && has_admin_capability();
        let etc: Vec<HostEntry> = ETC.iter().filter_map(|p| entry(p)).collect();
        Self {
            mode: if root_mode { Mode::Root } else { Mode::User },
            root: ROOT_LINKS.iter().filter_map(|p| entry(p)).collect(),
            bundles: bundles(&etc),
            etc,
            proc_masks: PROC_MASKS
                .iter()
                .filter_map(|p| Some(((*p).to_owned(), fs::metadata(p).ok()?.is_dir())))
                .collect(),
            proc_read_only: PROC_READ_ONLY
                .iter()
                .filter(|p| Path::new(p).is_dir())
                .map(|p| (*p).to_owned())
                .collect(),
            binary: own_binary(),
            landlock_abi: sys::landlock_abi().min(LANDLOCK_VETTED),
            ladder: crate::cgroup::Parent::find().map_or(Ladder::NONE, |p| p.ladder()),
            homes: homes(),
            private,
        }
    }
}

/// The files that the customary names lead to, each once, as far as the sandbox has them.
fn bundles(etc: &[HostEntry]) -> Vec<String> {
    let taken = |path: &PathBuf| {
        etc.iter().any(|e| matches!(e, HostEntry::Tree(base) if path.starts_with(base)))
    };
    let real = BUNDLES.iter().filter_map(|p| fs::canonicalize(p).ok());
    let mut found: Vec<String> = real
        .filter(|p| p.is_file() && taken(p))
        .filter_map(|p| p.into_os_string().into_string().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn has_admin_capability() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn entry(path: &str) -> Option<HostEntry> {
    let meta = fs::symlink_metadata(path).ok()?;
    if meta.is_symlink() {
        let to = fs::read_link(path).ok()?.into_os_string().into_string().ok()?;
        fs::metadata(path).ok()?;
        return Some(HostEntry::Link(path.to_owned(), to));
    }
    Some(HostEntry::Tree(path.to_owned()))
}

fn own_binary() -> Option<String> {
    const READ_AND_EXECUTE_BY_ALL: u32 = 0o005;
    let path = fs::read_link("/proc/self/exe").ok()?;
    let mode = fs::metadata(&path).ok()?.permissions().mode();
    (mode & READ_AND_EXECUTE_BY_ALL == READ_AND_EXECUTE_BY_ALL)
        .then(|| path.into_os_string().into_string().ok())?
}

fn homes() -> Vec<PathBuf> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let listed = passwd.lines().filter_map(|l| l.split(':').nth(5)).map(PathBuf::from);
    let own = std::env::var_os("HOME").map(PathBuf::from);
    let mut homes: Vec<PathBuf> = listed
        .chain(own)
        .filter(|p| p.starts_with("/home") || p.starts_with("/root") || p.starts_with("/Users"))
        .collect();
    homes.sort();
    homes.dedup();
    homes
}

/// What a path on the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Socket,
}

impl Kind {
    /// With its article.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Directory => "a folder",
            Self::File => "a file",
            Self::Socket => "a socket",
        }
    }
}

/// What stands at `path`, with its article, in messages.
pub(crate) fn kind_word(path: &Path) -> &'static str {
    match fs::symlink_metadata(path).map(|meta| meta.file_type()) {
        Ok(t) if t.is_fifo() => "a FIFO",
        Ok(t) if t.is_block_device() => "a block device",
        Ok(t) if t.is_char_device() => "a character device",
        Ok(t) if t.is_symlink() => "a symbolic link",
        _ => Source::look(path).map_or("gone", |source| source.kind.word()),
    }
}

/// A source that was looked at without following links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) kind: Kind,
    pub(crate) owner: crate::step::Owner,
}

impl Source {
    /// Looks at `path`; `None` when it is missing or none of the three kinds.
    pub(crate) fn look(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let kind = match meta.file_type() {
            t if t.is_dir() => Kind::Directory,
            t if t.is_file() => Kind::File,
            t if t.is_socket() => Kind::Socket,
            _ => return None,
        };
        let owner = crate::step::Owner { uid: meta.uid(), gid: meta.gid() };
        Some(Self { kind, owner })
    }
}
