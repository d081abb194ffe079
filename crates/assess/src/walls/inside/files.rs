//! Files of the host and of the kernel, tried.

use super::tools::{nothing, of, seen, with_file};
use super::{Act, Ground};
use crate::walls::{Answer, errno_name};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, SealFlags, StatVfsMountFlags, XattrFlags,
    makedev,
};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) const ACTS: &[(&str, Act)] = &[
    ("host-file", |g| of("it was opened", File::open(&g.bait.host_file))),
    ("cwd-escape", |g| of("it was opened", File::open(format!("{UP}{}", g.bait.host_file)))),
    ("leaked-directory-fd", |g| by_descriptors(&g.bait.host_file)),
    ("symlink-escape", |g| by_link(&g.bait.host_file)),
    ("symlink-swap-race", |g| race(Path::new(&g.bait.host_file))),
    ("host-accounts", |_| of("it was opened", File::open("/etc/shadow"))),
    ("home-of-root", |_| of("it is there", fs::metadata("/root"))),
    ("root-listing", listing),
    ("sysfs-absent", |_| sysfs()),
    ("dev-minimal", |_| devices()),
    ("dev-kernel-log", |_| of("it was opened", File::open("/dev/kmsg"))),
    ("dev-disks", |_| disks()),
    ("device-node-block", |_| node(FileType::BlockDevice, 7, 0)),
    ("device-node-char", |_| node(FileType::CharacterDevice, 1, 1)),
    ("setuid-bit", |_| with_file("suid", |p| of("chmod did it", rustix::fs::chmod(p, SET_UID)))),
    ("setgid-bit", |_| with_file("sgid", set_gid)),
    ("setuid-bit-at-birth", |_| born(None)),
    ("setuid-bit-mknod", |_| born(Some(FileType::RegularFile))),
    ("file-capability", |_| with_file("cap", capability)),
    ("hardlink-to-read-only", |g| link(Path::new(&g.bait.linked))),
    ("proc-self-exe-overwrite", |_| own_image()),
    ("machine-id", |g| machine_id(&g.bait.machine_id)),
    ("landlock-comm", |_| for_writing("/proc/self/comm")),
    ("landlock-oom-score", |_| for_writing("/proc/self/oom_score_adj")),
    ("procfs-mask-kcore", |_| masked("/proc/kcore")),
    ("procfs-mask-kmsg", |_| masked("/proc/kmsg")),
    ("procfs-mask-keys", |_| masked("/proc/keys")),
    ("procfs-mask-key-users", |_| masked("/proc/key-users")),
    ("procfs-mask-timer-list", |_| masked("/proc/timer_list")),
    ("procfs-mask-sched-debug", |_| masked("/proc/sched_debug")),
    ("procfs-mask-sysrq", |_| masked("/proc/sysrq-trigger")),
    ("procfs-mask-latency", |_| masked("/proc/latency_stats")),
    ("procfs-mask-interrupts", |_| masked("/proc/interrupts")),
    ("procfs-mask-cmdline", |_| masked("/proc/cmdline")),
    ("procfs-mask-acpi", |_| masked("/proc/acpi")),
    ("procfs-mask-scsi", |_| masked("/proc/scsi")),
    ("procfs-mask-firmware", |_| masked("/proc/firmware")),
];

/// More steps up than any working directory is deep.
const UP: &str = "../../../../../../../../../../../../../../../..";
const SET_UID: Mode = Mode::from_raw_mode(0o4755);
const SET_GID: Mode = Mode::from_raw_mode(0o2755);
/// How long the race goes on: thousands of turns.
const RACE_TIME: Duration = Duration::from_millis(150);
/// The constant machine id of sandboxes.
const MACHINE_ID_INSIDE: &str = "00000000000000000000000000000001";

fn for_writing(path: &str) -> Answer {
    of("it opened for writing", OpenOptions::new().write(true).open(path))
}

