//! How often a rule lets something through: requests a minute, for one session.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Rules one door counts requests for; more than any file has.
const WINDOWS_MAX: usize = 1_024;

/// Requests in the last minute by second; whole seconds on the safe side.
struct Window {
    counts: [u32; Self::SECONDS],
    newest: u64,
}

impl Window {
    /// A minute and the second it began in.
    const SECONDS: usize = 61;

    fn admit(&mut self, second: u64, max: u32) -> bool {
        let stale = second.saturating_sub(self.newest).min(Self::SECONDS as u64);
        for back in 0..stale {
            self.counts[((second - back) % Self::SECONDS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(second);
        let sum = self.counts.iter().fold(0_u32, |sum, n| sum.saturating_add(*n));
        if sum >= max {
            return false;
        }
        self.counts[(second % Self::SECONDS as u64) as usize] += 1;
        true
    }
}

/// One session's requests per rule and minute.
pub(crate) struct Rates {
    start: Instant,
    windows: Mutex<BTreeMap<String, Window>>,
}

impl Rates {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), windows: Mutex::new(BTreeMap::new()) }
    }

    /// Whether one more request by `rule` is within `max` a minute; counts it if so.
    pub(crate) fn admit(&self, rule: &str, max: u32) -> bool {
        let second = self.start.elapsed().as_secs() + Window::SECONDS as u64;
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(rule) && windows.len() >= WINDOWS_MAX {
            return false;
        }
        let window = windows.entry(rule.to_owned());
        let window = window.or_insert(Window { counts: [0; Window::SECONDS], newest: second });
        window.admit(second, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_admits_no_more_than_its_rate() {
        let mut window = Window { counts: [0; Window::SECONDS], newest: 100 };
        assert!(window.admit(100, 2) && window.admit(130, 2) && !window.admit(159, 2));
        assert!(!window.admit(160, 2), "the first second may have been its end");
        assert!(window.admit(161, 2) && !window.admit(162, 2));
        assert!(window.admit(500, 1) && !window.admit(500, 1) && !window.admit(560, 1));
    }
}
