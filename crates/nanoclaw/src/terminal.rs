//! The terminal: reading without echo, raw mode for `run -t`, its size. Restored on drop.

use crate::failure::{Context, Failure, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{BufRead, IsTerminal, Read};

/// Longest secret accepted on standard input, bytes; the vault's own limit is lower.
const SECRET_BYTES_MAX: u64 = 64 << 10;

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
