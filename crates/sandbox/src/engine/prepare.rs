//! From a spec to a container that waits, measured, for the word to run its program.
//!
//! Pipeline: checked ─► planned ─► root ─► line ─► made, started ─► called back ─► work ─► measured
//! ─► verified.
//!
//! Invariants:
//! 1. Whatever fails, the container made so far is removed (`Body` on drop).
//! 2. The first process is who calls: the pid of the caller, as the kernel has it, is the one that
//!    the engine tells.
//! 3. Files that are mounted by path are the ones that were checked: they are opened without
//!    following a link before, and compared from inside after.

use super::Engine;
use super::api::Inspected;
use super::container::Container;
use super::fitness::Kind as Dialect;
use super::folder::{HOME_LABEL, Line, SESSION_LABEL, STARTER_LABEL};
use super::live::{Body, Waiting};
use super::outside::Outside;
use super::reports::{self, Reports};
use super::request::{self, Occasion};
use super::verify::{self, Demand, Files, Found};
use super::{container, lock, root};
use crate::cgroup::Group;
use crate::client::Operations;
use crate::error::{SpecErrorKind, StartError, StartErrorKind as Kind};
use crate::facts::Mode;
use crate::operation::Operation;
use crate::plan::{BINARY_INSIDE, Plan};
use crate::report::Report;
use crate::spawner::Bounds;
use crate::step::{Bind, Owner, Step};
use crate::wire::{self, Job, Measured, Order, Word};
use crate::{Prepared, Sources, Stdio};
use model::{DoorSpec, SandboxSpec, Workspace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Gid, Mode as FileMode, OFlags, ResolveFlags, Stat, Uid, openat2};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// The first process calls within milliseconds of its start; a machine that swaps takes seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked at whether there is still anybody to call.
const LOOK: Duration = Duration::from_millis(500);
/// Carrying out its steps takes the first process milliseconds.
const WORK_TIMEOUT: Duration = Duration::from_secs(15);
/// Engines refuse less memory.
const MEMORY_MIN: u64 = 6 << 20;
/// Characters that Podman takes for the end of a path in what it is asked for.
const PODMAN_SEPARATORS: [char; 2] = [',', '"'];

fn engine_error(cause: impl Into<String>, remedy: &str) -> StartError {
    StartError::new(Kind::Engine, cause, remedy)
}

/// Builds and measures.
pub(super) fn prepare(
    engine: &Arc<Engine>,
    spec: &SandboxSpec,
    stdio: Stdio,
) -> Result<Prepared, StartError> {
    let facts = &engine.shop.facts;
    crate::client::bounded(spec)?;
    let mut sources = crate::check(spec, facts)?;
    if facts.landlock_abi == 0 {
        let cause = "the kernel has no Landlock";
        return Err(StartError::new(Kind::Landlock, cause, crate::doctor::LANDLOCK_REMEDY));
    }
    if facts.mode == Mode::Root {
        crate::spawner::own_folders(spec, &mut sources, &facts.private)?;
    }
    let owner = container::identity(facts.mode);
    fits(spec, &sources, owner)?;
    let native = crate::plan::native(spec, facts, &sources);
    let inside = request::inside(owner, &engine.facts);
    let plan = container::translate(spec, facts, &native, inside);
    let Some(Step::Container(container)) = plan.steps.first() else {
        return Err(engine_error("the plan makes no container", "report this defect"));
    };
    let container = Container::clone(container);
    if facts.mode == Mode::Root {
        own_terminals(&stdio, owner)?;
    }
    let mut files = files(&container, engine.facts.kind, owner)?;
    covers(engine, &container, &mut files)?;
    let image = image(engine, &container)?;
    let (body, inspected) = start(engine, spec, &container, &image)?;
    let Told { measured, io, reports } = work(&body, &plan, &stdio, spec.witness)?;
    drop(stdio);
    let gone = |e: std::io::Error| engine_error(format!("the container is gone: {e}"), AGAIN);
    let outside = Outside::look(body.pid).map_err(gone)?;
    let demand = Demand {
        container: &container,
        spec,
        facts: &engine.facts,
        owner,
        files: &files,
        host: &engine.shop.namespaces,
        landlock: facts.landlock_abi,
        image: &image,
    };
    let found = Found { inspected: &inspected, outside: &outside, inside: &measured };
    let mut walls = verify::walls(&demand, &found)?;
    let (reports, from) = reports.unzip();
    walls.push(verify::witness(reports.as_ref().map(Reports::reads)));
    let group = Group::of(body.pid).map_err(gone)?;
    // Nothing foreign runs yet, so no socket was made that this would not count.
    group.hold_sockets(spec.limits.memory_bytes.value);
    let limits = verify::limits(&spec.limits, &group.held(), &measured, has_swap())?;
    // Last, for what is searched for may appear at any time.
    crate::sockets::refuse(spec)?;
    let pid = u32::try_from(body.pid).unwrap_or(0);
    let Measured { moved, probes, .. } = measured;
    let waiting = Waiting::new(body, group, (moved, io), reports, Bounds::of(spec));
    let operations = from.map(|from| Operations::new(from, waiting.server()));
    let report = Report { walls, limits, plan, pid, probes };
    Ok(Prepared::new(report, operations, Box::new(waiting)))
}

