//! What a sandbox executes and which connections it is refused, told by the kernel while the call
//! waits (seccomp_unotify(2)).
//!
//! ```text
//! call ─► received ─► memory read, still waiting? ─► reported ─┬─► let go on ─► looks ─► image
//!                                                              └─► errno
//! ```
//!
//! Invariants:
//! 1. The report is on its way before the call goes on. Where there is no room for it, the call is
//!    answered with `EAGAIN`, and how many were is reported as soon as there is room.
//! 2. What was read counts only if the call waits after the reading: then its thread was there, and
//!    its number nobody else's. Memory is read as a tracer reads it (process_vm_readv(2)), for
//!    which this process has the right: as root by its capability, as a plain user because it made
//!    the sandbox's user namespace (user_namespaces(7)), or its user's engine did. What the kernel
//!    does not show all the same is said in the report.
//! 3. Nothing here waits: not for whoever takes the reports, and not for the sandbox, whose memory
//!    another process reads (`reader`) that is given a short time and then given up. What that
//!    cannot read, for the sandbox stands in its own way, is answered with `EAGAIN` and counted.
//!    Everything else that is looked at takes no lock that a sandbox can hold: of `/proc/PID` that
//!    is `stat`, `status`, and where `exe`, `cwd` and `fd` lead; never `cmdline`, `environ`,
//!    `maps`, `smaps`, `mem`.
//! 4. No permission rests on what was read; see `called`.

mod called;
mod looks;
mod memory;
mod reader;
mod window;

use super::outbox::Outbox;
use crate::error::{StartError, StartErrorKind};
use crate::operation::{
    CWD_BYTES_MAX, Execution, Image, Operation, OperationCounts, PATH_BYTES_MAX, Refusal,
};
use crate::procfs;
use crate::sys::{self, Notification};
use crate::wire::{self, Answer, BoxId};
use called::{Asked, Called};
use looks::{Looks, Place};
use memory::{Memory, Unread};
pub(crate) use reader::Readers;
use reader::{NotRead, Standing, Staying, Ticket};
use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;
use window::Window;

/// Why reports are lost.
const FULL: &str = "more was under way than the log had taken";
const LATE: &str = "the memory of its processes could not be read in time";
const NOBODY: &str = "there was nobody to read the memory of its processes";

/// Where the reports of one sandbox go, and where executions of all sandboxes are counted.
pub(crate) enum Way<'a> {
    /// From the spawner to its client.
    Client { id: BoxId, outbox: &'a mut Outbox, executions: &'a mut u64 },
    /// To somebody in this process, which serves the reports of containers.
    Here { to: &'a Sender<Operation>, executions: &'a AtomicU64 },
}

