//! What a container executes and which connections it is refused, told by the kernel: the same
//! filter as in a native sandbox and the same answers. Its first process' line ends in this process
//! and not in the spawner, and so does the listener that comes over it.
//!
//! Pipeline: listener ─► `Reports::new` ─► calls answered (`turn`), images looked for (`look`) ─►
//! queue ─► `Operations` ─► on record ─► `taken`.
//!
//! Invariants:
//! 1. One thread answers: who prepares the container, then who hears its line.
//! 2. The queue ends with the container, so that whoever takes reports sees the end.
//! 3. Memory of its processes is read by a child of this process, of which each container has its
//!    own: what holds a reader up holds up nobody else, and keeps neither this process nor its
//!    descriptors from ending.

use super::{Shop, lock};
use crate::error::StartError;
use crate::operation::{Operation, OperationCounts};
use crate::spawner::{self, Readers, Watch, Way};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Containers' executions are counted from here on. Servers of tools run in native sandboxes of the
/// same session, and their numbers, which are the spawner's, must not be among these.
pub(super) const FIRST_EXECUTION: u64 = 1 << 32;

/// One container's reports.
#[derive(Debug)]
pub(super) struct Reports {
    shop: Arc<Shop>,
    /// To wait for; the watch has its own.
    listener: OwnedFd,
    /// Gone with the container.
    served: Mutex<Option<Served>>,
    reads: bool,
}

#[derive(Debug)]
struct Served {
    watch: Watch,
    to: Sender<Operation>,
    readers: Readers,
}

impl Reports {
    /// From the descriptor that the first process, which is `init` here, has sent, and where its
    /// reports come out.
    pub(super) fn new(
        shop: &Arc<Shop>,
        listener: Option<OwnedFd>,
        init: i32,
    ) -> Result<(Self, Receiver<Operation>), StartError> {
        let mut readers = Readers::default();
        let watch = Watch::new(listener, init, &mut readers)?;
        let listener = watch.fd().try_clone();
        let listener = listener.map_err(|e| StartError::spawner(format!("a listener: {e}")))?;
        let (to, from) = channel();
        let (shop, reads) = (Arc::clone(shop), watch.reads());
        let served = Mutex::new(Some(Served { watch, to, readers }));
        Ok((Self { shop, listener, served, reads }, from))
    }

    /// Whether what calls name could be read when that was tried.
    pub(super) fn reads(&self) -> bool {
        self.reads
    }

    fn with<T>(&self, act: impl FnOnce(&mut Watch, &mut Way<'_>) -> T) -> Option<T> {
        let mut served = lock(&self.served);
        let Served { watch, to, .. } = served.as_mut()?;
        Some(act(watch, &mut Way::Here { to, executions: &self.shop.executions }))
    }

    /// From here on calls are reported, not only answered.
    pub(super) fn begin(&self) {
        self.with(|watch, _| watch.report());
    }

    /// Answers a call that waits.
    ///
    /// # Errors
    /// When calls can no longer be answered.
    pub(super) fn turn(&self) -> io::Result<()> {
        let mut served = lock(&self.served);
        let Some(Served { watch, to, readers }) = served.as_mut() else { return Ok(()) };
        watch.turn(&mut Way::Here { to, executions: &self.shop.executions }, readers)
    }

    /// Looks at what executions have become.
    pub(super) fn look(&self) {
        self.with(|watch, way| watch.look(Instant::now(), way));
    }

    /// So many reports are on record.
    pub(super) fn taken(&self, count: usize) {
        self.with(|watch, way| watch.taken(count, way));
    }

    /// Puts a mark behind everything that was reported. A call that still waits has not happened.
    pub(super) fn mark(&self, number: u64) {
        self.with(|_, way| spawner::mark(number, way));
    }

    /// Every process is gone: what is still owed, and then the end.
    pub(super) fn end(&self) -> Option<OperationCounts> {
        let counts = self.with(Watch::end);
        *lock(&self.served) = None;
        counts
    }
}

/// What a wait found.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The line has something to say, or has ended.
    pub(super) said: bool,
    /// A call waits for its answer.
    pub(super) called: bool,
}

/// Waits for the line, for a call, for the time of a look, and at most until then.
pub(super) fn wait(line: &OwnedFd, reports: Option<&Reports>, until: Option<Instant>) -> Heard {
    let mut fds = vec![PollFd::new(line, PollFlags::IN)];
    fds.extend(reports.map(|r| PollFd::new(&r.listener, PollFlags::IN)));
    let due = reports.and_then(|r| r.with(|watch, _| watch.due()).flatten());
    let timeout = due.into_iter().chain(until).min().map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        let nanos = left.subsec_nanos().into();
        Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: nanos }
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Heard::default(),
        // Then it is waited for in reading.
        Err(_) => return Heard { said: true, called: false },
    }
    let at = |i: usize| fds.get(i).map_or(PollFlags::empty(), PollFd::revents);
    // A listener whose processes have all ended is reported, and has nothing to give.
    Heard { said: !at(0).is_empty(), called: at(1).contains(PollFlags::IN) }
}
