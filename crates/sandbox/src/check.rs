//! What a `SandboxSpec` must satisfy before anything starts.
//!
//! Pipeline: spec ─► shape (pure) ─► sources (looked at, no link followed) ─► `Sources`.
//! Init opens every source again with `RESOLVE_NO_SYMLINKS`, so a change in between is an error
//! there, never a way out.

use crate::error::{SpecError, SpecErrorKind as Kind};
use crate::facts::{HostFacts, Kind as FileKind, Source};
use crate::plan::Sources;
use crate::secrets::Mask;
use model::{Access, Backend, Command, DoorSpec, Limits, Network, RootFs, SandboxSpec, Workspace};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Largest spec as JSON: it must fit one packet to the spawner with room to spare.
pub(crate) const SPEC_BYTES_MAX: usize = 160 << 10;
/// More mounts than anybody grants; each costs three system calls at every start.
pub(crate) const MOUNTS_MAX: usize = 64;
/// Kernel: `PATH_MAX` without its zero.
const PATH_BYTES_MAX: usize = 4_095;
/// The smallest memory in which a shell starts.
const MEMORY_MIN: u64 = 4 << 20;
/// Names under which people keep keys. A source may neither be nor lie below one.
const SECRET_NAMES: [&str; 20] = [
    ".ssh",
    ".aws",
    ".gnupg",
    ".kube",
    ".docker",
    ".azure",
    ".password-store",
    ".netrc",
    ".pgpass",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    "gcloud",
    "keyrings",
    ".mozilla",
    ".vault-token",
    ".env",
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
];
/// Host directories that no grant may name, nor anything below them.
const FORBIDDEN_SOURCES: [&str; 8] =
    ["/proc", "/sys", "/dev", "/run", "/var/run", "/boot", "/etc", "/var/lib"];
/// Host directories whose programs and jobs the whole machine runs: what is written there acts
/// outside, so they are granted for reading only.
const SYSTEM_FOLDERS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32", "/var/spool", "/var/log"];
/// Targets that belong to the sandbox itself.
const RESERVED_TARGETS: [&str; 16] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/lib32",
    "/libx32",
    "/libexec",
    "/etc",
    "/dev",
    "/proc",
    "/sys",
    "/run",
    "/tmp",
    "/var",
    "/workspace",
];

/// Checks a spec against the host and looks at its sources, and at all that is in them.
///
/// # Errors
/// The first rule it breaks, with what to do about it.
pub fn check(spec: &SandboxSpec, facts: &HostFacts) -> Result<Sources, SpecError> {
    let sources = host(spec, facts)?;
    crate::disk::refuse(spec)?;
    Ok(Sources { masks: crate::secrets::masks(spec)?, ..sources })
}

/// What must be covered inside, where there is anything to look at. It takes as long as there are
/// files, so it is not the spawner's, for which others wait.
pub(crate) fn ahead(spec: &SandboxSpec, facts: &HostFacts) -> Result<Vec<Mask>, SpecError> {
    let own = matches!(spec.workspace, Workspace::Session(_)) && spec.mounts.is_empty();
    if own && spec.limits.disk_bytes.is_none() {
        return Ok(Vec::new());
    }
    check(spec, facts).map(|sources| sources.masks)
}

/// The part of [`check`] that takes no time to speak of.
pub(crate) fn host(spec: &SandboxSpec, facts: &HostFacts) -> Result<Sources, SpecError> {
    root(spec)?;
    limits(spec)?;
    command(spec)?;
    environment(spec)?;
    targets(spec)?;
    let mut sources = Sources::default();
    let mut own = |path: &Path, kind| -> Result<(), SpecError> {
        let source = look(path, &[kind])?;
        sources.owners.insert(path.to_path_buf(), source.owner);
        Ok(())
    };
    own(&spec.home, FileKind::Directory)?;
    if let RootFs::Image { tree, .. } = &spec.rootfs {
        own(tree, FileKind::Directory)?;
    }
    if let Network::Door(door) = &spec.network {
        ports(door)?;
        own(&door.socket, FileKind::Socket)?;
        if let Some(trust) = &door.trust {
            own(trust, FileKind::File)?;
        }
    }
    crate::interfaces::refuse(spec)?;
    match &spec.workspace {
        Workspace::Session(path) => own(path, FileKind::Directory)?,
        Workspace::User(path) => {
            granted(path, facts)?;
            written(path)?;
            own(path, FileKind::Directory)?;
        }
    }
    for mount in &spec.mounts {
        granted(&mount.source, facts)?;
        if mount.access == Access::Write {
            written(&mount.source)?;
        }
        let source = look(&mount.source, &[FileKind::Directory, FileKind::File])?;
        sources.owners.insert(mount.source.clone(), source.owner);
    }
    if let RootFs::Image { tree, .. } = &spec.rootfs {
        let own = crate::plan::own_places(spec);
        sources.image = crate::image::view(tree, &own, &crate::facts::BUNDLES)?;
    }
    Ok(sources)
}

