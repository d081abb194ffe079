//! Cancellation: one flag, and what to do at the very moment it is raised.
//!
//! Invariants:
//! 1. A hook registered after the flag was raised runs at once, so none is ever missed.
//! 2. A dropped guard's hook never runs afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Hooks {
    next: u64,
    list: Vec<(u64, Hook)>,
}

#[derive(Default)]
struct Inner {
    raised: AtomicBool,
    hooks: Mutex<Hooks>,
}

/// Shared by everything that works for one turn.
#[derive(Clone, Default)]
pub(crate) struct Cancel(Arc<Inner>);

/// Keeps a hook registered.
pub(crate) struct HookGuard {
    cancel: Cancel,
    id: u64,
}

impl Cancel {
    /// Raises the flag and runs every registered hook. Safe to call often.
    pub(crate) fn cancel(&self) {
        // The flag is raised under the lock: a hook is either in the list here or sees the flag.
        let hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.raised.store(true, Ordering::SeqCst);
        for (_, hook) in &hooks.list {
            hook();
        }
    }

    /// Whether the flag is raised.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// Runs `hook` when the flag is raised, or now if it already is.
    pub(crate) fn on_cancel(&self, hook: impl Fn() + Send + 'static) -> HookGuard {
        let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            hook();
        }
        let id = hooks.next;
        hooks.next += 1;
        hooks.list.push((id, Box::new(hook)));
        HookGuard { cancel: self.clone(), id }
    }
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        let mut hooks = self.cancel.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.list.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::Cancel;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn hooks_run_early_late_and_never_after_their_guard_is_gone() {
        let count = Arc::new(AtomicUsize::new(0));
        let bump = |by: usize| {
            let count = Arc::clone(&count);
            move || {
                count.fetch_add(by, Ordering::SeqCst);
            }
        };
        let cancel = Cancel::default();
        let _kept = cancel.on_cancel(bump(1));
        drop(cancel.on_cancel(bump(100)));
        cancel.cancel();
        let _late = cancel.on_cancel(bump(10));
        assert_eq!(count.load(Ordering::SeqCst), 11);
        assert!(cancel.is_cancelled());
    }
}
