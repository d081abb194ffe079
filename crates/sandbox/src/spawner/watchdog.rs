//! The fallback for memory where no cgroup can hold it: look, and kill when it is too much.
//!
//! Each process is bounded by `RLIMIT_DATA` by the kernel; this bounds their sum, and what they
//! share: mapped memory, files without a name (`memfd_create`) and System V segments. The interval
//! adapts: the nearer to the limit, the sooner the next look.
//!
//! Between two looks a program gets at most `FILL_RATE` times the pause past the limit: 80 MiB with
//! `SHORTEST`. A pause is also twice what the look took: 0.2 ms a process and 10 µs a descriptor
//! where that was slow, and for maps, which are read only where the plain sum is over the limit,
//! 0.1 ms a MiB that is shared. Who makes the look last 0.1 s has 0.3 s for it.
//!
//! Not seen: files that an undumpable process, a thread with a table of its own or a message on its
//! way in a socket has open; shared pages that no process maps any more, of a map that is left in
//! part; and what the kernel holds for the program in sockets and pipes.

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
/// Shared bytes whose pages the kernel walks in one look, each as often as it is mapped.
const MAPS_BYTES_MAX: u64 = 2 << 30;
/// Text of maps in one look: some 50,000 of them.
const MAPS_TEXT_MAX: u64 = 32 << 20;
/// Bytes of the kernel's list of System V segments: 4,096 segments of 200.
const SEGMENTS_BYTES_MAX: u64 = 1 << 20;
/// `st_blocks` counts in these (inode(7)).
const BLOCK_BYTES: u64 = 512;
/// What could not be counted, as the end of a sandbox.
const UNCOUNTED: &str = "it has more descriptors open than can be looked at for its memory limit";

/// What one look found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// Bytes; exact as far as it can be had, or more where that is within the limit too.
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
    ///
    /// First all is added up as if every process had its shared memory to itself. Only if that is
    /// over `limit` the maps say what is counted twice, for the kernel walks all pages for them.
    pub(super) fn look(&self, init: i32, limit: u64) -> Found {
        let segments = self.segments.as_ref().and_then(listed);
        let mut files = Files::default();
        let (mut found, mut private, mut sharing) = (Found::default(), 0u64, Vec::new());
        for pid in processes(init) {
            found.processes += 1;
            let Some((at, held)) = held(pid) else { continue };
            private = private.saturating_add(held.private);
            if pid == init {
                continue;
            }
            files.add(&at);
            if held.shared > 0 {
                sharing.push((at, held.shared));
            }
        }
        found.uncounted = files.uncounted;
        let rest = private.saturating_add(files.bytes()).saturating_add(segments.unwrap_or(0));
        let shared = sharing.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        found.bytes = rest.saturating_add(shared);
        if found.bytes > limit && shared > 0 {
            // The image of programs of our own: it is ours, and there once for all sandboxes.
            let own = fs::metadata(format!("/proc/{init}/exe")).map(|m| m.ino()).ok();
            let apart = |ino: u64, segment: bool| {
                files.blocks.contains_key(&ino) || own == Some(ino) || segment && segments.is_some()
            };
            found.bytes = rest.saturating_add(mapped(&sharing, apart));
        }
        found
    }
}

/// Of one process, bytes.
struct Held {
    private: u64,
    shared: u64,
}

/// What `pid` holds, and where its files in `/proc` are: those of one of its threads where the
/// first has ended, for then the kernel shows nothing with the process itself.
fn held(pid: i32) -> Option<(PathBuf, Held)> {
    let own = PathBuf::from(format!("/proc/{pid}"));
    if let Some(held) = status(&own) {
        return Some((own, held));
    }
    let tasks = fs::read_dir(own.join("task")).into_iter().flatten().flatten();
    tasks.map(|task| task.path()).find_map(|task| status(&task).map(|held| (task, held)))
}

