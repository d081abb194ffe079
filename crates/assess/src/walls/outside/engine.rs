//! Containers of Docker and Podman, as a battery sees them: what enforces their walls, what of
//! their answers is rightly another than a native sandbox's, and what they do not enforce.
//!
//! 1. What is known is derived from what was measured of that very container and from its plan. Of
//!    what an engine says, only which program it is counts, for one gap of Podman's.
//! 2. A gap names what carries the wall in its place; that has probes of its own, none of which is
//!    a gap.

use super::keeper::{self, Order};
use super::{Backend, Boxed, Count};
use crate::walls::{Bait, Gap, Wall};
use model::SandboxSpec;
use sandbox::{
    Container, DISK_OWNER, EngineOptions, Mode, Owner, Report, Spawner, SpawnerOptions, StartError,
    StartErrorKind, Stdio, Step,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long an engine may be busy with removing the container of a keeper that was killed.
const TIDY_TIME: Duration = Duration::from_secs(5);
/// Between two tries.
const TIDY_PAUSE: Duration = Duration::from_millis(50);

/// What every container has that no plan of ours names. Engines mount `/sys`, and cover it where
/// they are asked to, with what is mounted below it; Podman puts a small file system over `/run`,
/// with a file that says that it is a container; Docker puts such a file at the root.
const ENGINES_OWN: [&str; 3] = ["/sys", "/run", "/.dockerenv"];

/// Not enforced by any engine: probe, and what carries the wall in its place.
const ALWAYS: [(&str, &str); 7] = [
    (
        "no-setuid-effect",
        "engines mount without nosuid: no_new_privs and the empty bounding set keep such bits from \
         counting",
    ),
    (
        "no-device-effect",
        "engines mount without nodev: no node can be made inside, and the engine's list of devices \
         opens harmless ones only",
    ),
    (
        "securebits-locked",
        "engines set no securebits: root's uid means nothing by the empty bounding set and \
         no_new_privs",
    ),
    ("uid-map-single", "engines map all ids or ranges: without a capability none can be taken"),
    ("gid-map-single", "engines map all ids or ranges: without a capability none can be taken"),
    (
        "setgroups-denied",
        "engines leave setgroups to who has the capability, which nobody inside has",
    ),
    (
        "other-session-uid",
        "engines map no ids by session: all sessions of one have one uid outside, and are apart by \
         namespaces, Landlock and seccomp",
    ),
];

/// Where an engine's user namespace is the host's, that is, where the engine is root's.
const ROOTS: [(&str, &str); 1] = [(
    "ns-separation-user",
    "a container of root's engine has the host's user namespace: no capability is left in it",
)];

/// Where the caller is root inside, as below a rootless Docker: root of a user namespace, without
/// any capability in it.
const ROOT_INSIDE: [(&str, &str); 6] = [
    ("uid-unprivileged", "a rootless Docker maps its caller to root inside, and to nobody else"),
    ("groups-none", "a rootless Docker maps its caller to root inside, whose group is listed"),
    ("setuid-root-denied", "it is root inside already, of its own user namespace and powerless"),
    ("setgid-root-denied", "it is in root's group inside already, which is the caller's outside"),
    ("chown-root-denied", "its files are root's inside already, and the caller's outside"),
    (
        "init-fd",
        "root inside owns init's entries in /proc: numbers can be listed, and nothing that they \
         lead to is opened",
    ),
];

/// Where an image is the root.
const IMAGED: [(&str, &str); 3] = [
    ("root-listing", "the image has names of its own at its root, read-only"),
    ("host-accounts", "the image may have a file of that name, which is not the host's"),
    ("home-of-root", "the image may have a folder of that name, which is not the host's"),
];

const PODMANS: [(&str, &str); 1] = [(
    "tmpfs-inodes",
    "Podman takes no number of files for a place in memory: they count as the container's memory, \
     which is limited",
)];

/// Where Podman finds control groups of version 1.
const GROUP_NAMES: [(&str, &str); 1] = [(
    "ns-separation-cgroup",
    "Podman gives no namespace of control groups of version 1: their names are the host's, and their \
     files are covered or read-only",
)];

/// What the measured root says of `/sys` where an engine could not cover it.
const SHOWN: &str = "/sys read-only";
const SYSFS: [(&str, &str); 1] =
    [("sysfs-absent", "this Podman cannot cover /sys: it is read-only, and tells of the machine")];

/// What this container does not enforce, from what was measured of it.
pub(super) fn gaps(report: &Report) -> Vec<Gap> {
    let state = |wall: &str| {
        let found = report.walls.iter().find(|w| w.wall == wall);
        found.map_or("", |w| w.state.as_str())
    };
    let container = report.plan.steps.first().and_then(|step| match step {
        Step::Container(container) => Some(&**container),
        _ => None,
    });
    let of = |what: fn(&Container) -> bool| container.is_some_and(what);
    let own = |which: &str| {
        let names = state("namespaces").split(';').next().unwrap_or_default();
        names.split(", ").any(|name| name == which)
    };
    // By what answers at its socket, whatever the agent's file calls it.
    let podman = state("engine").starts_with("podman");
    let groups: [(bool, &[(&'static str, &str)]); 7] = [
        (true, &ALWAYS),
        (!own("user"), &ROOTS),
        (of(|c| c.identity.uid == 0), &ROOT_INSIDE),
        (of(|c| c.image.is_some()), &IMAGED),
        (podman, &PODMANS),
        (podman && !own("cgroup"), &GROUP_NAMES),
        (state("root").ends_with(SHOWN), &SYSFS),
    ];
    let known = groups.into_iter().filter(|(here, _)| *here).flat_map(|(_, all)| all.iter());
    known.map(|(probe, why)| (*probe, (*why).to_owned())).collect()
}

/// Tells a battery what is rightly another in a container: without a mapping of ids the program's
/// own is that of its folders, or of whoever calls; which it must be is measured from outside.
pub(super) fn expect(bait: &mut Bait) {
    bait.mounts.extend(ENGINES_OWN.map(str::to_owned));
    bait.uid = None;
    bait.own_group = true;
}

/// Containers of an engine.
#[derive(Debug)]
pub struct Engine {
    choice: model::Backend,
    engines: EngineOptions,
    private: Vec<PathBuf>,
    mode: Mode,
    /// `None` for one whose containers are kept by a process that may be killed.
    spawner: Option<Spawner>,
    /// That process, by its pid; 0 before there is one.
    keeper: AtomicU32,
}

impl Engine {
    /// Connects to nothing yet. `private` are the folders that no grant may show.
    ///
    /// # Errors
    /// When `choice` is no engine, no folder is given for what containers are shown, or no spawner
    /// can be started.
    pub fn launch(
        choice: model::Backend,
        engines: EngineOptions,
        private: Vec<PathBuf>,
    ) -> Result<Self, StartError> {
        let engine = matches!(choice, model::Backend::Docker(_) | model::Backend::Podman(_));
        if !engine || engines.folder.is_none() {
            return Err(StartError {
                kind: StartErrorKind::Engine,
                cause: "no container engine is named, or no folder for it".to_owned(),
                remedy: "name docker or podman".to_owned(),
            });
        }
        let options = SpawnerOptions {
            private: private.clone(),
            engines: engines.clone(),
            ..SpawnerOptions::default()
        };
        let spawner = Spawner::launch_without_spares(options)?;
        let (mode, keeper) = (spawner.facts().mode, AtomicU32::new(0));
        Ok(Self { choice, engines, private, mode, spawner: Some(spawner), keeper })
    }

    /// What enforces a wall here, in words.
    #[must_use]
    pub const fn enforces(wall: Wall) -> &'static str {
        match wall {
            Wall::Namespaces => "the engine's namespaces, measured; seccomp",
            Wall::Mounts => "the engine's read-only root and binds, seccomp",
            Wall::Files => "the engine's root, masked /proc, Landlock, seccomp",
            Wall::SystemCalls => "the engine's copy of the allow-list, and our own",
            Wall::Sockets => "the engine's network namespace with loopback only, seccomp",
            Wall::Privileges => "empty capability sets, no_new_privs",
            Wall::Inheritance => "close_range, environment from empty, setsid",
            Wall::Init => "not dumpable, seccomp, PID namespace",
            Wall::Limits => "the engine's control groups, rlimits, tmpfs sizes",
            Wall::Sessions => "namespaces and a root of each one's own",
            Wall::Lifecycle => "PID namespace, the line to init, removal by the engine",
        }
    }
}

impl Backend for Engine {
    fn name(&self) -> &'static str {
        self.choice.name()
    }

    fn makes(&self) -> model::Backend {
        self.choice.clone()
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn enforced_by(&self, wall: Wall) -> &'static str {
        Self::enforces(wall)
    }

    fn prepare(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Boxed>, StartError> {
        if let Some(spawner) = &self.spawner {
            return Ok(Box::new(spawner.prepare(spec, stdio)?));
        }
        let order = Order::new(spec, &self.engines, &self.private);
        let kept = keeper::prepare(&order)?;
        self.keeper.store(kept.pid(), Ordering::SeqCst);
        Ok(Box::new(kept))
    }

    /// An engine may start with the first question, imports our root once, and makes its own
    /// mounts.
    fn settle(&self, spec: &SandboxSpec) -> Result<(), StartError> {
        let streams = Stdio::null().map_err(|e| keeper::lost(&e.to_string()))?;
        self.prepare(spec, streams).map(drop)
    }

    fn another(&self) -> Result<Box<dyn Backend>, StartError> {
        Ok(Box::new(Self {
            choice: self.choice.clone(),
            engines: self.engines.clone(),
            private: self.private.clone(),
            mode: self.mode,
            spawner: None,
            keeper: AtomicU32::new(0),
        }))
    }

    fn writer(&self) -> Option<Owner> {
        (self.mode == Mode::Root).then_some(DISK_OWNER)
    }

    /// This process itself, which nobody may kill, unless another keeps them.
    fn keeper(&self, _: u32) -> Option<u32> {
        Some(self.keeper.load(Ordering::SeqCst)).filter(|pid| *pid != 0)
    }

    fn groups(&self, first: u32) -> Option<Count> {
        let places = sandbox::groups_of_container(first);
        if places.is_empty() {
            return None;
        }
        Some(Box::new(move || places.iter().filter(|place| place.exists()).count()))
    }

    fn tidy(&self) {
        let Some(folder) = &self.engines.folder else { return };
        let until = Instant::now() + TIDY_TIME;
        // What is left then is found by the next process of this home.
        while !sandbox::sweep_engines(folder) && Instant::now() < until {
            std::thread::sleep(TIDY_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walls::catalogue;
    use model::WallState;
    use std::collections::BTreeSet;

    /// Probes that look at what carries a gap.
    const CARRY: [&str; 16] = [
        "cgroup-read-only",
        "nnp-set",
        "caps-zero-effective",
        "caps-zero-permitted",
        "caps-zero-inheritable",
        "caps-zero-bounding",
        "caps-zero-ambient",
        "capset-denied",
        "setgroups-call-denied",
        "seccomp-mode",
        "seccomp-sweep",
        "device-node-block",
        "device-node-char",
        "memory-bomb",
        "landlock-comm",
        "init-mem-read",
    ];

    fn report(walls: &[(&str, &str)]) -> Report {
        let wall = |(wall, state): &(&str, &str)| WallState {
            wall: (*wall).to_owned(),
            state: (*state).to_owned(),
        };
        Report {
            walls: walls.iter().map(wall).collect(),
            limits: Vec::new(),
            plan: sandbox::Plan { steps: Vec::new() },
            pid: 1,
            probes: None,
        }
    }

    fn names(report: &Report) -> Vec<&'static str> {
        gaps(report).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn gaps_follow_what_was_measured() {
        let always = ALWAYS.len();
        let rootful = report(&[
            ("engine", "docker 20.10.24, API 1.41, runtime runc"),
            ("namespaces", "mnt, pid, net, ipc, uts, cgroup"),
            ("root", "the engine's, read-only"),
        ]);
        assert_eq!(names(&rootful)[always..], ["ns-separation-user"]);
        let old = report(&[
            ("engine", "podman 4.3.1, API 1.41, runtime crun"),
            ("namespaces", "mnt, pid, net, ipc, uts, user, cgroup"),
            ("root", "the engine's, read-only; /sys read-only"),
        ]);
        assert_eq!(names(&old)[always..], ["tmpfs-inodes", "sysfs-absent"]);
        // Of Docker it is no gap, but a wall that does not hold.
        for (engine, gap) in [("podman 4.3.1", true), ("docker 20.10.24", false)] {
            let shared = "mnt, pid, net, ipc, uts; the names of its control groups are the host's";
            let walls = [("engine", engine), ("namespaces", shared)];
            assert_eq!(names(&report(&walls)).contains(&"ns-separation-cgroup"), gap);
        }
        // What says nothing of its user namespace has none.
        assert_eq!(names(&report(&[]))[always..], ["ns-separation-user"]);
    }

    /// Whatever is not enforced, what is said to carry it is looked at by probes that are no gaps.
    #[test]
    fn what_carries_a_gap_is_no_gap_itself() {
        let groups: [&[(&str, &str)]; 7] =
            [&ALWAYS, &ROOTS, &ROOT_INSIDE, &IMAGED, &PODMANS, &GROUP_NAMES, &SYSFS];
        let all: Vec<&(&str, &str)> = groups.into_iter().flatten().collect();
        let names: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), all.len(), "each gap stands once");
        for (name, why) in &all {
            assert!(catalogue::find(name).is_some() && !why.is_empty(), "{name}");
        }
        for name in CARRY {
            assert!(catalogue::find(name).is_some() && !names.contains(name), "{name}");
        }
    }

    #[test]
    fn a_container_s_battery_expects_what_engines_add_and_no_fixed_uid() {
        let mut bait = Bait { mounts: vec!["/mnt/shared".into()], ..Bait::default() };
        expect(&mut bait);
        assert_eq!(bait.mounts, ["/mnt/shared", "/sys", "/run", "/.dockerenv"]);
        assert_eq!((bait.uid, bait.own_group), (None, true));
        assert_eq!((Bait::default().uid, Bait::default().own_group), (Some(1000), false));
    }

    #[test]
    fn an_engine_needs_a_name_and_a_folder() {
        let folder = EngineOptions::of("/nowhere".into());
        let docker = || model::Backend::Docker(model::EngineChoice::default());
        for (choice, engines) in
            [(model::Backend::Native, folder), (docker(), EngineOptions::default())]
        {
            let refused = Engine::launch(choice, engines, Vec::new());
            assert_eq!(refused.err().map(|e| e.kind), Some(StartErrorKind::Engine));
        }
    }
}
