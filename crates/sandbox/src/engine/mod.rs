//! Sandboxes made by a container engine of this machine: Docker and Podman, by their API; and
//! Apple's `container`, by its command line (`machine/`), whose machines make their own.
//!
//! ```text
//! spec ─► native plan ─► translated (container.rs) ─► request.rs ─► engine ─► container
//!                                                                              │ our own binary
//! Prepared ◄─ verify.rs ◄─ kernel from outside, engine's account, measured ◄── line ── init
//!    │ start                                                                   │
//!    └──────────────────────────────── go ────────────────────────────────────►│ fork + exec
//! ```
//!
//! The engine makes namespaces, mounts, limits and identity, and starts our binary as the first
//! process. That calls back over one socket, its line, and from there on everything is as in a
//! native sandbox: the same first process gets its steps, its sealed image and filter, and the
//! program's streams as descriptors; it measures, waits for the word, relays, reaps, and ends when
//! the line ends.
//!
//! Invariants:
//! 1. No engine is believed: what it made is measured before the program runs, and any difference
//!    refuses the start.
//! 2. No container has a network, and none is pulled: an image is used that is there, or a root of
//!    a few folders is imported.
//! 3. A container ends with its handle, with this process, and at the latest when the next process
//!    of the same home finds it by its labels.
//! 4. Killing and the end are seen through the kernel (pidfd, line), so an engine that hangs or is
//!    gone keeps nothing alive.
//! 5. Operations are witnessed as in a native sandbox: the first process sends its listener, and
//!    its open counter, over the line (`reports.rs`). Where no listener comes, nothing starts.

mod api;
mod ceiling;
mod container;
mod fitness;
mod folder;
mod http;
mod live;
mod machine;
mod outside;
mod prepare;
mod reports;
mod request;
mod root;
mod verify;

pub use container::{Container, Scratch};
pub(crate) use container::{identity, translate};
pub use machine::AppleOptions;

use crate::error::{StartError, StartErrorKind};
use crate::facts::HostFacts;
use api::Api;
use ceiling::Ceiling;
use fitness::Facts;
use folder::{Folder, HOME_LABEL, Leftover, STARTER_LABEL};
use http::Http;
use model::{Backend, SandboxSpec};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where engines are, and what they are shown.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// A private folder for files and sockets that containers are shown, the same for all processes
    /// of one home, on a path that the engine sees too. Without it no engine is used.
    pub folder: Option<PathBuf>,
    /// Docker's socket; by default `DOCKER_HOST` or the usual places.
    pub docker: Option<PathBuf>,
    /// Podman's socket; by default `CONTAINER_HOST` or the usual places.
    pub podman: Option<PathBuf>,
    /// Apple's `container`, where there is one. Without it that backend is refused.
    pub apple: Option<AppleOptions>,
}

impl EngineOptions {
    /// Engines at their usual places, with this folder.
    #[must_use]
    pub fn of(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }
}

/// What all engines of this process share.
#[derive(Debug)]
struct Shop {
    folder: Folder,
    image: OwnedFd,
    filter: OwnedFd,
    /// The system-call profile: on disk, and as text.
    profile: (PathBuf, String),
    /// This process' own namespaces.
    namespaces: Vec<(String, u64)>,
    facts: Arc<HostFacts>,
    made: AtomicU64,
    /// Executions reported so far, of all containers.
    executions: AtomicU64,
}

impl Shop {
    fn open(folder: &Path, facts: Arc<HostFacts>) -> io::Result<Self> {
        let folder = Folder::make(folder)?;
        let text = crate::seccomp::oci_profile();
        Ok(Self {
            image: crate::spawner::sealed_image()?,
            filter: crate::spawner::sealed_filter()?,
            profile: (folder.file(text.as_bytes())?, text),
            namespaces: crate::init::namespaces()?,
            facts,
            made: AtomicU64::new(0),
            executions: AtomicU64::new(reports::FIRST_EXECUTION),
            folder,
        })
    }
}