impl Way<'_> {
    /// The number of one more execution.
    fn number(&mut self) -> u64 {
        match self {
            Self::Client { executions, .. } => {
                **executions += 1;
                **executions
            }
            Self::Here { executions, .. } => executions.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Its size in bytes.
    fn send(&mut self, operation: Operation) -> usize {
        // It is within the bounds by far, so it is never refused for its size.
        match self {
            Self::Client { id, outbox, .. } => {
                let Ok(bytes) = wire::encode(&Answer::Operation { id: *id, operation }) else {
                    return 0;
                };
                let size = bytes.len();
                outbox.push(bytes);
                size
            }
            Self::Here { to, .. } => {
                let size = wire::encode(&operation).map_or(0, |bytes| bytes.len());
                // Nobody takes reports any more: then the window stays full.
                let _ = to.send(operation);
                size
            }
        }
    }
}

/// The answer to a call.
enum Reply {
    GoOn,
    Errno(i32),
}

/// One sandbox's reports.
#[derive(Debug)]
pub(crate) struct Watch {
    listener: OwnedFd,
    window: Window,
    looks: Looks,
    counts: OperationCounts,
    standing: Standing,
    /// How many were lost for want of reading and were not told yet, and why.
    late: Option<(u64, &'static str)>,
    reads: bool,
    /// Whether what happens now is the session's: our own probe, before it, is not reported.
    reports: bool,
}

impl Watch {
    /// From the descriptor that init, which is `init` here, has sent.
    ///
    /// # Errors
    /// When it is none at which calls can be answered, or nobody can be had to read memory.
    pub(crate) fn new(
        listener: Option<OwnedFd>,
        init: i32,
        readers: &mut Readers,
    ) -> Result<Self, StartError> {
        let Some(listener) = listener.filter(|fd| sys::is_listener(fd.as_fd())) else {
            return Err(StartError::new(
                StartErrorKind::Seccomp,
                "the filter reports to nobody",
                "this is a defect of nanoclaw or of the kernel; `[sandbox] witness = \"off\"` does \
                 without reports",
            ));
        };
        sys::wake_in_turns(listener.as_fd());
        Ok(Self {
            listener,
            window: Window::default(),
            looks: Looks::default(),
            counts: OperationCounts::default(),
            standing: Standing::default(),
            late: None,
            reads: can_read(init, readers)?,
            reports: false,
        })
    }

    /// From here on calls are reported, not only answered.
    pub(crate) fn report(&mut self) {
        self.reports = true;
    }

    /// Whether what calls name could be read when that was tried, in the memory of init, which is
    /// not dumpable: what can be read there can be read of every process of the sandbox, but for
    /// those whose program they may not read themselves.
    pub(crate) fn reads(&self) -> bool {
        self.reads
    }

    /// Until when its calls are left to wait, for the last one made others wait.
    pub(crate) fn rests(&self) -> Option<Instant> {
        self.standing.rests()
    }

    /// Readable when a call waits.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.listener
    }

    /// Whether a reader that was given up still waits for this sandbox.
    pub(crate) fn holds_a_reader(&self, readers: &Readers) -> bool {
        self.standing.holds_one(readers)
    }

    /// Takes one call and answers it.
    ///
    /// # Errors
    /// When the kernel gives none although one was announced.
    pub(crate) fn turn(&mut self, way: &mut Way<'_>, readers: &mut Readers) -> io::Result<()> {
        let Some(call) = sys::receive(self.listener.as_fd())? else { return Ok(()) };
        let reply = self.decide(&call, way, readers);
        // One that is gone needs no answer.
        let _ = match reply {
            Reply::GoOn => sys::let_go(self.listener.as_fd(), call.id),
            Reply::Errno(errno) => sys::refuse(self.listener.as_fd(), call.id, errno),
        };
        Ok(())
    }

    fn decide(&mut self, call: &Notification, way: &mut Way<'_>, readers: &mut Readers) -> Reply {
        let readable = Cell::new(self.standing.may_be_read(readers));
        let (readers, late) = (RefCell::new(readers), Cell::new(None));
        let (listener, begun, until) = (self.listener.as_fd(), Instant::now(), reader::in_time());
        let staying = OnceCell::new();
        let target = Target { listener, call, readers, until, readable, late, staying };
        let called = called::called(call.number, &call.arguments, &target);
        self.standing.took(begun.elapsed());
        if let Some(ticket) = target.late.get() {
            self.standing.late(ticket);
        }
        let Some(called) = called else { return Reply::GoOn };
        match called {
            Called::Refuse { errno, .. } if !self.reports => Reply::Errno(errno.number()),
            _ if !self.reports => Reply::GoOn,
            Called::Pass => Reply::GoOn,
            Called::Execute(asked) => self.execute(call, asked, way),
            Called::Late(why) => self.lose_late(why, way),
            Called::Refuse { call: name, target, errno, racy } => {
                self.counts.refusals += 1;
                if !self.window.admits(0) {
                    return self.lose();
                }
                let pid = Process::of(call.thread).map_or(0, |p| p.inside);
                let (call, answer) = (name.to_owned(), errno.name().to_owned());
                let refusal = Refusal { pid, call, target, errno: answer, racy };
                self.send(Operation::Refused(refusal), way);
                Reply::Errno(errno.number())
            }
            Called::Unjudged(why) => {
                self.counts.lost += 1;
                if self.window.admits(0) {
                    let reason = format!("the address of a connection could not be read: {why}");
                    self.send(Operation::Lost { count: 1, reason }, way);
                } else {
                    self.window.lose();
                }
                Reply::GoOn
            }
        }
    }

    fn execute(&mut self, call: &Notification, asked: Asked, way: &mut Way<'_>) -> Reply {
        let process = Process::of(call.thread);
        let here = process.as_ref().map_or(call.thread, |p| p.here);
        if let Some(image) = self.looks.again(here) {
            self.image(image, way);
        }
        if !self.window.admits(1) {
            return self.lose();
        }
        let execution = described(call.thread, process.as_ref(), asked);
        let before = Place::of(here);
        if !sys::is_waiting(self.listener.as_fd(), call.id) {
            return Reply::GoOn;
        }
        self.counts.executions += 1;
        let (number, pid) = (way.number(), execution.pid);
        self.send(Operation::Executed(Execution { number, ..execution }), way);
        self.window.owe(1);
        match before {
            Some(before) => self.looks.add(number, pid, here, before, Instant::now()),
            None => {
                let seen = Err("the kernel does not show this process".to_owned());
                self.image(Image { number, pid, seen }, way);
            }
        }
        Reply::GoOn
    }

    /// There is no room to report what is asked for.
    fn lose(&mut self) -> Reply {
        self.window.lose();
        self.counts.lost += 1;
        Reply::Errno(libc::EAGAIN)
    }

    /// What is asked for could not be read. The first is told at once, those after it together.
    fn lose_late(&mut self, why: &'static str, way: &mut Way<'_>) -> Reply {
        self.counts.lost += 1;
        self.late.get_or_insert((0, why)).0 += 1;
        if self.window.is_idle() {
            self.tell_late(way);
        }
        Reply::Errno(libc::EAGAIN)
    }

    fn tell_late(&mut self, way: &mut Way<'_>) {
        if let Some((count, why)) = self.late.take() {
            self.send(Operation::Lost { count, reason: why.to_owned() }, way);
        }
    }

    fn send(&mut self, operation: Operation, way: &mut Way<'_>) {
        let bytes = way.send(operation);
        self.window.send(bytes);
    }

    fn image(&mut self, image: Image, way: &mut Way<'_>) {
        self.window.settle();
        self.send(Operation::Image(image), way);
    }

    /// When [`Watch::look`] wants to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.looks.due()
    }

    /// Looks at what executions have become.
    pub(crate) fn look(&mut self, now: Instant, way: &mut Way<'_>) {
        for image in self.looks.turn(now) {
            self.image(image, way);
        }
    }

    /// So many reports are on record.
    pub(crate) fn taken(&mut self, count: usize, way: &mut Way<'_>) {
        self.window.taken(count);
        if let Some(count) = self.window.lost() {
            self.send(Operation::Lost { count, reason: FULL.to_owned() }, way);
        }
        if self.window.admits(0) {
            self.tell_late(way);
        }
    }

    /// Every process is gone: what is still owed.
    pub(crate) fn end(&mut self, way: &mut Way<'_>) -> OperationCounts {
        for image in self.looks.end() {
            self.image(image, way);
        }
        if let Some(count) = self.window.lost_at_the_end() {
            self.send(Operation::Lost { count, reason: FULL.to_owned() }, way);
        }
        self.tell_late(way);
        self.counts
    }
}

