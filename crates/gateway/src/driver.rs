//! What drives a connection to a server, for as long as somebody has the connection.
//!
//! 1. Its task ends and its socket is closed when the [`Driver`] is dropped, with the exchange, the
//!    pool or the door that had it: whether or not the server ever reads or answers.
//! 2. A connection that is kept and that nobody uses ends by itself.

use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Whoever takes a kept connection at the last moment of its time finds it open.
const SLACK: Duration = Duration::from_secs(1);

/// Drives one connection until it is dropped.
pub(crate) struct Driver(watch::Sender<Option<Instant>>);

impl Driver {
    /// Must run inside the runtime.
    pub(crate) fn start(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        let (ends, mut told) = watch::channel(None);
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            loop {
                let end: Option<Instant> = *told.borrow_and_update();
                tokio::select! {
                    () = &mut connection => return,
                    changed = told.changed() => if changed.is_err() { return },
                    () = reached(end) => return,
                }
            }
        });
        Self(ends)
    }

    /// Nobody uses the connection from now on: it may be taken for `time`, and ends after it.
    pub(crate) fn rest(&self, time: Duration) {
        self.0.send_replace(Some(Instant::now() + time + SLACK));
    }

    /// Somebody uses it again.
    pub(crate) fn wake(&self) {
        self.0.send_replace(None);
    }
}

async fn reached(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::{Receiver, channel};

    /// A connection that never ends, and what ends with it.
    fn endless() -> (Driver, Receiver<()>) {
        let (held, gone) = channel::<()>();
        let driver = Driver::start(async move {
            let _held = held;
            std::future::pending().await
        });
        (driver, gone)
    }

    async fn ends_within(gone: &mut Receiver<()>, seconds: u64) -> bool {
        tokio::time::timeout(Duration::from_secs(seconds), gone).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_with_its_driver_or_after_its_rest_and_not_while_in_use() {
        let (driver, mut gone) = endless();
        drop(driver);
        assert!(ends_within(&mut gone, 1).await, "nobody has it");

        let (driver, mut gone) = endless();
        driver.rest(Duration::from_secs(30));
        driver.wake();
        assert!(!ends_within(&mut gone, 3_600).await, "it is in use");
        driver.rest(Duration::from_secs(30));
        assert!(!ends_within(&mut gone, 30).await, "it may still be taken");
        assert!(ends_within(&mut gone, 2).await, "its time is over");
    }
}
