//! The time limit of turns: one thread a link, asleep but for a limit that is reached.
//!
//! Invariants:
//! 1. A turn that was disarmed is never cancelled, nor is the next one in its place: arming,
//!    disarming and firing hold one lock.
//! 2. Whoever shows a turn may be held up as long as they like; the limit is kept.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    deadline: Option<Instant>,
    late: bool,
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls something when an armed limit is over. Dropping it ends its thread.
pub(crate) struct Timer(Arc<Shared>);

impl Timer {
    /// Makes the thread; `fire` must not wait for anything.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(fire: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("turn-limit".into()).spawn(move || watch(&own, &fire))?;
        Ok(Self(shared))
    }

    /// From now on `limit` runs.
    pub(crate) fn arm(&self, limit: Duration) {
        let mut state = self.0.lock();
        (state.deadline, state.late) = (Some(Instant::now() + limit), false);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Ends it; `true` when it had fired.
    pub(crate) fn disarm(&self) -> bool {
        let mut state = self.0.lock();
        state.deadline = None;
        let late = state.late;
        drop(state);
        self.0.changed.notify_one();
        late
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_one();
    }
}

fn watch(shared: &Shared, fire: &impl Fn()) {
    let mut state = shared.lock();
    while !state.over {
        let Some(deadline) = state.deadline else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            (state.deadline, state.late) = (None, true);
            fire();
        } else {
            let woken = shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Timer;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn it_fires_once_when_armed_and_never_when_disarmed() {
        let (tell, fired) = channel();
        let timer = Timer::start(move || tell.send(()).unwrap()).unwrap();
        timer.arm(Duration::from_secs(600));
        assert!(!timer.disarm());
        timer.arm(Duration::from_millis(5));
        fired.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(timer.disarm());
        timer.arm(Duration::from_millis(5));
        fired.recv_timeout(Duration::from_secs(20)).unwrap();
        timer.arm(Duration::from_secs(600));
        assert!(!timer.disarm(), "the turn before this one was late, not this one");
        drop(timer);
        // The thread is gone, and with it the other end.
        assert!(fired.recv_timeout(Duration::from_secs(20)).is_err());
    }
}
