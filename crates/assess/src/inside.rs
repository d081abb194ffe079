//! The inner role `__probe NAME [key=value …]`: tries one act and prints one JSON line.

use crate::walls::errno_name;
use crate::{Observation, search};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// How long a connection attempt may take before it counts as refused.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest status line of the gateway that is read, bytes.
const STATUS_LINE_MAX: u64 = 256;
/// Memory is touched in pieces of this size, bytes.
const MEMORY_STEP: usize = 8 << 20;

/// The arguments of a probe: `key=value` words.
struct Args(BTreeMap<String, String>);

impl Args {
    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }
    fn number(&self, key: &str) -> u64 {
        self.get(key).parse().unwrap_or(0)
    }
    fn strings<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.get(key).split(',').filter(|s| !s.is_empty())
    }
}

/// `true` and what answered when the act was refused; `false` and what it got otherwise.
type Outcome = (bool, String);

/// Runs the probe named in `args[0]` and prints its [`Observation`] as one line of JSON.
/// Exit code 0 when it held, 1 when the act succeeded, 2 when there is no such probe.
#[must_use]
pub fn probe_main(args: &[String]) -> ExitCode {
    let Some((name, rest)) = args.split_first() else { return ExitCode::from(2) };
    let pairs = rest.iter().filter_map(|a| a.split_once('='));
    let args = Args(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    let Some((held, observed)) = attempt(name, &args) else { return ExitCode::from(2) };
    let observation = Observation { probe: name.clone(), held, observed };
    let line = serde_json::to_string(&observation).unwrap_or_default();
    // A closed pipe leaves nobody to tell.
    drop(writeln!(io::stdout(), "{line}"));
    if held { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn attempt(name: &str, args: &Args) -> Option<Outcome> {
    Some(match name {
        "host-file" | "other-session" => read_file(Path::new(args.get("path"))),
        "host-processes" => host_processes(args),
        "host-loopback" => host_loopback(args),
        "network" => network(),
        "mount" => mount(),
        "namespace" => refused("unshare(CLONE_NEWUSER)", sandbox::attempt::new_user_namespace()),
        "ptrace" => ptrace(args),
        "init-memory" => init_memory(args),
        "io-uring" => refused("io_uring_setup", sandbox::attempt::io_uring()),
        "fork-bomb" => fork_bomb(args),
        "fill-memory" => fill_memory(args),
        "touch-memory" => touch_memory(args),
        "egress-host" | "egress-address" => through_gateway(args),
        "host-env" => host_env(args),
        "find-key" => find_key(args),
        "tamper-log" => tamper(args),
        "forge-record" => forge(Path::new(args.get("socket"))),
        "witness" => refused("seccomp", sandbox::attempt::listen_to_own_calls()),
        _ => return None,
    })
}

/// The errno's name and number as people know them, after the call that failed.
fn refused<T>(call: &str, result: io::Result<T>) -> Outcome {
    match result {
        Ok(_) => (false, format!("{call} succeeded")),
        Err(e) => (true, format!("{call}: {}", plain(&e))),
    }
}

fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    match error.raw_os_error() {
        Some(code) => format!("{} ({words})", errno_name(code)),
        None => words.to_owned(),
    }
}

fn read_file(path: &Path) -> Outcome {
    refused(&format!("open {}", path.display()), std::fs::read(path))
}

fn host_processes(args: &Args) -> Outcome {
    let pids = search::pids();
    let marker = args.get("marker").as_bytes();
    let seen = pids.iter().filter(|pid| **pid != std::process::id()).find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| search::contains(&c, marker))
    });
    match seen {
        Some(pid) => (false, format!("process {pid} of the host is in /proc")),
        None => {
            (true, format!("/proc shows {}, all of this sandbox", count(pids.len(), "process")))
        }
    }
}

fn connect(port: u64) -> io::Result<TcpStream> {
    let port = u16::try_from(port).unwrap_or(0);
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), CONNECT_TIMEOUT)
}

fn host_loopback(args: &Args) -> Outcome {
    let port = args.number("port");
    refused(&format!("connect 127.0.0.1:{port}"), connect(port))
}

fn network() -> Outcome {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: Vec<&str> = table.lines().skip(2).filter_map(|l| l.split(':').next()).collect();
    let others: Vec<&str> = names.iter().map(|n| n.trim()).filter(|n| *n != "lo").collect();
    if !others.is_empty() {
        return (false, format!("interfaces beside loopback: {}", others.join(", ")));
    }
    // TEST-NET-1 (RFC 5737). A UDP connect sends nothing; it only asks for a route.
    let udp = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:53"));
    let (held, observed) = refused("route to 192.0.2.1", udp);
    (held, format!("only interface lo; {observed}"))
}

fn mount() -> Outcome {
    let flags = rustix::mount::MountFlags::empty();
    let result = rustix::mount::mount(c"none", c"/tmp", c"tmpfs", flags, None);
    refused("mount tmpfs", result.map_err(io::Error::from))
}

fn ptrace(args: &Args) -> Outcome {
    let pid = args.number("pid").try_into().unwrap_or(1);
    refused(&format!("ptrace attach to {pid}"), sandbox::attempt::ptrace_attach(pid))
}

fn init_memory(args: &Args) -> Outcome {
    let pid = args.number("pid").max(1);
    refused(&format!("open /proc/{pid}/mem"), std::fs::File::open(format!("/proc/{pid}/mem")))
}

