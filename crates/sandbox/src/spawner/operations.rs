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
//! 3. Nothing here waits: neither for the sandbox nor for whoever takes the reports.
//! 4. No permission rests on what was read; see `called`.

mod called;
mod looks;
mod memory;
mod window;

use super::outbox::Outbox;
use crate::error::{StartError, StartErrorKind};
use crate::operation::{
    CWD_BYTES_MAX, Execution, Image, Operation, OperationCounts, PATH_BYTES_MAX, Refusal,
};
use crate::sys::{self, Notification};
use crate::wire::{self, Answer, BoxId};
use called::{Asked, Called};
use looks::{Looks, Place};
use memory::{Memory, Unread};
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
    reads: bool,
    /// Whether what happens now is the session's: our own probe, before it, is not reported.
    reports: bool,
}

impl Watch {
    /// From the descriptor that init, which is `init` here, has sent.
    ///
    /// # Errors
    /// When it is none at which calls can be answered.
    pub(crate) fn new(listener: Option<OwnedFd>, init: i32) -> Result<Self, StartError> {
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
            reads: can_read(init),
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

    /// Readable when a call waits.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.listener
    }

    /// Takes one call and answers it.
    ///
    /// # Errors
    /// When the kernel gives none although one was announced.
    pub(crate) fn turn(&mut self, way: &mut Way<'_>) -> io::Result<()> {
        let Some(call) = sys::receive(self.listener.as_fd())? else { return Ok(()) };
        let reply = self.decide(&call, way);
        // One that is gone needs no answer.
        let _ = match reply {
            Reply::GoOn => sys::let_go(self.listener.as_fd(), call.id),
            Reply::Errno(errno) => sys::refuse(self.listener.as_fd(), call.id, errno),
        };
        Ok(())
    }

    fn decide(&mut self, call: &Notification, way: &mut Way<'_>) -> Reply {
        let target = Target { listener: self.listener.as_fd(), call };
        let Some(called) = called::called(call.number, &call.arguments, &target) else {
            return Reply::GoOn;
        };
        match called {
            Called::Refuse { errno, .. } if !self.reports => Reply::Errno(errno.number()),
            _ if !self.reports => Reply::GoOn,
            Called::Pass => Reply::GoOn,
            Called::Execute(asked) => self.execute(call, asked, way),
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
    }

    /// Every process is gone: what is still owed.
    pub(crate) fn end(&mut self, way: &mut Way<'_>) -> OperationCounts {
        for image in self.looks.end() {
            self.image(image, way);
        }
        if let Some(count) = self.window.lost_at_the_end() {
            self.send(Operation::Lost { count, reason: FULL.to_owned() }, way);
        }
        self.counts
    }
}

/// One byte, where a process' arguments begin.
fn can_read(process: i32) -> bool {
    let arguments = Place::of(process).map_or(0, |p| p.arguments);
    sys::read_memory(process, &[(arguments, 1)], &mut [0]).is_ok_and(|got| got == 1)
}

/// A mark is no report: it takes no room, and needs no record.
pub(crate) fn mark(number: u64, way: &mut Way<'_>) {
    way.send(Operation::Mark(number));
}

/// The process whose call waits.
struct Target<'a> {
    listener: BorrowedFd<'a>,
    call: &'a Notification,
}

impl Memory for Target<'_> {
    fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread> {
        let read = sys::read_memory(self.call.thread, pieces, into);
        if !sys::is_waiting(self.listener, self.call.id) {
            return Err(Unread::Gone);
        }
        read.map_err(|e| match Unread::of(&e) {
            Unread::Closed(why) if undumpable(self.call.thread) => {
                Unread::Closed(format!("the process made itself undumpable: {why}"))
            }
            other => other,
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
        Self::parse(&fs::read_to_string(format!("/proc/{thread}/status")).ok()?)
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
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_process_are_those_of_its_leader() {
        let status = "Name:\tx\nTgid:\t90\nPid:\t95\nNStgid:\t90\t7\nNSpid:\t95\t9\n";
        assert_eq!(Process::parse(status), Some(Process { here: 90, inside: 7 }));
        assert_eq!(Process::parse("Name:\tx\n"), None);
        let own = std::process::id();
        assert_eq!(Process::of(own.cast_signed()).map(|p| p.here), Some(own.cast_signed()));
    }

    #[test]
    fn memory_is_read_or_it_is_said_that_it_cannot_be() {
        assert!(can_read(std::process::id().cast_signed()), "a process may read itself");
        assert!(!can_read(i32::MAX), "nobody has this number");
    }

    #[test]
    fn the_largest_report_fits_a_packet_and_a_record() {
        /// Smallest of all bounds: that of a log's entry.
        const ENTRY_BYTES_MAX: usize = 64_000;
        let worst = |bytes: usize| "\u{1}".repeat(bytes);
        let execution = Execution {
            number: u64::MAX,
            pid: u32::MAX,
            path: worst(PATH_BYTES_MAX),
            argv: vec![worst(crate::operation::ARGV_BYTES_MAX / crate::operation::ARGV_MAX); 128],
            cwd: Some(worst(CWD_BYTES_MAX)),
            whole: false,
            unread: Some(worst(500)),
        };
        let answer = Answer::Operation { id: u64::MAX, operation: Operation::Executed(execution) };
        let size = wire::encode(&answer).unwrap().len();
        assert!(size < ENTRY_BYTES_MAX - 2_000, "{size}");
    }

    #[test]
    fn what_is_described_is_whole_or_says_that_it_is_not() {
        let own = std::process::id().cast_signed();
        let text = |bytes: &[u8]| memory::Text { bytes: bytes.to_vec(), cut: false };
        let list = |texts: &[&[u8]]| memory::List {
            texts: texts.iter().map(|t| t.to_vec()).collect(),
            cut: false,
        };
        let asked = Asked { path: text(b"/bin/sh"), argv: list(&[b"sh"]), ..Asked::default() };
        let plain = described(own, None, asked);
        assert!(plain.whole && plain.unread.is_none(), "{plain:?}");
        let here = std::env::current_dir().unwrap();
        assert_eq!(plain.cwd.as_deref(), here.to_str());
        let asked = Asked { path: text(b"/bin/sh"), argv: list(&[b"\xff"]), ..Asked::default() };
        let odd = described(own, None, asked);
        assert_eq!((odd.argv.as_slice(), odd.whole), (&["\u{fffd}".to_owned()][..], false));
        let file = fs::File::open("/proc/self/status").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let asked = Asked { from: Some(fd), path: text(b""), ..Asked::default() };
        let by_descriptor = described(own, None, asked);
        assert!(by_descriptor.path.starts_with("/proc/"), "{by_descriptor:?}");
        let asked = Asked { from: Some(9_999), path: text(b"x"), ..Asked::default() };
        let closed = described(own, None, asked);
        assert!(!closed.whole && closed.unread.is_some_and(|u| u.contains("9999")));
    }
}