const AGAIN: &str = "try again; if it repeats, look at what the engine itself logs";

/// Whether this machine has anything to swap to; the first line of the file is a heading.
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// A terminal of the session is the session's: else `/dev/stdout` could not be opened inside.
fn own_terminals(stdio: &Stdio, owner: Owner) -> Result<(), StartError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        if rustix::termios::isatty(stream) {
            rustix::fs::fchown(stream, Some(uid), Some(gid)).map_err(|e| {
                let cause = format!("the terminal cannot be given to the session: {e}");
                StartError::new(Kind::Identity, cause, "leave -t out")
            })?;
        }
    }
    Ok(())
}

/// Without a mapping of ids, folders must belong to who the program is.
fn fits(spec: &SandboxSpec, sources: &Sources, owner: Owner) -> Result<(), StartError> {
    let memory = spec.limits.memory_bytes.value;
    if memory < MEMORY_MIN {
        let cause = format!("the limit memory is {memory}, and engines take no less than 6 MiB");
        return Err(StartError::new(Kind::Spec(SpecErrorKind::Limit), cause, "use 16 MiB or more"));
    }
    let (Workspace::Session(workspace) | Workspace::User(workspace)) = &spec.workspace;
    let granted = spec.mounts.iter().filter(|m| m.access == model::Access::Write);
    let written = [&spec.home, workspace].into_iter().chain(granted.map(|m| &m.source));
    for path in written {
        // The group may be another: who owns a folder may do with it what he likes.
        let whose = sources.owners.get(path).map(|o| o.uid);
        if let Some(whose) = whose.filter(|uid| *uid != owner.uid) {
            let cause = format!(
                "{path:?} belongs to uid {whose}, and in a container the program is uid {}",
                owner.uid
            );
            let remedy = format!(
                "an engine cannot map ids: run nanoclaw as the user who owns the folder, give the \
                 folder to the program (chown -R {} …), or write `backend = \"native\"`",
                owner.uid
            );
            return Err(StartError::new(Kind::IdMap, cause, remedy));
        }
    }
    Ok(())
}

/// Whether this engine can be told of a path.
fn mountable(path: &str, dialect: Dialect) -> Result<(), StartError> {
    if dialect != Dialect::Podman || !path.contains(PODMAN_SEPARATORS) {
        return Ok(());
    }
    let cause = format!("podman cannot mount {path:?}: it has a comma or a quote");
    let kind = Kind::Spec(SpecErrorKind::Path);
    Err(StartError::new(kind, cause, "rename the folder or grant another"))
}

/// What stands there; no link is followed.
fn look(path: &str) -> Result<Stat, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, path, flags, FileMode::empty(), resolve).and_then(rustix::fs::fstat)
}

