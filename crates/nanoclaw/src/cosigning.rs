//! `__cosigner`: puts new heads of the log before its witnesses; and its start by the product.
//!
//! ```text
//! exec ─► nothing inherited ─► nanoclaw.toml ─► walls ─► the home's place, waited for
//!      ─► every second: a new head? ─► round ─► did enough sign? changed? ─► record
//!      ─► whoever started it is gone ─► the recorder's last head ─► one more round ─► leaves
//! ```
//!
//! 1. The recorder has no network, and this process no key: it reads the log, and writes only in
//!    `<home>/audit/witness`. (Landlock cannot take one folder out of another, so it could read
//!    the recorder's key file; it therefore runs only where witnesses are named.)
//! 2. Nothing waits for it. Too few signatures do not stop a session: they are said when the next
//!    command starts, and on record when that changes, in both directions.
//! 3. One a home: the lock of its folder decides, and the next one takes over.

use crate::failure::{Failure, Result};
use crate::fetch::Dialer;
use crate::home::Home;
use crate::world::now_ms;
use audit::cosign::WitnessKey;
use audit::http::Url;
use audit::note::NOTE_BYTES_MAX;
use audit::source::read_file;
use audit::witness::{FOLDER, Outcome, Policy, Round, Target, round};
use model::{Body, Durability, Record, RecordSink, RecordSinkExt};
use policy::Config;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox::role::{RoleWalls, confine, detach};
use std::error::Error;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// `argv[3]` of the process, after `--home DIR`.
pub(crate) const ROLE: &str = "__cosigner";

/// How often it looks for a new head: heads of a busy log are a second apart.
const LOOK: Duration = Duration::from_secs(1);

/// How long it waits before it asks again for a head that too few have signed, at first and at
/// most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// How long the recorder may take to leave and sign its last head.
const LAST_HEAD: Duration = Duration::from_secs(10);

/// In its folder: what came of the last round whose coming was on record, or is still to be.
const STATE: &str = "state";

/// The witnesses of `nanoclaw.toml`, checked; `None` when none are named.
pub(crate) fn policy(config: &Config) -> Result<Option<Policy>> {
    let written = &config.witnesses;
    if written.all.is_empty() {
        return Ok(None);
    }
    let mut targets = Vec::new();
    for witness in &written.all {
        let bad = |what: &str, e: &dyn std::fmt::Display| {
            Failure::usage(format!("[witnesses.{}] {what}: {e}", witness.name))
        };
        let url = Url::parse(&witness.url).map_err(|e| bad("url", &e))?;
        // So it stands in what `witness serve` prints.
        let url = url.without("add-checkpoint");
        let key = WitnessKey::parse(&witness.key).map_err(|e| bad("key", &e))?;
        targets.push(Target { url, key });
    }
    Policy::new(targets, written.quorum).map_err(Failure::usage).map(Some)
}

/// A started one. Its standard input ends with this process, by which it knows.
pub(crate) struct Running {
    _input: Option<ChildStdin>,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It goes on for the last head; if it is gone already no zombie stays.
        let _ = self.child.try_wait();
    }
}

/// Says what the last round came to, if too few signed, puts on record what no recorder was there
/// for, and starts the process.
pub(crate) fn start(
    home: &Home,
    config: &Config,
    sink: &dyn RecordSink,
) -> Result<Option<Running>> {
    if policy(config)?.is_none() {
        return Ok(None);
    }
    let folder = home.audit().join(FOLDER);
    let mut state = State::read(&folder);
    // Sessions are often over before the process has looked for anything.
    if let Some(body) = state.body.clone().filter(|_| !state.recorded) {
        let record = Record { time_ms: now_ms(), session: None, agent: None, turn: None, body };
        let told = sink.append(record, Durability::Durable);
        told.map_err(|e| Failure::new(crate::failure::Kind::Audit, e))?;
        state.recorded = true;
        // Unwritten it is recorded once more, which is no loss.
        drop(state.write(&folder));
    }
    if state.contradicted() {
        crate::ui::note(format!(
            "warning: A WITNESS KNOWS ANOTHER HISTORY of this log (head of {} records); \
             `nanoclaw witness submit` tells which",
            state.size
        ));
    } else if state.known && !state.reached {
        crate::ui::note(format!(
            "warning: too few witnesses have signed the record's last head ({}); \
             `nanoclaw witness submit` tells why",
            state.size
        ));
    }
    let kept = crate::gatekeeper::VARIABLES
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new("/proc/self/exe")
        .arg("--home")
        .arg(home.path())
        .arg(ROLE)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .map_err(|e| Failure::other(format!("the witnesses cannot be asked: {e}")))?;
    Ok(Some(Running { _input: child.stdin.take(), child }))
}

