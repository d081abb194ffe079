//! One client's connection, and what all of them share.
//!
//! 1. Answers never block the committer: they go to a buffer that the client's own writer empties.
//! 2. A client has at most so many records without an answer and so many bytes of answers unread;
//!    beyond that it is not read.
//! 3. Whatever a client sends, the worst that happens is that its connection ends.

#[cfg(test)]
mod tests;

use crate::commit::{Acks, Waiter};
use crate::entry::{self, ENTRY_BYTES_MAX, EncodeError, Entry, Uids};
use crate::flood::{Accounts, Gap, REASON};
use crate::log::{Log, Recovered};
use crate::payload::{Beside, Shelf};
use crate::submitted::Questions;
use crate::wire::{
    Frames, FromClient, Hello, PROTOCOL, ROLE_BYTES_MAX, parse_client, push_refused, push_welcome,
    push_written,
};
use model::{Body, Durability, Record, RecordError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io::{self, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Records of one client that may be without an answer.
const OUTSTANDING_MAX: usize = 8_192;

/// Bytes of answers that one client may leave unread.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client that has connected says hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A clock that stands so much earlier than a record before it was set back: processes stamp their
/// records themselves, and under load one may come seconds after a later one.
const CLOCK_SLACK_MS: u64 = 60_000;

/// What answers tell the recorder's main loop. Apart from the hub: whoever holds an answer must not
/// hold the log open.
struct Tally {
    wake: OwnedFd,
    records: AtomicU64,
    failed: AtomicBool,
}

impl Tally {
    fn written(&self, index: u64) {
        self.records.fetch_max(index + 1, Ordering::AcqRel);
    }

    fn refused(&self) {
        self.failed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The log and its clients.
pub(crate) struct Hub {
    log: Log,
    shelf: Shelf,
    uids: Uids,
    tally: Arc<Tally>,
    seats: Mutex<(u64, HashMap<u64, UnixStream>)>,
    departed: AtomicU64,
    accounts: Accounts,
    /// The latest time that any record has.
    latest_ms: AtomicU64,
    rotating: Mutex<()>,
    questions: Questions,
}

impl Hub {
    pub(crate) fn new(log: Log, dir: &Path, private: bool, uids: Uids, wake: OwnedFd) -> Self {
        let records = AtomicU64::new(log.recovered().records);
        let failed = AtomicBool::new(false);
        let tally = Arc::new(Tally { wake, records, failed });
        let latest_ms = AtomicU64::new(log.recovered().last_time_ms);
        Self {
            log,
            shelf: Shelf::new(dir, private),
            uids,
            tally,
            seats: Mutex::default(),
            departed: AtomicU64::new(0),
            accounts: Accounts::default(),
            latest_ms,
            rotating: Mutex::default(),
            questions: Questions::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, UnixStream>)> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections now.
    pub(crate) fn clients(&self) -> usize {
        self.lock().1.len()
    }

    /// Connections that have ended.
    pub(crate) fn departed(&self) -> u64 {
        self.departed.load(Ordering::Acquire)
    }

    /// Whether the log has failed.
    pub(crate) fn failed(&self) -> bool {
        self.tally.failed.load(Ordering::Acquire)
    }

    /// Records in the log, as far as answers have come.
    pub(crate) fn records(&self) -> u64 {
        self.tally.records.load(Ordering::Acquire)
    }

    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.tally.wake
    }

    pub(crate) fn clear_wake(&self) {
        // Nothing to read means nothing to clear.
        let _ = rustix::io::read(&self.tally.wake, &mut [0; 8]);
    }

    pub(crate) fn wait_for_wake(&self, left: Option<&Timespec>) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.tally.wake, PollFlags::IN)], left) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                self.clear_wake();
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Ends every connection; their threads then go in order.
    pub(crate) fn disconnect_all(&self) {
        for stream in self.lock().1.values() {
            // One that is gone already needs no shutdown.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    pub(crate) fn seat(self: &Arc<Self>, stream: &UnixStream) -> Option<Seat> {
        let stream = stream.try_clone().ok()?;
        let mut seats = self.lock();
        seats.0 += 1;
        let id = seats.0;
        seats.1.insert(id, stream);
        Some(Seat { hub: Arc::clone(self), id })
    }

    /// Makes a record an entry, in the memory of `spare`.
    fn encode(
        &self,
        spare: Vec<u8>,
        record: &Record,
        beside: Option<&Beside>,
    ) -> Result<Entry, RecordError> {
        let uid = self.uids.next(record.time_ms);
        entry::encode_with(spare, record, &uid, beside).map_err(|e| match e {
            EncodeError::TooLarge { bytes } => {
                RecordError::TooLarge { bytes, max: ENTRY_BYTES_MAX }
            }
            e => RecordError::Invalid { why: e.to_string() },
        })
    }

    /// What the log had when it was opened.
    pub(crate) fn recovered(&self) -> &Recovered {
        self.log.recovered()
    }

    /// Appends a record of the recorder's own; where that fails, the log has failed.
    pub(crate) fn append_own(
        &self,
        body: Body,
        durability: Durability,
    ) -> Result<u64, RecordError> {
        let record = own(body);
        self.note_time(record.time_ms);
        self.append(&record, durability)
    }

    fn append(&self, record: &Record, durability: Durability) -> Result<u64, RecordError> {
        let result = self.encode(Vec::new(), record, None).and_then(|entry| {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            self.log.submit(&entry, durability, Box::new(move |result| drop(tell.send(result))));
            told.recv().unwrap_or_else(|_| {
                Err(RecordError::Gone { cause: "the log gave no answer".to_owned() })
            })
        });
        match &result {
            Ok(index) => self.tally.written(*index),
            Err(_) => self.tally.refused(),
        }
        result
    }

    /// Puts it on record when the clock went back.
    fn note_time(&self, now_ms: u64) {
        let before_ms = self.latest_ms.fetch_max(now_ms, Ordering::AcqRel);
        if now_ms.saturating_add(CLOCK_SLACK_MS) < before_ms {
            // From here on the new time is the one to compare with.
            self.latest_ms.store(now_ms, Ordering::Release);
            // A failure has set the state that ends the recorder, here as below.
            let _ =
                self.append(&own(Body::ClockSetBack { before_ms, now_ms }), Durability::Ordered);
        }
    }

    /// Makes a client's record an entry, in the memory of `spare`, with its text beside the log
    /// where it has one.
    fn accept(&self, record: Record, spare: Vec<u8>) -> Result<Entry, RecordError> {
        let (record, aside) = self.questions.settle(&self.shelf, record)?;
        let beside = aside.as_ref().map(|aside| &aside.beside);
        let entry = self.encode(spare, &record, beside)?;
        self.not_too_many(&record, &entry, beside)?;
        // Two syncs, which one that is refused does not cost.
        aside.iter().try_for_each(|aside| self.shelf.keep(aside))?;
        self.note_time(record.time_ms);
        Ok(entry)
    }

    /// Says no to what its session may not submit any more.
    fn not_too_many(
        &self,
        record: &Record,
        entry: &Entry,
        beside: Option<&Beside>,
    ) -> Result<(), RecordError> {
        let beside = beside.map_or(0, |b| usize::try_from(b.digest.bytes).unwrap_or(usize::MAX));
        let bytes = entry.bytes().len().saturating_add(beside);
        let verdict = self.accounts.judge(record, bytes, Instant::now());
        if let Some(gap) = verdict.gap {
            self.submit_gap(gap);
        }
        if verdict.take { Ok(()) } else { Err(RecordError::Flood { why: REASON.to_owned() }) }
    }

    fn submit_gap(&self, gap: Gap) {
        let body = Body::RecordGap { lost: gap.lost, open: gap.open, reason: REASON.to_owned() };
        let record = Record { session: Some(gap.session), agent: gap.agent, ..own(body) };
        let _ = self.append(&record, Durability::Ordered);
    }

    /// Puts the gaps on record that have no number yet.
    pub(crate) fn submit_gaps(&self) {
        self.accounts.take_gaps().into_iter().for_each(|gap| self.submit_gap(gap));
    }

    /// Announces the next key, and returns the record's index when a head is signed with it.
    fn rotate(&self) -> Result<u64, RecordError> {
        let _one_at_a_time = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = self.log.prepare_key();
        let (old_vkey, new_vkey) =
            prepared.map_err(|e| RecordError::Invalid { why: e.to_string() })?;
        let body = Body::KeyAnnounced { old_vkey, new_vkey: new_vkey.clone() };
        let index = self.append_own(body, Durability::Durable)?;
        self.log.sign()?;
        if self.log.verifier().vkey() == new_vkey {
            return Ok(index);
        }
        Err(RecordError::Invalid { why: "the log did not take the new key".to_owned() })
    }

    /// Signs the head over everything so far.
    pub(crate) fn sign(&self) -> Result<(), RecordError> {
        self.log.sign().map(drop)
    }

    /// Closes the log.
    pub(crate) fn close(self) -> Result<(), RecordError> {
        self.log.close()
    }
}

/// A record of the recorder's own, now.
fn own(body: Body) -> Record {
    let time_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    Record { time_ms, session: None, agent: None, turn: None, body }
}

/// A client's place at the recorder; given up when dropped.
pub(crate) struct Seat {
    hub: Arc<Hub>,
    id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.lock().1.remove(&self.id);
        self.hub.departed.fetch_add(1, Ordering::AcqRel);
        self.hub.tally.wake();
    }
}

#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    outstanding: usize,
    ended: bool,
    deaf: bool,
}

