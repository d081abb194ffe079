//! What holds, read from the kernel after the last step.

use crate::wire::{self, Measured};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;

const NAMESPACES: [&str; 7] = ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"];
const STATUS: [&str; 12] = [
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Uid",
    "Gid",
    "Groups",
    "NSpid",
];

/// `net:[4026531840]` is namespace `net` number 4026531840.
pub(crate) fn namespace(name: &str) -> io::Result<u64> {
    let link = fs::read_link(format!("/proc/self/ns/{name}"))?;
    let text = link.to_string_lossy();
    let number = text.split_once('[').and_then(|(_, n)| n.strip_suffix(']')?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("odd namespace link {text}")))
}

/// All of them, by name.
pub(crate) fn namespaces() -> io::Result<Vec<(String, u64)>> {
    NAMESPACES.iter().map(|n| Ok(((*n).to_owned(), namespace(n)?))).collect()
}

/// The kernel's count of what this thread has read and written, opened before it becomes
/// undumpable: after that the file is root's, and the spawner may not be. `None` where the kernel
/// does not count.
pub(super) fn own_io() -> Option<fs::File> {
    fs::File::open("/proc/thread-self/io").ok()
}

/// The segments of System V shared memory of the sandbox's own IPC namespace, as the kernel lists
/// them for whoever holds this descriptor: from outside there is no other way to them.
pub(super) fn shared_memory() -> Option<fs::File> {
    fs::File::open("/proc/sysvipc/shm").ok()
}

/// What stands there, and what reading it adds.
fn moved(io: &fs::File) -> Option<wire::Moved> {
    /// A hundred bytes and some digits.
    const IO_BYTES_MAX: usize = 1_024;
    let mut bytes = [0; IO_BYTES_MAX];
    let n = io.read_at(&mut bytes, 0).ok()?;
    let mut moved = wire::Moved::parse(str::from_utf8(bytes.get(..n)?).ok()?)?;
    moved.read += n as u64;
    Some(moved)
}

pub(super) fn measure(io: Option<&fs::File>) -> io::Result<Measured> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        STATUS.contains(&name).then(|| (name.to_owned(), value.trim().to_owned()))
    };
    let devices = fs::read_to_string("/proc/self/net/dev")?;
    let interfaces = devices
        .lines()
        .skip(2)
        .filter_map(|l| l.split_once(':').map(|(name, _)| name.trim().to_owned()))
        .collect();
    let map = fs::read_to_string("/proc/self/uid_map")?;
    let namespaces = namespaces()?;
    let (limits, root_read_only) = (limits(), root_flag()?);
    Ok(Measured {
        namespaces,
        status: status.lines().filter_map(field).collect(),
        interfaces,
        uid_map: map.split_whitespace().collect::<Vec<_>>().join(" "),
        limits,
        root_read_only,
        // Last: from here on nothing is read or written but the door.
        moved: io.and_then(moved),
        probes: None,
        places: Vec::new(),
        shown: Vec::new(),
        felt: None,
    })
}

fn limits() -> Vec<(String, u64)> {
    use rustix::process::{Resource, getrlimit};
    [("fsize", Resource::Fsize), ("nofile", Resource::Nofile), ("core", Resource::Core)]
        .map(|(name, r)| (name.to_owned(), getrlimit(r).maximum.unwrap_or(u64::MAX)))
        .into()
}

/// The mount flag itself: permission alone could also refuse writing.
fn root_flag() -> io::Result<bool> {
    let flags = rustix::fs::statvfs("/")?.f_flag;
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// What stands at these places; a missing one is an error. No link is followed at the end.
pub(super) fn places(paths: &[String]) -> io::Result<Vec<wire::Place>> {
    let look = |path: &String| {
        let tell = |e: rustix::io::Errno| io::Error::new(e.kind(), format!("{path}: {e}"));
        let stat = rustix::fs::lstat(path.as_str()).map_err(tell)?;
        let flags = rustix::fs::statvfs(path.as_str()).map_err(tell)?.f_flag;
        Ok(wire::Place {
            path: path.clone(),
            file: (stat.st_dev, stat.st_ino),
            read_only: flags.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    };
    paths.iter().map(look).collect()
}

/// Those of these paths that show something: a folder with an entry, a file with a byte.
pub(super) fn shown(paths: &[String]) -> Vec<String> {
    use std::io::Read as _;
    let shows = |path: &&String| match fs::metadata(path) {
        Err(_) => false,
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
        }
        Ok(meta) if meta.is_file() => {
            fs::File::open(path).and_then(|mut file| file.read(&mut [0])).is_ok_and(|n| n > 0)
        }
        Ok(_) => false,
    };
    paths.iter().filter(shows).cloned().collect()
}
