//! Reading by another process (`sys::make_reader`), so that no sandbox's memory is waited for.
//!
//! ```text
//! read ─► asked ─┬─► answered in time ─► bytes, or the kernel's no
//!                └─► not: given up (killed) ─► its sandbox refused ─► gone ─► read again
//! ```
//!
//! Invariants:
//! 1. All reads of one call take [`READ_TIME`] at the most; longer, and at most [`BUSY_TIMES`] as
//!    long, only while the reader waits for nothing but a CPU.
//! 2. A sandbox for which a reader was given up is read again when that reader is gone, and not
//!    before a rest that grows each time: it holds others up ever more seldom. One whose reads are
//!    slow, and still in time, is not served for some times as long.
//! 3. At most [`GIVEN_UP_MAX`] that were given up are there at a time. When they are, nobody's
//!    memory is read, and the sandboxes that they wait for are to be ended.

use crate::{procfs, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The reads of a call take microseconds. They wait for a thread that holds the lock of its address
/// space, which in an honest program can be one that has used up its share of CPU and is stopped
/// inside the kernel for some periods of 100 ms (before Linux 6.18).
const READ_TIME: Duration = Duration::from_millis(250);
/// How many times as long, while the reader can run and does not come to it.
const BUSY_TIMES: u32 = 4;
/// So much longer each time a sandbox rests, from nothing on: it can hold others up some eighty
/// times in an hour.
const REST: Duration = Duration::from_secs(1);
/// Reads of a call that took longer are slow: others waited for them.
const SLOW: Duration = Duration::from_millis(50);
/// So many times as long the next call of that sandbox waits: it has a tenth of its spawner's time.
const SLOW_TIMES: u32 = 9;
/// Each is one process and waits for one sandbox that stands in its own way.
const GIVEN_UP_MAX: usize = 16;
/// `poll` without waiting.
const NOW: Duration = Duration::ZERO;
/// Bytes before those that were read: how many, or the error.
const HEAD: usize = 8;

/// Why nothing was read.
#[derive(Debug)]
pub(crate) enum NotRead {
    /// The kernel's answer.
    Refused(io::Error),
    /// It did not come in time; which reader still waits for it.
    Late(Ticket),
    /// There is nobody to read.
    Nobody(io::Error),
}

/// While it lives this thread stays on its CPU, where a reader is then asked to be as well. Waking
/// another CPU for a read of a microsecond costs both some tens of them.
#[derive(Debug)]
pub(super) struct Staying {
    before: CpuSet,
    here: CpuSet,
}

impl Staying {
    /// `None` where the kernel does not let it, which only costs time.
    pub(super) fn here() -> Option<Self> {
        let before = sched_getaffinity(None).ok()?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here).ok()?;
        Some(Self { before, here })
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Names a reader that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// What one reader made of a request.
enum Asked {
    Answered(io::Result<usize>),
    Late,
    /// It is no more.
    Ended,
}

/// One process that reads.
#[derive(Debug)]
struct Reader(sys::Made);

impl Reader {
    fn ask(&self, thread: i32, pieces: &[(u64, usize)], into: &mut [u8], until: Instant) -> Asked {
        let request = sys::request(thread, pieces);
        // It waits for this, so there is room.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if !rustix::net::send(&self.0.socket, &request, flags).is_ok_and(|n| n == request.len()) {
            return Asked::Ended;
        }
        if self.answers(until) { self.answer(into) } else { Asked::Late }
    }

    /// Whether there is an answer, or an end, in time.
    fn answers(&self, until: Instant) -> bool {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        for times in 0..BUSY_TIMES {
            if is_readable(&self.0.socket, left(until + READ_TIME * times)) {
                return true;
            }
            if !self.can_run() {
                break;
            }
        }
        is_readable(&self.0.socket, NOW)
    }

    /// It is late because others have the CPU (state `R` of proc_pid_stat(5)).
    fn can_run(&self) -> bool {
        let stat = procfs::text(&format!("/proc/{}/stat", self.0.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('R'))
    }

    fn answer(&self, into: &mut [u8]) -> Asked {
        let mut head = [0; HEAD];
        let got = {
            let mut buffers = [IoSliceMut::new(&mut head), IoSliceMut::new(into)];
            let mut none = RecvAncillaryBuffer::default();
            rustix::net::recvmsg(&self.0.socket, &mut buffers, &mut none, RecvFlags::DONTWAIT)
        };
        let there = match got {
            Ok(message) if message.bytes >= HEAD => message.bytes - HEAD,
            _ => return Asked::Ended,
        };
        match i64::from_ne_bytes(head) {
            result if usize::try_from(result).is_ok_and(|read| read == there) => {
                Asked::Answered(Ok(there))
            }
            result if result < 0 => {
                let errno = i32::try_from(-result).unwrap_or(libc::EIO);
                Asked::Answered(Err(io::Error::from_raw_os_error(errno)))
            }
            // Not what we asked for.
            _ => Asked::Ended,
        }
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.0.pidfd, Signal::KILL);
    }

    /// Whether it is gone; reaps it then.
    fn is_gone(&self) -> bool {
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::PidFd(self.0.pidfd.as_fd()), how), Ok(None))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.kill();
        // One that still waits is reaped by whoever reaps what this process leaves behind.
        if is_readable(&self.0.pidfd, READ_TIME) {
            self.is_gone();
        }
    }
}

