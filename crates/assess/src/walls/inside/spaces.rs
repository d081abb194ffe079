//! Namespaces and mounts, tried.

use super::tools::{either, nothing, of, seen, text};
use super::{Act, Ground};
use crate::search;
use crate::walls::Answer;
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Pid, test_kill_process};
use std::fs;

pub(super) const ACTS: &[(&str, Act)] = &[
    ("ns-separation-pid", |g| own(g, "pid")),
    ("ns-separation-net", |g| own(g, "net")),
    ("ns-separation-ipc", |g| own(g, "ipc")),
    ("ns-separation-uts", |g| own(g, "uts")),
    ("ns-separation-user", |g| own(g, "user")),
    ("ns-separation-mnt", |g| own(g, "mnt")),
    ("ns-separation-cgroup", |g| own(g, "cgroup")),
    ("uts-host-name", host_name),
    ("ipc-empty", |_| objects()),
    ("host-processes", |g| processes(&g.bait.marker)),
    ("host-process-signal", |g| signal(g.bait.host_pid)),
    ("host-process-entry", |g| {
        of("it was read", fs::read(format!("/proc/{}/status", g.bait.host_pid)))
    }),
    ("root-read-only", |_| root_flag()),
    ("read-only-places", |g| places(&g.bait.read_only, "every folder refused")),
    ("core-pattern-denied", |_| {
        let path = "/proc/sys/kernel/core_pattern";
        of("it opened for writing", fs::OpenOptions::new().write(true).open(path))
    }),
    ("no-setuid-effect", |_| either(without("nosuid", &[]))),
    ("no-device-effect", |_| either(without("nodev", &["/dev"]))),
    ("mounts-planned", |g| either(planned(g))),
    ("cgroup-read-only", |_| either(groups())),
];

/// The name a sandbox has, which says nothing of the host even where that has the same.
const HOST_NAME_INSIDE: &str = "sandbox";

/// Whether the namespace of that kind is another than the host's.
fn own(ground: &Ground, kind: &str) -> Answer {
    let Some(hosts) = ground.bait.namespaces.get(kind) else {
        return Answer::Failed("the host's was not told".into());
    };
    match fs::read_link(format!("/proc/self/ns/{kind}")) {
        Err(e) => Answer::Failed(e.to_string()),
        Ok(link) => {
            let link = link.to_string_lossy().into_owned();
            seen(!link.ends_with(&format!("[{hosts}]")), link)
        }
    }
}

fn host_name(ground: &Ground) -> Answer {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    seen(name == HOST_NAME_INSIDE || name != ground.bait.host_name, name)
}

fn objects() -> Answer {
    let mut found = Vec::new();
    for kind in ["shm", "sem", "msg"] {
        // A kernel without System V objects has none to show.
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        let count = table.lines().skip(1).count();
        if count > 0 {
            found.push(format!("{count} of kind {kind}"));
        }
    }
    nothing(&found, "none")
}

/// Processes that have `word` as one of their arguments. This process's own have it inside another.
pub(super) fn processes(word: &str) -> Answer {
    if word.is_empty() {
        return Answer::Failed("nothing to look for was told".into());
    }
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|argument| argument == word.as_bytes())
    };
    let pids = search::pids();
    let found: Vec<String> =
        pids.iter().filter(|pid| has(pid)).map(|pid| format!("process {pid}")).collect();
    nothing(&found, &format!("{} in /proc, none of them", pids.len()))
}

/// Whether a process of that number can be seen by a signal that does nothing.
pub(super) fn signal(pid: u32) -> Answer {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match pid {
        None => Answer::Failed("no process was told".into()),
        Some(pid) => of("it is there", test_kill_process(pid)),
    }
}

fn root_flag() -> Answer {
    match rustix::fs::statvfs("/") {
        Err(e) => Answer::Failed(e.to_string()),
        Ok(stat) if stat.f_flag.contains(StatVfsMountFlags::RDONLY) => {
            Answer::Held("the mount is read-only".into())
        }
        Ok(_) => Answer::Tripped("the mount can be written".into()),
    }
}

/// Tries to make a file in each of these folders.
pub(super) fn places(folders: &[String], none: &str) -> Answer {
    const NAME: &str = ".nanoclaw-probe";
    let mut found = Vec::new();
    for folder in folders {
        let path = format!("{}/{NAME}", folder.trim_end_matches('/'));
        if fs::OpenOptions::new().write(true).create_new(true).open(&path).is_ok() {
            drop(fs::remove_file(&path));
            found.push(format!("a file was made in {folder}"));
        }
    }
    nothing(&found, none)
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mounted {
    root: String,
    point: String,
    options: String,
    kind: String,
    /// Options of the file system itself.
    inner: String,
}

fn mounted() -> Result<Vec<Mounted>, Answer> {
    let table = text("/proc/self/mountinfo")?;
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let field = |all: &[&str], n: usize| all.get(n).map(|s| (*s).to_owned());
        Some(Mounted {
            root: field(&left, 3)?,
            point: field(&left, 4)?,
            options: field(&left, 5)?,
            kind: field(&right, 0)?,
            inner: field(&right, 2)?,
        })
    };
    Ok(table.lines().filter_map(line).collect())
}

fn has(options: &str, wanted: &str) -> bool {
    options.split(',').any(|o| o == wanted)
}

/// Mounts that lack an option, other than below `except` and what covers an entry with nothing.
fn without(option: &str, except: &[&str]) -> Result<Answer, Answer> {
    let covers = |m: &Mounted| m.root.ends_with("/null") && option == "nodev";
    let excepted = |m: &Mounted| except.iter().any(|e| below(&m.point, e)) || covers(m);
    let found: Vec<String> = mounted()?
        .iter()
        .filter(|m| !has(&m.options, option) && !excepted(m))
        .map(|m| m.point.clone())
        .collect();
    Ok(nothing(&found, &format!("every mount has {option}")))
}

fn below(path: &str, base: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn planned(ground: &Ground) -> Result<Answer, Answer> {
    const PLANNED: [&str; 17] = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/lib32",
        "/libx32",
        "/libexec",
        "/etc",
        "/dev",
        "/proc",
        "/tmp",
        "/var/tmp",
        "/run/nanoclaw",
        "/run/user/1000",
        "/home/agent",
        "/workspace",
    ];
    let known = |point: &str| {
        point == "/"
            || PLANNED.iter().any(|p| below(point, p))
            || ground.bait.mounts.iter().any(|p| below(point, p))
    };
    let all = mounted()?;
    let strange: Vec<String> =
        all.iter().filter(|m| !known(&m.point)).map(|m| m.point.clone()).collect();
    Ok(nothing(&strange, &format!("{} mounts, all planned", all.len())))
}

fn groups() -> Result<Answer, Answer> {
    let writable = |m: &&Mounted| has(&m.options, "rw") && has(&m.inner, "rw");
    let found: Vec<String> = mounted()?
        .iter()
        .filter(|m| m.kind.starts_with("cgroup"))
        .filter(writable)
        .map(|m| m.point.clone())
        .collect();
    Ok(nothing(&found, "no control group can be written"))
}
