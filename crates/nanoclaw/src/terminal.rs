//! The terminal: reading without echo, raw mode for `run -t`, its size. Restored on drop.

use crate::failure::{Context, Failure, Result};
use crate::signals;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use std::io::{BufRead, IsTerminal, Read};
use std::sync::{Mutex, PoisonError};

/// Longest secret accepted on standard input, bytes; the vault's own limit is lower.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Signals that end this process while it reads what is not shown.
const ENDING: [i32; 4] = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP, signals::QUIT];

/// The settings of the terminal while a turn changes them, for [`put_back`].
static BEFORE_TURN: Mutex<Option<Termios>> = Mutex::new(None);

/// Settings of the terminal on standard input, put back when dropped.
pub(crate) struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn changed(change: impl FnOnce(&mut Termios)) -> Result<Restore> {
    let before = tcgetattr(std::io::stdin()).context("terminal settings")?;
    let mut wanted = before.clone();
    change(&mut wanted);
    tcsetattr(std::io::stdin(), OptionalActions::Flush, &wanted).context("terminal settings")?;
    Ok(Restore(before))
}

/// Raw mode on standard input: every key goes to the program inside.
pub(crate) fn raw() -> Result<Restore> {
    changed(Termios::make_raw)
}

/// While this lives, Ctrl-D is a character that ends a line, like any other typed ahead: the prompt
/// finds it in its place. As an end of input it would be lost when the prompt takes over.
pub(crate) struct EndAsKey(());

impl EndAsKey {
    /// `None` where there is no terminal.
    pub(crate) fn here() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut during = before.clone();
        let end = before.special_codes[SpecialCodeIndex::VEOF];
        during.special_codes[SpecialCodeIndex::VEOL] = end;
        // _POSIX_VDISABLE
        during.special_codes[SpecialCodeIndex::VEOF] = 0;
        *BEFORE_TURN.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let this = Self(());
        tcsetattr(std::io::stdin(), OptionalActions::Now, &during).ok()?;
        Some(this)
    }
}

impl Drop for EndAsKey {
    fn drop(&mut self) {
        put_back();
    }
}

/// Puts back what [`EndAsKey`] changed, if it is changed; also for whoever ends the process.
pub(crate) fn put_back() {
    let before = BEFORE_TURN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // What was typed ahead stays. The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

/// A signal that ends the process gives the echo back first: not every shell does.
fn restored_by_signals() -> Result<()> {
    let before = tcgetattr(std::io::stdin()).context("terminal settings")?;
    signals::watch(&ENDING, move |kind| {
        drop(Restore(before.clone()));
        crate::ui::out("\n");
        crate::ui::flush();
        std::process::exit(128 + kind);
    })
}

/// A secret from the terminal (asked for, not shown) or from standard input.
pub(crate) fn read_secret(prompt: &str) -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let mut bytes = Vec::new();
        let mut limited = stdin.lock().take(SECRET_BYTES_MAX + 1);
        limited.read_to_end(&mut bytes).context("standard input")?;
        if bytes.len() as u64 > SECRET_BYTES_MAX {
            return Err(Failure::usage("the secret on standard input is longer than 64 KiB"));
        }
        return Ok(bytes);
    }
    restored_by_signals()?;
    crate::ui::out(prompt);
    crate::ui::flush();
    let restore = changed(|t| t.local_modes.remove(LocalModes::ECHO))?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    drop(restore);
    crate::ui::out("\n");
    read.context("the terminal")?;
    Ok(line.into_bytes())
}
