//! The life of the connection: what comes from the gateway, its death, and the next one.

use super::{DEATHS_MAX, DEATHS_WINDOW, Event, Lost, Phase, Settings, Shared, done, open_message};
use crate::asks::Answer;
use crate::control::frames::Inbox;
use crate::control::link::{Link, connect};
use crate::control::wire::{FromGateway, ToGateway};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

impl Shared {
    pub(super) fn read(self: &Arc<Self>, mut link: Arc<Link>, mut inbox: Inbox) {
        loop {
            let sense = match link.receive(&mut inbox) {
                Ok(Some(message)) => self.take(&link, message),
                Ok(None) | Err(_) => false,
            };
            if !sense {
                link.shutdown();
                match self.replace() {
                    Some(next) => (link, inbox) = next,
                    None => return,
                }
            }
        }
    }

    /// Takes one message; `false` when it makes no sense.
    fn take(self: &Arc<Self>, link: &Arc<Link>, message: FromGateway) -> bool {
        match message {
            FromGateway::Reply { id, reply } => {
                if let Some(waiting) = self.lock().waiting.remove(&id) {
                    // There is room for one, and it comes once.
                    drop(waiting.try_send(reply));
                }
            }
            FromGateway::Ask { ask, question } => self.put(link, ask, question),
            FromGateway::Withdraw { ask } => self.take_back(ask),
            FromGateway::Start { order, session, server } => {
                self.start_program(link, order, &session, &server);
            }
            FromGateway::Notice { notice } => {
                self.settings.watcher.happened(Event::Notice(notice));
            }
            FromGateway::Welcome { .. } => return false,
        }
        true
    }

    /// After the end of a connection: another gateway with all doors, or none any more.
    fn replace(self: &Arc<Self>) -> Option<(Arc<Link>, Inbox)> {
        loop {
            if !self.mourn() {
                return None;
            }
            match self.revive() {
                Ok((link, inbox)) => {
                    let link = Arc::new(link);
                    let mut state = self.lock();
                    state.phase = Phase::Up(Arc::clone(&link));
                    state.generation += 1;
                    let closing = state.closing;
                    drop(state);
                    self.changed.notify_all();
                    if closing {
                        return None;
                    }
                    self.settings.watcher.happened(Event::Restarted);
                    return Some((link, inbox));
                }
                Err(Lost::Again) => {}
                Err(Lost::Lasting(cause)) => {
                    self.fail(cause);
                    return None;
                }
            }
        }
    }

    /// Counts a death. `false` when there is to be no other gateway.
    fn mourn(&self) -> bool {
        let mut state = self.lock();
        state.phase = Phase::Down;
        state.nobody_waits();
        if state.closing {
            return false;
        }
        let now = Instant::now();
        state.deaths.retain(|t| now.duration_since(*t) < DEATHS_WINDOW);
        state.deaths.push(now);
        if state.deaths.len() < DEATHS_MAX {
            return true;
        }
        drop(state);
        self.fail(format!(
            "it stopped {DEATHS_MAX} times within {} seconds and is not started again; look in the \
             system's log for what ends it",
            DEATHS_WINDOW.as_secs()
        ));
        false
    }

    fn fail(&self, cause: String) {
        self.lock().phase = Phase::Failed(cause.clone());
        self.changed.notify_all();
        self.settings.watcher.happened(Event::Failed { cause });
    }

    /// Starts a gateway and hands every door over.
    fn revive(self: &Arc<Self>) -> Result<(Link, Inbox), Lost> {
        let Settings { home, role, start, .. } = &self.settings;
        let lost = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Lost::Again,
            io::ErrorKind::ConnectionReset => Lost::Again,
            _ => Lost::Lasting(e.to_string()),
        };
        let (link, mut inbox) = connect(home, role, start).map_err(lost)?;
        let keys: Vec<u64> = self.lock().doors.keys().copied().collect();
        for key in keys {
            let (message, id, listener) = {
                let mut state = self.lock();
                state.next += 1;
                let id = state.next;
                // It may have been closed meanwhile.
                let Some(held) = state.doors.get_mut(&key) else { continue };
                held.restarts += 1;
                let listener = held.listener.try_clone().map_err(lost)?;
                (open_message(id, key, held), id, listener)
            };
            link.send(&message, Some(listener.as_fd())).map_err(lost)?;
            self.reopened(&link, &mut inbox, id).map_err(lost)?;
            if !self.lock().doors.contains_key(&key) {
                let id = self.number();
                link.send(&ToGateway::CloseDoor { id, door: key }, None).map_err(lost)?;
            }
        }
        link.settle().map_err(lost)?;
        Ok((link, inbox))
    }

    fn reopened(&self, link: &Link, inbox: &mut Inbox, wanted: u64) -> io::Result<()> {
        loop {
            match link.receive(inbox)? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(FromGateway::Reply { id, reply }) if id == wanted => {
                    return done(reply).map_err(io::Error::other);
                }
                // A question before all doors are open counts as not answered; the answers to
                // doors closed meanwhile are nobody's.
                Some(FromGateway::Ask { ask, .. }) => {
                    link.send(&ToGateway::Answer { ask, answer: Answer::None }, None)?;
                }
                Some(_) => {}
            }
        }
    }
}
