//! The first process of a sandbox, from its clone to its burial: line, group, uid.
//!
//! Pipeline: `Body::new` (clone3) ─► `work` (steps) ─► `join` (groups) ─► … ─► `end`.
//!
//! Invariants:
//! 1. What a body holds (process, slot, groups) is given back by [`Body::end`] only, after all
//!    its processes are gone.
//! 2. It knows which steps it was told; none is told twice.

use super::Shop;
use super::slots::Slots;
use super::witness::Witness;
use crate::cgroup::Group;
use crate::error::{StartError, StartErrorKind as Kind};
use crate::facts::Mode;
use crate::report::Traffic;
use crate::step::{Owner, Step};
use crate::sys;
use crate::wire::{self, Job, Order};
use model::Limits;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// So long a first process may take to stop before it is killed: usually some microseconds, but it
/// must run to stop, and 50 ms were too short on a busy machine. The spawner waits for it, so one
/// that is stuck holds up the other sandboxes of the same invocation, once.
const STOP_TIME: Duration = Duration::from_millis(500);

/// An owner on disk and the user namespace that maps it to the session.
pub(super) type Mapping = (Owner, Rc<OwnedFd>);

/// A process in new namespaces that carries out steps it is told.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) line: OwnedFd,
    pub(super) group: Option<Group>,
    /// The session's uid on the host, in root mode.
    pub(super) session_uid: Option<u32>,
    /// The kernel's counters of it.
    pub(super) witness: Witness,
    told: Vec<Step>,
}

impl Body {
    /// Takes a uid and clones. It waits on its line, holding nothing of any session.
    pub(super) fn new(shop: &mut Shop) -> Result<Self, StartError> {
        let session_uid = match shop.facts.mode {
            Mode::Root => Some(shop.slots.take().map_err(|e| identity(&e))?),
            Mode::User => None,
        };
        match cloned(shop) {
            Ok((pid, pidfd, line)) => {
                let (witness, told) = (Witness::of(pid), Vec::new());
                Ok(Self { pid, pidfd, line, group: None, session_uid, witness, told })
            }
            Err(e) => {
                if let Some(uid) = session_uid {
                    shop.slots.give_back(uid);
                }
                Err(e)
            }
        }
    }

    /// Whether these steps begin with all that it was told.
    pub(super) fn fits(&self, steps: &[Step]) -> bool {
        steps.starts_with(&self.told)
    }

    /// Tells it the steps it was not told yet. The streams come with the last ones.
    pub(super) fn work(
        &mut self,
        steps: &[Step],
        streams: &[OwnedFd],
        mappings: &[Mapping],
    ) -> Result<(), StartError> {
        let rest = steps.get(self.told.len()..).unwrap_or_default();
        let caller = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let job = Job {
            steps: rest.to_vec(),
            identity: self.session_uid.unwrap_or(0),
            caller,
            mappings: mappings.iter().map(|(owner, _)| *owner).collect(),
        };
        let mut fds: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        fds.extend(mappings.iter().map(|(_, fd)| fd.as_fd()));
        wire::send(&self.line, &Order::Work(Box::new(job)), &fds)
            .map_err(|e| StartError::spawner(format!("its first process got no work: {e}")))?;
        self.told.extend_from_slice(rest);
        Ok(())
    }

    /// Makes its control groups while it is starting, and tells it where to join.
    pub(super) fn join(&mut self, shop: &mut Shop, limits: &Limits) -> Result<(), StartError> {
        let Some(parent) = &shop.parent else { return Ok(()) };
        shop.made += 1;
        let name = format!("{}-{}", shop.own_name, shop.made);
        let group = parent.create(&name, limits).map_err(|e| cgroup(&e))?;
        let files = self.group.insert(group).join_files();
        match wire::send(&self.line, &Order::Join(files), &[]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(cgroup(&e)),
            // An init that is gone already is noticed by its pidfd.
            _ => Ok(()),
        }
    }

    /// Sets other limits on the groups it has.
    pub(super) fn limit(&mut self, limits: &Limits) -> Result<(), StartError> {
        self.group.as_mut().map_or(Ok(()), |g| g.limit(limits)).map_err(|e| cgroup(&e))
    }

    /// The first process takes its whole PID namespace with it. Before that it is stopped, so that
    /// what it moved can be read while the kernel still shows it.
    pub(super) fn kill(&mut self) {
        if self.witness.watches() && sys::stop(self.pid, &self.pidfd, STOP_TIME) {
            self.witness.look();
        }
        self.end_now();
    }

    /// Ends it after it has said that its program has ended, and moves nothing any more.
    pub(super) fn finish(&mut self) {
        self.witness.look();
        self.end_now();
    }

    fn end_now(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps it; waits if need be. Its groups stay, to be read, until [`Body::end`]. What the
    /// kernel counted of its traffic comes with it, complete.
    pub(super) fn reap(&self) -> (Option<sys::Reaped>, Option<Traffic>) {
        let traffic = sys::await_end(self.pid).ok().map(|()| self.witness.traffic());
        (sys::reap(self.pid, true).ok().flatten(), traffic)
    }

    /// Gives everything back, after [`Body::reap`].
    pub(super) fn end(&mut self, slots: &mut Slots) {
        if let Some(mut group) = self.group.take() {
            group.remove();
        }
        if let Some(uid) = self.session_uid.take() {
            slots.give_back(uid);
        }
    }
}

fn identity(e: &io::Error) -> StartError {
    let cause = format!("no session uid could be taken: {e}");
    let remedy = "root must be able to write /run/nanoclaw, and /etc/subuid and /etc/subgid must set \
                  the same ids aside for the name nanoclaw, or none";
    StartError::new(Kind::Identity, cause, remedy)
}

fn cgroup(e: &io::Error) -> StartError {
    let cause = format!("its control group could not be made: {e}");
    StartError::new(Kind::Cgroup, cause, "see `nanoclaw doctor`, control groups")
}

fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Only our end: a hostile other end must not be able to make us wait.
    rustix::io::ioctl_fionbio(&pair.0, true)?;
    Ok(pair)
}

fn cloned(shop: &Shop) -> Result<(i32, OwnedFd, OwnedFd), StartError> {
    let mut flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if shop.facts.mode == Mode::User {
        flags |= libc::CLONE_NEWUSER;
    }
    let (ours, theirs) = line().map_err(|e| StartError::spawner(e.to_string()))?;
    let null = shop.null.as_fd();
    let fds = [null, null, null, theirs.as_fd(), shop.image.as_fd(), shop.filter.as_fd()];
    let role = CString::new(crate::INIT_ROLE).unwrap_or_default();
    let argv = [c"nanoclaw".to_owned(), role];
    let made = sys::clone_exec(flags as u64, shop.image.as_fd(), &argv, &fds);
    let (pid, pidfd) = made.map_err(|e| {
        let remedy = match shop.facts.mode {
            Mode::User => crate::userns::remedy(),
            Mode::Root => "the kernel refuses namespaces to root: see `nanoclaw doctor`",
        };
        StartError::new(Kind::Namespaces, format!("no new namespaces: {e}"), remedy)
    })?;
    Ok((pid, pidfd, ours))
}
