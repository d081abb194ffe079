//! The fallback for memory where no cgroup can hold it: look, and kill when it is too much.
//!
//! Each process is bounded by `RLIMIT_DATA` by the kernel; this bounds their sum, and what they
//! share by name: files in memory (`memfd_create`) and System V segments. The interval adapts:
//! the nearer to the limit, the sooner the next look.
//!
//! Between two looks a program gets at most `FILL_RATE` times the pause past the limit: 80 MiB with
//! `SHORTEST`. A pause is also twice what the look took: 0.2 ms a process and 10 µs a descriptor
//! where that was slow. Who makes the look last 0.1 s has 0.3 s for it.
//!
//! Not seen: memory that is mapped for sharing and has no file that is open (the kernel tells whose
//! it is in `smaps` alone, for which it takes the lock of the program's maps, and a program can
//! hold that: the look would wait for it); files that an undumpable process, a thread with a table
//! of its own or a message on its way in a socket has open; and what the kernel holds for the
//! program in sockets and pipes.

use crate::procfs;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How fast anonymous memory can be filled by one core, bytes per second, rounded up.
const FILL_RATE: u64 = 8 << 30;
/// Never more often: a look costs up to 0.2 ms a process.
const SHORTEST: Duration = Duration::from_millis(10);
/// Never more seldom while anything runs.
const LONGEST: Duration = Duration::from_secs(1);
/// Processes looked at in one go; `RLIMIT_NPROC` bounds them anyway.
const PROCESSES_MAX: usize = 65_536;

/// A look rests at least so many times what it took: other sandboxes are answered in between.
const REST: u32 = 2;
/// Descriptors looked at in one go: 2 to 10 µs each. A browser and its tests have some thousand.
const DESCRIPTORS_MAX: usize = 16_384;
/// Bytes of the kernel's list of System V segments: 4,096 segments of 200.
const SEGMENTS_BYTES_MAX: u64 = 1 << 20;
/// `st_blocks` counts in these (inode(7)).
const BLOCK_BYTES: u64 = 512;
/// What could not be counted, as the end of a sandbox.
const UNCOUNTED: &str = "it has more descriptors open than can be looked at for its memory limit";

/// What one look found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// Bytes.
    pub(super) bytes: u64,
    /// Processes.
    pub(super) processes: u64,
    /// Not all could be looked at.
    uncounted: bool,
}

impl Found {
    /// How long to rest after a look that took `spent`; `None` where the sandbox must end.
    pub(super) fn pause(self, limit: u64, spent: Duration) -> Option<Duration> {
        let within = self.bytes <= limit && !self.uncounted;
        within.then(|| pause(self.bytes, limit).max(spent.saturating_mul(REST)))
    }

    /// Why it must end.
    pub(super) fn reason(self) -> &'static str {
        if self.uncounted { UNCOUNTED } else { crate::report::OVER_MEMORY }
    }
}

/// The watchdog of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    /// The list of System V segments of its IPC namespace.
    segments: Option<File>,
}

impl Watchdog {
    /// Where its segments are listed.
    pub(super) fn segments(&mut self, list: Option<OwnedFd>) {
        self.segments = list.map(File::from);
    }

    /// What the processes below `init` hold, and it itself, whose image is not the program's.
    /// Orphans inside become its children, so none is missed.
    pub(super) fn look(&self, init: i32) -> Found {
        let segments = self.segments.as_ref().and_then(listed).unwrap_or(0);
        let (mut found, mut files) = (Found::default(), Files::default());
        for pid in processes(init) {
            found.processes += 1;
            let Some((at, private)) = held(pid) else { continue };
            found.bytes = found.bytes.saturating_add(private);
            if pid != init {
                files.add(&at);
            }
        }
        found.uncounted = files.uncounted;
        found.bytes = found.bytes.saturating_add(files.bytes()).saturating_add(segments);
        found
    }
}

/// Bytes that `pid` has to itself, and where its files in `/proc` are: those of one of its threads
/// where the first has ended, for then the kernel shows nothing with the process itself.
fn held(pid: i32) -> Option<(PathBuf, u64)> {
    let own = PathBuf::from(format!("/proc/{pid}"));
    if let Some(held) = status(&own) {
        return Some((own, held));
    }
    let tasks = fs::read_dir(own.join("task")).into_iter().flatten().flatten();
    tasks.map(|task| task.path()).find_map(|task| status(&task).map(|held| (task, held)))
}

fn status(at: &Path) -> Option<u64> {
    let text = procfs::text(at.join("status").to_str()?).ok()?;
    let field = |name: &str| text.lines().find_map(|l| kib(l.strip_prefix(name)?));
    Some(field("RssAnon:")?.saturating_add(field("VmSwap:").unwrap_or(0)))
}