/// A tree of our own store is bound piece by piece around the sandbox's places; an engine would be
/// asked for something else than was looked at.
fn root(spec: &SandboxSpec) -> Result<(), SpecError> {
    match (&spec.rootfs, &spec.backend) {
        (RootFs::HostUsr, _) | (RootFs::Image { .. }, Backend::Native) => Ok(()),
        (RootFs::Image { image, .. }, _) => {
            let name = spec.backend.name();
            let cause = format!("{name} does not use the image {image} of NanoClaw's own store");
            let remedy = format!(
                "name one that {name} has in `engine_image`, or write `backend = \"native\"`"
            );
            Err(SpecError::new(Kind::Backend, cause, remedy))
        }
    }
}

fn limits(spec: &SandboxSpec) -> Result<(), SpecError> {
    let l = &spec.limits;
    let rules = [
        ("memory", l.memory_bytes.value, MEMORY_MIN, 1 << 50),
        ("cpus (thousandths)", l.cpu_milli.value, 10, 4_096_000),
        ("pids", l.pids.value, 2, 4_194_304),
        ("file size", l.file_bytes, 1, i64::MAX as u64),
        ("open files", l.open_files, 16, 1 << 30),
        ("tmp", l.tmp_bytes, 4_096, 1 << 50),
    ];
    let asked =
        [("disk", l.disk_bytes, 1 << 20, 1 << 50), ("wall time (ms)", l.wall_ms, 1, 1 << 40)];
    let asked = asked.map(|(name, value, min, max)| (name, value.unwrap_or(min), min, max));
    for (name, value, min, max) in rules.into_iter().chain(asked) {
        if !(min..=max).contains(&value) {
            let cause = format!("the limit {name} is {value}");
            return Err(SpecError::new(Kind::Limit, cause, format!("use {min} to {max}")));
        }
    }
    beyond_the_machine(l)?;
    if spec.mounts.len() > MOUNTS_MAX {
        let cause = format!("{} mounts are asked for", spec.mounts.len());
        return Err(SpecError::new(Kind::Size, cause, format!("grant at most {MOUNTS_MAX}")));
    }
    Ok(())
}

/// A size that somebody wrote and that is more than all memory limits nothing. A default is for
/// machines of every size.
fn beyond_the_machine(l: &Limits) -> Result<(), SpecError> {
    let info = rustix::system::sysinfo();
    let has = info.totalram.saturating_mul(info.mem_unit.into());
    let default = Limits::default();
    let sizes = [
        ("memory", l.memory_bytes.value, l.memory_bytes == default.memory_bytes),
        ("tmp", l.tmp_bytes, l.tmp_bytes == default.tmp_bytes),
    ];
    match sizes.into_iter().find(|(_, value, is_default)| *value > has && !is_default) {
        None => Ok(()),
        Some((name, value, _)) => {
            let cause = format!("the limit {name} is {value} bytes, and this machine has {has}");
            Err(SpecError::new(Kind::Limit, cause, "write a size that leaves room for others"))
        }
    }
}

fn ports(door: &DoorSpec) -> Result<(), SpecError> {
    let bad = |cause: String| {
        let remedy = "let the rules name fewer ports, each of them 1 to 65535";
        Err(SpecError::new(Kind::Size, cause, remedy))
    };
    let max = DoorSpec::PORTS_MAX;
    if door.ports.len() > max {
        return bad(format!("the rules name {} ports, over {max}", door.ports.len()));
    }
    let seen: BTreeSet<u16> = door.ports.iter().copied().collect();
    if door.port == 0 || seen.contains(&0) || seen.len() < door.ports.len() {
        return bad("a port is 0 or named twice".into());
    }
    if door.port == crate::init::NAME_PORT {
        return bad("the door's port is the name server's".into());
    }
    Ok(())
}

fn command(spec: &SandboxSpec) -> Result<(), SpecError> {
    let (Command::Builtin(argv) | Command::Program(argv)) = &spec.command;
    let bad =
        |cause: &str| Err(SpecError::new(Kind::Command, cause, "name a program and its arguments"));
    if argv.first().is_none_or(String::is_empty) {
        return bad("the command is empty");
    }
    if argv.iter().any(|a| a.contains('\0')) {
        return bad("an argument holds a NUL byte");
    }
    absolute(&spec.cwd, "the working directory")
}

