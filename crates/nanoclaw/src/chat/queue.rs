//! Messages that wait for an answer: seeing them, and taking them back on record.

use super::{CHANNEL, Chat, Slot};
use crate::args::ChatArgs;
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::ui::{self, brief};
use crate::{product, world};
use audit::story::utc;
use model::{AgentName, RecordSink};
use orchestrator::{AgentHost, AgentLink, Engine, FailureKind, SessionSeed};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{MessageState, Owner, Store, StoredMessage};

/// Characters of a waiting message shown on one line.
const BRIEF: usize = 80;

/// Starts nothing: who lists or drops does not work.
struct Nobody;

impl AgentHost for Nobody {
    fn start(
        &self,
        _: &SessionSeed,
    ) -> std::result::Result<Box<dyn AgentLink>, orchestrator::Failure> {
        let sentence = "No agent is started here.".to_owned();
        Err(orchestrator::Failure { kind: FailureKind::Lasting, sentence })
    }
}

/// `chat AGENT --queued` and `--drop-queued`.
pub(super) fn run(home: &Home, agent: &AgentName, args: &ChatArgs) -> Result<u8> {
    let owner = Owner::this_process().context("this process")?;
    let store = Store::open(&home.store(), owner).map_err(Failure::other)?;
    let recorder = Arc::new(product::recorder(home, "chat")?);
    let engine = Engine::new(
        store,
        Arc::clone(&recorder) as Arc<dyn RecordSink>,
        Arc::new(Nobody),
        Arc::new(world::Real),
        Box::new(|_, _| {}),
    );
    engine.recover().map_err(Failure::other)?;
    let waiting = engine.waiting(CHANNEL, agent).map_err(Failure::other)?;
    if args.queued {
        list(&waiting, args.json);
    } else {
        drop_free(home, &engine, agent, &waiting, args.json)?;
    }
    drop(engine);
    recorder.close();
    Ok(0)
}

fn list(waiting: &[StoredMessage], as_json: bool) {
    if waiting.is_empty() && !as_json {
        ui::note("No message waits for an answer.");
    }
    for (n, message) in waiting.iter().enumerate() {
        if as_json {
            ui::json_line(&as_value(message).to_string());
        } else {
            ui::line(line(n + 1, message));
        }
    }
}

fn as_value(message: &StoredMessage) -> serde_json::Value {
    let running = message.state == MessageState::Running;
    json!({"message": message.id, "session": message.session, "chat": message.chat,
        "received_ms": message.received_ms, "attempts": message.attempts, "running": running,
        "text": message.text})
}

fn line(n: usize, message: &StoredMessage) -> String {
    let state = match (message.state, message.attempts) {
        (MessageState::Running, _) => "being worked on".to_owned(),
        (_, 0) => "waits".to_owned(),
        (_, tries) => format!("waits, tried {tries}x"),
    };
    let text = brief(&message.text, BRIEF);
    format!("{n}  {}  {}  {state}: {text}", utc(message.received_ms), message.id)
}

/// Drops what no other terminal holds: whose conversation is open elsewhere is dropped there.
fn drop_free(
    home: &Home,
    engine: &Engine,
    agent: &AgentName,
    waiting: &[StoredMessage],
    as_json: bool,
) -> Result<()> {
    let mut slots: BTreeMap<&str, Option<Slot>> = BTreeMap::new();
    let (mut dropped, mut held) = (0, 0);
    for message in waiting {
        let chat = message.chat.as_str();
        if !slots.contains_key(chat) {
            slots.insert(chat, Slot::take(home, agent, chat.to_owned())?);
        }
        if slots.get(chat).is_none_or(Option::is_none) {
            held += 1;
        } else if engine.withdraw(message, agent, "dropped by its owner").map_err(refused)? {
            dropped += 1;
            if as_json {
                ui::json_line(&json!({"dropped": message.id}).to_string());
            } else {
                ui::line(format!("dropped: {}", brief(&message.text, BRIEF)));
            }
        }
    }
    if dropped == 0 && held == 0 {
        ui::note("No message waits for an answer.");
    }
    if held > 0 {
        ui::note(format!("{held} kept: another terminal holds that conversation; use /drop there"));
    }
    Ok(())
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Audit, format!("nothing more was dropped, for {error}"))
}

impl Chat {
    /// What waits in this terminal's conversation.
    fn waiting(&self) -> Result<Vec<StoredMessage>> {
        let (session, _) = self.session()?;
        let mut all = self.engine.waiting(CHANNEL, &self.agent).map_err(Failure::other)?;
        all.retain(|message| message.session.as_ref() == Some(&session));
        Ok(all)
    }

    /// `/queue`.
    pub(super) fn list_waiting(&self) -> Result<()> {
        let waiting = self.waiting()?;
        if waiting.is_empty() {
            self.screen.notice("No message waits for an answer.");
        }
        for (n, message) in waiting.iter().enumerate() {
            self.screen.notice(&line(n + 1, message));
        }
        Ok(())
    }

    /// Says what waits from before, if anything does.
    pub(super) fn tell_waiting(&self) -> Result<bool> {
        let waiting = self.waiting()?;
        if !waiting.is_empty() {
            self.screen
                .notice("From before, answered with your next message (/drop takes it back):");
            self.list_waiting()?;
        }
        Ok(!waiting.is_empty())
    }

    /// `/drop` and `/drop N`.
    pub(super) fn drop_waiting(&self, which: &str) -> Result<()> {
        if which.is_empty() {
            if self.drop_all("dropped by its owner")? == 0 {
                self.screen.notice("No message waits for an answer.");
            }
            return Ok(());
        }
        let waiting = self.waiting()?;
        let number = which.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        match number.and_then(|n| waiting.get(n)) {
            Some(message) => self.drop_one(message, "dropped by its owner").map(drop),
            None => {
                self.screen.notice(&format!("{which} is not in the queue; /queue numbers it."));
                Ok(())
            }
        }
    }

    /// Takes back everything that waits here; returns how many.
    pub(super) fn drop_all(&self, reason: &str) -> Result<usize> {
        let mut dropped = 0;
        for message in self.waiting()? {
            dropped += usize::from(self.drop_one(&message, reason)?);
        }
        Ok(dropped)
    }

    fn drop_one(&self, message: &StoredMessage, reason: &str) -> Result<bool> {
        let taken = self.engine.withdraw(message, &self.agent, reason).map_err(refused)?;
        if taken {
            self.screen.notice(&format!("dropped: {}", brief(&message.text, BRIEF)));
        }
        Ok(taken)
    }
}