fn is_readable(fd: &OwnedFd, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let seconds = left.as_secs().try_into().unwrap_or(i64::MAX);
        let wait = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            found => return found.is_ok_and(|n| n > 0),
        }
    }
}

/// The one that reads, and those that were given up.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    reads: Option<Reader>,
    /// Where it was asked to be.
    at: Option<CpuSet>,
    given_up: Vec<(Ticket, Reader)>,
    tickets: u64,
}

impl Readers {
    /// Copies pieces (address, length) of a thread's memory one after another into `into`; the
    /// number of bytes that could be read before the first that could not. As debuggers may; unlike
    /// `/proc/PID/mem`, whose owner changes when a process makes itself undumpable, this asks for
    /// nothing but the right to trace. Until when it is waited for is told by [`in_time`].
    pub(crate) fn read(
        &mut self,
        thread: i32,
        pieces: &[(u64, usize)],
        into: &mut [u8],
        until: Instant,
    ) -> Result<usize, NotRead> {
        if pieces.len() > sys::PIECES_MAX || into.len() > sys::READ_BYTES_MAX {
            return Err(NotRead::Refused(io::ErrorKind::InvalidInput.into()));
        }
        // One that was ended from outside is replaced, once.
        for _ in 0..2 {
            let reader = match self.reads.take() {
                Some(reader) => reader,
                None => self.make().map_err(NotRead::Nobody)?,
            };
            match reader.ask(thread, pieces, into, until) {
                Asked::Answered(result) => {
                    self.reads = Some(reader);
                    return result.map_err(NotRead::Refused);
                }
                Asked::Late => return Err(NotRead::Late(self.give_up(reader))),
                Asked::Ended => {}
            }
        }
        Err(NotRead::Nobody(io::Error::other("the process that reads ended")))
    }

    fn make(&mut self) -> io::Result<Reader> {
        self.sweep();
        if self.is_full() {
            return Err(io::Error::other("too many memories are waited for"));
        }
        self.at = None;
        let filter = crate::seccomp::program_of(crate::seccomp::reader_rules());
        sys::make_reader(&filter).map(Reader)
    }

    fn give_up(&mut self, reader: Reader) -> Ticket {
        reader.kill();
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.given_up.push((ticket, reader));
        ticket
    }

    /// Has the reader be where this thread stays.
    pub(super) fn beside(&mut self, staying: &Staying) {
        let Some(Reader(made)) = self.reads.as_ref().filter(|_| self.at != Some(staying.here))
        else {
            return;
        };
        let there = sched_setaffinity(Pid::from_raw(made.pid), &staying.here);
        self.at = there.is_ok().then_some(staying.here);
    }

