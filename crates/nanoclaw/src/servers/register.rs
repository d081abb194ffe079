//! Which sessions may have programs, which they have, and how often each was started.
//!
//! Pipeline: open ─► admit ─► live ─► the end of the program, or of the session.

use model::SessionId;
use sandbox::Sandbox;
use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A program that was started so often within [`STARTS_WINDOW`] is not started again before that
/// is over: each start costs a sandbox.
const STARTS_MAX: usize = 5;
/// See [`STARTS_MAX`].
const STARTS_WINDOW: Duration = Duration::from_secs(60);
/// How long the end of a session waits for its programs. Killing one takes milliseconds; a sandbox
/// in the making takes at most the spawner's own limit.
const END_TIME: Duration = Duration::from_secs(35);

/// All sessions of this process.
#[derive(Default)]
pub(super) struct Register {
    sessions: Mutex<Sessions>,
    changed: Condvar,
}

/// One for each [`Open`], by number: a session may be opened again while its former time still
/// ends, and what ends then is what was started then.
#[derive(Default)]
struct Sessions {
    last: u64,
    open: BTreeMap<u64, Session>,
}

/// The programs of one session.
struct Session {
    id: SessionId,
    over: bool,
    /// When each server was started lately.
    starts: Vec<(String, Instant)>,
    /// Programs that are being started, run or end.
    busy: usize,
    next: u64,
    live: HashMap<u64, Live>,
}

impl Session {
    fn new(id: SessionId) -> Self {
        let (starts, live) = (Vec::new(), HashMap::new());
        Self { id, over: false, starts, busy: 0, next: 0, live }
    }
}

/// A program that runs.
pub(super) struct Live {
    pub(super) sandbox: Arc<Sandbox>,
    /// This side's end of the socket pair.
    pub(super) socket: UnixStream,
}

impl Live {
    fn end(&self) {
        // Gone already is as good.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.sandbox.kill());
    }
}

/// A program's place in its session; dropping it says that nothing is left of the program.
pub(super) struct Place {
    register: Arc<Register>,
    open: u64,
    number: u64,
}

impl Place {
    /// The program runs; if its session ended meanwhile, no longer.
    pub(super) fn live(&self, live: Live) {
        let mut sessions = self.register.lock();
        match sessions.open.get_mut(&self.open) {
            Some(session) if !session.over => drop(session.live.insert(self.number, live)),
            _ => live.end(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(session) = self.register.lock().open.get_mut(&self.open) {
            session.live.remove(&self.number);
            session.busy = session.busy.saturating_sub(1);
        }
        self.register.changed.notify_all();
    }
}

/// Says that programs may be started for a session; dropping it ends them.
pub(crate) struct Open {
    register: Arc<Register>,
    number: u64,
}

impl Open {
    /// Ends every program of the session and waits until none is left; none is started afterwards.
    pub(crate) fn end(&self) {
        self.register.end(self.number);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

impl Register {
    pub(super) fn open(self: &Arc<Self>, session: &SessionId) -> Open {
        let mut sessions = self.lock();
        sessions.last += 1;
        let number = sessions.last;
        sessions.open.insert(number, Session::new(session.clone()));
        Open { register: Arc::clone(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, number: u64) {
        let until = Instant::now() + END_TIME;
        let mut sessions = self.lock();
        loop {
            let Some(session) = sessions.open.get_mut(&number) else { return };
            session.over = true;
            for live in session.live.values() {
                live.end();
            }
            let left = until.saturating_duration_since(Instant::now());
            if session.busy == 0 || left.is_zero() {
                sessions.open.remove(&number);
                return;
            }
            let waited = self.changed.wait_timeout(sessions, left);
            sessions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A place for one more program of the session.
    pub(super) fn admit(self: &Arc<Self>, id: &SessionId, server: &str) -> Result<Place, String> {
        let mut sessions = self.lock();
        let is_its = |session: &Session| session.id == *id && !session.over;
        let found = sessions.open.iter_mut().rev().find(|(_, session)| is_its(session));
        let (open, session) = found.ok_or("its session is over")?;
        session.starts.retain(|(_, at)| at.elapsed() < STARTS_WINDOW);
        if session.starts.iter().filter(|(name, _)| name == server).count() >= STARTS_MAX {
            return Err(format!(
                "it was started {STARTS_MAX} times within {} s and did not stay; it is started \
                 again later. `nanoclaw mcp list {}` shows what it says",
                STARTS_WINDOW.as_secs(),
                server
            ));
        }
        session.starts.push((server.to_owned(), Instant::now()));
        session.busy += 1;
        session.next += 1;
        Ok(Place { register: Arc::clone(self), open: *open, number: session.next })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(name: &str) -> SessionId {
        SessionId::parse(name).unwrap()
    }

    #[test]
    fn a_session_opened_again_while_its_former_time_still_ends_has_programs() {
        let register = Arc::<Register>::default();
        let former = register.open(&id("s1"));
        let place = register.admit(&id("s1"), "lab").unwrap();
        let ending = std::thread::spawn(move || former.end());
        while register.lock().open.values().any(|session| !session.over) {
            std::thread::yield_now();
        }
        assert!(register.admit(&id("s1"), "lab").is_err(), "it is over");
        let again = register.open(&id("s1"));
        let second = register.admit(&id("s1"), "lab").unwrap();
        assert!(!ending.is_finished(), "one of its programs is still there");
        drop(place);
        ending.join().unwrap();
        assert!(register.admit(&id("s1"), "lab").is_ok(), "the former end ended only its own");
        drop(second);
        drop(again);
        assert!(register.admit(&id("s1"), "lab").is_err());
        assert!(register.lock().open.is_empty());
    }

    #[test]
    fn starts_are_counted_for_each_server_of_each_session() {
        let register = Arc::<Register>::default();
        let (_one, _two) = (register.open(&id("s1")), register.open(&id("s2")));
        for _ in 0..STARTS_MAX {
            drop(register.admit(&id("s1"), "lab").unwrap());
        }
        let refused = register.admit(&id("s1"), "lab").err().unwrap();
        assert!(refused.contains("5 times within 60 s"), "{refused}");
        assert!(register.admit(&id("s1"), "other").is_ok());
        assert!(register.admit(&id("s2"), "lab").is_ok());
        assert!(register.admit(&id("s3"), "lab").is_err(), "nobody opened it");
    }
}
