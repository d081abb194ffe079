//! A turn, followed: what happens is shown, and while its message waits for the next attempt, what
//! is typed is obeyed.
//!
//! 1. During an attempt nothing typed is read: it is for the prompt, or the answer to a question.
//! 2. Ctrl-C takes back the message that is worked on or waited for; `/quit` keeps it.

use super::heard::Heard;
use super::{Attended, Chat, END};
use crate::failure::{Context, Failure, Result};
use crate::terminal::EndAsKey;
use crate::ui::brief;
use crate::watch;
use model::MessageId;
use orchestrator::Progress;
use rustix::event::Timespec;
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use store::MessageState;

/// How often a wait looks whether something was typed.
const LOOK: Duration = Duration::from_millis(100);
/// Characters of a message that was taken back, as shown.
const BRIEF: usize = 80;

impl Chat {
    /// Shows what happens until the turn on `message` has ended, however often it is tried; `false`
    /// to leave the chat.
    pub(super) fn follow(&mut self, message: &MessageId) -> Result<bool> {
        // What was typed ahead may have been taken back since.
        if self.withdrawn(message)? {
            return Ok(true);
        }
        let host = std::sync::Arc::clone(&self.host);
        let _attended = Attended::to(&host.product.watch);
        let _keys = EndAsKey::here();
        self.pressed.store(false, Ordering::SeqCst);
        self.screen.begin();
        let mut waits = None;
        loop {
            let Some(events) = &self.events else { return Ok(true) };
            match events.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::other("the engine is gone"));
                }
                Ok(Heard::Signal(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Heard::Progress(progress)) => {
                    if self.heard(&progress, message, &mut waits) {
                        return Ok(true);
                    }
                }
            }
            if let Some(waited) = &waits {
                if !self.meanwhile(waited)? {
                    self.screen.left_in_queue();
                    return Ok(false);
                }
                if self.withdrawn(message)? {
                    return Ok(true);
                }
            }
        }
    }

    /// One event; `true` when it was the last one of the turn on `message`. Which message waits for
    /// its next attempt is noted in `waits`.
    fn heard(
        &mut self,
        progress: &Progress,
        message: &MessageId,
        waits: &mut Option<MessageId>,
    ) -> bool {
        let outcome = self.shown(progress, message);
        match progress {
            Progress::Halted(_) => return true,
            Progress::TurnStarted { .. } => *waits = None,
            Progress::TurnFinished { message: of, .. } => {
                let again = outcome.as_ref().is_some_and(|(_, what)| what == "requeued");
                *waits = again.then(|| of.clone());
                if !again {
                    // It stopped this one, and is not for the next.
                    self.pressed.store(false, Ordering::SeqCst);
                }
            }
            _ => {}
        }
        outcome.is_some_and(|(own, _)| own) && waits.is_none()
    }

    /// Does what a person wants while `waited` waits for its next attempt; `false` to leave.
    fn meanwhile(&mut self, waited: &MessageId) -> Result<bool> {
        if self.pressed.swap(false, Ordering::SeqCst) {
            self.give_up(waited)?;
        }
        if !std::io::stdin().is_terminal() {
            return Ok(true);
        }
        while let Some(bytes) = watch::typed_line(&Timespec::default()).context("the terminal")? {
            if bytes.is_empty() {
                return Ok(false);
            }
            self.begun.push_str(&String::from_utf8_lossy(&bytes));
            while let Some(at) = self.begun.find(['\n', '\r', END]) {
                let ends = self.begun[at..].starts_with(END);
                let line: String = self.begun.drain(..=at).collect();
                if !self.obey_meanwhile(line[..at].trim())? || ends {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn obey_meanwhile(&mut self, line: &str) -> Result<bool> {
        if line.is_empty() {
            return Ok(true);
        }
        if line.starts_with('/') {
            return self.obey(line);
        }
        let message = self.submit(line)?;
        self.ahead.push_back(message);
        self.screen.notice("It is in the queue, behind what waits.");
        Ok(true)
    }

    fn give_up(&self, waited: &MessageId) -> Result<()> {
        let stored = self.engine.message(waited).map_err(Failure::other)?;
        let taken = self.engine.withdraw(&stored, &self.agent, "interrupted by SIGINT");
        if taken.map_err(|e| Failure::other(format!("the message stays in the queue, for {e}")))? {
            self.screen.stopped(Some(&brief(&stored.text, BRIEF)));
        }
        Ok(())
    }

    fn withdrawn(&self, message: &MessageId) -> Result<bool> {
        let state = self.engine.message(message).map_err(Failure::other)?.state;
        Ok(state == MessageState::Cancelled)
    }

    /// Shows one event; of the end of a turn, whether it was that of `message`, and its outcome.
    pub(super) fn shown(
        &mut self,
        progress: &Progress,
        message: &MessageId,
    ) -> Option<(bool, String)> {
        if let Progress::TurnStarted { message: of, .. } = progress
            && of != message
        {
            let text = self.engine.message(of).map(|m| m.text).unwrap_or_default();
            self.screen.earlier(of, &text);
        }
        self.screen.show(progress, message);
        let Progress::TurnFinished { message: of, outcome, tokens, .. } = progress else {
            return None;
        };
        self.tokens = (self.tokens.0 + tokens.0, self.tokens.1 + tokens.1);
        Some((of == message, outcome.clone()))
    }
}
