//! The battery outside: sandboxes to try things in, baits around them, and what is left afterwards.
//!
//! Pipeline: `Stage` (canaries, listeners) ─► another session ─► the session under test ─► what
//! outlived it ─► two tight ones ─► time-out, supervisor ─► counts ─► `judge_all` ─► `Run`.
//!
//! 1. It knows a backend by [`Backend`] alone.
//! 2. Whatever it started ends with it: every handle kills on drop, every folder is removed.
//! 3. It touches loopback, Unix sockets and folders of its own, nothing else.

mod after;
mod engine;
mod keeper;
mod native;
mod run;
mod stage;

pub use engine::Engine;
pub use keeper::keeper_main;
pub use native::Native;
pub use run::{ProbeError, Run, Stop};

use super::catalogue::{self, Wall, When};
use super::judge::{Finding, Gap, Sighting, judge_all};
use super::{Bait, WALLS_ROLE};
use model::{
    AgentName, Command, LimitState, Limits, Mount, Network, RootFs, SandboxSpec, SessionId,
    Workspace,
};
use sandbox::{Ended, Mode, Owner, Report, StartError, Stdio};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Counts what stands for one sandbox, also after its end.
pub type Count = Box<dyn Fn() -> usize>;

/// What a battery needs of a backend.
pub trait Backend {
    /// Its name, as agent files write it.
    fn name(&self) -> &'static str;
    /// What a spec says to have it.
    fn makes(&self) -> model::Backend;
    /// With which privilege it makes sandboxes.
    fn mode(&self) -> Mode;
    /// What enforces a wall, in words.
    fn enforced_by(&self, wall: Wall) -> &'static str;
    /// Builds a sandbox up to its program.
    ///
    /// # Errors
    /// When it refuses, or cannot; nothing is left behind then.
    fn prepare(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Boxed>, StartError>;
    /// Does what is done once and stays, before anything is counted: `spec` is of a sandbox that
    /// nobody needs.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    fn settle(&self, spec: &SandboxSpec) -> Result<(), StartError>;
    /// One more of the same with a keeper of its own, which may be killed.
    ///
    /// # Errors
    /// When it cannot be had.
    fn another(&self) -> Result<Box<dyn Backend>, StartError>;
    /// What is known not to be enforced, given what was measured.
    fn gaps(&self, report: &Report) -> Vec<Gap> {
        known_gaps(&self.makes(), self.mode(), report)
    }
    /// Who must own a folder that a sandbox is to write to; `None` where ids are mapped.
    fn writer(&self) -> Option<Owner>;
    /// The process that keeps sandboxes, by the host pid of one's first process; `None` where none
    /// dies with it.
    fn keeper(&self, first: u32) -> Option<u32>;
    /// How to count the control groups of the sandbox with that first process, which must live now;
    /// `None` where they cannot be seen.
    fn groups(&self, first: u32) -> Option<Count>;
    /// Removes what a keeper that was killed could not.
    fn tidy(&self);
}

/// A sandbox before its program runs. Dropping it ends it.
pub trait Boxed {
    /// What was measured.
    fn report(&self) -> &Report;
    /// Lets the program run.
    ///
    /// # Errors
    /// When whoever keeps it is gone.
    fn start(self: Box<Self>) -> Result<Box<dyn Running>, StartError>;
}

/// A running sandbox. Dropping it kills everything in it.
pub trait Running {
    /// Waits at most so long; `None` when it still runs.
    fn wait_timeout(&self, limit: Duration) -> Option<Ended>;
    /// Kills everything in it.
    ///
    /// # Errors
    /// When whoever keeps it is gone, and it with that.
    fn kill(&self) -> Result<(), StartError>;
}

/// Where the folders of a battery's sessions are made; whoever gives it removes it.
#[derive(Debug, Clone)]
pub struct Place {
    /// An empty folder of the installation's own.
    pub root: PathBuf,
}

/// Where programs are looked up inside.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

impl Place {
    /// A session of that backend, with folders of its own, that runs our binary with these words.
    fn spec(
        &self,
        backend: &dyn Backend,
        name: &str,
        words: Vec<String>,
    ) -> io::Result<SandboxSpec> {
        let folder = self.root.join(name);
        for part in ["home", "workspace"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        let odd = |e: &dyn std::error::Error| io::Error::other(e.to_string());
        Ok(SandboxSpec {
            session: SessionId::parse(&format!("probe-{name}")).map_err(|e| odd(&e))?,
            agent: AgentName::parse("probe").map_err(|e| odd(&e))?,
            backend: backend.makes(),
            rootfs: RootFs::HostUsr,
            workspace: Workspace::Session(folder.join("workspace")),
            home: folder.join("home"),
            mounts: Vec::new(),
            network: Network::None,
            env: environment(),
            // As a session has it, where nothing else is asked for.
            witness: true,
            probe: Vec::new(),
            command: Command::Builtin(words),
            cwd: "/workspace".into(),
            limits: Limits::default(),
        })
    }
}

fn environment() -> BTreeMap<String, String> {
    [("PATH", SEARCH_PATH), ("HOME", "/home/agent"), ("LANG", "C.UTF-8"), ("TMPDIR", "/tmp")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// What is known of the host without laying anything out.
fn host(spec: &SandboxSpec) -> io::Result<Bait> {
    const NAMESPACES: [&str; 7] = ["pid", "net", "ipc", "uts", "user", "mnt", "cgroup"];
    let mut namespaces = BTreeMap::new();
    for kind in NAMESPACES {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        let link = link.to_string_lossy().into_owned();
        let number = link.split_once('[').and_then(|(_, n)| n.strip_suffix(']')?.parse().ok());
        let number = number.ok_or_else(|| io::Error::other(format!("odd namespace {link}")))?;
        namespaces.insert(kind.to_owned(), number);
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut mounts: Vec<String> = spec.mounts.iter().map(|m: &Mount| text(&m.target)).collect();
    if let Workspace::User(folder) = &spec.workspace {
        mounts.push(text(folder));
    }
    if let RootFs::Image { tree, .. } = &spec.rootfs {
        for entry in std::fs::read_dir(tree)? {
            mounts.push(text(&Path::new("/").join(entry?.file_name())));
        }
    }
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let mut bait = Bait {
        namespaces,
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        machine_id: id.trim().to_owned(),
        env_names: spec.env.keys().cloned().collect(),
        mounts,
        ..Bait::default()
    };
    if spec.backend != model::Backend::Native {
        engine::expect(&mut bait);
    }
    Ok(bait)
}

/// The words that run a battery inside.
fn words(kind: &str, bait: &Bait) -> io::Result<Vec<String>> {
    Ok(vec![WALLS_ROLE.to_owned(), kind.to_owned(), serde_json::to_string(bait)?])
}

/// Has `spec` probed in its very sandbox before its program runs: the quick battery, whose answers
/// come with the report. See [`probe_on_start`] for what they say.
///
/// # Errors
/// When the host's own namespaces cannot be read.
pub fn ask_for_probe(spec: &mut SandboxSpec) -> io::Result<()> {
    spec.probe = words("quick", &host(spec)?)?;
    Ok(())
}

/// What the quick battery found in a prepared sandbox. Without answers every probe is broken.
#[must_use]
pub fn probe_on_start(report: &Report, gaps: &[Gap]) -> Vec<Finding> {
    let said = report.probes.as_deref().unwrap_or_default();
    let seen: Vec<Sighting> = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let quick = catalogue::all().filter(|p| p.when == When::Start);
    judge_all(quick, &seen, gaps)
}

/// What this backend is known not to enforce with this privilege, given what was measured.
#[must_use]
pub fn known_gaps(backend: &model::Backend, mode: Mode, report: &Report) -> Vec<Gap> {
    let mut gaps = match backend {
        model::Backend::Native => native_gaps(mode, &report.limits),
        // The guest of a machine makes it natively, and is root there.
        model::Backend::Apple(_) => native_gaps(Mode::Root, &report.limits),
        model::Backend::Docker(_) | model::Backend::Podman(_) => engine::gaps(report),
    };
    if core_goes_to_a_program() {
        let why = "the host's core_pattern is a program or a socket: the kernel hands it what \
                   crashes, whatever the limit (core(5))";
        gaps.push(("core-dump", why.to_owned()));
    }
    gaps
}

/// Whether the kernel gives core dumps to somebody, in place of writing files.
fn core_goes_to_a_program() -> bool {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    pattern.starts_with(['|', '@'])
}

fn native_gaps(mode: Mode, limits: &[LimitState]) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    if mode == Mode::User {
        let groups = "a plain user's process keeps that user's groups: only root can drop them";
        let uid = "sandboxes of a plain user share that user's uid outside";
        gaps.push(("groups-none", groups.to_owned()));
        gaps.push(("other-session-uid", uid.to_owned()));
    }
    if limits.iter().any(|l| l.limit == "cpu" && l.enforced_by.starts_with("nothing")) {
        gaps.push(("cpu-share", "no control group can be used here".to_owned()));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walls::Verdict;
    use model::LimitState;

    fn report(probes: Option<&str>) -> Report {
        let plan = sandbox::Plan { steps: Vec::new() };
        let probes = probes.map(str::to_owned);
        Report { walls: Vec::new(), limits: Vec::new(), plan, pid: 1, probes }
    }

    /// Fail closed: no answer, half an answer and strange answers are all refusals.
    #[test]
    fn a_sandbox_that_says_nothing_of_its_walls_is_broken() {
        let whole: String = catalogue::all()
            .filter(|p| p.when == When::Start)
            .map(|p| {
                format!("{{\"probe\":\"{}\",\"answer\":{{\"held\":\"\"}},\"micros\":1}}\n", p.name)
            })
            .collect();
        let count = |text: Option<&str>| {
            let found = probe_on_start(&report(text), &[]);
            found.iter().filter(|f| f.verdict == Verdict::Broken).count()
        };
        let all = probe_on_start(&report(None), &[]).len();
        assert_eq!(count(None), all);
        assert_eq!(count(Some("")), all);
        assert_eq!(count(Some("{\"probe\":\"nnp-set\"}\nnonsense\n")), all);
        assert!(count(Some(&whole)) < all, "answers are read at all");
        assert!(count(Some(&whole)) > 0, "and `held` is no answer where an error is expected");
    }

    #[test]
    fn gaps_are_named_where_they_are_and_nowhere_else() {
        let cpu = |by: &str| LimitState {
            limit: "cpu".into(),
            value: "1".into(),
            enforced_by: by.into(),
        };
        assert_eq!(native_gaps(Mode::Root, &[cpu("cgroup v2")]), []);
        let user = native_gaps(Mode::User, &[cpu("nothing: no control group is available")]);
        let names: Vec<&str> = user.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["groups-none", "other-session-uid", "cpu-share"]);
        assert!(names.iter().all(|n| catalogue::find(n).is_some()));
    }
}
