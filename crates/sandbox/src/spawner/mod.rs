//! `__spawner`: the small process that alone starts sandboxes.
//!
//! Pipeline: control socket ─► requests ─► `Live` boxes (line + pidfd each) ─► answers. One poll
//! loop, no thread, no secret. Memory of a sandbox is read by a child of it.
//!
//! Invariants:
//! 1. Ends, and kills and removes every sandbox, when the control socket closes or its parent
//!    dies.
//! 2. A sandbox's process, slot, cgroups and descriptors live in one `Body`, owned by its `Live`
//!    or, before anybody asked for it, by the pool. They are given back after its processes are
//!    gone.
//! 3. It waits for nothing but its descriptors: not for the client, to whom it sends through a
//!    queue, and not for a sandbox, but for the end of one that it has killed, and for a short time
//!    for a read of its memory (`operations::reader`).
//! 4. What init says after `go` comes from inside: it is bounded, and only its exit status is
//!    believed, for display.

mod adopt;
mod body;
mod bounds;
mod disk;
pub(crate) mod id_range;
mod live;
mod mapping;
mod operations;
mod outbox;
mod pool;
mod slots;
mod still;
mod verify;
mod watchdog;
mod witness;

pub(crate) use bounds::Bounds;
pub(crate) use live::own_folders;
pub(crate) use operations::{Readers, Watch, Way, mark};
pub(crate) use verify::complete as complete_states;
pub(crate) use verify::witness as witness_wall;
pub(crate) use witness::Witness;

use crate::cgroup::Parent;
use crate::error::{StartError, StartErrorKind};
use crate::facts::{HostFacts, Mode};
use crate::report::Outcome;
use crate::wire::{self, Answer, BoxId, Request};
use live::Live;
use outbox::Outbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{DumpableBehavior, Signal};
use std::collections::BTreeMap;
use std::io::{self, Seek};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Sandboxes one spawner holds: six descriptors each must fit the usual limit of 20,000.
const BOXES_MAX: usize = 3_072;
/// The control socket is the spawner's standard input: no descriptor number to agree on.
const CONTROL_FD: i32 = 0;

/// What all sandboxes of this spawner share.
struct Shop {
    outbox: Outbox,
    image: OwnedFd,
    filter: OwnedFd,
    null: OwnedFd,
    facts: HostFacts,
    parent: Option<Parent>,
    slots: slots::Slots,
    mappings: mapping::Mappings,
    namespaces: Vec<(String, u64)>,
    own_name: String,
    made: u64,
    /// Executions reported so far, of all sandboxes.
    executions: u64,
    readers: Readers,
    pool: pool::Pool,
}

/// Entry point of `argv[1] == SPAWNER_ROLE`. Its standard input is the control socket.
#[must_use]
pub fn spawner_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // The client sees the connection end; there is nobody else to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    let control = crate::sys::inherit(CONTROL_FD)?.try_clone()?;
    // The lowest free number is standard input's: nothing else may come to stand there.
    let lowest = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let null: OwnedFd = lowest.try_clone()?.into();
    let _ = lowest.into_raw_fd();
    // Ctrl-C in the terminal is for the client to handle.
    let _ = rustix::process::setsid();
    let end = crate::sys::signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    // TERM, not KILL: it is taken from a descriptor and leaves time to remove cgroups. A parent
    // that died before this line has closed the control socket, which ends the loop as well.
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let image = sealed_image()?;
    let mut shop = Shop {
        outbox: Outbox::new(control),
        image,
        null,
        filter: sealed_filter()?,
        facts: HostFacts::gather(Vec::new()),
        parent: Parent::find(),
        slots: slots::Slots::new(),
        mappings: mapping::Mappings::default(),
        namespaces: crate::init::namespaces()?,
        own_name: own_name()?,
        made: 0,
        executions: 0,
        readers: Readers::default(),
        pool: pool::Pool::new()?,
    };
    sweep();
    let mut boxes = BTreeMap::new();
    let result = shop.turn_until_end(&mut boxes, &end);
    // All are killed before the end of any is waited for, which another could hold up.
    for live in boxes.values_mut() {
        live.kill("the spawner ended");
    }
    for (id, mut live) in boxes {
        let (outbox, executions) = (&mut shop.outbox, &mut shop.executions);
        live.bury(&mut shop.slots, &mut Way::Client { id, outbox, executions });
    }
    pool::drain(&mut shop);
    result
}