fn status(at: &Path) -> Option<Held> {
    let text = fs::read_to_string(at.join("status")).ok()?;
    let field = |name: &str| text.lines().find_map(|l| kib(l.strip_prefix(name)?));
    let private = field("RssAnon:")?.saturating_add(field("VmSwap:").unwrap_or(0));
    Some(Held { private, shared: field("RssShmem:")? })
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

/// What these processes have mapped of memory that has no file system, so that no size of one
/// bounds it, without what is `apart`. Where the maps cannot be read, or are too much for one look,
/// all that a process shares is its own.
fn mapped(sharing: &[(PathBuf, u64)], apart: impl Fn(u64, bool) -> bool) -> u64 {
    let device = device();
    let (mut bytes, mut text) = (MAPS_BYTES_MAX, MAPS_TEXT_MAX);
    let one = |(at, all): &(PathBuf, u64)| {
        let maps = bytes.checked_sub(*all).and_then(|left| {
            bytes = left;
            maps(at, &mut text)
        });
        match (&device, maps) {
            (Some(device), Some(maps)) => proportional(&maps, device, &apart),
            _ => *all,
        }
    };
    sharing.iter().map(one).fold(0, u64::saturating_add)
}

/// All maps with their shares; `None` where they are not to be had in what is `left` of text.
fn maps(at: &Path, left: &mut u64) -> Option<String> {
    let (mut text, most) = (Vec::new(), *left);
    File::open(at.join("smaps")).ok()?.take(most).read_to_end(&mut text).ok()?;
    *left = most.saturating_sub(text.len() as u64);
    // A path need not be UTF-8.
    (*left > 0).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The kernel's own file system in memory, as maps name it: files without a name are on it, shared
/// memory without a file, and System V segments.
fn device() -> Option<String> {
    let file = rustix::fs::memfd_create("device", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    let dev = rustix::fs::fstat(&file).ok()?.st_dev;
    Some(format!("{:02x}:{:02x}", rustix::fs::major(dev), rustix::fs::minor(dev)))
}

/// Of the text of `smaps`, this process' share of every map of `device` that is not `apart`. What
/// a process wrote to a private map is not in the file, and counted with its private memory.
fn proportional(text: &str, device: &str, apart: impl Fn(u64, bool) -> bool) -> u64 {
    let (mut sum, mut share, mut counts) = (0u64, 0u64, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // `from-to rwxp offset device inode path`
            let mut words = words.skip(2);
            let on = words.next() == Some(device);
            let inode = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let segment = words.next().is_some_and(|path| path.starts_with("/SYSV"));
            sum = sum.saturating_add(std::mem::take(&mut share));
            counts = on && !apart(inode, segment);
        } else if counts && first == "Pss:" {
            share = line.strip_prefix(first).and_then(kib).unwrap_or(0);
        } else if counts && first == "Anonymous:" {
            share = share.saturating_sub(line.strip_prefix(first).and_then(kib).unwrap_or(0));
        }
    }
    sum.saturating_add(share)
}

/// `pid` and all its descendants.
pub(super) fn processes(pid: i32) -> Vec<i32> {
    let (mut list, mut at) = (vec![pid], 0);
    while let Some(pid) = list.get(at).copied() {
        at += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
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
        let found = Watchdog::default().look(own, 0);
        assert!(found.bytes > 0 && found.processes > 0);
    }

    #[test]
    fn shares_are_of_the_device_without_what_is_counted_apart() {
        let text = "7f00-7f10 rw-s 00000000 00:01 7   /dev/zero (deleted)\n\
            Size: 64 kB\nPss:   32 kB\nAnonymous:      0 kB\n\
            7f10-7f20 rw-s 00000000 00:01 8   /memfd:x (deleted)\nPss:   16 kB\n\
            7f20-7f30 rw-p 00000000 00:01 9   /memfd:y (deleted)\nPss:   12 kB\n\
            Anonymous: 4 kB\n\
            7f30-7f40 rw-s 00000000 00:01 3   /SYSV00000000 (deleted)\nPss:   4 kB\n\
            7f40-7f50 rw-p 00000000 00:00 0   [heap]\nPss:   1 kB\n\
            7f50-7f60 rw-s 00000000 00:21 7   /tmp/file\nPss:   1 kB\nVmFlags: rd\n";
        let all = |_: u64, _: bool| false;
        assert_eq!(proportional(text, "00:01", all), (32 + 16 + 8 + 4) << 10);
        let apart = |ino: u64, segment: bool| ino == 8 || segment;
        assert_eq!(proportional(text, "00:01", apart), (32 + 8) << 10);
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
