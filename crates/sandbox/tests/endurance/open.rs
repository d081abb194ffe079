//! The open reference: every canary and every count is changed on purpose, by whoever may, and
//! must be named. What is not noticed here would prove nothing when it is not noticed there.
//!
//! What belongs to the whole host is changed in namespaces of this test's own (`unshare`), in a
//! program of its own: `ROLE FOLDER`.

use crate::canary::{FAMILIES, Field, Look};
use crate::counts::{self, Counts, Place};
use crate::fuzz::{Watched, counts_are_read};
use crate::host::{family, groups_of, soon};
use crate::lab::{Lab, set_mode};
use crate::soak::spawner_of;
use crate::{Verdict, canary};
use nanoclaw_sandbox::{Prepared, Stdio};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

/// Runs [`main`].
pub(crate) const ROLE: &str = "__open-acts";
/// What it prints before the name of an act that this machine does not allow even here.
const IMPOSSIBLE: &str = "impossible: ";

/// What keeps an act's effect until it was seen.
type Kept = Box<dyn std::any::Any>;

struct Act {
    name: &'static str,
    /// The family that must name it.
    trips: &'static str,
    act: fn(&mut Field) -> Result<Kept, String>,
}

/// Nothing is to be kept.
fn done() -> Result<Kept, String> {
    Ok(Box::new(()))
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn run(words: &[&str]) -> Result<Kept, String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(said)?;
    if output.status.success() {
        return done();
    }
    Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

const ACTS: &[Act] = &[
    Act { name: "a file is written", trips: "files", act: written },
    Act { name: "a file is made", trips: "files", act: made },
    Act { name: "a file is removed", trips: "files", act: removed },
    Act { name: "a file's mode is changed", trips: "files", act: mode },
    Act { name: "a file's time is set back", trips: "files", act: time },
    Act { name: "a link points elsewhere", trips: "files", act: link },
    Act { name: "a system file is another", trips: "system files", act: system_file },
    Act { name: "a signal is sent", trips: "process", act: signalled },
    Act { name: "a process is stopped", trips: "process", act: stopped },
    Act { name: "a process is slowed down", trips: "process", act: reniced },
    Act { name: "a process is limited", trips: "process", act: limited },
    Act { name: "a process is killed", trips: "process", act: killed },
    Act { name: "a process is elsewhere", trips: "namespaces", act: elsewhere },
    Act { name: "an abstract name is dialled", trips: "abstract socket", act: dial_abstract },
    Act { name: "a socket's path is dialled", trips: "unix socket", act: dial_path },
    Act { name: "a port is dialled", trips: "loopback", act: dial_tcp },
    Act { name: "a datagram is sent", trips: "loopback", act: datagram },
    Act { name: "a file system is mounted", trips: "mounts", act: mounted },
    Act { name: "a control group is made", trips: "control groups", act: grouped },
    Act { name: "the host's name is set", trips: "host name", act: named },
    Act { name: "a kernel setting is written", trips: "sysctl", act: set },
    Act { name: "a queue is made", trips: "queues", act: queued },
    Act { name: "an interface is brought up", trips: "network", act: brought_up },
];

fn written(field: &mut Field) -> Result<Kept, String> {
    let mut file = std::fs::File::options().append(true).open(field.folder.join("open"));
    file.as_mut().map_err(said)?.write_all(b"x").map_err(said)?;
    done()
}

fn made(field: &mut Field) -> Result<Kept, String> {
    std::fs::write(field.folder.join("new"), "").map_err(said)?;
    done()
}

fn removed(field: &mut Field) -> Result<Kept, String> {
    std::fs::remove_file(field.folder.join("inner/deep")).map_err(said)?;
    done()
}

fn mode(field: &mut Field) -> Result<Kept, String> {
    set_mode(&field.folder.join("private"), 0o640);
    done()
}

fn time(field: &mut Field) -> Result<Kept, String> {
    let file = field.folder.join("open").display().to_string();
    run(&["touch", "-d", "2001-01-01", &file])
}

fn link(field: &mut Field) -> Result<Kept, String> {
    let link = field.folder.join("link");
    std::fs::remove_file(&link).map_err(said)?;
    std::os::unix::fs::symlink("private", link).map_err(said)?;
    done()
}

fn system_file(field: &mut Field) -> Result<Kept, String> {
    let other = field.folder.join("open").display().to_string();
    run(&["mount", "--bind", &other, "/etc/passwd"])
}

fn kill(field: &Field, signal: &str) -> Result<Kept, String> {
    run(&["kill", signal, &field.process.id().to_string()])
}

fn signalled(field: &mut Field) -> Result<Kept, String> {
    kill(field, "-TERM")
}

fn stopped(field: &mut Field) -> Result<Kept, String> {
    kill(field, "-STOP")
}

fn killed(field: &mut Field) -> Result<Kept, String> {
    kill(field, "-KILL")
}

fn reniced(field: &mut Field) -> Result<Kept, String> {
    run(&["renice", "-n", "19", "-p", &field.process.id().to_string()])
}

fn limited(field: &mut Field) -> Result<Kept, String> {
    run(&["prlimit", "--pid", &field.process.id().to_string(), "--nofile=64:64"])
}

fn elsewhere(field: &mut Field) -> Result<Kept, String> {
    let another = canary::process(&["unshare", "--uts"]);
    let mut before = std::mem::replace(&mut field.process, another);
    drop(before.kill());
    before.wait().map_err(said)?;
    done()
}

fn dial_abstract(field: &mut Field) -> Result<Kept, String> {
    let address = SocketAddr::from_abstract_name(&field.abstract_name).map_err(said)?;
    Ok(Box::new(UnixStream::connect_addr(&address).map_err(said)?))
}

fn dial_path(field: &mut Field) -> Result<Kept, String> {
    Ok(Box::new(UnixStream::connect(field.folder.join("socket")).map_err(said)?))
}

fn dial_tcp(field: &mut Field) -> Result<Kept, String> {
    let address = field.tcp.local_addr().map_err(said)?;
    Ok(Box::new(std::net::TcpStream::connect(address).map_err(said)?))
}

fn datagram(field: &mut Field) -> Result<Kept, String> {
    let from = std::net::UdpSocket::bind("127.0.0.1:0").map_err(said)?;
    from.send_to(b"x", field.udp.local_addr().map_err(said)?).map_err(said)?;
    done()
}

fn mounted(field: &mut Field) -> Result<Kept, String> {
    let place = field.folder.join("inner").display().to_string();
    run(&["mount", "-t", "tmpfs", "tmpfs", &place])
}

/// A group below the first folder where this process may make one; gone when dropped.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}

fn grouped(_: &mut Field) -> Result<Kept, String> {
    let name = format!("canary-{}", std::process::id());
    let made = crate::host::groups().into_iter().map(|folder| folder.join(&name));
    let mut made = made.filter(|path| std::fs::create_dir(path).is_ok());
    match made.next() {
        Some(path) => Ok(Box::new(Group(path))),
        None => Err("no control group can be made by this user".into()),
    }
}

fn named(_: &mut Field) -> Result<Kept, String> {
    rustix::system::sethostname(b"changed").map_err(said)?;
    done()
}

fn set(_: &mut Field) -> Result<Kept, String> {
    std::fs::write("/proc/sys/net/ipv4/ip_default_ttl", "77").map_err(said)?;
    done()
}

fn queued(_: &mut Field) -> Result<Kept, String> {
    run(&["ipcmk", "-Q"])
}

fn brought_up(_: &mut Field) -> Result<Kept, String> {
    run(&["ip", "link", "set", "lo", "up"])
}

/// Carries out every act in a field of its own, in the namespaces that it was started in. Prints
/// the families that named theirs, one a line.
pub(crate) fn main() -> ExitCode {
    let folder = PathBuf::from(std::env::args().nth(2).expect("a folder"));
    // The listeners of both protocols need a loopback; the act that brings it up another one.
    let _ = run(&["ip", "link", "set", "lo", "up"]);
    let mut failed = 0;
    for (number, act) in ACTS.iter().enumerate() {
        if act.trips == "network" {
            let _ = run(&["ip", "link", "set", "lo", "down"]);
        }
        let place = folder.join(number.to_string());
        std::fs::create_dir(&place).unwrap();
        let mut field = Field::set(&place);
        let before = field.look();
        let kept = match (act.act)(&mut field) {
            Ok(kept) => kept,
            Err(why) => {
                println!("{IMPOSSIBLE}{}: {why}", act.name);
                continue;
            }
        };
        let found = soon_named(&field, &before, act.trips);
        drop(kept);
        if found.is_empty() {
            failed += 1;
            println!("NOT NOTICED: {} ({})", act.name, act.trips);
        } else {
            println!("{}", act.trips);
        }
    }
    ExitCode::from(failed)
}

/// What of the family is other than before; a datagram needs a moment.
fn soon_named(field: &Field, before: &Look, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..20 {
        found = field.look().against(before);
        found.retain(|line| family(line) == name);
        if !found.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    found
}

/// The canaries on the host, the clocks, the session beside, and the spawner's own.
pub(crate) fn canaries(lab: &Lab) -> Verdict {
    counts_are_read();
    let named = in_own_namespaces(&lab.dir);
    for name in FAMILIES {
        let impossible =
            named.iter().any(|n| n.starts_with(IMPOSSIBLE) && name == "control groups");
        assert!(named.contains(name) || impossible, "{name} never tripped: {named:?}");
    }
    let mut watched = Watched::begin(lab);
    assert_eq!(watched.changed(), [""; 0], "something changes by itself");
    clocks(&watched.field);
    // From here on nothing is as it was, and waiting for it would be in vain.
    watched.patience = Duration::from_millis(300);
    let found = |watched: &mut Watched<'_>, name: &str| {
        let changed = watched.changed();
        assert!(changed.iter().any(|line| line.starts_with(name)), "{name}: {changed:?}");
    };
    let held = lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap();
    found(&mut watched, "sandboxes: of the spawner");
    drop(held);
    std::fs::write(watched.beside.workspace.join("foreign"), "x").unwrap();
    found(&mut watched, "session beside: state");
    watched.beside.sandbox.kill().unwrap();
    found(&mut watched, "session beside: ended");
    Verdict::Passed
}

/// No clock of the host can be moved here; the comparison is shown other clocks instead.
fn clocks(field: &Field) {
    const FAR: i128 = 5_000;
    let before = field.look();
    for (name, day, up) in [("clock: time of day", FAR, 0), ("clock: uptime", 0, -FAR)] {
        let mut after = before.clone();
        after.clocks.day += day;
        after.clocks.up += up;
        let found = after.against(&before);
        assert!(matches!(&found[..], [one] if one.starts_with(name)), "{found:?}");
    }
}

/// The lines of [`main`], run as root of new namespaces.
fn in_own_namespaces(folder: &Path) -> BTreeSet<String> {
    let place = folder.join("open");
    std::fs::create_dir_all(&place).unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--uts", "--ipc", "--net", "--"]);
    command.arg(std::env::current_exe().unwrap()).arg(ROLE).arg(&place);
    let output = command.output().expect("unshare of util-linux");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{complaint}");
    for line in text.lines().filter(|l| l.starts_with(IMPOSSIBLE)) {
        println!("  {line}");
    }
    text.lines().map(str::to_owned).collect()
}

/// One thing that is left.
struct Left {
    trips: &'static str,
    #[allow(clippy::type_complexity)] // a list of plain functions reads best here
    leave: fn(Place<'_>) -> Result<Kept, String>,
}

const LEFT: &[Left] = &[
    Left { trips: "client descriptors", leave: |_| Ok(Box::new(Stdio::null().map_err(said)?)) },
    Left { trips: "client threads", leave: |_| Ok(Box::new(Sleeper::start())) },
    Left { trips: "processes", leave: process },
    Left { trips: "run folder", leave: folder },
    Left { trips: "spawner children", leave: held },
    Left { trips: "spawner descriptors", leave: held },
    Left { trips: "session uids", leave: held },
    Left { trips: "control groups", leave: held },
];

/// A thread that stays until it is dropped.
struct Sleeper {
    _keep: std::sync::mpsc::Sender<()>,
}

impl Sleeper {
    fn start() -> Self {
        let (keep, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || wait.recv());
        Self { _keep: keep }
    }
}

/// A process that stays until it is dropped.
struct Stays(Child);

impl Drop for Stays {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn process(place: Place<'_>) -> Result<Kept, String> {
    let child = Command::new("sleep").args(["1000", place.mark]).spawn().map_err(said)?;
    Ok(Box::new(Stays(child)))
}

fn folder(place: Place<'_>) -> Result<Kept, String> {
    std::fs::create_dir(place.lab.dir.join("left")).map_err(said)?;
    done()
}

fn held(place: Place<'_>) -> Result<Kept, String> {
    let Place { lab, .. } = place;
    let mut spec = lab.sh("true");
    // Nothing new in the run folder: that is another one's.
    spec.home = lab.dir.join("state/s0/home");
    spec.workspace = model::Workspace::Session(lab.dir.join("state/s0/workspace"));
    let prepared: Prepared =
        lab.spawner.prepare(&spec, Stdio::null().map_err(said)?).map_err(said)?;
    Ok(Box::new(prepared))
}

/// What cycles may leave is counted.
pub(crate) fn leftovers(lab: &Lab) -> Verdict {
    let mark = format!("0.{:010}", std::process::id());
    let spawner = spawner_of(lab);
    let place = Place { lab, spawner, mark: &mark };
    assert!(soon(|| Counts::take(place).against(&Counts::take(place)).is_empty()));
    let (root, grouped) = (lab.root(), !groups_of(spawner).is_empty());
    for left in LEFT {
        let unseen = match left.trips {
            "session uids" => !root,
            "spawner descriptors" => Counts::take(place).spawner_kib.is_none(),
            "control groups" => !grouped,
            _ => false,
        };
        if unseen {
            println!("  {}: nothing to see as this user", left.trips);
            continue;
        }
        let before = Counts::take(place);
        let kept = (left.leave)(place).unwrap();
        // The spare is renewed meanwhile.
        std::thread::sleep(Duration::from_millis(100));
        let found = Counts::now(place).against(&before);
        assert!(found.iter().any(|l| l.starts_with(left.trips)), "{}: {found:?}", left.trips);
        drop(kept);
    }
    let covered = |name: &&str| LEFT.iter().any(|l| l.trips == *name);
    // A mount is the other test's: it shows the same table.
    let bare: Vec<_> = counts::FAMILIES.iter().filter(|n| !covered(n) && **n != "mounts").collect();
    assert!(bare.is_empty(), "nothing shows that these are counted: {bare:?}");
    memory(&Counts::take(place));
    Verdict::Passed
}

/// A bound that nothing reaches would prove nothing.
fn memory(now: &Counts) {
    const LEAK_KIB: u64 = 8 << 10;
    let mut grown = now.clone();
    grown.client_kib += LEAK_KIB;
    grown.spawner_kib = grown.spawner_kib.map(|kib| kib + LEAK_KIB);
    let found = grown.against(now);
    let wanted = 1 + usize::from(now.spawner_kib.is_some());
    assert_eq!(found.len(), wanted, "{found:?}");
}