fn environment(spec: &SandboxSpec) -> Result<(), SpecError> {
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let cause = format!("the environment name {name:?} or its value cannot be passed");
            let remedy = "use a non-empty name without '=' and no NUL bytes";
            return Err(SpecError::new(Kind::Environment, cause, remedy));
        }
    }
    Ok(())
}

fn absolute(path: &Path, what: &str) -> Result<(), SpecError> {
    let text = path.as_os_str().as_encoded_bytes();
    let rebuilt: PathBuf = path.components().collect();
    let plain = path.components().skip(1).all(|c| matches!(c, Component::Normal(_)));
    let ok = path.is_absolute()
        && plain
        && rebuilt.as_os_str() == path.as_os_str()
        && path.to_str().is_some()
        && !text.iter().any(|b| *b == 0 || *b == b'\n')
        && text.len() <= PATH_BYTES_MAX;
    if ok {
        return Ok(());
    }
    let cause = format!("{what} {path:?} is not a plain absolute path");
    let remedy = "write it in UTF-8 from '/', without '.', '..', '//' or a final '/'";
    Err(SpecError::new(Kind::Path, cause, remedy))
}

fn targets(spec: &SandboxSpec) -> Result<(), SpecError> {
    let mut seen: Vec<&Path> = Vec::new();
    for mount in &spec.mounts {
        let target = mount.target.as_path();
        absolute(target, "the mount target")?;
        let over = |other: &Path| target.starts_with(other) || other.starts_with(target);
        let reserved = RESERVED_TARGETS.iter().map(Path::new).chain([Path::new("/home/agent")]);
        if let Some(other) = reserved.chain(seen.iter().copied()).find(|o| over(o)) {
            let cause = format!("the mount target {target:?} overlaps {other:?}");
            let remedy = "choose a place of its own, e.g. below /mnt";
            return Err(SpecError::new(Kind::Overlap, cause, remedy));
        }
        seen.push(target);
    }
    Ok(())
}

fn look(path: &Path, kinds: &[FileKind]) -> Result<Source, SpecError> {
    absolute(path, "the source")?;
    for part in path.ancestors() {
        match std::fs::symlink_metadata(part) {
            Err(e) => {
                let cause = format!("the source {path:?} cannot be used: {part:?}: {e}");
                return Err(SpecError::new(Kind::Missing, cause, "create it or correct the path"));
            }
            Ok(meta) if meta.is_symlink() => {
                let cause = format!("the source {path:?} goes through the symbolic link {part:?}");
                let remedy = "name the real path (see `realpath`)";
                return Err(SpecError::new(Kind::Symlink, cause, remedy));
            }
            Ok(_) => {}
        }
    }
    match Source::look(path) {
        Some(source) if kinds.contains(&source.kind) => Ok(source),
        _ => {
            let is = crate::facts::kind_word(path);
            let wanted: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            let cause = format!("the source {path:?} is {is}, not {}", wanted.join(" or "));
            Err(SpecError::new(Kind::Missing, cause, "name one that is"))
        }
    }
}

/// Whether a folder may be granted for writing.
fn written(path: &Path) -> Result<(), SpecError> {
    let overlaps = |f: &&&str| path.starts_with(f) || Path::new(f).starts_with(path);
    match SYSTEM_FOLDERS.iter().find(overlaps) {
        None => Ok(()),
        Some(base) => {
            let cause = format!("the source {path:?} lies in {base:?}, which the whole host runs");
            let remedy = "grant it for reading only, or a folder of your own for writing";
            Err(SpecError::new(Kind::Secret, cause, remedy))
        }
    }
}

fn granted(path: &Path, facts: &HostFacts) -> Result<(), SpecError> {
    absolute(path, "the source")?;
    let refuse = |why: String| {
        let cause = format!("the source {path:?} {why}");
        Err(SpecError::new(Kind::Secret, cause, "grant only the folder the agent works on"))
    };
    if path == Path::new("/") {
        return refuse("is the whole host".into());
    }
    let secret = path.iter().filter_map(|c| c.to_str()).find(|c| SECRET_NAMES.contains(c));
    if let Some(name) = secret {
        return refuse(format!("lies in {name:?}, where people keep keys"));
    }
    if let Some(base) =
        FORBIDDEN_SOURCES.iter().find(|f| path.starts_with(f) || Path::new(f).starts_with(path))
    {
        return refuse(format!("lies in {base}, which belongs to the host"));
    }
    if let Some(home) = facts.homes.iter().find(|h| h.starts_with(path)) {
        return refuse(format!("is or contains the home directory {home:?}"));
    }
    let overlap = |p: &&PathBuf| p.starts_with(path) || path.starts_with(p);
    if let Some(own) = facts.private.iter().find(overlap) {
        return refuse(format!("overlaps {own:?}, where NanoClaw keeps its state"));
    }
    Ok(())
}
