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

    /// A connection that never ends, and whether it is still there.
    fn endless() -> (Driver, Receiver<()>) {
        let (held, gone) = channel::<()>();
        let driver = Driver::start(async move {
            let _held = held;
            std::future::pending().await
        });
        (driver, gone)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_with_its_driver_or_after_its_rest_and_not_while_in_use() {
        let (driver, gone) = endless();
        drop(driver);
        assert!(gone.await.is_err());

        let (driver, mut gone) = endless();
        driver.rest(Duration::from_secs(30));
        driver.wake();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(
            gone.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        let since = Instant::now();
        driver.rest(Duration::from_secs(30));
        assert!(gone.await.is_err());
        assert_eq!(since.elapsed().as_secs(), 31);
    }
}