/// Every descriptor and magic link of this process as the beginning of a way out.
fn by_descriptors(file: &str) -> Answer {
    let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut starts: Vec<String> = descriptors
        .filter_map(|e| e.file_name().into_string().ok())
        .map(|n| format!("/proc/self/fd/{n}"))
        .collect();
    starts.extend(["/proc/self/cwd".to_owned(), "/proc/self/root".to_owned()]);
    let count = starts.len();
    let out = |start: &String| File::open(format!("{start}/{UP}{file}")).is_ok();
    let found: Vec<String> = starts.into_iter().filter(out).collect();
    nothing(&found, &format!("{count} beginnings, no way"))
}

fn by_link(file: &str) -> Answer {
    let path = super::tools::scratch("link");
    match symlink(file, &path) {
        Err(e) => Answer::Failed(format!("no link could be made: {e}")),
        Ok(()) => {
            let answer = of("it was opened", File::open(&path));
            drop(fs::remove_file(&path));
            answer
        }
    }
}

/// A folder and a link to the host's folder change places while a file below is opened again and
/// again. Own contents and errors are harmless; any other contents are the host's.
fn race(target: &Path) -> Answer {
    let (Some(outside), Some(name)) = (target.parent(), target.file_name()) else {
        return Answer::Failed("no file of the host was told".into());
    };
    let top = super::tools::scratch("race");
    let (real, link) = (top.join("real"), top.join("link"));
    let set = || -> io::Result<()> {
        fs::create_dir_all(&real)?;
        fs::write(real.join(name), "own")?;
        symlink(outside, &link)
    };
    let answer = match set() {
        Err(e) => Answer::Failed(format!("the race could not be set up: {e}")),
        Ok(()) => run_race(&real, &link, name.as_ref()),
    };
    drop(fs::remove_dir_all(&top));
    answer
}

fn run_race(real: &Path, link: &Path, name: &Path) -> Answer {
    let until = Instant::now() + RACE_TIME;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < until {
                // A swap that fails leaves things as they are.
                let _ = rustix::fs::renameat_with(CWD, real, CWD, link, RenameFlags::EXCHANGE);
            }
        });
        let mut turns = 0_u32;
        let path = real.join(name);
        while Instant::now() < until {
            turns += 1;
            if fs::read(&path).is_ok_and(|bytes| bytes != b"own") {
                return Answer::Tripped(format!("reached in turn {turns}"));
            }
        }
        Answer::Held(format!("{turns} turns, never reached"))
    })
}

fn names(folder: &str) -> Result<Vec<String>, Answer> {
    let entries = fs::read_dir(folder).map_err(|e| Answer::Failed(format!("{folder}: {e}")))?;
    Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

fn listing(ground: &Ground) -> Answer {
    const PLANNED: [&str; 16] = [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libexec",
        "libx32",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
        "workspace",
    ];
    let granted: Vec<&str> =
        ground.bait.mounts.iter().filter_map(|m| m.split('/').nth(1)).collect();
    let strange = |n: &String| !PLANNED.contains(&n.as_str()) && !granted.contains(&n.as_str());
    match names("/") {
        Ok(all) => {
            nothing(&all.into_iter().filter(strange).collect::<Vec<_>>(), "nothing unplanned")
        }
        Err(failed) => failed,
    }
}

/// Container engines cannot leave it out, but cover it.
fn sysfs() -> Answer {
    match fs::read_dir("/sys") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Answer::Held("not there".into()),
        Err(e) => Answer::Failed(e.to_string()),
        Ok(entries) => {
            let count = entries.count();
            seen(count == 0, format!("a folder with {count} entries"))
        }
    }
}

/// Whether a name in `/dev` is the link to the machine's memory that runtimes of containers make:
/// what it leads to is `procfs-mask-kcore`'s to look at.
fn kcore(name: &str) -> bool {
    name == "core" && fs::read_link("/dev/core").is_ok_and(|to| to == Path::new("/proc/kcore"))
}

fn devices() -> Answer {
    const PLANNED: [&str; 14] = [
        "null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "fd", "stdin", "stdout",
        "stderr", "ptmx", "mqueue",
    ];
    match names("/dev") {
        Ok(all) => {
            let strange = |n: &String| !PLANNED.contains(&n.as_str()) && !kcore(n);
            nothing(&all.into_iter().filter(strange).collect::<Vec<_>>(), "harmless devices only")
        }
        Err(failed) => failed,
    }
}