fn fork_bomb(args: &Args) -> Outcome {
    let goal = usize::try_from(args.number("count")).unwrap_or(0);
    let mut children: Vec<Child> = Vec::new();
    let mut refusal = None;
    while children.len() < goal && refusal.is_none() {
        match Command::new("sleep").arg("20").stdin(Stdio::null()).spawn() {
            Ok(child) => children.push(child),
            Err(e) => refusal = Some(e),
        }
    }
    let started = children.len();
    for child in &mut children {
        // Already gone is as good as killed.
        drop(child.kill());
        drop(child.wait());
    }
    match refusal {
        Some(e) => (true, format!("fork number {}: {}", started + 1, plain(&e))),
        None => (false, format!("{started} processes were started")),
    }
}

/// The memory is filled by a child, for the kernel may answer with a kill.
fn fill_memory(args: &Args) -> Outcome {
    let child = std::env::current_exe().and_then(|exe| {
        let bytes = format!("bytes={}", args.get("bytes"));
        Command::new(exe).args(["__probe", "touch-memory", &bytes]).output()
    });
    let output = match child {
        Ok(output) => output,
        Err(e) => return (true, format!("start of a child: {}", plain(&e))),
    };
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = output.status.signal() {
        return (true, format!("the kernel killed the process (signal {signal})"));
    }
    let line = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str::<Observation>(line.trim())
        .map_or((false, line.into_owned()), |o| (o.held, o.observed))
}

fn touch_memory(args: &Args) -> Outcome {
    let goal = usize::try_from(args.number("bytes")).unwrap_or(0);
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() * MEMORY_STEP < goal {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(MEMORY_STEP).is_err() {
            let mib = (held.len() * MEMORY_STEP) >> 20;
            return (true, format!("allocation after {mib} MiB: ENOMEM (Out of memory)"));
        }
        piece.resize(MEMORY_STEP, 0xA5);
        held.push(piece);
    }
    let sum: usize = held.iter().map(|p| usize::from(p[MEMORY_STEP / 2])).sum();
    (false, format!("{} MiB were filled ({sum})", goal >> 20))
}

/// `CONNECT target` at the door's loopback port; refused unless the gateway answers 200.
fn through_gateway(args: &Args) -> Outcome {
    let target = args.get("target");
    let answer = connect(args.number("port")).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")?;
        // The whole first line: half a status would look like a refusal.
        let mut line = Vec::new();
        BufReader::new(stream.take(STATUS_LINE_MAX)).read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    });
    match answer {
        Ok(line) if line.split(' ').nth(1) == Some("200") => (false, format!("{target}: {line}")),
        Ok(line) => (true, format!("CONNECT {target}: {line}")),
        Err(e) => (true, format!("CONNECT {target}: {}", plain(&e))),
    }
}

fn host_env(args: &Args) -> Outcome {
    let name = args.get("name");
    if std::env::var_os(name).is_some() {
        return (false, format!("{name} is in the environment"));
    }
    let needle = format!("{name}=");
    match search::in_proc(needle.as_bytes()) {
        Some(path) => (false, format!("{name} is in {path}")),
        None => (true, format!("{name} is in no environment that can be read")),
    }
}

/// The key is told backwards, so that this process's own arguments do not hold it.
fn find_key(args: &Args) -> Outcome {
    let mut key: Vec<u8> = args.get("reversed").bytes().rev().collect();
    let needle = std::mem::take(&mut key);
    if std::env::vars_os().any(|(_, v)| search::contains(v.as_encoded_bytes(), &needle)) {
        return (false, "the key is in the environment".into());
    }
    if let Some(path) = search::in_proc(&needle) {
        return (false, format!("the key is in {path}"));
    }
    let roots: Vec<PathBuf> = args.strings("roots").map(PathBuf::from).collect();
    if let Some(path) = search::in_files(&roots, &needle) {
        return (false, format!("the key is in {}", path.display()));
    }
    let own = std::process::id();
    let mut unread = 0;
    let pids: Vec<u32> = search::pids().into_iter().filter(|p| *p != own).collect();
    for pid in &pids {
        match search::in_memory(*pid, &needle) {
            Ok(true) => return (false, format!("the key is in the memory of process {pid}")),
            Ok(false) => {}
            Err(_) => unread += 1,
        }
    }
    let memory = match (pids.len(), unread) {
        (0, _) => "/proc shows no other process to read".to_owned(),
        (all, 0) => format!("nor in the memory of {}", count(all, "other process")),
        (all, n) if n == all => {
            format!("reading the memory of {} was refused", count(all, "other process"))
        }
        (all, n) => format!(
            "nor in the memory of {}; that of {n} more was refused",
            count(all - n, "other process")
        ),
    };
    (true, format!("not in the environment, in no file; {memory}"))
}

/// A number of things whose name ends in an s, in words.
fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}es") }
}

fn tamper(args: &Args) -> Outcome {
    let direct = PathBuf::from(args.get("path"));
    let around = ["/proc/1/root", "/proc/self/root", "/proc/1/cwd"];
    let tails =
        around.iter().map(|p| Path::new(p).join(direct.strip_prefix("/").unwrap_or(&direct)));
    let mut first = None;
    for path in std::iter::once(direct.clone()).chain(tails) {
        match std::fs::OpenOptions::new().append(true).open(&path) {
            Ok(mut file) => {
                let wrote = file.write_all(b"forged").is_ok();
                return (false, format!("{} opened for writing, wrote: {wrote}", path.display()));
            }
            Err(e) => first = first.or(Some(e)),
        }
    }
    let why = first.map(|e| plain(&e)).unwrap_or_default();
    (true, format!("open {} for writing: {why}", direct.display()))
}

fn forge(socket: &Path) -> Outcome {
    let result = std::os::unix::net::UnixStream::connect(socket);
    refused(&format!("connect {}", socket.display()), result)
}