/// What will cover places that may hold keys, among the files to be found inside. A place that is
/// not there any more would be made by the engine, in the user's own folder.
fn covers(engine: &Engine, container: &Container, files: &mut Files) -> Result<(), StartError> {
    for mask in &container.masks {
        mountable(&mask.path, engine.facts.kind)?;
        let below = |bind: &Bind| {
            let rest = mask.path.strip_prefix(&bind.target)?;
            rest.starts_with('/').then(|| format!("{}{rest}", bind.source))
        };
        let place = container.watched().find_map(below).unwrap_or_default();
        let folder = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if look(&place).map(folder) != Ok(mask.directory) {
            let cause = format!("{place:?} may hold keys and cannot be covered: gone or closed");
            let remedy = "start it again; if it repeats, give yourself access to the folders above \
                          it (chmod u+rx)";
            return Err(StartError::new(Kind::Mount, cause, remedy));
        }
        let cover = engine.shop.folder.cover(mask.directory).map_err(disk)?;
        let stat = rustix::fs::stat(&cover).map_err(|e| disk(e.into()))?;
        files.insert(mask.path.clone(), (stat.st_dev, stat.st_ino));
    }
    Ok(())
}

fn disk(e: std::io::Error) -> StartError {
    let cause = format!("what the container is shown cannot be written: {e}");
    engine_error(cause, "free some room on the disk")
}

/// Which files will be mounted, opened without following any link.
fn files(container: &Container, dialect: Dialect, owner: Owner) -> Result<Files, StartError> {
    let mut files = Files::new();
    for bind in container.watched() {
        mountable(&bind.source, dialect)?;
        mountable(&bind.target, dialect)?;
        let stat = look(&bind.source).map_err(|e| {
            let cause = format!("the source {:?} cannot be opened: {e}", bind.source);
            StartError::new(Kind::Spec(SpecErrorKind::Symlink), cause, "name the real path")
        })?;
        // Everybody may use the door and read the certificates, or the program could not: its id
        // is not mapped to theirs.
        let own = [DoorSpec::INSIDE, DoorSpec::TRUST_INSIDE].contains(&bind.target.as_str());
        let need = if bind.target == DoorSpec::INSIDE { 0o006 } else { 0o004 };
        if own && stat.st_uid != owner.uid && stat.st_mode & need != need {
            let cause = format!("{:?} is closed to uid {}", bind.source, owner.uid);
            return Err(engine_error(cause, "report this defect"));
        }
        files.insert(bind.target.clone(), (stat.st_dev, stat.st_ino));
    }
    let own = rustix::fs::stat("/proc/self/exe").map(|s| (s.st_dev, s.st_ino));
    match (files.get(BINARY_INSIDE), own) {
        (Some(mounted), Ok(own)) if *mounted == own => Ok(files),
        (None, _) => Err(engine_error(
            "a container cannot be shown the nanoclaw program: not everyone may execute it",
            "chmod 755 the program",
        )),
        _ => Err(engine_error(
            "the nanoclaw program was replaced while it runs",
            "start nanoclaw again",
        )),
    }
}

/// The id of the image: the one that is asked for, if the engine has it, or a root made here.
fn image(engine: &Engine, container: &Container) -> Result<String, StartError> {
    let api = &engine.api;
    let Some(wanted) = &container.image else { return root_image(engine, container) };
    let found = api.image(wanted)?.ok_or_else(|| {
        let cause = format!("{} has no image {wanted}", container.engine);
        engine_error(cause, "pull or load it into the engine first: NanoClaw never pulls")
    })?;
    let volumes = found.config.and_then(|c| c.volumes).unwrap_or_default();
    match volumes.keys().next() {
        None => Ok(found.id),
        Some(place) => Err(engine_error(
            format!("the image {wanted} declares a volume at {place:?}, which would be writable"),
            "use an image without VOLUME",
        )),
    }
}

