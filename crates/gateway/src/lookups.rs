//! Names looked up for one door: a few at a time, answered in a bounded time.
//!
//! ```text
//! name ─► a place of the door's ─► one of its own, else one that all share ─► resolver ─► addresses
//! ```
//!
//! 1. A place is held until the resolver has really ended, however early whoever asked gave up: a
//!    system's resolver cannot be stopped, and waits for its name servers as long as it likes.
//! 2. A door whose names nobody answers keeps no other door from looking up its own.

use crate::resolve::Resolver;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A name server that needs longer is taken for dead; waiting for a place is in it.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Names one door looks up at a time: what a package manager opens at once, for an answer takes
/// milliseconds where there is one.
pub(crate) const DOOR_MAX: usize = 16;
/// Of these a door has so many to itself: the model's server, and one beside it.
pub(crate) const OWN: usize = 2;
/// Shared by all doors. With those of 200 doors' own it is the most threads that wait for name
/// servers.
pub(crate) const SHARED_MAX: usize = 64;

/// Why a name has no address here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("{0}; see whether it is written correctly")]
    Failed(io::Error),
    #[error("the name has no address; see whether it is written correctly")]
    NoAddress,
    #[error(
        "its name server did not answer within {} s; see whether it is written correctly, or try \
         again later",
        ANSWER_TIME.as_secs()
    )]
    Slow,
    #[error(
        "this session already waits for {DOOR_MAX} names whose name servers do not answer, and has \
         no more at a time; try again when they have ended, and ask for fewer such names at once"
    )]
    Door,
    #[error(
        "all sessions together wait for as many names as the gateway looks up at a time, and this \
         one for the {OWN} it has to itself; try again in a moment"
    )]
    Gateway,
}

/// What all doors share.
#[derive(Clone)]
pub(crate) struct SharedLookups {
    resolver: Arc<dyn Resolver>,
    places: Arc<Semaphore>,
}

impl SharedLookups {
    pub(crate) fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, places: Arc::new(Semaphore::new(SHARED_MAX)) }
    }
}

/// One door's.
#[derive(Clone)]
pub(crate) struct Lookups {
    door: Arc<Semaphore>,
    own: Arc<Semaphore>,
    all: SharedLookups,
}

impl Lookups {
    pub(crate) fn new(all: SharedLookups) -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { door: semaphore(DOOR_MAX), own: semaphore(OWN), all }
    }

    /// The addresses of a name, at least one; IPv4 first, for half-configured IPv6 is the commoner
    /// fault.
    pub(crate) async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        let until = Instant::now() + ANSWER_TIME;
        let place = |of: &Arc<Semaphore>| Arc::clone(of).acquire_owned();
        let door = granted(until, place(&self.door)).await.ok_or(LookupError::Door)?;
        let either = async {
            tokio::select! {
                biased;
                own = place(&self.own) => own,
                shared = place(&self.all.places) => shared,
            }
        };
        let one = granted(until, either).await.ok_or(LookupError::Gateway)?;
        let (resolver, name) = (Arc::clone(&self.all.resolver), host.to_owned());
        let looking = tokio::spawn(async move {
            let _places = (door, one);
            resolver.resolve(&name).await
        });
        let ended = tokio::time::timeout_at(until, looking).await.map_err(|_| LookupError::Slow)?;
        let found = ended.map_err(|e| LookupError::Failed(io::Error::other(e)))?;
        let mut found = found.map_err(LookupError::Failed)?;
        found.sort_by_key(IpAddr::is_ipv6);
        if found.is_empty() { Err(LookupError::NoAddress) } else { Ok(found) }
    }
}

/// The place, if it is there in time.
async fn granted(
    until: Instant,
    place: impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>>,
) -> Option<OwnedSemaphorePermit> {
    tokio::time::timeout_at(until, place).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Resolving;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    /// Answers no name of `slow.test` before it is told to.
    #[derive(Default)]
    struct Stuck {
        under_way: AtomicUsize,
        release: Notify,
    }

    impl Resolver for Stuck {
        fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
            Box::pin(async move {
                self.under_way.fetch_add(1, Ordering::SeqCst);
                if host == "slow.test" {
                    self.release.notified().await;
                }
                self.under_way.fetch_sub(1, Ordering::SeqCst);
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_gives_no_place_back_before_the_resolver_has_ended() {
        let stuck = Arc::new(Stuck::default());
        let lookups = Lookups::new(SharedLookups::new(stuck.clone()));
        let asking: Vec<_> = (0..DOOR_MAX)
            .map(|_| {
                let lookups = lookups.clone();
                tokio::spawn(async move { lookups.look_up("slow.test").await })
            })
            .collect();
        let since = Instant::now();
        for asked in asking {
            assert!(matches!(asked.await, Ok(Err(LookupError::Slow))));
        }
        assert_eq!(since.elapsed().as_secs(), ANSWER_TIME.as_secs());
        assert_eq!(stuck.under_way.load(Ordering::SeqCst), DOOR_MAX);
        assert!(matches!(lookups.look_up("quick.test").await, Err(LookupError::Door)));
        assert_eq!(stuck.under_way.load(Ordering::SeqCst), DOOR_MAX, "none was begun");
        stuck.release.notify_one();
        assert!(lookups.look_up("quick.test").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn doors_that_take_all_that_is_shared_leave_the_others_their_own() {
        let stuck = Arc::new(Stuck::default());
        let shared = SharedLookups::new(stuck.clone());
        let doors = SHARED_MAX / (DOOR_MAX - OWN) + 1;
        for _ in 0..doors {
            let lookups = Lookups::new(shared.clone());
            for _ in 0..2 * DOOR_MAX {
                let lookups = lookups.clone();
                tokio::spawn(async move { lookups.look_up("slow.test").await });
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(stuck.under_way.load(Ordering::SeqCst), SHARED_MAX + doors * OWN);
        let other = Lookups::new(shared);
        for _ in 0..OWN {
            let other = other.clone();
            tokio::spawn(async move { other.look_up("slow.test").await });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(stuck.under_way.load(Ordering::SeqCst), SHARED_MAX + (doors + 1) * OWN);
        assert!(matches!(other.look_up("quick.test").await, Err(LookupError::Gateway)));
    }
}