type Done<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs until whoever started it is gone and the last head has been put before the witnesses.
pub(crate) fn main(home: &str) -> ExitCode {
    match detach().map_err(Into::into).and_then(|()| prepared(Path::new(home))) {
        Ok(work) => match work.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        // Nobody hears it; the state in its folder tells the next command.
        Err(_) => ExitCode::FAILURE,
    }
}

fn prepared(home: &Path) -> Done<Work> {
    let opened = Home::look(Some(home)).map_err(|e| e.cause)?;
    let config = crate::product::load_config(&opened).map_err(|e| e.cause)?;
    let policy = policy(&config).map_err(|e| e.cause)?.ok_or("no witnesses are named")?;
    let audit = opened.audit();
    let folder = audit.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let mut read = crate::gatekeeper::network_files();
    read.push(audit.clone());
    confine(&RoleWalls {
        read,
        keep: vec![folder.clone()],
        sockets: Vec::new(),
        connect: true,
        forbidden: vec![
            home.to_owned(),
            home.join("vault"),
            home.join("store.db"),
            audit.join("private"),
        ],
    })?;
    let state = State::read(&folder);
    Ok(Work { home: home.to_owned(), audit, folder, policy, state })
}

/// What the last round came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct State {
    /// Whether there was one.
    known: bool,
    reached: bool,
    /// Whether that it came to this is on record.
    recorded: bool,
    size: u64,
    /// What is to be, or was, on record of it.
    body: Option<Body>,
}

impl State {
    /// A file that says nothing is as good as none: then the next round is news.
    fn read(folder: &Path) -> Self {
        let text = read_file(&folder.join(STATE), NOTE_BYTES_MAX).ok().flatten();
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
        let words: Vec<&str> = first.split_whitespace().collect();
        match words[..] {
            [reached, recorded, size] => Self {
                known: true,
                reached: reached == "reached",
                recorded: recorded == "recorded",
                size: size.parse().unwrap_or(0),
                body: told(second),
            },
            _ => Self::default(),
        }
    }

    /// Whether a witness knew another history then.
    fn contradicted(&self) -> bool {
        matches!(self.body, Some(Body::Cosigning { contradicted: true, .. }))
    }

    /// A round is news where it came to something else than the one before.
    fn take(&mut self, round: &Round) {
        let contradicts = |o: &Outcome| matches!(o, Outcome::Contradicts(_));
        let contradicted = round.said.iter().any(|(_, o)| contradicts(o));
        let reached = round.reached();
        if !self.known || (reached, contradicted) != (self.reached, self.contradicted()) {
            (self.recorded, self.body) = (false, Some(body(round, contradicted)));
        }
        (self.known, self.reached, self.size) = (true, reached, round.size);
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let reached = if self.reached { "reached" } else { "missed" };
        let recorded = if self.recorded { "recorded" } else { "unrecorded" };
        let new = folder.join("state.new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // A link there would lead elsewhere.
        let mut file = File::create_new(&new)?;
        let body = self.body.as_ref().map(serde_json::to_string).transpose()?.unwrap_or_default();
        writeln!(file, "{reached} {recorded} {}\n{body}", self.size)?;
        file.sync_all()?;
        fs::rename(new, folder.join(STATE))
    }
}

/// Takes over what a round came to, and writes it.
pub(crate) fn came_to(folder: &Path, round: &Round) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut state = State::read(folder);
    state.take(round);
    state.write(folder)
}

