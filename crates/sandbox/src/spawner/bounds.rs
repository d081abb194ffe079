//! The limits that no kernel holds: how long a sandbox may run, and what it keeps on the disk.
//!
//! Pipeline: started ─► due ─► a look ─► … ─► the reason to end it.
//!
//! Whoever hears the line of its first process keeps them: the spawner, or the thread of a
//! container.

use super::disk::{Account, ENFORCED_BY};
use super::verify::State;
use model::{Limits, SandboxSpec};
use std::time::{Duration, Instant};

/// What holds the time, as reports say it.
const CLOCK: &str = "NanoClaw's own clock, and stopped when it is over";

/// Those of one sandbox.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// What it keeps on the disk, where that has a limit.
    disk: Option<Account>,
    /// How long it may run.
    time: Option<Duration>,
    /// When that is over, once its program runs.
    until: Option<Instant>,
}

impl Bounds {
    pub(crate) fn of(spec: &SandboxSpec) -> Self {
        let time = spec.limits.wall_ms.map(Duration::from_millis);
        Self { disk: Account::of(spec), time, until: None }
    }

    /// Its program runs from now on.
    pub(crate) fn start(&mut self, now: Instant) {
        // A time that no clock reaches is none.
        self.until = self.time.and_then(|time| now.checked_add(time));
        if let Some(disk) = &mut self.disk {
            disk.start(now);
        }
    }

    /// When [`Bounds::turn`] wants to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        let looks = self.disk.as_ref().and_then(Account::due);
        self.until.into_iter().chain(looks).min()
    }

    /// Looks, if it is time; why the sandbox must end, if it must. `init` is its first process.
    pub(crate) fn turn(&mut self, now: Instant, init: i32) -> Option<String> {
        if self.until.take_if(|at| *at <= now).is_some() {
            let ms = self.time.unwrap_or_default().as_millis();
            return Some(format!("its time of {}.{:03} s is over", ms / 1_000, ms % 1_000));
        }
        self.disk.as_mut()?.turn(now, init)
    }

    /// Bytes on the disk that the last whole look found.
    pub(crate) fn found(&self) -> Option<u64> {
        self.disk.as_ref().and_then(Account::found)
    }

    /// Bytes on the disk now that all its processes have ended.
    pub(crate) fn last(&mut self) -> Option<u64> {
        self.disk.as_mut().and_then(Account::last)
    }
}

/// What a report says of them: limit, value, what holds it.
pub(super) fn states(limits: &Limits) -> impl Iterator<Item = State> {
    let disk = limits.disk_bytes.map(|n| ("disk", format!("{n} bytes"), ENFORCED_BY.to_owned()));
    let time = limits.wall_ms.map(|ms| ("wall-time", format!("{ms} ms"), CLOCK.to_owned()));
    disk.into_iter().chain(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_over_once_and_not_before_the_start() {
        let time = Some(Duration::from_millis(1_500));
        let mut bounds = Bounds { disk: None, time, until: None };
        let now = Instant::now();
        assert_eq!((bounds.due(), bounds.turn(now, 1)), (None, None), "it has not been started");
        bounds.start(now);
        let over = now + Duration::from_millis(1_500);
        assert_eq!(bounds.due(), Some(over));
        assert_eq!(bounds.turn(now, 1), None);
        assert_eq!(bounds.turn(over, 1).as_deref(), Some("its time of 1.500 s is over"));
        assert_eq!((bounds.due(), bounds.turn(over, 1)), (None, None), "once is enough");
    }

    #[test]
    fn what_has_no_limit_is_in_no_report() {
        let names = |limits: &Limits| states(limits).map(|(name, ..)| name).collect::<Vec<_>>();
        let mut limits = Limits::default();
        assert!(names(&limits).is_empty());
        (limits.disk_bytes, limits.wall_ms) = (Some(1 << 20), Some(700));
        assert_eq!(names(&limits), ["disk", "wall-time"]);
    }
}
