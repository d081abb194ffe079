//! `SandboxSpec` and `HostFacts` to an ordered list of steps. Data before action.
//!
//! Pipeline: spec (checked) + facts ─► `plan` ─► steps ─► printed, hashed, executed by init.
//!
//! Invariants:
//! 1. Pure: no file is read here; the same input gives the same steps.
//! 2. Nothing names a session's uid, pid or cgroup directory, so a plan's hash depends on the
//!    spec and the host only.
//! 3. Order is safety: mounts before identity, identity before capabilities, Landlock before
//!    seccomp, seccomp last.

use crate::facts::{HostEntry, HostFacts, Mode, Rung};
use crate::image::{ImageEntry, ImageView};
use crate::secrets::Mask;
use crate::step::{Bind, Owner, Step};
use model::{Access, Backend, Command, DoorSpec, Network, RootFs, SandboxSpec, Workspace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The uid and gid every sandbox has inside.
pub(crate) const INSIDE_ID: u32 = 1000;
/// The owner on disk of what belongs to sessions in root mode: far above what distributions and
/// directory services hand out, below 2^31, and never the uid of any process.
pub const DISK_OWNER: Owner = Owner { uid: 1_879_048_191, gid: 1_879_048_191 };
/// The root holds directories and a few short files; one MiB is twice what they need.
const ROOT_BYTES: u64 = 1 << 20;
/// One inode each; mount targets and a workspace's host path add a handful.
const ROOT_INODES: u64 = 1_024;
/// Inodes cost kernel memory; with a cgroup they are charged, without one this bounds them.
const SCRATCH_INODES: u64 = 131_072;
/// Home inside.
pub(crate) const HOME: &str = "/home/agent";
/// Workspace inside.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Our own binary inside.
pub const BINARY_INSIDE: &str = "/run/nanoclaw/nanoclaw";
/// What covers a file that may hold keys: empty.
pub(crate) const MASK: &str = "/run/nanoclaw/masked";
/// Private writable places, all on one tmpfs.
pub(crate) const SCRATCH: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run/user/1000"];
/// Every question is answered within four seconds, if need be with a failure; then once more. The
/// default of five seconds is written out, for musl, Go and c-ares have others.
const RESOLVER: &str = "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n";
/// Where OpenSSL, GnuTLS, Go and their users look: Debian's name, the BSDs', Red Hat's.
const CUSTOMARY_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"];
/// Where programs look up who answers questions for names.
const RESOLVER_FILE: &str = "/etc/resolv.conf";
/// The sandbox's own files in `/etc`. A constant machine id: the host's own is an identifier that
/// nothing inside needs.
const ETC_FILES: [(&str, &str); 6] = [
    (
        "/etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\n\
         agent:x:1000:1000:agent:/home/agent:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    ("/etc/group", "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
    ("/etc/hostname", "sandbox\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("/etc/machine-id", "00000000000000000000000000000001\n"),
];
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Everything init will do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The bytes whose digest names this plan on the audit log: its steps as compact JSON, fields
    /// in declaration order. They are bytes to hash, not to show: environment values stand in
    /// them.
    #[must_use]
    pub fn sha256_input(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Places that are covered inside, for they may hold keys, whoever makes the sandbox.
    pub fn masks(&self) -> impl Iterator<Item = &Mask> {
        self.steps.iter().flat_map(|step| match step {
            Step::Mask(mask) => std::slice::from_ref(mask),
            Step::Container(container) => container.masks.as_slice(),
            _ => &[],
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>3}. {step}", number + 1)?;
        }
        Ok(())
    }
}

/// What was found of the sources a spec names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Who owns them on disk.
    pub owners: BTreeMap<PathBuf, Owner>,
    /// What of the image is shown, where the root file system is one.
    pub image: ImageView,
    /// Places below what is granted that are covered, for they may hold keys.
    pub masks: Vec<Mask>,
}

impl<const N: usize> From<[(PathBuf, Owner); N]> for Sources {
    fn from(owners: [(PathBuf, Owner); N]) -> Self {
        Self { owners: owners.into(), ..Self::default() }
    }
}

/// Turns a checked spec into steps. Use [`crate::check`] first; `sources` come from it. For a
/// container engine the first step is the container, as a rootful engine of this machine would be
/// asked for it, and the others are what its first process does. For a virtual machine the steps
/// are those of one like this machine: the guest plans with its own facts.
#[must_use]
pub fn plan(spec: &SandboxSpec, facts: &HostFacts, sources: &Sources) -> Plan {
    match &spec.backend {
        Backend::Native | Backend::Apple(_) => native(spec, facts, sources),
        Backend::Docker(_) | Backend::Podman(_) => {
            let inside = crate::engine::identity(facts.mode);
            crate::engine::translate(spec, facts, &native(spec, facts, sources), inside)
        }
    }
}

/// All steps that NanoClaw itself carries out.
pub(crate) fn native(spec: &SandboxSpec, facts: &HostFacts, sources: &Sources) -> Plan {
    let mut steps = match &spec.rootfs {
        RootFs::HostUsr => common(facts, spec.limits.tmp_bytes),
        RootFs::Image { tree, .. } => imaged(spec, tree, facts, sources),
    };
    session(spec, facts, sources, &mut steps);
    steps.extend([Step::Pivot, Step::SealRoot]);
    if let Network::Door(door) = &spec.network {
        steps.push(Step::Listen { port: door.port, door: DoorSpec::INSIDE.into() });
        steps.push(Step::Names);
        steps.extend(door.ports.iter().map(|port| Step::DoorPort { port: *port }));
    }
    confine(spec, facts, &mut steps);
    run(spec, &mut steps);
    Plan { steps }
}

/// The steps that every plan of this host begins with: what can be done before anybody asks for
/// a sandbox. Nothing in them comes from a session.
pub(crate) fn common(facts: &HostFacts, tmp_bytes: u64) -> Vec<Step> {
    let mut steps = Vec::with_capacity(100);
    begin(facts, &mut steps);
    system(facts, &mut steps);
    etc(&mut steps);
    entries(&facts.etc, &mut steps);
    furnish(facts, tmp_bytes, &mut steps);
    steps
}

/// As [`common`], with an image in place of the host's `/usr`.
fn imaged(spec: &SandboxSpec, tree: &Path, facts: &HostFacts, sources: &Sources) -> Vec<Step> {
    let mut steps = Vec::with_capacity(200);
    begin(facts, &mut steps);
    let inodes = ROOT_INODES + sources.image.entries.len() as u64;
    steps.push(Step::Root { bytes: ROOT_BYTES, inodes });
    folders(&mut steps);
    for entry in &sources.image.entries {
        steps.push(match entry {
            ImageEntry::Directory(path) => dir(path, 0o755),
            ImageEntry::Link(path, to) => Step::Symlink { path: path.clone(), to: to.clone() },
            ImageEntry::Tree(path) => {
                let source = format!("{}{path}", text(tree));
                let owner = sources.owners.get(tree).copied().filter(|_| facts.mode == Mode::Root);
                Step::Bind(Bind { strict: true, owner, ..bind(&source, path, true) })
            }
        });
    }
    etc(&mut steps);
    furnish(facts, spec.limits.tmp_bytes, &mut steps);
    steps
}

/// Places inside that are the sandbox's own, whatever an image has there.
pub(crate) fn own_places(spec: &SandboxSpec) -> Vec<PathBuf> {
    let fixed = ["/dev", "/proc", "/sys", "/run", "/var/run", HOME, WORKSPACE];
    let files = ETC_FILES.iter().map(|(path, _)| *path).chain([RESOLVER_FILE]);
    let all = fixed.into_iter().chain(SCRATCH).chain(files);
    let mut all: Vec<PathBuf> = all.map(PathBuf::from).collect();
    all.extend(spec.mounts.iter().map(|m| m.target.clone()));
    if let Workspace::User(path) = &spec.workspace
        && link_possible(path, spec)
    {
        all.push(path.clone());
    }
    all
}

/// What every root has, whosever programs are in it.
fn furnish(facts: &HostFacts, tmp_bytes: u64, steps: &mut Vec<Step>) {
    devices(steps);
    scratch(tmp_bytes, steps);
    proc(facts, steps);
    if let Some(source) = &facts.binary {
        steps.push(Step::OwnBinary { source: source.clone(), target: BINARY_INSIDE.into() });
    }
    steps.push(Step::HostName { name: "sandbox".into() });
    steps.push(Step::Loopback);
    groups(facts, steps);
}

fn begin(facts: &HostFacts, steps: &mut Vec<Step>) {
    let mut names = vec!["mount", "pid", "network", "ipc", "uts"];
    if facts.mode == Mode::User {
        names.push("user");
    }
    steps.push(Step::Namespaces { names: names.into_iter().map(str::to_owned).collect() });
    if facts.mode == Mode::User {
        steps.push(Step::MapCaller { inside: INSIDE_ID });
    }
    steps.push(Step::PrivateMounts);
}

/// Late: the spawner makes the groups while the steps before are carried out.
fn groups(facts: &HostFacts, steps: &mut Vec<Step>) {
    let mut kinds = Vec::new();
    for (name, rung) in
        [("memory", facts.ladder.memory), ("cpu", facts.ladder.cpu), ("pids", facts.ladder.pids)]
    {
        match rung {
            Rung::V1 => kinds.push(format!("cgroup v1 {name}")),
            Rung::V2 => kinds.push(format!("cgroup v2 {name}")),
            Rung::Fallback => {}
        }
    }
    if !kinds.is_empty() {
        steps.push(Step::JoinGroups { kinds });
    }
}

fn bind(source: &str, target: &str, read_only: bool) -> Bind {
    Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        devices: false,
        strict: false,
        owner: None,
    }
}

fn dir(path: impl Into<String>, mode: u32) -> Step {
    Step::Directory { path: path.into(), mode }
}

fn system(facts: &HostFacts, steps: &mut Vec<Step>) {
    steps.push(Step::Root { bytes: ROOT_BYTES, inodes: ROOT_INODES });
    steps.push(dir("/usr", 0o755));
    folders(steps);
    steps.push(Step::Bind(bind("/usr", "/usr", true)));
    entries(&facts.root, steps);
}

fn folders(steps: &mut Vec<Step>) {
    for path in ["/etc", "/dev", "/dev/pts", "/dev/shm", "/proc", "/tmp", "/var"] {
        steps.push(dir(path, 0o755));
    }
    for path in
        ["/var/tmp", "/run", "/run/user", "/run/user/1000", "/run/nanoclaw", "/run/empty", "/home"]
    {
        steps.push(dir(path, 0o755));
    }
    steps.push(dir(HOME, 0o755));
    steps.push(dir(WORKSPACE, 0o755));
    steps.push(Step::Symlink { path: "/var/run".into(), to: "/run".into() });
}

fn entries(entries: &[HostEntry], steps: &mut Vec<Step>) {
    for entry in entries {
        match entry {
            HostEntry::Link(path, to) => {
                steps.push(Step::Symlink { path: path.clone(), to: to.clone() });
            }
            HostEntry::Tree(path) => steps.push(Step::Bind(bind(path, path, true))),
        }
    }
}

fn etc(steps: &mut Vec<Step>) {
    for (path, contents) in ETC_FILES {
        steps.push(Step::File { path: path.into(), contents: contents.into() });
    }
}

fn devices(steps: &mut Vec<Step>) {
    for path in DEVICES {
        steps.push(Step::Bind(Bind { devices: true, ..bind(path, path, false) }));
    }
    for (path, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        steps.push(Step::Symlink { path: path.into(), to: to.into() });
    }
    steps.push(Step::Terminals);
}

/// Comes before `/proc`: the scratch tmpfs itself ends up covered by it, only its parts show.
fn scratch(bytes: u64, steps: &mut Vec<Step>) {
    steps.push(Step::Scratch {
        bytes,
        inodes: SCRATCH_INODES,
        places: SCRATCH.iter().map(|p| (*p).to_owned()).collect(),
    });
}

fn proc(facts: &HostFacts, steps: &mut Vec<Step>) {
    steps.push(Step::Proc);
    for path in &facts.proc_read_only {
        steps.push(Step::ProcReadOnly { path: path.clone() });
    }
    for (path, directory) in &facts.proc_masks {
        steps.push(Step::ProcMask { path: path.clone(), directory: *directory });
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn session(spec: &SandboxSpec, facts: &HostFacts, sources: &Sources, steps: &mut Vec<Step>) {
    let strict = |source: &Path, target: &str, read_only| {
        let owner = match facts.mode {
            Mode::Root => sources.owners.get(source).copied(),
            Mode::User => None,
        };
        Step::Bind(Bind { strict: true, owner, ..bind(&text(source), target, read_only) })
    };
    steps.push(strict(&spec.home, HOME, false));
    let (Workspace::Session(workspace) | Workspace::User(workspace)) = &spec.workspace;
    steps.push(strict(workspace, WORKSPACE, false));
    for mount in &spec.mounts {
        let target = text(&mount.target);
        steps.extend(parents(&mount.target).map(|p| dir(p, 0o755)));
        steps.push(strict(&mount.source, &target, mount.access == Access::Read));
    }
    mask(&sources.masks, steps);
    if let Workspace::User(path) = &spec.workspace
        && link_possible(path, spec)
    {
        steps.extend(parents(path).map(|p| dir(p, 0o755)));
        steps.push(Step::Symlink { path: text(path), to: WORKSPACE.into() });
    }
    let contents = match &spec.network {
        Network::Door(_) => RESOLVER,
        Network::None => "",
    };
    steps.push(Step::File { path: RESOLVER_FILE.into(), contents: contents.into() });
    if let Network::Door(door) = &spec.network {
        steps.push(strict(&door.socket, DoorSpec::INSIDE, true));
        if let Some(Step::Bind(bundle)) = door.trust.as_ref().map(|p| strict(p, "", true)) {
            match &spec.rootfs {
                RootFs::HostUsr => trust(&bundle, &facts.bundles, |p| shown(facts, p), steps),
                RootFs::Image { .. } => {
                    let image = &sources.image;
                    trust(&bundle, &image.bundles, |p| image.has(p), steps);
                }
            }
        }
    }
}

/// After everything that is granted, for it lies on top.
fn mask(masks: &[Mask], steps: &mut Vec<Step>) {
    if masks.is_empty() {
        return;
    }
    steps.push(Step::File { path: MASK.into(), contents: String::new() });
    steps.extend(masks.iter().cloned().map(Step::Mask));
}

/// Whether a path lies in what is taken of the host's `/etc`.
fn shown(facts: &HostFacts, path: &Path) -> bool {
    facts.etc.iter().any(|e| match e {
        HostEntry::Link(base, _) | HostEntry::Tree(base) => path.starts_with(base),
    })
}

/// At a place of its own, over every bundle that is there already (`bundles`), and under the
/// customary names that lie in no part of somebody else's (`theirs`).
fn trust(bundle: &Bind, bundles: &[String], theirs: impl Fn(&Path) -> bool, steps: &mut Vec<Step>) {
    let at = |target: &str| Step::Trust(Bind { target: target.to_owned(), ..bundle.clone() });
    steps.push(at(DoorSpec::TRUST_INSIDE));
    steps.extend(bundles.iter().map(|place| at(place)));
    for path in CUSTOMARY_BUNDLES.map(Path::new).iter().filter(|p| !theirs(p)) {
        steps.extend(parents(path).filter(|p| p != "/etc").map(|p| dir(p, 0o755)));
        steps.push(Step::Symlink { path: text(path), to: DoorSpec::TRUST_INSIDE.into() });
    }
}

/// `/a/b/c` gives `/a`, `/a/b`.
fn parents(path: &Path) -> impl Iterator<Item = String> {
    let mut list: Vec<String> =
        path.ancestors().skip(1).filter(|p| *p != Path::new("/")).map(text).collect();
    list.reverse();
    list.into_iter()
}

/// The host path of a user's workspace can appear inside unless something else is there.
fn link_possible(path: &Path, spec: &SandboxSpec) -> bool {
    let taken = ["/usr", "/etc", "/dev", "/proc", "/run", "/bin", "/sbin", "/lib", "/lib64"];
    let own = [WORKSPACE, HOME];
    let under = |base: &&str| path.starts_with(base);
    !taken.iter().any(under)
        && !own.iter().any(under)
        && !own.iter().any(|o| Path::new(o).starts_with(path))
        && !SCRATCH.iter().any(|s| Path::new(s).starts_with(path))
        && !spec.mounts.iter().any(|m| path.starts_with(&m.target) || m.target.starts_with(path))
}

fn confine(spec: &SandboxSpec, facts: &HostFacts, steps: &mut Vec<Step>) {
    steps.push(Step::GroupNamespace);
    let limits = &spec.limits;
    let mut rlimits = vec![
        ("fsize", limits.file_bytes),
        ("nofile", limits.open_files),
        ("core", 0),
        ("nproc", limits.pids.value),
    ];
    if facts.ladder.memory == Rung::Fallback {
        rlimits.push(("data", limits.memory_bytes.value));
    }
    steps.extend(
        rlimits.into_iter().map(|(name, value)| Step::ResourceLimit { name: name.into(), value }),
    );
    if facts.mode == Mode::Root {
        steps.push(Step::Become { inside: INSIDE_ID });
    }
    steps.extend([Step::DropCapabilities, Step::NoNewPrivileges]);
    let mut write: Vec<String> = [WORKSPACE, HOME].iter().map(|p| (*p).to_owned()).collect();
    write.extend(SCRATCH.iter().map(|p| (*p).to_owned()));
    let granted = spec.mounts.iter().filter(|m| m.access == Access::Write);
    write.extend(granted.map(|m| text(&m.target)));
    let mut devices: Vec<String> = DEVICES.iter().map(|p| (*p).to_owned()).collect();
    devices.push("/dev/pts".into());
    steps.push(Step::Landlock {
        abi: facts.landlock_abi,
        write,
        devices,
        scopes: facts.landlock_abi >= 6,
    });
    let reachable = crate::seccomp::reachable_syscalls();
    steps.push(Step::Seccomp { reachable, witness: spec.witness });
    steps.push(Step::Verify);
}

fn run(spec: &SandboxSpec, steps: &mut Vec<Step>) {
    if !spec.probe.is_empty() {
        steps.push(Step::Probe { argv: spec.probe.clone() });
    }
    let (argv, builtin) = match &spec.command {
        Command::Builtin(argv) => (argv.clone(), true),
        Command::Program(argv) => (argv.clone(), false),
    };
    let environment = spec.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    steps.push(Step::Run { argv, builtin, cwd: text(&spec.cwd), environment });
}
