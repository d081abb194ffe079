//! Which uid a session runs under in root mode: distinct for all live sessions on the machine.
//!
//! One file, one locked byte a slot, held by the open file: the kernel frees the slots of a
//! spawner that dies in any way, and two spawners cannot get the same one.

use crate::sys;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// First session uid: above all that distributions, directory services and container engines
/// hand out by default, below 2^31, which some file systems cannot hold.
pub(super) const BASE: u32 = 1_879_048_192;
/// Sessions at a time on one machine.
const SLOTS: u32 = 65_536;
/// Machine-wide, gone at reboot, root's alone.
const DIRECTORY: &str = "/run/nanoclaw";
const FILE: &str = "/run/nanoclaw/session-uids";

/// The slots this spawner holds.
#[derive(Debug)]
pub(super) struct Slots {
    file: Option<File>,
    taken: BTreeSet<u32>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { file: None, taken: BTreeSet::new() }
    }

    /// The lowest free uid.
    pub(super) fn take(&mut self) -> io::Result<u32> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open()?),
        };
        for slot in (0..SLOTS).filter(|s| !self.taken.contains(s)) {
            if sys::lock_byte(&*file, slot)? {
                self.taken.insert(slot);
                return Ok(BASE + slot);
            }
        }
        Err(io::Error::other("all session uids are in use"))
    }

    /// Gives one back, after all its processes are gone.
    pub(super) fn give_back(&mut self, uid: u32) {
        let slot = uid.saturating_sub(BASE);
        if self.taken.remove(&slot)
            && let Some(file) = &self.file
        {
            sys::unlock_byte(file, slot);
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
