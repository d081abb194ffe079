//! Where an engine is, and whether it will do.
//!
//! Pipeline: environment ─► socket ─► version, info ─► `judge` ─► `Facts`, or what to do instead.
//!
//! Invariants:
//! 1. Pure but for reading the environment.
//! 2. An engine that runs on another kernel, or cannot limit what it starts, is refused before
//!    anything is made. What it says of itself is believed only to refuse; what it made is
//!    measured.

use super::api::{Info, Version};
use crate::error::{StartError, StartErrorKind};
use std::path::{Path, PathBuf};

/// Which program answers. Both take the same requests, and read some fields differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Docker,
    Podman,
}

/// What was found of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// Name and version, for people.
    pub(super) title: String,
    /// It runs without root's rights.
    pub(super) rootless: bool,
    /// It maps the ids in its containers to others.
    pub(super) remaps: bool,
    /// It labels its containers for SELinux.
    pub(super) labels: bool,
    /// It gives no namespace of control groups: Podman, where those are of version 1, whatever its
    /// settings and the request say.
    pub(super) shares_group_names: bool,
    /// The runtimes it knows by name.
    pub(super) runtimes: Vec<String>,
    /// The one it takes when none is named.
    pub(super) default_runtime: String,
}

/// The socket of the engine that an agent's file calls `name`.
pub(super) fn socket(name: &str, given: Option<&Path>) -> Result<PathBuf, StartError> {
    let user = rustix::process::geteuid();
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime_dir = runtime_dir.filter(|_| !user.is_root());
    let (variable, own, system) = match name {
        "podman" => ("CONTAINER_HOST", "podman/podman.sock", "/run/podman/podman.sock"),
        _ => ("DOCKER_HOST", "docker.sock", "/var/run/docker.sock"),
    };
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(value) = std::env::var(variable).ok().filter(|v| !v.is_empty()) {
        return named(variable, &value);
    }
    let own = runtime_dir.map(|dir| dir.join(own)).filter(|path| path.exists());
    Ok(own.unwrap_or_else(|| PathBuf::from(system)))
}

/// What an environment variable names; only sockets of this machine will do.
fn named(variable: &str, value: &str) -> Result<PathBuf, StartError> {
    match value.strip_prefix("unix://").map(Path::new) {
        Some(path) if path.is_absolute() => Ok(path.to_owned()),
        _ => Err(StartError::new(
            StartErrorKind::Engine,
            format!("{variable} does not name a Unix socket of this machine"),
            "set it to unix:///path/to/the/socket: a session's one way out is a socket of this \
             machine too",
        )),
    }
}

/// Whether the engine will do. `kernel` is the release of this machine's.
pub(super) fn judge(
    name: &str,
    version: &Version,
    info: &Info,
    kernel: &str,
) -> Result<Facts, StartError> {
    let refuse = |kind, cause: String, remedy: &str| Err(StartError::new(kind, cause, remedy));
    let options = info.security_options.clone().unwrap_or_default();
    let has = |option: &str| options.iter().any(|o| o.split(',').any(|part| part == option));
    let podman = version.components.iter().any(|c| c.name.starts_with("Podman"));
    let kind = if podman { Kind::Podman } else { Kind::Docker };
    if info.operating_system.contains("Docker Desktop") {
        return refuse(
            StartErrorKind::Engine,
            "it is Docker Desktop, whose containers cannot use a socket of this machine".into(),
            "use the engine of this machine itself (Debian: docker.io), or `backend = \"native\"`",
        );
    }
    if info.os_type != "linux" || info.kernel_version != kernel {
        let cause = format!(
            "{name} runs its containers on another kernel ({} {}) than this one ({kernel})",
            info.os_type, info.kernel_version
        );
        let remedy = "use an engine that runs on this machine and not in a virtual one, for the \
                      door is a socket of this machine, or `backend = \"native\"`";
        return refuse(StartErrorKind::Engine, cause, remedy);
    }
    let rootless = has("name=rootless");
    let v1_rootless = rootless && info.cgroup_version == "1";
    if v1_rootless || !(info.memory_limit && info.pids_limit && info.cpu_quota) {
        let cause = format!("{name} cannot limit memory, processes and CPU time here");
        let remedy = "let it run as root, or, rootless, with delegated cgroup v2 controllers \
                      (systemd: Delegate=cpu memory pids), or use `backend = \"native\"`";
        return refuse(StartErrorKind::Limit, cause, remedy);
    }
    let runtimes = info.runtimes.iter().flatten().map(|(n, _)| n.clone()).collect();
    let called = if podman { "podman" } else { "docker" };
    Ok(Facts {
        kind,
        title: format!("{called} {}", version.version.chars().take(40).collect::<String>()),
        rootless,
        remaps: has("name=userns"),
        labels: has("name=selinux"),
        shares_group_names: podman && info.cgroup_version == "1",
        runtimes,
        default_runtime: info.default_runtime.clone(),
    })
}