/// `<pid>-<start time>`: unique on this machine since boot.
pub(crate) fn own_name() -> io::Result<String> {
    let pid = rustix::process::getpid().as_raw_nonzero();
    let start = start_time("self").ok_or_else(|| io::Error::other("odd /proc/self/stat"))?;
    Ok(format!("{pid}-{start}"))
}

fn start_time(pid: &str) -> Option<u64> {
    const AFTER_COMMAND: usize = 19;
    let stat = crate::procfs::text(&format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(AFTER_COMMAND)?.parse().ok()
}

/// Whether the process that [`own_name`] named still runs.
pub(crate) fn alive(owner: &str) -> bool {
    let Some((pid, start)) = owner.split_once('-') else { return false };
    start_time(pid).is_some_and(|now| now.to_string() == start)
}

/// Removes control groups that dead spawners left behind. Called at every spawner's start; safe
/// to call at any time, for live spawners are recognised.
pub fn sweep() {
    if let Some(parent) = Parent::find() {
        parent.sweep(alive);
    }
}

/// Control groups that stand for sandboxes of the spawner with this pid, whatever their state; none
/// where no control group can be used.
#[must_use]
pub fn groups_of(spawner: u32) -> usize {
    Parent::find().map_or(0, |parent| parent.count(&format!("{spawner}-")))
}

/// Our own executable, as a file that nobody can change.
pub(crate) fn sealed_image() -> io::Result<OwnedFd> {
    let mut exe = std::fs::File::open("/proc/self/exe")?;
    // Kernels before 6.3 do not know the flag that asks for an executable one.
    seal("nanoclaw", &mut exe, MemfdFlags::EXEC).or_else(|_| {
        exe.rewind()?;
        seal("nanoclaw", &mut exe, MemfdFlags::empty())
    })
}

/// The programs of system calls, as a file that nobody can change.
pub(crate) fn sealed_filter() -> io::Result<OwnedFd> {
    seal("filter", &mut &*crate::seccomp::encode(), MemfdFlags::empty())
}

/// A copy that nobody can change any more.
fn seal(name: &str, from: &mut impl io::Read, kind: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
    let mut to = std::fs::File::from(rustix::fs::memfd_create(name, flags)?);
    io::copy(from, &mut to)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&to, seals)?;
    Ok(to.into())
}

type Boxes = BTreeMap<BoxId, Live>;

/// What one wait found.
#[derive(Default)]
struct Events {
    /// A request can be read.
    control: bool,
    /// A signal says to end.
    ended: bool,
    /// The spare has ended.
    spare: bool,
    /// A process that read and was given up has ended.
    reader: bool,
    /// For each box with an event.
    boxes: Vec<(BoxId, Happened)>,
}

/// What happened to one box.
#[derive(Clone, Copy)]
struct Happened {
    /// Its line is readable.
    line: bool,
    /// Its first process is gone.
    gone: bool,
    /// A call waits for its answer.
    call: bool,
}

/// Descriptors waited for besides the boxes', and for each box.
const FIXED: usize = 2;
const EACH: usize = 3;

