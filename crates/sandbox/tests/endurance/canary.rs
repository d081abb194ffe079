//! What stands on the host while something hostile runs in a sandbox, and what it looks like.
//!
//! Pipeline: `Field::set` (files, a process, listeners) ─► `look` ─► … ─► `look` ─► `differences`.
//!
//! Every look is a map of `family: detail`; what a healthy host changes by itself is left out by
//! name, so that any difference is one too many.

use crate::host::{self, Seen, differences, groups, read, soon};
use crate::lab::set_mode;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The families that every look has; a test changes something of each.
pub(crate) const FAMILIES: [&str; 13] = [
    "files",
    "system files",
    "process",
    "abstract socket",
    "unix socket",
    "loopback",
    "mounts",
    "namespaces",
    "control groups",
    "host name",
    "sysctl",
    "queues",
    "network",
];
/// Files that the whole host depends on; not the folders they are in, in which anybody else may
/// install something meanwhile.
const SYSTEM_FILES: [&str; 8] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/hosts",
    "/usr/bin/env",
    "/usr/bin/trinity",
    "/bin/sh",
];
/// Kernel settings that a host changes by itself: counters, and what is made anew at each reading.
const RESTLESS: [&str; 14] = [
    "fs/aio-nr",
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/quota",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/random",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_expect_max",
    "net/ipv6/neigh",
    // Reading this one makes the kernel count.
    "vm/stat_refresh",
    // What sandboxes of others on this machine move.
    "kernel/perf_event_max_sample_rate",
];
/// How far the clocks may have moved apart meanwhile: what disciplines a clock moves it by less.
const DRIFT_MAX: Duration = Duration::from_secs(1);
/// A folder of ours in a hierarchy of control groups begins so; those of other spawners on this
/// machine come and go.
const GROUP_PREFIX: &str = "nanoclaw-";

/// A look, and the clocks at that moment.
#[derive(Clone)]
pub(crate) struct Look {
    pub(crate) seen: Seen,
    pub(crate) clocks: Clocks,
}

/// Each clock less the one that nobody can set.
#[derive(Clone, Copy)]
pub(crate) struct Clocks {
    /// Time of day, milliseconds.
    pub(crate) day: i128,
    /// Since the machine was started, milliseconds.
    pub(crate) up: i128,
}

impl Clocks {
    fn read(since: Instant) -> Self {
        let ran = millis(since.elapsed());
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let uptime = read("/proc/uptime");
        let up: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or_default();
        Self { day: millis(day) - ran, up: millis(Duration::from_secs_f64(up)) - ran }
    }
}

fn millis(time: Duration) -> i128 {
    i128::try_from(time.as_millis()).unwrap_or(i128::MAX)
}

impl Look {
    /// Everything that is other than it was.
    pub(crate) fn against(&self, before: &Look) -> Vec<String> {
        let mut found = differences(&before.seen, &self.seen);
        let clocks = [
            ("clock: time of day", before.clocks.day, self.clocks.day),
            ("clock: uptime", before.clocks.up, self.clocks.up),
        ];
        for (name, was, is) in clocks {
            if (was - is).abs() > millis(DRIFT_MAX) {
                found.push(format!("{name}: moved by {} ms", is - was));
            }
        }
        found
    }
}

/// What stands on the host. Ended and removed when dropped.
pub(crate) struct Field {
    pub(crate) folder: PathBuf,
    pub(crate) process: Child,
    pub(crate) abstract_name: String,
    abstract_socket: UnixListener,
    unix_socket: UnixListener,
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
    began: Instant,
}

