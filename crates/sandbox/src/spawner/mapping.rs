//! User namespaces that exist only to describe an id mapping for mounts.

use crate::step::Owner;
use crate::sys;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Kept for reuse: a session's uid returns with its slot, and its own folders always have the
/// same owner on disk. Beyond this many the cache starts afresh.
const CACHE_MAX: usize = 256;

/// Mappings by owner on disk and session uid.
#[derive(Debug, Default)]
pub(super) struct Mappings(HashMap<(Owner, u32), Rc<OwnedFd>>);

impl Mappings {
    /// A user namespace in which `owner` on disk is `session` on the host.
    pub(super) fn get(&mut self, owner: Owner, session: u32) -> io::Result<Rc<OwnedFd>> {
        if let Some(fd) = self.0.get(&(owner, session)) {
            return Ok(Rc::clone(fd));
        }
        if self.0.len() >= CACHE_MAX {
            self.0.clear();
        }
        let fd = Rc::new(make(owner, session)?);
        self.0.insert((owner, session), Rc::clone(&fd));
        Ok(fd)
    }
}

fn make(owner: Owner, session: u32) -> io::Result<OwnedFd> {
    let (pid, pidfd) = sys::cloned_pause()?;
    let made = (|| {
        fs::write(format!("/proc/{pid}/uid_map"), format!("{} {session} 1", owner.uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{} {session} 1", owner.gid))?;
        Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    // It does nothing but wait, so both succeed; a failure would only leave it to our own end.
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let _ = sys::reap(pid, true);
    made
}