/// An engine that will do.
#[derive(Debug)]
struct Engine {
    api: Api,
    facts: Facts,
    shop: Arc<Shop>,
    /// What its containers can be given at most.
    hard: Ceiling,
    /// Images made here, by the name of what is in them.
    roots: Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engines of this process, connected when they are first asked for something.
#[derive(Debug)]
pub(crate) struct Engines {
    options: EngineOptions,
    facts: Arc<HostFacts>,
    shop: Mutex<Option<Arc<Shop>>>,
    known: Mutex<BTreeMap<&'static str, Arc<Engine>>>,
}

impl Engines {
    /// Nothing is connected yet; but what a process of this home left behind when it was killed is
    /// looked for, in the background.
    pub(crate) fn new(options: EngineOptions, facts: Arc<HostFacts>) -> Self {
        if let Some(folder) = options.folder.clone() {
            let left = folder::leftovers(&folder);
            if !left.is_empty() {
                // Without a thread it is left to the next process.
                let name = "engine-sweep".to_owned();
                let sweep = move || sweep_patiently(&folder);
                drop(std::thread::Builder::new().name(name).spawn(sweep));
            }
        }
        Self { options, facts, shop: Mutex::default(), known: Mutex::default() }
    }

    /// Builds a sandbox up to the last instruction before its program, and measures it.
    pub(crate) fn prepare(
        &self,
        spec: &SandboxSpec,
        stdio: crate::Stdio,
    ) -> Result<crate::Prepared, StartError> {
        let runtime = match &spec.backend {
            Backend::Docker(choice) | Backend::Podman(choice) => choice.runtime.as_deref(),
            Backend::Apple(_) => {
                let options = AppleOptions::found(self.options.apple.as_ref())?;
                return machine::prepare(&self.shop()?, options, spec, stdio);
            }
            Backend::Native => None,
        };
        let name = spec.backend.name();
        let engine = self.engine(name)?;
        fitness::knows(name, &engine.facts, runtime)?;
        prepare::prepare(&engine, spec, stdio)
    }

    fn shop(&self) -> Result<Arc<Shop>, StartError> {
        let Some(folder) = &self.options.folder else {
            return Err(StartError::new(
                StartErrorKind::Engine,
                "no folder was given for what containers are shown",
                "use an engine with a home",
            ));
        };
        let mut shop = lock(&self.shop);
        if let Some(open) = shop.as_ref() {
            return Ok(Arc::clone(open));
        }
        let opened = Shop::open(folder, Arc::clone(&self.facts)).map_err(|e| {
            let cause = format!("{}: {e}", folder.display());
            StartError::new(StartErrorKind::Engine, cause, "make the folder writable")
        })?;
        Ok(Arc::clone(shop.insert(Arc::new(opened))))
    }

