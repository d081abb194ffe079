//! `__gateway`: the process that holds the vault and is the only way out; and its start by whoever
//! needs one.
//!
//! ```text
//! exec ─► nothing inherited ─► key from the keyring, if it is there ─► lock, socket
//!      ─► walls, measured ─► recorder ─► vault ─► ready ─► serve
//! ```
//!
//! Invariants:
//! 1. The walls stand before the first thread, the first secret and the first byte from anybody;
//!    but a vault's key that is in the keyring is fetched before, for that takes a program.
//! 2. One gateway a home: the lock of its folder decides; the second stops quietly.
//! 3. Without a recorder there is no gateway; it leaves with its last client.

use gateway::control::{self, Approvals, EXIT_RUNNING, READY, Tracked};
use gateway::vault::{Fetched, keyring};
use gateway::{Approver, Gateway, GatewayConfig, Vault, tls, usage};
use model::RecordSink;
use rustix::process::{Resource, Rlimit};
use sandbox::role::{RoleWalls, confine, detach};
use std::error::Error;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

/// `argv[3]` of the gateway process, after `--home DIR`.
pub(crate) const ROLE: &str = "__gateway";

/// Threads that serve all doors; they wait for I/O, not for CPUs.
const THREADS: usize = 2;

/// In the gateway's folder: the certificates that sandboxes trust, see `sandboxes::bundle`.
const TRUST: &str = "trust.pem";

/// What is still under way when the last client has gone gets so long.
const LAST_WORK: std::time::Duration = std::time::Duration::from_secs(2);

/// Places of what resolving names and verifying servers needs to read; the vendors' places of
/// certificates are those that openssl-probe knows.
const READ: [&str; 10] = [
    "/etc",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    "/usr/lib/ssl",
    "/usr/share/ssl",
    "/usr/local/ssl",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];

/// Links in `/etc` that may lead elsewhere (NixOS, WSL).
const LINKS: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"];

/// Variables that a gateway is started with: where certificates are, and the key that systemd
/// hands over (systemd.exec(5), Credentials).
pub(crate) const VARIABLES: [&str; 3] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "CREDENTIALS_DIRECTORY"];

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs the gateway of a home until its last client has gone.
pub(crate) fn main(home: &str) -> ExitCode {
    if detach().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(ready) = io::stdout().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut ready = File::from(ready);
    // The program that asks the keyring is started now, for later none can be.
    let key = match Fetched::now(Path::new(home)) {
        Ok(key) => key,
        Err(e) => return failed(&mut ready, &e),
    };
    let lock = match take_place(Path::new(home)) {
        Ok(Some(lock)) => lock,
        Ok(None) => return ExitCode::from(EXIT_RUNNING),
        Err(e) => return failed(&mut ready, e.as_ref()),
    };
    match confined(home, lock, key, &mut ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&mut ready, e.as_ref()),
    }
}

fn confined(home: &str, place: Place, key: Fetched, ready: &mut File) -> Outcome<()> {
    confine(&walls(Path::new(home)))?;
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let served = threads.block_on(serve(home, place, key, ready));
    // A sync that the disk holds up must not hold up the end.
    threads.shutdown_timeout(LAST_WORK);
    served
}

fn failed(ready: &mut File, error: &dyn Error) -> ExitCode {
    // The starter may be gone; then nobody needs to hear it.
    drop(writeln!(ready, "{}", error.to_string().replace('\n', " ")));
    ExitCode::FAILURE
}

/// What is held for as long as the gateway runs.
struct Place {
    listener: UnixListener,
    /// How many files it may have open.
    descriptors: u64,
    _lock: File,
}

/// Takes the home's place for a gateway; `None` when another one has it.
fn take_place(home: &Path) -> Outcome<Option<Place>> {
    let state = control::state_dir(home);
    for folder in [&state, &home.join("vault"), &home.join("run")] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let path = state.join("lock");
    let lock = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(e)) => return Err(e.into()),
    }
    let socket = control::socket_path(home);
    // We hold the lock, so whoever made this one is gone.
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    // 200 sessions with a few connections each need more than the usual 1,024 descriptors.
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let files = Rlimit { current: files.current, maximum: files.maximum };
    rustix::process::setrlimit(Resource::Nofile, files)?;
    let descriptors = files.current.unwrap_or(u64::MAX);
    Ok(Some(Place { listener, descriptors, _lock: lock }))
}

