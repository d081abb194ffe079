//! Control groups: v2 where delegated, v1 as root, or none.
//!
//! Pipeline: `/proc/self/cgroup` + `/proc/self/mountinfo` ─► `Parent` (found once) ─► one `Group`
//! a sandbox ─► limits written, read back ─► removed at the end.
//!
//! Invariants:
//! 1. A limit counts as held by a cgroup only after its file was read back with that value.
//! 2. Directories are named after the spawner's pid and start time, so that leftovers of a dead
//!    spawner are recognised and swept, and those of a live one never touched.

mod freezer;
mod sockets;

pub(crate) use sockets::{Beside, share as socket_share};

use crate::facts::{Ladder, Rung};
use model::Limits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// All our directories begin so.
const PREFIX: &str = "nanoclaw-";
/// Period of CPU bandwidth control; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// A cgroup empties asynchronously after its last process; usually within a few milliseconds.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Where groups can be made.
#[derive(Debug, Clone)]
pub(crate) enum Parent {
    /// A delegated v2 directory with memory, cpu and pids for its children.
    V2(PathBuf),
    /// v1 directories of the controllers found writable.
    V1 { memory: Option<PathBuf>, cpu: Option<PathBuf>, pids: Option<PathBuf> },
}

impl Parent {
    /// Looks for the best rung this process may use.
    pub(crate) fn find() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        find_v2(&own, &mounts).or_else(|| find_v1(&own, &mounts))
    }

    /// Which limits it can hold.
    pub(crate) fn ladder(&self) -> Ladder {
        match self {
            Self::V2(_) => {
                let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
                let memory =
                    if sockets::charged(&command_line) { Rung::V2 } else { Rung::Fallback };
                Ladder { memory, cpu: Rung::V2, pids: Rung::V2 }
            }
            Self::V1 { memory, cpu, pids } => {
                let rung = |p: Option<&PathBuf>| p.map_or(Rung::Fallback, |_| Rung::V1);
                // A limit that sockets go round is none.
                let memory = memory.as_ref().filter(|dir| sockets::limitable(dir));
                Ladder { memory: rung(memory), cpu: rung(cpu.as_ref()), pids: rung(pids.as_ref()) }
            }
        }
    }

    fn directories(&self) -> Vec<&PathBuf> {
        match self {
            Self::V2(dir) => vec![dir],
            Self::V1 { memory, cpu, pids } => [memory, cpu, pids].into_iter().flatten().collect(),
        }
    }

    /// Makes one group with limits and reads them back.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let name = format!("{PREFIX}{name}");
        let mut group = Group { name, ..Group::default() };
        if let Err(e) = group.make(self).and_then(|()| group.limit(limits)) {
            group.remove();
            return Err(e);
        }
        Ok(group)
    }

    /// How many groups stand that begin with this name.
    pub(crate) fn count(&self, name: &str) -> usize {
        let prefix = format!("{PREFIX}{name}");
        let groups = |dir: &PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count()
        };
        self.directories().into_iter().map(groups).sum()
    }

    /// Removes the groups of spawners that are no more.
    pub(crate) fn sweep(&self, alive: impl Fn(&str) -> bool) {
        let still = freezer::place();
        for dir in self.directories().into_iter().chain(&still) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(owner) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
                    continue;
                };
                // The name is `<pid>-<start time>-<number>`.
                if owner.rsplit_once('-').is_some_and(|(spawner, _)| !alive(spawner)) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

/// Mount points of type `kind`, with the root they show and their super options.
fn mounts<'a>(info: &'a str, kind: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let mut found = Vec::new();
    for line in info.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
        if right.next() == Some(kind) {
            found.push((root, point, right.nth(1).unwrap_or("")));
        }
    }
    found
}

fn below(point: &str, root: &str, path: &str) -> PathBuf {
    let inside = path.strip_prefix(root).unwrap_or(path);
    Path::new(point).join(inside.trim_start_matches('/'))
}

fn writable(dir: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(dir, Access::WRITE_OK).is_ok()
        && access(dir.join("cgroup.procs"), Access::WRITE_OK).is_ok()
}

