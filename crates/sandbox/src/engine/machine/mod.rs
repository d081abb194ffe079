//! A virtual machine of Apple's `container`, and the sandbox that our own program makes in it.
//!
//! ```text
//! spec ─► apple::Container ─► create, inspect ─► start --attach ─► [ guest.rs: Spawner, sandbox ]
//!                                    streams of the program │ line: requests ─► ◄─ report, end
//! ```
//!
//! What the spawner is to a native sandbox, `guest.rs` is here, in a machine with a kernel of its
//! own: it plans with that kernel's facts, measures, witnesses and answers in the spawner's own
//! words, which travel over one relayed socket.
//!
//! Invariants:
//! 1. The guest is believed for what is in it, for nothing outside shows that; before anything
//!    foreign runs there it is our program, of our version, shown read-only.
//! 2. One call is taken, from the first who calls; then nobody listens there any more.
//! 3. Whatever fails, the machine made so far is removed (`Body` on drop).
//! 4. When the line ends the guest ends, and the machine with it.

mod live;

use super::folder::{self, HOME_LABEL, Line, SESSION_LABEL, STARTER_LABEL};
use super::{Shop, prepare::timespec};
use crate::client::Operations;
use crate::error::{SpecErrorKind, StartError, StartErrorKind as Kind};
use crate::guest::{BOX, Greeting};
use crate::report::Report;
use crate::wire::{Answer, Request};
use crate::{Prepared, Stdio};
use apple::{Apple, Cli, Container, ErrorKind, Occasion};
use live::{Body, Link, Waiting};
use model::{Backend, SandboxSpec, WallState};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long one question to the program may take: a machine of an image that is new to it is
/// unpacked first.
const PATIENCE: Duration = Duration::from_secs(30);
/// A machine boots within seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked at whether there is still anybody to call.
const LOOK: Duration = Duration::from_millis(200);
/// The guest's own limit is shorter, so this one only speaks when the guest hangs.
const WORK_TIMEOUT: Duration = Duration::from_secs(45);

/// Where Apple's program is, and what its machines run first.
#[derive(Debug, Clone)]
pub struct AppleOptions {
    /// The program, by path or by name.
    pub program: PathBuf,
    /// A static Linux binary of this product and version, for the machine's processor.
    pub guest: PathBuf,
    /// How long one question to the program may take.
    pub patience: Duration,
}

impl AppleOptions {
    /// With this program for the guest.
    #[must_use]
    pub fn of(guest: PathBuf) -> Self {
        Self { program: apple::PROGRAM.into(), guest, patience: PATIENCE }
    }

    /// With what this build carries for the guest, written into `folder`; `None` when it carries
    /// nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn carried(folder: &Path) -> io::Result<Option<Self>> {
        const EVERYBODY_EXECUTES: u32 = 0o755;
        let Some(bytes) = apple::guest_program() else { return Ok(None) };
        let (path, draft) = (folder.join("guest"), folder.join("guest.new"));
        std::fs::write(&draft, bytes)?;
        let mode = std::fs::Permissions::from_mode(EVERYBODY_EXECUTES);
        std::fs::set_permissions(&draft, mode)?;
        std::fs::rename(&draft, &path)?;
        Ok(Some(Self::of(path)))
    }

    /// Those that were given, or why there are none.
    pub(super) fn found(given: Option<&Self>) -> Result<&Self, StartError> {
        given.ok_or_else(|| {
            StartError::new(
                Kind::Spec(SpecErrorKind::Backend),
                "Apple's container exists on macOS only, and no program of it was named",
                "write `backend = \"native\"`, \"docker\" or \"podman\"",
            )
        })
    }
}

fn engine_error(cause: impl Into<String>, remedy: &str) -> StartError {
    StartError::new(Kind::Engine, cause, remedy)
}

/// What went wrong with Apple's program, as the start of a sandbox has it.
fn told(e: apple::Error) -> StartError {
    let kind = match e.kind {
        ErrorKind::Spec => Kind::Spec(SpecErrorKind::Backend),
        ErrorKind::TimeOut => Kind::TimeOut,
        ErrorKind::Verification => Kind::Verification,
        _ => Kind::Engine,
    };
    StartError::new(kind, e.cause, e.remedy)
}

const AGAIN: &str = "try again; if it repeats, look at `container logs --boot`";

/// Builds and measures.
pub(super) fn prepare(
    shop: &Arc<Shop>,
    options: &AppleOptions,
    spec: &SandboxSpec,
    stdio: Stdio,
) -> Result<Prepared, StartError> {
    crate::client::bounded(spec)?;
    crate::check(spec, &shop.facts)?;
    let cli = Cli::new(options.program.clone(), options.patience);
    let apple = Apple::open(cli).map_err(told)?;
    sweep(&apple, shop);
    let number = shop.made.fetch_add(1, Ordering::Relaxed) + 1;
    let (container, line) = ask(shop, options, spec, (number, &stdio))?;
    apple.has_image(&container.image).map_err(told)?;
    apple.create(&container).map_err(told)?;
    let title = apple.title();
    let mut body = Body::new(Arc::clone(shop), apple, container.name, number);
    body.start(stdio)?;
    let stream = called(&body, line)?;
    let (report, link) = work(stream, spec)?;
    let report = with_machine(report, &title);
    // Last, for what is searched for may appear at any time.
    crate::sockets::refuse(spec)?;
    let (sender, receiver) = spec.witness.then(mpsc::channel).unzip();
    let waiting = Waiting::new(body, link, sender);
    let operations = receiver.map(|from| Operations::new(from, waiting.server()));
    Ok(Prepared::new(report, operations, Box::new(waiting)))
}

