//! What the demo puts around the sandbox for the agent to look for: canaries that no wall
//! protects but the sandbox's own.

use crate::failure::{Context, Result};
use crate::home::Home;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A variable of the host process's environment that must not be seen inside.
pub(super) const HOST_VARIABLE: &str = "NANOCLAW_DEMO_CANARY";
/// Processes the fork bomb tries to start; the sandbox's limit is far below.
const BOMB_PROCESSES: u32 = 400;
/// Memory the memory bomb tries to fill, bytes; the sandbox's limit is below.
const BOMB_BYTES: u64 = 512 << 20;
/// The sandbox's own limits in the demo.
pub(super) const PIDS_MAX: u64 = 64;
pub(super) const MEMORY_MAX: u64 = 192 << 20;

/// The canaries, in place.
pub(super) struct Stage {
    host_file: PathBuf,
    other_session: PathBuf,
    log: PathBuf,
    recorder: PathBuf,
    key: String,
    port: u16,
    visits: Arc<AtomicUsize>,
}

impl Stage {
    /// Puts every canary in place. `key` is the made-up key in the vault.
    pub(super) fn set(home: &Home, key: String) -> Result<Self> {
        let host_file = home.path().join("canary-host-file");
        std::fs::write(&host_file, "a file of the host\n").context(host_file.display())?;
        let other = home.path().join("sessions/neighbour/workspace");
        std::fs::create_dir_all(&other).context(other.display())?;
        let other_session = other.join("canary");
        std::fs::write(&other_session, "a file of another session\n")
            .context(other_session.display())?;
        let (port, visits) = listen()?;
        let log = home.audit().join("checkpoint");
        let recorder = home.path().join("run/recorder.sock");
        Ok(Self { host_file, other_session, log, recorder, key, port, visits })
    }

    /// How many connections reached the host's loopback server.
    pub(super) fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }

    /// Whether the canary files are as they were.
    pub(super) fn untouched(&self) -> bool {
        std::fs::read_to_string(&self.host_file).is_ok_and(|t| t == "a file of the host\n")
            && std::fs::read_to_string(&self.other_session)
                .is_ok_and(|t| t == "a file of another session\n")
    }

    /// The shell command that tries one act inside the sandbox.
    pub(super) fn command(&self, probe: &str) -> String {
        let args = match probe {
            "host-file" => format!("path={}", self.host_file.display()),
            "other-session" => format!("path={}", self.other_session.display()),
            "host-processes" => "marker=__spawner".to_owned(),
            "host-loopback" => format!("port={}", self.port),
            "ptrace" | "init-memory" => "pid=1".to_owned(),
            "fork-bomb" => format!("count={BOMB_PROCESSES}"),
            "fill-memory" => format!("bytes={BOMB_BYTES}"),
            "egress-host" => "target=example.com:443 port=\"$NANOCLAW_DOOR_PORT\"".to_owned(),
            "egress-address" => {
                format!("target=127.0.0.1:{} port=\"$NANOCLAW_DOOR_PORT\"", self.port)
            }
            "host-env" => format!("name={HOST_VARIABLE}"),
            "find-key" => {
                let reversed: String = self.key.chars().rev().collect();
                format!("reversed={reversed} roots=/workspace,/home,/tmp,/etc,/run,/dev/shm")
            }
            "tamper-log" => format!("path={}", self.log.display()),
            "forge-record" => format!("socket={}", self.recorder.display()),
            _ => String::new(),
        };
        format!("/run/nanoclaw/nanoclaw __probe {probe} {args}").trim_end().to_owned()
    }
}

/// A server on the host's loopback that counts its visitors.
fn listen() -> Result<(u16, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("a loopback server for the demo")?;
    let port = listener.local_addr().context("its port")?.port();
    let visits = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&visits);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            seen.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    Ok((port, visits))
}
