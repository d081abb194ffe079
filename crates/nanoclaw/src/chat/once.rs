//! `chat -m`: one message, one reply. Interrupted, the message is taken back, so that no later chat
//! answers what nobody waits for any more.

use super::heard::Heard;
use super::{Attended, Chat};
use crate::failure::{Failure, Result};
use crate::signals;
use model::MessageId;
use orchestrator::Progress;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use store::MessageState;

/// How long an interrupted turn may take to end; then the process leaves, and the turn with it.
const LEAVE_GRACE: Duration = Duration::from_millis(1_500);
/// How often a turn that is to stop is told so: the first word may have come before it began.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// How the wait ended.
enum End {
    /// With a turn on the message, by its outcome; or the message was put back.
    Outcome(String),
    /// By a signal; the message is taken back.
    Withdrawn(i32),
}

impl Chat {
    /// One message, one reply; the exit code.
    pub(super) fn once(&mut self, text: &str) -> Result<u8> {
        let (session, created) = self.session()?;
        self.say_scripted();
        self.redeliver()?;
        self.engine.warm(&session, &self.agent, !created);
        let message = self.submit(text)?;
        Ok(match self.await_reply(&message)? {
            End::Outcome(outcome) if outcome == "done" => 0,
            End::Outcome(_) => 1,
            End::Withdrawn(signal) => u8::try_from(128 + signal).unwrap_or(1),
        })
    }

    fn await_reply(&mut self, message: &MessageId) -> Result<End> {
        let gone = || Failure::other("the engine is gone");
        let events = self.events.take().ok_or_else(gone)?;
        let _attended = Attended::to(&self.host.product.watch);
        let mut interrupted = None;
        let end = loop {
            let heard = match interrupted {
                None => events.recv().map_err(|_| gone())?,
                Some(_) => match events.recv_timeout(TELL_AGAIN) {
                    Ok(heard) => heard,
                    Err(RecvTimeoutError::Timeout) => {
                        self.stop_turn();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                },
            };
            match heard {
                Heard::Signal(kind) if interrupted.is_some() => std::process::exit(128 + kind),
                Heard::Signal(kind) => match self.take_back(message, kind)? {
                    // It is over: its end is the next thing to be heard.
                    None => {}
                    Some(MessageState::Running) => interrupted = Some(kind),
                    Some(_) => break End::Withdrawn(kind),
                },
                Heard::Progress(Progress::Halted(why)) => {
                    self.screen.show(&Progress::Halted(why), message);
                    break End::Outcome("halted".into());
                }
                Heard::Progress(progress) => {
                    let Some((own, outcome)) = self.shown(&progress, message) else { continue };
                    match interrupted {
                        Some(kind) if own && outcome != "done" => break End::Withdrawn(kind),
                        _ if own || outcome == "requeued" => break End::Outcome(outcome),
                        _ => {}
                    }
                }
            }
        };
        self.events = Some(events);
        Ok(end)
    }

    /// Takes the message back, says so, and sees to it that this process leaves in time; returns
    /// the state it was in, `None` when it was over.
    fn take_back(&self, message: &MessageId, kind: i32) -> Result<Option<MessageState>> {
        std::thread::spawn(move || {
            std::thread::sleep(LEAVE_GRACE);
            std::process::exit(128 + kind);
        });
        let stored = self.engine.message(message).map_err(Failure::other)?;
        let reason = format!("interrupted by {}", signals::name(kind));
        let taken = self.engine.withdraw(&stored, &self.agent, &reason).map_err(|e| {
            let queued = format!("the message stays in the queue, for {e}");
            Failure::other(queued).remedy(self.how_to_drop())
        })?;
        if !taken {
            return Ok(None);
        }
        self.screen.withdrawn(message, &reason);
        Ok(Some(stored.state))
    }

    fn stop_turn(&self) {
        if let Ok((session, _)) = self.session() {
            self.engine.cancel(&session);
        }
    }

    /// The command that forgets what waits.
    pub(super) fn how_to_drop(&self) -> String {
        format!("`nanoclaw chat {} --drop-queued` takes back what waits", self.agent)
    }
}