fn find_v2(own: &str, info: &str) -> Option<Parent> {
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let list = mounts(info, "cgroup2");
    let (root, point, _) = list.first()?;
    let own = below(point, root, path);
    let top = Path::new(point);
    // From our own group upwards: where we sit has processes, so its children usually cannot
    // have controllers; the next writable one up often can (systemd user sessions).
    own.ancestors()
        .take_while(|d| d.starts_with(top) && writable(d))
        .find(|d| enabled(d))
        .map(|d| Parent::V2(d.to_path_buf()))
}

/// Children of `dir` have memory, cpu and pids, after asking for them if need be.
fn enabled(dir: &Path) -> bool {
    let wanted = ["memory", "cpu", "pids"];
    let file = dir.join("cgroup.subtree_control");
    let has = || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        wanted.iter().all(|w| text.split_whitespace().any(|t| t == *w))
    };
    let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let possible = wanted.iter().all(|w| offered.split_whitespace().any(|t| t == *w));
    possible && (has() || (fs::write(&file, "+memory +cpu +pids").is_ok() && has()))
}

/// The directory of the v1 controller `name` in which the process is that `own` tells of.
fn directory_v1(own: &str, info: &str, name: &str) -> Option<PathBuf> {
    let has = |text: &str| text.split(',').any(|c| c == name);
    let path = own.lines().find_map(|l| {
        let mut parts = l.splitn(3, ':').skip(1);
        has(parts.next()?).then(|| parts.next())?
    })?;
    let list = mounts(info, "cgroup");
    let (root, point, _) = list.iter().find(|(_, _, options)| has(options))?;
    Some(below(point, root, path))
}

fn find_v1(own: &str, info: &str) -> Option<Parent> {
    let controller = |name: &str| directory_v1(own, info, name).filter(|dir| writable(dir));
    let (memory, cpu, pids) = (controller("memory"), controller("cpu"), controller("pids"));
    // One that does not hold all memory is used beside others only: alone it is joined by nobody.
    let others = cpu.is_some() || pids.is_some();
    let memory = memory.filter(|dir| others || sockets::limitable(dir));
    if memory.is_none() && cpu.is_none() && pids.is_none() {
        return None;
    }
    Some(Parent::V1 { memory, cpu, pids })
}

/// The control groups of one sandbox. v1 has up to three directories, v2 one.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// The last part of every directory's path; no other group has it.
    name: String,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
    /// The v2 directory.
    v2: Option<PathBuf>,
    /// One of v2 without limits, made when the sandbox was first to stand still.
    still: Option<PathBuf>,
    /// v1's account of CPU time; only of groups that somebody else made.
    accounts: Option<PathBuf>,
}

/// Limits as the kernel's files have them; `None` where there is no file, or no limit in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Bytes of swap beyond the memory.
    pub(crate) swap: Option<u64>,
    /// Thousandths of a CPU.
    pub(crate) cpu_milli: Option<u64>,
    /// Tasks.
    pub(crate) pids: Option<u64>,
    /// Queues of Internet sockets, bytes beside the memory: `None` where they are part of it.
    pub(crate) sockets: Option<Beside>,
}

fn set(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    let tell = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    fs::write(&path, value).map_err(tell)?;
    let got = fs::read_to_string(&path).map_err(tell)?;
    if got.trim() != value {
        let cause = format!("{} holds {:?}, not {value}", path.display(), got.trim());
        return Err(io::Error::other(cause));
    }
    Ok(())
}

/// Memory alone, then memory with swap, which may never be the smaller of the two: a limit that
/// grows needs the other order.
fn memory_v1(dir: &Path, bytes: &str) -> io::Result<()> {
    const ALONE: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    if !dir.join(WITH_SWAP).exists() {
        return set(dir, ALONE, bytes);
    }
    if set(dir, ALONE, bytes).is_err() {
        set(dir, WITH_SWAP, bytes)?;
        set(dir, ALONE, bytes)?;
    }
    set(dir, WITH_SWAP, bytes)
}

/// A line of `/proc/PID/cgroup` for controller `kind` (empty: v2) ends in `name`.
fn listed(text: &str, kind: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { return false };
        kinds.split(',').any(|k| k == kind) && path.rsplit('/').next() == Some(name)
    })
}

