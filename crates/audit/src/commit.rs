//! Group commit: one thread that writes whatever queued while the last sync ran.
//!
//! 1. Nothing is acknowledged `Durable` before the sync that covers it; nothing goes to the tiles
//!    before that either.
//! 2. The first failure is the last word: it answers everything queued and everything to come.

use crate::entry::Entry;
use crate::note::Checkpoint;
use crate::tiler::Job;
use crate::wal::Wal;
use model::{Done, Durability, RecordError};
use std::io;
use std::mem;
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may wait for the committer; a submitter beyond blocks. Two of the largest useful
/// batches: one being written, one forming.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Records written but not yet synced, when nothing durable is among them: a sync comes at the
/// latest then.
const UNSYNCED_BYTES_MAX: usize = 8 << 20;

/// Batches the tiles may lag behind; the committer waits beyond, and so memory stays bounded.
pub(crate) const JOBS_AHEAD_MAX: usize = 8;

/// After a batch its submitters come back with their next records. So many turns of the processor
/// they get for it, as long as the queue grows; without it every second batch would be a single
/// record with a sync of its own.
const SETTLE_TURNS: usize = 64;

/// What a queued entry costs beyond its bytes, roughly.
const PENDING_BYTES: usize = 128;

/// One queued entry.
pub(crate) struct Pending {
    pub(crate) entry: Entry,
    pub(crate) durability: Durability,
    pub(crate) done: Done,
}

#[derive(Default)]
struct Queue {
    pending: Vec<Pending>,
    sign: Vec<Sender<Checkpoint>>,
    bytes: usize,
    closing: bool,
    failed: Option<String>,
}

/// What submitters and the two threads share.
#[derive(Default)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

fn disk(cause: &str) -> RecordError {
    RecordError::Disk { cause: cause.to_owned() }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn submit(&self, pending: Pending) {
        let mut queue = self.lock();
        while queue.bytes > QUEUE_BYTES_MAX && queue.failed.is_none() {
            queue = self.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(cause) = &queue.failed {
            let error = disk(cause);
            drop(queue);
            return (pending.done)(Err(error));
        }
        queue.bytes += pending.entry.bytes().len() + PENDING_BYTES;
        let was_empty = queue.pending.is_empty();
        queue.pending.push(pending);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    pub(crate) fn sign(&self, tell: Sender<Checkpoint>) -> Result<(), RecordError> {
        let mut queue = self.lock();
        if let Some(cause) = &queue.failed {
            return Err(disk(cause));
        }
        queue.sign.push(tell);
        self.filled.notify_one();
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.filled.notify_one();
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
        let pending = mem::take(&mut queue.pending);
        queue.sign.clear();
        queue.bytes = 0;
        drop(queue);
        self.emptied.notify_all();
        self.filled.notify_one();
        for p in pending {
            (p.done)(Err(disk(&cause)));
        }
    }

    /// Waits for something to do; `None` when the log is closing, or failed, and nothing is left.
    /// `answered` is how many were just told that they are done.
    fn take(&self, answered: usize) -> Option<(Vec<Pending>, Vec<Sender<Checkpoint>>)> {
        if answered > 1 {
            self.settle(answered);
        }
        let mut queue = self.lock();
        loop {
            if queue.failed.is_some() {
                return None;
            }
            if !queue.pending.is_empty() || !queue.sign.is_empty() {
                break;
            }
            if queue.closing {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let work = (mem::take(&mut queue.pending), mem::take(&mut queue.sign));
        queue.bytes = 0;
        drop(queue);
        self.emptied.notify_all();
        Some(work)
    }

    /// Lets submitters that were just answered queue their next records: until there are as many,
    /// or none came in two turns, or the turns are used up. No clock, no sleep.
    fn settle(&self, answered: usize) {
        let (mut before, mut still) = (0, 0);
        for _ in 0..SETTLE_TURNS {
            let queue = self.lock();
            let (now, done) = (queue.pending.len(), queue.closing || queue.failed.is_some());
            drop(queue);
            still = if now == before { still + 1 } else { 0 };
            if now >= answered || still > 2 || done {
                return;
            }
            before = now;
            std::thread::yield_now();
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().pending.is_empty()
    }
}

/// Entries written and not yet synced, with those who wait for the sync.
#[derive(Default)]
struct Unsynced {
    entries: Vec<Entry>,
    waiting: Vec<(u64, Done)>,
    bytes: usize,
}

impl Unsynced {
    fn fail(&mut self, cause: &str) {
        for (_, done) in self.waiting.drain(..) {
            done(Err(disk(cause)));
        }
    }
}

/// The thread.
pub(crate) fn run(mut wal: Wal, shared: &Shared, jobs: &SyncSender<Job>) {
    let mut unsynced = Unsynced::default();
    let mut answered = 0;
    while let Some((batch, sign)) = shared.take(answered) {
        answered = batch.len();
        let result = write(&mut wal, batch, &mut unsynced).and_then(|()| {
            let must = !unsynced.waiting.is_empty()
                || !sign.is_empty()
                || unsynced.bytes > UNSYNCED_BYTES_MAX
                || shared.is_empty();
            if must { sync(&mut wal, &mut unsynced, jobs) } else { Ok(()) }
        });
        if let Err(e) = result {
            let cause = e.to_string();
            // First the state, then the answers: whoever hears of the failure finds the log failed.
            shared.fail(cause.clone());
            unsynced.fail(&cause);
            return;
        }
        for tell in sign {
            // The tiler is gone only if it failed, and it has said so then.
            let _ = jobs.send(Job::Sign(tell));
        }
    }
    if !unsynced.entries.is_empty()
        && let Err(e) = sync(&mut wal, &mut unsynced, jobs)
    {
        shared.fail(e.to_string());
        unsynced.fail(&e.to_string());
    }
}

fn write(wal: &mut Wal, batch: Vec<Pending>, unsynced: &mut Unsynced) -> io::Result<()> {
    let first = wal.next();
    let written = wal.append(batch.iter().map(|p| p.entry.bytes()));
    let cause = written.as_ref().err().map(ToString::to_string);
    let mut ordered = Vec::new();
    for (index, p) in (first..).zip(batch) {
        unsynced.bytes += p.entry.bytes().len();
        unsynced.entries.push(p.entry);
        match (p.durability, &cause) {
            (Durability::Ordered, None) => ordered.push((index, p.done)),
            // After a failure both wait for the answer that the failure is.
            _ => unsynced.waiting.push((index, p.done)),
        }
    }
    for (index, done) in ordered {
        done(Ok(index));
    }
    written
}

fn sync(wal: &mut Wal, unsynced: &mut Unsynced, jobs: &SyncSender<Job>) -> io::Result<()> {
    wal.sync()?;
    for (index, done) in unsynced.waiting.drain(..) {
        done(Ok(index));
    }
    unsynced.bytes = 0;
    let entries = mem::take(&mut unsynced.entries);
    if !entries.is_empty() {
        // As above: a tiler that is gone has already failed the log.
        let _ = jobs.send(Job::Entries(entries));
    }
    Ok(())
}