fn root_image(engine: &Engine, container: &Container) -> Result<String, StartError> {
    let archive = root::archive(&container.skeleton).map_err(|root::TooLong(path)| {
        engine_error(format!("the path {path:?} is too long for an image"), "shorten it")
    })?;
    let name = root::name(&archive);
    let mut roots = lock(&engine.roots);
    if let Some(id) = roots.get(&name) {
        return Ok(id.clone());
    }
    let id = match engine.api.root(&name)? {
        Some(id) => id,
        None => {
            engine.api.import(&name, archive)?;
            let imported = engine.api.root(&name)?;
            imported.ok_or_else(|| engine_error("the imported root cannot be found", AGAIN))?
        }
    };
    roots.insert(name, id.clone());
    Ok(id)
}

/// Makes the container and starts it, until its first process has called.
fn start(
    engine: &Arc<Engine>,
    spec: &SandboxSpec,
    container: &Container,
    image: &str,
) -> Result<(Body, Inspected), StartError> {
    let shop = &engine.shop;
    let number = shop.made.fetch_add(1, Ordering::Relaxed) + 1;
    let line = shop.folder.line(number).map_err(disk)?;
    let files = container.files.iter().map(|(_, text)| shop.folder.file(text.as_bytes()));
    let occasion = Occasion {
        image: image.to_owned(),
        line: line.path.clone(),
        files: files.collect::<Result<_, _>>().map_err(disk)?,
        covers: [shop.folder.cover(false).map_err(disk)?, shop.folder.cover(true).map_err(disk)?],
        profile: shop.profile.clone(),
        labels: BTreeMap::from([
            (HOME_LABEL.to_owned(), shop.folder.home()),
            (SESSION_LABEL.to_owned(), spec.session.to_string()),
            (STARTER_LABEL.to_owned(), shop.folder.starter().to_owned()),
        ]),
        hard: engine.hard,
    };
    let name = format!("nanoclaw-{}-{}-{number}", spec.session, shop.folder.starter());
    let request = request::body(container, &engine.facts, &occasion);
    let id = engine.api.create(&name, &request)?;
    let mut body = Body::new(Arc::clone(engine), id);
    engine.api.start(&body.id)?;
    let inspected = engine.api.inspect(&body.id)?;
    if !inspected.state.running || inspected.state.pid <= 0 {
        return Err(ended_at_once(&inspected));
    }
    body.pid = inspected.state.pid;
    body.pidfd = Pid::from_raw(body.pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok());
    body.line = Some(called(&body, &line)?);
    Ok((body, inspected))
}

fn ended_at_once(inspected: &Inspected) -> StartError {
    let state = &inspected.state;
    let said: String = state.error.chars().filter(|c| !c.is_control()).take(300).collect();
    let cause = format!("the container ended at once with status {}: {said}", state.exit_code);
    engine_error(cause, "look at what the engine itself logs")
}

/// Waits for the first process to call.
fn called(body: &Body, line: &Line) -> Result<OwnedFd, StartError> {
    let until = Instant::now() + CALL_TIMEOUT;
    while Instant::now() < until {
        let mut fds = [PollFd::new(&line.socket, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&timespec(LOOK))).is_ok_and(|n| n > 0);
        if !ready {
            let inspected = body.engine.api.inspect(&body.id)?;
            if !inspected.state.running {
                return Err(ended_at_once(&inspected));
            }
            continue;
        }
        let Ok(call) = accept_with(&line.socket, SocketFlags::CLOEXEC) else { continue };
        let caller = sockopt::socket_peercred(&call).map(|c| c.pid.as_raw_nonzero().get());
        if caller == Ok(body.pid) {
            return Ok(call);
        }
        return Err(engine_error(
            format!("process {caller:?} called, not the container's first, {}", body.pid),
            "run nanoclaw in the same PID namespace as the engine: on the host, not in a container",
        ));
    }
    Err(engine_error(
        "the container's first process did not call: it cannot reach a socket of this machine",
        "use a runtime that shares this machine's kernel (runc, crun), or let it pass sockets \
         (runsc: runtimeArgs [\"--host-uds=all\"])",
    ))
}