/// `   12 kB` in bytes.
fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// Files in memory that some process has open, mapped or not.
#[derive(Debug, Default)]
struct Files {
    /// Bytes by inode: each counts once, whoever has it.
    blocks: BTreeMap<u64, u64>,
    looked: usize,
    uncounted: bool,
}

impl Files {
    /// Those of the process or thread whose folder in `/proc` is `at`.
    fn add(&mut self, at: &Path) {
        for entry in fs::read_dir(at.join("fd")).into_iter().flatten().flatten() {
            if self.looked == DESCRIPTORS_MAX {
                self.uncounted = true;
                return;
            }
            self.looked += 1;
            let path = entry.path();
            let named = fs::read_link(&path)
                .is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/memfd:"));
            if let Some(meta) = named.then(|| fs::metadata(&path).ok()).flatten() {
                self.blocks.insert(meta.ino(), meta.blocks().saturating_mul(BLOCK_BYTES));
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Bytes of all System V segments, attached or not, as `/proc/sysvipc/shm` has them in its last two
/// columns: in memory, and in swap.
fn listed(list: &File) -> Option<u64> {
    let mut text = String::new();
    let mut list: &File = list;
    list.rewind().ok()?;
    list.take(SEGMENTS_BYTES_MAX).read_to_string(&mut text).ok()?;
    let row = |line: &str| {
        let mut columns = line.split_whitespace().rev().map_while(|c| c.parse::<u64>().ok());
        Some(columns.next()?.saturating_add(columns.next()?))
    };
    Some(text.lines().skip(1).filter_map(row).fold(0, u64::saturating_add))
}

/// `pid` and all its descendants.
pub(super) fn processes(pid: i32) -> Vec<i32> {
    let (mut list, mut at) = (vec![pid], 0);
    while let Some(pid) = list.get(at).copied() {
        at += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let file = task.path().join("children");
            let children =
                file.to_str().and_then(|file| procfs::text(file).ok()).unwrap_or_default();
            list.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
        }
        list.truncate(PROCESSES_MAX);
    }
    list
}

/// When to look again.
fn pause(used: u64, limit: u64) -> Duration {
    let left = limit.saturating_sub(used);
    Duration::from_millis(left.saturating_mul(1_000) / FILL_RATE).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearer_the_limit_the_sooner_the_next_look() {
        assert_eq!(pause(0, 1 << 50), LONGEST);
        assert_eq!(pause(1 << 30, 1 << 30), SHORTEST);
        assert!(pause(0, 1 << 30) < pause(0, 4 << 30));
    }

    #[test]
    fn a_long_look_rests_longer_and_what_is_over_does_not_go_on() {
        let found = Found { bytes: 1 << 30, ..Found::default() };
        let long = Duration::from_millis(50);
        assert_eq!(found.pause(1 << 30, long), Some(long * REST));
        assert_eq!(found.pause((1 << 30) - 1, long), None);
        assert_eq!(found.reason(), crate::report::OVER_MEMORY);
        let found = Found { uncounted: true, ..Found::default() };
        assert_eq!((found.pause(1, long), found.reason()), (None, UNCOUNTED));
    }

    #[test]
    fn own_memory_is_seen() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let found = Watchdog::default().look(own);
        assert!(found.bytes > 0 && found.processes > 0);
    }

    #[test]
    fn a_process_whose_name_is_no_text_is_seen() {
        use std::os::unix::ffi::OsStringExt as _;
        let name =
            [&b"/nanoclaw-\xff\xfe-"[..], std::process::id().to_string().as_bytes()].concat();
        let mut path = std::env::temp_dir().into_os_string();
        path.push(std::ffi::OsString::from_vec(name));
        fs::copy("/bin/sleep", &path).unwrap();
        let mut child = std::process::Command::new(&path).arg("60").spawn().unwrap();
        let found = Watchdog::default().look(child.id().cast_signed());
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(found.bytes > 0, "{found:?}");
    }

    #[test]
    fn segments_count_by_what_is_in_memory_and_in_swap() {
        let path = std::env::temp_dir().join(format!("nanoclaw-shm-{}", std::process::id()));
        let head = "key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime";
        let rows = "0 1 600 9999 1 1 0 0 0 0 0 0 0 0 4096 1\n0 2 600 9 1 1 0 0 0 0 0 0 0 0 8192 0";
        fs::write(&path, format!("{head} rss swap\n{rows}\n")).unwrap();
        let list = File::open(&path).unwrap();
        assert_eq!((listed(&list), listed(&list)), (Some(12_289), Some(12_289)));
        fs::remove_file(&path).unwrap();
    }
}
