//! How much of one sandbox may be on its way to the log at a time.
//!
//! 1. What is reported and not yet on record never exceeds the bounds, wherever it waits: here, in
//!    the socket, at the client, at the recorder.
//! 2. What is admitted can be reported to its end: an execution takes the place of its image, too.
//! 3. What is not admitted is counted and told as soon as there is room.

use std::collections::VecDeque;

/// Reports of one sandbox on their way. A shell's pipeline is a dozen, a parallel build some
/// hundred a second, and the recorder takes tens of thousands a second.
const REPORTS_MAX: usize = 512;
/// Their bytes. A usual report has some hundred, the largest 50,000.
const BYTES_MAX: usize = 512 << 10;

/// One sandbox's account.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Sizes of the reports that were sent and are not on record.
    sent: VecDeque<usize>,
    bytes: usize,
    /// Reports that will follow what was admitted.
    owed: usize,
    lost: u64,
}

impl Window {
    /// Whether there is room for one report, and for `owed` more that follow from it.
    pub(super) fn admits(&self, owed: usize) -> bool {
        self.sent.len() + self.owed + 1 + owed <= REPORTS_MAX && self.bytes < BYTES_MAX
    }

    /// Whether nothing is on its way: then nothing will be said to be on record, either.
    pub(super) fn is_idle(&self) -> bool {
        self.sent.is_empty()
    }

    /// One more is on its way.
    pub(super) fn send(&mut self, bytes: usize) {
        self.sent.push_back(bytes);
        self.bytes += bytes;
    }

    /// So many reports will follow.
    pub(super) fn owe(&mut self, reports: usize) {
        self.owed += reports;
    }

    /// One of these will not follow, or is sent now.
    pub(super) fn settle(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    /// So many of the oldest are on record.
    pub(super) fn taken(&mut self, count: usize) {
        for _ in 0..count {
            self.bytes -= self.sent.pop_front().unwrap_or(0);
        }
    }

    /// One was not reported.
    pub(super) fn lose(&mut self) {
        self.lost += 1;
    }

    /// How many were lost since this was asked last, if it can be told now.
    pub(super) fn lost(&mut self) -> Option<u64> {
        (self.lost > 0 && self.admits(0)).then(|| std::mem::take(&mut self.lost))
    }

    /// As [`Window::lost`], at the end, when nothing else follows.
    pub(super) fn lost_at_the_end(&mut self) -> Option<u64> {
        (self.lost > 0).then(|| std::mem::take(&mut self.lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_bounded_in_number_with_what_follows_from_them() {
        let mut window = Window::default();
        let mut admitted = 0;
        while window.admits(1) {
            window.send(100);
            window.owe(1);
            admitted += 1;
        }
        assert_eq!(admitted, REPORTS_MAX / 2);
        assert!(!window.admits(0), "the places of the images are taken");
        window.settle();
        window.send(100);
        assert!(!window.admits(0), "an image takes the place that was kept for it");
        window.taken(2);
        assert!(window.admits(1));
    }

    #[test]
    fn reports_are_bounded_in_bytes() {
        let mut window = Window::default();
        window.send(BYTES_MAX - 1);
        assert!(window.admits(1));
        window.send(1);
        assert!(!window.admits(0));
        window.taken(1);
        assert!(window.admits(0));
        window.taken(10);
        assert_eq!((window.bytes, window.sent.len()), (0, 0));
    }

    #[test]
    fn what_is_lost_is_told_once_when_there_is_room() {
        let mut window = Window::default();
        window.send(BYTES_MAX);
        window.lose();
        window.lose();
        assert_eq!(window.lost(), None);
        window.taken(1);
        assert_eq!(window.lost(), Some(2));
        assert_eq!(window.lost(), None);
        window.send(BYTES_MAX);
        window.lose();
        assert_eq!(window.lost_at_the_end(), Some(1));
    }
}
