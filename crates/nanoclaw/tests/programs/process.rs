//! Which processes are an installation's: those that run its binary, and all that these started.

use crate::lab::Lab;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Its arguments, separated by spaces.
    pub(crate) argv: String,
}

impl Process {
    pub(crate) fn is_gateway(&self) -> bool {
        self.argv.contains("__gateway")
    }

    /// Its folder in `/proc`.
    pub(crate) fn place(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string())
    }

    /// Files that it has open and no folder has any more.
    pub(crate) fn unlinked(&self) -> Vec<PathBuf> {
        let open = fs::read_dir(self.place().join("fd")).into_iter().flatten().flatten();
        let open = open.map(|entry| entry.path());
        // A pipe or a socket would be read empty, or waited for.
        let file = |fd: &PathBuf| fs::metadata(fd).is_ok_and(|m| m.is_file() && m.nlink() == 0);
        open.filter(file).collect()
    }

    /// Whether it sees other files than we do: those of a sandbox.
    pub(crate) fn is_inside(&self) -> bool {
        let root = |place: &Path| fs::metadata(place.join("root")).map(|m| (m.dev(), m.ino())).ok();
        let theirs = root(&self.place());
        theirs.is_some() && theirs != root(Path::new("/proc/self"))
    }
}

/// Every process of this installation that lives just now.
pub(crate) fn of(lab: &Lab) -> Vec<Process> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(i32, i32)> = numbers.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let runs = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let ours = |pid: i32| runs(pid).is_some_and(|exe| exe == lab.binary());
    let mut all: BTreeSet<i32> = parents.iter().map(|p| p.0).filter(|p| ours(*p)).collect();
    loop {
        let before = all.len();
        all.extend(parents.iter().filter(|p| all.contains(&p.1)).map(|p| p.0).collect::<Vec<_>>());
        if all.len() == before {
            break;
        }
    }
    all.into_iter().map(|pid| Process { pid, argv: argv(pid) }).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    status.ok()?.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn argv(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