/// What is asked for, and the socket to be called at.
fn ask(
    shop: &Shop,
    options: &AppleOptions,
    spec: &SandboxSpec,
    (number, stdio): (u64, &Stdio),
) -> Result<(Container, Line), StartError> {
    let line = shop.folder.relayed(number).map_err(|e| {
        let cause = format!("the line to the guest cannot be made: {e}");
        engine_error(cause, "free some room on the disk")
    })?;
    let labels = BTreeMap::from([
        (HOME_LABEL.to_owned(), home(shop)),
        (SESSION_LABEL.to_owned(), spec.session.to_string()),
        (STARTER_LABEL.to_owned(), shop.folder.starter().to_owned()),
    ]);
    let occasion = Occasion {
        name: format!("nanoclaw-{}-{number}", std::process::id()),
        line: line.path.clone(),
        program: options.guest.clone(),
        labels,
        terminal: rustix::termios::isatty(&stdio.stdin),
    };
    let container = Container::of(spec, &occasion).map_err(told)?;
    Ok((container, line))
}

/// The value of the label; the program cannot take every character in one.
fn home(shop: &Shop) -> String {
    shop.folder.home().replace('%', "%25").replace('=', "%3D")
}

/// Removes machines of this home whose starter is gone. What cannot be removed now is found again
/// by the next start.
fn sweep(apple: &Apple, shop: &Shop) {
    let found = apple.orphans((HOME_LABEL, home(shop).as_str()), STARTER_LABEL, folder::alive);
    for name in found.unwrap_or_default() {
        let _ = apple.remove(&name);
    }
}

/// Waits for the guest to call. Whoever comes after the first finds nobody.
fn called(body: &Body, line: Line) -> Result<UnixStream, StartError> {
    let until = Instant::now() + CALL_TIMEOUT;
    while Instant::now() < until {
        let mut fds = [PollFd::new(&line.socket, PollFlags::IN)];
        if poll(&mut fds, Some(&timespec(LOOK))).is_ok_and(|n| n > 0)
            && let Ok(call) = accept_with(&line.socket, SocketFlags::CLOEXEC)
        {
            return Ok(UnixStream::from(call));
        }
        if let Some(status) = body.streams_ended() {
            let cause = format!("the virtual machine ended before it called ({status})");
            return Err(engine_error(cause, AGAIN));
        }
    }
    let cause = format!("the virtual machine did not call within {} s", CALL_TIMEOUT.as_secs());
    Err(StartError::new(Kind::TimeOut, cause, AGAIN))
}

/// Gives the guest its work; what it measured, and the line to it.
fn work(stream: UnixStream, spec: &SandboxSpec) -> Result<(Report, Link), StartError> {
    let lost = |e: io::Error| engine_error(format!("the guest was lost: {e}"), AGAIN);
    stream.set_read_timeout(Some(WORK_TIMEOUT)).map_err(lost)?;
    let mut link = Link::new(stream).map_err(lost)?;
    let Greeting { version } = link.hear::<Greeting>().map_err(lost)?.ok_or_else(ended_early)?;
    if version != env!("CARGO_PKG_VERSION") {
        let own = env!("CARGO_PKG_VERSION");
        let version: String = version.chars().filter(|c| !c.is_control()).take(40).collect();
        let cause = format!("the guest's program is version {version}, and this one is {own}");
        return Err(engine_error(cause, "install nanoclaw again: both come in one build"));
    }
    let inner = SandboxSpec { backend: Backend::Native, ..spec.clone() };
    // What may hold keys is looked for in the guest, which sees the granted folders at their paths.
    let masks = Vec::new();
    link.tell(&Request::Prepare { id: BOX, spec: Box::new(inner), masks }).map_err(lost)?;
    match link.hear::<Answer>().map_err(lost)?.ok_or_else(ended_early)? {
        Answer::Prepared { report, .. } => {
            link.forget_timeout().map_err(lost)?;
            Ok((*report, link))
        }
        Answer::Failed { error, .. } => Err(error),
        _ => Err(engine_error("the guest answered something else", "report this defect")),
    }
}

fn ended_early() -> StartError {
    engine_error("the guest ended early", AGAIN)
}

/// The report as the guest gave it, with whose word it is.
fn with_machine(mut report: Report, title: &str) -> Report {
    let state = format!(
        "one of {title}, with a kernel of its own, without a network; all walls here are measured \
         inside it, and nothing outside shows them"
    );
    report.walls.insert(0, WallState { wall: "virtual machine".to_owned(), state });
    report
}
