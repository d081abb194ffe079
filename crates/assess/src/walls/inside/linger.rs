//! Processes that a battery needs beside itself: those that try to outlive their session, and the
//! other session that must not be found.

use super::super::{ACCOMPLICE_ROLE, LINGER_ROLE};
use super::sockets::heard;
use crate::walls::Other;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Signal, getpid, kill_process, setsid};
use sandbox::probe;
use serde_json::json;
use std::fs;
use std::io::{self, BufRead, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// What is not ended with its session ends by itself.
const LINGER_TIME: Duration = Duration::from_secs(30);
/// Ways of trying to outlive a session, as their probes are named.
const WAYS: [(&str, &str); 4] = [
    ("orphan", "double-fork"),
    ("daemon", "setsid-daemon"),
    ("stopped", "stopped-process"),
    ("deaf", "deaf-process"),
];

/// Starts this very program in the role of a lingerer. It is found by `/proc/self/exe`, for the
/// name it was started by may mean nothing inside.
pub(super) fn start(words: &[&str]) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(LINGER_ROLE).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Leaves files and processes behind, each with `word` in its name or among its arguments.
pub(super) fn leave(word: &str) {
    if word.is_empty() {
        return;
    }
    let home = std::env::var("HOME").unwrap_or_default();
    for folder in [".", &home, "/tmp", "/dev/shm", "/var/tmp"] {
        // What could not be left cannot be found either.
        drop(fs::write(format!("{folder}/left-{word}"), "left\n"));
    }
    for (way, _) in WAYS {
        drop(start(&[way, &mark(word, way)]));
    }
}

/// The argument by which one of them is known from outside.
fn mark(word: &str, way: &str) -> String {
    format!("{word}-{way}")
}

/// Each way with the probe that watches it and the argument to look for.
pub(in crate::walls) fn watched(word: &str) -> Vec<(&'static str, String)> {
    WAYS.iter().map(|(way, probe)| (*probe, mark(word, way))).collect()
}

/// The role of a process that tries to stay: `args` are the way and its mark.
#[must_use]
pub fn linger_main(args: &[String]) -> ExitCode {
    let way = args.first().map_or("", String::as_str);
    let mark = args.get(1).map_or("", String::as_str);
    match way {
        // By the one signal that neither the runtime of this program catches (SEGV) nor whoever
        // started it may have ignored (QUIT, in a shell's background): abort(3) undoes that.
        "crash" => std::process::abort(),
        "orphan" => drop(start(&["stay", mark])),
        "daemon" => {
            let _ = setsid();
            drop(start(&["stay", mark]));
        }
        "stopped" => {
            let _ = kill_process(getpid(), Signal::STOP);
            std::thread::sleep(LINGER_TIME);
        }
        "deaf" => {
            let _ = probe::apart(LINGER_TIME, deaf);
        }
        "stay" | "wait" => std::thread::sleep(LINGER_TIME),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// With every signal blocked that can be.
fn deaf() -> String {
    const BLOCK: usize = 0;
    let all = u64::MAX;
    let set = std::ptr::from_ref(&all).addr();
    let _ = probe::raw(libc::SYS_rt_sigprocmask, [BLOCK, set, 0, size_of::<u64>(), 0, 0]);
    std::thread::sleep(LINGER_TIME);
    String::new()
}

/// A uid map as it is compared: its words, one space apart.
pub(super) fn map_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The role of the other session: has everything that must not be found, says so in one line of
/// JSON, and stays until its input ends. `args` is an [`Other`] as JSON.
#[must_use]
pub fn accomplice_main(args: &[String]) -> ExitCode {
    let other = args.first().and_then(|text| serde_json::from_str::<Other>(text).ok());
    match other.map(|other| accompany(&other)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(e)) => {
            drop(writeln!(io::stderr(), "{ACCOMPLICE_ROLE}: {e}"));
            ExitCode::FAILURE
        }
        None => ExitCode::from(2),
    }
}

fn accompany(other: &Other) -> io::Result<()> {
    // Raw calls need a process without threads, so they come first.
    let objects = probe::apart(Duration::from_secs(2), || objects(other))?;
    if objects != probe::End::Said(String::new()) {
        return Err(io::Error::other(format!("System V objects: {objects:?}")));
    }
    for folder in [".", "/tmp", "/dev/shm"] {
        fs::write(format!("{folder}/{}", other.name), "another session's\n")?;
    }
    let mut named = start(&["wait", &other.name])?;
    let tcp = TcpListener::bind(("127.0.0.1", 0))?;
    let address = SocketAddr::from_abstract_name(&other.name)?;
    let _abstract_socket = UnixListener::bind_addr(&address)?;
    let map = map_of(&fs::read_to_string("/proc/self/uid_map")?);
    let ready = json!({"tcp_port": tcp.local_addr()?.port(), "uid_map": map});
    writeln!(io::stdout(), "{ready}")?;
    let mut input = io::stdin().lock().lines();
    // A folder with a socket in it would not be granted: it comes when the grants are made.
    if input.next().is_some() && !other.shared.is_empty() {
        let listener = UnixListener::bind(format!("{}/passing", other.shared))?;
        std::thread::spawn(move || {
            listener.incoming().flatten().for_each(|stream| drop(received(&stream)));
        });
    }
    writeln!(io::stdout(), "{{}}")?;
    // The end of input is the end of the session.
    for line in input {
        line?;
    }
    drop(named.kill());
    drop(named.wait());
    Ok(())
}

/// Memory and a queue that outlive the process that makes them; says what went wrong.
fn objects(other: &Other) -> String {
    const SIZE: usize = 4_096;
    const CREATE: usize = 0o1000;
    const EVERYBODY: usize = 0o666;
    const QUEUE_CREATE: usize = 0o100;
    let key = usize::try_from(other.shm_key).unwrap_or(0);
    let shm = probe::raw(libc::SYS_shmget, [key, SIZE, CREATE | EVERYBODY, 0, 0, 0]);
    let name = std::ffi::CString::new(other.name.as_str()).unwrap_or_default();
    let args = [name.as_ptr().addr(), QUEUE_CREATE, EVERYBODY, 0, 0, 0];
    let queue = probe::raw(libc::SYS_mq_open, args);
    // Landlock gives no right to queues: a session that cannot have one has none to be found.
    let fine = |r: &Result<i64, i32>| matches!(r, Ok(_) | Err(libc::ENOSYS | libc::EACCES));
    if fine(&shm) && fine(&queue) { String::new() } else { format!("{shm:?}, {queue:?}") }
}

/// Uses the connection that another session hands over and tells it what was heard there.
fn received(stream: &UnixStream) -> io::Result<()> {
    const HEAR_TIME: Duration = Duration::from_millis(400);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fds = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let answer = match fds {
        None => "nothing came".to_owned(),
        Some(fd) => {
            let door = UnixStream::from(fd);
            door.set_read_timeout(Some(HEAR_TIME))?;
            let heard = heard(door);
            if heard.is_empty() { "nobody".to_owned() } else { heard }
        }
    };
    let mut stream = stream;
    writeln!(stream, "{answer}")
}