impl Shop {
    fn turn_until_end(&mut self, boxes: &mut Boxes, end: &OwnedFd) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let Events { control, ended, spare, reader, boxes: events } = self.wait(boxes, end)?;
            if ended {
                return Ok(());
            }
            if spare {
                pool::drain(self);
            }
            if reader {
                self.readers.sweep();
            }
            self.outbox.flush();
            for (id, happened) in events {
                self.box_event(boxes, id, happened, &mut buffer);
            }
            if control {
                match wire::receive::<Request>(self.outbox.socket(), &mut buffer)? {
                    None => return Ok(()),
                    Some((request, fds)) => self.request(boxes, request, fds),
                }
            }
            self.clocks(boxes);
        }
    }

    /// Waits for anything.
    fn wait(&self, boxes: &Boxes, end: &OwnedFd) -> io::Result<Events> {
        // First: a listener that is left out below rests beyond this, or is not left out.
        let next = boxes.values().filter_map(Live::deadline).chain(self.pool.due()).min();
        let room = if self.outbox.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.outbox.socket(), PollFlags::IN | room),
            PollFd::new(end, PollFlags::IN),
        ];
        for live in boxes.values() {
            let line = if live.line_open { PollFlags::IN } else { PollFlags::empty() };
            // A line at its end would be reported for ever; its pidfd stands in for it, as for a
            // listener that is not there.
            let line_fd = if live.line_open { live.line() } else { live.pidfd() };
            fds.push(PollFd::new(line_fd, line));
            fds.push(PollFd::new(live.pidfd(), PollFlags::IN));
            fds.push(match live.listener() {
                Some(listener) => PollFd::new(listener, PollFlags::IN),
                None => PollFd::new(live.pidfd(), PollFlags::empty()),
            });
        }
        let spare_at = fds.len();
        fds.extend(self.pool.pidfd().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let readers_at = fds.len();
        fds.extend(self.readers.pidfds().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            let nanos = left.subsec_nanos().into();
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: nanos }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Events::default()),
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let at = |i: usize| ready.get(i).copied().unwrap_or(PollFlags::empty());
        let any = |i: usize| !at(i).is_empty();
        let events = boxes
            .iter()
            .zip((FIXED..).step_by(EACH))
            .map(|((id, live), first)| {
                let line = live.line_open && any(first);
                // A listener whose processes have all ended is reported, and has nothing to give.
                let call = at(first + 2).contains(PollFlags::IN);
                (*id, Happened { line, gone: any(first + 1), call })
            })
            .filter(|(_, h)| h.line || h.gone || h.call)
            .collect();
        let spare = (spare_at..readers_at).any(any);
        let reader = (readers_at..ready.len()).any(any);
        let control = at(0).intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        Ok(Events { control, ended: any(1), spare, reader, boxes: events })
    }

    fn box_event(
        &mut self,
        boxes: &mut Boxes,
        id: BoxId,
        happened: Happened,
        buffer: &mut Vec<u8>,
    ) {
        let Some(live) = boxes.get_mut(&id) else { return };
        if happened.line
            && let Some(answer) = live.hear(buffer, &self.namespaces, &mut self.readers)
        {
            self.answer(&answer);
        }
        if happened.call {
            let (outbox, executions) = (&mut self.outbox, &mut self.executions);
            live.called(&mut Way::Client { id, outbox, executions }, &mut self.readers);
        }
        if happened.gone
            && let Some(mut live) = boxes.remove(&id)
        {
            while live.line_open {
                if let Some(answer) = live.hear(buffer, &self.namespaces, &mut self.readers) {
                    self.answer(&answer);
                }
            }
            let (outbox, executions) = (&mut self.outbox, &mut self.executions);
            let answer = live.bury(&mut self.slots, &mut Way::Client { id, outbox, executions });
            self.answer(&answer);
        }
    }

    /// Where reports of a box go.
    fn way(&mut self, id: BoxId) -> Way<'_> {
        let (outbox, executions) = (&mut self.outbox, &mut self.executions);
        Way::Client { id, outbox, executions }
    }

    fn request(&mut self, boxes: &mut Boxes, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Hello { private, spares } => {
                self.facts.private = private;
                let facts = Box::new(self.facts.clone());
                self.answer(&Answer::Ready { facts });
                if spares {
                    self.pool.switch_on();
                }
            }
            Request::Prepare { id, spec, masks } => {
                let made = if boxes.len() >= BOXES_MAX {
                    Err(StartError::new(
                        StartErrorKind::Busy,
                        format!("{BOXES_MAX} sandboxes are open"),
                        "end some sessions first",
                    ))
                } else {
                    Live::make(self, id, &spec, masks, &fds)
                };
                match made {
                    Ok(live) => drop(boxes.insert(id, live)),
                    Err(error) => self.answer(&Answer::Failed { id, error }),
                }
            }
            Request::TryNamespaces => {
                let namespaces = try_namespaces(self.facts.mode);
                self.answer(&Answer::Tried { namespaces });
            }
            Request::Start { id } => {
                if let Some(live) = boxes.get_mut(&id) {
                    live.go();
                }
                self.pool.later();
            }
            Request::Signal { id, signal } => {
                if let Some(live) = boxes.get(&id) {
                    live.signal(signal);
                }
            }
            Request::Kill { id } => {
                if let Some(live) = boxes.get_mut(&id) {
                    live.kill("by request");
                }
            }
            Request::Usage { id } => {
                if let Some(live) = boxes.get(&id) {
                    self.answer(&Answer::Usage { id, usage: live.usage() });
                }
            }
            Request::Taken { id, count } => {
                if let Some(live) = boxes.get_mut(&id) {
                    live.taken(count, &mut self.way(id));
                }
            }
            Request::Mark { id, number } => mark(number, &mut self.way(id)),
            Request::Freeze { id, frozen } => {
                if let Some(answer) = boxes.get_mut(&id).and_then(|live| live.freeze(frozen)) {
                    self.answer(&answer);
                }
            }
        }
    }

    fn clocks(&mut self, boxes: &mut Boxes) {
        let now = Instant::now();
        pool::refill(self, now);
        let full = self.readers.is_full();
        for (id, live) in boxes {
            // Nobody's memory can be read before one of those who are waited for lets go.
            if full {
                live.end_if_waited_for(&self.readers);
            }
            if let Some(answer) = live.tick(now, &mut self.way(*id)) {
                self.answer(&answer);
            }
        }
    }

    /// A client that is gone is noticed by the loop.
    fn answer(&mut self, answer: &Answer) {
        let _ = self.outbox.answer(answer);
    }
}

