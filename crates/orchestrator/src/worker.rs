//! One session's worker: the executor around [`crate::machine`].
//!
//! Pipeline: wake ─► step ─► actions, each of which may bring the next event ─► sleep.

use crate::engine::{About, Shared, digest};
use crate::machine::{Action, Ended, Event, Phase, Retryable, Session, step};
use crate::port::{AgentLink, Cancel, Failure, FailureKind, Progress, SessionSeed, TurnDone};
use model::{AgentName, Body, Direction, Durability, MessageId, SessionId, TurnId};
use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::{Finish, MessageState, NewReply, Retry, Store, StoreError, StoredMessage};

/// What reaches a sleeping worker.
pub(crate) enum Wake {
    Queued,
    /// A message was taken back; perhaps the one whose retry is waited for.
    Withdrawn,
    Stop(String),
}

type CancelSlot = Arc<Mutex<Option<Box<dyn Cancel>>>>;

/// Set once the worker is to leave; whether what it works on is then put back into the queue.
type Leaving = Arc<OnceLock<bool>>;

/// The engine's end of a worker.
pub(crate) struct WorkerHandle {
    wake: Sender<Wake>,
    cancel: CancelSlot,
    leaving: Leaving,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    pub(crate) fn send(&self, wake: Wake) {
        // A worker that is gone has been stopped; there is nothing to wake.
        drop(self.wake.send(wake));
    }

    pub(crate) fn cancel(&self) {
        if let Some(cancel) = &*self.cancel.lock().unwrap_or_else(PoisonError::into_inner) {
            cancel.cancel();
        }
    }

    /// Cancels the turn, ends the sandbox, waits for both. With `keep` the message of that turn is
    /// put back: nobody said that it should not be answered.
    pub(crate) fn stop(mut self, reason: &str, keep: bool) {
        // Whoever stops consumes the handle, so it is set once.
        let _ = self.leaving.set(keep);
        self.cancel();
        self.send(Wake::Stop(reason.to_owned()));
        if let Some(thread) = self.thread.take() {
            // A panicked worker has nothing left to end; its sandbox died with its link.
            drop(thread.join());
        }
    }
}

/// Starts the worker of a session.
pub(crate) fn start(
    shared: Arc<Shared>,
    session: SessionId,
    agent: AgentName,
    resumed: bool,
) -> WorkerHandle {
    let (wake, woken) = mpsc::channel();
    let cancel: CancelSlot = Arc::default();
    let leaving = Leaving::default();
    let (slot, left) = (Arc::clone(&cancel), Arc::clone(&leaving));
    let thread = std::thread::spawn(move || {
        let machine = Session::NEW;
        let worker = Worker {
            shared,
            session,
            agent,
            resumed,
            machine,
            link: None,
            taken: None,
            done: TurnDone::default(),
            failure: None,
            came_back: true,
            put_back: None,
            cancel: slot,
            leaving: left,
        };
        worker.run(&woken);
    });
    WorkerHandle { wake, cancel, leaving, thread: Some(thread) }
}

/// The message at hand and its turn.
struct Taken {
    message: StoredMessage,
    turn: TurnId,
    started: Instant,
}

struct Worker {
    shared: Arc<Shared>,
    session: SessionId,
    agent: AgentName,
    resumed: bool,
    machine: Session,
    link: Option<Box<dyn AgentLink>>,
    taken: Option<Taken>,
    done: TurnDone,
    failure: Option<Failure>,
    /// Nothing was taken yet: whoever came back is reason enough to try a kept message at once.
    came_back: bool,
    /// The message whose attempt failed here last: how it ended was told.
    put_back: Option<MessageId>,
    cancel: CancelSlot,
    leaving: Leaving,
}

impl Worker {
    fn run(mut self, woken: &Receiver<Wake>) {
        let mut reason = String::from("the engine ended");
        loop {
            let event = match self.sleep(woken) {
                Some(Wake::Queued) => Event::Queued,
                // Looked at in sleep, where it matters.
                Some(Wake::Withdrawn) => continue,
                Some(Wake::Stop(why)) => {
                    reason = why;
                    Event::Stop
                }
                None => Event::Due,
            };
            self.drive(event, &reason);
            if event == Event::Stop {
                return;
            }
        }
    }

