//! The fallback for memory where no cgroup can hold it: look, and kill when it is too much.
//!
//! Each process is bounded by `RLIMIT_DATA` by the kernel; this bounds their sum. The interval
//! adapts: the nearer to the limit, the sooner the next look.

use std::fs;
use std::time::Duration;

/// How fast anonymous memory can be filled by one core, bytes per second, rounded up.
const FILL_RATE: u64 = 8 << 30;
/// Never more often: a look costs some microseconds a process.
const SHORTEST: Duration = Duration::from_millis(10);
/// Never more seldom while anything runs.
const LONGEST: Duration = Duration::from_secs(1);
/// Processes looked at in one go; `RLIMIT_NPROC` bounds them anyway.
const PROCESSES_MAX: usize = 65_536;

/// Anonymous and shared memory of `pid` and all its descendants, bytes, and how many they are.
/// Orphans inside become children of the sandbox's first process, so none is missed.
pub(super) fn tree(pid: i32) -> (u64, u64) {
    let page = rustix::param::page_size() as u64;
    let (mut sum, mut count) = (0u64, 0u64);
    for pid in processes(pid) {
        count += 1;
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let mut fields = statm.split(' ').skip(1).map_while(|f| f.parse::<u64>().ok());
        let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
        sum = sum.saturating_add(resident.saturating_sub(shared).saturating_mul(page));
    }
    (sum, count)
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
pub(super) fn pause(used: u64, limit: u64) -> Duration {
    let left = limit.saturating_sub(used);
    Duration::from_millis(left.saturating_mul(1_000) / FILL_RATE).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_the_limit_the_sooner_the_next_look() {
        assert_eq!(pause(0, 1 << 50), LONGEST);
        assert_eq!(pause(1 << 30, 1 << 30), SHORTEST);
        assert!(pause(0, 1 << 30) < pause(0, 4 << 30));
    }

    #[test]
    fn own_memory_is_seen() {
        let (bytes, count) = tree(rustix::process::getpid().as_raw_nonzero().get());
        assert!(bytes > 0 && count > 0);
    }
}
