//! From durable entries to tiles and a signed head, on a thread of its own.
//!
//! ```text
//! committer ─ durable number ─► Tail ─► Tiles (tree, files) ─ a key announced? ─► Keys: next epoch
//!                                         └─ quiet, or a second later ─► checkpoint
//! ```
//!
//! 1. Only entries that are synced in the write-ahead log come here; so nothing is signed that a
//!    power cut could take back.
//! 2. A key signs nothing beyond the record that announces the next one.
//! 3. There is a timer only while an entry waits for a signature: an idle log never wakes up.
//! 4. In a rush it lags behind and holds nobody up: the committer only raises a number.

use crate::keys::Keys;
use crate::note::Checkpoint;
use crate::tail::Tail;
use crate::tilestore::Tiles;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Records taken in before the clock is looked at again: a fraction of a second's work.
const STEP: u64 = 16_384;

/// When to sign.
#[derive(Debug, Clone, Copy)]
pub struct SignAfter {
    /// So long after the last entry, when no other comes.
    pub quiet: Duration,
    /// At the latest so long after the first unsigned entry.
    pub at_most: Duration,
}

impl Default for SignAfter {
    /// A tenth of a second after the last entry, so that no signature stands in the way of a turn;
    /// one second at most, so that a busy log has a fresh head.
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), at_most: Duration::from_secs(1) }
    }
}

/// What the committer tells the tiler.
pub(crate) struct Inbox {
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    /// Number of the first record that is not durable yet.
    durable: u64,
    /// Those who want a head over everything that is durable now.
    sign: Vec<Sender<Checkpoint>>,
    /// One of the two threads has left.
    closed: bool,
}

impl Inbox {
    pub(crate) fn new(durable: u64) -> Self {
        let news = News { durable, ..News::default() };
        Self { news: Mutex::new(news), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything below this number is durable.
    pub(crate) fn durable(&self, next: u64) {
        self.lock().durable = next;
        self.changed.notify_one();
    }

    /// Asks for a head. Whoever asks after the tiler has left learns it by the sender's end.
    pub(crate) fn sign(&self, tell: Sender<Checkpoint>) {
        let mut news = self.lock();
        if !news.closed {
            news.sign.push(tell);
        }
        drop(news);
        self.changed.notify_one();
    }

    /// Waits for a head over everything that is durable now.
    pub(crate) fn covered(&self) -> io::Result<Checkpoint> {
        let (tell, told) = mpsc::channel();
        self.sign(tell);
        told.recv().map_err(|_| io::Error::other("no head was signed over what is durable"))
    }

    /// Held by the committer: says that it has left, even by a panic.
    pub(crate) fn close_when_done(&self) -> Leaving<'_> {
        Leaving { inbox: self, tiler: false }
    }

    /// Held by the tiler: nobody answers from then on.
    pub(crate) fn refuse_when_done(&self) -> Leaving<'_> {
        Leaving { inbox: self, tiler: true }
    }

    /// Waits for news about more than the `done` records, `left` at most.
    fn take(&self, done: u64, left: Option<Duration>) -> (News, bool) {
        let (mut news, mut timed_out) = (self.lock(), false);
        while news.durable <= done && news.sign.is_empty() && !news.closed && !timed_out {
            news = match left {
                None => self.changed.wait(news).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.changed.wait_timeout(news, left);
                    let (news, result) = waited.unwrap_or_else(PoisonError::into_inner);
                    timed_out = result.timed_out();
                    news
                }
            };
        }
        let sign = std::mem::take(&mut news.sign);
        (News { durable: news.durable, sign, closed: news.closed }, timed_out)
    }
}

/// Says on drop that a thread has left.
pub(crate) struct Leaving<'a> {
    inbox: &'a Inbox,
    tiler: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut news = self.inbox.lock();
        news.closed = true;
        if self.tiler {
            news.sign.clear();
        }
        drop(news);
        self.inbox.changed.notify_one();
    }
}

/// The thread: takes in what is durable until the committer has left, then signs the last head.
pub(crate) fn run(
    mut tiles: Tiles,
    mut tail: Tail,
    keys: &mut Keys,
    mut signed: u64,
    after: SignAfter,
    inbox: &Inbox,
    asked: &mut Vec<Sender<Checkpoint>>,
) -> io::Result<()> {
    let mut since = (tiles.size() != signed).then(Instant::now);
    loop {
        let left =
            since.map(|first| after.quiet.min(after.at_most.saturating_sub(first.elapsed())));
        let (mut news, timed_out) = inbox.take(tiles.size(), left);
        asked.append(&mut news.sign);
        let at_once = news.closed || !asked.is_empty();
        let until = if at_once { news.durable } else { news.durable.min(tiles.size() + STEP) };
        if until > tiles.size() {
            tail.read(until, |bytes| {
                tiles.push(bytes)?;
                match tiles.take_announced() {
                    Some(key) => keys.close_epoch(tiles.size(), tiles.root(), &key),
                    None => Ok(()),
                }
            })?;
            tiles.seal(tail.take_sealed());
            since = since.or_else(|| Some(Instant::now()));
        }
        let due = timed_out || since.is_some_and(|first| first.elapsed() >= after.at_most);
        if (at_once || due) && tiles.size() != signed || !asked.is_empty() {
            let head = tiles.publish(keys, news.closed)?;
            (signed, since) = (head.size, None);
            for tell in asked.drain(..) {
                // Whoever asked may have gone; the head is published all the same.
                let _ = tell.send(head.clone());
            }
        }
        if news.closed {
            return Ok(());
        }
    }
}
