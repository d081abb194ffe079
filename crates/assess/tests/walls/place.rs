//! An open place: everything that probes look for, within reach.

use nanoclaw_assess::walls::{Answer, Bait, Other, Sighting, Tight};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use testkit::TempDir;

/// A variable of the processes in the open place.
pub(crate) const VARIABLE: &str = "OPEN_PLACE_CANARY";

pub(crate) fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn me() -> PathBuf {
    std::env::current_exe().expect("this program")
}

/// A process with a known argument, ended when dropped.
pub(crate) struct Neighbour(Child);

impl Neighbour {
    fn start(name: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "read line", name]).env(VARIABLE, "1");
        Self(command.stdin(Stdio::piped()).spawn().expect("it starts"))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // A probe may have killed it.
        drop(self.0.kill());
        self.0.wait().expect("our child");
    }
}

pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) bait: Bait,
    _neighbour: Neighbour,
    _listeners: (TcpListener, Option<TcpListener>, UdpSocket, UnixListener, UnixListener),
}

impl Place {
    pub(crate) fn make(probe: &str) -> Self {
        let dir = TempDir::new("open-walls").expect("a folder");
        open_to_all(dir.path());
        let path = |name: &str| dir.join(name).display().to_string();
        for name in ["canary", "linked", "left-word"] {
            std::fs::write(dir.join(name), "a canary\n").expect("written");
        }
        for name in ["door", "read-only", "persistence"] {
            if name == "door" {
                answering(UnixListener::bind(dir.join(name)).expect("bound"));
            } else {
                std::fs::create_dir(dir.join(name)).expect("made");
            }
        }
        let word = format!("open-{probe}-{}", std::process::id());
        let neighbour = Neighbour::start(&word);
        let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let tcp6 = TcpListener::bind(("::1", 0)).ok();
        let udp = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
        let address = SocketAddr::from_abstract_name(&word).expect("a name");
        let abstract_socket = UnixListener::bind_addr(&address).expect("bound");
        let socket = UnixListener::bind(dir.join("socket")).expect("bound");
        let port = |l: &TcpListener| l.local_addr().expect("its address").port();
        let (near, port6) = (format!("127.0.0.1:{}", port(&tcp)), tcp6.as_ref().map_or(0, port));
        let bait = Bait {
            namespaces: namespaces(),
            host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            machine_id: std::fs::read_to_string("/etc/machine-id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            variable: VARIABLE.to_owned(),
            marker: word.clone(),
            host_pid: neighbour.0.id(),
            init: neighbour.0.id(),
            host_file: path("canary"),
            tcp_port: port(&tcp),
            tcp6_port: port6,
            udp_port: udp.local_addr().expect("its address").port(),
            abstract_name: word,
            socket: path("socket"),
            far: near.clone(),
            far6: format!("[::1]:{port6}"),
            metadata: near,
            orders: vec![path("socket")],
            persistence: vec![path("persistence")],
            read_only: vec![path("read-only")],
            linked: path("linked"),
            left: "left-word".to_owned(),
            other: Other::default(),
            tight: TIGHT,
            door: path("door"),
            ..Bait::default()
        };
        let listeners = (tcp, tcp6, udp, abstract_socket, socket);
        Self { dir, bait, _neighbour: neighbour, _listeners: listeners }
    }

    /// The words that try one probe here.
    pub(crate) fn words(&self, probe: &str) -> Vec<String> {
        let bait = serde_json::to_string(&self.bait).expect("JSON");
        [me().display().to_string(), "__walls".into(), "one".into(), probe.to_owned(), bait].into()
    }

    /// Runs words in this folder and reads the one answer that they print.
    pub(crate) fn run(&self, words: &[String]) -> Result<Answer, String> {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.dir.path()).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("TMPDIR", self.dir.path()).env(VARIABLE, "1").stdin(Stdio::null());
        let output = command.output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = text.lines().find_map(|l| serde_json::from_str::<Sighting>(l.trim()).ok());
        said.map(|s| s.answer).ok_or_else(|| {
            format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr).trim())
        })
    }
}

/// Limits so small that any machine has more.
const TIGHT: Tight = Tight {
    pids: 4,
    memory_bytes: 8 << 20,
    cpu_milli: 50,
    open_files: 8,
    file_bytes: 1 << 20,
    tmp_bytes: 1 << 20,
};

/// Somebody who answers whoever comes.
fn answering(listener: UnixListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = [0; 16];
            if stream.read(&mut heard).is_ok_and(|n| n > 0) {
                drop(stream.write_all(b"anybody\n"));
            }
        }
    });
}

fn namespaces() -> BTreeMap<String, u64> {
    let number = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        let text = link.to_string_lossy().into_owned();
        text.split(['[', ']']).nth(1).expect("a number").parse::<u64>().expect("a number")
    };
    let kinds = ["pid", "net", "ipc", "uts", "user", "mnt", "cgroup"];
    kinds.iter().map(|k| ((*k).to_owned(), number(k))).collect()
}