/// What a role must be able to read to look names up and to verify servers.
pub(crate) fn network_files() -> Vec<PathBuf> {
    let named = VARIABLES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let links = LINKS.iter().filter_map(|link| Path::new(link).canonicalize().ok());
    READ.iter().map(PathBuf::from).chain(links).chain(named).collect()
}

fn walls(home: &Path) -> RoleWalls {
    RoleWalls {
        read: network_files(),
        keep: vec![home.join("vault"), control::state_dir(home)],
        sockets: Vec::new(),
        connect: true,
        forbidden: vec![
            home.to_owned(),
            home.join("audit"),
            audit::key_dir(home),
            home.join("store.db"),
        ],
    }
}

async fn serve(home: &str, place: Place, key: Fetched, ready: &mut File) -> Outcome<()> {
    let home = Path::new(home);
    // The starter is a client of the recorder, so there is one; it cannot be started from here.
    let none = || Err(io::Error::other("no recorder runs, and nothing goes unrecorded"));
    let recorder = audit::Client::connect(home, "gateway", none)?;
    let records = Arc::new(Tracked::new(Arc::new(recorder)));
    let vault = Vault::open_fetched(home, key).map_err(|e| format!("the vault: {e}"))?;
    let approvals = Arc::new(Approvals::default());
    let mut config = GatewayConfig::new(Arc::clone(&records) as Arc<dyn RecordSink>, vault);
    config.shared_connections = gateway::shared_connections(place.descriptors);
    let state = control::state_dir(home);
    let authority = tls::Authority::open(&home.join("vault"))?;
    let (authority, trust) = (Arc::new(authority), state.join(TRUST));
    let ours = authority.certificate_pem();
    let known = std::fs::read_to_string(&trust).is_ok_and(|old| old.contains(ours));
    if !known {
        publish_trust(&trust, &authority)?;
    }
    config.authority = Some(Arc::clone(&authority));
    config.ledger = usage::Ledger::open(&state)?;
    config.state_dir = Some(state);
    config.approver = Arc::clone(&approvals) as Arc<dyn Approver>;
    let told = Arc::clone(&approvals);
    config.notices = Some(Arc::new(move |notice| told.notice(notice)));
    let gateway = Gateway::new(config);
    // Whoever connects finds us all the same, should the starter be gone.
    drop(ready.write_all(READY.as_bytes()));
    if known {
        // Reading the system's certificates takes longer than all else here. Those of last time
        // serve until then, and when they cannot be read.
        tokio::task::spawn_blocking(move || drop(publish_trust(&trust, &authority)));
    }
    let Place { listener, _lock, .. } = place;
    Ok(control::serve(listener, gateway, approvals, records).await?)
}

/// Writes what sandboxes trust, whole or not at all, and only when it has changed.
fn publish_trust(path: &Path, authority: &tls::Authority) -> Outcome<()> {
    let bundle = tls::bundle::merged(authority)?;
    if std::fs::read(path).is_ok_and(|old| old == bundle.as_bytes()) {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bundle)?;
    // Sandboxes run as other users; it holds nothing secret, and its folder is closed.
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o644))?;
    Ok(std::fs::rename(&fresh, path)?)
}

/// Starts a gateway for `home` and waits until it is ready or has found another one running. It
/// detaches itself and gets none of our environment but [`VARIABLES`].
pub(crate) fn start(home: &Path) -> io::Result<()> {
    let kept = VARIABLES
        .iter()
        .chain(&keyring::VARIABLES)
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new("/proc/self/exe")
        .arg("--home")
        .arg(home)
        .arg(ROLE)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line == READY {
        // Takes the exit status when it comes, so that no zombie stays.
        std::thread::Builder::new().name("gateway-reap".into()).spawn(move || child.wait())?;
        return Ok(());
    }
    let status = child.wait()?;
    if status.code() == Some(i32::from(EXIT_RUNNING)) {
        return Ok(());
    }
    let said = line.trim_end();
    Err(io::Error::other(match said {
        "" => format!("it stopped at once: {status}"),
        said => said.to_owned(),
    }))
}