    /// Sleeps until woken, or (`None`) until a retry is due.
    fn sleep(&self, woken: &Receiver<Wake>) -> Option<Wake> {
        let gone = || Wake::Stop("the engine ended".into());
        let Phase::Waiting { until_ms, .. } = self.machine.phase else {
            return Some(woken.recv().unwrap_or_else(|_| gone()));
        };
        loop {
            let left = until_ms.saturating_sub(self.shared.world.now_ms());
            match woken.recv_timeout(Duration::from_millis(left)) {
                Ok(Wake::Queued) => {}
                Ok(Wake::Withdrawn) => return None,
                Ok(stop) => return Some(stop),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(gone()),
            }
        }
    }

    fn drive(&mut self, first: Event, reason: &str) {
        let mut events = VecDeque::from([first]);
        while let Some(event) = events.pop_front() {
            let actions = step(&mut self.machine, event, self.shared.world.now_ms());
            for action in actions {
                events.extend(self.act(action, reason));
            }
        }
    }

    fn act(&mut self, action: Action, reason: &str) -> Option<Event> {
        match action {
            Action::Start => return Some(self.start()),
            Action::Take => return Some(self.take()),
            Action::Prompt => return Some(Event::Ended(self.prompt())),
            Action::Finish => self.finish(),
            Action::FinishFailed => self.finish_failed(),
            Action::Requeue { at_ms } => self.requeue(at_ms),
            Action::FailQueue => self.fail_queue(),
            Action::StopLink => {
                if let Some(link) = self.link.take() {
                    link.stop(reason);
                }
            }
        }
        None
    }

    fn about<'a>(&'a self, turn: Option<&'a TurnId>) -> About<'a> {
        About { session: &self.session, agent: &self.agent, turn }
    }

    fn notice(&self, text: String) {
        self.shared.tell(&self.session, Progress::Notice(text));
    }

    fn start(&mut self) -> Event {
        let seed = SessionSeed {
            session: self.session.clone(),
            agent: self.agent.clone(),
            resumed: self.resumed,
        };
        match self.shared.host.start(&seed) {
            Ok(link) => {
                self.link = Some(link);
                self.resumed = true;
                Event::Started(Ok(()))
            }
            Err(failure) => {
                let passing = failure.kind == FailureKind::Passing;
                self.failure = Some(failure);
                Event::Started(Err(Retryable(passing)))
            }
        }
    }

    /// Takes the head of the queue and begins its turn.
    fn take(&mut self) -> Event {
        let now_ms = self.shared.world.now_ms();
        let turn = TurnId::mint(now_ms, self.shared.world.random());
        // Its time to wait belongs to a worker that is gone, and with it whoever would wake it.
        let due_ms = if std::mem::take(&mut self.came_back) { u64::MAX } else { now_ms };
        let mut store = self.shared.store();
        let taken = store.next_queued(&self.session, due_ms).and_then(|next| match next {
            Some(message) => store.start_turn(&turn, &message.id, now_ms).map(|()| Some(message)),
            None => Ok(None),
        });
        drop(store);
        match taken {
            Ok(Some(message)) => {
                let same = self.put_back.as_ref() == Some(&message.id);
                self.taken = Some(Taken { message, turn, started: Instant::now() });
                if same { Event::Taken(true) } else { Event::TakenOther }
            }
            Ok(None) => Event::Taken(false),
            Err(e) => {
                let why = format!("The message is kept but cannot be worked on: {e}");
                self.shared.tell(&self.session, Progress::Halted(why));
                Event::Taken(false)
            }
        }
    }

