//! One sandbox from clone to burial.

use super::verify::{self, Demand};
use super::{PREPARE_TIMEOUT, Shop, adopt, outcome, slots::Slots, watchdog};
use crate::cgroup::Group;
use crate::error::{StartError, StartErrorKind as Kind};
use crate::facts::{Mode, Rung};
use crate::report::{Ended, Report, Usage};
use crate::step::Owner;
use crate::sys;
use crate::wire::{self, Answer, BoxId, Job, Order, Word};
use model::{SandboxSpec, Workspace};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

/// Where a box stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Preparing { deadline: Instant },
    Waiting,
    Running { look: Option<Instant> },
}

/// A sandbox with a process.
#[derive(Debug)]
pub(super) struct Live {
    id: BoxId,
    pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) line: OwnedFd,
    pub(super) line_open: bool,
    phase: Phase,
    demand: Demand,
    plan: Option<crate::Plan>,
    group: Option<Group>,
    session_uid: Option<u32>,
    killed: Option<String>,
    finished: Option<i32>,
    failed: Option<StartError>,
}

/// What is taken before the clone and must be given back if it fails.
struct Taken {
    session_uid: Option<u32>,
}

impl Taken {
    fn give_back(self, slots: &mut Slots) {
        if let Some(uid) = self.session_uid {
            slots.give_back(uid);
        }
    }
}

impl Live {
    /// Checks, plans, takes what is needed and clones.
    pub(super) fn make(
        shop: &mut Shop,
        id: BoxId,
        spec: &SandboxSpec,
        stdio: &[OwnedFd],
    ) -> Result<Self, StartError> {
        if stdio.len() != 3 {
            return Err(StartError::spawner("the three standard streams did not arrive"));
        }
        let mut taken = Taken { session_uid: None };
        match Self::try_make(shop, id, spec, stdio, &mut taken) {
            Ok(mut live) => {
                live.session_uid = taken.session_uid;
                match live.join(shop, spec) {
                    Ok(()) => Ok(live),
                    Err(e) => {
                        live.kill("it has no control group");
                        live.bury(&mut shop.slots);
                        Err(e)
                    }
                }
            }
            Err(e) => {
                taken.give_back(&mut shop.slots);
                Err(e)
            }
        }
    }

    /// Makes its control groups while its first process is starting, and tells it.
    fn join(&mut self, shop: &mut Shop, spec: &SandboxSpec) -> Result<(), StartError> {
        let Some(parent) = &shop.parent else { return Ok(()) };
        shop.made += 1;
        let name = format!("{}-{}", shop.own_name, shop.made);
        let group = parent.create(&name, &spec.limits).map_err(|e| cgroup(&e))?;
        let files = self.group.insert(group).join_files();
        // An init that is gone already is noticed by its pidfd.
        let _ = wire::send(&self.line, &Order::Join(files), &[]);
        Ok(())
    }

    fn try_make(
        shop: &mut Shop,
        id: BoxId,
        spec: &SandboxSpec,
        stdio: &[OwnedFd],
        taken: &mut Taken,
    ) -> Result<Self, StartError> {
        let mut sources = crate::check(spec, &shop.facts)?;
        if shop.facts.landlock_abi == 0 {
            let cause = "the kernel has no Landlock";
            return Err(StartError::new(Kind::Landlock, cause, crate::doctor::LANDLOCK_REMEDY));
        }
        verify::strict(&spec.limits, &shop.facts)?;
        if shop.facts.mode == Mode::Root {
            let uid = shop.slots.take().map_err(|e| identity(&e))?;
            taken.session_uid = Some(uid);
            own_folders(spec, &mut sources, shop)?;
        }
        let plan = crate::plan(spec, &shop.facts, &sources);
        let mappings = mappings(shop, &plan, taken.session_uid)?;
        let (line, theirs) = line().map_err(|e| StartError::spawner(e.to_string()))?;
        let caller = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let job = Job {
            plan: Some(plan.clone()),
            identity: taken.session_uid.unwrap_or(0),
            caller,
            mappings: (crate::init::MAPPING_FD..)
                .zip(&mappings)
                .map(|(fd, (owner, _))| (*owner, fd))
                .collect(),
        };
        let job = job_file(&job).map_err(|e| StartError::spawner(e.to_string()))?;
        let mut fds: Vec<BorrowedFd<'_>> = stdio.iter().map(AsFd::as_fd).collect();
        fds.extend([job.as_fd(), theirs.as_fd(), shop.image.as_fd(), shop.filter.as_fd()]);
        fds.extend(mappings.iter().map(|(_, fd)| fd.as_fd()));
        let (pid, pidfd) = clone(shop, &fds)?;
        let demand = Demand {
            mode: shop.facts.mode,
            uid: taken.session_uid.unwrap_or(caller.0),
            landlock: shop.facts.landlock_abi,
            ladder: shop.facts.ladder,
            limits: spec.limits.clone(),
            door: match &spec.network {
                model::Network::Door(door) => Some(door.port),
                model::Network::None => None,
            },
        };
        Ok(Self {
            id,
            pid,
            pidfd,
            line,
            line_open: true,
            phase: Phase::Preparing { deadline: Instant::now() + PREPARE_TIMEOUT },
            demand,
            plan: Some(plan),
            group: None,
            session_uid: None,
            killed: None,
            finished: None,
            failed: None,
        })
    }

