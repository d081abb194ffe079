//! Room for connections: what a door has of its own, and what all doors share.
//!
//! 1. A door holds at most [`CONNECTIONS_MAX`], so that no session is more than a part of it all.
//! 2. All doors together hold at most what is shared and [`OWN`] each: when others have used up
//!    what is shared, every door still has its own.

use rustix::process::{Resource, getrlimit};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections one session may hold at once: above what package managers and browsers open,
/// below what would let one session use up the gateway's descriptors.
pub const CONNECTIONS_MAX: usize = 128;
/// Of these a door has so many to itself: a model, a tool, and the few a program opens at once.
pub(crate) const OWN: usize = 8;
/// Connections shared by all doors: what 200 sessions hold with 20 each, and with as many on the
/// other side still a small part of the descriptors a system usually permits.
const SHARED_MAX: usize = 4_096;
/// A connection inside has one outside, and there are kept ones, files and the log.
const DESCRIPTORS_EACH: u64 = 3;

/// How many connections all doors may share under this process's limit of descriptors.
pub(crate) fn shared_max() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / DESCRIPTORS_EACH).unwrap_or(SHARED_MAX).min(SHARED_MAX)
}

/// One door's room.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
}

/// A connection's place, free again when dropped.
pub(crate) struct Place {
    _all: OwnedSemaphorePermit,
    _one: OwnedSemaphorePermit,
}

/// Who is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Door,
    Gateway,
}

impl Full {
    /// What the program in the sandbox is told.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Door => {
                format!("this session already holds {CONNECTIONS_MAX} connections; close some\n")
            }
            Self::Gateway => format!(
                "all sessions together hold as many connections as the gateway has room for, and \
                 this one the {OWN} it has to itself; close some, or try again later\n"
            ),
        }
    }
}

impl Room {
    pub(crate) fn new(shared: Arc<Semaphore>) -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { all: semaphore(CONNECTIONS_MAX), own: semaphore(OWN), shared }
    }

    /// Takes a place, if there is one.
    pub(crate) fn enter(&self) -> Result<Place, Full> {
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned();
        let all = take(&self.all).map_err(|_| Full::Door)?;
        let one = take(&self.own).or_else(|_| take(&self.shared)).map_err(|_| Full::Gateway)?;
        Ok(Place { _all: all, _one: one })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_door_s_flood_leaves_the_others_their_own_and_what_it_frees() {
        let shared = Arc::new(Semaphore::new(20));
        let (greedy, other) = (Room::new(Arc::clone(&shared)), Room::new(shared));
        let mut held = Vec::new();
        let full = loop {
            match greedy.enter() {
                Ok(place) => held.push(place),
                Err(full) => break full,
            }
        };
        assert_eq!((full, held.len()), (Full::Gateway, OWN + 20));
        let others: Vec<Place> = (0..OWN).map_while(|_| other.enter().ok()).collect();
        assert_eq!(others.len(), OWN);
        assert_eq!(other.enter().err(), Some(Full::Gateway));
        held.truncate(OWN + 19);
        assert!(other.enter().is_ok(), "what one door gives up, another may take");
    }

    #[test]
    fn a_door_is_full_before_the_gateway_is() {
        let room = Room::new(Arc::new(Semaphore::new(SHARED_MAX)));
        let held: Vec<Place> = (0..CONNECTIONS_MAX).map_while(|_| room.enter().ok()).collect();
        assert_eq!((held.len(), room.enter().err()), (CONNECTIONS_MAX, Some(Full::Door)));
        assert!((1..=SHARED_MAX).contains(&shared_max()));
    }
}