    fn engine(&self, name: &'static str) -> Result<Arc<Engine>, StartError> {
        let mut known = lock(&self.known);
        if let Some(engine) = known.get(name) {
            return Ok(Arc::clone(engine));
        }
        let given = if name == "podman" { &self.options.podman } else { &self.options.docker };
        let socket = fitness::socket(name, given.as_deref())?;
        let engine = Arc::new(connect(name, &socket, self.shop()?)?);
        known.insert(name, Arc::clone(&engine));
        Ok(engine)
    }
}

/// Connects, judges, notes the engine for whoever comes after us, and removes what is left of
/// those before.
fn connect(name: &str, socket: &Path, shop: Arc<Shop>) -> Result<Engine, StartError> {
    let http = Http::at(socket);
    let version = Api::version(name, &http)?;
    let api = Api::agreed(name, http, &version)?;
    let info = api.info()?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut facts = fitness::judge(name, &version, &info, &kernel)?;
    facts.title.push_str(&format!(", API {}", api.spoken()));
    shop.folder.note(name, socket).map_err(|e| {
        let cause = format!("the engine could not be noted in {}: {e}", shop.folder.home());
        StartError::new(StartErrorKind::Engine, cause, "free some room on the disk")
    })?;
    for listed in orphans(&api, &shop.folder.home(), None)? {
        // One that cannot be removed now is found again by the next process.
        let _ = api.remove(&listed);
    }
    let hard = Ceiling::of(socket);
    Ok(Engine { api, facts, shop, hard, roots: Mutex::default() })
}

/// Ids of containers of this home whose starter is gone; of one starter only, if named.
fn orphans(api: &Api, home: &str, starter: Option<&str>) -> Result<Vec<String>, StartError> {
    let listed = api.list(HOME_LABEL, home)?;
    let orphaned = listed.into_iter().filter(|c| {
        let label = c.labels.as_ref().and_then(|l| l.get(STARTER_LABEL));
        label.is_some_and(|l| starter.is_none_or(|s| s == l) && !folder::alive(l))
    });
    Ok(orphaned.map(|c| c.id).collect())
}

/// Removes the containers of a process that is gone, then its folder. What an engine does not
/// answer stays for the next time.
fn clear(home: &Path, left: &Leftover) {
    let gone = |name: &str, socket: &Path| -> Result<bool, StartError> {
        let http = Http::at(socket);
        let version = Api::version(name, &http)?;
        let api = Api::agreed(name, http, &version)?;
        let home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
        let orphans = orphans(&api, &home.display().to_string(), Some(&left.starter))?;
        orphans.iter().try_fold(true, |all, id| Ok(api.remove(id)? && all))
    };
    if left.engines.iter().all(|(name, socket)| gone(name, socket).unwrap_or(false)) {
        // Found again if it cannot be removed now.
        let _ = std::fs::remove_dir_all(&left.path);
    }
}

/// Looks again while an engine is just removing a container, by itself or for another of us: it
/// takes seconds at most, and the next process of this home looks again in any case.
fn sweep_patiently(folder: &Path) {
    const LOOKS: u32 = 10;
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
    for _ in 1..LOOKS {
        if sweep_engines(folder) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    sweep_engines(folder);
}

/// Removes what processes that are gone left in this folder and with the engines they used; the
/// next process of the same home does that by itself, in the background. Whether nothing of it is
/// left: an engine that is just removing a container keeps it for another try.
pub fn sweep_engines(folder: &Path) -> bool {
    folder::leftovers(folder).iter().for_each(|left| clear(folder, left));
    folder::leftovers(folder).is_empty()
}

/// Directories of the control groups that an engine made for the container with this first process,
/// as the host counts; none when it is gone. Those that it shares with others are left out: an
/// engine's own are named after the container.
#[must_use]
pub fn groups_of_container(first: u32) -> Vec<PathBuf> {
    let group = i32::try_from(first).ok().and_then(|pid| crate::cgroup::Group::of(pid).ok());
    let places = group.map(|g| g.places()).unwrap_or_default();
    places.into_iter().filter(|place| of_a_container(place)).collect()
}

/// Whether a part of the path holds the id of a container: `/docker/ID`, `docker-ID.scope`,
/// `libpod-ID`.
fn of_a_container(path: &Path) -> bool {
    const ID_DIGITS: usize = 64;
    let text = path.to_string_lossy();
    text.split(|c: char| !c.is_ascii_hexdigit()).any(|part| part.len() == ID_DIGITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use model::{
        AgentName, Backend, Command, EngineChoice, Limits, Network, RootFs, SandboxSpec, SessionId,
        Workspace,
    };

    #[test]
    fn only_groups_that_are_a_container_s_own_are_counted() {
        let id = "0123456789abcdef".repeat(4);
        for own in [
            format!("/sys/fs/cgroup/memory/docker/{id}"),
            format!("/sys/fs/cgroup/system.slice/docker-{id}.scope"),
            format!("/sys/fs/cgroup/pids/libpod_parent/libpod-{id}/container"),
        ] {
            assert!(super::of_a_container(own.as_ref()), "{own}");
        }
        for shared in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/system.slice/docker.service"] {
            assert!(!super::of_a_container(shared.as_ref()), "{shared}");
        }
        assert!(super::groups_of_container(u32::MAX).is_empty());
    }

    /// The smallest there is.
    pub(super) fn spec() -> SandboxSpec {
        SandboxSpec {
            session: SessionId::parse("s1").unwrap(),
            agent: AgentName::parse("tester").unwrap(),
            backend: Backend::Docker(EngineChoice::default()),
            rootfs: RootFs::HostUsr,
            workspace: Workspace::Session("/w".into()),
            home: "/h".into(),
            mounts: Vec::new(),
            network: Network::None,
            env: std::collections::BTreeMap::new(),
            probe: Vec::new(),
            command: Command::Program(vec!["true".into()]),
            cwd: "/workspace".into(),
            limits: Limits::default(),
            witness: false,
        }
    }
}
