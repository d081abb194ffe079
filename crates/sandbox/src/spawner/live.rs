//! One sandbox from clone to burial.

use super::body::{Body, Mapping};
use super::bounds::Bounds;
use super::operations::{Readers, Watch, Way};
use super::still::Still;
use super::verify::{self, Demand};
use super::{PREPARE_TIMEOUT, Shop, adopt, outcome, pool, slots::Slots, watchdog::Watchdog};
use crate::cgroup::Group;
use crate::error::{StartError, StartErrorKind as Kind};
use crate::facts::{Mode, Rung};
use crate::report::{Ended, Report, Usage};
use crate::secrets::Mask;
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
    /// Reports of it, from before its program runs.
    watch: Option<Watch>,
    still: Still,
    /// What no kernel holds: time, and room on the disk.
    bounds: Bounds,
    /// What it holds in memory, where no control group counts it.
    memory: Watchdog,
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
        masks: Vec<Mask>,
        stdio: &[OwnedFd],
    ) -> Result<Self, StartError> {
        if stdio.len() != 3 {
            return Err(StartError::spawner("the three standard streams did not arrive"));
        }
        let mut sources = crate::check::host(spec, &shop.facts)?;
        sources.masks = masks;
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
                let (outbox, executions) = (&mut shop.outbox, &mut shop.executions);
                live.bury(&mut shop.slots, &mut Way::Client { id, outbox, executions });
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
            witness: spec.witness,
        };
        Self {
            id,
            body,
            line_open: true,
            phase: Phase::Preparing { deadline: Instant::now() + PREPARE_TIMEOUT },
            demand,
            plan: Some(plan),
            watch: None,
            still: Still::default(),
            bounds: Bounds::of(spec),
            memory: Watchdog::default(),
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
    pub(super) fn hear(
        &mut self,
        buffer: &mut Vec<u8>,
        host: &[(String, u64)],
        readers: &mut Readers,
    ) -> Option<Answer> {
        match wire::receive::<Word>(&self.body.line, buffer) {
            Ok(Some((Word::Probing, fds))) if matches!(self.phase, Phase::Preparing { .. }) => {
                let mut fds = fds;
                if let Err(error) = self.listen(&mut fds, readers) {
                    self.failed = Some(error);
                    self.kill("its operations cannot be witnessed");
                }
            }
            Ok(Some((Word::Measured(measured), fds)))
                if matches!(self.phase, Phase::Preparing { .. }) =>
            {
                return self.measured(&measured, fds, host, readers);
            }
            Ok(Some((Word::Failed { error, .. }, _)))
                if matches!(self.phase, Phase::Preparing { .. }) =>
            {
                self.failed = Some(error);
            }
            Ok(Some((Word::Finished { status }, _))) => {
                self.finished = Some(status);
                self.body.finish();
            }
            // Anything else from inside is noise; the line is of no more use.
            Ok(Some(_) | None) | Err(_) => self.line_open = false,
        }
        None
    }

    /// Takes the listener, the last of what came with a word, unless there is one already.
    fn listen(&mut self, fds: &mut Vec<OwnedFd>, readers: &mut Readers) -> Result<(), StartError> {
        if self.demand.witness && self.watch.is_none() {
            self.watch = Some(Watch::new(fds.pop(), self.body.pid, readers)?);
        }
        Ok(())
    }

    fn measured(
        &mut self,
        m: &wire::Measured,
        mut fds: Vec<OwnedFd>,
        host: &[(String, u64)],
        readers: &mut Readers,
    ) -> Option<Answer> {
        let walls = verify::walls(&self.demand, m, host);
        let limits = verify::limits(&self.demand, m, self.body.group.as_ref(), self.body.pid);
        match walls.and_then(|w| Ok((w, limits?, self.listen(&mut fds, readers)?))) {
            Ok((mut walls, limits, ())) => {
                let io = m.moved.is_some().then(|| fds.pop()).flatten();
                self.memory.segments(fds.pop());
                self.phase = Phase::Waiting;
                walls.push(verify::witness(self.watch.as_ref().map(Watch::reads)));
                if let Some(watch) = &mut self.watch {
                    watch.report();
                }
                self.body.witness.zero(m.moved, io);
                let plan = self.plan.take()?;
                let pid = u32::try_from(self.body.pid).unwrap_or(0);
                let probes = m.probes.clone();
                let report = Box::new(Report { walls, limits, plan, pid, probes });
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
            let now = Instant::now();
            self.phase = Phase::Running { look: watched.then_some(now) };
            self.bounds.start(now);
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

    /// Readable when a call waits for its answer, and is to have it now.
    pub(super) fn listener(&self) -> Option<&OwnedFd> {
        self.watch.as_ref().filter(|watch| watch.rests().is_none()).map(Watch::fd)
    }

    /// Answers a call that waits. A listener that gives none is of no more use.
    pub(super) fn called(&mut self, way: &mut Way<'_>, readers: &mut Readers) {
        if let Some(watch) = &mut self.watch
            && watch.turn(way, readers).is_err()
        {
            self.kill("its calls can no longer be answered");
        }
    }

    /// Ends it if one who read its memory was given up and still waits.
    pub(super) fn end_if_waited_for(&mut self, readers: &Readers) {
        let waited_for = self.watch.as_ref().is_some_and(|w| w.holds_a_reader(readers));
        if waited_for && self.killed.is_none() {
            self.kill("its memory cannot be read, and others wait to be read");
        }
    }

    /// So many of its reports are on record.
    pub(super) fn taken(&mut self, count: usize, way: &mut Way<'_>) {
        if let Some(watch) = &mut self.watch {
            watch.taken(count, way);
        }
    }

    /// Stops it, or lets it run on; the answer, if there is one already.
    pub(super) fn freeze(&mut self, frozen: bool) -> Option<Answer> {
        self.still.ask(self.id, frozen, self.body.group.as_mut(), self.body.pid)
    }

    /// When [`Live::tick`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let looks = self.watch.as_ref().and_then(Watch::due);
        let rest = self.watch.as_ref().and_then(Watch::rests);
        let bounds = self.bounds.due().filter(|_| self.killed.is_none());
        [self.phase_deadline(), looks, rest, self.still.due(), bounds].into_iter().flatten().min()
    }

    fn phase_deadline(&self) -> Option<Instant> {
        match self.phase {
            _ if self.killed.is_some() => None,
            Phase::Preparing { deadline } => Some(deadline),
            Phase::Waiting => None,
            Phase::Running { look } => look,
        }
    }

    /// Looks, time-out and watchdog; what to tell the client, if anything.
    pub(super) fn tick(&mut self, now: Instant, way: &mut Way<'_>) -> Option<Answer> {
        if let Some(watch) = &mut self.watch {
            watch.look(now, way);
        }
        self.watch_over(now);
        self.hold_to_limits(now);
        self.still.turn(self.id, self.body.group.as_mut(), now)
    }

    /// Ends it when its time is over, or it keeps too much on the disk.
    fn hold_to_limits(&mut self, now: Instant) {
        if self.killed.is_some() {
            return;
        }
        if let Some(why) = self.bounds.turn(now, self.body.pid) {
            self.kill(&why);
        }
    }

    fn watch_over(&mut self, now: Instant) {
        if self.phase_deadline().is_none_or(|at| at > now) {
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
                let found = self.memory.look(self.body.pid);
                let pause = found.pause(limit, now.elapsed());
                self.phase = Phase::Running { look: pause.map(|pause| Instant::now() + pause) };
                if pause.is_none() {
                    self.kill(found.reason());
                }
            }
            Phase::Waiting => {}
        }
    }

    /// What it uses now.
    pub(super) fn usage(&self) -> Usage {
        let group = self.body.group.as_ref();
        let counted = group.and_then(Group::memory);
        let tree = counted.is_none().then(|| self.memory.look(self.body.pid));
        let tree = tree.unwrap_or_default();
        let memory = counted.unwrap_or(tree.bytes);
        Usage {
            cpu_ms: group.and_then(Group::cpu).map_or(0, millis),
            memory_bytes: memory,
            peak_memory_bytes: group.and_then(Group::peak).unwrap_or(memory),
            pids: group.and_then(Group::pids).unwrap_or(tree.processes),
            oom_kills: group.and_then(Group::oom_kills).unwrap_or(0),
            peak_pids: group.and_then(Group::peak_pids),
            disk_bytes: self.bounds.found(),
        }
    }

    /// Reaps it and gives everything back. Waits if need be: call it after its end or `kill`.
    pub(super) fn bury(&mut self, slots: &mut Slots, way: &mut Way<'_>) -> Answer {
        let (reaped, traffic) = self.body.reap();
        let operations = self.watch.take().map(|mut watch| watch.end(way));
        let group = self.body.group.as_ref();
        // What its processes were not waited for is in the group's count alone.
        let cpu = reaped.map(|r| r.cpu).max(group.and_then(Group::cpu));
        let usage = Usage {
            cpu_ms: cpu.map_or(0, millis),
            memory_bytes: 0,
            peak_memory_bytes: group
                .and_then(Group::peak)
                .or(reaped.map(|r| r.peak_rss))
                .unwrap_or(0),
            pids: 0,
            oom_kills: group.and_then(Group::oom_kills).unwrap_or(0),
            peak_pids: group.and_then(Group::peak_pids),
            disk_bytes: self.bounds.last(),
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
        Answer::Ended { id: self.id, ended: Ended { outcome, usage, traffic, operations } }
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
        if let Some(owner) = sources.owners.get_mut(path) {
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
                StartError::new(Kind::IdMap, cause, crate::userns::remedy())
            })?;
            list.push((owner, fd));
        }
    }
    Ok(list)
}
