//! The walls around the product's own roles, tried from inside, and the same acts without them.

use crate::Test;
use crate::lab::Lab;
use nanoclaw_sandbox::attempt;
use nanoclaw_sandbox::role::{RoleWalls, confine, detach};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub(crate) const TESTS: &[Test] = &[
    ("a_role_can_do_what_it_needs_and_nothing_else", needs_and_nothing_else),
    ("the_same_acts_succeed_without_walls", open_reference),
    ("a_role_with_a_wall_missing_does_not_start", fails_closed),
];

/// `argv[1]` of the process that tries.
pub(crate) const ROLE: &str = "__role-acts";

/// Tries everything; prints `act=ok` or `act=<errno text>`, one a line.
pub(crate) fn acts(args: &[String]) -> ExitCode {
    let [walls, dir, port] = args else { return ExitCode::FAILURE };
    let dir = PathBuf::from(dir);
    let parent = std::os::unix::process::parent_id() as i32;
    if walls == "detached" {
        return detached();
    }
    if walls != "none" {
        let mut wanted = RoleWalls {
            read: vec!["/etc".into(), "/nowhere/at/all".into(), dir.join("readable")],
            keep: vec![dir.join("keep")],
            sockets: vec![dir.join("sockets")],
            connect: walls != "offline",
            forbidden: vec![dir.join("canary")],
        };
        if walls == "leaky" {
            wanted.read.push(dir.clone());
        }
        let threads = (walls == "threads")
            .then(|| std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(5))));
        if let Err(e) = confine(&wanted) {
            println!("refused={e}");
            return ExitCode::SUCCESS;
        }
        drop(threads);
    }
    let canary = dir.join("canary");
    let memory = format!("/proc/{parent}/mem");
    let address = format!("127.0.0.1:{port}");
    let told = |name: &str, result: std::io::Result<()>| match result {
        Ok(()) => println!("{name}=ok"),
        Err(e) => println!("{name}={:?}", e.kind()),
    };
    told("read-etc", fs::read("/etc/hosts").map(drop));
    told("write-keep", fs::write(dir.join("keep/file"), "x"));
    told("rename-keep", fs::rename(dir.join("keep/file"), dir.join("keep/other")));
    told("thread", std::thread::Builder::new().spawn(|| ()).map(|t| drop(t.join())));
    told("connect", TcpStream::connect(&address).map(drop));
    let datagram = || UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", &address);
    told("datagram", datagram().map(drop));
    let socket = dir.join("sockets/own");
    // One that does not listen: a role has that behind it when its walls stand.
    told("own-socket", std::os::unix::net::UnixDatagram::bind(&socket).map(drop));
    told("remove-socket", fs::remove_file(&socket));
    told("file-beside-socket", fs::write(dir.join("sockets/file"), "x"));
    let stray = dir.join("keep/stray");
    told("socket-elsewhere", std::os::unix::net::UnixDatagram::bind(&stray).map(drop));
    told("read-canary", fs::read(&canary).map(drop));
    told("write-canary", File::options().append(true).open(&canary).map(drop));
    told("remove-canary", try_remove(&canary));
    let readable = dir.join("readable");
    told("truncate-read-only", fs::read(&readable).and_then(|_| truncate_read_only(&readable)));
    told("write-etc", File::options().write(true).open("/etc/hosts").map(drop));
    told("exec", Command::new("/bin/true").status().map(drop));
    told("ptrace", attempt::ptrace_attach(parent));
    told("memory", File::open(memory).map(drop));
    told("userns", attempt::new_user_namespace());
    told("io_uring", attempt::io_uring());
    told("listen", TcpListener::bind("127.0.0.1:0").map(drop));
    ExitCode::SUCCESS
}

/// Which descriptors beyond the streams are open before and after [`detach`].
fn detached() -> ExitCode {
    let beyond = || {
        let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let numbers = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        // The folder that is read has one itself.
        numbers.filter(|n| *n > 2).count() - 1
    };
    println!("before={}", beyond());
    detach().unwrap();
    println!("after={}", beyond());
    ExitCode::SUCCESS
}

/// Opens a file for reading and empties it: Linux allows both at once (open(2), notes).
fn truncate_read_only(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open(path, OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty()).map(drop)?)
}

/// A rename to itself asks for the same rights as a removal and leaves the file.
fn try_remove(path: &Path) -> std::io::Result<()> {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside)?;
    fs::rename(&aside, path)
}

fn attempt_all(lab: &Lab, walls: &str) -> BTreeMap<String, String> {
    let dir = lab.dir.join(format!("role-{walls}"));
    fs::create_dir_all(dir.join("keep")).unwrap();
    fs::create_dir_all(dir.join("sockets")).unwrap();
    fs::write(dir.join("canary"), "not for roles").unwrap();
    fs::write(dir.join("readable"), "to be read").unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let done = Command::new("/proc/self/exe")
        .args([ROLE, walls, dir.to_str().unwrap(), &port])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    let pairs = text.lines().filter_map(|l| l.split_once('='));
    pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

const NEEDED: [&str; 6] =
    ["read-etc", "write-keep", "rename-keep", "thread", "own-socket", "remove-socket"];
const FORBIDDEN: [&str; 12] = [
    "listen",
    "truncate-read-only",
    "file-beside-socket",
    "socket-elsewhere",
    "read-canary",
    "write-canary",
    "remove-canary",
    "write-etc",
    "exec",
    "ptrace",
    "userns",
    "io_uring",
];

fn needs_and_nothing_else(lab: &Lab) {
    for walls in ["all", "offline"] {
        let found = attempt_all(lab, walls);
        for act in NEEDED {
            assert_eq!(found[act], "ok", "{walls}: {act}: {found:?}");
        }
        for act in FORBIDDEN {
            assert_eq!(found[act], "PermissionDenied", "{walls}: {act}: {found:?}");
        }
        assert_eq!(found["memory"], "PermissionDenied", "{walls}: {found:?}");
    }
    // Whatever Landlock knows of networks here.
    let (all, offline) = (attempt_all(lab, "all"), attempt_all(lab, "offline"));
    for act in ["connect", "datagram"] {
        assert_eq!(all[act], "ok", "{all:?}");
        assert_eq!(offline[act], "PermissionDenied", "{offline:?}");
    }
}

/// Without walls the same acts succeed, so that their failing above means something. What the
/// machine itself refuses to a plain user is asked of root only.
fn open_reference(lab: &Lab) {
    let found = attempt_all(lab, "none");
    let root_only = ["write-etc", "userns", "ptrace", "io_uring"];
    for act in NEEDED.iter().chain(&FORBIDDEN).chain(&["connect", "datagram"]) {
        if lab.root() || !root_only.contains(act) {
            let same =
                found[*act] == "ok" || *act == "io_uring" && found[*act] != "PermissionDenied";
            assert!(same, "{act}: {found:?}");
        }
    }
}

fn fails_closed(lab: &Lab) {
    let leaky = attempt_all(lab, "leaky");
    assert!(leaky["refused"].contains("canary can still be opened"), "{leaky:?}");
    let threads = attempt_all(lab, "threads");
    assert!(threads["refused"].contains("another thread"), "{threads:?}");
    let inherited = File::open("/dev/null").unwrap();
    let flags = rustix::io::FdFlags::empty();
    rustix::io::fcntl_setfd(&inherited, flags).unwrap();
    let detached = attempt_all(lab, "detached");
    assert_ne!(detached["before"], "0", "nothing was inherited, so nothing is shown");
    assert_eq!(detached["after"], "0");
}
