//! Privileges, what was inherited, and the first process, tried.

use super::tools::{call, either, nothing, of, seen, status, text, with_file};
use super::{Act, Ground, linger};
use crate::search;
use crate::walls::Answer;
use rustix::fs::Uid;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, setrlimit,
    test_kill_process,
};
use rustix::thread::{CapabilitiesSecureBits as Bits, CapabilitySet, CapabilitySets};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

pub(super) const ACTS: &[(&str, Act)] = &[
    ("caps-zero-effective", |_| either(empty_set("CapEff"))),
    ("caps-zero-permitted", |_| either(empty_set("CapPrm"))),
    ("caps-zero-inheritable", |_| either(empty_set("CapInh"))),
    ("caps-zero-bounding", |_| either(empty_set("CapBnd"))),
    ("caps-zero-ambient", |_| either(empty_set("CapAmb"))),
    ("capset-denied", |_| every_capability()),
    ("nnp-set", |_| either(is("NoNewPrivs", "1"))),
    ("seccomp-mode", |_| either(is("Seccomp", "2"))),
    ("securebits-locked", |_| securebits()),
    ("uid-unprivileged", |g| either(uid(g.bait.uid))),
    ("uid-map-single", |_| either(one_id("/proc/self/uid_map"))),
    ("gid-map-single", |_| either(one_id("/proc/self/gid_map"))),
    ("setgroups-denied", |_| either(setgroups())),
    ("groups-none", |g| either(groups(g.bait.own_group))),
    ("chown-root-denied", |_| {
        with_file("chown", |p| of("root owns it", rustix::fs::chown(p, Some(Uid::ROOT), None)))
    }),
    ("core-limit", |_| core_limit()),
    ("core-dump", |_| core_dump()),
    ("core-limit-raise-denied", |_| raise()),
    ("fd-inheritance", descriptors),
    ("inherited-env", variables),
    ("host-variable", |g| variable(&g.bait.variable)),
    ("controlling-terminal", |_| {
        of("it was opened", OpenOptions::new().read(true).write(true).open("/dev/tty"))
    }),
    ("init-mem-read", |g| of("it was opened", File::open(of_init(g, "mem")))),
    ("init-mem-write", |g| {
        of("it opened for writing", OpenOptions::new().write(true).open(of_init(g, "mem")))
    }),
    ("init-maps", |g| of("it was read", fs::read(of_init(g, "maps")))),
    ("init-environ", |g| of("it was read", fs::read(of_init(g, "environ")))),
    ("init-exe", |g| of("it was opened", File::open(of_init(g, "exe")))),
    ("init-fd", |g| of("they were listed", fs::read_dir(of_init(g, "fd")))),
    ("init-root", |g| of("it was listed", fs::read_dir(of_init(g, "root")))),
    ("init-cwd", |g| of("it was listed", fs::read_dir(of_init(g, "cwd")))),
    ("init-namespaces", |g| of("it was read", fs::read_link(of_init(g, "ns/mnt")))),
    ("init-pidfd-getfd", take_descriptor),
    ("init-signals", signals),
];

fn empty_set(field: &str) -> Result<Answer, Answer> {
    let set = status(field)?;
    let empty = set.bytes().all(|b| b == b'0');
    Ok(seen(empty, if empty { "empty".to_owned() } else { set }))
}

fn is(field: &str, wanted: &str) -> Result<Answer, Answer> {
    let value = status(field)?;
    let held = value == wanted;
    Ok(seen(held, if value.is_empty() { "empty".to_owned() } else { format!("{field} {value}") }))
}

/// Whether real, effective, saved and file system uid are this one, or any one but root's.
fn uid(wanted: Option<u32>) -> Result<Answer, Answer> {
    let value = status("Uid")?;
    let ids: Vec<Option<u32>> = value.split(' ').map(|id| id.parse().ok()).collect();
    let first = ids.first().copied().flatten();
    let one = ids.len() == 4 && ids.iter().all(|id| *id == first);
    let meant = first.is_some_and(|id| wanted.map_or(id != 0, |wanted| id == wanted));
    Ok(seen(one && meant, format!("Uid {value}")))
}

/// Whether there is no further group; `own` says that the process' own may be repeated there.
fn groups(own: bool) -> Result<Answer, Answer> {
    let (groups, gid) = (status("Groups")?, status("Gid")?);
    let gid = gid.split(' ').next().filter(|_| own);
    let held = groups.split(' ').all(|group| group.is_empty() || Some(group) == gid);
    Ok(seen(held, if groups.is_empty() { "empty".to_owned() } else { format!("Groups {groups}") }))
}

fn every_capability() -> Answer {
    let all = CapabilitySet::all();
    let sets = CapabilitySets { effective: all, permitted: all, inheritable: all };
    of("it has them", rustix::thread::set_capabilities(None, sets))
}

