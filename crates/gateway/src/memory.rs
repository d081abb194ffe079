//! What untrusted bytes may take of the gateway's memory while they are held or understood.
//!
//! ```text
//! bytes, or what their parsed form may take ─► the door's own floor, else the door's share of
//!     what all doors share ─► held until dropped
//! ```
//!
//! Invariants:
//! 1. What is not charged is not kept: a buffer grows after its charge, never before.
//! 2. One door takes at most its share, and every door has its floor, whatever the others hold.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is accounted in units of this.
const UNIT_BYTES: usize = 64 * 1024;
/// What a door has for itself, however full the rest is: an ordinary request (48 kB of prompt, its
/// copy for upstream) and its answer.
const FLOOR_BYTES: usize = 1024 * 1024;
/// What a door may take of what all share: the largest request to a model (32 MiB) in a buffer that
/// grew by doubling, its copy for upstream, and as much again for smaller ones.
const DOOR_BYTES_MAX: usize = 128 * 1024 * 1024;
/// What all doors share: four of the largest shares. With the floors of 200 sessions it is the
/// most that the gateway takes for bodies.
const GATEWAY_BYTES_MAX: usize = 4 * DOOR_BYTES_MAX;

/// Most that a parsed object takes: a `serde_json` map of one entry is a tree node of eleven.
const OBJECT_BYTES: usize = 700;
/// Most that any other parsed value takes: itself, twice for a list that grew by doubling, and the
/// allocation of its own.
const VALUE_BYTES: usize = 128;

/// No more memory for this now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// The session's own doing.
    #[error(
        "this session holds as much in requests and answers as one session may (128 MiB); wait for \
         some to end, and send fewer or smaller ones at once"
    )]
    Door,
    /// All sessions together.
    #[error(
        "all sessions together hold as much in requests and answers as the gateway keeps in memory; \
         try again in a moment"
    )]
    Gateway,
}

/// The part that all doors share.
#[derive(Clone)]
pub(crate) struct SharedMemory(Arc<Semaphore>);

impl Default for SharedMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(GATEWAY_BYTES_MAX / UNIT_BYTES)))
    }
}

/// One door's account.
#[derive(Clone)]
pub(crate) struct Memory {
    floor: Arc<Semaphore>,
    share: Arc<Semaphore>,
    all: SharedMemory,
}

impl Memory {
    pub(crate) fn new(all: SharedMemory) -> Self {
        Self {
            floor: Arc::new(Semaphore::new(FLOOR_BYTES / UNIT_BYTES)),
            share: Arc::new(Semaphore::new(DOOR_BYTES_MAX / UNIT_BYTES)),
            all,
        }
    }

    /// Nothing yet, to grow.
    pub(crate) fn hold(&self) -> Held {
        Held { memory: self.clone(), bytes: 0, room: 0, permits: Vec::new() }
    }
}

/// A charge; given back when dropped.
pub(crate) struct Held {
    memory: Memory,
    bytes: usize,
    room: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Held {
    /// Charges so many bytes more.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Full> {
        let bytes = self.bytes.saturating_add(more);
        let units = bytes.saturating_sub(self.room).div_ceil(UNIT_BYTES);
        if units > 0 {
            let count = u32::try_from(units).map_err(|_| Full::Door)?;
            let Memory { floor, share, all } = &self.memory;
            let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(count).ok();
            match take(floor) {
                Some(own) => self.keep(own),
                None => {
                    let share = take(share).ok_or(Full::Door)?;
                    let all = take(&all.0).ok_or(Full::Gateway)?;
                    self.keep(share);
                    self.keep(all);
                }
            }
            self.room = self.room.saturating_add(units * UNIT_BYTES);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Takes another's charge over.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.room = self.room.saturating_add(other.room);
        other.permits.into_iter().for_each(|permit| self.keep(permit));
    }

    /// One permit a semaphore, however often it grew.
    fn keep(&mut self, permit: OwnedSemaphorePermit) {
        let same = |p: &&mut OwnedSemaphorePermit| Arc::ptr_eq(p.semaphore(), permit.semaphore());
        match self.permits.iter_mut().find(same) {
            Some(kept) => kept.merge(permit),
            None => self.permits.push(permit),
        }
    }
}

/// The most that `serde_json::Value` takes for these bytes, whether or not they are JSON.
pub(crate) fn weight(json: &[u8]) -> usize {
    let (mut string, mut escaped, mut weight) = (false, false, json.len() + VALUE_BYTES);
    for &b in json {
        if string {
            string = b != b'"' || escaped;
            escaped = b == b'\\' && !escaped;
            continue;
        }
        match b {
            b'"' => string = true,
            b'{' => weight += OBJECT_BYTES,
            b'[' | b',' => weight += VALUE_BYTES,
            _ => {}
        }
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_door_cannot_take_what_another_needs() {
        let all = SharedMemory::default();
        let (greedy, other) = (Memory::new(all.clone()), Memory::new(all.clone()));
        let mut big = greedy.hold();
        assert_eq!(big.grow(DOOR_BYTES_MAX), Ok(()));
        assert_eq!(big.grow(FLOOR_BYTES), Ok(()), "its own floor is still there");
        assert_eq!(greedy.hold().grow(1), Err(Full::Door));
        assert_eq!(other.hold().grow(DOOR_BYTES_MAX), Ok(()));
        // Four greedy doors use up what is shared; a fifth still has its floor.
        let mut more: Vec<Held> = (0..3).map(|_| Memory::new(all.clone()).hold()).collect();
        more.iter_mut().for_each(|held| assert_eq!(held.grow(DOOR_BYTES_MAX), Ok(())));
        assert_eq!(other.hold().grow(FLOOR_BYTES), Ok(()));
        assert_eq!(other.hold().grow(FLOOR_BYTES + 1), Err(Full::Gateway));
        drop(big);
        assert_eq!(other.hold().grow(FLOOR_BYTES + 1), Ok(()));
        assert_eq!(greedy.hold().grow(DOOR_BYTES_MAX), Ok(()), "what was held came back");
    }

    #[test]
    fn growing_in_pieces_is_charged_once() {
        let memory = Memory::new(SharedMemory::default());
        let mut held = memory.hold();
        for _ in 0..FLOOR_BYTES / 16 {
            assert_eq!(held.grow(16), Ok(()));
        }
        assert_eq!((memory.floor.available_permits(), held.permits.len()), (0, 1));
        let mut other = memory.hold();
        assert_eq!(other.grow(1), Ok(()));
        held.absorb(other);
        assert_eq!(held.permits.len(), 3);
        drop(held);
        assert_eq!(memory.floor.available_permits(), FLOOR_BYTES / UNIT_BYTES);
        assert_eq!(memory.share.available_permits(), DOOR_BYTES_MAX / UNIT_BYTES);
    }

    #[test]
    fn many_small_objects_weigh_what_they_take() {
        let many = format!("[{}]", vec![r#"{"":0}"#; 1000].join(","));
        assert!(weight(many.as_bytes()) > 660 * 1000);
        let text = format!(r#"{{"text":"{}"}}"#, r#"{[,\""#.repeat(20_000));
        assert!(weight(text.as_bytes()) < text.len() + 2_000);
    }
}