    fn prompt(&mut self) -> Ended {
        let (Some(taken), Some(mut link)) = (self.taken.take(), self.link.take()) else {
            return Ended::LinkLost; // unreachable by the machine; ends as a failure, not a panic
        };
        let ended = self.prompt_with(&taken, link.as_mut());
        self.taken = Some(taken);
        self.link = Some(link);
        ended
    }

    fn prompt_with(&mut self, taken: &Taken, link: &mut dyn AgentLink) -> Ended {
        let turn = &taken.turn;
        let begun = Body::TurnStarted { message: taken.message.id.clone() };
        self.shared.record_ahead(&self.about(Some(turn)), begun);
        let (turn_id, message) = (turn.clone(), taken.message.id.clone());
        self.shared.tell(&self.session, Progress::TurnStarted { turn: turn_id, message });
        if taken.message.attempts > 0 {
            let again = if self.put_back.as_ref() == Some(&taken.message.id) {
                "Trying again."
            } else {
                "An earlier attempt at this message perhaps did not finish; trying again."
            };
            self.notice(again.into());
        }
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.canceller());
        // What was stopped before there was anything to cancel is not begun.
        if self.leaving.get().is_some() || self.withdrawn(&taken.message.id) {
            *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let done = TurnDone { cancelled: true, ..TurnDone::default() };
            return self.ended(taken, done);
        }
        let shared = Arc::clone(&self.shared);
        let session = self.session.clone();
        let mut tell = |progress| shared.tell(&session, progress);
        let result = link.prompt(turn, &taken.message.text, &mut tell);
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match result {
            Ok(done) => self.ended(taken, done),
            Err(failure) => self.failed(failure.kind, failure.sentence),
        }
    }

    fn withdrawn(&self, message: &MessageId) -> bool {
        let stored = self.shared.store().message(message);
        stored.is_ok_and(|message| message.state == MessageState::Cancelled)
    }

    /// A turn that was stopped because the worker leaves is put back, unless its message was taken
    /// back.
    fn ended(&mut self, taken: &Taken, done: TurnDone) -> Ended {
        if !done.cancelled {
            self.done = done;
            return Ended::Done;
        }
        if self.leaving.get() == Some(&true) && !self.withdrawn(&taken.message.id) {
            return self.failed(FailureKind::Passing, "The turn was stopped.".to_owned());
        }
        self.done = done;
        Ended::Cancelled
    }

    fn failed(&mut self, kind: FailureKind, sentence: String) -> Ended {
        self.failure = Some(Failure { kind, sentence });
        match kind {
            FailureKind::Passing => Ended::Retry,
            FailureKind::Lasting => Ended::Failed,
            FailureKind::LinkLost => Ended::LinkLost,
        }
    }

    fn finish(&mut self) {
        let Some(taken) = self.taken.take() else { return };
        let done = std::mem::take(&mut self.done);
        let outcome = if done.cancelled { "cancelled" } else { "done" };
        let text = match (done.text.is_empty(), done.cancelled) {
            (true, true) => "(stopped)".to_owned(),
            (true, false) => "(the agent ended its turn without a word)".to_owned(),
            (false, _) => done.text,
        };
        let commit =
            if done.cancelled { Store::cancel_turn } else { Store::finish_turn_with_reply };
        let tokens = (done.input_tokens, done.output_tokens);
        self.close(&taken, outcome, text, tokens, commit);
    }

    fn finish_failed(&mut self) {
        let Some(taken) = self.taken.take() else { return };
        let sentence = self.failure.take().map_or_else(String::new, |f| f.sentence);
        let commit = |store: &mut Store, finish: &Finish| store.fail_turn(finish, Retry::No);
        self.close(&taken, "failed", sentence, (0, 0), commit);
    }

    fn requeue(&mut self, at_ms: u64) {
        let sentence = self.failure.take().map_or_else(String::new, |f| f.sentence);
        let seconds = at_ms.saturating_sub(self.shared.world.now_ms()).div_ceil(1_000);
        if let Some(taken) = self.taken.take() {
            let finish = self.finish_of(&taken, "requeued", (0, 0), None);
            // Nobody is told anything while the store is held.
            let put_back = self.shared.store().fail_turn(&finish, Retry::At(at_ms));
            if let Err(e) = put_back {
                self.notice(format!("The message could not be put back: {e}"));
            }
            self.put_back = Some(taken.message.id.clone());
            self.turn_record(&taken, "requeued");
            self.tell_end(&taken, "requeued", sentence, (0, 0), Some(seconds));
        } else {
            self.notice(format!("{sentence} Your message is kept; trying again in {seconds} s."));
        }
    }

    fn fail_queue(&mut self) {
        let failure = self.failure.take();
        let sentence = failure.map_or_else(String::new, |f| f.sentence);
        let mut told = false;
        while self.take() != Event::Taken(false) {
            told = true;
            self.failure = Some(Failure { kind: FailureKind::Lasting, sentence: sentence.clone() });
            self.finish_failed();
        }
        if !told {
            self.notice(sentence);
        }
    }

    fn finish_of(
        &self,
        taken: &Taken,
        outcome: &str,
        tokens: (u64, u64),
        reply: Option<NewReply>,
    ) -> Finish {
        Finish {
            turn: taken.turn.clone(),
            outcome: outcome.to_owned(),
            input_tokens: tokens.0,
            output_tokens: tokens.1,
            reply,
            now_ms: self.shared.world.now_ms(),
        }
    }

    fn turn_record(&self, taken: &Taken, outcome: &str) {
        let duration_ms = u64::try_from(taken.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let body = Body::TurnFinished { outcome: outcome.to_owned(), duration_ms };
        let about = self.about(Some(&taken.turn));
        // The durable record of the reply follows; when it fails, nothing is delivered.
        drop(self.shared.record(&about, body, Durability::Ordered));
    }

    /// Commits the end of a turn with its reply, puts it on record, and only then shows it.
    fn close(
        &self,
        taken: &Taken,
        outcome: &str,
        text: String,
        tokens: (u64, u64),
        commit: impl FnOnce(&mut Store, &Finish) -> Result<(), StoreError>,
    ) {
        let salt = self.shared.world.salt();
        let id = self.shared.message_id();
        let reply = NewReply { id: id.clone(), text: text.clone(), salt: salt.to_vec() };
        let finish = self.finish_of(taken, outcome, tokens, Some(reply));
        let committed = commit(&mut self.shared.store(), &finish);
        if let Err(e) = committed {
            let told = format!("The reply could not be stored, so it is not shown: {e}");
            return self.tell_end(taken, "failed", told, tokens, None);
        }
        self.turn_record(taken, outcome);
        let body = Body::Message {
            direction: Direction::Out,
            message: id.clone(),
            channel: taken.message.channel.clone(),
            chat: taken.message.chat.clone(),
            digest: digest(&salt, &text),
        };
        let about = self.about(Some(&taken.turn));
        if let Err(e) = self.shared.record(&about, body, Durability::Durable) {
            let told = format!("The reply is kept but not shown, for {e}.");
            return self.tell_end(taken, "failed", told, tokens, None);
        }
        self.deliver(taken, &id, outcome, text, tokens);
    }

    fn deliver(
        &self,
        taken: &Taken,
        reply: &MessageId,
        outcome: &str,
        text: String,
        tokens: (u64, u64),
    ) {
        // A failed mark means that the reply may be shown again after a restart, and marked so.
        drop(self.shared.store().mark_attempt(reply));
        self.tell_end(taken, outcome, text, tokens, None);
        drop(self.shared.store().mark_sent(reply));
    }

    fn tell_end(
        &self,
        taken: &Taken,
        outcome: &str,
        reply: String,
        tokens: (u64, u64),
        retry_s: Option<u64>,
    ) {
        let (turn, message) = (taken.turn.clone(), taken.message.id.clone());
        let outcome = outcome.to_owned();
        let finished = Progress::TurnFinished { turn, message, outcome, reply, tokens, retry_s };
        self.shared.tell(&self.session, finished);
    }
}