    /// Reads one word of init; what to tell the client, if anything.
    pub(super) fn hear(&mut self, buffer: &mut Vec<u8>, host: &[(String, u64)]) -> Option<Answer> {
        match wire::receive::<Word>(&self.line, buffer) {
            Ok(Some((Word::Measured(measured), _)))
                if matches!(self.phase, Phase::Preparing { .. }) =>
            {
                return self.measured(&measured, host);
            }
            Ok(Some((Word::Failed { error, .. }, _)))
                if matches!(self.phase, Phase::Preparing { .. }) =>
            {
                self.failed = Some(error);
            }
            Ok(Some((Word::Finished { status }, _))) => self.finished = Some(status),
            // Anything else from inside is noise; the line is of no more use.
            Ok(Some(_) | None) | Err(_) => self.line_open = false,
        }
        None
    }

    fn measured(&mut self, m: &wire::Measured, host: &[(String, u64)]) -> Option<Answer> {
        let walls = verify::walls(&self.demand, m, host);
        let limits = verify::limits(&self.demand, m, self.group.as_ref(), self.pid);
        match walls.and_then(|w| Ok((w, limits?))) {
            Ok((walls, limits)) => {
                self.phase = Phase::Waiting;
                let plan = self.plan.take()?;
                let pid = u32::try_from(self.pid).unwrap_or(0);
                let report = Box::new(Report { walls, limits, plan, pid });
                Some(Answer::Prepared { id: self.id, report })
            }
            Err(error) => {
                self.failed = Some(error);
                self.kill("its walls are not as demanded");
                None
            }
        }
    }

    /// The word to run the program.
    pub(super) fn go(&mut self) {
        if self.phase == Phase::Waiting {
            let watched = self.demand.ladder.memory == Rung::Fallback;
            self.phase = Phase::Running { look: watched.then(Instant::now) };
            // An init that is gone is noticed by its pidfd.
            let _ = wire::send(&self.line, &Order::Go, &[]);
        }
    }

    pub(super) fn signal(&self, signal: i32) {
        if matches!(self.phase, Phase::Running { .. }) {
            let _ = wire::send(&self.line, &Order::Signal(signal), &[]);
        }
    }

