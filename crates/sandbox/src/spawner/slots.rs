//! Which uid a session runs under in root mode: distinct for all live sessions on the machine.
//!
//! One file, the byte at the uid's own offset locked, held by the open file: the kernel frees the
//! uids of a spawner that dies in any way, and two spawners cannot get the same one, whatever range
//! each of them was told.

use super::id_range::IdRange;
use crate::sys;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Machine-wide, gone at reboot, root's alone.
const DIRECTORY: &str = "/run/nanoclaw";
const FILE: &str = "/run/nanoclaw/session-uids";

/// The uids this spawner holds.
#[derive(Debug)]
pub(super) struct Slots {
    host: Option<(File, IdRange)>,
    taken: BTreeSet<u32>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { host: None, taken: BTreeSet::new() }
    }

    /// The lowest free uid of those that this host sets aside.
    pub(super) fn take(&mut self) -> io::Result<u32> {
        let (file, range) = match &mut self.host {
            Some((file, range)) => (file, *range),
            none => {
                let (file, range) = none.insert((open()?, IdRange::of_host()?));
                (file, *range)
            }
        };
        for uid in (0..range.count).map(|n| range.first + n) {
            if !self.taken.contains(&uid) && sys::lock_byte(&*file, uid)? {
                self.taken.insert(uid);
                return Ok(uid);
            }
        }
        Err(io::Error::other(format!("all {} session uids are in use", range.count)))
    }

    /// Gives one back, after all its processes are gone.
    pub(super) fn give_back(&mut self, uid: u32) {
        if self.taken.remove(&uid)
            && let Some((file, _)) = &self.host
        {
            sys::unlock_byte(file, uid);
        }
    }
}

fn open() -> io::Result<File> {
    if !Path::new(DIRECTORY).exists() {
        fs::DirBuilder::new().mode(0o755).create(DIRECTORY)?;
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spawners_never_share_a_uid() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (mut a, mut b) = (Slots::new(), Slots::new());
        let (first, second) = (a.take().unwrap(), b.take().unwrap());
        assert_ne!(first, second);
        a.give_back(first);
        assert_eq!(b.take().unwrap(), first, "a freed slot can be taken again");
    }
}
