//! The vault's private key in the desktop's keyring: the Secret Service, asked with libsecret's
//! own program `secret-tool`, so that no D-Bus is spoken in the process that holds the secrets.
//!
//! ```text
//! key line ─ standard input ─► secret-tool store        secret-tool lookup ─ pipe ─► key line
//! ```
//!
//! Invariants:
//! 1. The key goes through pipes only: never in arguments, environment or a file.
//! 2. The program is one of the system's, found in fixed places, and gets a bare environment.
//! 3. Whatever it does takes a bounded time and gives a bounded answer.

use super::VaultError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Where distributions put it.
const PROGRAMS: [&str; 3] = [
    "/usr/bin/secret-tool",
    "/usr/local/bin/secret-tool",
    "/run/current-system/sw/bin/secret-tool",
];
/// What the program needs to find the session's bus.
pub const VARIABLES: [&str; 3] = ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "HOME"];
/// The keyring may have to ask a person for its password.
const TIME: Duration = Duration::from_secs(90);
/// A key is one short line.
const ANSWER_BYTES_MAX: usize = 256;
/// Between two looks at a program that has closed its output and not ended.
const TICK: Duration = Duration::from_millis(10);

fn failed(why: impl Into<String>) -> VaultError {
    VaultError::Keyring { why: why.into() }
}

/// The key line that belongs to a public key.
pub(super) fn lookup(public: &str) -> Result<Zeroizing<String>, VaultError> {
    let (status, line) = run(&["lookup", "service", "nanoclaw", "vault", public], b"")?;
    if !status.success() || line.is_empty() {
        return Err(failed("it has no key of this vault, or was not unlocked"));
    }
    Ok(line)
}

/// Stores a key line, and makes sure that it can be had back.
pub(super) fn store(public: &str, line: &str) -> Result<(), VaultError> {
    let label = "--label=NanoClaw: key of a vault";
    let args = ["store", label, "service", "nanoclaw", "vault", public];
    let (status, _) = run(&args, line.as_bytes())?;
    if !status.success() {
        return Err(failed("it did not take the key"));
    }
    if lookup(public)?.as_str() != line {
        return Err(failed("it gave back another key than it was given"));
    }
    Ok(())
}

fn run(args: &[&str], input: &[u8]) -> Result<(ExitStatus, Zeroizing<String>), VaultError> {
    let program = PROGRAMS.into_iter().find(|p| Path::new(p).is_file());
    let program = program.ok_or_else(|| failed("the program secret-tool is not installed"))?;
    let kept = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(format!("{program}: {e}")))?;
    let talked = talk(&mut child, input);
    if talked.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
    talked.map_err(|e| failed(format!("{program}: {e}")))
}

fn talk(child: &mut Child, input: &[u8]) -> io::Result<(ExitStatus, Zeroizing<String>)> {
    let until = Instant::now() + TIME;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
    if let Some(mut stdin) = child.stdin.take() {
        // Far less than a pipe holds, so this does not wait.
        stdin.write_all(input)?;
    }
    let mut line = Zeroizing::new(Vec::with_capacity(2 * ANSWER_BYTES_MAX));
    if let Some(mut stdout) = child.stdout.take() {
        let mut piece = Zeroizing::new([0_u8; ANSWER_BYTES_MAX]);
        loop {
            let left = until.checked_duration_since(Instant::now()).ok_or_else(late)?;
            let wait = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 0 };
            if poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&wait))? == 0 {
                return Err(late());
            }
            let n = stdout.read(&mut piece[..])?;
            if n == 0 {
                break;
            }
            if line.len() + n > ANSWER_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
            }
            line.extend_from_slice(&piece[..n]);
        }
    }
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= until => return Err(late()),
            None => std::thread::sleep(TICK),
        }
    };
    let text = std::str::from_utf8(&line).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut kept = Zeroizing::new(String::with_capacity(ANSWER_BYTES_MAX));
    kept.push_str(text.trim_end());
    Ok((status, kept))
}
