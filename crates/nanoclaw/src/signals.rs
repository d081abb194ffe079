//! Signals as events: one thread waits for them and calls a handler, so that nothing runs in
//! signal context.

use crate::failure::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that `run` hands on and `chat` reacts to: interrupt, terminate, hang-up, quit, and the
/// terminal's change of size.
pub(crate) const INTERRUPT: i32 = 2;
pub(crate) const QUIT: i32 = 3;
pub(crate) const HANGUP: i32 = 1;
pub(crate) const TERMINATE: i32 = 15;
pub(crate) const WINDOW: i32 = 28;

/// The name of one of these.
pub(crate) fn name(kind: i32) -> &'static str {
    match kind {
        HANGUP => "SIGHUP",
        INTERRUPT => "SIGINT",
        QUIT => "SIGQUIT",
        TERMINATE => "SIGTERM",
        _ => "a signal",
    }
}

/// Calls `on` for each of `kinds` that arrives, for the rest of the process's life.
pub(crate) fn watch(kinds: &[i32], on: impl Fn(i32) + Send + 'static) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("signals")?;
    let streams: Vec<(i32, Signal)> = {
        let _inside = runtime.enter();
        let open = |n: &i32| signal(SignalKind::from_raw(*n)).map(|s| (*n, s));
        kinds.iter().map(open).collect::<std::io::Result<_>>().context("signals")?
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async move {
                let waits = streams.into_iter().map(|(number, mut stream)| {
                    let on = &on;
                    async move {
                        while stream.recv().await.is_some() {
                            on(number);
                        }
                    }
                });
                futures_join(waits).await;
            });
        })
        .context("signals")?;
    Ok(())
}

/// Waits for all futures of one thread.
async fn futures_join(waits: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut pinned: Vec<_> = waits.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        pinned.retain_mut(|wait| wait.as_mut().poll(context).is_pending());
        if pinned.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
