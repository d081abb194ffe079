//! HTTP/1.1 connections that one door keeps for its next requests.
//!
//! One that nobody takes is closed after [`IDLE_TIME`] by a task that sleeps while there is none,
//! and ends with the door.

use super::Origin;
use super::h1::H1;
use super::link::IDLE_TIME;
use crate::driver::Driver;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections kept per door; package managers open about as many.
const CONNECTIONS_MAX: usize = 16;

struct Idle {
    to: Origin,
    ip: IpAddr,
    since: Instant,
    h1: H1,
}

#[derive(Default)]
struct Shelf {
    all: Mutex<Vec<Idle>>,
    /// The first was put on it.
    begun: Notify,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is closed or old; says when the next one will be.
    fn tidy(&self) -> Option<Instant> {
        let mut all = self.lock();
        all.retain(|idle| idle.since.elapsed() < IDLE_TIME && !idle.h1.is_closed());
        all.iter().map(|idle| idle.since + IDLE_TIME).min()
    }

    async fn keep_tidy(self: Arc<Self>) {
        loop {
            match self.tidy() {
                Some(due) => tokio::time::sleep_until(due).await,
                None => self.begun.notified().await,
            }
        }
    }
}

/// The kept connections of a door.
#[derive(Default)]
pub(super) struct Kept {
    shelf: Arc<Shelf>,
    tidying: Mutex<Option<Driver>>,
}

impl Kept {
    /// A connection to `to` that was in use within `age_max` and is still open.
    pub(super) async fn take(&self, to: &Origin, age_max: Duration) -> Option<(H1, IpAddr)> {
        loop {
            let mut found = {
                let mut all = self.shelf.lock();
                let fits = |idle: &Idle| idle.to == *to && idle.since.elapsed() < age_max;
                let at = all.iter().rposition(fits)?;
                all.swap_remove(at)
            };
            if found.h1.is_ready().await {
                return Some((found.h1, found.ip));
            }
        }
    }

    /// Keeps a connection whose answer was read to the end.
    pub(super) fn put(&self, to: Origin, ip: IpAddr, h1: H1) {
        if h1.is_closed() {
            return;
        }
        let mut tidying = self.tidying.lock().unwrap_or_else(PoisonError::into_inner);
        tidying.get_or_insert_with(|| Driver::start(Arc::clone(&self.shelf).keep_tidy()));
        drop(tidying);
        let mut all = self.shelf.lock();
        if all.len() >= CONNECTIONS_MAX {
            all.remove(0);
        }
        all.push(Idle { to, ip, since: Instant::now(), h1 });
        if all.len() == 1 {
            self.shelf.begun.notify_one();
        }
    }
}
