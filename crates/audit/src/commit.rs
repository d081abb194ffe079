//! Group commit: one thread that writes whatever queued while the last sync ran.
//!
//! ```text
//! submit ─► queue (one arena of frames, one list of who waits) ⇄ work ─► write ─► sync ─► answers
//! ```
//!
//! 1. Nothing is acknowledged `Durable` before the sync that covers it; nothing goes to the tiles
//!    before that either.
//! 2. The first failure is the last word: it answers everything queued and everything to come.
//! 3. No memory is taken per record: queue and work swap their buffers.
//! 4. A record that announces a key is the last of its batch, and neither it nor anything after it
//!    is acknowledged before the old key's last signature covers it. So one that no head covers is,
//!    at an open, nothing that anybody was told of ([`crate::opening`]).

use crate::entry::{Entry, KEY_ANNOUNCED};
use crate::note::Checkpoint;
use crate::tiler::Inbox;
use crate::wal::{Batch, Wal};
use model::{Done, Durability, RecordError};
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait for the committer; a submitter beyond blocks. Two of the largest useful
/// batches: one being written, one forming.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Records written but not yet synced, when nothing durable is among them: a sync comes at the
/// latest then.
const UNSYNCED_BYTES_MAX: usize = 8 << 20;

/// Memory of a batch that is kept for the next one: four thousand records of usual size; what a
/// rush took beyond is given back.
const BATCH_BYTES_KEPT: usize = 2 << 20;

/// Longest time that ordered records wait for the sync of a durable one to share. A turn's first
/// records are followed by the durable one of its model request within a few milliseconds: with
/// syncs of their own they would hold that one up.
const UNSYNCED_TIME_MAX: Duration = Duration::from_millis(20);

/// After a batch its submitters come back with their next records. So many turns of the processor
/// they get for it, as long as the queue grows; without it every second batch would be a single
/// record with a sync of its own.
const SETTLE_TURNS: usize = 64;

/// So many records are a batch worth its sync: nobody is waited for beyond, so that submitters go
/// on while the disk works.
const SETTLE_RECORDS: usize = 512;

/// What a queued entry costs beyond its bytes, roughly.
const PENDING_BYTES: usize = 64;

/// Takes the answers to records of one client.
pub(crate) trait Acks: Send + Sync {
    /// These are written: id and index of each, in order.
    fn written(&self, done: &[(u64, u64)]);
    /// This one is not.
    fn refused(&self, id: u64, error: RecordError);
}

/// Who waits for an answer.
pub(crate) enum Waiter {
    /// One to be called.
    Call(Done),
    /// A client, which knows the record by this id.
    Client(Arc<dyn Acks>, u64),
}

impl Waiter {
    pub(crate) fn refuse(self, error: RecordError) {
        match self {
            Self::Call(done) => done(Err(error)),
            Self::Client(acks, id) => acks.refused(id, error),
        }
    }
}

/// Tells everyone the index; neighbours of one client get theirs in one go.
fn answer(waiting: &mut Vec<(u64, Waiter)>, run: &mut Vec<(u64, u64)>) {
    let mut to: Option<Arc<dyn Acks>> = None;
    for (index, waiter) in waiting.drain(..) {
        match waiter {
            Waiter::Call(done) => done(Ok(index)),
            Waiter::Client(acks, id) => {
                if !to.as_ref().is_some_and(|to| Arc::ptr_eq(to, &acks)) {
                    if let Some(to) = to.replace(acks) {
                        to.written(run);
                    }
                    run.clear();
                }
                run.push((id, index));
            }
        }
    }
    if let Some(to) = to {
        to.written(run);
    }
    run.clear();
}

/// What is queued, or taken from the queue.
#[derive(Default)]
struct Work {
    batch: Batch,
    waiting: Vec<(Durability, Waiter)>,
    sign: Vec<Sender<Checkpoint>>,
    /// Its last record announces a key.
    ends_epoch: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.sign.is_empty()
    }

    fn bytes(&self) -> usize {
        self.batch.bytes() + self.waiting.len() * PENDING_BYTES
    }
}

#[derive(Default)]
struct Queue {
    work: Work,
    /// The committer sleeps; whoever comes wakes it.
    asleep: bool,
    /// Submitters that wait for room.
    blocked: usize,
    closing: bool,
    failed: Option<String>,
}

/// What submitters and the two threads share.
#[derive(Default)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    syncs: AtomicU64,
}