    /// Forgets those that are gone.
    pub(crate) fn sweep(&mut self) {
        self.given_up.retain(|(_, reader)| !reader.is_gone());
    }

    /// Readable when one that was given up is gone.
    pub(crate) fn pidfds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.given_up.iter().map(|(_, reader)| &reader.0.pidfd)
    }

    /// Whether no more may be given up: then nobody's memory is read.
    pub(crate) fn is_full(&self) -> bool {
        self.given_up.len() >= GIVEN_UP_MAX
    }

    fn waits(&self, ticket: Ticket) -> bool {
        self.given_up.iter().any(|(other, _)| *other == ticket)
    }
}

/// Until when the reads of a call that begins now are in time.
pub(super) fn in_time() -> Instant {
    Instant::now() + READ_TIME
}

/// How one sandbox stands with those who read.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Until when its calls wait, for it has made others wait.
    rests: Option<Instant>,
    /// How often a reader was given up for it.
    times: u32,
    /// The last of them, and until when it is not read whatever becomes of that.
    last: Option<(Ticket, Instant)>,
}

impl Standing {
    /// A reader was given up for it.
    pub(super) fn late(&mut self, ticket: Ticket) {
        let rest = REST * self.times;
        self.times = self.times.saturating_add(1);
        self.last = Some((ticket, Instant::now() + rest));
    }

    /// So long the reads of one of its calls took.
    pub(super) fn took(&mut self, time: Duration) {
        self.rests = (time > SLOW).then(|| Instant::now() + time * SLOW_TIMES);
    }

    /// Until when its calls wait; `None` when they do not.
    pub(super) fn rests(&self) -> Option<Instant> {
        self.rests.filter(|until| *until > Instant::now())
    }

    /// Whether a reader still waits for it.
    pub(super) fn holds_one(&self, readers: &Readers) -> bool {
        self.last.is_some_and(|(ticket, _)| readers.waits(ticket))
    }