impl Field {
    /// Lays everything out in `folder`, which must exist.
    pub(crate) fn set(folder: &Path) -> Self {
        let folder = folder.join("canaries");
        std::fs::create_dir_all(folder.join("inner")).unwrap();
        for (name, mode) in [("open", 0o666), ("private", 0o600), ("inner/deep", 0o644)] {
            std::fs::write(folder.join(name), format!("canary {name}\n")).unwrap();
            set_mode(&folder.join(name), mode);
        }
        std::os::unix::fs::symlink("open", folder.join("link")).unwrap();
        // Who can reach it at all may do with it what they like.
        set_mode(&folder, 0o777);
        let abstract_name = format!("nanoclaw-canary-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let abstract_socket = UnixListener::bind_addr(&address).unwrap();
        let unix_socket = UnixListener::bind(folder.join("socket")).unwrap();
        set_mode(&folder.join("socket"), 0o777);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        abstract_socket.set_nonblocking(true).unwrap();
        unix_socket.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let process = process(&[]);
        let began = Instant::now();
        Self { folder, process, abstract_name, abstract_socket, unix_socket, tcp, udp, began }
    }

    /// What all of it looks like now.
    pub(crate) fn look(&self) -> Look {
        let mut seen = Seen::new();
        tree(&self.folder, &self.folder, &mut seen);
        for path in SYSTEM_FILES {
            seen.insert(format!("system files: {path}"), state(Path::new(path)));
        }
        let pid = self.process.id();
        neighbour(pid, &mut seen);
        self.listeners(&mut seen);
        for who in ["self".to_owned(), pid.to_string()] {
            seen.insert(format!("namespaces: {who}"), namespaces(&who));
        }
        machine(&mut seen);
        Look { seen, clocks: Clocks::read(self.began) }
    }

    /// Whether anybody came. Whoever did is taken, so that it is told once.
    fn listeners(&self, seen: &mut Seen) {
        let mut tell = |name: &str, came: Option<ErrorKind>| {
            let word = match came {
                None => "somebody came".to_owned(),
                Some(ErrorKind::WouldBlock) => "nobody".to_owned(),
                Some(kind) => format!("broken: {kind:?}"),
            };
            seen.insert(name.to_owned(), word);
        };
        tell("abstract socket", self.abstract_socket.accept().err().map(|e| e.kind()));
        tell("unix socket", self.unix_socket.accept().err().map(|e| e.kind()));
        tell("loopback: tcp", self.tcp.accept().err().map(|e| e.kind()));
        tell("loopback: udp", self.udp.recv(&mut [0; 64]).err().map(|e| e.kind()));
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        // Whatever became of it, it is our child.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// A process that does nothing and keeps every signal that it gets, where it can be seen;
/// `before` is a program that starts it.
pub(crate) fn process(before: &[&str]) -> Child {
    let script = ["/usr/bin/env", "--block-signal", "sh", "-c", "read line", "nanoclaw-canary"];
    let words: Vec<&str> = before.iter().chain(&script).copied().collect();
    let child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("env and sh");
    let pid = child.id();
    let waits = || {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = read(format!("/proc/{pid}/status"));
        line.starts_with(b"sh\0") && status.contains("State:\tS")
    };
    assert!(
        soon(waits),
        "the canary process does not wait: {}",
        read(format!("/proc/{pid}/status"))
    );
    child
}

/// Everything of one process that another one could have changed.
fn neighbour(pid: u32, seen: &mut Seen) {
    const LINES: [&str; 12] = [
        "Name:",
        "Umask:",
        "PPid:",
        "Uid:",
        "Gid:",
        "Groups:",
        "SigPnd:",
        "ShdPnd:",
        "SigBlk:",
        "CapEff:",
        "NoNewPrivs:",
        "Cpus_allowed_list:",
    ];
    let status = read(format!("/proc/{pid}/status"));
    let mut text = String::new();
    for line in status.lines().filter(|l| LINES.iter().any(|name| l.starts_with(name))) {
        text.push_str(line);
        text.push('\n');
    }
    // Asleep and about to be are the same here; stopped, dead and gone are not.
    let state = status.lines().find_map(|l| l.strip_prefix("State:\t")).unwrap_or("gone");
    let state = if state.starts_with(['S', 'R', 'D']) { "alive" } else { state };
    let stat = read(format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |s| s.1).split_whitespace().collect();
    // proc_pid_stat(5), counted from the state: group, session, terminal; priority, nice; start;
    // real-time priority and policy.
    for at in [2, 3, 4, 15, 16, 19, 37, 38] {
        let _ = write!(text, "{} ", fields.get(at).unwrap_or(&"gone"));
    }
    for file in ["limits", "oom_score_adj", "cgroup", "cmdline"] {
        text.push_str(&read(format!("/proc/{pid}/{file}")));
    }
    seen.insert("process: state".into(), state.to_owned());
    seen.insert("process: everything else".into(), text);
}

/// What of a file another process could have changed, its last use left out.
fn state(path: &Path) -> String {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return "gone".into() };
    let contents = match () {
        () if meta.is_symlink() => {
            std::fs::read_link(path).map_or_else(|e| e.to_string(), |to| to.display().to_string())
        }
        // Larger ones are told by their times: nobody can set the last one back.
        () if meta.is_file() && meta.len() < 1 << 16 => read(path),
        () => String::new(),
    };
    format!(
        "mode {:o} owner {}:{} links {} size {} inode {} changed {}.{:09} {}.{:09}\n{contents}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    )
}

fn tree(root: &Path, at: &Path, seen: &mut Seen) {
    let name = at.strip_prefix(root).unwrap_or(at).display();
    seen.insert(format!("files: /{name}"), state(at));
    if at.is_dir() && !at.is_symlink() {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            tree(root, &entry.path(), seen);
        }
    }
}

fn namespaces(who: &str) -> String {
    let links = std::fs::read_dir(format!("/proc/{who}/ns")).into_iter().flatten().flatten();
    let mut all: Vec<String> = links
        .filter_map(|e| std::fs::read_link(e.path()).ok())
        .map(|to| to.display().to_string())
        .collect();
    all.sort();
    all.join("\n")
}

/// What all processes of this machine share.
fn machine(seen: &mut Seen) {
    seen.insert("mounts".into(), read("/proc/self/mountinfo"));
    let standing = groups()
        .into_iter()
        .filter(|path| !path.iter().any(|part| part.to_string_lossy().starts_with(GROUP_PREFIX)));
    let standing: Vec<String> = standing.map(|p| p.display().to_string()).collect();
    seen.insert("control groups".into(), standing.join("\n"));
    let name = rustix::system::uname();
    seen.insert("host name".into(), format!("{:?} {:?}", name.nodename(), name.domainname()));
    settings(Path::new("/proc/sys"), seen);
    for kind in ["shm", "sem", "msg"] {
        seen.insert(format!("queues: {kind}"), read(format!("/proc/sysvipc/{kind}")));
    }
    let devices = read("/proc/net/dev");
    let names = devices.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim());
    seen.insert("network: interfaces".into(), names.collect::<Vec<_>>().join("\n"));
    for table in ["route", "ipv6_route", "fib_trie", "if_inet6"] {
        let text = read(format!("/proc/net/{table}"));
        // The last column of the IPv6 table but two counts uses.
        let text = if table == "ipv6_route" { text.lines().count().to_string() } else { text };
        seen.insert(format!("network: {table}"), text);
    }
}

fn settings(at: &Path, seen: &mut Seen) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(at).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.strip_prefix("/proc/sys").unwrap_or(&path).display().to_string();
        if RESTLESS.iter().any(|r| name == *r || name.starts_with(&format!("{r}/"))) {
            continue;
        }
        if path.is_dir() {
            settings(&path, seen);
        } else {
            seen.insert(format!("sysctl: {name}"), read(&path));
        }
    }
}

/// That every family stands in it, or which does not: a look that saw nothing proves nothing.
pub(crate) fn missing(look: &Look) -> Vec<&'static str> {
    let has = |family: &str| {
        let mut all = look.seen.iter().filter(|(name, _)| host::family(name) == family);
        all.any(|(_, value)| !value.is_empty() && !value.starts_with("unreadable"))
    };
    FAMILIES.into_iter().filter(|family| !has(family)).collect()
}