    pub(super) fn kill(&mut self, why: &str) {
        if self.finished.is_none() {
            self.killed.get_or_insert_with(|| why.to_owned());
        }
        // The first process takes its whole PID namespace with it.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// When [`Live::tick`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Preparing { deadline } => Some(deadline),
            Phase::Waiting => None,
            Phase::Running { look } => look,
        }
    }

    /// Time-out and watchdog.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) || self.killed.is_some() {
            return;
        }
        match self.phase {
            Phase::Preparing { .. } => {
                let cause = format!("preparing took over {} s", PREPARE_TIMEOUT.as_secs());
                let remedy = "the machine is overloaded; try again later";
                self.failed = Some(StartError::new(Kind::TimeOut, cause, remedy));
                self.phase = Phase::Waiting;
                self.kill("preparing took too long");
            }
            Phase::Running { .. } => {
                let limit = self.demand.limits.memory_bytes.value;
                let (used, _) = watchdog::tree(self.pid);
                if used > limit {
                    self.kill("it used more memory than its limit (watchdog)");
                    self.phase = Phase::Running { look: None };
                } else {
                    let next = now + watchdog::pause(used, limit);
                    self.phase = Phase::Running { look: Some(next) };
                }
            }
            Phase::Waiting => {}
        }
    }

    /// What it uses now.
    pub(super) fn usage(&self) -> Usage {
        let group = self.group.as_ref();
        let (tree_bytes, tree_pids) = match group.and_then(Group::memory) {
            Some(_) => (0, 0),
            None => watchdog::tree(self.pid),
        };
        let memory = group.and_then(Group::memory).unwrap_or(tree_bytes);
        Usage {
            cpu_ms: group.and_then(Group::cpu).map_or(0, millis),
            memory_bytes: memory,
            peak_memory_bytes: group.and_then(Group::peak).unwrap_or(memory),
            pids: group.and_then(Group::pids).unwrap_or(tree_pids),
            oom_kills: group.and_then(Group::oom_kills).unwrap_or(0),
        }
    }

    /// Reaps it and gives everything back. Waits if need be: call it after its end or `kill`.
    pub(super) fn bury(&mut self, slots: &mut Slots) -> Answer {
        let reaped = sys::reap(self.pid, true).ok().flatten();
        let group = self.group.as_ref();
        let usage = Usage {
            cpu_ms: reaped.map_or(0, |r| millis(r.cpu)),
            memory_bytes: 0,
            peak_memory_bytes: group
                .and_then(Group::peak)
                .or(reaped.map(|r| r.peak_rss))
                .unwrap_or(0),
            pids: 0,
            oom_kills: group.and_then(Group::oom_kills).unwrap_or(0),
        };
        if let Some(group) = &mut self.group {
            group.remove();
        }
        if let Some(uid) = self.session_uid.take() {
            slots.give_back(uid);
        }
        let status = reaped.map_or(0, |r| r.status);
        if let Some(error) = self.failed.take() {
            return Answer::Failed { id: self.id, error };
        }
        if matches!(self.phase, Phase::Preparing { .. }) {
            let cause = format!("its first process ended early (wait status {status:#x})");
            let error = StartError::new(
                Kind::Namespaces,
                cause,
                "run `nanoclaw doctor` to see what this machine lacks",
            );
            return Answer::Failed { id: self.id, error };
        }
        let outcome = outcome(self.finished, status, self.killed.as_deref());
        Answer::Ended { id: self.id, ended: Ended { outcome, usage } }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn identity(e: &std::io::Error) -> StartError {
    let cause = format!("no session uid could be taken: {e}");
    StartError::new(Kind::Identity, cause, "make /run/nanoclaw writable for root")
}

fn cgroup(e: &std::io::Error) -> StartError {
    let cause = format!("its control group could not be made: {e}");
    StartError::new(Kind::Cgroup, cause, "see `nanoclaw doctor`, control groups")
}

/// Home and session workspace get their fixed owner on disk.
fn own_folders(
    spec: &SandboxSpec,
    sources: &mut crate::Sources,
    shop: &Shop,
) -> Result<(), StartError> {
    let mut folders = vec![&spec.home];
    if let Workspace::Session(path) = &spec.workspace {
        folders.push(path);
    }
    for path in folders {
        if let Some(owner) = sources.get_mut(path) {
            *owner = adopt::adopt(path, *owner, &shop.facts.private).map_err(|e| {
                let cause = format!("the session's folder {path:?} cannot be taken over: {e}");
                StartError::new(Kind::IdMap, cause, "check the file system it lies on")
            })?;
        }
    }
    Ok(())
}

type Mapping = (Owner, Rc<OwnedFd>);

/// One user namespace for each owner the plan maps.
fn mappings(
    shop: &mut Shop,
    plan: &crate::Plan,
    session: Option<u32>,
) -> Result<Vec<Mapping>, StartError> {
    let Some(session) = session else { return Ok(Vec::new()) };
    let mut list: Vec<Mapping> = Vec::new();
    for step in &plan.steps {
        if let crate::Step::Bind(bind) = step
            && let Some(owner) = bind.owner
            && !list.iter().any(|(o, _)| *o == owner)
        {
            let fd = shop.mappings.get(owner, session).map_err(|e| {
                let cause = format!("no user namespace for an id mapping: {e}");
                StartError::new(Kind::IdMap, cause, crate::doctor::user_namespace_remedy())
            })?;
            list.push((owner, fd));
        }
    }
    Ok(list)
}

fn line() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Only our end: a hostile other end must not be able to make us wait.
    rustix::io::ioctl_fionbio(&pair.0, true)?;
    Ok(pair)
}

fn job_file(job: &Job) -> std::io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("job", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(job)?)?;
    Ok(file.into())
}

fn clone(shop: &Shop, fds: &[BorrowedFd<'_>]) -> Result<(i32, OwnedFd), StartError> {
    let mut flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if shop.facts.mode == Mode::User {
        flags |= libc::CLONE_NEWUSER;
    }
    let role = CString::new(crate::INIT_ROLE).unwrap_or_default();
    let argv = [c"nanoclaw".to_owned(), role];
    sys::clone_exec(flags as u64, shop.image.as_fd(), &argv, fds).map_err(|e| {
        let remedy = match shop.facts.mode {
            Mode::User => crate::doctor::user_namespace_remedy(),
            Mode::Root => "the kernel refuses namespaces to root: see `nanoclaw doctor`",
        };
        StartError::new(Kind::Namespaces, format!("no new namespaces: {e}"), remedy)
    })
}