fn disks() -> Answer {
    let block = |n: &String| {
        fs::symlink_metadata(format!("/dev/{n}")).is_ok_and(|m| m.file_type().is_block_device())
    };
    match names("/dev") {
        Ok(all) => nothing(&all.into_iter().filter(block).collect::<Vec<_>>(), "no block device"),
        Err(failed) => failed,
    }
}

fn node(kind: FileType, major: u32, minor: u32) -> Answer {
    let path = super::tools::scratch("node");
    let mode = Mode::RUSR | Mode::WUSR;
    let made = rustix::fs::mknodat(CWD, &path, kind, mode, makedev(major, minor));
    drop(fs::remove_file(&path));
    of("the node was made", made)
}

fn set_gid(path: &Path) -> Answer {
    match File::open(path) {
        Ok(file) => of("fchmod did it", rustix::fs::fchmod(file, SET_GID)),
        Err(e) => Answer::Failed(e.to_string()),
    }
}

/// A file that has the bit from its birth: by `mknod` of that kind, else by `open`.
fn born(kind: Option<FileType>) -> Answer {
    let path = super::tools::scratch("born");
    let made = match kind {
        Some(kind) => rustix::fs::mknodat(CWD, &path, kind, SET_UID, 0),
        None => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, SET_UID).map(drop)
        }
    };
    drop(fs::remove_file(&path));
    of("the file was made", made)
}

/// `CAP_NET_RAW`, as the kernel keeps it with a file (linux/capability.h, revision 2).
fn capability(path: &Path) -> Answer {
    const REVISION_2: u32 = 0x0200_0000;
    const NET_RAW: u32 = 1 << 13;
    let value: Vec<u8> =
        [REVISION_2, NET_RAW, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let set = rustix::fs::setxattr(path, "security.capability", &value, XattrFlags::empty());
    of("it has one", set)
}

fn link(file: &Path) -> Answer {
    let path = super::tools::scratch("hard");
    let made = rustix::fs::linkat(CWD, file, CWD, &path, AtFlags::empty());
    drop(fs::remove_file(&path));
    of("it was linked", made)
}

/// A descriptor of the running program outlives it, and then could be opened for writing.
fn own_image() -> Answer {
    let file = match File::open("/proc/self/exe") {
        Ok(file) => file,
        Err(e) => return Answer::Failed(e.to_string()),
    };
    if rustix::fs::fcntl_get_seals(&file).is_ok_and(|s| s.contains(SealFlags::WRITE)) {
        return Answer::Held("a sealed memory file".into());
    }
    match rustix::fs::fstatvfs(&file) {
        Ok(stat) => {
            let held = stat.f_flag.contains(StatVfsMountFlags::RDONLY);
            let word = if held { "a read-only mount" } else { "a file on a writable mount" };
            seen(held, word)
        }
        Err(e) => Answer::Failed(errno_name(e.raw_os_error())),
    }
}

fn machine_id(hosts: &str) -> Answer {
    let id = match fs::read_to_string("/etc/machine-id") {
        Ok(text) => text.trim().to_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Answer::Held("none".into()),
        Err(e) => return Answer::Failed(e.to_string()),
    };
    if id == MACHINE_ID_INSIDE {
        return Answer::Held("the same in every sandbox".into());
    }
    // An identifier of the host is not repeated in reports.
    let same = !hosts.is_empty() && id == hosts;
    seen(!same, if same { "the host's own" } else { "another than the host's" })
}

/// Whether `/dev/null` or an empty folder stands over an entry of `/proc`.
fn masked(path: &str) -> Answer {
    const NULL: (u32, u32) = (1, 3);
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Answer::Absent("the kernel has no such entry".into());
        }
        Err(e) => return Answer::Failed(e.to_string()),
        Ok(meta) => meta,
    };
    if meta.is_dir() {
        let entries = fs::read_dir(path).map_or(0, Iterator::count);
        return seen(entries == 0, format!("a folder with {entries} entries"));
    }
    let device = meta.rdev();
    let null = meta.file_type().is_char_device()
        && (rustix::fs::major(device), rustix::fs::minor(device)) == NULL;
    seen(null, if null { "/dev/null over it" } else { "the kernel's own entry" })
}
