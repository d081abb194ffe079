//! What reaches whoever waits for an answer: the turn, the gateway, signals.

use crate::failure::Result;
use crate::signals;
use crate::ui::{self, Paint};
use crate::watch::Watch;
use model::SessionId;
use orchestrator::{Engine, Progress};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// What the screen hears.
pub(super) enum Heard {
    /// Something happened.
    Progress(Progress),
    /// A signal came.
    Signal(i32),
}

/// What the gateway says stands among the events of a turn while one is followed; when it is gone,
/// the running turn is over.
pub(super) fn heed(
    watch: &Arc<Watch>,
    engine: &Arc<Engine>,
    current: &Arc<Mutex<Option<SessionId>>>,
    told: SyncSender<Heard>,
) {
    watch.attend(false);
    watch.say_by(move |text| {
        if told.try_send(Heard::Progress(Progress::Notice(text.to_owned()))).is_err() {
            ui::note(Paint::auto().dim(&ui::harmless(text)));
        }
    });
    let (engine, current) = (Arc::downgrade(engine), Arc::clone(current));
    watch.when_gone(move || {
        let session = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(engine), Some(session)) = (engine.upgrade(), session) {
            engine.cancel(&session);
        }
    });
}

/// In a conversation Ctrl-C stops the turn, and what ends the process ends it at once. With one
/// message (`once`) each signal goes to whoever waits for its answer, who takes it back.
pub(super) fn watch_signals(
    engine: &Arc<Engine>,
    current: &Arc<Mutex<Option<SessionId>>>,
    tell: SyncSender<Heard>,
    once: bool,
) -> Result<()> {
    let engine = Arc::clone(engine);
    let current = Arc::clone(current);
    let kinds = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP];
    signals::watch(&kinds, move |kind| {
        if once {
            // Nobody waits any more once the answer is there.
            if tell.send(Heard::Signal(kind)).is_err() {
                std::process::exit(128 + kind);
            }
            return;
        }
        let session = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = session {
            engine.cancel(&session);
        }
        // Nobody waits for it at the prompt, where the key is read as a key.
        drop(tell.try_send(Heard::Signal(kind)));
        if kind != signals::INTERRUPT {
            std::process::exit(128 + kind);
        }
    })
}