pub(super) fn timespec(time: Duration) -> Timespec {
    let seconds = time.as_secs().try_into().unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() }
}

/// What the first process tells after its steps, and what came with it.
struct Told {
    measured: Measured,
    /// The open counter of what it moves.
    io: Option<OwnedFd>,
    /// Where operations are witnessed.
    reports: Option<(Reports, Receiver<Operation>)>,
}

fn lost(e: std::io::Error) -> StartError {
    engine_error(format!("the first process was lost: {e}"), AGAIN)
}

/// Gives the first process its kit and its steps; what it tells after them. Calls of our own probe
/// are answered meanwhile.
fn work(body: &Body, plan: &Plan, stdio: &Stdio, witness: bool) -> Result<Told, StartError> {
    let line = body.line()?;
    equip(line, body, plan, stdio).map_err(lost)?;
    let until = Instant::now() + WORK_TIMEOUT;
    let mut reports: Option<(Reports, Receiver<Operation>)> = None;
    let mut buffer = Vec::new();
    while Instant::now() < until {
        let serving = reports.as_ref().map(|(reports, _)| reports);
        let heard = reports::wait(line, serving, Some(until));
        if let Some(reports) = serving.filter(|_| heard.called) {
            reports.turn().map_err(lost)?;
        }
        if !heard.said {
            continue;
        }
        let (word, mut fds) = wire::receive::<Word>(line, &mut buffer)
            .map_err(lost)?
            .ok_or_else(|| engine_error("the first process ended early", AGAIN))?;
        let tells = matches!(word, Word::Probing | Word::Measured(_));
        // The listener is the last of what comes with the first of these words.
        if tells && witness && reports.is_none() {
            reports = Some(Reports::new(&body.engine.shop, fds.pop(), body.pid)?);
        }
        match word {
            Word::Probing => {}
            Word::Measured(measured) => {
                let io = measured.moved.is_some().then(|| fds.pop()).flatten();
                return Ok(Told { measured, io, reports });
            }
            Word::Failed { error, .. } => return Err(error),
            Word::Finished { .. } => {
                return Err(engine_error("the first process ended early", AGAIN));
            }
        }
    }
    let cause = format!("preparing took over {} s", WORK_TIMEOUT.as_secs());
    let remedy = "the machine is overloaded; try again later";
    Err(StartError::new(Kind::TimeOut, cause, remedy))
}

/// The kit, the steps and the program's streams.
fn equip(line: &OwnedFd, body: &Body, plan: &Plan, stdio: &Stdio) -> std::io::Result<()> {
    let shop = &body.engine.shop;
    wire::send(line, &Order::Kit, &[shop.image.as_fd(), shop.filter.as_fd()])?;
    let job = Job { steps: plan.steps.get(1..).unwrap_or_default().to_vec(), ..Job::default() };
    let bytes = wire::encode(&Order::Work(Box::new(job)))?;
    let streams = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
    wire::send_bytes(line, &bytes, &streams)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::tests::spec;

    const ME: Owner = Owner { uid: 1001, gid: 1001 };

    #[test]
    fn folders_must_belong_to_who_the_program_is() {
        let mut sources = Sources::from([("/w".into(), ME), ("/h".into(), ME)]);
        assert_eq!(fits(&spec(), &sources, ME), Ok(()));
        sources.owners.insert("/w".into(), Owner { uid: 0, gid: 0 });
        let error = fits(&spec(), &sources, ME).unwrap_err();
        assert_eq!(error.kind, Kind::IdMap);
        assert!(error.remedy.contains("native"), "{error}");
        let mut small = spec();
        small.limits.memory_bytes.value = 5 << 20;
        let error = fits(&small, &sources, ME).unwrap_err();
        assert_eq!(error.kind, Kind::Spec(SpecErrorKind::Limit));
    }
}