fn securebits() -> Answer {
    let wanted = Bits::NO_ROOT
        | Bits::NO_ROOT_LOCKED
        | Bits::NO_SETUID_FIXUP
        | Bits::NO_SETUID_FIXUP_LOCKED
        | Bits::NO_CAP_AMBIENT_RAISE
        | Bits::NO_CAP_AMBIENT_RAISE_LOCKED;
    match rustix::thread::capabilities_secure_bits() {
        Err(e) => Answer::Failed(e.to_string()),
        Ok(bits) => seen(bits.contains(wanted), format!("bits {:#x}", bits.bits())),
    }
}

fn one_id(path: &str) -> Result<Answer, Answer> {
    let map = text(path)?;
    let words: Vec<&str> = map.split_whitespace().collect();
    // The outer id is the host's affair and stays out of reports.
    let held = words.len() == 3 && words.get(2) == Some(&"1");
    Ok(seen(held, if held { "one id" } else { "several ids" }))
}

fn setgroups() -> Result<Answer, Answer> {
    let word = text("/proc/self/setgroups")?.trim().to_owned();
    Ok(seen(word == "deny", word))
}

fn core_limit() -> Answer {
    let limit = getrlimit(Resource::Core).maximum;
    seen(limit == Some(0), limit.map_or("unlimited".to_owned(), |n| format!("{n} bytes")))
}

fn raise() -> Answer {
    of("it was raised", setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: None }))
}

/// A process ends as those do of which a dump is made; the kernel says whether it made one. Where
/// the host's `core_pattern` is a program, a limit of 0 does not stop it (core(5)).
fn core_dump() -> Answer {
    match linger::start(&["crash"]).and_then(|mut child| child.wait()) {
        Err(e) => Answer::Failed(format!("nothing could be started: {e}")),
        Ok(status) if status.signal().is_none() => {
            Answer::Failed(format!("it did not crash: {status}"))
        }
        Ok(status) => {
            let dumped = status.core_dumped();
            seen(!dumped, if dumped { "the kernel made one" } else { "none was made" })
        }
    }
}

fn descriptors(ground: &Ground) -> Answer {
    let told: Vec<String> =
        ground.born.descriptors.iter().map(|n| format!("descriptor {n}")).collect();
    nothing(&told, "the three streams only")
}

fn variables(ground: &Ground) -> Answer {
    let born = &ground.born.variables;
    let granted = |n: &&String| ground.bait.env_names.contains(n);
    let found: Vec<String> = born.iter().filter(|n| !granted(n)).cloned().collect();
    nothing(&found, &format!("{} variables, all granted", born.len()))
}

fn variable(name: &str) -> Answer {
    if name.is_empty() {
        return Answer::Failed("no variable was told".into());
    }
    if std::env::var_os(name).is_some() {
        return Answer::Tripped("it is in the own environment".into());
    }
    match search::in_proc(format!("{name}=").as_bytes()) {
        Some(path) => Answer::Tripped(format!("it is in {path}")),
        None => Answer::Held("in no environment that can be read".into()),
    }
}

fn of_init(ground: &Ground, entry: &str) -> String {
    format!("/proc/{}/{entry}", ground.bait.init)
}

fn init_pid(ground: &Ground) -> Option<Pid> {
    i32::try_from(ground.bait.init).ok().and_then(Pid::from_raw)
}

/// A descriptor of the process may be the door's connection.
fn take_descriptor(ground: &Ground) -> Answer {
    const PIDFD_GETFD: i64 = libc::SYS_pidfd_getfd;
    let Some(pid) = init_pid(ground) else {
        return Answer::Failed("no process was told".into());
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(e) => Answer::Failed(format!("no descriptor of the process itself: {e}")),
        Ok(fd) => {
            let own = usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX);
            call(PIDFD_GETFD, [own, 0, 0, 0, 0, 0])
        }
    }
}

/// The kernel passes no signal to the first process of a namespace that does not listen for it,
/// not even `SIGKILL`, when it comes from inside (pid_namespaces(7)).
fn signals(ground: &Ground) -> Answer {
    const SETTLE: Duration = Duration::from_millis(20);
    let Some(pid) = init_pid(ground) else {
        return Answer::Failed("no process was told".into());
    };
    for signal in [Signal::HUP, Signal::INT, Signal::TERM, Signal::STOP, Signal::KILL] {
        // Refusing it outright is as good as ignoring it.
        let _ = kill_process(pid, signal);
    }
    std::thread::sleep(SETTLE);
    let stat = fs::read_to_string(of_init(ground, "stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    let gone = test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
    let held = !gone && !matches!(state, Some('T' | 'X' | 'Z'));
    seen(held, if held { "it goes on" } else { "it was stopped or killed" })
}