fn disk(cause: &str) -> RecordError {
    RecordError::Disk { cause: cause.to_owned() }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(crate) fn submit(&self, entry: &Entry, durability: Durability, waiter: Waiter) {
        let mut queue = self.lock();
        let full = |work: &Work| work.ends_epoch || work.bytes() > QUEUE_BYTES_MAX;
        while full(&queue.work) && queue.failed.is_none() {
            queue.blocked += 1;
            queue = self.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.blocked -= 1;
        }
        if let Some(cause) = &queue.failed {
            let error = disk(cause);
            drop(queue);
            return waiter.refuse(error);
        }
        queue.work.ends_epoch = entry.bytes().starts_with(KEY_ANNOUNCED);
        queue.work.batch.push(entry);
        queue.work.waiting.push((durability, waiter));
        self.wake(queue);
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.filled.notify_one();
        }
    }

    pub(crate) fn sign(&self, tell: Sender<Checkpoint>) -> Result<(), RecordError> {
        let mut queue = self.lock();
        if let Some(cause) = &queue.failed {
            return Err(disk(cause));
        }
        queue.work.sign.push(tell);
        self.wake(queue);
        Ok(())
    }

    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closing = true;
        self.wake(queue);
    }

    pub(crate) fn failed(&self) -> Option<RecordError> {
        self.lock().failed.as_deref().map(disk)
    }

    pub(crate) fn failure(&self) -> RecordError {
        self.failed().unwrap_or_else(|| disk("the log was closed"))
    }

    /// Fails the log: answers what is queued, refuses what comes.
    pub(crate) fn fail(&self, cause: String) {
        let mut queue = self.lock();
        let cause = queue.failed.get_or_insert(cause).clone();
        let work = mem::take(&mut queue.work);
        self.wake(queue);
        self.emptied.notify_all();
        for (_, waiter) in work.waiting {
            waiter.refuse(disk(&cause));
        }
    }

    /// Waits for something to do and puts it into `work`, which is empty and stays so when `until`
    /// comes first; `false` when the log is closing, or failed, and nothing is left. `answered` is
    /// how many were just told that they are done.
    fn take(&self, work: &mut Work, answered: usize, until: Option<Instant>) -> bool {
        if answered > 1 {
            self.settle(answered.min(SETTLE_RECORDS));
        }
        let mut queue = self.lock();
        loop {
            if queue.failed.is_some() {
                return false;
            }
            if !queue.work.is_empty() {
                break;
            }
            if queue.closing {
                return false;
            }
            queue.asleep = true;
            let Some(until) = until else {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.filled.wait_timeout(queue, left);
            queue = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.asleep = false;
        mem::swap(work, &mut queue.work);
        let blocked = queue.blocked > 0;
        drop(queue);
        if blocked {
            self.emptied.notify_all();
        }
        true
    }

    /// Lets submitters that were just answered queue their next records: until there are as many,
    /// or none came in two turns, or the turns are used up. No clock, no sleep.
    fn settle(&self, answered: usize) {
        let (mut before, mut still) = (0, 0);
        for _ in 0..SETTLE_TURNS {
            let queue = self.lock();
            let now = queue.work.waiting.len();
            let done = queue.closing || queue.failed.is_some();
            drop(queue);
            still = if now == before { still + 1 } else { 0 };
            if now >= answered || still > 2 || done {
                return;
            }
            before = now;
            std::thread::yield_now();
        }
    }
}

/// What the thread holds between batches: who waits for the sync, and buffers used again.
#[derive(Default)]
struct Unsynced {
    waiting: Vec<(u64, Waiter)>,
    ordered: Vec<(u64, Waiter)>,
    run: Vec<(u64, u64)>,
    bytes: usize,
    /// When those bytes are synced at the latest; `None` without any.
    until: Option<Instant>,
}

impl Unsynced {
    /// Whether the sync must not wait for more to share it.
    fn is_due(&self) -> bool {
        !self.waiting.is_empty()
            || self.bytes > UNSYNCED_BYTES_MAX
            || self.until.is_some_and(|until| until <= Instant::now())
    }

    fn fail(&mut self, cause: &str) {
        for (_, waiter) in self.waiting.drain(..) {
            waiter.refuse(disk(cause));
        }
    }
}

/// The thread.
pub(crate) fn run(mut wal: Wal, shared: &Shared, inbox: &Inbox) {
    let (mut unsynced, mut work, mut answered) = (Unsynced::default(), Work::default(), 0);
    while shared.take(&mut work, answered, unsynced.until) {
        answered = work.waiting.len();
        let result = write(&mut wal, &mut work, &mut unsynced).and_then(|()| {
            let ends_epoch = mem::take(&mut work.ends_epoch);
            let due = ends_epoch || unsynced.is_due() || !work.sign.is_empty();
            if due { sync(&mut wal, shared, &mut unsynced, inbox, ends_epoch) } else { Ok(()) }
        });
        if let Err(e) = result {
            let cause = e.to_string();
            // First the state, then the answers: whoever hears of the failure finds the log failed.
            shared.fail(cause.clone());
            unsynced.fail(&cause);
            return;
        }
        for tell in work.sign.drain(..) {
            inbox.sign(tell);
        }
    }
    if unsynced.bytes > 0
        && let Err(e) = sync(&mut wal, shared, &mut unsynced, inbox, false)
    {
        shared.fail(e.to_string());
        unsynced.fail(&e.to_string());
    }
}

fn write(wal: &mut Wal, work: &mut Work, unsynced: &mut Unsynced) -> io::Result<()> {
    if work.batch.is_empty() {
        return Ok(());
    }
    let first = wal.next();
    let written = wal.append(&mut work.batch);
    unsynced.bytes += work.batch.bytes();
    unsynced.until.get_or_insert_with(|| Instant::now() + UNSYNCED_TIME_MAX);
    work.batch.clear(BATCH_BYTES_KEPT);
    for (index, (durability, waiter)) in (first..).zip(work.waiting.drain(..)) {
        match (durability, &written) {
            (Durability::Ordered, Ok(())) => unsynced.ordered.push((index, waiter)),
            // After a failure both wait for the answer that the failure is.
            _ => unsynced.waiting.push((index, waiter)),
        }
    }
    answer(&mut unsynced.ordered, &mut unsynced.run);
    written
}

fn sync(
    wal: &mut Wal,
    shared: &Shared,
    unsynced: &mut Unsynced,
    inbox: &Inbox,
    ends_epoch: bool,
) -> io::Result<()> {
    if unsynced.bytes > 0 {
        wal.sync()?;
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        unsynced.bytes = 0;
        unsynced.until = None;
        inbox.durable(wal.next());
        if ends_epoch {
            inbox.covered()?;
        }
        answer(&mut unsynced.waiting, &mut unsynced.run);
    }
    Ok(())
}
