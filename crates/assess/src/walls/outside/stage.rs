//! Baits on the host: a file, sockets, listeners, and a stand-in for the gateway behind a door.

use super::{Place, host};
use crate::walls::{Bait, Other, Tight};
use model::SandboxSpec;
use rustix::net::sockopt::socket_peercred;
use sandbox::Owner;
use std::io::{self, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The limits of the sandbox that is made to be filled: small, so that it is quick, and large
/// enough for the program that fills it.
pub(super) const TIGHT: Tight = Tight {
    pids: 48,
    memory_bytes: 96 << 20,
    cpu_milli: 250,
    open_files: 128,
    file_bytes: 64 << 20,
    tmp_bytes: 12 << 20,
};
/// Where the shared folder appears in both sessions.
pub(super) const SHARED: &str = "/mnt/shared";

/// What is laid out. Removed when dropped.
pub(super) struct Stage {
    folder: PathBuf,
    /// A word that nothing else on this machine has.
    pub(super) word: String,
    tcp: TcpListener,
    tcp6: Option<TcpListener>,
    udp: UdpSocket,
    _abstract_socket: UnixListener,
    _socket: UnixListener,
    /// The door of the session under test.
    pub(super) door: Door,
}

impl Stage {
    /// `writer` is who must own the folder that sessions share, where that is not us.
    pub(super) fn set(writer: Option<Owner>) -> io::Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let word = format!("probe-{}-{}", std::process::id(), since.subsec_nanos());
        let folder = std::env::temp_dir().join(format!("nanoclaw-{word}"));
        std::fs::create_dir(&folder)?;
        // Open to everybody outside, so that only the sandbox can be what hides it.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        let folder = folder.canonicalize()?;
        std::fs::create_dir(folder.join("shared"))?;
        if let Some(Owner { uid, gid }) = writer {
            chown(folder.join("shared"), Some(uid), Some(gid))?;
        }
        std::fs::write(folder.join("canary"), "a file of the host\n")?;
        let address = SocketAddr::from_abstract_name(abstract_name(&word))?;
        Ok(Self {
            tcp: TcpListener::bind(("127.0.0.1", 0))?,
            tcp6: TcpListener::bind(("::1", 0)).ok(),
            udp: UdpSocket::bind(("127.0.0.1", 0))?,
            _abstract_socket: UnixListener::bind_addr(&address)?,
            _socket: UnixListener::bind(folder.join("socket"))?,
            door: Door::open(folder.join("door"))?,
            folder,
            word,
        })
    }

    pub(super) fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// What the session under test is told to look for.
    pub(super) fn bait(&self, spec: &SandboxSpec, other: Other) -> io::Result<Bait> {
        let path = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let port = |listener: &TcpListener| listener.local_addr().map(|a| a.port());
        let base = host(spec)?;
        Ok(Bait {
            variable: host_variable(&base.env_names),
            marker: sandbox::SPAWNER_ROLE.to_owned(),
            host_pid: std::process::id(),
            host_file: path("canary"),
            tcp_port: port(&self.tcp)?,
            tcp6_port: self.tcp6.as_ref().map_or(Ok(0), port)?,
            udp_port: self.udp.local_addr()?.port(),
            abstract_name: abstract_name(&self.word),
            socket: path("socket"),
            left: self.word.clone(),
            other,
            tight: TIGHT,
            ..base
        })
    }

    /// What the other session is to have.
    pub(super) fn other(&self, place: &Place, shared: bool) -> Other {
        let key: u32 =
            self.word.bytes().fold(7, |key, b| key.wrapping_mul(31).wrapping_add(u32::from(b)));
        Other {
            name: format!("{}-other", self.word),
            workspace: place.root.join("other/workspace").to_string_lossy().into_owned(),
            // 0 would be a private one (shmget(2)).
            shm_key: key | 1,
            shared: if shared { SHARED.to_owned() } else { String::new() },
            ..Other::default()
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Files in the shared folder may be a session's; as its owner we may remove them.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn abstract_name(word: &str) -> String {
    format!("{word}-host")
}

/// A variable of this process that no sandbox is given; long enough to be mistaken for none.
fn host_variable(granted: &[String]) -> String {
    const LENGTH_MIN: usize = 6;
    let fits =
        |n: &String| n.len() >= LENGTH_MIN && !granted.iter().any(|g| g.ends_with(n.as_str()));
    let names = std::env::vars_os().filter_map(|(n, _)| n.into_string().ok());
    names
        .filter(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .find(fits)
        .unwrap_or_else(|| "SSH_AUTH_SOCK".to_owned())
}

/// Hears something, answers.
fn answer(mut stream: &UnixStream) -> io::Result<()> {
    const HEAR_TIME: Duration = Duration::from_millis(400);
    stream.set_read_timeout(Some(HEAR_TIME))?;
    let _ = stream.read(&mut [0; 16])?;
    stream.write_all(b"init\n")
}

/// Judges connections as the gateway does: only those of the sandbox's first process are answered.
pub(super) struct Door {
    path: PathBuf,
    init: Arc<AtomicU32>,
    closed: Arc<AtomicBool>,
}

impl Door {
    fn open(path: PathBuf) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        // As the gateway does it: where ids are not mapped the program is nobody's to the host.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let door = Self { path, init: Arc::default(), closed: Arc::default() };
        let (init, closed) = (Arc::clone(&door.init), Arc::clone(&door.closed));
        std::thread::Builder::new().name("door".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let peer = socket_peercred(&stream).map(|p| p.pid.as_raw_nonzero().get());
                let of_init =
                    peer.is_ok_and(|p| u32::try_from(p) == Ok(init.load(Ordering::SeqCst)));
                if of_init {
                    // Whoever says nothing, or hangs up first, has not listened.
                    drop(answer(&stream));
                }
            }
        })?;
        Ok(door)
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// From now on this process, by the host's count, is answered.
    pub(super) fn only_from(&self, init: u32) {
        self.init.store(init, Ordering::SeqCst);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread, which then leaves; where nobody can connect there is nothing to wake.
        drop(UnixStream::connect(&self.path));
    }
}
