//! One body made ahead of time: what is the same for every sandbox of this host is done before
//! anybody asks for one.
//!
//! Pipeline: due ─► `refill` (clone, common steps) ─► spare ─► `take` (still true? fits?) ─► used.
//!
//! Invariants:
//! 1. A spare has seen nothing of any session, and serves one sandbox, once.
//! 2. It is used only when the plan begins with exactly the steps it was told and the host still
//!    looks as it did then: no mount has changed, every bound path is the same file. Otherwise it
//!    is thrown away and the start begins from nothing.
//! 3. No timer runs while nothing happens: one deadline follows a start, none follows a refill.

use super::Shop;
use super::body::Body;
use crate::step::Step;
use model::Limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// After a start the program that was let go has the machine first.
const DELAY: Duration = Duration::from_millis(10);
/// `poll` without waiting.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A path that was bound ahead, with the device and inode it had.
type Bound = (String, Option<(u64, u64)>);

#[derive(Debug)]
struct Spare {
    body: Body,
    bound: Vec<Bound>,
}

/// At most one spare, and when to make the next.
#[derive(Debug)]
pub(super) struct Pool {
    spare: Option<Spare>,
    due: Option<Instant>,
    /// Those of the latest sandbox: the next is likely to have the same.
    limits: Limits,
    /// Readable with priority once after each change of the mounts (proc_pid_mountinfo(5)).
    mounts: File,
    on: bool,
}

impl Pool {
    pub(super) fn new() -> io::Result<Self> {
        let mounts = File::open("/proc/self/mountinfo")?;
        Ok(Self { spare: None, due: None, limits: Limits::default(), mounts, on: false })
    }

    /// Spares are made from now on.
    pub(super) fn switch_on(&mut self) {
        self.on = true;
        self.due = Some(Instant::now());
    }

    /// Something was started: a spare that is missing is made soon, not now.
    pub(super) fn later(&mut self) {
        self.due = (self.on && self.spare.is_none()).then(|| Instant::now() + DELAY);
    }

    /// When [`refill`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Becomes readable when the spare has ended.
    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        self.spare.as_ref().map(|s| &s.body.pidfd)
    }

    fn mounts_changed(&self) -> bool {
        let mut fds = [PollFd::new(&self.mounts, PollFlags::PRI)];
        // An answer that cannot be had counts as a change.
        poll(&mut fds, Some(&NOW)).map_or(true, |n| n > 0)
    }
}

/// It waits for work, and has nothing to complain about.
fn waits(body: &Body) -> bool {
    let mut fds = [PollFd::new(&body.pidfd, PollFlags::IN), PollFd::new(&body.line, PollFlags::IN)];
    poll(&mut fds, Some(&NOW)).is_ok_and(|n| n == 0)
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn bound(steps: &[Step]) -> Vec<Bound> {
    let source = |step: &Step| match step {
        Step::Bind(bind) => Some(bind.source.clone()),
        Step::OwnBinary { source, .. } => Some(source.clone()),
        _ => None,
    };
    steps.iter().filter_map(source).map(|path| (path.clone(), identity(&path))).collect()
}

/// Makes the spare if its time has come. A host that cannot make one says so at the next start.
pub(super) fn refill(shop: &mut Shop, now: Instant) {
    if shop.pool.due.is_none_or(|at| at > now) {
        return;
    }
    shop.pool.due = None;
    if shop.pool.spare.is_some() {
        return;
    }
    // What changed before now is seen by what is made after.
    shop.pool.mounts_changed();
    let limits = shop.pool.limits.clone();
    let steps = crate::plan::common(&shop.facts, limits.tmp_bytes);
    let bound = bound(&steps);
    let Ok(mut body) = Body::new(shop) else { return };
    let ready = body.work(&steps, &[], &[]).and_then(|()| body.join(shop, &limits));
    if ready.is_err() {
        bury(shop, body);
        return;
    }
    shop.pool.spare = Some(Spare { body, bound });
}

/// The spare, if these steps can go on from it.
pub(super) fn take(shop: &mut Shop, steps: &[Step], limits: &Limits) -> Option<Body> {
    let before = std::mem::replace(&mut shop.pool.limits, limits.clone());
    let spare = shop.pool.spare.take();
    shop.pool.later();
    let Spare { mut body, bound } = spare?;
    let usable = body.fits(steps)
        && waits(&body)
        && !shop.pool.mounts_changed()
        && bound.iter().all(|(path, was)| identity(path) == *was)
        && (before == *limits || body.limit(limits).is_ok());
    if usable {
        return Some(body);
    }
    bury(shop, body);
    None
}

/// Throws the spare away, for it has ended or the spawner does.
pub(super) fn drain(shop: &mut Shop) {
    if let Some(spare) = shop.pool.spare.take() {
        bury(shop, spare.body);
    }
}

fn bury(shop: &mut Shop, mut body: Body) {
    body.kill();
    let _ = body.reap();
    body.end(&mut shop.slots);
}