fn number(dir: Option<&PathBuf>, file: &str) -> Option<u64> {
    fs::read_to_string(dir?.join(file)).ok()?.trim().parse().ok()
}

fn field(dir: Option<&PathBuf>, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(dir?.join(file)).ok()?;
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// v1 says "no limit" with the largest multiple of a page.
fn limited(bytes: Option<u64>) -> Option<u64> {
    const NONE: u64 = i64::MAX as u64 - 0xffff;
    bytes.filter(|b| *b < NONE)
}

/// The kernel rounds memory limits down to whole pages.
pub(crate) fn whole_pages(bytes: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    (bytes / page) * page
}

fn quota(milli: u64) -> u64 {
    // The kernel refuses quotas below one millisecond.
    (milli * CPU_PERIOD_US / 1_000).max(1_000)
}

impl Group {
    /// The groups of a process, made by somebody else: to be read only.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let info = fs::read_to_string("/proc/self/mountinfo")?;
        let v1 = |name| directory_v1(&own, &info, name).filter(|dir| dir.is_dir());
        let v2 = || {
            let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
            let list = mounts(&info, "cgroup2");
            let (root, point, _) = list.first()?;
            Some(below(point, root, path)).filter(|dir| dir.is_dir())
        };
        Ok(Self {
            name: String::new(),
            memory: v1("memory"),
            cpu: v1("cpu"),
            pids: v1("pids"),
            v2: v2(),
            still: None,
            accounts: v1("cpuacct"),
        })
    }

    /// Its directories, each once.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        let all = [&self.memory, &self.cpu, &self.pids, &self.accounts, &self.v2];
        let mut all: Vec<PathBuf> = all.into_iter().flatten().cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The limits that it holds, as the kernel's own files say.
    pub(crate) fn held(&self) -> Held {
        let v2 = self.v2.as_ref();
        let memory = limited(number(self.memory.as_ref(), "memory.limit_in_bytes"))
            .or_else(|| number(v2, "memory.max"));
        let with_swap = limited(number(self.memory.as_ref(), "memory.memsw.limit_in_bytes"));
        let beyond = with_swap.zip(memory).map(|(both, alone)| both.saturating_sub(alone));
        let per = |quota: u64, period: u64| (quota * 1_000).checked_div(period);
        let v1_cpu = number(self.cpu.as_ref(), "cpu.cfs_quota_us")
            .zip(number(self.cpu.as_ref(), "cpu.cfs_period_us"));
        let v2_cpu = || {
            let text = fs::read_to_string(v2?.join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            Some((quota.parse().ok()?, period.parse().ok()?))
        };
        Held {
            memory,
            swap: beyond.or_else(|| number(v2, "memory.swap.max")),
            cpu_milli: v1_cpu.or_else(v2_cpu).and_then(|(quota, period)| per(quota, period)),
            pids: number(self.pids.as_ref(), "pids.max").or_else(|| number(v2, "pids.max")),
            sockets: self.memory.as_ref().map(sockets::held),
        }
    }

    fn make(&mut self, parent: &Parent) -> io::Result<()> {
        let name = &self.name;
        let child = |parent: &PathBuf| -> io::Result<PathBuf> {
            let dir = parent.join(name);
            fs::create_dir(&dir).map(|()| dir)
        };
        match parent {
            Parent::V2(dir) => self.v2 = Some(child(dir)?),
            Parent::V1 { memory, cpu, pids } => {
                for (own, parent) in
                    [(&mut self.memory, memory), (&mut self.cpu, cpu), (&mut self.pids, pids)]
                {
                    *own = parent.as_ref().map(child).transpose()?;
                }
            }
        }
        Ok(())
    }

    /// Writes the limits and reads them back. They may replace others.
    pub(crate) fn limit(&mut self, limits: &Limits) -> io::Result<()> {
        let bytes = whole_pages(limits.memory_bytes.value).to_string();
        let quota = quota(limits.cpu_milli.value);
        if let Some(dir) = &self.v2 {
            set(dir, "memory.max", &bytes)?;
            if dir.join("memory.swap.max").exists() {
                set(dir, "memory.swap.max", "0")?;
            }
            set(dir, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
        }
        if let Some(dir) = &self.memory {
            memory_v1(dir, &bytes)?;
            if sockets::limitable(dir) {
                let beside = socket_share(limits.memory_bytes.value);
                set(dir, sockets::LIMIT, &beside.to_string())?;
            }
        }
        if let Some(dir) = &self.cpu {
            set(dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            set(dir, "cpu.cfs_quota_us", &quota.to_string())?;
        }
        match self.pids.as_ref().or(self.v2.as_ref()) {
            Some(dir) => set(dir, "pids.max", &limits.pids.value.to_string()),
            None => Ok(()),
        }
    }

    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.memory, &self.cpu, &self.pids, &self.v2, &self.still].into_iter().flatten()
    }

    /// Files a process writes "0" to in order to join. The v1 `tasks` file and a lone thread
    /// spare the kernel the lock over all processes that `cgroup.procs` takes, and with it
    /// delays of up to 19 ms.
    pub(crate) fn join_files(&self) -> Vec<PathBuf> {
        let v1 = [&self.memory, &self.cpu, &self.pids].into_iter().flatten();
        let v2 = self.v2.iter().map(|d| d.join("cgroup.procs"));
        v1.map(|d| d.join("tasks")).chain(v2).collect()
    }

    /// `pid` is in every one of the groups, as the kernel tells of the process: one read, where
    /// the groups' own lists would be three, each sorted by the kernel.
    pub(crate) fn holds(&self, pid: i32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let kinds =
            [("memory", &self.memory), ("cpu", &self.cpu), ("pids", &self.pids), ("", &self.v2)];
        kinds.iter().all(|(kind, dir)| dir.is_none() || listed(&text, kind, &self.name))
    }

    /// Memory in use now, bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        number(self.memory.as_ref(), "memory.usage_in_bytes")
            .or_else(|| number(self.v2.as_ref(), "memory.current"))
    }

    /// Highest memory so far, bytes.
    pub(crate) fn peak(&self) -> Option<u64> {
        number(self.memory.as_ref(), "memory.max_usage_in_bytes")
            .or_else(|| number(self.v2.as_ref(), "memory.peak"))
    }

    /// Tasks now.
    pub(crate) fn pids(&self) -> Option<u64> {
        number(self.pids.as_ref().or(self.v2.as_ref()), "pids.current")
    }

    /// Most tasks so far; kernels before 6.11 do not count it.
    pub(crate) fn peak_pids(&self) -> Option<u64> {
        number(self.pids.as_ref().or(self.v2.as_ref()), "pids.peak")
    }

    /// Processes killed for memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        field(self.memory.as_ref(), "memory.oom_control", "oom_kill")
            .or_else(|| field(self.v2.as_ref(), "memory.events", "oom_kill"))
    }

    /// CPU time so far, where the group counts it.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        number(self.accounts.as_ref(), "cpuacct.usage").map(Duration::from_nanos).or_else(|| {
            field(self.v2.as_ref(), "cpu.stat", "usage_usec").map(Duration::from_micros)
        })
    }

    /// Removes the directories; they are empty or about to be.
    pub(crate) fn remove(&mut self) {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        let dirs: Vec<PathBuf> = self.directories().cloned().collect();
        for dir in dirs {
            // What stays is swept by the next spawner.
            while let Err(e) = fs::remove_dir(&dir) {
                let busy = e.raw_os_error() == Some(libc::EBUSY);
                if !busy || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
        30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n\
        31 25 0:27 /box /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
        32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn mount_points_and_own_paths_are_joined() {
        assert_eq!(mounts(INFO, "cgroup2"), [("/", "/sys/fs/cgroup/unified", "rw")]);
        assert_eq!(mounts(INFO, "cgroup").len(), 2);
        assert_eq!(
            below("/sys/fs/cgroup/cpu", "/box", "/box/a"),
            Path::new("/sys/fs/cgroup/cpu/a")
        );
        assert_eq!(below("/x", "/", "/"), Path::new("/x/"));
    }

    #[test]
    fn quotas_and_pages_are_what_the_kernel_will_say_back() {
        assert_eq!(quota(1_000), CPU_PERIOD_US);
        assert_eq!(quota(1), 1_000);
        assert_eq!(whole_pages(4_097), 4_096);
    }
}