struct Work {
    home: PathBuf,
    audit: PathBuf,
    folder: PathBuf,
    policy: Policy,
    state: State,
}

impl Work {
    fn run(mut self) -> Done<()> {
        let lock = File::create(self.folder.join("lock"))?;
        while let Err(e) = lock.try_lock() {
            match e {
                fs::TryLockError::WouldBlock => {}
                fs::TryLockError::Error(e) => return Err(e.into()),
            }
            // Another one does the work. It knows nothing of our starter, so it is taken over from.
            if left(LOOK) {
                return Ok(());
            }
        }
        let dialer = Dialer::default();
        let (mut asked, mut next, mut pause) = (None, Instant::now(), AGAIN.0);
        while !left(LOOK) {
            let head = self.head();
            let new = head != asked;
            if head.is_none() || (!new && (self.state.reached || Instant::now() < next)) {
                self.record();
                continue;
            }
            pause = if new { AGAIN.0 } else { AGAIN.1.min(pause * 2) };
            (asked, next) = (head, Instant::now() + pause);
            self.round(&dialer)?;
        }
        // Whoever came meanwhile goes on at once; if nobody did the last head is ours to ask for.
        lock.unlock()?;
        let begun = Instant::now();
        let recorder = audit::socket_path(&self.home);
        // It takes its socket away first, and then signs its last head: until nothing changes.
        let (mut seen, mut since) = (self.head(), Instant::now());
        while (recorder.exists() || since.elapsed() < LOOK) && begun.elapsed() < LAST_HEAD {
            std::thread::sleep(Duration::from_millis(50));
            let head = self.head();
            if recorder.exists() || head != seen {
                (seen, since) = (head, Instant::now());
            }
        }
        if lock.try_lock().is_ok() && (self.head() != asked || !self.state.reached) {
            self.round(&dialer)?;
        }
        Ok(())
    }

    /// The newest head as it stands in its file.
    fn head(&self) -> Option<Vec<u8>> {
        read_file(&self.audit.join("checkpoint"), NOTE_BYTES_MAX).ok().flatten()
    }

    fn round(&mut self, dialer: &Dialer) -> Done<()> {
        let Some(round) = round(&self.audit, &self.policy, dialer)? else { return Ok(()) };
        self.state.take(&round);
        self.state.write(&self.folder)?;
        self.record();
        Ok(())
    }

    /// Puts on record what is not yet. When no recorder is there the next session does ([`start`]).
    fn record(&mut self) {
        let Some(body) = self.state.body.clone().filter(|_| !self.state.recorded) else { return };
        let none = || Err(io::Error::other("no recorder runs"));
        if !audit::socket_path(&self.home).exists() {
            return;
        }
        let Ok(client) = audit::Client::connect(&self.home, "cosigner", none) else { return };
        let record = Record { time_ms: now_ms(), session: None, agent: None, turn: None, body };
        if client.append(record, Durability::Durable).is_ok() {
            self.state.recorded = true;
            // Unwritten it is recorded once more, which is no loss.
            drop(self.state.write(&self.folder));
        }
    }
}

/// What stands in the file; its writer meets strangers' bytes, so it is of this kind or nothing.
fn told(line: &str) -> Option<Body> {
    let body = serde_json::from_str(line).ok()?;
    matches!(body, Body::Cosigning { .. }).then_some(body)
}

fn body(round: &Round, contradicted: bool) -> Body {
    Body::Cosigning {
        reached: round.reached(),
        size: round.size,
        needed: round.needed as u64,
        cosigned: round.cosigned().into_iter().map(str::to_owned).collect(),
        failed: round.failed().iter().map(|(name, why)| format!("{name}: {why}")).collect(),
        contradicted,
    }
}

/// Waits, and tells whether whoever started this process is gone.
fn left(wait: Duration) -> bool {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 };
    match poll(&mut fds, Some(&timeout)) {
        Ok(n) => n > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}
