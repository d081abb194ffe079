//! A running program's bytes between its pipes and the gateway's socket, and its end.

use super::label;
use super::register::Place;
use crate::crosscheck;
use crate::manifests::Files;
use crate::operations::Reports;
use crate::scribe::{Scribe, inline};
use crate::words::Words;
use gateway::control::Door;
use model::{Durability, TurnId};
use sandbox::{Ended, Pipes, Sandbox};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

/// How long a program may take to leave once its input or output has ended.
const LEAVE_GRACE: Duration = Duration::from_millis(500);
/// Copied at once; as much as a pipe holds.
const PIECE: usize = 64 << 10;
/// As much of a program's last words as helps.
const WORDS_CHARS_MAX: usize = 300;

/// A program that runs, and all that ends with it.
pub(super) struct Running {
    pub(super) sandbox: Arc<Sandbox>,
    /// What the kernel reports of it.
    pub(super) reports: Reports,
    /// Its own folders, and those it may write.
    pub(super) files: Files,
    /// This side's end of the socket pair.
    pub(super) socket: UnixStream,
    pub(super) scribe: Scribe,
    pub(super) server: String,
    pub(super) turn: Option<TurnId>,
    /// Tells the gateway how it ended.
    pub(super) stopped: Box<dyn FnOnce(String) + Send>,
    /// Held for as long as it runs.
    pub(super) door: Option<Door>,
    /// Given back last.
    pub(super) place: Place,
}

impl Running {
    /// Starts the copying. When a thread cannot be had, the program ends with what is dropped.
    pub(super) fn copy(self, pipes: Pipes) -> io::Result<()> {
        let Pipes { stdin, stdout, stderr } = pipes;
        let words = Words::read(stderr);
        let (from, sandbox) = (self.socket.try_clone()?, Arc::clone(&self.sandbox));
        Builder::new().name("program-input".into()).spawn(move || {
            copy(from, stdin);
            // The gateway wants it no more, or it reads no more.
            leave(&sandbox);
        })?;
        Builder::new().name("program-output".into()).spawn(move || {
            if let Ok(to) = self.socket.try_clone() {
                copy(stdout, to);
            }
            self.end(&words);
        })?;
        Ok(())
    }

    /// It writes no more, or nobody hears it any more.
    fn end(mut self, words: &Words) {
        leave(&self.sandbox);
        let ended = self.sandbox.wait();
        self.reports.finish();
        // Nothing follows that could be withheld; a log that is gone shows its missing tail.
        drop(self.files.end(self.turn.as_ref()));
        let totals = self.door.as_ref().map(|door| crosscheck::settle(door, &ended));
        let Ended { outcome, usage, .. } = ended;
        let outcome_text = inline(&format!("{}: {outcome}", label(&self.server))).to_owned();
        let body = crosscheck::stopped(outcome_text, &usage);
        // Nothing follows that could be withheld; a log that is gone shows its missing tail.
        for body in std::iter::once(body).chain(totals.into_iter().flat_map(|t| t.findings)) {
            drop(self.scribe.write(self.turn.as_ref(), body, Durability::Ordered));
        }
        let said: String = words.whole().trim().chars().rev().take(WORDS_CHARS_MAX).collect();
        let said: String = said.chars().rev().collect();
        (self.stopped)(match said.as_str() {
            "" => outcome.to_string(),
            said => format!("{outcome}; it said: {said}"),
        });
        // Gone already is as good. The thread that copies the input sees this.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.door);
        drop(self.place);
    }
}

/// A spawner that is gone has killed it already.
fn leave(sandbox: &Sandbox) {
    if sandbox.wait_timeout(LEAVE_GRACE).is_none() {
        drop(sandbox.kill());
    }
}

/// Until either side ends. Nothing is gathered: who does not read makes the other wait.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(n) if to.write_all(&piece[..n]).is_ok() => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}
