//! The limit of the disk while a sandbox runs: count, and say when it is too much.
//!
//! Pipeline: due ─► a slice of a look ─► … ─► bytes ─► over: the reason to end it; else the
//! next due.
//!
//! 1. A look never holds up the other sandboxes for longer than a slice takes.
//! 2. Looking costs at most a twentieth of one CPU, however many files there are.
//! 3. What cannot be counted ends the sandbox as what is too much does.

use super::watchdog;
use crate::disk::{self, Walk};
use model::SandboxSpec;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How fast a program can fill a disk by way of the kernel's memory, bytes per second.
const FILL_RATE: u64 = 1 << 30;
/// Never more often, for it would keep an idle machine awake.
const SHORTEST: Duration = Duration::from_millis(250);
/// Never more seldom.
const LONGEST: Duration = Duration::from_secs(60);
/// The pause is at least so many times what the look took.
const REST: u32 = 20;
/// Entries of one slice: some milliseconds, in which no call of another sandbox is answered.
const SLICE: usize = 1_000;
/// Between two slices the others have their turn.
const BREATH: Duration = Duration::from_millis(2);
/// Entries of the last look, which nothing waits beside: tenths of a second.
const LAST: usize = 50_000;

/// What holds the limit, as reports say it.
pub(super) const ENFORCED_BY: &str =
    "no quota: counted every 0.25 to 60 s, and stopped when it is over";

/// The account of one sandbox.
#[derive(Debug)]
pub(super) struct Account {
    folders: Vec<PathBuf>,
    limit: u64,
    walk: Option<Walk>,
    /// How long the look under way has taken so far.
    spent: Duration,
    due: Option<Instant>,
    /// What the last whole look found.
    found: Option<u64>,
}

impl Account {
    /// Of a sandbox that has such a limit.
    pub(super) fn of(spec: &SandboxSpec) -> Option<Self> {
        let limit = spec.limits.disk_bytes?;
        let folders = disk::folders(spec);
        Some(Self { folders, limit, walk: None, spent: Duration::ZERO, due: None, found: None })
    }

    /// Its program runs from now on.
    pub(super) fn start(&mut self, now: Instant) {
        self.due = Some(now + SHORTEST);
    }

    /// When [`Account::turn`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Goes on counting, if it is time; why the sandbox must end, if it must. `init` is its first
    /// process.
    pub(super) fn turn(&mut self, now: Instant, init: i32) -> Option<String> {
        if self.due.is_none_or(|at| at > now) {
            return None;
        }
        let found = self.slice(SLICE, || watchdog::processes(init));
        self.spent += now.elapsed();
        match found {
            Ok(None) => {
                self.due = Some(now + BREATH);
                None
            }
            Ok(Some(bytes)) if bytes <= self.limit => {
                self.due = Some(Instant::now() + pause(bytes, self.limit, self.spent));
                self.spent = Duration::ZERO;
                None
            }
            Ok(Some(bytes)) => {
                self.due = None;
                let limit = self.limit;
                Some(format!("it keeps {bytes} bytes on the disk, over its limit of {limit}"))
            }
            Err(e) => {
                self.due = None;
                Some(format!("what it keeps on the disk cannot be counted: {e}"))
            }
        }
    }

    fn slice(
        &mut self,
        entries: usize,
        pids: impl FnOnce() -> Vec<i32>,
    ) -> Result<Option<u64>, disk::Uncounted> {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => Walk::begin(&self.folders, &pids())?,
        };
        let found = walk.go(entries)?;
        match found {
            Some(bytes) => self.found = Some(bytes),
            None => self.walk = Some(walk),
        }
        Ok(found)
    }

    /// What the last whole look found.
    pub(super) fn found(&self) -> Option<u64> {
        self.found
    }

    /// What is kept now that all its processes have ended; what the last whole look found where
    /// that is too much to count, and `None` where nothing is known.
    pub(super) fn last(&mut self) -> Option<u64> {
        self.walk = None;
        let counted = self.slice(LAST, Vec::new).ok().flatten();
        counted.or(self.found)
    }
}

/// When to look again: the nearer to the limit the sooner, and never so often that it costs much.
fn pause(bytes: u64, limit: u64, spent: Duration) -> Duration {
    let left = limit.saturating_sub(bytes);
    let fill = Duration::from_millis(left.saturating_mul(1_000) / FILL_RATE);
    fill.clamp(SHORTEST, LONGEST).max(spent.saturating_mul(REST))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn the_nearer_the_limit_the_sooner_and_a_long_look_rests_longer() {
        let soon = Duration::ZERO;
        assert_eq!(pause(0, 1 << 50, soon), LONGEST);
        assert_eq!(pause(1 << 30, 1 << 30, soon), SHORTEST);
        assert_eq!(pause(0, 10 << 30, soon), Duration::from_secs(10));
        assert_eq!(pause(0, 1 << 20, Duration::from_secs(1)), Duration::from_secs(20));
    }

    #[test]
    fn it_says_when_it_is_too_much_and_only_then() {
        let dir = std::env::temp_dir().join(format!("nanoclaw-account-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (folders, spent) = (vec![dir.clone()], Duration::ZERO);
        let limit = 1 << 20;
        let mut account = Account { folders, limit, walk: None, spent, due: None, found: None };
        let own = i32::try_from(std::process::id()).unwrap();
        let mut now = Instant::now();
        assert_eq!(account.turn(now, own), None, "it has not been started");
        account.start(now);
        assert_eq!(account.due(), Some(now + SHORTEST));
        fs::write(dir.join("some"), vec![1; 1 << 19]).unwrap();
        let mut look = |account: &mut Account| {
            for _ in 0..1_000 {
                now = account.due().unwrap();
                let why = account.turn(now, own);
                if why.is_some() || account.walk.is_none() {
                    return why;
                }
            }
            panic!("a look does not end");
        };
        assert_eq!(look(&mut account), None);
        assert!(account.found.unwrap() >= 1 << 19);
        fs::write(dir.join("more"), vec![1; 1 << 20]).unwrap();
        let why = look(&mut account).unwrap();
        assert!(why.contains("over its limit of 1048576"), "{why}");
        assert_eq!(account.due(), None, "once is enough");
        assert!(account.last().unwrap() > 3 << 19);
        fs::remove_dir_all(&dir).unwrap();
    }
}
