//! Asking the program: one process a question, bounded in time and in what is read of it.
//!
//! Invariants:
//! 1. Arguments are passed as they are, never through a shell.
//! 2. A process that takes too long or says too much is ended, and waited for.
//! 3. What it says to people is shown without control characters, and cut.

use crate::error::{Error, ErrorKind};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// What the program is called; looked for in `PATH`.
pub const PROGRAM: &str = "container";
/// Longest answer, bytes: an account of one container takes some thousand.
pub const ANSWER_MAX: usize = 1 << 20;
/// Most that is read of a complaint, bytes, and shown of it, characters.
const COMPLAINT_MAX: usize = 4 << 10;
const COMPLAINT_SHOWN: usize = 300;
/// Between two looks whether a process that has closed its output has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// What the program may know of our environment: where it finds its service and its state.
const PASSED: [&str; 6] = ["HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "CONTAINER_APP_ROOT"];

/// Where the program is, and how long it may take to answer.
#[derive(Debug, Clone)]
pub struct Cli {
    program: PathBuf,
    patience: Duration,
}

impl Cli {
    /// The program at a path, or of this name in `PATH`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, patience: Duration) -> Self {
        Self { program: program.into(), patience }
    }

    /// Where it is.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The program with these arguments, not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear();
        command.envs(PASSED.iter().filter_map(|n| Some((n, std::env::var_os(n)?))));
        command
    }

    /// Asks, and returns what it prints.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time, prints too much, or says no.
    pub fn ask(&self, arguments: &[String]) -> Result<Vec<u8>, Error> {
        let until = Instant::now() + self.patience;
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| self.missing(&e))?;
        let answered = self.attend(&mut child, arguments, until);
        if answered.is_err() {
            // One that has ended already is only reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
        answered
    }

    fn attend(
        &self,
        child: &mut Child,
        arguments: &[String],
        until: Instant,
    ) -> Result<Vec<u8>, Error> {
        let what = || words(arguments);
        let slow = || {
            let cause = format!("`{}` took over {} s", what(), self.patience.as_secs_f32());
            Error::new(ErrorKind::TimeOut, cause, "look at `container system logs`")
        };
        let broken = |e: std::io::Error| {
            let cause = format!("`{}` cannot be heard: {e}", what());
            Error::new(ErrorKind::Answer, cause, "try again when the machine is less loaded")
        };
        let answer = collect(child.stdout.take(), ANSWER_MAX).map_err(broken)?;
        let complaint = collect(child.stderr.take(), COMPLAINT_MAX).map_err(broken)?;
        let answer = match answer.recv_timeout(left(until)) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => return Err(slow()),
            Err(RecvTimeoutError::Disconnected) => Vec::new(),
        };
        if answer.len() > ANSWER_MAX {
            let cause = format!("`{}` printed over {ANSWER_MAX} bytes", what());
            return Err(Error::new(ErrorKind::Answer, cause, "look at what it prints by itself"));
        }
        let status = ended(child, until).map_err(broken)?.ok_or_else(slow)?;
        if status.success() {
            return Ok(answer);
        }
        let complaint = complaint.recv_timeout(left(until)).unwrap_or_default();
        let cause = format!("`{}` failed ({status}): {}", what(), harmless(&complaint));
        Err(Error::new(ErrorKind::Refused, cause, "do what it says, or run it by hand"))
    }

    fn missing(&self, e: &std::io::Error) -> Error {
        let cause = format!("{} cannot be started: {e}", self.program.display());
        let remedy = "install Apple's container 1.1.0 or later (macOS 26 on Apple silicon)";
        Error::new(ErrorKind::Missing, cause, remedy)
    }
}

/// What it was asked, short: the options of a container are long.
fn words(arguments: &[String]) -> String {
    let first: Vec<&str> = arguments.iter().take(2).map(String::as_str).collect();
    format!("{PROGRAM} {}", first.join(" "))
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// What comes out, one byte more than `max` at most: that tells that there was more. The reader
/// ends then, and whoever writes on is ended by the closed pipe.
fn collect(
    stream: Option<impl Read + Send + 'static>,
    max: usize,
) -> std::io::Result<Receiver<Vec<u8>>> {
    let (tell, told) = sync_channel(1);
    let Some(stream) = stream else { return Ok(told) };
    std::thread::Builder::new().name("container-cli".into()).spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error counts; what is missing is not understood then.
        let _ = stream.take(max as u64 + 1).read_to_end(&mut bytes);
        // Nobody waits any more for one that took too long.
        let _ = tell.send(bytes);
    })?;
    Ok(told)
}

fn ended(child: &mut Child, until: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if left(until).is_zero() {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Text of another program, fit to be shown.
fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(COMPLAINT_SHOWN).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str, patience: Duration) -> Result<Vec<u8>, Error> {
        Cli::new("/bin/sh", patience).ask(&["-c".to_owned(), script.to_owned()])
    }

    const ENOUGH: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_what_it_prints_and_a_failure_is_what_it_complains() {
        assert_eq!(shell("printf '[1]'", ENOUGH).unwrap(), b"[1]");
        let error = shell("printf 'no \\033[2J such' >&2; exit 3", ENOUGH).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.cause.contains("such") && !error.cause.contains('\u{1b}'), "{error}");
        let missing = Cli::new("/nowhere/container", ENOUGH).ask(&[]).unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Missing);
        assert!(missing.remedy.contains("macOS"), "{missing}");
    }

    #[test]
    fn what_hangs_or_floods_is_ended_in_time() {
        let begun = Instant::now();
        let short = Duration::from_millis(300);
        for script in ["exec sleep 30", "exec >&-; exec sleep 30", "sleep 30 & wait"] {
            assert_eq!(shell(script, short).unwrap_err().kind, ErrorKind::TimeOut, "{script}");
        }
        let flood = shell("exec cat /dev/zero", ENOUGH).unwrap_err();
        assert_eq!(flood.kind, ErrorKind::Answer);
        let noise = shell("cat /dev/zero >&2; exit 1", ENOUGH).unwrap_err();
        assert_eq!(noise.kind, ErrorKind::Refused);
        assert!(noise.cause.len() < 1_000, "{noise}");
        assert!(begun.elapsed() < ENOUGH, "{:?}", begun.elapsed());
    }

    #[test]
    fn it_learns_little_of_our_environment() {
        let all = String::from_utf8(shell("env", ENOUGH).unwrap()).unwrap();
        let names = all.lines().filter_map(|l| l.split_once('=')).map(|(n, _)| n);
        // The shell sets some of its own.
        let odd: Vec<&str> =
            names.filter(|n| !PASSED.contains(n) && !["PWD", "SHLVL", "_"].contains(n)).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
}