/// Whether the engine can be told to use this runtime.
pub(super) fn knows(name: &str, facts: &Facts, runtime: Option<&str>) -> Result<(), StartError> {
    let refuse = |cause, remedy: &str| Err(StartError::new(StartErrorKind::Engine, cause, remedy));
    match runtime {
        Some(asked) if facts.kind == Kind::Podman => refuse(
            format!("{name} takes no runtime by name over its API, and {asked} is asked for"),
            "set `runtime` in containers.conf and leave `engine_runtime` out",
        ),
        Some(asked) if !facts.runtimes.iter().any(|r| r == asked) => refuse(
            format!("{name} knows no runtime {asked}; it has {}", facts.runtimes.join(", ")),
            "register it with the engine (dockerd: `runtimes` in daemon.json)",
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::api::Component;

    const KERNEL: &str = "6.1.0-test";

    fn good() -> (Version, Info) {
        let info = Info {
            operating_system: "Debian GNU/Linux 12".into(),
            os_type: "linux".into(),
            kernel_version: KERNEL.into(),
            cgroup_version: "2".into(),
            memory_limit: true,
            pids_limit: true,
            cpu_quota: true,
            security_options: Some(vec!["name=seccomp,profile=default".into()]),
            runtimes: Some([("runc".to_owned(), serde_json::Value::Null)].into()),
            default_runtime: "runc".into(),
        };
        (Version { version: "20.10.24".into(), ..Version::default() }, info)
    }

    fn refused(change: impl FnOnce(&mut Version, &mut Info)) -> StartError {
        let (mut version, mut info) = good();
        change(&mut version, &mut info);
        judge("docker", &version, &info, KERNEL).unwrap_err()
    }

    #[test]
    fn an_engine_of_this_machine_that_limits_will_do() {
        let (version, info) = good();
        let facts = judge("docker", &version, &info, KERNEL).unwrap();
        assert_eq!((facts.kind, facts.rootless), (Kind::Docker, false));
        assert_eq!(facts.title, "docker 20.10.24");
    }

    #[test]
    fn what_cannot_keep_its_walls_is_refused_with_what_to_do() {
        let desktop = refused(|_, info| info.operating_system = "Docker Desktop".into());
        assert!(desktop.cause.contains("Docker Desktop"), "{desktop}");
        let elsewhere = refused(|_, info| info.kernel_version = "6.6.0-linuxkit".into());
        assert!(elsewhere.cause.contains("another kernel"), "{elsewhere}");
        let windows = refused(|_, info| info.os_type = "windows".into());
        assert!(windows.cause.contains("windows"), "{windows}");
        let limitless = refused(|_, info| info.pids_limit = false);
        assert_eq!(limitless.kind, StartErrorKind::Limit);
        let rootless = refused(|_, info| {
            info.security_options = Some(vec!["name=rootless".into()]);
            info.cgroup_version = "1".into();
        });
        assert_eq!(rootless.kind, StartErrorKind::Limit);
        assert!(rootless.remedy.contains("Delegate"), "{rootless}");
    }

    #[test]
    fn a_runtime_must_be_known_and_podman_takes_none() {
        let (mut version, info) = good();
        let docker = judge("docker", &version, &info, KERNEL).unwrap();
        assert_eq!(knows("docker", &docker, Some("runc")), Ok(()));
        let error = knows("docker", &docker, Some("runsc")).unwrap_err();
        assert!(error.cause.contains("knows no runtime runsc; it has runc"), "{error}");
        version.components = vec![Component { name: "Podman Engine".into() }];
        let podman = judge("docker", &version, &info, KERNEL).unwrap();
        assert_eq!(podman.kind, Kind::Podman, "by what it is, not by how it is called");
        assert!(!podman.shares_group_names);
        let old = Info { cgroup_version: "1".into(), ..info };
        let shares = |version| judge("x", version, &old, KERNEL).unwrap().shares_group_names;
        assert!(shares(&version) && !shares(&good().0), "Podman alone");
        assert_eq!(knows("podman", &podman, None), Ok(()));
        let error = knows("podman", &podman, Some("runc")).unwrap_err();
        assert!(error.remedy.contains("containers.conf"), "{error}");
    }

    #[test]
    fn only_a_socket_of_this_machine_is_taken() {
        assert_eq!(named("X", "unix:///run/a.sock").unwrap(), Path::new("/run/a.sock"));
        for elsewhere in ["tcp://10.0.0.1:2375", "ssh://me@host", "unix://relative", "/run/a.sock"]
        {
            assert!(named("X", elsewhere).unwrap_err().remedy.contains("unix:///"));
        }
    }
}