    /// Whether its memory may be read.
    pub(super) fn may_be_read(&mut self, readers: &mut Readers) -> bool {
        let Some((ticket, until)) = self.last else { return true };
        if readers.waits(ticket) {
            readers.sweep();
        }
        let may = !readers.waits(ticket) && until <= Instant::now();
        if may {
            self.last = None;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::kill_process;
    use std::fs;

    const OWN: &[u8] = b"read by another";

    fn own() -> i32 {
        std::process::id().cast_signed()
    }

    /// Whether the kernel lets a child read its parent here (Yama's `ptrace_scope`).
    fn may_read_parents() -> bool {
        let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        rustix::process::geteuid().is_root() || scope.trim().parse().unwrap_or(0) == 0
    }

    fn read(readers: &mut Readers) -> Result<usize, NotRead> {
        let mut bytes = [0; OWN.len()];
        let got =
            readers.read(own(), &[(OWN.as_ptr() as u64, OWN.len())], &mut bytes, in_time())?;
        assert_eq!(&bytes[..got], OWN);
        Ok(got)
    }

    fn pid(readers: &Readers) -> Pid {
        Pid::from_raw(readers.reads.as_ref().unwrap().0.pid).unwrap()
    }

    #[test]
    fn pieces_are_read_up_to_the_first_that_cannot_be() {
        if !may_read_parents() {
            return;
        }
        let mut readers = Readers::default();
        let at = OWN.as_ptr() as u64;
        let mut bytes = [0; 16];
        let pieces = [(at, 4), (at + 8, 7), (8, 5)];
        assert_eq!(readers.read(own(), &pieces, &mut bytes, in_time()).unwrap(), 11);
        assert_eq!(&bytes[..11], b"readanother");
        let nowhere = readers.read(own(), &[(8, 5)], &mut bytes, in_time());
        let is = |e: &io::Error, errno| e.raw_os_error() == Some(errno);
        assert!(matches!(nowhere, Err(NotRead::Refused(e)) if is(&e, libc::EFAULT)));
        let nobody = readers.read(i32::MAX, &[(at, 4)], &mut bytes, in_time());
        assert!(matches!(nobody, Err(NotRead::Refused(e)) if is(&e, libc::ESRCH)));
        let many = vec![(at, 1); sys::PIECES_MAX + 1];
        assert!(readers.read(own(), &many, &mut bytes, in_time()).is_err());
        let most = &many[..sys::PIECES_MAX];
        assert_eq!(
            readers.read(own(), most, &mut [0; sys::PIECES_MAX], in_time()).unwrap(),
            most.len()
        );
    }

    #[test]
    fn a_reader_has_no_more_than_it_needs_and_ends_with_its_maker() {
        let mut readers = Readers::default();
        let _ = readers.read(own(), &[(8, 1)], &mut [0], in_time());
        let pid = pid(&readers).as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim_matches([':', '\t', ' ']).to_owned()
        };
        assert_eq!((field("Seccomp:").as_str(), field("NoNewPrivs:").as_str()), ("2", "1"));
        let capabilities = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
        assert_eq!(capabilities & !(1 << 19), 0, "the right to trace at the most");
        if rustix::process::geteuid().is_root() {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            assert_eq!(open, 1, "its socket");
        }
        drop(readers);
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    }

    #[test]
    fn one_that_does_not_answer_is_given_up_and_another_reads() {
        if !may_read_parents() {
            return;
        }
        let mut readers = Readers::default();
        read(&mut readers).unwrap();
        let first = pid(&readers);
        kill_process(first, Signal::STOP).unwrap();
        let Err(NotRead::Late(ticket)) = read(&mut readers) else { panic!("it is stopped") };
        read(&mut readers).unwrap();
        assert_ne!(pid(&readers), first);
        // A stopped one dies of the signal.
        while readers.waits(ticket) {
            readers.sweep();
        }
        assert_eq!(readers.pidfds().count(), 0);
    }

    #[test]
    fn one_that_was_ended_is_replaced() {
        if !may_read_parents() {
            return;
        }
        let mut readers = Readers::default();
        read(&mut readers).unwrap();
        kill_process(pid(&readers), Signal::KILL).unwrap();
        read(&mut readers).unwrap();
    }

    #[test]
    fn a_sandbox_that_was_waited_for_rests_longer_each_time() {
        let mut readers = Readers::default();
        let mut standing = Standing::default();
        assert!(standing.may_be_read(&mut readers));
        standing.late(Ticket(7));
        assert!(
            standing.may_be_read(&mut readers),
            "its reader is gone, and it was the first time"
        );
        standing.late(Ticket(8));
        assert!(!standing.may_be_read(&mut readers));
        assert!(!standing.holds_one(&readers));
        let (_, first) = standing.last.unwrap();
        standing.late(Ticket(9));
        assert!(standing.last.unwrap().1 > first);
    }

    #[test]
    fn a_sandbox_whose_reads_are_slow_waits_longer_than_it_made_others_wait() {
        let mut standing = Standing::default();
        standing.took(SLOW);
        assert_eq!(standing.rests(), None);
        let begun = Instant::now();
        standing.took(SLOW * 100);
        assert!(standing.rests().is_some_and(|until| until >= begun + SLOW * 900));
        standing.took(Duration::ZERO);
        assert_eq!(standing.rests(), None);
    }

    #[test]
    fn with_too_many_given_up_nothing_is_read() {
        let mut readers = Readers::default();
        for _ in 0..GIVEN_UP_MAX {
            let reader = readers.make().unwrap();
            readers.tickets += 1;
            readers.given_up.push((Ticket(readers.tickets), reader));
        }
        let full = readers.read(own(), &[(8, 1)], &mut [0], in_time());
        assert!(matches!(full, Err(NotRead::Nobody(_))), "{full:?}");
        readers.given_up[3].1.kill();
        assert!(is_readable(&readers.given_up[3].1.0.pidfd, Duration::from_secs(60)));
        let again = readers.read(own(), &[(8, 1)], &mut [0], in_time());
        assert!(!matches!(again, Err(NotRead::Nobody(_))), "{again:?}");
    }
}