/// Each kind of namespace, made once by a child that ends at once.
fn try_namespaces(mode: Mode) -> Vec<(String, Option<String>)> {
    let kinds = [
        ("mount", libc::CLONE_NEWNS),
        ("PID", libc::CLONE_NEWPID),
        ("network", libc::CLONE_NEWNET),
        ("IPC", libc::CLONE_NEWIPC),
        ("UTS", libc::CLONE_NEWUTS),
        ("user", libc::CLONE_NEWUSER),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    let with = if mode == Mode::User { libc::CLONE_NEWUSER } else { 0 };
    let attempt = |flags| match crate::sys::fork_into(flags) {
        Err(e) => Some(e.to_string()),
        Ok(None) => std::process::exit(0),
        Ok(Some((pid, _))) => crate::sys::reap(pid, true).err().map(|e| e.to_string()),
    };
    kinds.into_iter().map(|(name, flag)| (name.to_owned(), attempt(flag | with))).collect()
}

/// How long preparing may take; it takes milliseconds, and seconds on a machine that swaps.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a box has come to, in the words of its end. `oom_kills` is what its control group counts:
/// a kill that nobody ordered, in a group where the kernel killed for memory, was one of those.
pub(crate) fn outcome(
    finished: Option<i32>,
    status: i32,
    killed: Option<&str>,
    oom_kills: u64,
) -> Outcome {
    let last = finished.unwrap_or(status);
    let signal = libc::WIFSIGNALED(last).then(|| libc::WTERMSIG(last));
    match (killed, finished, signal) {
        (Some(why), _, _) => Outcome::Killed(why.to_owned()),
        (None, _, Some(libc::SIGKILL)) if oom_kills > 0 => Outcome::OutOfMemory,
        (None, Some(_), Some(signal)) => Outcome::Signaled(signal),
        (None, Some(status), None) => Outcome::Exited(libc::WEXITSTATUS(status)),
        (None, None, Some(signal)) => {
            Outcome::Killed(format!("its first process died of signal {signal}"))
        }
        (None, None, None) => Outcome::Killed("its first process failed".into()),
    }
}