/// One byte, where a process' arguments begin.
fn can_read(process: i32, readers: &mut Readers) -> Result<bool, StartError> {
    let arguments = Place::of(process).map_or(0, |p| p.arguments);
    let why = match readers.read(process, &[(arguments, 1)], &mut [0], reader::in_time()) {
        Ok(got) => return Ok(got == 1),
        Err(NotRead::Refused(_)) => return Ok(false),
        Err(NotRead::Late(_)) => LATE.to_owned(),
        Err(NotRead::Nobody(e)) => format!("{NOBODY}: {e}"),
    };
    Err(StartError::spawner(why))
}

/// A mark is no report: it takes no room, and needs no record.
pub(crate) fn mark(number: u64, way: &mut Way<'_>) {
    way.send(Operation::Mark(number));
}

/// The process whose call waits.
struct Target<'a> {
    listener: BorrowedFd<'a>,
    call: &'a Notification,
    readers: RefCell<&'a mut Readers>,
    until: Instant,
    /// Whether reading may be tried.
    readable: Cell<bool>,
    /// The reader that was given up for it.
    late: Cell<Option<Ticket>>,
    /// From the first read to the last.
    staying: OnceCell<Option<Staying>>,
}

impl Memory for Target<'_> {
    fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread> {
        if !self.readable.get() {
            return Err(Unread::Late(LATE));
        }
        if let Some(staying) = self.staying.get_or_init(Staying::here) {
            self.readers.borrow_mut().beside(staying);
        }
        let read = self.readers.borrow_mut().read(self.call.thread, pieces, into, self.until);
        if let Err(NotRead::Late(ticket)) = read {
            self.readable.set(false);
            self.late.set(Some(ticket));
        }
        if !sys::is_waiting(self.listener, self.call.id) {
            return Err(Unread::Gone);
        }
        read.map_err(|e| match e {
            NotRead::Late(_) => Unread::Late(LATE),
            NotRead::Nobody(_) => Unread::Late(NOBODY),
            NotRead::Refused(e) => match Unread::of(&e) {
                Unread::Closed(why) if undumpable(self.call.thread) => {
                    Unread::Closed(format!("the process made itself undumpable: {why}"))
                }
                other => other,
            },
        })
    }
}

