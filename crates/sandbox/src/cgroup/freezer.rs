//! Standing still: `cgroup.freeze` of v2 (Linux 5.2, Documentation/admin-guide/cgroup-v2.rst).
//!
//! Where limits are v2's, the sandbox's own directory is frozen. Where they are v1's and v2 is
//! mounted beside (a hybrid host), a directory without controllers is made when it is first wanted,
//! and every process is moved there: a start costs nothing for it.
//!
//! 1. Frozen first, then gathered: what has been moved can fork no more, so gathering ends.
//! 2. Processes that stand still can be killed; their end needs no thaw.

use super::{Group, below, mounts, writable};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Each round finds the children of those that were moved in the round before; a chain of forks as
/// fast as this is no program that should stand still unharmed.
const ROUNDS_MAX: usize = 64;

/// Where directories without controllers can be made: below our own place in v2.
pub(super) fn place() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let info = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let list = mounts(&info, "cgroup2");
    let (root, point, _) = list.first()?;
    Some(below(point, root, path)).filter(|dir| writable(dir))
}

impl Group {
    /// Stops every process of it, or lets them run on. `members` are all of them now.
    ///
    /// # Errors
    /// When there is no v2, or it cannot hold them.
    pub(crate) fn freeze(
        &mut self,
        frozen: bool,
        members: impl Fn() -> Vec<i32>,
    ) -> io::Result<()> {
        if !frozen && self.v2.is_none() && self.still.is_none() {
            // It has never stood still.
            return Ok(());
        }
        let dir = self.freezer()?;
        fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        if frozen && self.v2.is_none() {
            gather(&dir, members)?;
        }
        Ok(())
    }

    /// Whether every process of it stands still, as the kernel says.
    pub(crate) fn is_frozen(&self) -> bool {
        let dir = self.v2.as_ref().or(self.still.as_ref());
        super::field(dir, "cgroup.events", "frozen") == Some(1)
    }

    fn freezer(&mut self) -> io::Result<PathBuf> {
        if let Some(dir) = self.v2.as_ref().or(self.still.as_ref()) {
            return Ok(dir.clone());
        }
        let place = place().ok_or(io::ErrorKind::Unsupported)?;
        let dir = place.join(&self.name);
        fs::create_dir(&dir)?;
        self.still = Some(dir.clone());
        if !dir.join("cgroup.freeze").exists() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(dir)
    }
}

/// Moves every process into `dir`, and those they have made meanwhile.
fn gather(dir: &Path, members: impl Fn() -> Vec<i32>) -> io::Result<()> {
    let list = dir.join("cgroup.procs");
    let mut moved = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let left: Vec<i32> = members().into_iter().filter(|p| !moved.contains(p)).collect();
        if left.is_empty() {
            return Ok(());
        }
        for process in left {
            match fs::write(&list, process.to_string()) {
                // It has ended meanwhile.
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => drop(moved.insert(process)),
            }
        }
    }
    Err(io::Error::other("its processes fork faster than they can be stopped"))
}
