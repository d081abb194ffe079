//! One sandbox from clone to burial.

use super::body::{Body, Mapping};
use super::verify::{self, Demand};
use super::{PREPARE_TIMEOUT, Shop, adopt, outcome, pool, slots::Slots, watchdog};
use crate::cgroup::Group;
use crate::error::{StartError, StartErrorKind as Kind};
use crate::facts::{Mode, Rung};
use crate::report::{Ended, Report, Usage};
use crate::wire::{self, Answer, BoxId, Order, Word};
use model::{SandboxSpec, Workspace};
use std::os::fd::OwnedFd;
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
    body: Body,
    pub(super) line_open: bool,
    phase: Phase,
    demand: Demand,
    plan: Option<crate::Plan>,
    killed: Option<String>,
    finished: Option<i32>,
    failed: Option<StartError>,
}

impl Live {
    /// Checks, plans, takes a body made ahead or a new one, and gives it its work.
    pub(super) fn make(
        shop: &mut Shop,
        id: BoxId,
        spec: &SandboxSpec,
        stdio: &[OwnedFd],
    ) -> Result<Self, StartError> {
        if stdio.len() != 3 {
            return Err(StartError::spawner("the three standard streams did not arrive"));
        }
        let mut sources = crate::check(spec, &shop.facts)?;
        if shop.facts.landlock_abi == 0 {
            let cause = "the kernel has no Landlock";
            return Err(StartError::new(Kind::Landlock, cause, crate::doctor::LANDLOCK_REMEDY));
        }
        verify::strict(&spec.limits, &shop.facts)?;
        if shop.facts.mode == Mode::Root {
            own_folders(spec, &mut sources, &shop.facts.private)?;
        }
        let plan = crate::plan(spec, &shop.facts, &sources);
        let (body, ahead) = match pool::take(shop, &plan.steps, &spec.limits) {
            Some(body) => (body, true),
            None => (Body::new(shop)?, false),
        };
        let mut live = Self::with(body, id, spec, plan, shop);
        match live.set_to_work(shop, spec, stdio, ahead) {
            Ok(()) => Ok(live),
            Err(e) => {
                live.kill("it could not be given its work");
                live.bury(&mut shop.slots);
                Err(e)
            }
        }
    }

    fn with(body: Body, id: BoxId, spec: &SandboxSpec, plan: crate::Plan, shop: &Shop) -> Self {
        let demand = Demand {
            mode: shop.facts.mode,
            uid: body.session_uid.unwrap_or(rustix::process::getuid().as_raw()),
            landlock: shop.facts.landlock_abi,
            ladder: shop.facts.ladder,
            limits: spec.limits.clone(),
            door: match &spec.network {
                model::Network::Door(door) => Some(door.clone()),
                model::Network::None => None,
            },
        };
        Self {
            id,
            body,
            line_open: true,
            phase: Phase::Preparing { deadline: Instant::now() + PREPARE_TIMEOUT },
            demand,
            plan: Some(plan),
            killed: None,
            finished: None,
            failed: None,
        }
    }

    fn set_to_work(
        &mut self,
        shop: &mut Shop,
        spec: &SandboxSpec,
        stdio: &[OwnedFd],
        ahead: bool,
    ) -> Result<(), StartError> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let mappings = mappings(shop, plan, self.body.session_uid)?;
        self.body.work(&plan.steps, stdio, &mappings)?;
        if ahead { Ok(()) } else { self.body.join(shop, &spec.limits) }
    }

    /// Its line, to wait for words.
    pub(super) fn line(&self) -> &OwnedFd {
        &self.body.line
    }

    /// Readable when its first process has ended.
    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.body.pidfd
    }

    /// Reads one word of init; what to tell the client, if anything.
    pub(super) fn hear(&mut self, buffer: &mut Vec<u8>, host: &[(String, u64)]) -> Option<Answer> {
        match wire::receive::<Word>(&self.body.line, buffer) {
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
        let limits = verify::limits(&self.demand, m, self.body.group.as_ref(), self.body.pid);
        match walls.and_then(|w| Ok((w, limits?))) {
            Ok((walls, limits)) => {
                self.phase = Phase::Waiting;
                self.body.witness.zero(m.moved);
                let plan = self.plan.take()?;
                let pid = u32::try_from(self.body.pid).unwrap_or(0);
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
            let _ = wire::send(&self.body.line, &Order::Go, &[]);
        }
    }

    pub(super) fn signal(&self, signal: i32) {
        if matches!(self.phase, Phase::Running { .. }) {
            let _ = wire::send(&self.body.line, &Order::Signal(signal), &[]);
        }
    }

    pub(super) fn kill(&mut self, why: &str) {
        if self.finished.is_none() {
            self.killed.get_or_insert_with(|| why.to_owned());
        }
        self.body.kill();
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
                let (used, _) = watchdog::tree(self.body.pid);
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
        let group = self.body.group.as_ref();
        let (tree_bytes, tree_pids) = match group.and_then(Group::memory) {
            Some(_) => (0, 0),
            None => watchdog::tree(self.body.pid),
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
        let (reaped, traffic) = self.body.reap();
        let group = self.body.group.as_ref();
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
        self.body.end(slots);
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
        let outcome = outcome(self.finished, status, self.killed.as_deref(), usage.oom_kills);
        Answer::Ended { id: self.id, ended: Ended { outcome, usage, traffic } }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Home and session workspace get their fixed owner on disk.
pub(crate) fn own_folders(
    spec: &SandboxSpec,
    sources: &mut crate::Sources,
    private: &[std::path::PathBuf],
) -> Result<(), StartError> {
    let mut folders = vec![&spec.home];
    if let Workspace::Session(path) = &spec.workspace {
        folders.push(path);
    }
    for path in folders {
        if let Some(owner) = sources.get_mut(path) {
            *owner = adopt::adopt(path, *owner, private).map_err(|e| {
                let cause = format!("the session's folder {path:?} cannot be taken over: {e}");
                StartError::new(Kind::IdMap, cause, "check the file system it lies on")
            })?;
        }
    }
    Ok(())
}

/// One user namespace for each owner the plan maps.
fn mappings(
    shop: &mut Shop,
    plan: &crate::Plan,
    session: Option<u32>,
) -> Result<Vec<Mapping>, StartError> {
    let Some(session) = session else { return Ok(Vec::new()) };
    let mut list: Vec<Mapping> = Vec::new();
    for step in &plan.steps {
        if let crate::Step::Bind(bind) | crate::Step::Trust(bind) = step
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