/// The memory of an undumpable process belongs to root (proc_pid(5)), its folder to its user.
fn undumpable(thread: i32) -> bool {
    let owner = |path: String| fs::metadata(path).ok().map(|m| m.uid());
    owner(format!("/proc/{thread}")) != owner(format!("/proc/{thread}/mem"))
}

/// The numbers of a thread's process.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    /// As seen here.
    here: i32,
    /// As seen in the sandbox.
    inside: u32,
}

impl Process {
    fn of(thread: i32) -> Option<Self> {
        Self::parse(&procfs::text(&format!("/proc/{thread}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name));
        let here = field("Tgid:")?.trim().parse().ok()?;
        // From the outermost namespace to the innermost.
        let inside = field("NStgid:")?.split_whitespace().next_back()?.parse().ok()?;
        Some(Self { here, inside })
    }
}

/// The report of an execution, without its number.
fn described(thread: i32, process: Option<&Process>, asked: Asked) -> Execution {
    let Asked { from, path, argv, mut unread } = asked;
    let (mut text, mut whole) = utf8(&path.bytes);
    whole &= !path.cut && !argv.cut && unread.is_none();
    if let Some(fd) = from {
        match fs::read_link(format!("/proc/{thread}/fd/{fd}")) {
            Ok(base) if base.as_os_str().len() <= PATH_BYTES_MAX - path.bytes.len() => {
                let slash = if text.is_empty() { "" } else { "/" };
                text = format!("{}{slash}{text}", base.to_string_lossy());
            }
            Ok(_) => whole = false,
            Err(e) => {
                whole = false;
                let before = unread.map_or(String::new(), |u| format!("{u}; "));
                unread = Some(format!("{before}what descriptor {fd} names: {e}"));
            }
        }
    }
    let argv = argv.texts.iter().map(|bytes| {
        let (text, exact) = utf8(bytes);
        whole &= exact;
        text
    });
    let argv = argv.collect();
    let cwd = fs::read_link(format!("/proc/{thread}/cwd")).ok();
    let cwd = cwd.map(|path| path.into_os_string().into_encoded_bytes());
    let cwd = cwd.filter(|bytes| bytes.len() <= CWD_BYTES_MAX).map(|bytes| utf8(&bytes));
    whole &= cwd.as_ref().is_some_and(|(_, exact)| *exact);
    let pid = process.map_or(0, |p| p.inside);
    Execution { number: 0, pid, path: text, argv, cwd: cwd.map(|(text, _)| text), whole, unread }
}

/// As text, and whether it was text.
fn utf8(bytes: &[u8]) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes);
    let exact = matches!(text, std::borrow::Cow::Borrowed(_));
    (text.into_owned(), exact)
}

#[cfg(test)]
mod tests;