/// Answers on their way to one client.
struct Outbox {
    answers: Mutex<Answers>,
    changed: Condvar,
    tally: Arc<Tally>,
}

impl Acks for Outbox {
    fn written(&self, done: &[(u64, u64)]) {
        if let Some((_, index)) = done.last() {
            self.tally.written(*index);
        }
        let mut answers = self.lock();
        answers.outstanding -= done.len();
        if !answers.deaf {
            push_written(&mut answers.bytes, done);
        }
        drop(answers);
        self.changed.notify_all();
    }

    fn refused(&self, id: u64, error: RecordError) {
        if matches!(error, RecordError::Disk { .. }) {
            self.tally.refused();
        }
        let mut answers = self.lock();
        answers.outstanding -= 1;
        if !answers.deaf {
            push_refused(&mut answers.bytes, id, error);
        }
        drop(answers);
        self.changed.notify_all();
    }
}

impl Outbox {
    fn new(tally: Arc<Tally>) -> Self {
        Self { answers: Mutex::default(), changed: Condvar::new(), tally }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, answers: MutexGuard<'a, Answers>) -> MutexGuard<'a, Answers> {
        self.changed.wait(answers).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for one more record; waits while there is none.
    fn take_place(&self) {
        let mut answers = self.lock();
        while !answers.deaf
            && (answers.outstanding >= OUTSTANDING_MAX || answers.bytes.len() > ANSWER_BYTES_MAX)
        {
            answers = self.wait(answers);
        }
        answers.outstanding += 1;
    }

    /// Sends answers until the reader has ended and every record is answered.
    fn send(&self, mut stream: UnixStream) {
        let mut bytes = Vec::new();
        loop {
            let mut answers = self.lock();
            while answers.bytes.is_empty() && !(answers.ended && answers.outstanding == 0) {
                answers = self.wait(answers);
            }
            if answers.bytes.is_empty() {
                break;
            }
            mem::swap(&mut bytes, &mut answers.bytes);
            drop(answers);
            self.changed.notify_all();
            if stream.write_all(&bytes).is_err() {
                let mut answers = self.lock();
                answers.deaf = true;
                answers.bytes.clear();
                self.changed.notify_all();
            }
            bytes.clear();
        }
        // The client's reader sees the end; if it is gone, nobody needs to.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Serves one connection to its end.
pub(crate) fn run(seat: &Seat, stream: UnixStream, pid: u32) {
    let outbox = Arc::new(Outbox::new(Arc::clone(&seat.hub.tally)));
    let Ok(answers_to) = stream.try_clone() else { return };
    let for_writer = Arc::clone(&outbox);
    let writer = thread::Builder::new()
        .name("audit-answers".into())
        .spawn(move || for_writer.send(answers_to));
    let Ok(writer) = writer else { return };
    if stream.set_read_timeout(Some(HELLO_TIMEOUT)).is_ok() {
        let mut frames = Frames::new(&stream);
        if let Some(role) = hello(&mut frames)
            && stream.set_read_timeout(None).is_ok()
        {
            push_welcome(&mut outbox.lock().bytes);
            outbox.changed.notify_all();
            if !take_records(&seat.hub, &outbox, &mut frames) {
                // One that fails has set the hub's state, which ends the recorder.
                let _ = seat.hub.append_own(Body::ClientLost { pid, role }, Durability::Durable);
            }
            seat.hub.submit_gaps();
        }
    }
    outbox.lock().ended = true;
    outbox.changed.notify_all();
    // It ends by itself: every record gets an answer, and a send to nobody fails.
    let _ = writer.join();
}

fn hello(frames: &mut Frames<&UnixStream>) -> Option<String> {
    match frames.next_frame().ok()?.map(parse_client)? {
        Ok(FromClient::Hello(Hello { protocol: PROTOCOL, role, .. }))
            if role.len() <= ROLE_BYTES_MAX && role.chars().all(|c| c.is_ascii_graphic()) =>
        {
            Some(role)
        }
        _ => None,
    }
}

/// Takes records until the client says bye (`true`) or is lost (`false`).
fn take_records(hub: &Hub, outbox: &Arc<Outbox>, frames: &mut Frames<&UnixStream>) -> bool {
    let mut spare = Vec::new();
    loop {
        let frame = match frames.next_frame() {
            Ok(Some(frame)) => parse_client(frame),
            Ok(None) | Err(_) => return false,
        };
        match frame {
            Ok(FromClient::Submit { id, durability, record }) => {
                outbox.take_place();
                let entry = record.and_then(|record| hub.accept(record, mem::take(&mut spare)));
                match entry {
                    Ok(entry) => {
                        let acks: Arc<dyn Acks> = outbox.clone();
                        hub.log.submit_for(&entry, durability, Waiter::Client(acks, id));
                        spare = entry.into_bytes();
                    }
                    Err(error) => outbox.refused(id, error),
                }
            }
            Ok(FromClient::Rotate { id }) => {
                outbox.take_place();
                match hub.rotate() {
                    Ok(index) => outbox.written(&[(id, index)]),
                    Err(error) => outbox.refused(id, error),
                }
            }
            Ok(FromClient::Bye) => return true,
            Ok(FromClient::Hello(_)) | Err(_) => return false,
        }
    }
}
